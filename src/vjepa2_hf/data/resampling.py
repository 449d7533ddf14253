"""Episodes at a lower frame rate, whose actions lead from each kept frame to the next.

Legend: T frames, K kept frames, A action size.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Features, List, Value
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from ..configuration_vjepa2 import check
from ..pose import pose_difference
from ..specs import check_choice, check_count
from .cameras import camera_names, take_frames, video_features, video_row
from .episodes import EnoughEpisodes, read_episodes
from .importers import shrink_frame
from .lerobot import BAD_EPISODE, check_fps, describe
from .shards import write_shards
from .video_writing import encode_video


POSE_SIZE = 7  # xyz, Euler angles xyz, gripper


@dataclass
class ResampleOptions:
    """How episodes are resampled and stored."""

    fps: float
    """Frames per second of the result."""
    actions: Literal["sum", "mean", "last", "pose_delta"]
    """The action between two kept frames. sum: of displacements. mean: of velocities. last: of absolute targets.
    pose_delta: the change of the proprio state from one kept frame to the next, see `vjepa2_hf.pose`."""
    camera: str | list[str] | None = None
    """Of episodes with several; a list keeps several."""
    actions_key: list[str] | None = None
    """Features of a LeRobot dataset, concatenated; None: the usual ones."""
    states_key: list[str] | None = None
    height: int | None = None
    """Taller frames are resized to this many pixels."""
    crf: int = 10
    """x264's quality, 0 (best) to 51."""
    num_shards: int = 8
    max_episodes: int | None = None

    def __post_init__(self):
        check_fps(self.fps)
        names = camera_names(self.camera)
        self.camera = names[0] if len(names) == 1 else names
        check_choice("actions", self.actions, ("sum", "mean", "last", "pose_delta"))
        for name, least in (("num_shards", 1), ("height", 2), ("crf", 0), ("max_episodes", 1)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)

    @property
    def columns(self) -> dict[str, list[str]]:
        """The keys of actions and states that are named, by column."""
        named = {"actions": self.actions_key, "proprio_states": self.states_key}
        return {name: keys for name, keys in named.items() if keys}


def kept_frames(num_frames: int, source_fps: float, fps: float) -> np.ndarray:
    """Indices (K,) of the frames nearest to the times 0, 1/fps, 2/fps, ... of an episode."""
    ratio = source_fps / fps
    check(ratio > 0.99, f"it has {source_fps:g} frames per second, but {fps:g} were asked for: frames would repeat")
    ratio = 1.0 if ratio < 1.01 else ratio
    count = math.floor((num_frames - 1) / ratio + 1e-6) + 1
    kept = np.floor(np.arange(count) * ratio + 0.5).astype(np.int64)
    return kept[kept < num_frames]


def resample_episode(episode: dict[str, Any], fps: float, actions: str) -> dict[str, Any]:
    """An episode of `read_episodes` at `fps`: columns as they are at the kept frames, rewards summed between them."""
    count = len(episode["actions"]) + 1
    kept = kept_frames(count, episode["fps"], fps)
    check(len(kept) > 1, f"it lasts {(count - 1) / episode['fps']:.3g} s, less than one step")
    states = {name: episode[name] for name in ("proprio_states", "states")}
    states = {name: None if values is None else values[kept] for name, values in states.items()}
    rewards = episode["rewards"]
    return {
        **episode,
        **states,
        "frames": take_frames(episode["frames"], kept),
        "actions": _join_actions(episode["actions"], kept, states["proprio_states"], actions),
        "rewards": None if rewards is None else np.add.reduceat(rewards[: kept[-1]], kept[:-1]),
        "fps": fps,
    }


def _join_actions(actions: np.ndarray, kept: np.ndarray, states: np.ndarray | None, how: str) -> np.ndarray:
    """Actions (T-1, A) -> (K-1, A); of "pose_delta", the changes of the states (K, 7)."""
    if how == "pose_delta":
        found = None if states is None else states.shape[1]
        needed = f"a pose has {POSE_SIZE} (xyz, Euler angles xyz, gripper): name the features with --states_key"
        check(found == POSE_SIZE, f"its proprio states have {found} numbers, but {needed}")
        poses = torch.from_numpy(states.astype(np.float64))
        return pose_difference(poses[:-1], poses[1:]).float().numpy()
    if how == "last":
        return actions[kept[1:] - 1]
    sums = np.add.reduceat(actions[: kept[-1]].astype(np.float64), kept[:-1])
    return (sums / np.diff(kept)[:, None] if how == "mean" else sums).astype(np.float32)


class _ResampledRows(IterableDataset):
    """Rows of resampled episodes; each DataLoader worker reads its own. Its last item are the `skipped` ones."""

    def __init__(self, data: str | os.PathLike, options: ResampleOptions):
        self.data, self.options = data, options

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        options, positions, skipped = self.options, itertools.count(), {}

        def wanted(_: str) -> bool:
            position = next(positions)
            if position == options.max_episodes:
                raise EnoughEpisodes
            return position % workers == mine

        how = {"camera": options.camera, "columns": options.columns, "wanted": wanted, "skipped": skipped}
        with contextlib.suppress(EnoughEpisodes):
            for episode in read_episodes(self.data, **how):
                try:
                    yield _to_row(resample_episode(episode, options.fps, options.actions), options)
                except BAD_EPISODE as error:
                    skipped[episode["episode_id"]] = describe(error)
        yield {"skipped": skipped}


def _to_row(episode: dict[str, Any], options: ResampleOptions) -> dict[str, Any]:
    frames, videos = episode.pop("frames"), {}
    for name, view in (frames if isinstance(frames, dict) else {None: frames}).items():
        small = (shrink_frame(frame, options.height) for frame in view)
        videos[name] = {"bytes": encode_video(small, options.fps, crf=options.crf), "path": None}
    return {**video_row(videos), **{name: value for name, value in episode.items() if value is not None}}


def _features_of(row: dict[str, Any]) -> Features:
    numbers = List(List(Value("float32")))
    arrays = {"actions": numbers, "proprio_states": numbers, "states": numbers, "rewards": List(Value("float32"))}
    known = {**video_features(row), **arrays, "fps": Value("float32"), "episode_id": Value("string")}
    return Features({name: feature for name, feature in known.items() if name in row} | {"task": Value("string")})


def resample_episodes(
    data: str | os.PathLike, output_dir: str | os.PathLike, options: ResampleOptions, num_proc: int = 0
) -> int:
    """Writes all valid episodes of `data` (see `read_episodes`) as shards at `options.fps`; returns their number.

    Invalid episodes, and episodes with other columns than the first valid one, are listed in `skipped.txt`. `num_proc`
    are processes that read and encode; 0: this one.
    """
    skipped: dict[str, str] = {}

    def rows() -> Iterator[dict[str, Any]]:
        columns = None
        for row in tqdm(
            DataLoader(_ResampledRows(data, options), batch_size=None, num_workers=num_proc), unit="episode"
        ):
            if "skipped" in row:
                skipped.update(row["skipped"])
                continue
            found = {name for name in row if name != "task"}
            columns = columns or found
            if found == columns:
                yield {"task": None, **row}
            else:
                skipped[row["episode_id"]] = f"it has the columns {sorted(found)}, but the first has {sorted(columns)}"

    return write_shards(rows(), output_dir, _features_of, options.num_shards, skipped)
