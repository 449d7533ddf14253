"""What a clip shows at all times: targets without it, and a contrast of times that it does not separate."""

import math

import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, build_masked_latent, clips, spread

from vjepa2_hf import VJepa2AnomalyDetector, VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig
from vjepa2_hf.modeling_masked_losses import covariance_at_positions, time_contrastive_loss, variance_loss


CONTEXT = torch.tensor([[0, 1, 5, 17, 29], [2, 3, 5, 17, 29]])  # clips of 2 steps of 16 positions
TARGET = torch.tensor([[2, 3, 18], [0, 1, 30]])
GRID = (3, 1, 2)  # token ids 0, 2, 4 are position 0 at three times, 1, 3, 5 position 1


def build(**fields) -> VJepa2ForMaskedLatentPrediction:
    torch.manual_seed(0)
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **{**TINY_PREDICTOR, **fields})
    return spread(VJepa2ForMaskedLatentPrediction(config))


class TestPositionTargets:
    def test_two_positions_by_hand(self):
        """Position 0 has 1 and 3, position 1 has 10 and 10; the second channel is five times the first."""
        first = torch.tensor([1.0, 10.0, 3.0, 10.0])
        targets = torch.stack([first, 5 * first], dim=-1).unsqueeze(0)
        found = build(normalize_targets="position").normalize_targets(targets, (2, 1, 2))
        deviation = math.sqrt((1 + 0 + 1 + 0) / 3)
        expected = torch.tensor([-1.0, 0.0, 1.0, 0.0]) / deviation
        torch.testing.assert_close(found, expected[None, :, None].expand(1, 4, 2), atol=1e-5, rtol=0)

    def test_what_a_position_shows_at_all_times_is_not_in_the_targets(self):
        model, generator = build(normalize_targets="position"), torch.Generator().manual_seed(0)
        targets = torch.randn(4, 6, 5, generator=generator)
        still = 100 * torch.randn(4, 1, 2, 5, generator=generator).expand(-1, 3, -1, -1).flatten(1, 2)
        found = model.normalize_targets(targets, GRID)
        torch.testing.assert_close(model.normalize_targets(targets + still, GRID), found, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.std(dim=(0, 1)), torch.ones(5))
        torch.testing.assert_close(found.unflatten(1, (3, 2)).mean(dim=1), torch.zeros(4, 2, 5), atol=1e-5, rtol=0)

    def test_the_forward_normalizes_by_the_grid_of_the_clips_one_clip_too(self):
        model = build(normalize_targets="position").eval()
        output = model(clips(), CONTEXT, TARGET, output_targets=True)
        normal = model.normalize_targets(output.targets, (2, 4, 4))
        expected = normal.gather(1, TARGET.unsqueeze(-1).expand(-1, -1, 24))
        torch.testing.assert_close(output.target_latents[0], expected)
        assert model(clips(batch_size=1), CONTEXT[:1], TARGET[:1]).loss.isfinite()

    @pytest.mark.parametrize("target_type", ["ema", "pixels"])
    @pytest.mark.parametrize("exponent", [1, 2])
    def test_a_single_clip_that_never_changes_gives_a_small_loss_and_finite_gradients(self, target_type, exponent):
        model = build(normalize_targets="position", target_type=target_type, loss_exponent=exponent).train()
        still = clips(batch_size=1)[:, :1].expand(-1, 4, -1, -1, -1)
        for video in (still, torch.zeros_like(still)):  # frozen, black
            output = model(video, CONTEXT[:1], TARGET[:1])
            if target_type == "pixels":  # tokens also hold the time
                assert (output.target_latents[0] == 0).all()
            model.zero_grad()
            output.loss.backward()
            gradients = [part.grad for part in model.parameters() if part.grad is not None]
            assert output.loss < 10 and gradients and all(each.isfinite().all() for each in gradients)

    def test_the_gradient_reaches_encoder_and_predictor_alone(self):
        model = build(normalize_targets="position").train()
        model(clips(), CONTEXT, TARGET).loss.backward()
        for part in (model.encoder.patch_embeddings.proj, model.predictor.proj):
            assert part.weight.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in model.target_encoder.parameters())

    @torch.no_grad()
    def test_variance_and_covariance_act_on_the_encoders_tokens_as_with_other_targets(self):
        weights = {"variance_weight": 0.3, "covariance_weight": 0.4}
        model = build(normalize_targets="position", **weights).eval()
        output = model(clips(), CONTEXT, TARGET)
        tokens = model.encoder(clips(), context_mask=CONTEXT).last_hidden_state
        covariance = covariance_at_positions(tokens, CONTEXT, 32)
        torch.testing.assert_close(output.losses["variance"], variance_loss(covariance))
        expected = sum(output.losses[name] * weight for name, weight in (("variance", 0.3), ("covariance", 0.4)))
        torch.testing.assert_close(output.loss, output.losses["prediction"] + expected)

    def test_images_and_clips_of_one_step_are_refused(self):
        model = build(normalize_targets="position")
        with pytest.raises(ValueError, match="leaves nothing of clips of 1 time step: give clips of at least 2"):
            model(clips(1), torch.tensor([[0, 1]] * 2), torch.tensor([[5, 6]] * 2))

    @pytest.mark.parametrize("grid", [None, (2, 2, 2)])
    def test_targets_alone_need_their_grid(self, grid):
        with pytest.raises(ValueError, match=r"grid is .*; expected the grid \(T', H', W'\) of 6 tokens"):
            build(normalize_targets="position").normalize_targets(torch.randn(2, 6, 5), grid)

    def test_an_anomaly_detector_refuses_targets_that_depend_on_later_frames(self):
        with pytest.raises(ValueError, match="normalize_targets is 'position'"):
            VJepa2AnomalyDetector(build_masked_latent(normalize_targets="position"), device="cpu")


