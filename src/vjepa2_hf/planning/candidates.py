"""The candidates that a solver finds cheapest, to show what it considered.

Letters: B batch (problems planned in one call), J candidates, P planning horizon, A action size, E kept candidates.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..specs import check_count
from .search import CostFunction, SolverResult


class KeepCheapest:
    """A solver that keeps the cheapest candidates of another one's last iteration.

        solver = KeepCheapest(CEM(horizon=3), count=8)
        planner = VJepa2Planner(model, video_processor, solver=solver)
        plan = planner(observation, goal)
        solver.candidates  # (B, E, P, A), the cheapest first

    Args:
        solver: of the protocol of `vjepa2_hf.planning`.
        count: E, or all candidates of an iteration if it has fewer.
    """

    def __init__(self, solver: Callable[..., SolverResult], count: int = 8):
        self.solver, self.count, self.horizon = solver, check_count("count", count), solver.horizon
        self.candidates: torch.Tensor | None = None
        self.costs: torch.Tensor | None = None  # (B, E)

    def __call__(self, cost: CostFunction, **arguments: Any) -> SolverResult:
        self.candidates = self.costs = None

        def watched(candidates: torch.Tensor) -> torch.Tensor:
            costs = cost(candidates)
            if self.candidates is None or costs.shape[1] > 1:  # a single one is the mean that a solver returns
                self._keep(candidates.detach(), costs.detach())
            return costs

        return self.solver(watched, **arguments)

    def _keep(self, candidates: torch.Tensor, costs: torch.Tensor) -> None:
        costs = torch.nan_to_num(costs, nan=torch.inf)
        self.costs, index = costs.topk(min(self.count, costs.shape[1]), dim=1, largest=False)
        self.candidates = candidates[torch.arange(len(candidates)).unsqueeze(1), index.to(candidates.device)]
