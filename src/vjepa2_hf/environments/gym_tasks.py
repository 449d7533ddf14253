"""Tasks of any gymnasium environment for closed-loop evaluation: starts, goals and success criteria.

    tasks = GymTasks("gym_pusht/PushT-v0", GymTasksConfig(goal="policy", ...), seeds=range(10))
    result = run_closed_loop(tasks, plan)       # as `examples/plan.py` does with `gym: {...}`

Letters: N episodes, S state size, A action size, H and W pixels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np

from ..data.video_writing import resize_frame
from ..specs import check_at_least, check_count, check_known
from .dataset_goals import COLUMNS, RecordedPair, bring_to, check_arrival
from .gym_env import is_image, make_env, read_image, read_values, reset_env, step_env
from .policies import find_policy
from .success import SuccessLevel, SuccessTracker, check_hold


GOAL_TRIES = 100  # episodes of the policy until a goal is far enough away
SUCCESS_KEYS = ("success", "is_success")  # of an environment's info


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
    height: int | None = None
    """Images are resized to this many pixels, as by `record_episodes.py --height`; null: as the environment renders
    them, and with `goal: dataset` as they were recorded."""
    ignore_termination: bool = False
    """Go on after the environment's own end, as when it is about another goal, until the steps are used up."""
    policy: str | None = None
    """Policy that recorded the data: the row "data policy", and the goals of `goal: policy`. null: uniform; with
    `goal: dataset` the one that the recording names."""
    goal: Literal["policy", "reset", "info", "dataset"] = "policy"
    """Image of the goal. policy: after `goal_steps` steps of `policy` from the same start. reset: after
    `reset(seed, options=goal_options)`. info: `goal_image` of the info, or of the environment. dataset: start and goal
    are frames t and t + `goal_offset` of held-out episodes of `data`, one random t per episode."""
    goal_steps: int = 20
    goal_options: dict[str, Any] | list[dict[str, Any]] = field(default_factory=dict)
    """Options of all tasks, or a list, of which the task of seed s takes item s modulo its length."""
    goal_image: str = "goal_image"
    """Name of the image with `goal: info`: an entry of the info, or an attribute of the environment."""
    data: str | None = None
    """Episodes for `goal: dataset`: a folder that `record_episodes.py` wrote, or any other episodes."""
    goal_offset: int | list[int] = 25
    """Steps from start to goal with `goal: dataset`; for a list, every method has a row for each offset."""
    budget: int | str = "2x"
    """Steps of a task with `goal: dataset`: a number, or "2x": twice `goal_offset`."""
    reset_option: dict[str, str] = field(default_factory=dict)
    """Option of the environment's reset that sets its state, and the column that holds it, such as {state: states};
    {}: the recorded actions are repeated up to the frame. Both are checked against the recorded image and state."""
    validation_fraction: float | None = None
    """Fraction of `data` that training held out, by a hash of ids; null: of the runs of the models."""
    state: list[str] = field(default_factory=list)
    """Names of the entries that form the state; []: no state, and then no distances. Attributes of the environment
    do, too."""
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
        if self.policy is None and self.goal != "dataset":
            self.policy = "uniform"
        check_at_least(self, "gym.", max_steps=1, goal_steps=1, height=2)
        by_distance, goal = self.success == "distance", self.goal
        self._check_dataset()
        if not by_distance and goal in ("policy", "dataset"):
            raise ValueError(
                f"gym.goal is {goal!r}, a goal that the environment does not know, but gym.success is "
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
        if goal != "info" and self.goal_image != "goal_image":
            raise ValueError(f"gym.goal_image is {self.goal_image!r}, which needs gym.goal 'info', not {goal!r}.")
        if self.ignore_termination and self.success == "terminated":
            raise ValueError("gym.ignore_termination leaves out what gym.success 'terminated' judges: choose one.")

    def _check_dataset(self) -> None:
        if (self.goal == "dataset") != (self.data is not None):
            raise ValueError(f"gym.goal is {self.goal!r} and gym.data {self.data!r}: 'dataset' and data go together.")
        if self.data is None:
            return
        for offset in self.offsets:
            check_count("gym.goal_offset", offset)
        if not self.offsets:
            raise ValueError("gym.goal_offset is an empty list; give one offset or several.")
        if self.max_steps is not None:
            raise ValueError("gym.max_steps and gym.goal 'dataset' are both set: set gym.budget instead.")
        if self.budget != "2x":
            check_count("gym.budget ('2x' is possible, too)", self.budget)
        for column in self.reset_option.values():
            check_known(column, COLUMNS, "column in gym.reset_option")

    def make_levels(self, levels: dict[str, SuccessLevel] | None) -> dict[str, SuccessLevel]:
        """The levels of success by distance: those given, or the one of this config; {} for other judgments."""
        if self.success != "distance":
            if levels:
                raise ValueError(f"success_levels judge by distance, not by {self.success!r}: leave out gym.success.")
            return {}
        if not self.state or not (levels or (self.success_distance or 0) > 0):
            raise ValueError(
                "gym.success is 'distance', which needs gym.state (names of entries of its info) and "
                "gym.success_distance above 0 or success_levels; or set gym.success to 'info' or 'terminated'."
            )
        levels = levels or {"success": SuccessLevel(self.success_distance)}
        return {name: level.with_columns(self.distance_columns) for name, level in levels.items()}

    @property
    def offsets(self) -> list[int]:
        """`goal_offset` as a list."""
        return self.goal_offset if isinstance(self.goal_offset, list) else [self.goal_offset]

    def options_of(self, seed: int) -> dict[str, Any]:
        """`goal_options` of a task."""
        given = self.goal_options
        return given[seed % len(given)] if isinstance(given, list) else given


@dataclass
class _Episode:
    """One environment in its task."""

    env: gymnasium.Env
    ignore_termination: bool = False
    height: int | None = None

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> None:
        observation, self.info = reset_env(self.env, seed, options)
        self.observation = copy.deepcopy(observation)  # environments may reuse their buffers
        self.ended = False

    def step(self, action: np.ndarray) -> bool:
        """Takes an action, clipped to the bounds; returns whether the environment terminated."""
        space = self.env.action_space
        action = np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)
        observation, _, terminated, truncated, self.info = step_env(self.env, action)
        self.observation = copy.deepcopy(observation)
        self.ended = truncated or (terminated and not self.ignore_termination)
        return terminated

    def values(self, names: Sequence[str]) -> np.ndarray | None:
        """The named entries or attributes (S,), or None without names."""
        env = self.env.unwrapped
        attributes = {name: getattr(env, name) for name in names if hasattr(env, name)}
        return read_values(names, {**attributes, **self.info}, self.observation) if names else None

    def image(self) -> np.ndarray:
        return self.resize(read_image(self.env, self.observation))

    def resize(self, image: np.ndarray) -> np.ndarray:
        return image if self.height in (None, len(image)) else resize_frame(image, self.height)


