"""bfloat16 on a CPU: near float32, and float32 where numbers are averaged, compared or updated a little at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from builders import (
    GOAL,
    OBSERVATION,
    TINY_ENCODER,
    TINY_PREDICTOR,
    TinyRunConfig,
    build_encoder,
    build_masked_latent,
    build_planner,
    clips,
    spread,
)
from script_runs import run_pretrain, run_train_world_model, write_noise_episodes, write_square_shards
from torch import nn
from transformers import pipeline

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2FeatureExtractor,
    VJepa2ForMaskedLatentPrediction,
    VJepa2Planner,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
    modeling_base,
    modeling_layers,
)
from vjepa2_hf.modeling_layers import attend
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.processes import build_accelerator


CONTEXT = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture
def instructions(monkeypatch):
    """Sets the bfloat16 instructions of the processor, as the models see them."""

    def has(*names: str) -> None:
        for module in (modeling_layers, modeling_base):
            monkeypatch.setattr(module, "bfloat16_instructions", lambda: frozenset(names))

    modeling_base._warn_of_slow_bfloat16.cache_clear()
    yield has
    modeling_base._warn_of_slow_bfloat16.cache_clear()


def reset_accelerate() -> None:
    """Accelerate keeps the precision of a run for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def bf16_run():
    """For tests that train with mixed_precision=bf16."""
    reset_accelerate()
    yield
    reset_accelerate()


class TestAttention:
    @pytest.mark.parametrize("masked", ["no", "all clips", "each clip"])
    def test_products_equal_the_fused_kernel_and_so_do_their_gradients(self, instructions, monkeypatch, masked):
        module = nn.Module()
        module.config, module.scaling, module.is_causal = SimpleNamespace(_attn_implementation="sdpa"), 0.25, False
        generator = torch.Generator().manual_seed(0)
        tokens = [torch.randn(3, 2, n, 8, generator=generator).bfloat16() for n in (9, 13, 13)]
        mask = torch.rand(3, 1, 9, 13, generator=generator) > 0.3
        mask[..., 0] = True
        mask = {"no": None, "all clips": mask[:1], "each clip": mask}[masked]
        found = []
        for names in ((), ("avx512_bf16",)):
            instructions(*names)
            parts = [part.clone().requires_grad_() for part in tokens]
            output = attend(module, *parts, mask)[0]
            output.sum(dim=-1).square().sum().backward()
            found.append([output, *(part.grad for part in parts)])
        for fused, products in zip(*found, strict=True):
            assert products.dtype == torch.bfloat16 and error(products, fused) < 0.02
        assert "_ProductAttention" in str(graph_of(found[1][0])) and "_Product" not in str(graph_of(found[0][0]))

    def test_where_the_fused_kernel_is_as_fast_or_the_numbers_are_others_it_stays(self, instructions):
        query, key = torch.randn(2, 2, 9, 8).bfloat16(), torch.randn(2, 2, 13, 8).bfloat16()
        choose = modeling_layers._is_faster_by_products
        instructions("avx512_bf16")
        assert choose(query, key) and not choose(query.float(), key.float())
        long = torch.empty(1, 1, 2**14, 1, dtype=torch.bfloat16)
        assert not choose(long, long)  # 512 MB of scores
        instructions("avx512_bf16", "amx_bf16")
        assert not choose(query, key)


def graph_of(output: torch.Tensor) -> list[str]:
    """Names of the functions that made a tensor."""
    names, todo = [], [output.grad_fn]
    while todo:
        node = todo.pop()
        names.append(node.name())
        todo += [each for each, _ in node.next_functions if each is not None]
    return names


