"""Learned states, and the whitened distance of any state."""

import pytest
import torch
from builders import SOLVER, TINY_ENCODER, TINY_PREDICTOR, build_encoder, clips, noise_image, same_weights, spread

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2PixelDecoder,
    VJepa2Planner,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.modeling_costs import COSTS, LatentDistance, build_cost, distance_between, fit_whitening
from vjepa2_hf.modeling_learned_state import POSITION_STD, VJepa2LearnedState


CLOSE = {"atol": 1e-4, "rtol": 1e-4}
KINDS = [{}, {"state_stem": "patches"}, {"state_input": "tokens"}]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["conv", "patches", "tokens"])


def build(seed: int = 0, **fields) -> VJepa2WorldModel:
    torch.manual_seed(seed)
    fields = {"state_type": "learned", "state_dim": 6, "dynamics_type": "mlp", **fields}
    config = VJepa2WorldModelConfig(
        encoder_config=TINY_ENCODER, action_dim=2, context_frames=1, **TINY_PREDICTOR, **fields
    )
    return VJepa2WorldModel(config).eval()


def fitted(**fields) -> VJepa2WorldModel:
    model = spread(build(**fields))
    model.fit_state([model.encode(clips(6, batch_size=1, seed=seed))[0] for seed in range(3)])
    return model


@kinds
def test_a_frame_becomes_one_vector_of_that_frame_alone(kind):
    model, video = build(**kind), clips(3)
    states = model.encode(video)
    assert states.shape == (2, 3, 1, 6) and (model.tokens_per_frame, model.latent_size) == (1, 6)
    torch.testing.assert_close(model.encode(video[:, 1:2]), states[:, 1:2], **CLOSE)
    assert (states[:, 0] - states[:, 1]).abs().max() > 1e-3
    assert hasattr(model, "encoder") == ("state_input" in kind)


def test_the_width_is_64_unless_it_is_given():
    assert build(state_dim=None).latent_size == 64


def test_the_network_starts_as_pytorch_does_and_not_as_the_dynamics():
    model = build(predictor_initializer_range=0.001)
    assert model.predictor.embed.weight.std() < 0.002
    for name in ("stem.0", "token_mlp.0", "proj.0"):
        assert model.state_network.get_submodule(name).weight.std() > 0.01, name
    assert model.state_network.positions.std().item() == pytest.approx(POSITION_STD, rel=0.2)


def test_brightness_and_contrast_of_an_image_do_not_count_unless_they_are_asked_for():
    video = clips(1)
    for standardize, differs in ((True, False), (False, True)):
        model = build(standardize_frames=standardize)
        assert ((model.encode(3 * video + 1) - model.encode(video)).abs().max() > 1e-2) == differs


@kinds
def test_a_saved_model_encodes_the_same_and_keeps_its_whitening(kind, tmp_path):
    model = fitted(**kind)
    model.save_pretrained(tmp_path)
    loaded, info = VJepa2WorldModel.from_pretrained(tmp_path, output_loading_info=True)
    assert same_weights(loaded, model) and not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.encode(clips(2)), model.encode(clips(2)))
    assert torch.equal(loaded.state_whitening, model.state_whitening)
    assert not any(parameter.requires_grad for parameter in loaded.train().state_network.parameters())
    assert not loaded.state_network.training
    if "state_input" in kind:
        assert same_weights(VJepa2Encoder.from_pretrained(tmp_path), model.encoder)
    else:
        with pytest.raises(ValueError, match="is a world model on pixels: it holds no encoder"):
            VJepa2Encoder.from_pretrained(tmp_path)


def test_fitted_states_have_a_deviation_of_one_within_episodes():
    """Episodes that lie far apart have no influence on the unit."""
    model, generator = build(), torch.Generator().manual_seed(0)
    moving = torch.randn(4, 10, 1, 6, generator=generator)
    apart = 100 * torch.randn(4, 1, 1, 6, generator=generator)
    model.fit_state(moving + apart)
    states = model.standardize(moving + apart)
    within = states - states.mean(dim=1, keepdim=True)
    assert within.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(states.mean(dim=(0, 1)), torch.zeros(1, 6), atol=1e-3, rtol=0)
    alone = build()
    alone.fit_state((moving + apart).flatten(0, 1))  # frames whose episodes are not known
    assert alone.standardize(moving + apart).square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    assert not alone.config.state_whitened


