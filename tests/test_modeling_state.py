"""States of a frame: how tokens are arranged, what is fitted, and the encoder that adapts."""

import numpy as np
import pytest
import torch
from builders import GOAL, OBSERVATION, SOLVER, TINY_ENCODER, TINY_PREDICTOR, clips, same_weights, spread

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2Planner,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.modeling_state import principal_directions, slow_directions


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def build(**fields):
    torch.manual_seed(0)
    fields = {"action_dim": 2, "context_frames": 2, **TINY_PREDICTOR, **fields}
    return spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields)).eval())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestArrangement:
    """Of the 4×4 tokens of a frame, 24 wide."""

    @torch.no_grad()
    def test_merged_tokens_are_two_by_two_neighbors_side_by_side(self):
        plain, model = build(), build(state_type="merged")
        model.encoder.load_state_dict(plain.encoder.state_dict())
        tokens, merged = plain.encode(clips(3)), model.encode(clips(3))
        assert merged.shape == (2, 3, 4, 96)
        for position, ids in enumerate([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]):
            assert torch.equal(merged[:, :, position], tokens[:, :, ids].flatten(2))

    @torch.no_grad()
    def test_a_pooled_state_is_the_mean_of_the_tokens(self):
        tokens, pooled = (build(state_type=name).encode(clips(3)) for name in ("tokens", "pooled"))
        torch.testing.assert_close(pooled, tokens.mean(dim=2, keepdim=True))

    @torch.no_grad()
    def test_merged_predictions_are_normalized_like_the_merged_tokens(self):
        model = build(state_type="merged")
        latents = model.encode(clips(1))
        future = model.rollout(latents, random(2, 2, 2)).unflatten(-1, (4, 24))
        torch.testing.assert_close(future.mean(dim=-1), torch.zeros(2, 2, 4, 4), **CLOSE)
        torch.testing.assert_close(future.var(dim=-1, unbiased=False), torch.ones(2, 2, 4, 4), atol=1e-3, rtol=0)

    @torch.no_grad()
    def test_frames_that_no_processor_normalized_are_warned_of_once(self, recwarn):
        model, bytes_ = build(), 255 * torch.rand(1, 1, 3, 32, 32)
        with pytest.warns(UserWarning, match="far outside the range of a video processor.*VJepa2VideoProcessor"):
            model.encode(bytes_)
        recwarn.clear()
        model.encode(bytes_)
        build().encode(clips(1))
        assert not recwarn.list

    def test_a_grid_that_merging_does_not_divide_is_refused(self):
        with pytest.raises(ValueError, match="a frame has 5×5 tokens.*a multiple of 16 pixels"):
            build(state_type="merged").encode(clips(1, 40, 40))

    @torch.no_grad()
    def test_a_merged_frame_of_another_size_goes_through_rotary_positions(self):
        model = build(state_type="merged")
        latents = model.encode(clips(1, 64, 64))
        assert model.rollout(latents, random(2, 2, 2)).shape == (2, 2, 16, 96)


