"""The terms beside the prediction loss, on numbers made by hand."""

import math

import pytest
import torch

from vjepa2_hf.modeling_masked_losses import (
    covariance_at_positions,
    covariance_loss,
    squares_over_time,
    temporal_contrastive_loss,
    temporal_diversity_loss,
    variance_loss,
)


def tokens(*numbers, channels=1):
    """One clip of tokens (1, K, channels)."""
    return torch.tensor(numbers, dtype=torch.float32).view(1, -1, channels)


class TestTemporalDiversity:
    GRID = (4, 1, 2)  # token ids 0, 2, 4, 6 are position 0 at four times, 1, 3, 5, 7 position 1

    def loss(self, predicted, ids):
        return temporal_diversity_loss(predicted, torch.tensor(ids).view(1, -1), self.GRID).item()

    def test_four_numbers_by_hand(self):
        # position 0: 1, 3, 5 -> variance 4; position 1: 7 alone
        assert self.loss(tokens(1, 3, 7, 5), [0, 2, 3, 4]) == pytest.approx(-4.0)

    def test_is_the_seeds_variance_where_a_clip_is_one_vector_a_frame(self):
        features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))  # (B, T, D)
        loss = temporal_diversity_loss(features, torch.arange(4).repeat(3, 1), (4, 1, 1))
        torch.testing.assert_close(loss, -features.var(dim=1).mean())

    def test_mean_over_places_that_move(self):
        # position 0: 0, 2 -> 2; position 1: 0, 4 -> 8
        assert self.loss(tokens(0, 0, 2, 4), [0, 1, 2, 3]) == pytest.approx(-5.0)

    def test_does_not_mind_the_order_of_tokens(self):
        assert self.loss(tokens(5, 7, 3, 1), [4, 3, 2, 0]) == pytest.approx(-4.0)

    def test_clips_are_apart(self):
        predicted = torch.tensor([0.0, 0.0, 9.0, 9.0]).view(2, 2, 1)
        ids = torch.tensor([[0, 2], [0, 2]])
        assert temporal_diversity_loss(predicted, ids, self.GRID).item() == 0

    def test_nothing_to_compare_is_zero_with_a_gradient(self):
        predicted = tokens(1, 7).requires_grad_()
        loss = temporal_diversity_loss(predicted, torch.tensor([[0, 1]]), self.GRID)
        loss.backward()
        assert loss.item() == 0 and (predicted.grad == 0).all()

    def test_descending_it_spreads_predictions_in_time(self):
        predicted = tokens(1, 3, 7, 5).requires_grad_()
        temporal_diversity_loss(predicted, torch.tensor([[0, 2, 3, 4]]), self.GRID).backward()
        # −dVar/dx = −2 (x − mean) / (n − 1): 1 and 5 move apart, 3 and the lone 7 stay
        torch.testing.assert_close(predicted.grad.flatten(), torch.tensor([2.0, 0.0, 0.0, -2.0]))

    def test_squares_and_counts(self):
        squares, count = squares_over_time(tokens(1, 3, 7, 5), torch.tensor([[0, 2, 3, 4]]), self.GRID)
        assert squares.flatten().tolist() == [8, 0] and count.tolist() == [3, 1]


class TestTemporalContrastive:
    def test_four_numbers_by_hand(self):
        """Cosine 1 with the own clip and 0 with the other."""
        predicted = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).unsqueeze(1)
        target = torch.tensor([[5.0, 0.0], [0.0, 1.0]]).unsqueeze(1)
        expected = math.log(1 + math.exp(-1 / 0.5))
        assert temporal_contrastive_loss(predicted, target, 0.5).item() == pytest.approx(expected, rel=1e-5)
        swapped = temporal_contrastive_loss(predicted, target.flip(0), 0.5).item()
        assert swapped == pytest.approx(math.log(1 + math.exp(1 / 0.5)), rel=1e-5)

    def test_tokens_of_a_clip_are_pooled(self):
        predicted = torch.tensor([[[2.0, 1.0], [2.0, -1.0]], [[1.0, 1.0], [-1.0, 1.0]]])  # means (2, 0) and (0, 1)
        target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).unsqueeze(1).repeat(1, 2, 1)
        assert temporal_contrastive_loss(predicted, target, 0.1).item() == pytest.approx(4.5e-5, abs=1e-6)

    def test_predictions_that_are_the_same_for_all_clips_cost_the_logarithm_of_their_number(self):
        same = torch.randn(1, 3, 8).repeat(5, 1, 1)
        target = torch.randn(1, 3, 8).repeat(5, 1, 1)
        assert temporal_contrastive_loss(same, target).item() == pytest.approx(math.log(5), rel=1e-5)


