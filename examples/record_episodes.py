# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Records episodes of a gymnasium environment under a behavior policy into parquet shards.

    python examples/record_episodes.py --env vjepa2_hf/Pushing-v0 --policy drawn_to_block --episodes 560 --output data

Any registered environment works that renders "rgb_array" and takes bounded Box actions (with `--policy uniform` or
`held`; an id `module:Name-v0` imports the module first). A policy of your own is `--policy module:callable`, called as
`policy(env, rng)` for each action; a class is made anew for each episode (vjepa2_hf/environments/policies.py). Record
each environment into its own folder: folders are read with all their subfolders. The same arguments record the same
episodes, whatever `--num_proc`. An episode with states or rewards that are not finite is listed in `skipped.txt`.

`--views top agent` records several cameras: of the package's environments `top` (the whole field) and `agent` (a
close-up that follows the agent), of others the images of a dict observation with these names. The first one is the
column `video`, the others are `video_NAME`, and a world model sees them with `camera: [top, agent]`.

A row is an episode: `video` (h264 mp4), `actions` (T-1 rows of A), `fps`, `episode_id`, `proprio_states` and `states`
(T rows each, entries of the environment's info or of a dict observation; models may see the former, probes are scored
by the latter), and with `--rewards` `rewards` (T-1). With `--labels` it has three labels of the agent for probes:
`place` (cell of a 3 x 3 grid in the last frame), `direction` (of 8, from the first frame to the last) and
`first_motion` (0: it moves relatively more sideways in the first half than in the second; 1: less).

Three columns repeat an episode exactly: `recording` (JSON of `env`, `env_kwargs`, `policy` and the other settings),
`env_seed` and `reset_options` (JSON) of its `reset(seed, options)`. Then step through `actions`, which are what the
environment got: float32, clipped to its bounds.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from datasets import Features, List, Value
from tqdm.auto import tqdm

from vjepa2_hf import environments
from vjepa2_hf.data.cameras import video_features, video_row
from vjepa2_hf.data.files import write_text
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video, resize_frame
from vjepa2_hf.environments.gym_env import (
    is_numbers,
    make_env,
    read_image,
    read_values,
    read_view,
    reset_env,
    step_env,
)
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.settings import exit_on_user_error, one_sentence


logger = logging.getLogger("record_episodes")

# Twice as fast as the default at this size, and deterministic: with the macroblock tree and B-frames of slower
# presets, x264 reads uninitialized memory for images as small as 64 pixels.
PRESET = "ultrafast"
STATE_COLUMNS = {"proprio_states": "proprio_state", "states": "state"}  # default entry of the info


@functools.cache
def shared_env(process: int, env_id: str, settings: str, spec: str) -> gymnasium.Env:
    """One environment per process: it cannot be pickled, and a fork loses its GPU context. `settings` are JSON; `spec`
    is how the id is registered, which may change."""
    return make_env(env_id, **json.loads(settings))