def test_training_the_dynamics_leaves_the_network_alone():
    model = fitted(residual=True).train()
    model(clips(3), actions=torch.randn(2, 2, 2), rollout_weight=0).loss.backward()
    assert all(parameter.grad is None for parameter in model.state_network.parameters())
    assert all(parameter.grad is not None for parameter in model.predictor.parameters())


def test_a_planner_plans_on_learned_states_and_a_decoder_decodes_them():
    model = fitted()
    planner = VJepa2Planner(model, VJepa2VideoProcessor(size=32, crop_size=32), distance="whitened", **SOLVER)
    plan = planner(noise_image(0), noise_image(1))
    assert plan["actions"].shape == (3, 2)
    decoder = VJepa2PixelDecoder.from_world_model(model, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert decoder.decode(model.encode(clips(2))).shape == (2, 2, 3, 32, 32)


def test_from_encoder_takes_the_encoder_of_tokens_and_only_the_sizes_for_pixels():
    encoder, fields = build_encoder(), {"state_type": "learned", "action_dim": 2, **TINY_PREDICTOR}
    model = VJepa2WorldModel.from_encoder(encoder, state_input="tokens", **fields)
    assert same_weights(model.encoder, encoder)
    assert not hasattr(VJepa2WorldModel.from_encoder(encoder, **fields), "encoder")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_views": 2, "dynamics_type": "transformer"}, "state_type='learned' reads one camera; got num_views=2"),
        ({"freeze_encoder": False}, "its encoder is trained before the dynamics, by state.train_encoder"),
        (
            {"state_type": "pooled", "state_dim": None, "state_input": "tokens"},
            "state_input='tokens' is for state_type",
        ),
        (
            {"state_levels": "all", "encoder_config": {**TINY_ENCODER, "output_levels": [0, 1]}},
            "pixels have no levels",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VJepa2WorldModelConfig(**{"encoder_config": TINY_ENCODER, "state_type": "learned", **fields})


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="frames are 48×48 pixels; a learned state reads the size"):
        build().encode(clips(1, 48, 48))
    with pytest.raises(ValueError, match="a frame has 36 tokens; a learned state reads 16: resize frames to 32"):
        build(state_input="tokens").encode(clips(1, 48, 48))


def test_every_weight_of_the_network_gets_a_gradient():
    config = build().config
    network = VJepa2LearnedState(config)
    with torch.no_grad():
        network.positions.normal_()
    network(clips(3)[0]).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


class TestWhitenedDistance:
    def test_the_matrix_by_hand(self):
        """Two channels with variances 4 and 1 within the episodes, whose means differ by far more."""
        first = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]]).unsqueeze(1)
        matrix = fit_whitening([first, first + 50])
        expected = torch.diag(torch.tensor([4 + 0.03 * 4, 1 + 0.03 * 4]).rsqrt())
        torch.testing.assert_close(matrix.float(), expected, **CLOSE)

    def test_all_positions_share_one_matrix_and_their_means_do_not_count(self):
        generator = torch.Generator().manual_seed(0)
        episodes = [torch.randn(5, 3, 2, generator=generator) for _ in range(2)]
        places = 9 * torch.randn(3, 2, generator=generator)
        moved = fit_whitening([episode + places for episode in episodes])
        torch.testing.assert_close(moved, fit_whitening(episodes), **CLOSE)
        rows = torch.cat([(episode - episode.mean(0)).flatten(0, 1) for episode in episodes]).double()
        covariance = rows.T @ rows / len(rows)
        floor = 0.03 * torch.linalg.eigvalsh(covariance)[-1] * torch.eye(2)
        whitened = moved.double() @ (covariance + floor) @ moved.double()
        torch.testing.assert_close(whitened.float(), torch.eye(2), **CLOSE)

    def test_the_score_is_the_formula_of_the_last_prediction(self):
        model = fitted()
        states, actions = model.encode(clips(1)), torch.randn(2, 3, 2, 2)
        goal = model.encode(clips(1, seed=1))
        future = model.rollout(states, actions)[:, :, -1]  # (B, J, 1, D)
        difference = (future - goal).squeeze(2) @ model.state_whitening
        score = model.score(states, goal, actions, distance="whitened")
        torch.testing.assert_close(score, difference.square().sum(-1), **CLOSE)
        summed = model.score(states, goal, actions, cost={"cost": "closest", "of": "whitened"})
        assert (summed <= score + 1e-5).all()

    def test_the_distance_to_several_goals_is_the_same_formula(self):
        model = fitted()
        start, goals = torch.randn(2, 1, 1, 6), torch.randn(2, 3, 1, 6)
        cost = build_cost({"cost": "closest", "of": "whitened"})
        away = distance_between(cost, start, goals, model.temporal_distance, model.state_whitening)
        expected = ((start - goals) @ model.state_whitening).square().sum(dim=(-2, -1))
        torch.testing.assert_close(away, expected, **CLOSE)

    def test_token_states_have_it_too(self):
        model = build(state_type="tokens", state_dim=None, dynamics_type="transformer")
        model.fit_state([torch.randn(4, 16, 24), torch.randn(5, 16, 24)])
        assert model.state_whitening.shape == (24, 24)
        latents, goal = torch.randn(2, 1, 16, 24), torch.randn(2, 1, 16, 24)
        assert model.score(latents, goal, torch.randn(2, 3, 2, 2), distance="whitened").shape == (2, 3)

    def test_a_model_without_it_refuses_in_one_sentence(self):
        model = build()
        assert model.state_whitening is None
        message = "the model has no whitened distance, which `fit_state` fits from episodes"
        with pytest.raises(ValueError, match=message):
            model.score(torch.randn(1, 1, 1, 6), torch.randn(1, 1, 6), torch.randn(1, 2, 2, 2), distance="whitened")
        with pytest.raises(ValueError, match=message):
            VJepa2Planner(model, VJepa2VideoProcessor(size=32, crop_size=32), distance="whitened", **SOLVER)
        cost = 0.5 * LatentDistance("whitened") + build_cost("action")
        assert cost.needs_whitening and not build_cost("l2").needs_whitening
        with pytest.raises(ValueError, match=message):
            distance_between(cost, torch.randn(1, 6), torch.randn(1, 6), None)
        assert build_cost(cost.to_dict()).needs_whitening and set(COSTS)

    def test_states_that_never_change_and_single_frames_give_none(self):
        assert fit_whitening([]) is None
        assert fit_whitening([torch.ones(3, 1, 2)]) is None
        model = build()
        model.fit_state(torch.randn(8, 1, 1, 6))  # episodes of one frame
        assert not model.config.state_whitened and model.config.state_fitted


