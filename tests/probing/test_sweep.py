"""Heads of a sweep learn as they would alone; standardising is folded exactly; rates by depth."""

import pytest
import torch
from builders import TINY_ENCODER

from vjepa2_hf import VJepa2ForVideoClassification, VJepa2VideoClassificationConfig
from vjepa2_hf.probing.sweep import FineTuning, ProbeSweep, depth_of


def build(pooler_type: str, **fields) -> VJepa2ForVideoClassification:
    torch.manual_seed(0)
    fields = {"problem_type": "single_label_classification", "num_labels": 3, **fields}
    heads = {"num_pooler_layers": 1, "pooler_num_attention_heads": 2, "pooler_type": pooler_type}
    return VJepa2ForVideoClassification(
        VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, **heads, **fields)
    )


def features(pooler_type: str, batch_size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, 24) if pooler_type == "linear" else (batch_size, 32, 24)
    return torch.randn(shape, generator=generator) * 2 + 1


def learn(sweep: ProbeSweep, inputs: torch.Tensor, labels: torch.Tensor, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(sweep.optimizer_groups())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    for _ in range(steps):
        sweep(inputs, labels).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pooler_type", ["linear", "attentive"])
def test_each_head_learns_as_if_it_were_alone(pooler_type, checkpointing):
    model, labels = build(pooler_type), torch.tensor([0, 1, 2, 0, 1, 1])
    settings = [(1e-2, 0.1), (1e-3, 0.0), (3e-3, 0.8)]
    together = ProbeSweep(model, settings, gradient_checkpointing=checkpointing)
    learn(together, features(pooler_type), labels)
    for number, setting in enumerate(settings):
        alone = ProbeSweep(model, [setting])
        learn(alone, features(pooler_type), labels)
        expected = alone.head_weights(0)
        for name, value in together.head_weights(number).items():
            # AdamW divides by the gradient's size: rounding shows where a gradient is almost nothing
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("pooler_type", ["linear", "attentive"])
def test_losses_are_those_of_the_classifier(pooler_type, kind):
    model = build(pooler_type, problem_type=kind)
    single = kind == "single_label_classification"
    labels = torch.tensor([0, 1, 2, 0, 1, 1]) if single else torch.randint(2, (6, 3)).float()
    sweep, inputs = ProbeSweep(model, [(1e-3, 0.0)] * 2), features(pooler_type)
    logits = model.classifier(inputs) if pooler_type == "linear" else model.classify(inputs)
    expected = model.classification_loss(logits, labels)
    torch.testing.assert_close(sweep(inputs, labels), expected.expand(2))


@torch.no_grad()
def test_what_is_standardised_is_folded_into_the_head():
    model, inputs = build("linear", problem_type="regression"), features("linear", 20)
    scale = (torch.tensor([5.0, -3, 0]), torch.tensor([10.0, 0.1, 2]))
    sweep = ProbeSweep(model, [(1e-3, 0.0)], (inputs.mean(0), inputs.std(0)), scale)
    torch.nn.init.normal_(sweep.heads[0].classifier.bias)
    predictions = sweep.predictions(sweep.logits(inputs))[0]
    model.load_state_dict(sweep.head_weights(0), strict=False)
    torch.testing.assert_close(model.classifier(inputs), predictions, rtol=1e-4, atol=1e-4)
    labels = scale[0] + scale[1] * torch.randn(20, 3)
    standardised = (labels - scale[0]) / scale[1]
    torch.testing.assert_close(sweep(inputs, labels)[0], (sweep.logits(inputs)[0] - standardised).square().mean())


def test_lower_blocks_learn_slower():
    model = build("attentive")
    tuning = FineTuning(model, (1.0, 0.05), layer_decay=0.5)
    assert tuning.heads[0] is model
    peaks = {
        id(p): (group["peak"], group["weight_decay"]) for group in tuning.optimizer_groups() for p in group["params"]
    }
    assert len(peaks) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        peak, decay = peaks[id(parameter)]
        assert peak == 0.5 ** (3 - depth_of(name, 2)) and decay == (0.05 if parameter.ndim > 1 else 0.0), name
    depths = {name: depth_of(name, 2) for name, _ in model.named_parameters()}
    assert {depth for name, depth in depths.items() if name.startswith("encoder.layer.1.")} == {2}
    assert {depth for name, depth in depths.items() if "embeddings" in name} == {0}
    assert {depth for name, depth in depths.items() if name.startswith(("classifier", "pooler"))} == {3}
