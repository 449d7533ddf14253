"""Success rates of plans with confidence intervals, as an `evaluate` module.

    metric = evaluate.load("FOLDER_OF_THE_PACKAGE/metrics/planning_success")
    metric.add_batch(successes=successes, steps=steps, distances=distances, groups=seeds)
    metric.compute()

Shapes: N episodes.
"""

import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import scipy.stats

from vjepa2_hf import metrics
from vjepa2_hf.specs import is_integer, refuse


BINS = 3
MAX_BINS = 10_000


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a rate over episodes (Wilson's score interval)."""
    interval = scipy.stats.binomtest(successes, episodes).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t-interval of the mean over seeds, within 0 and 1; the whole range for a single seed."""
    low, high = t_interval(values)
    return (0.0, 1.0) if low is None or high is None else (max(0.0, low), min(1.0, high))


def t_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95 % t-interval of the mean of unbounded values, such as errors; (None, None) for a single value."""
    if len(values) < 2:
        return None, None
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def crossed_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % t-interval of the mean of (K, N) values: K >= 2 groups, such as training seeds, with the same N tasks.

    Covers other groups and other tasks alike: the variance of the mean is at most (A + B) / KN, with mean squares A
    between groups and B between tasks; its degrees of freedom are Satterthwaite's.
    """
    groups, tasks = values.shape
    mean, by_group, by_task = values.mean(), values.mean(axis=1), values.mean(axis=0)
    if tasks == 1:
        return t_interval(by_group.tolist())
    squares = np.array([tasks * by_group.var(ddof=1), groups * by_task.var(ddof=1)])
    if not squares.any():
        return float(mean), float(mean)
    degrees = squares.sum() ** 2 / (squares**2 / [groups - 1, tasks - 1]).sum()
    half = float(scipy.stats.t.ppf(0.975, degrees) * math.sqrt(squares.sum() / (groups * tasks)))
    return float(mean) - half, float(mean) + half


def paired_difference(successes: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """A method's success rate minus another's on the same tasks.

    Args:
        successes, others: bool (K, N) for K training seeds on the same N tasks; one side may have a single seed.

    Returns:
        `difference`; its 95 % interval `low`, `high`; `wins` and `losses`, how often one alone succeeded; with K = 1
        `p_mcnemar` of the exact test. The interval is that of Bonett and Price (2012, adjusted Wald), which is never
        empty; with several seeds it also contains `crossed_interval`.
    """
    change = successes.astype(float) - others
    tasks, by_task = change.shape[1], change.mean(axis=0)
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    more, less = (np.maximum(sign * by_task, 0).sum() + 1 for sign in (1, -1))  # one task added to each side
    middle = (more - less) / (tasks + 2)
    spread = (more + less) / (tasks + 2) - middle**2
    half = scipy.stats.norm.ppf(0.975) * math.sqrt(spread / (tasks + 2))
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    found = {"difference": float(change.mean()), "wins": wins, "losses": losses}
    if len(change) > 1:
        also = crossed_interval(change)
        low, high = max(-1.0, min(low, also[0])), min(1.0, max(high, also[1]))
    else:
        found["p_mcnemar"] = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return {**found, "low": float(low), "high": float(high)}


def success_of_groups(successes: np.ndarray) -> dict[str, Any]:
    """`success`, `low`, `high`, `episodes` and `by_seed` of bool (K, N): K training seeds on the same N tasks.

    The interval covers other seeds and other tasks; it contains Wilson's over the tasks.
    """
    rate, tasks = float(successes.mean()), successes.shape[1]
    intervals = [wilson_interval(round(rate * tasks), tasks), crossed_interval(successes.astype(float))]
    low, high = min(one[0] for one in intervals), max(one[1] for one in intervals)
    by_seed = successes.mean(axis=1).tolist()
    return {"success": rate, "low": max(0.0, low), "high": min(1.0, high), "episodes": tasks, "by_seed": by_seed}


def success_rate(successes: np.ndarray) -> dict[str, Any]:
    """`success`, `low`, `high`, `episodes` of bool (N,)."""
    low, high = wilson_interval(int(successes.sum()), len(successes))
    return {"success": float(successes.mean()), "low": low, "high": high, "episodes": len(successes)}


def success_by_distance(
    successes: np.ndarray, distances: np.ndarray, bins: int | Sequence[float] = BINS
) -> list[dict[str, Any]]:
    """Success rates by goal distance, both (N,); `bins` as in `PlanningSuccess.compute`. Empty parts are left out."""
    if is_integer(bins):
        if not 1 <= bins <= MAX_BINS:
            raise ValueError(f"bins is {bins}; expected at least 1 part and at most {MAX_BINS}, or a list of edges.")
        bins = np.quantile(distances, np.arange(1, bins) / bins)
    edges = metrics.to_array("bins", bins)
    if edges.ndim != 1 or np.isnan(edges).any():
        refuse("bins", bins, "a number of parts, or a list of edges")
    index = np.searchsorted(np.sort(edges), distances, side="right")
    parts = [index == number for number in range(len(edges) + 1)]
    return [
        {"from": float(distances[part].min()), "to": float(distances[part].max()), **success_rate(successes[part])}
        for part in parts
        if part.any()
    ]


def summarize_success(
    successes: Sequence[bool],
    steps: Sequence[float] | None = None,
    distances: Sequence[float] | None = None,
    groups: Sequence[Any] | None = None,
    bins: int | Sequence[float] = BINS,
) -> dict[str, Any]:
    """The function behind `PlanningSuccess.compute`."""
    given = _arrays(successes=successes, steps=steps, distances=distances, groups=groups)
    reached = given["successes"].astype(bool)
    found = success_rate(reached)
    if "steps" in given:
        found["steps_to_success"] = float(given["steps"][reached].mean()) if reached.any() else None
    if "distances" in given:
        found["by_distance"] = success_by_distance(reached, given["distances"], bins)
    if "groups" in given:
        names = list(dict.fromkeys(given["groups"].tolist()))
        rates = [float(reached[given["groups"] == name].mean()) for name in names]
        low, high = seed_interval(rates)
        found |= {"by_group": rates, "group_mean": float(np.mean(rates)), "group_low": low, "group_high": high}
    return found


def _arrays(**given: Sequence[Any] | None) -> dict[str, np.ndarray]:
    """The columns that are given, as arrays of one length."""
    given = {name: metrics.to_array(name, values, dtype=None) for name, values in given.items() if values is not None}
    if "successes" not in given:
        raise ValueError("successes are missing: give one for every episode.")
    successes = given["successes"]
    if successes.ndim != 1 or not len(successes):
        raise ValueError(f"successes have shape {successes.shape}; expected (N,), at least one episode.")
    if not np.isin(successes, (0, 1)).all():
        raise ValueError(f"successes hold {successes[~np.isin(successes, (0, 1))][0]!r}; expected true or false.")
    for name, values in given.items():
        if values.shape != successes.shape:
            raise ValueError(f"{name} have shape {values.shape}; {len(successes)} successes need ({len(successes)},).")
    for name in ("steps", "distances"):
        if name in given:
            given[name] = metrics.to_array(name, given[name])
    if "distances" in given and not np.isfinite(given["distances"]).all():
        raise ValueError("distances hold numbers that are not finite; leave out the episodes without one.")
    return given


class PlanningSuccess(metrics.OneProcessMetric):
    """Success rate with 95 % intervals over episodes (Wilson's score interval) and over groups such as training seeds
    (Student's t), steps to success, and success by the distance of the goal.

    Only `successes` is required, which evaluate's own storage does not allow.
    """

    _types = {"successes": "bool", "steps": "float32", "distances": "float32", "groups": "string"}
    columns = {name: datasets.Value(kind) for name, kind in _types.items()}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._inputs: dict[str, list] = {}

    def __len__(self) -> int:
        return len(self._inputs.get("successes", []))

    def add_batch(self, *, successes=None, steps=None, distances=None, groups=None) -> None:
        """Adds episodes; every batch must have the same inputs."""
        given = _arrays(successes=successes, steps=steps, distances=distances, groups=groups)
        if self._inputs and set(self._inputs) != set(given):
            raise ValueError(
                f"a batch gives {sorted(given)}, but the ones before gave {sorted(self._inputs)}: give the same "
                "inputs every time."
            )
        for name, values in given.items():
            self._inputs.setdefault(name, []).extend(values.tolist())

    def add(self, *, success=None, step=None, distance=None, group=None) -> None:
        """Adds one episode."""
        given = {"successes": success, "steps": step, "distances": distance, "groups": group}
        self.add_batch(**{name: [value] for name, value in given.items() if value is not None})

    def compute(self, *, successes=None, steps=None, distances=None, groups=None, bins=BINS) -> dict[str, Any]:
        """
        Args:
            successes: (N,), whether each episode reached its goal.
            steps: (N,), environment steps to success; ignored for failed episodes.
            distances: (N,), of the goals from the starts, in any unit.
            groups: (N,), a number or name per episode, such as the training seed of the planner.
            bins: number of equally large parts for `by_distance`, or a list of inner edges.

        Returns:
            `success`, `low` and `high` (over episodes; another training run is not covered), `episodes`; with steps
            `steps_to_success`, the mean over successful episodes (`None` without any); with distances `by_distance`, a
            list of `from`, `to`, `success`, `low`, `high`, `episodes`; with groups `by_group` (success rates in order
            of appearance), `group_mean`, `group_low` and `group_high`.
        """
        if successes is not None:
            self.add_batch(successes=successes, steps=steps, distances=distances, groups=groups)
        if not self._inputs:
            raise ValueError("there are no episodes; add successes first.")
        inputs, self._inputs = self._inputs, {}
        return summarize_success(**inputs, bins=bins)