def tokens(*numbers) -> torch.Tensor:
    """One clip of tokens with one channel, (1, M, 1)."""
    return torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1)


def contrast(predicted, target, ids, temperature=1.0) -> torch.Tensor:
    return time_contrastive_loss(predicted, target, torch.tensor(ids).view(len(predicted), -1), GRID, temperature)


class TestTimeContrastive:
    def test_two_times_by_hand(self):
        """Squared distances of time 0 are 0 and 4, those of time 1 are 1 (the other time) and 1."""
        expected = (math.log(1 + math.exp(-4 / 0.5)) + math.log(2)) / 2
        assert contrast(tokens(0, 1), tokens(0, 2), [0, 2], 0.5).item() == pytest.approx(expected, rel=1e-5)

    def test_squared_distances_are_means_over_positions_hidden_at_both_times(self):
        # Time 0: positions 0 and 1, time 1: position 0. (0, 0): (1 + 9) / 2, (0, 1): 4; (1, 0): 16, (1, 1): 1
        loss = contrast(tokens(1, 3, 4), tokens(0, 0, 3), [0, 1, 2]).item()
        expected = (math.log(1 + math.exp(5 - 4)) + math.log(1 + math.exp(1 - 16))) / 2
        assert loss == pytest.approx(expected, rel=1e-5)

    def test_what_all_times_of_a_clip_share_changes_nothing(self):
        generator = torch.Generator().manual_seed(0)
        predicted, target = torch.randn(2, 3, 6, 4, generator=generator)
        ids = [list(range(6))] * 3
        loss = contrast(predicted, target, ids)
        of_clips = 30 * torch.randn(3, 1, 4, generator=generator)
        torch.testing.assert_close(contrast(predicted + of_clips, target + of_clips, ids), loss, atol=1e-3, rtol=0)
        of_positions = 30 * torch.randn(3, 1, 2, 4, generator=generator).expand(-1, 3, -1, -1).flatten(1, 2)
        found = contrast(predicted + of_positions, target + of_positions, ids)
        torch.testing.assert_close(found, loss, atol=1e-3, rtol=0)
        assert contrast(predicted + of_clips, target, ids) > loss + 1

    def test_clips_are_not_compared(self):
        generator = torch.Generator().manual_seed(0)
        predicted, target = torch.randn(2, 3, 6, 4, generator=generator)
        alone = [contrast(p[None], z[None], list(range(6))) for p, z in zip(predicted, target, strict=True)]
        torch.testing.assert_close(contrast(predicted, target, [list(range(6))] * 3), sum(alone) / 3)

    def test_predictions_that_are_the_same_at_all_times_cost_the_logarithm_of_their_number(self):
        target = tokens(-1, 0, 1)
        assert contrast(tokens(0, 0, 0), target, [0, 2, 4]) > math.log(3) - 0.2
        assert contrast(tokens(5, 5, 5), tokens(1, 1, 1), [0, 2, 4]).item() == pytest.approx(math.log(3))

    def test_repeated_ids_count_once(self):
        once = contrast(tokens(1, 3, 4), tokens(0, 0, 3), [0, 1, 2])
        torch.testing.assert_close(contrast(tokens(1, 1, 3, 4), tokens(0, 0, 0, 3), [0, 0, 1, 2]), once)

    @pytest.mark.parametrize("ids", [[0, 1], [0, 3]])  # one time; two times without a common position
    def test_nothing_to_compare_is_zero_with_a_gradient(self, ids):
        predicted = tokens(1, 7).requires_grad_()
        loss = contrast(predicted, tokens(0, 2), ids)
        loss.backward()
        assert loss.item() == 0 and (predicted.grad == 0).all()

    def test_descending_it_tells_times_apart(self):
        """A prediction moves toward its own target and away from that of the other time."""
        predicted = tokens(0, 0).requires_grad_()
        contrast(predicted, tokens(-1, 1), [0, 2]).backward()
        torch.testing.assert_close(predicted.grad.flatten(), torch.tensor([1.0, -1.0]))

    def test_in_a_model_it_is_a_term_that_needs_no_second_clip(self):
        fields = {"temporal_contrastive_weight": 0.5, "temporal_contrastive_temperature": 2.0}
        model = build(temporal_contrastive_negatives="times", **fields).train()
        context, target = torch.arange(5).view(1, -1), torch.tensor([[8, 9, 24, 25]])
        output = model(clips(batch_size=1), context, target)
        found = (output.predicted_latents[0], output.target_latents[0], target, (2, 4, 4))
        torch.testing.assert_close(output.losses["temporal_contrastive"], time_contrastive_loss(*found, 2.0).detach())
        output.loss.backward()
        assert model.encoder.patch_embeddings.proj.weight.grad.abs().max() > 0
        with pytest.raises(ValueError, match="variance_weight=1 needs at least 2 clips"):
            fields |= {"temporal_contrastive_negatives": "times", "variance_weight": 1}
            build(**fields)(clips(batch_size=1), context, target)

    def test_an_image_has_one_time(self):
        model = build(temporal_contrastive_negatives="times", temporal_contrastive_weight=0.5)
        output = model(clips(1), torch.tensor([[0, 1]] * 2), torch.tensor([[5, 6]] * 2))
        assert output.losses["temporal_contrastive"] == 0 and output.loss == output.losses["prediction"]
