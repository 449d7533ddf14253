"""Rows of a table of planning success: from closed loops, over training seeds, and compared with each other.

Letters: N episodes, K world models of one row, T steps, S state size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics.planning_success.planning_success import paired_difference, success_of_groups, summarize_success
from .closed_loop import ClosedLoopResult, drop_solved


@dataclass
class FinishedRow:
    """A row, its entries in `by_episode.json`, the states (N, T + 1, S) of its episodes, and where these come from."""

    row: dict[str, Any]
    by_episode: dict[str, dict[str, list]]
    states: np.ndarray | None
    sources: list[dict[str, Any]]


def finish_row(title: str, result: ClosedLoopResult, extra: dict[str, Any]) -> FinishedRow:
    """The row of a method, without the tasks that their start solves; `extra` are further entries.

    `scores` are means over episodes of each score's largest and last value.
    """
    counts = {"solved_at_start": int(result.solved.sum()), "ended_early": int(result.ended_early.sum())}
    result = drop_solved(result)
    start = None if result.distances is None else result.distances[:, 0]
    _, *others = result.levels or [None]
    judged = {title: (result.success, result.steps), **{f"{title}, {level}": result.levels[level] for level in others}}
    given = {} if start is None else {"distances": start.tolist()}
    by_episode = {
        name: {"successes": success.tolist(), "steps": steps.tolist(), **given}
        for name, (success, steps) in judged.items()
    }
    summaries = [summarize_success(success, steps, start) for success, steps in judged.values()]
    row = {"name": title, **summaries[0], **counts}
    if result.levels:
        row["levels"] = dict(zip(result.levels, summaries, strict=True))
        row["last_distance"] = float(result.distances[:, -1].mean())
    for score, values in result.scores.items():
        values = {"max": float(np.nanmax(values, axis=1).mean()), "last": float(values[:, -1].mean())}
        row.setdefault("scores", {})[score] = values
    return FinishedRow({**row, **extra}, by_episode, result.states, result.sources)


def join_models(rows: Sequence[FinishedRow]) -> FinishedRow:
    """One row of K world models of several training seeds: means over them, intervals over seeds and tasks."""
    if len(rows) == 1:
        return rows[0]
    by_episode, members = {}, [one.row for one in rows]
    for name in rows[0].by_episode:
        entries = [one.by_episode[name] for one in rows]
        by_episode[name] = {key: [value for entry in entries for value in entry[key]] for key in entries[0]}
        by_episode[name]["groups"] = [seed for seed, entry in enumerate(entries) for _ in entry["successes"]]
    entries = list(by_episode.values())
    row = {**_mean(members), **_over_seeds(entries[0], len(rows))}
    if "levels" in row:
        pairs = zip(row["levels"], entries, strict=True)
        row["levels"] = {level: _over_seeds(entry, len(rows)) for level, entry in pairs}
    same = ("name", "solved_at_start", "parameters", "rollout_flops", "rollout_candidates", "imagined_steps")
    row |= {name: members[0][name] for name in same if name in members[0]}
    return FinishedRow(row, by_episode, None, rows[0].sources)


def _over_seeds(entry: dict[str, list], seeds: int) -> dict[str, Any]:
    """Success of an entry of `by_episode.json` with groups."""
    pooled = {name: values for name, values in entry.items() if name != "groups"}
    return summarize_success(**pooled) | success_of_groups(_by_seed(entry, seeds))


def _by_seed(entry: dict[str, list], seeds: int) -> np.ndarray:
    return np.array(entry["successes"], bool).reshape(seeds, -1)


def _mean(values: list[Any]) -> Any:
    """Means of the numbers in nested dicts of equal keys; of anything else the list, or the one value of all."""
    if all(isinstance(value, dict) for value in values):
        shared = [name for name in values[0] if all(name in value for value in values)]
        return {name: _mean([value[name] for value in values]) for name in shared}
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return float(np.mean(values))
    return values[0] if all(value == values[0] for value in values) else values


def compare_rows(rows: dict[str, FinishedRow], name: str) -> None:
    """Adds `minus` to each row and level but those of the row `name`: the paired difference of their success rates."""
    base = rows[name]
    seeds = {title: len(one.row.get("by_seed", [0])) for title, one in rows.items()}
    for title, one in rows.items():
        if title == name:
            continue
        if one.sources != base.sources:
            raise ValueError(f"The rows {title!r} and {name!r} had other tasks, so they cannot be compared in pairs.")
        targets = list(one.row["levels"].values()) if "levels" in one.row else [one.row]
        for target, own, other in zip(targets, one.by_episode.values(), base.by_episode.values(), strict=True):
            pair = _by_seed(own, seeds[title]), _by_seed(other, seeds[name])
            target["minus"] = {"row": name, **paired_difference(*pair)}
        one.row["minus"] = targets[0]["minus"]
