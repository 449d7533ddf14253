"""Constraints on actions beyond their bounds, which a solver applies to every candidate before its cost.

A constraint is any object with `apply(actions)`, which maps actions (..., P, A) to allowed ones; the constraints here
also have `to_dict`, so that a planner can be saved with them. They are applied after the bounds, in the order of the
list, and take precedence over the bounds.

`dims` and per-dimension values refer to one environment action; where a model step holds k of them, the planner
applies a constraint to each (`for_every_action`). Steps are model steps.

Letters: P planning horizon, A size of an action, k environment actions in a model step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..specs import check_count, check_flag, check_number, describe, from_spec, is_integer, refuse, to_spec


LATER_THAN_ANY_STEP = 2**31


class Constraint:
    """Base of the constraints; a subclass implements `apply`."""

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., P, A) -> allowed actions, a new tensor of the same shape, differentiable."""
        raise NotImplementedError

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """The returned plan (..., P, A), from the plan after the bounds and earlier constraints, and the solver's own
        `mean` before them."""
        return self.apply(plan)

    def fixed_dims(self, action_dim: int) -> list[int]:
        """Dimensions with a fixed value; solvers sample no noise for them."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with the name under "constraint", for `build_constraints`."""
        return to_spec(self, CONSTRAINTS, "constraint")


class EveryAction(Constraint):
    """A constraint on environment actions, applied to each of the `count` = k actions of a model step."""

    def __init__(self, constraint: Any, count: int):
        self.constraint, self.count = constraint, count

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        return self._joined(self.constraint.apply(self._split(actions)))

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return self._joined(finish(self.constraint, self._split(plan), self._split(mean)))

    def fixed_dims(self, action_dim: int) -> list[int]:
        size = action_dim // self.count
        return [size * action + dim for action in range(self.count) for dim in fixed_dims(self.constraint, size)]

    def _split(self, actions: torch.Tensor) -> torch.Tensor:
        """(..., P, A) -> (..., k, P, A / k)."""
        return actions.unflatten(-1, (self.count, -1)).transpose(-3, -2)

    def _joined(self, actions: torch.Tensor) -> torch.Tensor:
        """(..., k, P, A / k) -> (..., P, A)."""
        return actions.transpose(-3, -2).flatten(-2)


def for_every_action(constraints: Sequence[Any], count: int) -> list[Any]:
    """Constraints on environment actions as constraints on model steps of `count` actions."""
    return list(constraints) if count == 1 else [EveryAction(constraint, count) for constraint in constraints]