class TestFit:
    @torch.no_grad()
    @pytest.mark.parametrize("frames", [60, 300], ids=["fewer frames than numbers", "more"])
    def test_projected_pca_keeps_what_a_singular_value_decomposition_keeps(self, frames):
        model = build(state_type="projected", state_dim=8)
        latents = random(frames, 16, 24) * torch.linspace(1, 9, 384).view(16, 24)
        model.fit_state(latents)
        state = model.standardize(latents)
        assert state.shape == (frames, 1, 8) and (model.tokens_per_frame, model.latent_size) == (1, 8)
        centered = latents.flatten(1) - latents.flatten(1).mean(dim=0)
        left, singular, _ = torch.linalg.svd(centered, full_matrices=False)
        expected = left[:, :8] * singular[:8]
        expected = expected / expected.square().mean().sqrt()  # one deviation of all
        torch.testing.assert_close(state[:, 0].abs(), expected.abs(), atol=1e-3, rtol=1e-3)

    @torch.no_grad()
    def test_merged_tokens_share_one_map(self):
        model = build(state_type="merged", state_dim=10)
        raw = model.encode(clips(6, batch_size=8))
        assert raw.shape == (8, 6, 4, 96)
        model.fit_state(raw)
        state = model.encode(clips(6, batch_size=8))
        assert state.shape == (8, 6, 4, 10) and model.state_map.shape == (96, 10)
        torch.testing.assert_close(state, (raw - model.state_mean) @ model.state_map / model.state_scale, **CLOSE)
        torch.testing.assert_close(state.mean(dim=(0, 1)), torch.zeros(4, 10), atol=1e-4, rtol=0)
        assert state.square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(model.state_map.T @ model.state_map, torch.eye(10), atol=1e-4, rtol=0)

    @torch.no_grad()
    def test_a_list_of_episodes_fits_what_their_frames_together_fit(self):
        one, two = (build(state_type="projected", state_dim=4) for _ in range(2))
        frames = random(40, 16, 24)
        one.fit_state(frames)
        two.fit_state([frames[:7], frames[7:]])
        torch.testing.assert_close(one.standardize(frames), two.standardize(frames), atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_slow_directions_find_slow_signals_below_fast_ones_and_backgrounds(self):
        """Two slow sines, as weak as the noise, beside fast noise and a background of each episode, ten times as
        large: the two slowest features are the sines, which the first principal components are not."""
        generator = torch.Generator().manual_seed(0)
        time = torch.arange(80.0)
        phases = torch.rand(30, 2, generator=generator) * 6.28
        slow = (
            torch.stack([(time / 9 + p[0]).sin() for p in phases]),
            torch.stack([(time / 12 + p[1]).sin() for p in phases]),
        )
        sources = torch.stack(slow, dim=-1)  # (E, T, 2)
        noise = torch.randn(30, 80, 30, generator=generator)
        background = 10 * torch.randn(30, 1, 6, generator=generator).expand(-1, 80, -1)
        mixing = torch.linalg.qr(torch.randn(384, 38, generator=generator))[0].T
        latents = (torch.cat([sources, noise, background], dim=-1) @ mixing).unflatten(-1, (16, 24))
        errors = {}
        for projection in ("slow", "pca"):
            model = build(state_type="projected", state_dim=2, state_projection=projection)
            model.fit_state(latents)
            features = model.standardize(latents)[:, :, 0]
            centered = features - features.mean(dim=1, keepdim=True)
            targets = (sources - sources.mean(dim=1, keepdim=True)).flatten(0, 1)
            fit = torch.linalg.lstsq(centered.flatten(0, 1), targets).solution
            errors[projection] = (centered.flatten(0, 1) @ fit - targets).square().mean() / targets.square().mean()
        assert errors["slow"] < 0.05 and errors["pca"] > 0.9

    @torch.no_grad()
    def test_slow_takes_a_list_of_episodes_of_different_length(self):
        model = build(state_type="projected", state_dim=3, state_projection="slow")
        model.fit_state([random(30, 16, 24), random(12, 16, 24, seed=1), random(3, 16, 24, seed=2)])
        assert model.standardize(random(2, 5, 16, 24)).shape == (2, 5, 1, 3)

    @torch.no_grad()
    def test_wide_latents_are_decomposed_without_their_covariance_and_alike_every_time(self):
        basis = torch.linalg.qr(random(5000, 4))[0]
        rows = random(200, 4, seed=1) * torch.tensor([8.0, 4.0, 2.0, 1.0]) @ basis.T + 0.001 * random(
            200, 5000, seed=2
        )
        torch.manual_seed(1)
        variances, directions = principal_directions(rows, 4)
        torch.manual_seed(2)
        assert torch.equal(principal_directions(rows, 4)[1], directions)
        _, singular, expected = torch.linalg.svd(rows, full_matrices=False)
        torch.testing.assert_close(variances, singular[:4].square() / 200, rtol=1e-3, atol=0)
        torch.testing.assert_close((expected[:4] @ directions).abs(), torch.eye(4), atol=1e-2, rtol=0)

    def test_directions_have_the_sign_of_their_largest_entry(self):
        for directions in (principal_directions(random(50, 6), 6)[1], slow_directions([random(50, 6)], 3)):
            largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
            assert (largest > 0).all()

    @pytest.mark.parametrize(
        ("fields", "latents", "message"),
        [
            ({}, random(3, 16, 24), "vary in 2 directions, and the state needs 5"),
            ({}, random(30, 16, 23), r"latents have shape \(30, 16, 23\); expected \(..., 16, 24\)"),
            ({}, [], "latents are an empty list"),
            ({"state_projection": "slow"}, random(30, 16, 24), "needs episodes"),
            ({"state_projection": "slow"}, random(9, 3, 16, 24), "no episode has more than 3 frames"),
            ({"state_type": "merged"}, random(30, 16, 24), r"expected \(..., 4, 96\)"),
        ],
    )
    def test_latents_that_cannot_be_fitted_are_refused(self, fields, latents, message):
        model = build(**{"state_type": "projected", "state_dim": 5, **fields})
        with pytest.raises(ValueError, match=message):
            model.fit_state(latents)
        assert not model.config.state_fitted

    @pytest.mark.parametrize("state_type", ["merged", "projected"])
    def test_use_before_the_fit_is_refused(self, state_type):
        model, actions = build(state_type=state_type, state_dim=5), random(2, 2, 2)
        message = f"the map of state_type='{state_type}' to state_dim=5 is not fitted yet: call fit_state"
        with pytest.raises(ValueError, match=message):
            model(clips(3), actions=actions)
        with pytest.raises(ValueError, match=message):
            model.rollout(model.encode(clips(1)), actions)
        with pytest.raises(ValueError, match=message):
            model.score(clips(1), clips(1), actions.unsqueeze(1))

    def test_the_encoder_of_a_folder_with_a_fitted_map_loads_by_itself(self, tmp_path):
        model = build(state_type="projected", state_dim=3)
        model.fit_state(random(20, 16, 24))
        model.save_pretrained(tmp_path)
        encoder, info = VJepa2Encoder.from_pretrained(tmp_path, output_loading_info=True)
        assert same_weights(encoder, model.encoder) and not info["unexpected_keys"]


class TestAdaptingEncoder:
    """`freeze_encoder=False`."""

    def test_gradients_reach_the_online_encoder_and_never_the_target_encoder(self):
        model = build(freeze_encoder=False, context_frames=1).train()
        assert model.encoder.training and not model.target_encoder.training
        model(clips(3), actions=random(2, 2, 2), rollout_weight=1.0).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {f"target_encoder.{name}" for name, _ in model.target_encoder.named_parameters()}
        assert all(p.grad.abs().max() > 0 for p in model.encoder.layer[0].parameters())

    @torch.no_grad()
    def test_states_are_the_online_encoders_and_targets_the_target_encoders(self):
        model = build(freeze_encoder=False, context_frames=1)  # `spread` set the two apart
        video, actions = clips(3), random(2, 2, 2)
        online, target = model.encode(video), model.encode_targets(video)
        assert (online - target).abs().max() > 1e-2
        output = model(video, actions=actions)
        expected = torch.cat([model.rollout(online[:, t : t + 1], actions[:, t : t + 1]) for t in (0, 1)], dim=1)
        torch.testing.assert_close(output.predicted_latents, expected, **CLOSE)
        loss = model.latent_loss(expected, target[:, 1:])
        torch.testing.assert_close(output.teacher_forcing_loss, loss)
        last = video.clone()
        last[:, -1] += 1.0  # the last frame is a target alone
        torch.testing.assert_close(model(last, actions=actions).predicted_latents, expected, **CLOSE)

    @torch.no_grad()
    def test_the_target_encoder_follows_by_its_momentum(self):
        model = build(freeze_encoder=False)
        before = [parameter.clone() for parameter in model.target_encoder.parameters()]
        model.update_target_encoder(0.9)
        for old, new, online in zip(
            before, model.target_encoder.parameters(), model.encoder.parameters(), strict=True
        ):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * online)

    def test_cached_latents_are_refused(self):
        model = build(freeze_encoder=False)
        with pytest.raises(ValueError, match="latents were given, but with freeze_encoder=False"):
            model(latents=random(2, 3, 16, 24), actions=random(2, 2, 2))

    def test_a_folder_keeps_both_encoders(self, tmp_path):
        model = build(freeze_encoder=False)
        model.save_pretrained(tmp_path)
        loaded, info = VJepa2WorldModel.from_pretrained(tmp_path, output_loading_info=True)
        assert same_weights(loaded, model) and not info["missing_keys"] and not info["unexpected_keys"]
        assert not same_weights(loaded.encoder, loaded.target_encoder)
        assert all(p.requires_grad for p in loaded.encoder.parameters())
        assert not any(p.requires_grad for p in loaded.target_encoder.parameters())
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.encoder)

    def test_a_new_one_and_one_of_a_frozen_folder_start_with_equal_encoders(self, tmp_path):
        encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))
        new = VJepa2WorldModel.from_encoder(encoder, action_dim=2, freeze_encoder=False, **TINY_PREDICTOR)
        assert same_weights(new.encoder, encoder) and same_weights(new.target_encoder, encoder)
        frozen = build()
        frozen.save_pretrained(tmp_path)
        thawed, info = VJepa2WorldModel.from_pretrained(tmp_path, freeze_encoder=False, output_loading_info=True)
        assert same_weights(thawed.encoder, frozen.encoder) and same_weights(thawed.target_encoder, frozen.encoder)
        assert not info["missing_keys"] and all(p.requires_grad for p in thawed.encoder.parameters())

    def test_a_frozen_model_has_one_encoder_whose_latents_are_the_targets(self):
        model = build().train()
        assert not hasattr(model, "target_encoder") and not model.encoder.training
        assert torch.equal(model.encode(clips(2)), model.encode_targets(clips(2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state_type": "projected"}, "state_type='projected' needs state_dim"),
        ({"state_dim": 8}, "state_dim=8 is for state_type 'merged', 'projected' or 'learned'; got 'tokens'"),
        ({"state_type": "merged", "state_dim": 0}, "state_dim is 0; expected a number above 0"),
        (
            {"state_type": "merged", "state_projection": "slow"},
            "state_projection='slow' is for state_type='projected'",
        ),
        (
            {"dynamics_type": "mlp"},
            "dynamics_type='mlp' needs state_type 'pooled', 'projected' or 'learned'; got 'tokens'",
        ),
        (
            {"dynamics_type": "mlp", "state_type": "pooled", "action_fusion": "cross_attention"},
            "dynamics_type='mlp' needs action_fusion 'concat' or 'add'",
        ),
        ({"state_type": "pixels", "freeze_encoder": False}, "raw patches have no encoder to train"),
        (
            {"action_type": "discrete", "action_mean": [0.5, 0.5]},
            "action_mean does not apply to action_type",
        ),
        (
            {"action_type": "discrete", "proprio_dim": 2, "proprio_transition": "add"},
            "proprio_transition='add' needs action_type='continuous'",
        ),
        ({"action_type": "categorical"}, "action_type is 'categorical'; expected one of 'continuous', 'discrete'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


def test_merged_states_of_an_odd_grid_are_refused():
    with pytest.raises(ValueError, match="a frame has 3×3: choose a crop_size divisible by twice the patch_size"):
        VJepa2WorldModelConfig(encoder_config={**TINY_ENCODER, "crop_size": 24}, state_type="merged")


class TestOnTheEncoderOfV21:
    """One frame is an image, and a state may hold all levels."""

    V21 = {
        **TINY_ENCODER,
        "image_tubelet_size": 1,
        "modality_embeddings": True,
        "rope_interleave": True,
        "rope_grid_size": 4,
        "output_levels": [0, 1],
    }

    def build(self, **fields):
        torch.manual_seed(0)
        fields = {"action_dim": 2, "context_frames": 2, **TINY_PREDICTOR, **fields}
        return spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=self.V21, **fields))).eval()

    @torch.no_grad()
    def test_a_frame_is_an_image_and_no_repeated_tubelet(self):
        model, frames = self.build(), clips(frames=3)
        image, tubelet = (
            torch.nn.functional.layer_norm(model.encoder(frames[:, 1:2].expand(-1, count, -1, -1, -1))[0], (24,))
            for count in (1, 2)
        )
        latents = model.encode(frames)[:, 1]
        torch.testing.assert_close(latents, image, atol=1e-5, rtol=1e-5)
        assert (latents - tubelet).abs().max() > 1e-2

    @torch.no_grad()
    @pytest.mark.parametrize("state", ["tokens", "merged", "pooled"])
    def test_all_levels_are_normalized_each_and_predicted(self, state, tmp_path):
        model, frames = self.build(state_levels="all", state_type=state), clips(frames=3)
        assert model.latent_size == (192 if state == "merged" else 48)
        latents = model.encode(frames)
        if state == "tokens":
            levels = model.encoder.encode(frames[:, :1], levels=True).unflatten(-1, (2, 24))
            expected = torch.nn.functional.layer_norm(levels, (24,)).flatten(-2)
            torch.testing.assert_close(latents[:, 0], expected, atol=1e-5, rtol=1e-5)
        future = model.rollout(latents[:, :1], torch.randn(2, 3, 2))
        assert future.shape == (2, 3, model.tokens_per_frame, model.latent_size)
        if state != "pooled":
            pieces = future.unflatten(-1, (-1, 24))
            torch.testing.assert_close(pieces.mean(-1), torch.zeros(pieces.shape[:-1]), atol=1e-5, rtol=0)
        model.save_pretrained(tmp_path)
        loaded = VJepa2WorldModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.encode(frames), latents)

    def test_it_plans(self):
        planner = VJepa2Planner(self.build(state_levels="all"), VJepa2VideoProcessor(size=32, crop_size=32), **SOLVER)
        assert np.isfinite(planner(OBSERVATION, GOAL)["cost"])

    @torch.no_grad()
    def test_a_trained_encoder_brings_its_levels(self):
        encoder = spread(VJepa2Encoder(VJepa2EncoderConfig(**self.V21))).eval()
        model = VJepa2WorldModel.from_encoder(encoder, action_dim=2, state_levels="all", **TINY_PREDICTOR)
        assert same_weights(model.encoder, encoder)
