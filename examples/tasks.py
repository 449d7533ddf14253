"""Many episodes at once in closed loop: the frozen tasks of this repository's environments, and what runs any tasks.

    tasks = Tasks("vjepa2_hf/Pushing-v0", seeds=range(100))
    result = run_closed_loop(tasks, plan)       # result.success (N,), result.states (N, 26, S)

`examples/plan.py` and tests use it. Tasks of any other environment are `gym_tasks.GymTasks`; both follow `TaskBatch`.
Letters: N episodes, T steps, S state size, A action size, P planning horizon, J candidates.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from environments import (
    EXECUTED_ACTIONS,
    MAX_STEPS,
    SUCCESS_PIXELS,
    PlaneEnv,
    drawn_to_block_actions,
    make_plain,
    wandering_actions,
)


class TaskBatch(Protocol):
    """N tasks side by side, each at its start when made.

    Attributes:
        max_steps: environment steps that a task has.
        action_dim: A.
        goal_images: uint8 (N, H, W, 3).
        reached: bool (N,), whether a task succeeded after any step so far.
        active: bool (N,), tasks that still need actions; the others' actions are without effect on their success.
        states: float32 (N, S), or None where the environment tells none. No planner sees them.
        distances: float (N,) to the goals, in the tasks' unit, or None.
        proprio_states: float32 (N, S), what a model may see of the agent, or None.
        scores: other numbers that the environment tells, by name, (N,) each.
    """

    max_steps: int
    action_dim: int
    goal_images: np.ndarray
    reached: np.ndarray
    active: np.ndarray
    states: np.ndarray | None
    distances: np.ndarray | None
    proprio_states: np.ndarray | None
    scores: dict[str, np.ndarray]

    def __len__(self) -> int: ...

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        """What the given tasks (indices; all by default) show now: uint8 (n, H, W, 3)."""

    def step(self, actions: np.ndarray) -> None:
        """Moves every task by one action, (N, A)."""

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """Actions (N, A) of one of `environments.POLICIES`."""

    def close(self) -> None:
        """Gives back what the environments hold; nothing is asked of the tasks afterwards."""


class Tasks:
    """The frozen tasks side by side: one vectorised physics step moves all of them. A `TaskBatch`.

    Args:
        env_id: `environments.PUSHING` or `TWO_ROOMS`.
        seeds: one task each.
        varied_appearance: each task has its own appearance, drawn from its seed.

    Attributes (N episodes):
        states, goals: float32 (N, S), field units.
        goal_images: uint8 (N, 64, 64, 3).
        reached: bool (N,), within `SUCCESS_PIXELS` of the goal after any step so far.
    """

    max_steps = MAX_STEPS
    action_dim = 2

    def __init__(self, env_id: str, seeds: Sequence[int], varied_appearance: bool = False):
        self.env: PlaneEnv = make_plain(env_id)
        self.seeds = [int(seed) for seed in seeds]
        drawn = [self.env.sample_task(seed) for seed in self.seeds]
        self.states = np.stack([start for start, _ in drawn])
        self.goals = np.stack([goal for _, goal in drawn])
        self.appearances = [self.env.make_appearance(seed if varied_appearance else None) for seed in self.seeds]
        pairs = zip(self.goals, self.appearances, strict=True)
        self.goal_images = np.stack([self.env.render_state(goal, appearance) for goal, appearance in pairs])
        self.last_actions = np.zeros((len(self), 2), np.float32)
        self.reached = np.zeros(len(self), bool)
        self.scores: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.seeds)

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        """The current states of these episodes (indices; all by default) as pictures: uint8 (n, 64, 64, 3)."""
        episodes = range(len(self)) if episodes is None else episodes
        return np.stack([self.env.render_state(self.states[i], self.appearances[i]) for i in episodes])

    @property
    def active(self) -> np.ndarray:
        return ~self.reached

    @property
    def proprio_states(self) -> np.ndarray:
        """The agents' positions, float32 (N, 2)."""
        return self.states[:, :2]

    @property
    def distances(self) -> np.ndarray:
        """Pixels to the goals (N,)."""
        return self.env.distance_px(self.states, self.goals)

    def step(self, actions: np.ndarray) -> None:
        """Moves every episode by one action, (N, 2)."""
        actions = np.asarray(actions, np.float32)
        if actions.shape != (len(self), 2):
            raise ValueError(f"The actions have shape {actions.shape}, but ({len(self)}, 2) is expected.")
        self.last_actions = actions
        self.states = self.env.dynamics(self.states, actions)
        self.reached |= self.distances <= SUCCESS_PIXELS

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """One of the policies for all episodes at once: (N, 2)."""
        draw = {
            "uniform": lambda: rng.uniform(-1, 1, (len(self), 2)),
            "drawn_to_block": lambda: drawn_to_block_actions(self.states, rng),
            "wander": lambda: wandering_actions(self.last_actions, rng),
        }
        if name not in draw:
            raise ValueError(f"The policy is {name!r}, but only {', '.join(draw)} are known.")
        return draw[name]()

    def close(self) -> None:
        """There is nothing to give back."""