class TestVarianceAndCovariance:
    def test_variance_hinge_by_hand(self):
        covariance = torch.tensor([[0.25, 9.0], [9.0, 4.0]])  # deviations 0.5 (below the margin of 1) and 2 (above)
        assert variance_loss(covariance).item() == pytest.approx(0.25, abs=1e-4)
        assert variance_loss(covariance, margin=3.0).item() == pytest.approx((2.5 + 1.0) / 2, abs=1e-4)

    def test_a_collapsed_channel_costs_the_margin_and_has_a_finite_gradient(self):
        covariance = torch.zeros(3, 3, requires_grad=True)
        loss = variance_loss(covariance)
        loss.backward()
        assert loss.item() == pytest.approx(0.99) and covariance.grad.isfinite().all()

    def test_covariance_by_hand(self):
        assert covariance_loss(torch.tensor([[5.0, 2.0], [3.0, 7.0]])).item() == pytest.approx((4 + 9) / 2)
        assert covariance_loss(torch.eye(4)).item() == 0

    def test_differences_between_clips_at_one_position_are_what_counts(self):
        # position 0: 1 and 3; position 1: 10 and 10; both positions' means are far apart
        seen = torch.tensor([[1.0, 10.0], [3.0, 10.0]]).unsqueeze(-1)
        covariance = covariance_at_positions(seen, torch.tensor([[0, 1], [0, 1]]), 4)
        # squares 1 + 1 + 0 + 0 over 4 tokens − 2 means
        assert covariance.item() == pytest.approx(1.0)

    def test_places_that_one_clip_alone_shows_do_not_count(self):
        seen = torch.tensor([[1.0, 100.0], [3.0, -50.0]]).unsqueeze(-1)
        assert covariance_at_positions(seen, torch.tensor([[0, 1], [0, 2]]), 4).item() == pytest.approx(2.0)

    def test_is_the_batchs_covariance_where_every_clip_shows_one_place(self):
        seen = torch.randn(20, 1, 6, generator=torch.Generator().manual_seed(0))
        covariance = covariance_at_positions(seen, torch.full((20, 1), 3), 4)
        torch.testing.assert_close(covariance, seen.flatten(0, 1).T.cov())

    def test_diagonal_is_the_square_of_the_collapse_meter(self):
        """`target_std` of tokens whose deviation is the same at every position."""
        generator = torch.Generator().manual_seed(0)
        seen = torch.randn(400, 5, 6, generator=generator) + 10 * torch.randn(1, 5, 6, generator=generator)
        covariance = covariance_at_positions(seen, torch.arange(5).repeat(400, 1), 5)
        torch.testing.assert_close(covariance.diagonal().sqrt().mean(), seen.std(dim=0).mean(), atol=1e-2, rtol=0)

    def test_descending_both_undoes_a_collapse_to_a_line(self):
        torch.manual_seed(0)
        seen = (torch.randn(16, 4, 1) * torch.randn(8) * 0.3 + 0.01 * torch.randn(16, 4, 8)).requires_grad_()
        ids = torch.arange(4).repeat(16, 1)
        optimizer = torch.optim.Adam([seen], lr=0.05)
        for _ in range(200):
            covariance = covariance_at_positions(seen, ids, 4)
            (variance_loss(covariance) + covariance_loss(covariance)).backward()
            optimizer.step()
            optimizer.zero_grad()
        eigenvalues = torch.linalg.eigvalsh(covariance_at_positions(seen.detach(), ids, 4))
        assert eigenvalues.min() > 0.5
