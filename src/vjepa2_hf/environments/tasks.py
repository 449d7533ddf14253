"""Many episodes at once in closed loop: the frozen tasks of this repository's environments, and what runs any tasks.

    tasks = Tasks("vjepa2_hf/Pushing-v0", seeds=range(100))
    result = run_closed_loop(tasks, plan)       # result.success (N,), result.states (N, 26, S)

`examples/plan.py` and tests use it. Tasks of any other environment are `gym_tasks.GymTasks`; both follow `TaskBatch`.
Letters: N episodes, T steps, S state size, A action size, P planning horizon, J candidates.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .plane import MAX_STEPS, SUCCESS_PIXELS, PlaneEnv
from .policies import wandering_actions
from .pushing import PUSHING, PushingEnv, drawn_to_block_actions
from .two_rooms import TWO_ROOMS, TwoRoomsEnv


def make_plain(env_id: str, **settings: Any) -> PlaneEnv:
    """One of this package's environments without gymnasium's wrappers.

    Raises:
        ValueError: another id.
    """
    classes = {PUSHING: PushingEnv, TWO_ROOMS: TwoRoomsEnv}
    if env_id not in classes:
        raise ValueError(f"The environment is {env_id!r}, but only {' and '.join(classes)} are known here.")
    return classes[env_id](**settings)


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