@dataclasses.dataclass
class EpisodeRecorder:
    """Records single episodes; each depends on `seed` and its number alone.

    Args:
        policy: see `environments.find_policy`.
        height: frames are resized to this many pixels, in proportion and with an even width; None keeps them.
        ignore_termination: go on after the environment's own end, until `length` steps are taken.
        state_names: names of the entries that form a column of `STATE_COLUMNS`; a column without names is recorded if
            the environment has its default entry.
        rewards: record rewards. In the package's environments all episodes then have one goal: their reward depends
            on the goal, which images do not show.
        views: cameras; []: the only one, or the environment's rendering.
    """

    env_id: str
    policy: str
    length: int = 40
    seed: int = 0
    height: int | None = None
    ignore_termination: bool = False
    varied_appearance: bool = False
    rewards: bool = False
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    state_names: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    labels: bool = False
    views: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        check_at_least(self, "--", length=1, seed=0, **({} if self.height is None else {"height": 2}))
        self.is_ours = self.env_id in environments.DATA_POLICY
        for name in ("varied_appearance", "labels"):
            if getattr(self, name) and not self.is_ours:
                known = " and ".join(environments.DATA_POLICY)
                raise ValueError(f"--{name} is for {known}, but the environment is {self.env_id!r}.")

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the environment."""
        ours = {"varied_appearance": self.varied_appearance, "terminate_on_success": False} if self.is_ours else {}
        views = {"views": self.views} if self.is_ours and self.views else {}
        return {**ours, **views, **self.env_kwargs}

    @property
    def env(self) -> gymnasium.Env:
        settings = {"max_episode_steps": self.length, **self.settings}
        spec = str(gymnasium.registry.get(self.env_id))
        return shared_env(os.getpid(), self.env_id, json.dumps(settings), spec)

    def describe(self) -> str:
        """JSON of what all episodes have in common."""
        names = ("policy", "length", "seed", "height", "ignore_termination")
        common = {name: getattr(self, name) for name in names}
        return json.dumps({"env": self.env_id, "env_kwargs": self.settings, **common})

    def find_states(self, info: dict[str, Any]) -> dict[str, list[str]]:
        """Names of the entries to record, by column, from the info of a reset."""
        usual = {column: name for column, name in STATE_COLUMNS.items() if name in info and is_numbers(info[name])}
        return {column: [name] for column, name in usual.items()} | self.state_names

    def episode_id(self, number: int) -> str:
        return f"{self.seed}-{number:06d}"

    def try_record(self, number: int) -> dict[str, Any] | ValueError:
        """The row of episode `number`, or what is wrong with it, for example a state that is not finite."""
        try:
            return self.record(number)
        except ValueError as error:
            return error

    def record(self, number: int) -> dict[str, Any]:
        """Records episode `number`; returns its row."""
        env_seed, policy_seed = np.random.SeedSequence([self.seed, number]).generate_state(2)
        env, rng = self.env, np.random.default_rng(policy_seed)
        policy = environments.find_policy(self.policy, env)
        options = self._sample_options(env, rng)
        observation, info = reset_env(env, int(env_seed), options)
        entries, terminated, ended = self.find_states(info), False, False
        views, actions, rewards, states = {}, [], [], {column: [] for column in entries}
        while True:
            for view, frame in self.read_frames(env, observation).items():
                frames = views.setdefault(view, [])
                frames.append(frame)
                if frame.shape != frames[0].shape:
                    raise ValueError(f"The image changed from {frames[0].shape} to {frame.shape}; expected one size.")
            for column, names in entries.items():
                states[column].append(read_values(names, info, observation))
            if ended:
                break
            actions.append(recorded_action(policy(env.unwrapped, rng), env.action_space))
            observation, reward, now_terminated, truncated, info = self._step(env, actions[-1], terminated)
            if self.rewards:
                rewards += read_values(["reward"], {"reward": reward}).tolist()
            terminated = terminated or now_terminated
            ended = truncated or (terminated and not self.ignore_termination)
        fps = float(env.metadata.get("render_fps") or environments.FRAMES_PER_SECOND)
        episode_id = self.episode_id(number)
        videos = {}
        for view, frames in views.items():
            name = f"{episode_id}.mp4" if view is None else f"{episode_id}-{view}.mp4"
            videos[view] = {"bytes": encode_video(frames, fps=fps, preset=PRESET), "path": name}
        row = {**video_row(videos), "actions": actions, "fps": fps, "episode_id": episode_id, **states}
        row |= {"env_seed": int(env_seed), "recording": self.describe()}
        row["reset_options"] = json.dumps({name: values.tolist() for name, values in (options or {}).items()})
        if self.rewards:
            row["rewards"] = rewards
        return row | (motion_labels(np.array(row["states"])) if self.labels else {})

    def _sample_options(self, env: gymnasium.Env, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """Options of the reset in the package's environments; None in others.

        Any free start: sampling a goal takes longer, and a recording needs none.
        """
        if not self.is_ours:
            return None
        start = env.unwrapped.sample_starts(rng, 1)[0]
        goal = env.unwrapped.sample_starts(np.random.default_rng(0), 1)[0] if self.rewards else start
        return {"state": start, "goal": goal}

    def read_frames(self, env: gymnasium.Env, observation: Any) -> dict[str | None, np.ndarray]:
        """The current image of each view; that of a single one needs no name."""
        if isinstance(observation, dict) and self.views:
            frames = {view: read_view(env, observation, view) for view in self.views}
        elif len(self.views) > 1:
            raise ValueError(f"The environment {self.env_id!r} has one image, but --views names {len(self.views)}.")
        else:
            frames = {view: read_image(env, observation) for view in self.views or [None]}
        if self.height is not None:
            frames = {view: resize_frame(frame, self.height) for view, frame in frames.items()}
        return frames

    def _step(self, env: gymnasium.Env, action: np.ndarray, terminated: bool) -> tuple:
        """`step_env`; an error after the environment's own end is a ValueError that names the option."""
        space = env.action_space
        try:
            return step_env(env, replayed_action(action, space))
        except Exception as error:
            if not terminated:
                raise
            raise ValueError(
                f"The environment {self.env_id!r} takes no steps after its own termination "
                f"({type(error).__name__}: {error}); record it without --ignore_termination."
            ) from error


