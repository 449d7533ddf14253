"""The losses of a learned state."""

import math

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER

from vjepa2_hf import VJepa2WorldModel, VJepa2WorldModelConfig
from vjepa2_hf.training.state_losses import SIGREG_POINTS, SIGREG_RANGE, StateLearner, episode_contrast, sigreg
from vjepa2_hf.training.state_settings import StateSettings


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TINY_DYNAMICS = {"predictor_hidden_size": 8, "predictor_num_attention_heads": 1, "predictor_num_hidden_layers": 0}


def build(**fields) -> VJepa2WorldModel:
    torch.manual_seed(0)
    fields = {"state_type": "learned", "state_dim": 6, "action_dim": 2, **TINY_DYNAMICS, **fields}
    return VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields)).eval()


class TestContrast:
    def test_the_loss_by_hand(self):
        """One number per state; predictions of the frames 1 and 2 among 0, 1 and 3, with τ = 2."""
        states = torch.tensor([[[0.0], [1.0], [3.0]]])
        predicted = torch.tensor([[[1.0], [2.0]]])
        loss, found = episode_contrast(predicted, states, temperature=2.0)
        first = [math.exp(-energy / 2) for energy in (1, 0, 4)]
        second = [math.exp(-energy / 2) for energy in (4, 1, 1)]
        expected = -(math.log(first[1] / sum(first)) + math.log(second[2] / sum(second))) / 2
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert found.item() == 0.5  # the second is as near to frame 1, which comes first

    def test_the_frame_that_is_predicted_from_may_be_left_out(self):
        states = torch.tensor([[[0.0], [1.0], [3.0]]])
        loss, found = episode_contrast(states[:, :-1], states, temperature=1.0, among_others=True)
        # from 0: 1 among 1 and 3; from 1: 3 among 0 and 3
        first, second = [math.exp(-1), math.exp(-9)], [math.exp(-1), math.exp(-4)]
        expected = -(math.log(first[0] / sum(first)) + math.log(second[1] / sum(second))) / 2
        assert loss.item() == pytest.approx(expected, rel=1e-5) and found.item() == 0.5

    def test_what_is_constant_within_an_episode_changes_nothing(self):
        states, changes = torch.randn(4, 5, 3), torch.randn(4, 4, 3)
        apart = 30 * torch.randn(4, 1, 3)
        plain, _ = episode_contrast(states[:, :-1] + changes, states, 1.0)
        moved, _ = episode_contrast(states[:, :-1] + apart + changes, states + apart, 1.0)
        torch.testing.assert_close(moved, plain, atol=1e-3, rtol=1e-4)

    def test_frames_of_other_episodes_are_no_negatives(self):
        states, changes = torch.randn(4, 5, 3), torch.randn(4, 4, 3)
        together, _ = episode_contrast(states[:, :-1] + changes, states, 1.0)
        each = [
            episode_contrast(states[n : n + 1, :-1] + changes[n : n + 1], states[n : n + 1], 1.0)[0] for n in range(4)
        ]
        torch.testing.assert_close(together, torch.stack(each).mean(), **CLOSE)

    def test_the_gradient_reaches_both_sides(self):
        predicted, states = torch.randn(1, 3, 2, requires_grad=True), torch.randn(1, 4, 2, requires_grad=True)
        episode_contrast(predicted, states, 1.0)[0].backward()
        assert (predicted.grad.abs().sum(-1) > 0).all() and (states.grad.abs().sum(-1) > 0).all()


class TestSigreg:
    def test_the_statistic_by_hand(self):
        """One dimension: every direction is 1 or -1, which give the same."""
        states = torch.tensor([[0.5], [-1.0], [2.0]])
        points = np.linspace(0, SIGREG_RANGE, SIGREG_POINTS)
        empirical = np.exp(1j * points[:, None] * states[:, 0].numpy()).mean(axis=1)
        normal = np.exp(-(points**2) / 2)
        integral = 2 * np.trapezoid(np.abs(empirical - normal) ** 2 * normal, points)
        assert sigreg(states, slices=4).item() == pytest.approx(3 * integral, rel=1e-4)

    def test_a_standard_normal_cloud_scores_lowest(self):
        cloud = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        others = [0.1 * cloud, 3 * cloud, cloud + 1, cloud * torch.tensor([1.0, 1.0, 1.0, 0.0])]
        assert all(sigreg(other) > 3 * sigreg(cloud) for other in others)


