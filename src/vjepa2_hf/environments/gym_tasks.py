"""Tasks of any gymnasium environment for closed-loop evaluation: where episodes start, their goals, what counts.

    tasks = GymTasks("gym_pusht/PushT-v0", GymTasksConfig(goal="policy", ...), seeds=range(10))
    result = run_closed_loop(tasks, plan)       # examples/tasks.py; `examples/plan.py` does this with `gym: {...}`

Letters: N episodes, S state size, A action size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np

from .policies import find_policy


GOAL_TRIES = 100  # episodes of the policy until a goal lies far enough away
SUCCESS_KEYS = ("success", "is_success")  # of an environment's info


def make_env(env_id: str, **settings: Any) -> gymnasium.Env:
    """Any registered environment that renders "rgb_array"; an id such as `module:Name-v0` imports its module first.

    Raises:
        ValueError: it can not be made, in one sentence.
    """
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **settings)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"The environment {env_id!r} can not be made: {error}") from error


def is_picture(value: Any) -> bool:
    """Whether it is a uint8 picture (H, W, 3)."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def read_picture(env: gymnasium.Env, observation: Any) -> np.ndarray:
    """What the environment shows now, uint8 (H, W, 3): its observation, where that is a picture, else its rendering.

    Raises:
        ValueError: it can not draw itself, or draws something else.
    """
    if is_picture(observation):  # drawing it again would double the cost
        return observation
    try:
        picture = env.render()
    except gymnasium.error.Error as error:  # such as a drawing library that is not installed
        raise ValueError(f"The environment {env.spec.id!r} can not draw itself: {error}") from error
    if not is_picture(picture):
        raise ValueError(f"The environment {env.spec.id!r} renders no uint8 picture (H, W, 3) as 'rgb_array'.")
    return picture


def read_numbers(names: Sequence[str], info: dict[str, Any], observation: Any = None) -> np.ndarray:
    """Numbers that an environment tells, joined: float32 (S,).

    Args:
        names: of entries of its info, or else of a dict of observations.

    Raises:
        ValueError: an entry is not there, with those that are, or is not finite.
    """
    told = {**(observation if isinstance(observation, dict) else {}), **info}
    for name in names:
        if name not in told:
            raise ValueError(f"The environment tells no {name!r}; it tells {', '.join(sorted(told)) or 'nothing'}.")
    found = {name: np.asarray(told[name], np.float32).reshape(-1) for name in names}
    for name, numbers in found.items():
        if not np.isfinite(numbers).all():
            raise ValueError(f"The environment tells {name!r} as {told[name]!r}; expected finite numbers.")
    return np.concatenate([found[name] for name in names])


