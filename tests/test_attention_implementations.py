"""`attn_implementation`: sdpa, eager and FlexAttention compute the same, with the masks that each takes."""

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, clips, spread

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2WorldModel, VJepa2WorldModelConfig


CLOSE = {"atol": 1e-5, "rtol": 0}
implementations = pytest.mark.parametrize("implementation", ["eager", "flex_attention"])


@pytest.fixture(autouse=True)
def flex_attention_without_compiler(monkeypatch):
    """FlexAttention as PyTorch runs it for debugging: for a CPU it would compile for a minute."""
    from torch.nn.attention import flex_attention as torchs
    from transformers.integrations import flex_attention as integration

    def attend(query, key, value, training=False, **options):
        return torchs.flex_attention(query, key, value, **options)

    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", attend)


def build_world_model(**fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    sizes = {"encoder_config": TINY_ENCODER, "action_dim": 2, "context_frames": 3, **TINY_PREDICTOR}
    return spread(VJepa2WorldModel(VJepa2WorldModelConfig(**sizes, **fields)).eval())


def batch(model: VJepa2WorldModel) -> dict[str, torch.Tensor]:
    latents = torch.randn(2, 5, model.tokens_per_frame, model.latent_size, generator=torch.Generator().manual_seed(1))
    return {"latents": latents, "actions": torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(2))}


@implementations
@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
@torch.no_grad()
def test_training_and_rollouts_of_a_world_model(implementation, fusion):
    model = build_world_model(action_fusion=fusion)
    given, results = batch(model), []
    for each in ("sdpa", implementation):
        model.set_attn_implementation(each)
        output = model(**given)
        future = model.rollout(
            given["latents"][:, :3], given["actions"][:, 2:], context_actions=given["actions"][:, :2]
        )
        results.append((output.predicted_latents, output.rollout_loss, future))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@implementations
@pytest.mark.parametrize("kept", [True, False], ids=["kept tokens", "whole clip"])
@pytest.mark.parametrize("attention_type", ["joint", "factorized"])
@torch.no_grad()
def test_encoder(implementation, kept, attention_type):
    torch.manual_seed(0)
    encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER, attention_type=attention_type)).eval())
    ids = torch.tensor([[0, 1, 5, 17, 30], [2, 3, 16, 20, 31]]) if kept else None
    expected = encoder(clips(), context_mask=ids).last_hidden_state
    encoder.set_attn_implementation(implementation)
    torch.testing.assert_close(encoder(clips(), context_mask=ids).last_hidden_state, expected, **CLOSE)


def test_from_pretrained_takes_it_and_pytorch_refuses_gradients_on_a_cpu(tmp_path):
    build_world_model().save_pretrained(tmp_path)
    model = VJepa2WorldModel.from_pretrained(tmp_path, attn_implementation="flex_attention")
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        model(**batch(model))


def test_flash_attention_is_refused_for_a_world_model():
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        build_world_model().set_attn_implementation("flash_attention_2")