class TestLearner:
    def test_the_transition_starts_at_no_change_and_the_loss_is_the_weighted_sum(self):
        model, frames, actions = build(), torch.randn(2, 5, 3, 32, 32), torch.randn(2, 4, 2)
        settings = StateSettings(inverse_dynamics_weight=0.5, inverse_dynamics_steps=3, sigreg_weight=0.25, frames=5)
        losses = StateLearner(model, settings)(frames, actions)
        states = model.encode(frames).squeeze(2)
        contrast, found = episode_contrast(states[:, :-1], states, 1.0)
        torch.testing.assert_close(losses["episode_contrast_loss"], contrast, **CLOSE)
        assert losses["found_frames"] == found
        parts = losses["episode_contrast_loss"] + 0.5 * losses["inverse_dynamics_loss"] + 0.25 * losses["sigreg_loss"]
        torch.testing.assert_close(losses["loss"], parts, **CLOSE)
        assert list(losses)[0] == "loss" and not StateLearner(model, StateSettings())(frames, actions).keys() & {
            "inverse_dynamics_loss", "sigreg_loss",
        }  # fmt: skip

    def test_the_inverse_loss_is_the_error_of_the_first_action_between_two_states(self):
        settings = StateSettings(inverse_dynamics_weight=1.0, inverse_dynamics_steps=2, frames=4)
        learner = StateLearner(build(), settings)
        states, actions = torch.randn(2, 4, 6), torch.randn(2, 3, 2)
        errors = []
        for n in (1, 2):
            apart = torch.eye(2)[n - 1].expand(2, 4 - n, 2)
            guess = learner.inverse(torch.cat([states[:, :-n], states[:, n:], apart], dim=-1))
            errors.append((guess - actions[:, : 4 - n]).square().mean())
        torch.testing.assert_close(learner._inverse_loss(states, actions), (errors[0] + errors[1]) / 2, **CLOSE)

    def test_the_prediction_error_by_hand_reaches_both_sides_and_is_off_by_default(self):
        model, frames, actions = build(), torch.randn(2, 4, 3, 32, 32), torch.randn(2, 3, 2)
        terms = {"episode_contrast_weight": 0.0, "prediction_weight": 2.0, "sigreg_weight": 0.5}
        learner = StateLearner(model, StateSettings(**terms, frames=4))
        torch.nn.init.normal_(learner.transition[-1].weight)
        seen = []
        learner.network.register_forward_hook(lambda module, inputs, states: seen.append(states))
        losses = learner(frames, actions)
        seen[0].retain_grad()
        states = seen[0].unflatten(0, (2, 4))
        predicted = states[:, :-1] + learner.transition(torch.cat([states[:, :-1], actions], dim=-1))
        expected = sum((predicted - states[:, 1:]).square().flatten().tolist()) / (2 * 3 * 6)
        assert losses["prediction_loss"].item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(losses["loss"], 2 * losses["prediction_loss"] + 0.5 * losses["sigreg_loss"])
        losses["prediction_loss"].backward()
        moved = seen[0].grad.unflatten(0, (2, 4)).abs().sum(dim=-1) > 0
        assert (
            moved[:, 0].all() and moved[:, -1].all()
        )  # the first frame is only predicted from, the last only predicted
        assert set(losses) == {"loss", "prediction_loss", "sigreg_loss"}
        assert "prediction_loss" not in StateLearner(model, StateSettings())(frames, actions)

    def test_without_actions_the_transition_sees_the_state_alone(self):
        model, frames = build(), torch.randn(2, 4, 3, 32, 32)
        learner = StateLearner(model, StateSettings(use_actions=False, frames=4))
        torch.nn.init.normal_(learner.transition[-1].weight)
        states = model.encode(frames).squeeze(2)
        predicted = states[:, :-1] + learner.transition(states[:, :-1])
        contrast, _ = episode_contrast(predicted, states, 1.0, among_others=True)
        torch.testing.assert_close(learner(frames)["loss"], contrast, **CLOSE)
        assert learner.transition[0].in_features == 6

    def test_an_encoder_that_learns_along_has_gradients(self):
        model = build(state_input="tokens")
        learner = StateLearner(model, StateSettings(train_encoder=True, frames=3))
        learner(torch.randn(2, 3, 3, 32, 32), torch.randn(2, 2, 2))["loss"].backward()
        grads = [parameter.grad for parameter in model.encoder.parameters()]
        assert all(grad is not None for grad in grads) and any(grad.abs().sum() > 0 for grad in grads)

    @pytest.mark.parametrize("contrast", [1.0, 0.0])
    def test_every_weight_learns_once_the_transition_has_left_zero(self, contrast):
        """Several processes wait for the gradient of each."""
        terms = {"episode_contrast_weight": contrast, "inverse_dynamics_weight": 1.0}
        learner = StateLearner(build(), StateSettings(**terms, inverse_dynamics_steps=2, frames=4))
        if contrast:
            torch.nn.init.normal_(learner.transition[-1].weight)
        learner(torch.randn(2, 4, 3, 32, 32), torch.randn(2, 3, 2))["loss"].backward()
        for name, parameter in learner.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    def test_it_learns_a_moving_square_among_still_ones(self):
        """Where the square is decides, and a still square, which differs between episodes, does not help."""
        generator, positions = torch.Generator().manual_seed(0), torch.arange(5)
        learner = StateLearner(build(), StateSettings(frames=5))
        optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
        found = []
        for _ in range(60):
            frames = torch.zeros(4, 5, 3, 32, 32)
            starts = torch.randint(0, 8, (4,), generator=generator)
            for episode, start in enumerate(starts):
                row = int(torch.randint(0, 24, (), generator=generator))
                frames[episode, :, :, row : row + 6, 0:6] = 1.0  # still
                for t in positions:
                    column = int(start) + 4 * int(t)
                    frames[episode, t, :, 12:18, column : column + 6] = 2.0
            losses = learner(frames, torch.ones(4, 4, 2))
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            found.append(losses["found_frames"].item())
        assert np.mean(found[:3]) < 0.5 < 0.9 < np.mean(found[-10:])