def finish(constraint: Any, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """`Constraint.finish` of any object with `apply`, for plan and mean (B, P, A)."""
    return constraint.finish(plan, mean) if hasattr(constraint, "finish") else constraint.apply(plan)


def fixed_dims(constraint: Any, action_dim: int) -> list[int]:
    """`Constraint.fixed_dims` of any object with `apply`."""
    return constraint.fixed_dims(action_dim) if hasattr(constraint, "fixed_dims") else []


@dataclass
class Fixed(Constraint):
    """Action dimensions `dims` with a fixed value, such as rotation 0 of an arm; the solver searches the others.
    `value` is a number, or one per dimension, in action units."""

    dims: Sequence[int]
    value: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        self.dims = _dims(self.dims)
        self.value = _numbers("value", self.value)
        if isinstance(self.value, list) and (len(self.value) != len(self.dims) or isinstance(self.value[0], list)):
            raise ValueError(f"value has {len(self.value)} numbers for {len(self.dims)} dims; give one for each.")

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        dims = self.fixed_dims(actions.shape[-1])
        actions = actions.clone()
        actions[..., dims] = actions.new_tensor(self.value)
        return actions

    def fixed_dims(self, action_dim: int) -> list[int]:
        return [_dimension(dim, action_dim) for dim in self.dims]


@dataclass
class ClosedGripper(Constraint):
    """A gripper that closes at a step and stays closed (`close_gripper` of the published planner).

    Args:
        from_step: first model step at which it is closed, from 0.
        value: the action that closes it (published 1.0, beyond its bound of ±0.75).
        dim: the gripper's dimension of the action.
        exact: the plan has this value. `False`: the plan has the solver's mean, as in the published code (with
            momentum 0.15 and 3 iterations the value times 1 − 0.15³).
    """

    from_step: int
    value: float = 1.0
    dim: int = -1
    exact: bool = True

    def __post_init__(self) -> None:
        if not is_integer(self.from_step) or self.from_step < 0:
            refuse("from_step", self.from_step, "a step, 0 or later")
        self.from_step = min(int(self.from_step), LATER_THAN_ANY_STEP)
        self.value = check_number("value", self.value)
        self.dim, self.exact = check_dim(self.dim), check_flag("exact", self.exact)

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        return self._set(actions, actions.new_tensor(self.value))

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        if self.exact:
            return self.apply(plan)
        return self._set(plan, mean[..., self.from_step :, _dimension(self.dim, mean.shape[-1])])

    def _set(self, actions: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        actions = actions.clone()
        actions[..., self.from_step :, _dimension(self.dim, actions.shape[-1])] = value
        return actions


@dataclass
class StepBounds(Constraint):
    """Separate bounds for every step: P numbers, one per model step, or P lists of A numbers, in action units. The
    last bounds apply to all later steps."""

    low: Sequence[float] | Sequence[Sequence[float]]
    high: Sequence[float] | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        self.low, self.high = _numbers("low", self.low), _numbers("high", self.high)
        low, high = torch.tensor(self.low, dtype=torch.float64), torch.tensor(self.high, dtype=torch.float64)
        if low.dim() not in (1, 2) or low.shape != high.shape or not low.numel():
            raise ValueError(
                f"low has shape {tuple(low.shape)} and high {tuple(high.shape)}; expected (P,) or (P, A) of both, at "
                "least one step."
            )
        if not (low <= high).all():
            raise ValueError(f"low {self.low} must not exceed high {self.high} at any step.")

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        steps, size = actions.shape[-2:]
        bounds = actions.new_tensor([self.low, self.high])  # (2, P) or (2, P, A)
        bounds = bounds.unsqueeze(-1) if bounds.dim() == 2 else bounds
        if bounds.shape[-1] not in (1, size):
            raise ValueError(
                f"low of StepBounds has {bounds.shape[-1]} numbers per step; expected {size}, one per dimension of an "
                "environment action."
            )
        return actions.clamp(*bounds[:, torch.arange(steps).clamp(max=bounds.shape[1] - 1)])


@dataclass
class DeadZone(Constraint):
    """Sets absolute values below `below` of a dimension to 0 in the returned plan (published: 0.25, for the gripper);
    the search ignores it."""

    dim: int
    below: float

    def __post_init__(self) -> None:
        self.dim = check_dim(self.dim)
        try:
            self.below = check_number("below", self.below, above=0)
        except ValueError:
            refuse("below", self.below, "a number above 0, for example 0.25")

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        _dimension(self.dim, actions.shape[-1])
        return actions

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        plan = plan.clone()
        column = plan[..., _dimension(self.dim, plan.shape[-1])]
        column[column.abs() < float(self.below)] = 0.0
        return plan


CONSTRAINTS: dict[str, type[Constraint]] = {
    "fixed": Fixed,
    "closed_gripper": ClosedGripper,
    "step_bounds": StepBounds,
    "dead_zone": DeadZone,
}


def build_constraints(constraints: Any) -> list[Any]:
    """A list of constraints from constraints, dicts as of `to_dict`, a single one, or `None`."""
    if constraints is None:
        return []
    if isinstance(constraints, (dict, str)) or hasattr(constraints, "apply"):
        constraints = [constraints]
    if not isinstance(constraints, (list, tuple)):
        refuse("constraints", constraints, "a list of constraints, of dicts, or None")
    return [
        each if hasattr(each, "apply") and not isinstance(each, type) else from_spec(each, CONSTRAINTS, "constraint")
        for each in constraints
    ]


def check_dim(dim: Any) -> int:
    """A dimension of an action, which may count from the end."""
    return check_count("dim", dim, lowest=-LATER_THAN_ANY_STEP, highest=LATER_THAN_ANY_STEP)


def _dims(dims: Any) -> list[int]:
    if is_integer(dims):
        dims = [dims]
    if isinstance(dims, str) or not hasattr(dims, "__iter__"):
        refuse("dims", dims, "a list of dimensions of an action")
    dims = [check_dim(dim) for dim in (dims.tolist() if hasattr(dims, "tolist") else dims)]
    return dims or refuse("dims", dims, "at least one dimension of an action")


def _dimension(dim: int, action_dim: int) -> int:
    if not -action_dim <= dim < action_dim:
        raise ValueError(
            f"a constraint is on dimension {dim}, but actions have {action_dim}; expected {-action_dim} to "
            f"{action_dim - 1}, of one environment action."
        )
    return dim % action_dim


def _numbers(name: str, value: Any) -> Any:
    """A setting as a float or nested lists of floats, so that it can be compared and written to JSON."""
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is {describe(value)}; expected numbers.") from None
    if numbers.isnan().any():
        raise ValueError(f"{name} is {describe(value)}; expected numbers that are not NaN.")
    if not numbers.numel():
        refuse(name, value, "numbers, of at least one step")
    return numbers.tolist()