@dataclass
class GymTasksConfig:
    """How episodes of an environment become tasks.

    What the environment must do: be registered with gymnasium (an id such as `module:Name-v0` imports its module
    first), render "rgb_array" or observe a uint8 picture (H, W, 3), take a bounded Box action, and start equally from
    equal seeds. What it tells is read from its `info`, or else from a dict of observations, by the names given here.
    """

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings with which the environment is made."""
    max_steps: int | None = None
    """Environment steps of a task; null: the environment's own limit."""
    policy: str = "uniform"
    """Which collected the data: the row "data policy", and the goals of `goal: policy`."""
    goal: Literal["policy", "reset", "info"] = "policy"
    """The picture of the goal. policy: what the environment shows after `goal_steps` steps of `policy` from the same
    start. reset: after `reset(seed, options=goal_options)`. info: `goal_image` of the info, or of the environment."""
    goal_steps: int = 20
    goal_options: dict[str, Any] = field(default_factory=dict)
    state: list[str] = field(default_factory=list)
    """Names of what the environment tells that, joined, is its state; []: none, and then there are no distances."""
    goal_state: list[str] = field(default_factory=list)
    """The same of the goal, with `goal: info`; the other goals have the state that the environment had then."""
    distance_columns: list[int] | None = None
    """Numbers of the state whose Euclidean distance to the goal's counts; null: all."""
    proprio_state: list[str] = field(default_factory=list)
    """Names of what a model with proprio states sees."""
    success: Literal["distance", "info", "terminated"] = "distance"
    """distance: the goal's state is nearer than `success_distance`; info: `success` or `is_success` of the info;
    terminated: the episode ends. The last two judge the environment's own goal, so that the goal must be that one."""
    success_distance: float | None = None
    """In the state's units."""
    min_goal_distance: float = 0.0
    """Goals of the policy that are nearer to the start are drawn again."""
    scores: list[str] = field(default_factory=list)
    """Numbers that the environment tells after a step and that are reported too, such as [coverage]."""

    def __post_init__(self):
        if self.success == "distance" and not (self.state and self.success_distance):
            raise ValueError(
                "gym.success is 'distance', which needs gym.state (names of what the environment tells) and "
                "gym.success_distance; or set gym.success to 'info' or 'terminated'."
            )
        if self.success != "distance" and self.goal == "policy":
            raise ValueError(
                f"gym.goal is 'policy', a goal that the environment does not know, but gym.success is "
                f"{self.success!r}, its own judgement: set gym.success to 'distance', or gym.goal to 'reset' or "
                "'info'."
            )
        if self.goal == "reset" and not self.goal_options:
            raise ValueError("gym.goal is 'reset', but gym.goal_options is empty: every reset would be the start.")
        if self.goal_state and (self.goal != "info" or not self.state):
            raise ValueError("gym.goal_state is for gym.goal 'info', beside gym.state.")
        if self.success == "distance" and self.goal == "info" and not self.goal_state:
            raise ValueError("gym.goal is 'info' and gym.success 'distance': name the goal's state in gym.goal_state.")
        if self.min_goal_distance and (self.goal != "policy" or not self.state):
            raise ValueError("gym.min_goal_distance is for gym.goal 'policy', with gym.state.")
        if self.success_distance is not None and not self.success_distance > 0:
            raise ValueError(f"gym.success_distance must be above 0, got {self.success_distance}.")
        if self.distance_columns == []:
            raise ValueError("gym.distance_columns is empty, so that every distance would be 0; null takes all.")
        for name in ("max_steps", "goal_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"gym.{name} must be at least 1, got {getattr(self, name)}.")


@dataclass
class _Episode:
    """One environment in its task."""

    env: gymnasium.Env
    observation: Any = None
    info: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> None:
        self.observation, self.info = self.env.reset(seed=seed, options=options)
        self.ended = False

    def step(self, action: np.ndarray) -> bool:
        """Moves on; returns whether the environment called it terminated."""
        space = self.env.action_space
        action = np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)
        self.observation, _, terminated, truncated, self.info = self.env.step(action)
        self.ended = bool(terminated or truncated)
        return bool(terminated)

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        return read_numbers(names, self.info, self.observation)

    def picture(self) -> np.ndarray:
        return read_picture(self.env, self.observation)