@dataclasses.dataclass(frozen=True)
class ClosedLoopResult:
    """Outcome of N episodes of T steps.

    Attributes:
        success: bool (N,), whether a task succeeded after any action.
        steps: int (N,), actions until it did, -1 where it did not.
        actions: float32 (N, T, A).
        distances: float (N, T + 1) to the goal, the start included, or None.
        states: float32 (N, T + 1, S), or None.
        scores: by name (N, T + 1); what the environment does not tell at the start is nan.
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
    """Plans, executes the first actions, plans again, until the tasks' steps are used up.

    Args:
        tasks: the episodes; left in their final states. `plan` may read `tasks.render()`, `tasks.goal_images`,
            `tasks.proprio_states`, and, if it is an oracle, the true states.
        plan: called before every `executed_actions` steps; returns actions (N, P, A), P >= 1. A plan shorter than
            `executed_actions` is executed whole.
        kept_frames: episodes of which pictures are kept.
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
    """The outcomes of several batches as one."""

    def join(name: str):
        values = [getattr(result, name) for result in results if getattr(result, name) is not None]
        return np.concatenate(values) if values else None

    names = [field.name for field in dataclasses.fields(ClosedLoopResult) if field.name != "scores"]
    scores = {name: np.concatenate([result.scores[name] for result in results]) for name in results[0].scores}
    return ClosedLoopResult(**{name: join(name) for name in names}, scores=scores)


def policy_plan(name: str, seed: int = 0) -> Callable[[TaskBatch], np.ndarray]:
    """One of `environments.POLICIES` as a `plan` for `run_closed_loop`: (N, 1, A) actions, fresh at every step."""
    rng = np.random.default_rng(seed)
    return lambda tasks: tasks.policy_actions(name, rng)[:, None]


class Oracle:
    """CEM on the true states and the true dynamics: what planning could reach. A `plan` for `run_closed_loop`.

    Its cost is `state_cost` of the last state: plain squared distance in both environments, no way round the wall.

    Args:
        horizon: environment steps planned ahead; longer ones find worse plans with so few candidates.
        num_candidates, num_iterations, num_elites: of the cross-entropy method.
        seed: of its noise.
    """

    def __init__(
        self,
        horizon: int = 6,
        num_candidates: int = 128,
        num_iterations: int = 3,
        num_elites: int = 12,
        seed: int = 0,
    ):
        # torch is wanted here only: recording episodes starts faster without it
        import torch

        from vjepa2_hf.planning import CEM

        self.solver = CEM(
            horizon=horizon, num_candidates=num_candidates, num_iterations=num_iterations, num_elites=num_elites
        )
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, tasks: Tasks) -> np.ndarray:
        return self.plan(tasks.env, tasks.states, tasks.goals)

    def plan(self, env: PlaneEnv, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Plans from states (N, S) to goals (N, S); returns actions float32 (N, P, 2)."""
        import torch

        def cost(actions: "torch.Tensor") -> "torch.Tensor":  # (N, J, P, 2) -> (N, J)
            candidates = actions.numpy()
            reached = np.broadcast_to(states[:, None], (*candidates.shape[:2], states.shape[-1]))
            for step in range(candidates.shape[2]):
                reached = env.dynamics(reached, candidates[:, :, step])
            return torch.from_numpy(env.state_cost(reached, goals[:, None]).astype(np.float32))

        result = self.solver(cost, batch_size=len(states), action_dim=2, generator=self.generator)
        return result.actions.numpy()
