"""What actions must obey beyond their bounds: terms that a solver applies to every candidate before its cost.

Letters: B problems, J candidates, P planning horizon, A action size, k environment actions in a model step.

A constraint is any object with `apply(actions)`, which maps actions (..., P, A) to allowed ones; the terms here also
have `to_dict`, so that a planner can be saved with them. They are applied in the order of the list, after the bounds,
so that a constraint wins over a bound.

A constraint is on environment actions. Where a model step holds k of them, the planner applies it to each
(`for_every_action`): then A above is the size of one. Steps are the model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..specs import from_spec, to_spec


class Constraint:
    """The base of constraints; a subclass implements `apply`."""

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., P, A) -> allowed actions of the same shape; a new tensor, through which gradient may flow."""
        raise NotImplementedError

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """The plan (..., P, A) that is returned.

        Args:
            plan: within the bounds and the constraints before this one.
            mean: the plan as the solver found it, before bounds.
        """
        return self.apply(plan)

    def fixed_dims(self, action_dim: int) -> list[int]:
        """Dimensions that nothing is left to search in; no noise is drawn for them."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, `"constraint"` among them, for `build_constraints`."""
        return to_spec(self, CONSTRAINTS, "constraint")


class EveryAction(Constraint):
    """A constraint on each of the k environment actions that a model step holds one after the other.

    Args:
        constraint: on an environment action of A / k numbers.
        count: k.
    """

    def __init__(self, constraint: Any, count: int):
        self.constraint, self.count = constraint, count

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        return self._joined(self.constraint.apply(self._apart(actions)))

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return self._joined(finish(self.constraint, self._apart(plan), self._apart(mean)))

    def fixed_dims(self, action_dim: int) -> list[int]:
        size = action_dim // self.count
        return [size * action + dim for action in range(self.count) for dim in fixed_dims(self.constraint, size)]

    def _apart(self, actions: torch.Tensor) -> torch.Tensor:
        """(..., P, A) -> (..., k, P, A / k)."""
        return actions.unflatten(-1, (self.count, -1)).transpose(-3, -2)

    def _joined(self, actions: torch.Tensor) -> torch.Tensor:
        """(..., k, P, A / k) -> (..., P, A)."""
        return actions.transpose(-3, -2).flatten(-2)


def for_every_action(constraints: Sequence[Any], count: int) -> list[Any]:
    """Constraints on environment actions as constraints on model steps of `count` of them."""
    return list(constraints) if count == 1 else [EveryAction(constraint, count) for constraint in constraints]


def finish(constraint: Any, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """`Constraint.finish` of any object with `apply`."""
    own = getattr(constraint, "finish", None)
    return constraint.apply(plan) if own is None else own(plan, mean)


def fixed_dims(constraint: Any, action_dim: int) -> list[int]:
    """`Constraint.fixed_dims` of any object with `apply`."""
    own = getattr(constraint, "fixed_dims", None)
    return [] if own is None else own(action_dim)


@dataclass
class Fixed(Constraint):
    """Dimensions that have a value, such as an arm's rotation 0; the solver searches the others alone.

    Args:
        dims: of the action.
        value: a number, or one a dimension, in action units.
    """

    dims: Sequence[int]
    value: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        self.dims = [self.dims] if isinstance(self.dims, int) else [int(dim) for dim in self.dims]
        self.value = _numbers("value", self.value)
        if isinstance(self.value, list) and len(self.value) != len(self.dims):
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
    """A gripper that closes at a step and stays closed (the published planner's `close_gripper`).

    Args:
        from_step: first model step at which it is closed, from 0.
        value: the action that closes it (published 1.0, beyond its bound of ±0.75).
        dim: the gripper's dimension of the action.
        exact: the plan has the value itself. `False`: the plan has what the refit left of it, as the published code
            returns it (with momentum 0.15 and 3 iterations 1 − 0.15³ of it).
    """

    from_step: int
    value: float = 1.0
    dim: int = -1
    exact: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.from_step, int) or isinstance(self.from_step, bool) or self.from_step < 0:
            raise ValueError(f"from_step is {self.from_step!r}; expected a step, 0 or later.")

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
    """Bounds of their own for every step.

    Args:
        low, high: P numbers, one a model step, or P lists of A numbers, in action units. Steps beyond the last have
            its bounds.
    """

    low: Sequence[float] | Sequence[Sequence[float]]
    high: Sequence[float] | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        self.low, self.high = _numbers("low", self.low), _numbers("high", self.high)
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        if low.dim() not in (1, 2) or low.shape != high.shape or not low.numel():
            raise ValueError(
                f"low has shape {tuple(low.shape)} and high {tuple(high.shape)}; expected (P,) or (P, A) of both, at "
                "least one step."
            )
        if not (low <= high).all():
            raise ValueError(f"low {self.low} must not exceed high {self.high} at any step.")

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        steps, size = actions.shape[-2:]
        bounds = []
        for name, value in (("low", self.low), ("high", self.high)):
            bound = actions.new_tensor(value)
            bound = bound[torch.arange(steps).clamp(max=len(bound) - 1)]
            bound = bound.unsqueeze(-1) if bound.dim() == 1 else bound
            if bound.shape[-1] not in (1, size):
                raise ValueError(
                    f"{name} of StepBounds has {bound.shape[-1]} numbers a step; expected {size}, one a dimension of "
                    "an environment action."
                )
            bounds.append(bound)
        return actions.clamp(*bounds)


@dataclass
class DeadZone(Constraint):
    """A dimension whose small values become 0 in the plan that is returned; the search knows nothing of it.

    Args:
        dim: of the action.
        below: size under which a value becomes 0 (published: the gripper's, 0.25).
    """

    dim: int
    below: float

    def __post_init__(self) -> None:
        if not isinstance(self.below, (int, float)) or not self.below > 0:
            raise ValueError(f"below is {self.below!r}; expected a number above 0, for example 0.25.")

    def apply(self, actions: torch.Tensor) -> torch.Tensor:
        _dimension(self.dim, actions.shape[-1])
        return actions

    def finish(self, plan: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        plan = plan.clone()
        column = plan[..., _dimension(self.dim, plan.shape[-1])]
        column[column.abs() < self.below] = 0.0
        return plan


CONSTRAINTS: dict[str, type[Constraint]] = {
    "fixed": Fixed,
    "closed_gripper": ClosedGripper,
    "step_bounds": StepBounds,
    "dead_zone": DeadZone,
}


def build_constraints(constraints: Any) -> list[Any]:
    """A list of constraints from constraints, dicts of `to_dict`, one of them, or `None`.

    Raises:
        ValueError: something is neither, or a setting does not fit.
    """
    if constraints is None:
        return []
    given = (
        [constraints] if isinstance(constraints, (dict, str)) or hasattr(constraints, "apply") else list(constraints)
    )
    return [_build(constraint) for constraint in given]


def _build(constraint: Any) -> Any:
    if hasattr(constraint, "apply") and not isinstance(constraint, type):
        return constraint
    return from_spec(constraint, CONSTRAINTS, "constraint")


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
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} is {value!r}; expected numbers.") from None
    if numbers.isnan().any():
        raise ValueError(f"{name} is {value!r}; expected numbers that are not NaN.")
    return numbers.tolist()