class GymTasks:
    """Tasks of a gymnasium environment, each in an environment of its own. A `tasks.TaskBatch`.

    Args:
        env_id: of a registered environment.
        config: what is a goal and what a success.
        seeds: of the starts, one task each; the goals' are derived from them.

    Raises:
        ValueError: the environment can not be made, drawn or acted in, does not tell what the config names, starts
            differently from the same seed, or no goal is far enough away.
    """

    def __init__(self, env_id: str, config: GymTasksConfig, seeds: Sequence[int]):
        self.config, self.env_id, self.seeds = config, env_id, [int(seed) for seed in seeds]
        limit = {} if config.max_steps is None else {"max_episode_steps": config.max_steps}
        self.episodes = [_Episode(make_env(env_id, **limit, **config.env_kwargs)) for _ in self.seeds]
        first = self.episodes[0].env
        find_policy("uniform", first)  # refuses what is no bounded Box
        if first.spec.max_episode_steps is None:
            raise ValueError(f"The environment {env_id!r} has no limit of steps: give gym.max_steps.")
        self.max_steps: int = first.spec.max_episode_steps
        self.action_dim = int(np.prod(first.action_space.shape))
        self.reached = np.zeros(len(self), bool)
        self._policies: dict[str, list] = {}
        goals = [self._begin(episode, seed) for episode, seed in zip(self.episodes, self.seeds, strict=True)]
        self.goal_images = np.stack([picture for picture, _ in goals])
        self.goal_states = None if goals[0][1] is None else np.stack([state for _, state in goals])
        self.scores = {name: np.full(len(self), np.nan) for name in config.scores}

    def __len__(self) -> int:
        return len(self.seeds)

    def _begin(self, episode: _Episode, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Puts an episode at its start; returns the goal's picture (H, W, 3) and state (S,), if it has one."""
        if self.config.goal == "info":
            episode.reset(seed)
            picture = episode.info.get("goal_image", getattr(episode.env.unwrapped, "goal_image", None))
            if not is_picture(picture):
                raise ValueError(
                    f"The environment {self.env_id!r} gives no goal_image, neither in its info nor as an attribute: "
                    "set gym.goal to 'policy' or 'reset'."
                )
            return picture, episode.numbers(self.config.goal_state) if self.config.goal_state else None
        episode.reset(seed)
        first = episode.picture()
        if self.config.goal == "reset":
            episode.reset(seed, self.config.goal_options)
        else:
            self._play_to_goal(episode, seed)
        goal = episode.picture(), episode.numbers(self.config.state) if self.config.state else None
        episode.reset(seed)
        if not np.array_equal(first, episode.picture()):
            raise ValueError(f"The environment {self.env_id!r} starts differently from the same seed ({seed}).")
        return goal

    def _play_to_goal(self, episode: _Episode, seed: int) -> None:
        """Leaves the episode after `goal_steps` steps of the policy, far enough from its start."""
        start = episode.numbers(self.config.state)
        for attempt in range(GOAL_TRIES):
            rng = np.random.default_rng([seed, attempt])
            policy = find_policy(self.config.policy, episode.env)
            episode.reset(seed)
            for _ in range(self.config.goal_steps):
                if episode.ended:
                    break
                episode.step(np.asarray(policy(episode.env.unwrapped, rng)))
            if self._distance(episode.numbers(self.config.state), start) >= self.config.min_goal_distance:
                return
        raise ValueError(
            f"{GOAL_TRIES} times {self.config.goal_steps} steps of the policy {self.config.policy!r} led less than "
            f"gym.min_goal_distance={self.config.min_goal_distance} away from the start of seed {seed}."
        )

    def _distance(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(..., S), (..., S) -> (...)."""
        columns, size = self.config.distance_columns, states.shape[-1]
        columns = list(range(size)) if columns is None else columns
        if not all(-size <= column < size for column in columns):
            raise ValueError(f"gym.distance_columns are {columns}, but the state has {size} numbers.")
        if goals.shape[-1] != size:
            raise ValueError(f"gym.goal_state is {goals.shape[-1]} numbers, but the state has {size}: name the same.")
        return np.linalg.norm((states - goals)[..., columns], axis=-1)

    @property
    def active(self) -> np.ndarray:
        return ~self.reached & ~np.array([episode.ended for episode in self.episodes])

    @property
    def states(self) -> np.ndarray | None:
        """float32 (N, S)."""
        return self._numbers(self.config.state)

    @property
    def proprio_states(self) -> np.ndarray | None:
        """float32 (N, S)."""
        return self._numbers(self.config.proprio_state)

    def _numbers(self, names: Sequence[str]) -> np.ndarray | None:
        return np.stack([episode.numbers(names) for episode in self.episodes]) if names else None

    @property
    def distances(self) -> np.ndarray | None:
        """To the goals, in the state's units (N,)."""
        return None if self.goal_states is None else self._distance(self.states, self.goal_states)

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        """What these episodes (indices; all by default) show now: uint8 (n, H, W, 3)."""
        return np.stack([self.episodes[i].picture() for i in (range(len(self)) if episodes is None else episodes)])

    def step(self, actions: np.ndarray) -> None:
        """Moves the active episodes by one action, (N, A); the others stay as they are."""
        actions = np.asarray(actions, np.float32)
        if actions.shape != (len(self), self.action_dim):
            raise ValueError(
                f"The actions have shape {actions.shape}, but ({len(self)}, {self.action_dim}) is expected."
            )
        succeeded = np.zeros(len(self), bool)
        self.scores = {name: values.copy() for name, values in self.scores.items()}
        for i in np.flatnonzero(self.active):
            terminated = self.episodes[i].step(actions[i])
            succeeded[i] = self._succeeded(self.episodes[i], terminated)
            for name in self.scores:
                self.scores[name][i] = self._score(self.episodes[i], name)
        if self.config.success == "distance":
            succeeded = self.distances <= self.config.success_distance
        self.reached = self.reached | succeeded

    def _score(self, episode: _Episode, name: str) -> float:
        numbers = episode.numbers([name])
        if len(numbers) != 1:
            raise ValueError(f"The score {name!r} of {self.env_id!r} is {len(numbers)} numbers; expected one.")
        return float(numbers[0])

    def _succeeded(self, episode: _Episode, terminated: bool) -> bool:
        """What the environment says, where it is asked."""
        if self.config.success == "terminated":
            return terminated
        told = [episode.info[name] for name in SUCCESS_KEYS if name in episode.info]
        if self.config.success == "info" and not told:
            raise ValueError(
                f"The info of {self.env_id!r} tells neither {' nor '.join(SUCCESS_KEYS)}: set gym.success to "
                "'distance' or 'terminated'."
            )
        return any(map(bool, told))

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """One of `environments.POLICIES` in every episode: (N, A)."""
        if name not in self._policies:
            self._policies[name] = [find_policy(name, episode.env) for episode in self.episodes]
        pairs = zip(self._policies[name], self.episodes, strict=True)
        actions = [np.asarray(policy(episode.env.unwrapped, rng), np.float32) for policy, episode in pairs]
        return np.stack(actions).reshape(len(self), -1)

    def close(self) -> None:
        """Closes the environments, such as their windows and GPU contexts."""
        for episode in self.episodes:
            episode.env.close()