class GymTasks:
    """Tasks of a gymnasium environment, each in its own environment; a `tasks.TaskBatch`.

    Args:
        env_id: id of a registered environment.
        config: goals and success criterion.
        seeds: of the starts, one per task; the seeds of goals are derived from them.
        pairs: with `goal: dataset` start and goal of each task, from `dataset_goals.read_pairs`.
        levels: of success by name, in place of `config.success_distance`; a task is active until it has reached all.

    Raises:
        ValueError: the environment does not fit the config, or no goal is far enough away.
    """

    def __init__(
        self,
        env_id: str,
        config: GymTasksConfig,
        seeds: Sequence[int],
        pairs: Sequence[RecordedPair] | None = None,
        levels: dict[str, SuccessLevel] | None = None,
    ):
        judged = config.make_levels(levels)
        shown = SuccessLevel(1.0, config.distance_columns)
        self._measure = next(iter(judged.values()), shown) if config.distance_columns is None else shown
        self.config, self.env_id, self.seeds, self.pairs = config, env_id, [int(seed) for seed in seeds], pairs
        limit = {} if config.max_steps is None else {"max_episode_steps": config.max_steps}
        height = config.height
        if pairs is not None:
            limit = {"max_episode_steps": -1}  # none: repeated actions count, too; the closed loop ends the task
            height = pairs[0].images.shape[1] if height is None else height
        envs = [make_env(env_id, **limit, **config.env_kwargs) for _ in self.seeds]
        self.episodes = [_Episode(env, config.ignore_termination, height) for env in envs]
        first = envs[0]
        find_policy("uniform", first)  # refuses action spaces other than a bounded Box
        self.max_steps: int = self._count_steps(first)
        check_hold(judged, self.max_steps)
        self.action_dim = int(np.prod(first.action_space.shape))
        self._policies: dict[str, list] = {}
        numbers = range(len(self.seeds))
        images, states = zip(*map(self._start, self.episodes, self.seeds, numbers), strict=True)
        self.goal_images = np.stack(images)
        self.goal_states = None if states[0] is None else np.stack(states)
        self.scores = {name: np.full(len(self), np.nan) for name in config.scores}
        self.reached, self.ended_early, self.steps_taken = np.zeros(len(self), bool), np.zeros(len(self), bool), 0
        self.solved = np.array([self._reported(episode) is True for episode in self.episodes])
        self.tracker, self.several_levels = None, bool(levels)
        if judged:
            sizes = self.goal_states.shape[-1], self.states.shape[-1]
            if sizes[0] != sizes[1]:
                raise ValueError(f"gym.goal_state has {sizes[0]} numbers, but gym.state has {sizes[1]}.")
            self.tracker = SuccessTracker(judged, self.states, self.goal_states)
            self.solved = self.tracker.solved

    def _count_steps(self, env: gymnasium.Env) -> int:
        """Steps of a task."""
        if self.pairs is not None:
            return 2 * self.pairs[0].offset if self.config.budget == "2x" else int(self.config.budget)
        if env.spec.max_episode_steps is None:
            raise ValueError(f"The environment {self.env_id!r} has no step limit: set gym.max_steps.")
        return env.spec.max_episode_steps

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Where each task comes from."""
        pairs = [{}] * len(self) if self.pairs is None else [pair.source for pair in self.pairs]
        return [{"seed": seed, **pair} for seed, pair in zip(self.seeds, pairs, strict=True)]

    def _start(self, episode: _Episode, seed: int, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Brings an episode to its start; returns the image (H, W, 3) and the state (S,) or None of its goal."""
        if self.pairs is not None:
            return self._start_of_pair(episode, seed, self.pairs[number])
        episode.reset(seed)
        if self.config.goal == "info":
            name = self.config.goal_image
            image = episode.info.get(name, getattr(episode.env.unwrapped, name, None))
            if not is_image(image):
                raise ValueError(
                    f"The environment {self.env_id!r} has no image {name}, neither in its info nor as an attribute: "
                    "set gym.goal_image to its name, or gym.goal to 'policy', 'reset' or 'dataset'."
                )
            return episode.resize(np.array(image)), episode.values(self.config.goal_state)
        first = episode.image()
        if self.config.goal == "reset":
            episode.reset(seed, self.config.options_of(seed))
        else:
            self._play_to_goal(episode, seed)
        goal = episode.image(), episode.values(self.config.state)
        episode.reset(seed)
        if not np.array_equal(first, episode.image()):
            raise ValueError(f"The environment {self.env_id!r} starts differently from the same seed ({seed}).")
        return goal

    def _start_of_pair(self, episode: _Episode, seed: int, pair: RecordedPair) -> tuple[np.ndarray, np.ndarray | None]:
        """The same, of recorded frames; the images are rendered, so that a goal has no trace of video encoding."""
        for which in (1, 0):
            bring_to(episode, pair, which, seed, self.config.reset_option)
            state = episode.values(self.config.state)
            check_arrival(episode, pair, which, state)
            if which:
                goal = episode.image(), state
        if episode.ended:
            raise ValueError(
                f"Episode {pair.episode_id!r} has ended by frame {pair.frame}, where its task starts: set "
                "gym.ignore_termination=true."
            )
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
            if not self.config.min_goal_distance:
                return
            if self._measure.distances(episode.values(self.config.state), start) >= self.config.min_goal_distance:
                return
        raise ValueError(
            f"No goal is gym.min_goal_distance={self.config.min_goal_distance} away from the start of seed {seed} in "
            f"{GOAL_TRIES} trials of {self.config.goal_steps} steps of the policy {self.config.policy!r}."
        )

    @property
    def active(self) -> np.ndarray:
        """See `TaskBatch`: bool (N,)."""
        return ~(self.tracker.finished if self.tracker else self.reached) & ~self.solved & ~self._ended

    @property
    def _ended(self) -> np.ndarray:
        return np.array([episode.ended for episode in self.episodes])

    @property
    def levels(self) -> dict[str, np.ndarray]:
        """See `TaskBatch`: bool (N,) by name."""
        return dict(self.tracker.reached) if self.several_levels else {}

    def _values(self, names: Sequence[str]) -> np.ndarray | None:
        return np.stack([episode.values(names) for episode in self.episodes]) if names else None

    @property
    def states(self) -> np.ndarray | None:
        """See `TaskBatch`: float32 (N, S), or `None`."""
        return self._values(self.config.state)

    @property
    def proprio_states(self) -> np.ndarray | None:
        """See `TaskBatch`: float32 (N, S), or `None`."""
        return self._values(self.config.proprio_state)

    @property
    def distances(self) -> np.ndarray | None:
        """To the goals, in the state's units (N,)."""
        return None if self.goal_states is None else self._measure.distances(self.states, self.goal_states)

    def render(self, episodes: np.ndarray | None = None) -> np.ndarray:
        """Current images of the given tasks (indices; default all): uint8 (n, H, W, 3)."""
        return np.stack([self.episodes[i].image() for i in (range(len(self)) if episodes is None else episodes)])

    def observe(self, episodes: np.ndarray, goals: bool = False) -> dict[str, np.ndarray]:
        """See `TaskBatch`: one camera without a name."""
        return {"": self.goal_images[episodes] if goals else self.render(episodes)}

    def step(self, actions: np.ndarray) -> None:
        """Takes one action (N, A) in the active episodes; the others do not change."""
        actions = np.asarray(actions, np.float32)
        if actions.shape != (len(self), self.action_dim):
            raise ValueError(f"The actions have shape {actions.shape}; expected ({len(self)}, {self.action_dim}).")
        succeeded, active = np.zeros(len(self), bool), self.active
        self.steps_taken += 1
        self.scores = {name: values.copy() for name, values in self.scores.items()}
        for i in np.flatnonzero(active):
            terminated = self.episodes[i].step(actions[i])
            succeeded[i] = self._succeeded(self.episodes[i], terminated)
            for name in self.scores:
                self.scores[name][i], *others = self.episodes[i].values([name])
                if others:
                    raise ValueError(f"The score {name!r} of {self.env_id!r} is {1 + len(others)} numbers, not one.")
        if self.tracker:
            last = self._ended | (self.steps_taken == self.max_steps)
            self.tracker.update(self.states, self.goal_states, active, last)
            self.reached = self.tracker.first
        else:
            self.reached = self.reached | (succeeded & ~self.solved)
        if self.steps_taken < self.max_steps:
            self.ended_early |= self._ended & ~self.reached & ~self.solved

    def _reported(self, episode: _Episode) -> bool | None:
        """Success as the info reports it; None if it does not."""
        reported = [episode.info[name] for name in SUCCESS_KEYS if name in episode.info]
        return any(map(bool, reported)) if reported else None

    def _succeeded(self, episode: _Episode, terminated: bool) -> bool:
        """The environment's own judgment."""
        if self.config.success == "terminated":
            return terminated
        reported = self._reported(episode)
        if self.config.success == "info" and reported is None:
            raise ValueError(
                f"The info of {self.env_id!r} has neither {' nor '.join(SUCCESS_KEYS)}: set gym.success to "
                "'distance' or 'terminated'."
            )
        return bool(reported)

    def policy_actions(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """Actions (N, A) of one of `policies.POLICIES`, or of `module:callable`."""
        if name not in self._policies:
            self._policies[name] = [find_policy(name, episode.env) for episode in self.episodes]
        pairs = zip(self._policies[name], self.episodes, strict=True)
        return np.float32([policy(episode.env.unwrapped, rng) for policy, episode in pairs]).reshape(len(self), -1)

    def close(self) -> None:
        """Closes the environments with their windows and GPU contexts."""
        for episode in self.episodes:
            episode.env.close()
