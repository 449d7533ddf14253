"""Precision, placement and compilation: every way to load and run the four models gives the same function."""

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, TOLERANCE, clips, same_weights, spread

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoClassificationConfig,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.modeling_layers import VJepa2MLP


CONTEXT = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]])
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])
ACTIONS = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))


def encoder_model(**fields):
    return VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, **fields}))


def masked_latent():
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)
    return VJepa2ForMaskedLatentPrediction(config)


def world_model():
    return VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, action_dim=2, **TINY_PREDICTOR))


def classifier():
    config = VJepa2VideoClassificationConfig(
        encoder_config=TINY_ENCODER, num_labels=3, pooler_num_attention_heads=2, num_pooler_layers=1
    )
    return VJepa2ForVideoClassification(config)


RUN = {
    encoder_model: lambda model: model(clips()).last_hidden_state,
    masked_latent: lambda model: model(clips(), CONTEXT, TARGET).predicted_latents[0],
    world_model: lambda model: model(clips(), actions=ACTIONS).predicted_latents,
    classifier: lambda model: model(clips()).logits,
}
every_model = pytest.mark.parametrize("build", RUN, ids=lambda build: build.__name__)
# One layer: what is compiled is the same for each
ROPE = {"num_hidden_layers": 1}
FACTORIZED = {**ROPE, "attention_type": "factorized", "position_embedding_type": "learned"}
SINCOS = {**ROPE, "position_embedding_type": "sincos"}


def seeded(build, **fields):
    torch.manual_seed(0)
    return spread(build(**fields).eval())


@pytest.fixture
def backend(request):
    """Of `compiled`: "eager" traces alone, which is where graphs break, and is quick."""
    return getattr(request, "param", "eager")


@pytest.fixture
def compiled(backend):
    """Compiles without a graph break, or fails; forgets what other tests compiled."""
    torch.compiler.reset()
    yield lambda model: torch.compile(model, fullgraph=True, backend=backend)
    torch.compiler.reset()


class TestLoading:
    @torch.no_grad()
    @every_model
    def test_bfloat16_is_near_float32(self, build, tmp_path):
        model = seeded(build)
        model.save_pretrained(tmp_path)
        half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert type(model).from_pretrained(tmp_path).dtype == torch.float32
        expected, actual = RUN[build](model), RUN[build](half)
        assert actual.dtype == torch.bfloat16
        assert (actual.float() - expected).abs().max() < 0.1 * expected.abs().max()

    @torch.no_grad()
    @every_model
    @pytest.mark.parametrize("device_map", ["cpu", "auto"])
    def test_device_map(self, build, device_map, tmp_path):
        model = seeded(build)
        model.save_pretrained(tmp_path)
        placed = type(model).from_pretrained(tmp_path, device_map=device_map)
        assert same_weights(model, placed) and not any(p.is_meta for p in (*placed.parameters(), *placed.buffers()))
        assert torch.equal(RUN[build](placed).cpu(), RUN[build](model))

    @torch.no_grad()
    @every_model
    def test_weights_offloaded_to_disk(self, build, tmp_path):
        model = seeded(build)
        model.save_pretrained(tmp_path)
        names = [name for name, _ in model.named_children()]
        device_map = {name: "cpu" if name == names[-1] else "disk" for name in names}
        offloaded = type(model).from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
        assert any(parameter.is_meta for parameter in offloaded.parameters())
        torch.testing.assert_close(RUN[build](offloaded), RUN[build](model), **TOLERANCE)

    @every_model
    def test_shards(self, build, tmp_path):
        model = seeded(build)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert same_weights(model, loaded) and not info["missing_keys"] and not info["unexpected_keys"]

    @torch.no_grad()
    @every_model
    def test_layers_stay_whole_when_a_model_is_split(self, build):
        """`device_map="auto"` cuts between these modules; a residual inside one must not be cut."""
        model = seeded(build)
        layers = {type(module).__name__ for module in model.modules() if hasattr(module, "norm1")}
        assert layers <= set(model._no_split_modules)


