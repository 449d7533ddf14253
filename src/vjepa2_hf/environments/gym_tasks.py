"""Tasks of any gymnasium environment for closed-loop evaluation: starts, goals and success criteria.

    tasks = GymTasks("gym_pusht/PushT-v0", GymTasksConfig(goal="policy", ...), seeds=range(10))
    result = run_closed_loop(tasks, plan)       # as `examples/plan.py` does with `gym: {...}`

Letters: N episodes, S state size, A action size, H and W pixels.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np

from ..specs import check_at_least
from .policies import find_policy


GOAL_TRIES = 100  # episodes of the policy until a goal is far enough away
SUCCESS_KEYS = ("success", "is_success")  # of an environment's info


def make_env(env_id: str, **settings: Any) -> gymnasium.Env:
    """Makes a registered environment that renders "rgb_array"; an id `module:Name-v0` imports the module first."""
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **settings)
    except gymnasium.error.NamespaceNotFound as error:
        example = f"of a package that must be imported first, such as stable_worldmodel:{env_id}"
        raise ValueError(
            f"The environment {env_id!r} cannot be made: {error} Give module:id for an environment {example}."
        ) from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"The environment {env_id!r} cannot be made: {error}") from error


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _name(env: gymnasium.Env) -> str:
    return repr(env.spec.id if env.spec is not None else type(env.unwrapped).__name__)


def _old_interface(env: gymnasium.Env, found: str) -> ValueError:
    return ValueError(
        f"{found}: the environment {_name(env)} has the old gym interface; reset(seed, options) must return "
        "(observation, info), and step (observation, reward, terminated, truncated, info)."
    )


def reset_env(env: gymnasium.Env, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, Mapping[str, Any]]:
    """Observation and info of a reset; a ValueError for the old gym interface."""
    try:
        found = env.reset(seed=seed, options=options)
    except TypeError as error:
        missing = re.search(r"unexpected keyword argument '(seed|options)'", str(error))
        if missing is None:
            raise
        raise _old_interface(env, f"reset takes no {missing[1]}") from error
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise _old_interface(env, f"reset returned {_kinds(found)}")
    return found


def step_env(env: gymnasium.Env, action: np.ndarray) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
    """Observation, reward, terminated, truncated and info of a step; a ValueError for the old gym interface."""
    try:
        found = env.step(np.array(action))  # its own copy, which it may change
    except ValueError as error:  # of gymnasium's wrapper for the number of steps
        if "values to unpack (expected 5" not in str(error):
            raise
        raise _old_interface(env, f"step returned other than 5 values ({error})") from error
    if not (isinstance(found, tuple) and len(found) == 5 and isinstance(found[4], Mapping)):
        raise _old_interface(env, f"step returned {_kinds(found)}")
    observation, reward, terminated, truncated, info = found
    return observation, reward, bool(terminated), bool(truncated), info


def _kinds(found: Any) -> str:
    kinds = [type(value).__name__ for value in (found if isinstance(found, tuple) else [found])]
    return f"({', '.join(kinds)})" if isinstance(found, tuple) else kinds[0]


def read_image(env: gymnasium.Env, observation: Any) -> np.ndarray:
    """The current image, uint8 (H, W, 3): a copy of the observation if it is an image, else of the rendering."""
    if _is_image(observation):  # rendering it again would double the cost
        return np.array(observation)  # environments may reuse their buffers
    try:
        image = env.render()
    except gymnasium.error.Error as error:  # for example a rendering library that is not installed
        raise ValueError(f"The environment {_name(env)} cannot render: {error}") from error
    if not _is_image(image):
        raise ValueError(f"The environment {_name(env)} renders no uint8 image (H, W, 3) as 'rgb_array'.")
    return np.array(image)


def is_numbers(value: Any) -> bool:
    """Whether an entry of an info is a number or an array of numbers."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # a list of lists of several lengths
        return False


def read_values(names: Sequence[str], info: dict[str, Any], observation: Any = None) -> np.ndarray:
    """Concatenates the named entries of an info or of a dict observation: finite float32 (S,)."""
    entries, values = {**(observation if isinstance(observation, dict) else {}), **info}, []
    for name in names:
        if name not in entries:
            known = ", ".join(sorted(map(str, entries))) or "nothing"
            raise ValueError(f"The environment reports no {name!r}; it reports {known}.")
        if not is_numbers(entries[name]) or not np.isfinite(entries[name]).all():
            raise ValueError(f"The environment reports {name!r} as {entries[name]!r:.200}; expected finite numbers.")
        values.append(np.asarray(entries[name], np.float32).reshape(-1))
    return np.concatenate(values)


