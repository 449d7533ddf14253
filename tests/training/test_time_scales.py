"""A world model with longer steps on the latents of another one, and the range of its macro-actions."""

import pytest
import torch
from builders import TINY_PREDICTOR, build_encoder, same_weights, spread, write_cache

from vjepa2_hf import VJepa2WorldModel
from vjepa2_hf.data.feature_cache import FeatureCache
from vjepa2_hf.data.windows import WindowMixture
from vjepa2_hf.training.time_scales import copy_state, set_macro_range


FRAMES = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(fitted: bool = False, other_encoder: bool = False, **fields) -> VJepa2WorldModel:
    encoder = spread(build_encoder()) if other_encoder else build_encoder()
    model = VJepa2WorldModel.from_encoder(encoder, **{"action_dim": 2, **TINY_PREDICTOR, **fields}).eval()
    if fitted:
        tokens, size = model.encode(FRAMES).shape[2:]
        model.fit_state(torch.randn(20, tokens, size))
    return model


class TestCopyState:
    @pytest.mark.parametrize("fields", [{}, {"state_type": "merged", "state_dim": 8}, {"state_type": "pixels"}])
    def test_the_latents_of_both_models_are_equal(self, fields, tmp_path):
        other = build(fitted=True, **fields)
        other.save_pretrained(tmp_path)
        model = build(action_dim=8, frame_skip=4, macro_action_dim=2, **fields)
        assert not same_weights(model, other)
        copy_state(model, tmp_path)
        assert torch.equal(model.encode(FRAMES), other.encode(FRAMES)) and model.config.state_fitted

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (build(), "has no fitted state to copy: train it with fit_state=true"),
            (build(fitted=True, other_encoder=True), "has another encoder: both time scales need the latents"),
            (build(fitted=True, state_type="pooled"), "state_type is 'tokens' in one model and 'pooled' in the other"),
        ],
    )
    def test_another_state_or_encoder_is_refused(self, other, message, tmp_path):
        other.save_pretrained(tmp_path)
        model = build()
        with pytest.raises(ValueError, match=message):
            copy_state(model, tmp_path)
        assert not model.config.state_fitted


def test_the_range_is_that_of_the_macro_actions_of_whole_steps(tmp_path):
    cache = FeatureCache(write_cache(tmp_path / "cache", {"0": 7, "2": 5}), ["latents", "actions"])
    model = build(action_dim=2, actions_per_step=2, frame_skip=2, macro_action_dim=1, action_std=[300.0, 300.0])
    set_macro_range(model, WindowMixture([cache], [torch.arange(2)], [1.0]))
    # the action from frame t to t + 1 of episode e is 100 e + t + 0.5
    steps = torch.tensor([[0.5, 1.5], [2.5, 3.5], [4.5, 5.5], [200.5, 201.5], [202.5, 203.5]])
    expected = model.encode_actions(steps).quantile(torch.tensor([0.01, 0.99]), dim=0)
    assert model.config.macro_action_low == pytest.approx(expected[0].tolist())
    assert model.config.macro_action_high == pytest.approx(expected[1].tolist())
