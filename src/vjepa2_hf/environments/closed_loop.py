"""Closed-loop evaluation: plan, execute the first actions, plan again, for many episodes at once.

    tasks = Tasks("vjepa2_hf/Pushing-v0", seeds=range(100))
    result = run_closed_loop(tasks, plan)       # result.success (N,), result.states (N, 26, S)

Letters: N episodes, T steps, S state size, A action size, P planning horizon, J candidates.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..planning import CEM
from .plane import EXECUTED_ACTIONS
from .tasks import TaskBatch, Tasks


@dataclasses.dataclass(frozen=True)
class ClosedLoopResult:
    """Outcome of N episodes of T steps.

    Attributes:
        success: bool (N,), tasks that succeeded after any action.
        steps: int (N,), actions until the first success, -1 without one.
        actions: float32 (N, T, A).
        distances: float (N, T + 1) to the goal, from the start on, or None.
        states: float32 (N, T + 1, S), or None.
        scores: by name (N, T + 1); nan at the start.
        frames: uint8 (n, T + 1, H, W, 3) of the first episodes, or None.
    """

    success: np.ndarray
    steps: np.ndarray
    actions: np.ndarray
    distances: np.ndarray | None = None
    states: np.ndarray | None = None
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    frames: np.ndarray | None = None


def run_closed_loop(
    tasks: TaskBatch,
    plan: Callable[[TaskBatch], np.ndarray],
    executed_actions: int = EXECUTED_ACTIONS,
    kept_frames: int = 0,
) -> ClosedLoopResult:
    """Plans, executes the first actions and plans again, for the steps that the tasks have.

    Args:
        tasks: the episodes; they end in their final states.
        plan: called with the tasks before every `executed_actions` steps; returns actions (N, P, A), P >= 1. A plan
            shorter than `executed_actions` is executed completely. Only an oracle reads the true states.
        kept_frames: number of episodes whose images are kept.
    """
    shown = np.arange(min(kept_frames, len(tasks)))
    seen = [_snapshot(tasks, shown)]
    actions: list[np.ndarray] = []
    while len(actions) < tasks.max_steps:
        planned = np.asarray(plan(tasks), np.float32)
        for step in range(min(executed_actions, planned.shape[1], tasks.max_steps - len(actions))):
            tasks.step(planned[:, step])
            actions.append(planned[:, step])
            seen.append(_snapshot(tasks, shown))
    history = {name: _stack([one[name] for one in seen]) for name in seen[0] if name != "scores"}
    reached = history.pop("reached")[:, 1:]
    scores = {name: _stack([one["scores"][name] for one in seen]) for name in seen[0]["scores"]}
    return ClosedLoopResult(
        success=reached.any(axis=1),
        steps=np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, -1),
        actions=np.stack(actions, axis=1),
        scores=scores,
        **history,
    )


def _snapshot(tasks: TaskBatch, shown: np.ndarray) -> dict:
    return {
        "reached": tasks.reached.copy(),
        "distances": tasks.distances,
        "states": tasks.states,
        "scores": dict(tasks.scores),
        "frames": tasks.render(shown) if len(shown) else None,
    }


def _stack(values: list[np.ndarray | None]) -> np.ndarray | None:
    return None if values[0] is None else np.stack(values, axis=1)


def join_results(results: Sequence[ClosedLoopResult]) -> ClosedLoopResult:
    """Concatenates the outcomes of several batches."""

    def join(name: str):
        values = [getattr(result, name) for result in results if getattr(result, name) is not None]
        return np.concatenate(values) if values else None

    names = [field.name for field in dataclasses.fields(ClosedLoopResult) if field.name != "scores"]
    scores = {name: np.concatenate([result.scores[name] for result in results]) for name in results[0].scores}
    return ClosedLoopResult(**{name: join(name) for name in names}, scores=scores)


def policy_plan(name: str, seed: int = 0) -> Callable[[TaskBatch], np.ndarray]:
    """One of `policies.POLICIES` as a `plan` for `run_closed_loop`: actions (N, 1, A), new at every step."""
    rng = np.random.default_rng(seed)
    return lambda tasks: tasks.policy_actions(name, rng)[:, None]


class Oracle:
    """CEM on the true states and the true dynamics; a `plan` for `run_closed_loop`.

    Its cost is the squared distance of the last state from the goal, so it does not find ways around the wall.

    Args:
        horizon: environment steps; longer horizons find worse plans with this number of candidates.
        num_candidates, num_iterations, num_elites: of the cross-entropy method.
        seed: of its samples.
    """

    def __init__(
        self,
        horizon: int = 6,
        num_candidates: int = 128,
        num_iterations: int = 3,
        num_elites: int = 12,
        seed: int = 0,
    ):
        self.solver = CEM(
            horizon=horizon, num_candidates=num_candidates, num_iterations=num_iterations, num_elites=num_elites
        )
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, tasks: Tasks) -> np.ndarray:
        """Plans float32 (N, P, 2)."""

        def cost(actions: torch.Tensor) -> torch.Tensor:  # (N, J, P, 2) -> (N, J)
            candidates = actions.numpy()
            reached = np.broadcast_to(tasks.states[:, None], (*candidates.shape[:2], tasks.states.shape[-1]))
            for step in range(candidates.shape[2]):
                reached = tasks.env.dynamics(reached, candidates[:, :, step])
            return torch.from_numpy(tasks.env.state_cost(reached, tasks.goals[:, None]).astype(np.float32))

        return self.solver(cost, batch_size=len(tasks), action_dim=2, generator=self.generator).actions.numpy()