class TestStatesThatCannotBeFitted:
    def test_episodes_without_change_give_no_whitening(self):
        model = build(state_type="tokens", state_dim=None, dynamics_type="transformer")
        still = [torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
        model.fit_state([episode.expand(7, 16, 24) * 3 for episode in still])  # sums of floats, not exactly equal
        assert model.config.state_fitted and not model.config.state_whitened

    @pytest.mark.parametrize("factor", [1.0, 1e25])
    def test_a_scale_of_nothing_or_of_infinity_is_refused_and_changes_nothing(self, factor):
        model = build()
        still = torch.randn(3, 1, 1, 6).expand(3, 4, 1, 6) if factor == 1 else factor * torch.randn(3, 4, 1, 6)
        with pytest.raises(ValueError, match="expected frames that differ"):
            model.fit_state(still)
        assert not model.config.state_fitted

    def test_weights_of_another_state_bring_their_own_whitening(self):
        one, other = fitted(), fitted()
        weights = {name: value for name, value in one.state_dict().items() if name != "state_whitening"}
        other.load_state_dict(weights)  # fitted on the same episodes
        other.state_mean += 1
        with pytest.raises(RuntimeError, match="state_whitening"):
            other.load_state_dict(weights)

    def test_what_is_fitted_is_never_random(self, tmp_path):
        model = build()
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has no state_mean, which is fitted and never random"):
            VJepa2WorldModel.from_pretrained(tmp_path, state_fitted=True, allow_missing=True)
        with pytest.raises(ValueError, match="state_whitened=True .* needs state_fitted=True"):
            VJepa2WorldModel.from_pretrained(tmp_path, state_whitened=True)

    @pytest.mark.parametrize(
        ("field", "value"), [("context_frames", -1), ("frame_skip", 0), ("action_std", [1.0]), ("state_levels", "all")]
    )
    def test_fields_that_replace_those_of_a_folder_are_checked(self, field, value, tmp_path):
        build().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=field):
            VJepa2WorldModel.from_pretrained(tmp_path, **{field: value})
        assert VJepa2WorldModel.from_pretrained(tmp_path, rollout_steps=3).config.rollout_steps == 3