class TestEncoder:
    @torch.no_grad()
    @pytest.mark.parametrize("ids", [None, CONTEXT], ids=["clip", "context"])
    def test_tokens_are_near_float32(self, ids, tmp_path):
        encoder = build_encoder()
        encoder.save_pretrained(tmp_path)
        half = VJepa2Encoder.from_pretrained(tmp_path, dtype="bfloat16")
        assert error(half(clips(), ids).last_hidden_state, encoder(clips(), ids).last_hidden_state) < 0.03

    def test_the_feature_pipeline_takes_a_dtype(self, processor):
        extractor = VJepa2FeatureExtractor(build_encoder(), processor, dtype="bfloat16", device="cpu")
        assert extractor.model.dtype == torch.bfloat16
        features = extractor(clips()[0], pool="frame")
        expected = build_encoder().encode(clips()[:1], pool="frame")[0]
        assert features.dtype == np.float32 and error(torch.from_numpy(features), expected) < 0.03
        with pytest.raises(ValueError, match="dtype"):
            VJepa2FeatureExtractor(build_encoder(), processor, dtype="int8", device="cpu")

    @pytest.mark.parametrize("dtype", ["bf16", "int8", "", torch.int8, 16])
    def test_other_names_and_types_are_refused_by_name(self, dtype, tmp_path):
        build_encoder().save_pretrained(tmp_path)
        shown = str(dtype).removeprefix("torch.")
        with pytest.raises(ValueError, match=f"Unknown dtype {shown!r}; (did you mean|known ones are)"):
            VJepa2Encoder.from_pretrained(tmp_path, dtype=dtype)


def fitted_world_model(**fields) -> VJepa2WorldModel:
    """Its latents are far from 0 and near each other."""
    torch.manual_seed(0)
    fields = {"action_dim": 2, "context_frames": 2, "normalize_latents": "none", **TINY_PREDICTOR, **fields}
    model = spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields))).eval()
    nn.init.constant_(model.encoder.layernorm.bias, 30.0)
    model.fit_state(model.encode(clips(frames=6, seed=3)))
    return model


