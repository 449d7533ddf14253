"""Candidates that are kept to be shown, and that keeping them changes no plan."""

import torch

from vjepa2_hf.planning import CEM, ICEM, GradientDescent
from vjepa2_hf.planning.candidates import KeepCheapest


GOAL = torch.tensor([0.3, -0.6])
SIZES = {"batch_size": 2, "action_dim": 2}


def cost(candidates: torch.Tensor) -> torch.Tensor:
    """Distance of the sum of the actions (B, J, P, 2) from the goal."""
    return (candidates.sum(dim=2) - GOAL).square().sum(dim=-1)


def test_the_cheapest_of_the_last_iteration_are_kept_in_order():
    seen = []

    def recorded(candidates: torch.Tensor) -> torch.Tensor:
        seen.append(candidates.detach().clone())
        return cost(candidates)

    solver = KeepCheapest(CEM(horizon=3, num_candidates=20, num_iterations=3), count=4)
    solver(recorded, **SIZES, generator=torch.Generator().manual_seed(0))
    last = [candidates for candidates in seen if candidates.shape[1] == 20][-1]
    for row in range(2):
        order = cost(last)[row].argsort()[:4]
        assert torch.equal(solver.candidates[row], last[row, order])
    assert (solver.costs.diff(dim=1) >= 0).all() and torch.allclose(cost(solver.candidates), solver.costs)


def test_plans_are_those_of_the_solver_itself_also_with_gradient_and_few_candidates():
    for plain in (ICEM(num_candidates=6, num_elites=2), GradientDescent(num_candidates=3), CEM(num_candidates=1)):
        watched = KeepCheapest(plain, count=8)
        one = plain(cost, **SIZES, generator=torch.Generator().manual_seed(1))
        other = watched(cost, **SIZES, generator=torch.Generator().manual_seed(1))
        assert torch.equal(one.actions, other.actions) and torch.equal(one.trace["cost"], other.trace["cost"])
        assert watched.candidates.shape[1] == watched.costs.shape[1] and not watched.candidates.requires_grad
        assert watched.horizon == plain.horizon


def test_costs_that_are_no_numbers_come_last():
    solver = KeepCheapest(CEM(horizon=1, num_candidates=8, num_iterations=1), count=8)
    solver(lambda candidates: cost(candidates).masked_fill(candidates[..., 0, 0] > 0, torch.nan), **SIZES)
    assert solver.costs.isinf().any() and (solver.costs[:, 0] < torch.inf).all()
