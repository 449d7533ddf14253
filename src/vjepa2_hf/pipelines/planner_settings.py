"""Settings of a planner: those given, those saved with the model, and the defaults.

Letters: A action size of a model step, k environment actions in a model step.
"""

import math
from typing import Any

import numpy as np

from ..modeling_costs import check_cost
from ..modeling_embodiments import embodiment_config, embodiment_index
from ..planning import SOLVERS, Cost, LatentDistance, Solver, build_cost, build_solver
from ..specs import check_number, describe, is_integer, refuse


DISCRETE_SOLVER = "categorical_cem"  # the default for one-hot actions


def choose_solver(config: Any, solver: Any, settings: dict[str, Any], saved: dict[str, Any]) -> Any:
    """The solver that is given, else the saved one, else the default for the model's actions.

    Args:
        config: of the world model.
        settings: of the solver; they replace saved settings of the same solver.
        saved: the solver saved with the model, as of `Solver.to_dict`.
    """
    if solver is not None and solver != saved.get("solver"):
        saved = {}  # settings of another solver
    discrete = config.action_type == "discrete"
    combined = {"solver": DISCRETE_SOLVER if discrete else "cem", **saved, **settings}
    name = combined.pop("solver")
    name = name if solver is None else solver
    kind = getattr(name, "name", None) if isinstance(name, Solver) else name
    if isinstance(kind, str) and kind in SOLVERS and discrete != (kind == DISCRETE_SOLVER):
        expected = repr(DISCRETE_SOLVER) if discrete else "'cem'"
        raise ValueError(f"solver is {name!r}, but the model's actions are {config.action_type}: take {expected}.")
    steps = getattr(name, "actions_per_step", config.actions_per_step)
    if steps != config.actions_per_step:
        raise ValueError(f"solver is {name!r}, but the model has actions_per_step={config.actions_per_step}.")
    if np.ndim(combined.get("init_std")) == 1:
        combined["init_std"] = per_model_step(config, "init_std", combined["init_std"])
    if name == DISCRETE_SOLVER:
        combined = {"actions_per_step": config.actions_per_step, **combined}
    try:
        return build_solver(name, **combined)
    except ValueError as error:
        for name in saved.keys() - settings.keys():
            unknown = (f"Unknown {name} '", f"Unknown solver setting '{saved.get('solver')}.{name}'")
            if str(error).startswith((f"{name} is ", *unknown)):  # a setting the caller did not give
                raise ValueError(
                    f"{str(error).rstrip('.?')}; {name}={saved[name]!r} was saved with the model."
                ) from error
        raise


def choose_embodiment(config: Any, embodiment: int | str | None, saved: dict[str, Any]) -> tuple[int | None, Any]:
    """The embodiment that plans, `None` for a model of one, and the config of its sizes, statistics and bounds.

    Takes what was saved for another embodiment out of `saved`.
    """
    last = saved.pop("embodiment", 0 if saved else None)
    if config.num_embodiments == 1:
        embodiment_index(config, embodiment)
        return None, config
    index = embodiment_index(config, last if embodiment is None else embodiment)
    if index != last:
        for name in ("init_std", "constraints"):
            saved.pop(name, None)
    return index, embodiment_config(config, index)


def with_bound(config: Any, name: str, embodiment: int | None, bound: list | None) -> list | None:
    """The config's `action_low` or `action_high` with a new bound (A numbers) of an embodiment."""
    if embodiment is None:
        return bound
    rows = list(getattr(config, name) or [None] * config.num_embodiments)
    rows[embodiment] = bound
    return rows if any(row is not None for row in rows) else None


def choose_cost(cost: Any, distance: str | None, saved: dict[str, Any]) -> Cost:
    """The cost that is given (or the latent distance, its short form), else the saved one, else the squared distance.

    Takes the cost out of `saved`.
    """
    if cost is not None and distance is not None:
        raise ValueError(f"both cost and distance={distance!r} were given; the distance is a part of the cost.")
    old = (saved.pop("cost", None), saved.pop("distance", None))  # a distance was saved before there were costs
    given = cost if distance is None else LatentDistance(distance)
    return build_cost(next(each for each in (given, *old, "l2") if each is not None))


def check_samples(config: Any, num_samples: int, uncertainty_weight: float, cost: Cost) -> None:
    """Refuses samples of a deterministic model, an uncertainty without samples, and a cost without the part of the
    model that it needs."""
    check_cost(config, cost)
    if not is_integer(num_samples) or num_samples < 1:
        refuse("num_samples", num_samples, "an integer, 1 or more")
    check_number("uncertainty_weight", uncertainty_weight)
    if (num_samples > 1 or uncertainty_weight or cost.needs_samples) and not config.stochastic_dim:
        raise ValueError(
            f"num_samples={num_samples} and uncertainty_weight={uncertainty_weight} need a model with a stochastic "
            "latent, but this model is deterministic (stochastic_dim is 0)."
        )
    if (uncertainty_weight or cost.needs_samples) and num_samples < 2:
        raise ValueError(
            f"num_samples is {num_samples}, but a cost with an uncertainty (uncertainty_weight) needs at least 2, for "
            "example 8."
        )


def per_model_step(config: Any, name: str, values: Any) -> list[float]:
    """A numbers, from A numbers or from those of one environment action, which are repeated k times."""
    each = config.action_dim // config.actions_per_step
    try:
        values = [float(number) for number in values]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(
            f"{name} is {describe(values)}; expected a list of {each} numbers, one per dimension."
        ) from None
    if any(math.isnan(number) for number in values):
        raise ValueError(f"{name} is {values}; expected numbers that are not NaN.")
    if len(values) == each:
        return values * config.actions_per_step
    if len(values) != config.action_dim:
        sizes = f"{config.action_dim} (action_dim)"
        if config.actions_per_step > 1:
            sizes = f"{each}, of an environment action, or {sizes}"
        raise ValueError(f"{name} has {len(values)} numbers; expected {sizes}.")
    return values


def search_bounds(config: Any, low: list[float] | None, high: list[float] | None) -> tuple[list | None, list | None]:
    """Lower and upper bounds of the search (A numbers each): those given, else those of the config, else `None`."""
    bounds = {"action_low": low, "action_high": high}
    for name, value in bounds.items():
        value = getattr(config, name) if value is None else value
        if value is None and config.proprio_transition == "pose_delta":
            raise ValueError(
                f"{name} is missing: actions of an arm are meters and radians, so there is no safe default; give "
                f"{name}=[…] ({config.action_dim} numbers; published: ±0.05 m, rotation 0, gripper ±0.75)."
            )
        bounds[name] = None if value is None else per_model_step(config, name, value)
    if None not in bounds.values() and any(a > b for a, b in zip(*bounds.values())):
        raise ValueError(f"action_low={bounds['action_low']} lies above action_high={bounds['action_high']}.")
    return bounds["action_low"], bounds["action_high"]
