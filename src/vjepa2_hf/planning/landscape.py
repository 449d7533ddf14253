"""The cost over two dimensions of an action, as numbers and as a figure.

Letters: P planning horizon, A action size, J candidates.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..specs import is_integer, refuse
from .search import CostFunction, PerDimension, Search, SolverResult


MAX_POINTS = 1000  # per dimension


class Grid:
    """A solver that evaluates a grid over two dimensions of an action; its trace holds the cost of every point.

    `dims`, of an environment action, vary together in all `actions_per_step` actions of the step; if one of them is
    larger, both index the A numbers of a model step. The other actions (P, A) stay as given.
    """

    def __init__(self, actions: torch.Tensor, dims: tuple[int, int], points: int, step: int, actions_per_step: int):
        count, width = actions.shape
        if not isinstance(dims, (list, tuple)) or len(dims) != 2 or not all(map(is_integer, dims)):
            refuse("dims", dims, f"two of the {width} dimensions of an action")
        if len(set(dims)) != 2 or not all(0 <= dim < width for dim in dims):
            raise ValueError(f"dims are {tuple(dims)}; expected two of the {width} dimensions of an action.")
        if not is_integer(points) or not 2 <= points <= MAX_POINTS:
            refuse("points", points, f"2 or more in each dimension, at most {MAX_POINTS}")
        if not is_integer(step) or not 0 <= step < count:
            raise ValueError(f"step is {step!r}; expected 0 to {count - 1}, as there are {count} actions.")
        size = width // actions_per_step
        self.columns = [list(range(dim, width, size)) if max(dims) < size else [dim] for dim in dims]
        self.actions, self.points, self.step, self.horizon = actions, points, step, len(actions)
        self.axes: list[torch.Tensor] = []

    def __call__(
        self, cost: CostFunction, batch_size: int, action_low: PerDimension, action_high: PerDimension, **unused: Any
    ) -> SolverResult:
        search = Search(cost, (batch_size, *self.actions.shape), action_low, action_high)
        # the range within the bounds of all actions of the step
        ends = [(search.low[each].max().item(), search.high[each].min().item()) for each in self.columns]
        if not all(math.isfinite(high - low) for low, high in ends):
            raise ValueError("a landscape goes from bound to bound: give finite action_low and action_high.")
        self.axes = [torch.linspace(low, high, self.points) for low, high in ends]
        y, x = torch.meshgrid(self.axes[1], self.axes[0], indexing="ij")
        candidates = self.actions.repeat(self.points**2, 1, 1)
        for columns, values in zip(self.columns, (x, y), strict=True):
            candidates[:, self.step, columns] = values.reshape(-1, 1)
        costs = search.evaluate(candidates.expand(batch_size, -1, -1, -1))
        return SolverResult(search.best_actions, search.best_cost, {"cost": costs.T})


def plot_landscape(axes: Sequence[Any], costs: Any, dims: tuple[int, int]) -> Any:
    """A matplotlib figure of costs (points of the second axis, of the first); a red cross marks the lowest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.add_subplot()
    colors = axis.contourf(*axes, costs, levels=20)
    row, column = divmod(int(costs.argmin()), costs.shape[1])
    lowest = axis.plot(axes[0][column], axes[1][row], "r+", markersize=12, clip_on=False, label="lowest cost")
    axis.set(xlabel=f"action[{dims[0]}]", ylabel=f"action[{dims[1]}]")
    figure.colorbar(colors, label="cost")
    figure.legend(handles=lowest, loc="outside upper right", numpoints=1)
    return figure