def recorded_action(action: Any, space: gymnasium.spaces.Box) -> np.ndarray:
    """A policy's action as a row holds it: float32 (A,), clipped to the bounds; a ValueError if it is none."""
    try:
        action = np.array(action, np.float32).reshape(space.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The policy returned {action!r:.200}; expected an action of shape {space.shape}.") from error
    if not np.isfinite(action).all():
        raise ValueError(f"The policy returned {action.tolist()}; expected finite numbers.")
    return np.clip(action, space.low, space.high).astype(np.float32).reshape(-1)


def replayed_action(action: np.ndarray, space: gymnasium.spaces.Box) -> np.ndarray:
    """The action that the environment gets for a recorded one."""
    return np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)


LABELS = ("place", "direction", "first_motion")


def motion_labels(states: np.ndarray) -> dict[str, int]:
    """Labels of the agent from states (T, S), which begin with its x and y in field units."""
    positions = states[:, :2].astype(np.float64)
    column, row = (np.clip(positions[-1], 0, 1 - 1e-9) * 3).astype(int)
    moved = positions[-1] - positions[0]
    steps = np.abs(np.diff(positions, axis=0))
    half = len(steps) // 2
    first, second = (part.sum(axis=0) / max(part.sum(), 1e-9) for part in (steps[:half], steps[len(steps) - half :]))
    return {
        "place": int(3 * row + column),
        "direction": int(np.round(np.arctan2(moved[1], moved[0]) / (np.pi / 4))) % 8,
        "first_motion": int(first[0] < second[0]),
    }