@dataclass
class GymTasksConfig:
    """How episodes of an environment become tasks.

    The environment must be registered with gymnasium (an id `module:Name-v0` imports the module first), render
    "rgb_array" or observe a uint8 image (H, W, 3), take a bounded Box action, and start equally from equal seeds.
    Names below are entries of its `info`, or of a dict observation.
    """

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    max_steps: int | None = None
    """Environment steps of a task; null: the environment's own limit."""
    policy: str = "uniform"
    """Policy that recorded the data: the row "data policy", and the goals of `goal: policy`."""
    goal: Literal["policy", "reset", "info"] = "policy"
    """Image of the goal. policy: after `goal_steps` steps of `policy` from the same start. reset: after
    `reset(seed, options=goal_options)`. info: `goal_image` of the info, or of the environment."""
    goal_steps: int = 20
    goal_options: dict[str, Any] = field(default_factory=dict)
    state: list[str] = field(default_factory=list)
    """Names of the entries that form the state; []: no state, and then no distances."""
    goal_state: list[str] = field(default_factory=list)
    """The same of the goal with `goal: info`; other goals have the state of the environment at that time."""
    distance_columns: list[int] | None = None
    """Columns of the state that enter the Euclidean distance to the goal; null: all."""
    proprio_state: list[str] = field(default_factory=list)
    """Names of the entries that a model with proprio states gets."""
    success: Literal["distance", "info", "terminated"] = "distance"
    """distance: the state is within `success_distance` of the goal's. info: `success` or `is_success` of the info.
    terminated: the episode ends. The last two judge the environment's own goal, so it must be the goal here."""
    success_distance: float | None = None
    """In the unit of the state."""
    min_goal_distance: float = 0.0
    """Goals of the policy that are nearer to the start are sampled again."""
    scores: list[str] = field(default_factory=list)
    """Names of numbers to report after each step, such as [coverage]."""

    def __post_init__(self):
        check_at_least(self, "gym.", max_steps=1, goal_steps=1)
        by_distance, goal = self.success == "distance", self.goal
        if by_distance and not (self.state and (self.success_distance or 0) > 0):
            raise ValueError(
                "gym.success is 'distance', which needs gym.state (names of entries of its info) and "
                "gym.success_distance above 0; or set gym.success to 'info' or 'terminated'."
            )
        if not by_distance and goal == "policy":
            raise ValueError(
                "gym.goal is 'policy', a goal that the environment does not know, but gym.success is "
                f"{self.success!r}, its own judgment: set gym.success to 'distance', or gym.goal to 'reset' or 'info'."
            )
        if goal == "reset" and not self.goal_options:
            raise ValueError("gym.goal is 'reset', but gym.goal_options is empty, so the goal would be the start.")
        if self.goal_state and not (goal == "info" and self.state):
            raise ValueError("gym.goal_state needs gym.goal 'info' and gym.state.")
        if by_distance and goal == "info" and not self.goal_state:
            raise ValueError("gym.goal is 'info' and gym.success 'distance': name the goal's state in gym.goal_state.")
        if self.min_goal_distance and not (goal == "policy" and self.state):
            raise ValueError("gym.min_goal_distance needs gym.goal 'policy' and gym.state.")
        if self.distance_columns == []:
            raise ValueError("gym.distance_columns is empty, so every distance would be 0; null takes all.")


@dataclass
class _Episode:
    """One environment in its task."""

    env: gymnasium.Env

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> None:
        observation, self.info = reset_env(self.env, seed, options)
        self.observation = copy.deepcopy(observation)  # environments may reuse their buffers
        self.ended = False

    def step(self, action: np.ndarray) -> bool:
        """Takes an action, clipped to the bounds; returns whether the environment terminated."""
        space = self.env.action_space
        action = np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)
        observation, _, terminated, truncated, self.info = step_env(self.env, action)
        self.observation = copy.deepcopy(observation)
        self.ended = terminated or truncated
        return terminated

    def values(self, names: Sequence[str]) -> np.ndarray | None:
        """The named entries (S,), or None without names."""
        return read_values(names, self.info, self.observation) if names else None

    def image(self) -> np.ndarray:
        return read_image(self.env, self.observation)


