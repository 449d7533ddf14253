"""Batches of tasks: the protocol, and the frozen tasks of the package's environments.

Tasks of other environments are `gym_tasks.GymTasks`; `closed_loop.run_closed_loop` runs both.
Letters: N episodes, S state size, A action size.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..specs import check_known
from .appearance import IMAGE_SIZE
from .four_rooms import FOUR_ROOMS, FourRoomsEnv
from .plane import SUCCESS_PIXELS, PlaneEnv
from .policies import Waypoints, wandering_actions
from .pushing import PUSHING, PushingEnv, drawn_to_block_actions
from .success import SuccessLevel, SuccessTracker, check_hold
from .two_rooms import TWO_ROOMS, TwoRoomsEnv


def make_plain(env_id: str, **settings: Any) -> PlaneEnv:
    """One of the package's environments without gymnasium's wrappers."""
    classes = {PUSHING: PushingEnv, TWO_ROOMS: TwoRoomsEnv, FOUR_ROOMS: FourRoomsEnv}
    check_known(env_id, classes, "environment")
    try:
        return classes[env_id](**settings)
    except TypeError as error:  # an unknown setting
        raise ValueError(f"The environment {env_id!r} cannot be made: {error}") from error


class TaskBatch(Protocol):
    """N tasks in parallel, each at its start when made. Planners do not see the states."""

    max_steps: int  # environment steps that a task has
    steps_taken: int  # so far
    action_dim: int  # A
    goal_images: np.ndarray  # uint8 (N, H, W, 3)
    solved: np.ndarray  # bool (N,), tasks that their start solves already; they are never active
    reached: np.ndarray  # bool (N,), tasks that succeeded after any step so far
    levels: dict[str, np.ndarray]  # the same for each level of success by name; {} if there is only one
    ended_early: np.ndarray  # bool (N,), tasks without success whose environment ended before `max_steps`
    active: np.ndarray  # bool (N,), tasks that still need actions; those of the others do not change their success
    states: np.ndarray | None  # float32 (N, S), or None if the environment has none
    distances: np.ndarray | None  # float (N,) to the goals, in the unit of the tasks
    proprio_states: np.ndarray | None  # float32 (N, S), the agent's state that a model may see
    scores: dict[str, np.ndarray]  # other values of the environment by name, (N,) each
    goal_states: np.ndarray | None  # float32 (N, S), or None if the environment has none
    sources: list[dict[str, Any]]  # where each task comes from: its seed; of a recorded one its episode and frames

    def __len__(self) -> int: ...

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        """Current images of the given tasks (indices; default all): uint8 (n, H, W, 3)."""

    def observe(self, episodes: np.ndarray, goals: bool = False) -> dict[str, np.ndarray]:
        """Current images of the given tasks, or those of their goals, by camera: uint8 (n, H, W, 3) each. A single
        camera without a name is ""."""

    def step(self, actions: np.ndarray) -> None:
        """Takes one action (N, A) in every task."""

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """Actions (N, A) of one of `policies.POLICIES`."""

    def close(self) -> None:
        """Closes the environments; the tasks cannot be used afterwards."""


class Tasks:
    """Frozen tasks of the package's environments in parallel, with vectorized physics; a `TaskBatch`.

    `states` and `goals` are float32 (N, S) in field units, `distances` (N,) in pixels. A task is reached within
    `SUCCESS_PIXELS` of its goal, or as `levels` say, for which the columns of states are in pixels.

    Args:
        env_id: `PUSHING`, `TWO_ROOMS` or `FOUR_ROOMS`.
        seeds: one task each.
        varied_appearance: each task has its own random appearance, from its seed.
        env_kwargs: other keyword arguments of the environment, such as `agent_radius` or `goal_appearance`.
        levels: of success by name; a task is then active until it has reached all of them, and does not move any more.
        chosen: starts and goals (N, S) instead of those of the seeds.
    """

    action_dim = 2

    def __init__(
        self,
        env_id: str,
        seeds: Sequence[int],
        varied_appearance: bool = False,
        env_kwargs: dict[str, Any] | None = None,
        levels: dict[str, SuccessLevel] | None = None,
        chosen: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.env: PlaneEnv = make_plain(env_id, **{**(env_kwargs or {}), "varied_appearance": varied_appearance})
        self.max_steps = self.env.max_steps
        self.seeds = [int(seed) for seed in seeds]
        if chosen is None:
            self.states, self.goals = map(np.stack, zip(*map(self.env.sample_task, self.seeds), strict=True))
        else:
            self.states, self.goals = (np.stack([self.env.check_state(each) for each in part]) for part in chosen)
        pairs = [self.env.make_appearances(seed if varied_appearance else None) for seed in self.seeds]
        self.appearances, self.goal_appearances = map(list, zip(*pairs, strict=True))
        pairs = zip(self.goals, self.goal_appearances, strict=True)
        self.goal_images = np.stack([self.env.render_state(goal, appearance) for goal, appearance in pairs])
        self.last_actions = np.zeros((len(self), 2), np.float32)
        self.reached, self.ended_early, self.steps_taken = np.zeros(len(self), bool), np.zeros(len(self), bool), 0
        judged = list(range(*self.env.target.indices(self.env.state_dim)))
        levels = {name: level.with_columns(judged) for name, level in (levels or {}).items()}
        check_hold(levels, self.max_steps)
        used = {column for level in levels.values() for group in level.groups(self.env.state_dim) for column in group}
        self.whole_state = not used <= set(judged)  # success needs more than the environment's own
        self.tracker = SuccessTracker(levels, *self._in_pixels()) if levels else None
        self.solved = self.tracker.solved if levels else self.distances <= SUCCESS_PIXELS
        self.scores: dict[str, np.ndarray] = {}
        self._waypoints = Waypoints()

    def __len__(self) -> int:
        return len(self.seeds)

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        """Current images of the given tasks (indices; default all): uint8 (n, H, W, 3)."""
        episodes = range(len(self)) if episodes is None else episodes
        return np.stack([self.env.render_state(self.states[i], self.appearances[i]) for i in episodes])

    def observe(self, episodes: np.ndarray, goals: bool = False) -> dict[str, np.ndarray]:
        """See `TaskBatch`: images of the environment's `views`."""
        states, appearances = (self.goals, self.goal_appearances) if goals else (self.states, self.appearances)
        render = self.env.render_state
        return {view: np.stack([render(states[i], appearances[i], view) for i in episodes]) for view in self.env.views}

    @property
    def active(self) -> np.ndarray:
        """See `TaskBatch`: bool (N,)."""
        return ~(self.tracker.finished if self.tracker else self.reached) & ~self.solved

    @property
    def levels(self) -> dict[str, np.ndarray]:
        """See `TaskBatch`: bool (N,) by name."""
        return dict(self.tracker.reached) if self.tracker else {}

    def _in_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """States and goals."""
        return self.states * IMAGE_SIZE, self.goals * IMAGE_SIZE

    @property
    def goal_states(self) -> np.ndarray:
        """See `TaskBatch`: float32 (N, S)."""
        return self.goals

    @property
    def sources(self) -> list[dict[str, Any]]:
        """See `TaskBatch`: the seed of each task."""
        return [{"seed": seed} for seed in self.seeds]

    @property
    def proprio_states(self) -> np.ndarray:
        """Positions (N, 2) of the agents, in field units."""
        return self.states[:, :2]  # the agents' positions

    @property
    def distances(self) -> np.ndarray:
        """Distances (N,) to the goals in pixels."""
        return self.env.distance_px(self.states, self.goals)

    def step(self, actions: np.ndarray) -> None:
        """Takes one action (N, 2) in [-1, 1] in every task."""
        actions = np.asarray(actions, np.float32)
        if actions.shape != (len(self), 2):
            raise ValueError(f"The actions have shape {actions.shape}, but ({len(self)}, 2) is expected.")
        self.last_actions, before, active = actions, self.states, self.active
        self.states, self.steps_taken = self.env.dynamics(before, actions), self.steps_taken + 1
        if self.tracker is None:
            self.reached |= (self.distances <= SUCCESS_PIXELS) & ~self.solved
            return
        self.states = np.where(active[:, None], self.states, before)
        self.tracker.update(*self._in_pixels(), active, np.array(self.steps_taken == self.max_steps))
        self.reached = self.tracker.first

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """Actions (N, 2) of one of `policies.POLICIES`."""
        sample = {
            "uniform": lambda: rng.uniform(-1, 1, (len(self), 2)),
            "drawn_to_block": lambda: drawn_to_block_actions(self.states, rng),
            "wander": lambda: wandering_actions(self.last_actions, rng),
            "waypoints": lambda: self._waypoints.actions(self.env, self.states[:, :2], rng),
        }
        check_known(name, sample, "policy")
        return sample[name]()

    def close(self) -> None:
        """There is nothing to close."""