class TestAttention:
    @torch.no_grad()
    @every_model
    def test_eager_equals_sdpa(self, build, tmp_path):
        model = seeded(build)
        model.save_pretrained(tmp_path)
        eager = type(model).from_pretrained(tmp_path, attn_implementation="eager")
        implementations = [
            {module.config._attn_implementation for module in each.modules() if hasattr(module, "config")}
            for each in (model, eager)
        ]
        assert implementations == [{"sdpa"}, {"eager"}]
        torch.testing.assert_close(RUN[build](eager), RUN[build](model), **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("fields", [ROPE, FACTORIZED], ids=["rope", "factorized"])
    def test_eager_equals_sdpa_on_kept_tokens(self, fields):
        encoder = seeded(encoder_model, **fields)
        expected = encoder(clips(), context_mask=CONTEXT).last_hidden_state
        encoder.set_attn_implementation("eager")
        torch.testing.assert_close(encoder(clips(), context_mask=CONTEXT).last_hidden_state, expected, **TOLERANCE)

    @every_model
    def test_flash_where_no_mask_is_needed(self, build):
        assert build()._supports_flash_attn == (build is not world_model)  # block-causal masks

    @pytest.mark.skipif(torch.cuda.is_available(), reason="transformers may have what flash needs")
    @every_model
    def test_flash_without_a_gpu_is_transformers_own_error(self, build, tmp_path):
        model = build()
        model.save_pretrained(tmp_path)
        with pytest.raises((ImportError, ValueError), match="(?i)flash"):
            type(model).from_pretrained(tmp_path, attn_implementation="flash_attention_2")


class TestCompiled:
    @torch.no_grad()
    @pytest.mark.parametrize("fields", [ROPE, FACTORIZED], ids=["rope", "factorized"])
    def test_no_graph_breaks_at_several_sizes(self, fields, compiled):
        encoder = seeded(encoder_model, **fields)
        program = compiled(encoder)
        for video in (clips(), clips(6, 40, 48)):
            output = program(video)
            torch.testing.assert_close(output.last_hidden_state, encoder(video).last_hidden_state, **TOLERANCE)
            assert output.grid == encoder(video).grid

    @torch.no_grad()
    @pytest.mark.parametrize("fields", [ROPE, FACTORIZED], ids=["rope", "factorized"])
    def test_no_graph_breaks_with_a_context_mask(self, fields, compiled):
        encoder = seeded(encoder_model, **fields)
        program = compiled(encoder)
        for ids in (CONTEXT, CONTEXT[:, :3]):
            expected = encoder(clips(), context_mask=ids).last_hidden_state
            torch.testing.assert_close(program(clips(), context_mask=ids).last_hidden_state, expected, **TOLERANCE)

    @pytest.mark.parametrize("backend", ["aot_eager"], indirect=True)
    def test_gradients(self, compiled):
        encoder = seeded(encoder_model, **ROPE)
        gradients = []
        for program in (encoder, compiled(encoder)):
            encoder.zero_grad()
            program(clips(), context_mask=CONTEXT).last_hidden_state.square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
        for expected, actual in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("fields", [ROPE, FACTORIZED, SINCOS], ids=["rope", "factorized", "sincos"])
    def test_exported_program_at_another_batch_size(self, fields):
        encoder = seeded(encoder_model, **fields)
        shapes = [{0: torch.export.Dim("batch", min=1, max=64)}]
        program = torch.export.export(encoder, (clips(),), dynamic_shapes=shapes).module()
        for video in (clips(seed=3), clips(batch_size=3)):
            torch.testing.assert_close(program(video).last_hidden_state, encoder(video).last_hidden_state, **TOLERANCE)

    @torch.no_grad()
    @pytest.mark.parametrize("fields", [ROPE, FACTORIZED], ids=["rope", "factorized"])
    def test_exported_program_with_a_context_mask(self, fields):
        encoder = seeded(encoder_model, **fields)
        batch, kept = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("kept", min=2, max=32)
        shapes = [{0: batch}, {0: batch, 1: kept}]
        program = torch.export.export(encoder, (clips(), CONTEXT), dynamic_shapes=shapes).module()
        video, ids = clips(batch_size=3), torch.tensor([[0, 31], [4, 20], [9, 8]])
        expected = encoder(video, ids).last_hidden_state
        torch.testing.assert_close(program(video, ids).last_hidden_state, expected, **TOLERANCE)


@every_model
def test_activation_checkpointing_gives_the_same_gradients(build):
    model = seeded(build).train()
    gradients, calls = [], []

    def count(*_):
        calls[-1] += 1

    for module in model.modules():
        if isinstance(module, VJepa2MLP):
            module.fc1.register_forward_hook(count)
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        calls.append(0)
        RUN[build](model).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert gradients[0] and calls[1] > calls[0]  # layers ran again in the backward pass
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_gradient_checkpointing_by_its_old_name():
    encoder = seeded(encoder_model, attention_type="factorized")
    expected = torch.autograd.grad(encoder(clips()).last_hidden_state.square().mean(), encoder.layer[0].norm1.weight)
    with pytest.warns(FutureWarning, match="activation_checkpointing_enable"):
        encoder.gradient_checkpointing_enable()
    actual = torch.autograd.grad(
        encoder.train()(clips()).last_hidden_state.square().mean(), encoder.layer[0].norm1.weight
    )
    torch.testing.assert_close(actual, expected)