class TestWorldModel:
    def test_statistics_of_the_state_stay_in_float32(self, tmp_path):
        model = fitted_world_model()
        model.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path, dtype="bfloat16")
        for half in (loaded, model.to(torch.bfloat16)):
            assert half.dtype == torch.bfloat16
            assert half.state_mean.dtype == half.state_scale.dtype == torch.float32
        assert torch.equal(loaded.state_mean, fitted_world_model().state_mean)
        assert loaded.double().state_mean.dtype == torch.float64

    @torch.no_grad()
    def test_costs_are_ordered_as_in_float32(self):
        model = fitted_world_model(residual=True)
        nn.init.normal_(model.predictor.proj.weight, std=0.2)  # otherwise the costs differ by rounding alone
        model.predictor.action_encoder.weight.mul_(20)
        latents = model.encode(clips())
        actions = torch.rand(2, 24, 3, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
        expected = model.score(latents[:, :1], latents[:, 3:], actions)
        costs = model.to(torch.bfloat16).score(latents[:, :1], latents[:, 3:], actions)
        assert costs.dtype == torch.float32 and error(costs, expected) < 0.005
        for pair in zip(costs, expected, strict=True):
            ranks = torch.stack([values.argsort().argsort().float() for values in pair])
            assert torch.corrcoef(ranks)[0, 1] > 0.93

    def test_several_embodiments(self):
        model = fitted_world_model(num_embodiments=2)
        model.fit_embodiment(0, model.encode(clips(frames=6, seed=4)))
        model.fit_embodiment(1, model.encode(clips(frames=6, seed=5)))
        latents, actions = model.encode(clips()), torch.rand(2, 3, 2)
        given = {"embodiment_ids": torch.tensor([0, 1])}
        expected = model.rollout(latents[:, :1], actions, **given)
        half = model.to(torch.bfloat16).rollout(latents[:, :1], actions, **given)
        assert half.dtype == torch.bfloat16 and error(half, expected) < 0.05


class TestPlanner:
    def test_it_returns_float32(self, tmp_path):
        build_planner(options={"device": "cpu"}).save_pretrained(tmp_path)
        loaded = VJepa2Planner.from_pretrained(tmp_path, dtype="bfloat16", device="cpu")
        built = VJepa2Planner(VJepa2WorldModel.from_pretrained(tmp_path), loaded.video_processor,
                              dtype=torch.bfloat16, device="cpu")  # fmt: skip
        task = pipeline("latent-planning", model=str(tmp_path), dtype="bfloat16", device="cpu")
        for planner in (loaded, built, task):
            assert planner.model.dtype == torch.bfloat16
            plan = planner(OBSERVATION, GOAL)
            assert plan["actions"].dtype == np.float32 and np.isfinite(plan["cost"])
        assert np.array_equal(plan["actions"], loaded(OBSERVATION, GOAL)["actions"])


class TestTraining:
    def test_weights_average_and_optimizer_are_float32_also_of_a_model_saved_in_bfloat16(self, tmp_path, bf16_run):
        config = TinyRunConfig(output_dir=str(tmp_path), max_steps=2, mixed_precision="bf16")
        loop = TrainingLoop(config, "tiny")
        model = build_masked_latent(4, normalize_targets="batch").to(torch.bfloat16)
        optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=1e-5)
        plain = model
        model, optimizer = loop.prepare(model.train(), optimizer)
        before = [parameter.clone() for parameter in plain.target_encoder.parameters()]
        output = model(clips(), CONTEXT, TARGET)
        assert output.predicted_latents[0].dtype == torch.float32  # Accelerate converts the outputs back
        loop.accelerator.backward(output.loss)
        optimizer.step()
        plain.update_target_encoder(0.9999)
        assert output.loss.dtype == torch.float32 and output.loss.isfinite()
        state = [value for values in optimizer.state.values() for value in values.values()]
        floats = [*plain.parameters(), *state, *(p.grad for p in plain.encoder.parameters() if p.grad is not None)]
        assert {part.dtype for part in floats} == {torch.float32}
        pairs = zip(before, plain.target_encoder.parameters(), strict=True)
        assert not all(torch.equal(old, new) for old, new in pairs)

    def test_both_scripts_learn_what_they_learn_in_float32(self, monkeypatch, tmp_path, bf16_run):
        sizes = "hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, patch_size: 8"
        shards, episodes = write_square_shards(tmp_path / "shards"), write_noise_episodes(tmp_path / "episodes")
        build_encoder().to(torch.bfloat16).save_pretrained(tmp_path / "encoder")
        given = [f"encoder={tmp_path / 'encoder'}", "encoder_config={}", f"cache_dir={tmp_path / 'cache'}"]
        losses = {}
        for precision in ("bf16", "no"):
            settings, folder = f"mixed_precision={precision}", tmp_path / precision
            rows = run_pretrain(monkeypatch, shards, folder / "pretrain", f"encoder={{{sizes}}}", settings)
            reset_accelerate()
            rows += run_train_world_model(monkeypatch, episodes, folder / "world_model", *given, settings)
            reset_accelerate()
            losses[precision] = [row["loss"] for row in rows]
            for name, kind in (("pretrain", VJepa2ForMaskedLatentPrediction), ("world_model", VJepa2WorldModel)):
                assert kind.from_pretrained(folder / name / "final").dtype == torch.float32
        assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05) and losses["bf16"] != losses["no"]

    def test_targets_are_normalized_in_float32(self):
        model = build_masked_latent(4, normalize_targets="batch")
        targets = (100 + torch.randn(2, 32, 24)).bfloat16()
        normalized = model.normalize_targets(targets)
        assert normalized.dtype == torch.float32
        assert torch.equal(normalized, model.normalize_targets(targets.float()))


class TestWarning:
    def test_it_comes_once_where_the_processor_has_no_instructions(self, instructions, notes, tmp_path, processor):
        build_encoder().save_pretrained(tmp_path)
        instructions("avx512_bf16")
        VJepa2Encoder.from_pretrained(tmp_path, dtype="bfloat16")
        instructions()
        VJepa2Encoder.from_pretrained(tmp_path)
        VJepa2FeatureExtractor(build_encoder(), processor, device="cpu")
        assert "bfloat16" not in notes()
        for _ in range(2):
            VJepa2FeatureExtractor(build_encoder(), processor, device="cpu", dtype="bfloat16")
        assert notes().count("this processor has no bfloat16 instructions") == 1

    @pytest.mark.parametrize(("precision", "count"), [("no", 0), ("bf16", 1)])
    def test_of_a_training_run(self, instructions, notes, bf16_run, precision, count):
        instructions()
        build_accelerator(mixed_precision=precision)
        assert notes().count("mixed_precision=no") == count