def record_episodes(
    recorder: EpisodeRecorder, episodes: int, num_proc: int = 1, skipped: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows of episodes 0 to `episodes` - 1, in order.

    A failure of the first episode is an error; later ones go into `skipped`, reasons by id, if it is given.
    """
    with contextlib.ExitStack() as stack:
        run = map
        if num_proc > 1:
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(num_proc))
            run = functools.partial(pool.map, chunksize=max(1, min(16, episodes // num_proc)))
        for number, row in enumerate(run(recorder.try_record, range(episodes))):
            if not isinstance(row, ValueError):
                yield row
            elif number == 0 or skipped is None:
                raise row
            else:
                skipped[recorder.episode_id(number)] = one_sentence(row)


REPLAY_COLUMNS = {"env_seed": Value("int64"), "reset_options": Value("string"), "recording": Value("string")}


def episode_features(
    states: Collection[str], with_rewards: bool = False, with_labels: bool = False, views: Sequence[str] = ()
) -> Features:
    """Columns of an episode shard with the given ones of `STATE_COLUMNS`, and of several views."""
    numbers = List(List(Value("float32")))
    videos = video_features(video_row(dict.fromkeys(views or [None])))
    columns = {**videos, "actions": numbers, "fps": Value("float32")}
    columns |= {"episode_id": Value("string")} | {column: numbers for column in STATE_COLUMNS if column in states}
    columns |= {name: Value("int64") for name in LABELS} if with_labels else {}
    return Features(columns | ({"rewards": List(Value("float32"))} if with_rewards else {}))


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, help="gymnasium id, for example vjepa2_hf/Pushing-v0")
    names = ", ".join(environments.POLICIES)
    parser.add_argument("--policy", required=True, help=f"one of: {names}; or your own, module:callable")
    parser.add_argument("--episodes", required=True, type=int, help="number of episodes")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--seed", default=0, type=int, help="same seed, same episodes (default 0)")
    parser.add_argument("--length", default=40, type=int, help="steps of an episode (default 40, which is 41 frames)")
    parser.add_argument("--height", type=int, help="resize frames to this height in pixels (default: keep)")
    parser.add_argument("--views", nargs="+", default=[], metavar="NAME", help="cameras to record, such as top agent")
    going_on = "record --length steps, although the environment's own task ends earlier"
    parser.add_argument("--ignore_termination", action="store_true", help=going_on)
    parser.add_argument("--num_shards", default=8, type=int, help="parquet files (default 8)")
    parser.add_argument("--num_proc", default=2, type=int, help="processes (default 2)")
    parser.add_argument("--varied_appearance", action="store_true", help="appearance randomization")
    parser.add_argument("--rewards", action="store_true", help="record rewards")
    for name in STATE_COLUMNS.values():
        text = f"entries of the environment's info that form it (default: {name}, if there is one)"
        parser.add_argument(f"--{name}", nargs="+", metavar="NAME", help=text)
    parser.add_argument("--labels", action="store_true", help="add labels of the agent, for probes")
    parser.add_argument("--env_kwargs", default="{}", help="JSON object of keyword arguments of the environment")
    options = parser.parse_args(arguments)
    check_at_least(options, "--", episodes=1, num_shards=1, num_proc=1)
    try:
        env_kwargs = dict(json.loads(options.env_kwargs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--env_kwargs is {options.env_kwargs!r}, but a JSON object is expected.") from error
    state_names = {column: getattr(options, name) for column, name in STATE_COLUMNS.items() if getattr(options, name)}
    same = ("length", "seed", "height", "ignore_termination", "varied_appearance", "rewards", "labels", "views")
    same = {name: getattr(options, name) for name in same}
    recorder = EpisodeRecorder(options.env, options.policy, env_kwargs=env_kwargs, state_names=state_names, **same)
    # what is wrong shows before any process starts
    environments.find_policy(options.policy, recorder.env)
    observation, info = reset_env(recorder.env, seed=0)
    recorder.read_frames(recorder.env, observation)
    entries = recorder.find_states(info)
    for column, name in STATE_COLUMNS.items():
        if name in info and column not in entries:
            logger.warning("the environment's %r is no array of numbers: no %s are recorded", name, column)
    for names in entries.values():
        read_values(names, info, observation)
    columns = episode_features(entries, options.rewards, options.labels, options.views)
    features = Features(columns | REPLAY_COLUMNS)
    skipped: dict[str, str] = {}
    rows = record_episodes(recorder, options.episodes, min(options.num_proc, options.episodes), skipped)
    progress = tqdm(rows, total=options.episodes, desc="recording", unit="episode")
    write_shards(progress, options.output, features=features, num_shards=min(options.num_shards, options.episodes))
    if skipped:
        lines = [f"{name}\t{reason}\n" for name, reason in skipped.items()]
        write_text(os.path.join(options.output, "skipped.txt"), "".join(lines))
        logger.warning("%d of %d episodes skipped, listed in skipped.txt", len(skipped), options.episodes)


if __name__ == "__main__":
    main()