class GymTasks:
    """Tasks of a gymnasium environment, each in its own environment; a `tasks.TaskBatch`.

    Args:
        env_id: id of a registered environment.
        config: goals and success criterion.
        seeds: of the starts, one per task; the seeds of goals are derived from them.

    Raises:
        ValueError: the environment does not fit the config, or no goal is far enough away.
    """

    def __init__(self, env_id: str, config: GymTasksConfig, seeds: Sequence[int]):
        self.config, self.env_id, self.seeds = config, env_id, [int(seed) for seed in seeds]
        limit = {} if config.max_steps is None else {"max_episode_steps": config.max_steps}
        self.episodes = [_Episode(make_env(env_id, **limit, **config.env_kwargs)) for _ in self.seeds]
        first = self.episodes[0].env
        find_policy("uniform", first)  # refuses action spaces other than a bounded Box
        if first.spec.max_episode_steps is None:
            raise ValueError(f"The environment {env_id!r} has no step limit: set gym.max_steps.")
        self.max_steps: int = first.spec.max_episode_steps
        self.action_dim = int(np.prod(first.action_space.shape))
        self.reached = np.zeros(len(self), bool)
        self._policies: dict[str, list] = {}
        images, states = zip(*map(self._start, self.episodes, self.seeds), strict=True)
        self.goal_images = np.stack(images)
        self.goal_states = None if states[0] is None else np.stack(states)
        self.scores = {name: np.full(len(self), np.nan) for name in config.scores}

    def __len__(self) -> int:
        return len(self.seeds)

    def _start(self, episode: _Episode, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Brings an episode to its start; returns the image (H, W, 3) and the state (S,) or None of its goal."""
        episode.reset(seed)
        if self.config.goal == "info":
            image = episode.info.get("goal_image", getattr(episode.env.unwrapped, "goal_image", None))
            if not _is_image(image):
                raise ValueError(
                    f"The environment {self.env_id!r} has no goal_image, neither in its info nor as an attribute: "
                    "set gym.goal to 'policy' or 'reset'."
                )
            return np.array(image), episode.values(self.config.goal_state)
        first = episode.image()
        if self.config.goal == "reset":
            episode.reset(seed, self.config.goal_options)
        else:
            self._play_to_goal(episode, seed)
        goal = episode.image(), episode.values(self.config.state)
        episode.reset(seed)
        if not np.array_equal(first, episode.image()):
            raise ValueError(f"The environment {self.env_id!r} starts differently from the same seed ({seed}).")
        return goal

    def _play_to_goal(self, episode: _Episode, seed: int) -> None:
        """Runs `goal_steps` steps of the policy, until the episode ends far enough from its start."""
        start = episode.values(self.config.state)
        for attempt in range(GOAL_TRIES):
            rng = np.random.default_rng([seed, attempt])
            policy = find_policy(self.config.policy, episode.env)
            episode.reset(seed)
            for _ in range(self.config.goal_steps):
                if episode.ended:
                    break
                episode.step(np.asarray(policy(episode.env.unwrapped, rng)))
            if self._distance(episode.values(self.config.state), start) >= self.config.min_goal_distance:
                return
        raise ValueError(
            f"No goal is gym.min_goal_distance={self.config.min_goal_distance} away from the start of seed {seed} in "
            f"{GOAL_TRIES} trials of {self.config.goal_steps} steps of the policy {self.config.policy!r}."
        )

    def _distance(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(..., S), (..., S) -> (...)."""
        columns, size = self.config.distance_columns, states.shape[-1]
        columns = list(range(size)) if columns is None else columns
        if not all(-size <= column < size for column in columns):
            raise ValueError(f"gym.distance_columns are {columns}, but the state has {size} numbers.")
        if goals.shape[-1] != size:
            raise ValueError(f"gym.goal_state has {goals.shape[-1]} numbers, but gym.state has {size}.")
        return np.linalg.norm((states - goals)[..., columns], axis=-1)

    @property
    def active(self) -> np.ndarray:
        return ~self.reached & ~np.array([episode.ended for episode in self.episodes])

    def _values(self, names: Sequence[str]) -> np.ndarray | None:
        return np.stack([episode.values(names) for episode in self.episodes]) if names else None

    @property
    def states(self) -> np.ndarray | None:
        return self._values(self.config.state)

    @property
    def proprio_states(self) -> np.ndarray | None:
        return self._values(self.config.proprio_state)

    @property
    def distances(self) -> np.ndarray | None:
        """To the goals, in the state's units (N,)."""
        return None if self.goal_states is None else self._distance(self.states, self.goal_states)

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        return np.stack([self.episodes[i].image() for i in (range(len(self)) if episodes is None else episodes)])

    def step(self, actions: np.ndarray) -> None:
        """Acts in the active episodes; the others do not change."""
        actions = np.asarray(actions, np.float32)
        if actions.shape != (len(self), self.action_dim):
            raise ValueError(f"The actions have shape {actions.shape}; expected ({len(self)}, {self.action_dim}).")
        succeeded = np.zeros(len(self), bool)
        self.scores = {name: values.copy() for name, values in self.scores.items()}
        for i in np.flatnonzero(self.active):
            terminated = self.episodes[i].step(actions[i])
            succeeded[i] = self._succeeded(self.episodes[i], terminated)
            for name in self.scores:
                self.scores[name][i], *others = self.episodes[i].values([name])
                if others:
                    raise ValueError(f"The score {name!r} of {self.env_id!r} is {1 + len(others)} numbers, not one.")
        if self.config.success == "distance":
            succeeded = self.distances <= self.config.success_distance
        self.reached = self.reached | succeeded

    def _succeeded(self, episode: _Episode, terminated: bool) -> bool:
        """The environment's own judgment."""
        if self.config.success == "terminated":
            return terminated
        reported = [episode.info[name] for name in SUCCESS_KEYS if name in episode.info]
        if self.config.success == "info" and not reported:
            raise ValueError(
                f"The info of {self.env_id!r} has neither {' nor '.join(SUCCESS_KEYS)}: set gym.success to "
                "'distance' or 'terminated'."
            )
        return any(map(bool, reported))

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        if name not in self._policies:
            self._policies[name] = [find_policy(name, episode.env) for episode in self.episodes]
        pairs = zip(self._policies[name], self.episodes, strict=True)
        return np.float32([policy(episode.env.unwrapped, rng) for policy, episode in pairs]).reshape(len(self), -1)

    def close(self) -> None:
        """Closes the environments with their windows and GPU contexts."""
        for episode in self.episodes:
            episode.env.close()
