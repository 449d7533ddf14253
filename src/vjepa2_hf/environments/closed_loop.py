"""Closed-loop evaluation: plan, execute the first actions, plan again, for many episodes at once.

    tasks = Tasks("vjepa2_hf/Pushing-v0", seeds=range(100))
    result = run_closed_loop(tasks, plan)       # result.success (N,), result.states (N, 26, S)

Letters: N episodes, T steps, S state size, A action size, P planning horizon.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .plane import EXECUTED_ACTIONS
from .tasks import TaskBatch


Plan = Callable[[TaskBatch], np.ndarray]  # actions (N, P, A), P >= 1, from the present of the tasks


@dataclasses.dataclass(frozen=True)
class ClosedLoopResult:
    """Outcome of N episodes of T steps."""

    sources: list[dict]  # N: where each task comes from
    solved: np.ndarray  # bool (N,), tasks that the start solves already
    ended_early: np.ndarray  # bool (N,), tasks without success whose environment ended before their last step
    success: np.ndarray  # bool (N,), tasks that succeeded after any action
    steps: np.ndarray  # int (N,), actions until the first success, -1 without one
    actions: np.ndarray  # float32 (N, T, A)
    scores: dict[str, np.ndarray]  # (N, T + 1) by name; nan at the start
    levels: dict[str, tuple[np.ndarray, np.ndarray]]  # success and steps (N,) of each level of success
    distances: np.ndarray | None = None  # float (N, T + 1) to the goal, from the start on
    states: np.ndarray | None = None  # float32 (N, T + 1, S)
    frames: np.ndarray | None = None  # uint8 (n, T + 1, H, W, 3) of the first episodes


def run_closed_loop(
    tasks: TaskBatch, plan: Plan, executed_actions: int = EXECUTED_ACTIONS, kept_frames: int = 0
) -> ClosedLoopResult:
    """Plans, executes the first actions and plans again, for the steps that the tasks have.

    Args:
        tasks: the episodes; they end in their final states.
        plan: called before every `executed_actions` steps. A shorter plan is executed completely. Only an oracle reads
            the true states.
        kept_frames: number of episodes whose images are kept.
    """
    shown = np.arange(min(kept_frames, len(tasks)))

    def observe() -> dict[str, np.ndarray | None]:
        frames = tasks.render(shown) if len(shown) else None
        values = {"reached": tasks.reached.copy(), "distances": tasks.distances, "states": tasks.states}
        named = {("score", name): score for name, score in tasks.scores.items()}
        named |= {("level", name): reached for name, reached in tasks.levels.items()}
        return {**values, "frames": frames, **named}

    seen, actions = [observe()], []
    for taken in step_closed_loop(tasks, plan, executed_actions):
        if taken is not None:
            actions.append(taken)
            seen.append(observe())
    found = {name: np.stack([one[name] for one in seen], axis=1) for name in seen[0] if seen[0][name] is not None}
    scores = {name: found.pop(("score", name)) for name in tasks.scores}
    levels = {name: _first_steps(found.pop(("level", name))) for name in tasks.levels}
    success, steps = _first_steps(found.pop("reached"))
    outcome = {"success": success, "steps": steps, "levels": levels, "scores": scores, **found}
    return ClosedLoopResult(tasks.sources, tasks.solved, tasks.ended_early, actions=np.stack(actions, 1), **outcome)


def step_closed_loop(
    tasks: TaskBatch, plan: Plan, executed_actions: int = EXECUTED_ACTIONS
) -> Iterator[np.ndarray | None]:
    """The same loop one event at a time, to watch it: None after each plan, then the actions (N, A) of each step that
    was taken. Arguments as in `run_closed_loop`."""
    taken = 0
    while taken < tasks.max_steps:
        planned = np.array(plan(tasks), np.float32)  # a copy: a plan may reuse its buffer
        yield None
        for step in range(min(executed_actions, planned.shape[1], tasks.max_steps - taken)):
            tasks.step(planned[:, step])
            taken += 1
            yield planned[:, step]


def _first_steps(reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Success and steps until it, -1 without one, from the tasks reached so far (N, T + 1)."""
    success = reached[:, 1:].any(axis=1)
    return success, np.where(success, reached[:, 1:].argmax(axis=1) + 1, -1)


def join_results(results: Sequence[ClosedLoopResult]) -> ClosedLoopResult:
    """Concatenates the outcomes of several batches."""
    joined = {"scores": {name: np.concatenate([one.scores[name] for one in results]) for name in results[0].scores}}
    joined["sources"] = [source for one in results for source in one.sources]
    levels = {name: zip(*(one.levels[name] for one in results), strict=True) for name in results[0].levels}
    joined["levels"] = {name: tuple(map(np.concatenate, values)) for name, values in levels.items()}
    for name in vars(results[0]).keys() - joined.keys():
        values = [getattr(one, name) for one in results if getattr(one, name) is not None]
        joined[name] = np.concatenate(values) if values else None
    return ClosedLoopResult(**joined)


def drop_solved(result: ClosedLoopResult) -> ClosedLoopResult:
    """The outcome without the tasks that their start solves already."""
    kept = {}
    for name, values in vars(result).items():
        if name == "scores":
            kept[name] = {score: each[~result.solved] for score, each in values.items()}
        elif name == "levels":
            kept[name] = {level: tuple(each[~result.solved] for each in both) for level, both in values.items()}
        elif name == "sources":
            kept[name] = [source for source, solved in zip(values, result.solved, strict=True) if not solved]
        else:  # frames are those of the first tasks alone
            kept[name] = None if values is None else values[~result.solved[: len(values)]]
    return ClosedLoopResult(**kept)


def policy_plan(name: str, seed: int = 0) -> Plan:
    """One of `policies.POLICIES` as a `plan` for `run_closed_loop`: actions (N, 1, A), new at every step."""
    rng = np.random.default_rng(seed)
    return lambda tasks: tasks.policy_actions(name, rng)[:, None]
