"""Episodes for the world model, read from shards or LeRobot datasets, and their split.

Legend: T frames, A action size, S proprio size.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..configuration_vjepa2 import check
from ..video_io import VideoDecodeError, VideoReader
from .lerobot import LeRobotDataset, open_lerobot
from .shards import ShardSource, open_stream


@dataclass(frozen=True)
class EpisodeSource:
    """Episodes and their weight in a mixture."""

    path: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    weight: float = 1.0
    """Fraction of the sampled windows, relative to the other sources."""
    camera: str | None = None
    """Which of several cameras: of a LeRobot dataset, or the key of the images in HDF5 and npz files."""
    fps: float | None = None
    """Frames per second of HDF5 and npz files, which are imported as shards first."""

    def __post_init__(self):
        check(self.weight > 0, f"The weight of {self.path!r} is {self.weight}, but it must be positive.")


def read_episodes(
    data: str | os.PathLike,
    frame_skip: int = 1,
    max_episodes: int | None = None,
    camera: str | None = None,
    wanted: Callable[[str], bool] | None = None,
    skipped: dict[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Episodes in the order of the shards or of the LeRobot dataset, with every `frame_skip`-th frame.

    Episodes with an unreadable video, or with less than one step, are skipped and logged.

    Args:
        data: as for `ShardSource`, or a LeRobot v3 dataset, a folder or an id of the Hub (its files are downloaded
            when they are reached).
        frame_skip: k; the k actions between two kept frames are concatenated to size k*A in order of time. An
            incomplete last step is dropped.
        max_episodes: maximum number of episodes.
        camera: of a LeRobot dataset, see `LeRobotDataset`.
        wanted: called with each `episode_id` in order, before anything is decoded; False leaves the episode out, and
            it does not count for `max_episodes`.
        skipped: filled with reasons by name of the skipped episodes.

    Yields:
        `frames` uint8 (T, H, W, 3), `actions` float32 (T-1, k*A) in environment units, `proprio_states` float32
        (T, S) or None, `states` likewise (the environment's true states, used for evaluation only), `rewards` float32
        (T-1,) per step (summed over skipped frames) or None, `task` (text or None), `fps` of the kept frames,
        `episode_id`. The id of a row without `episode_id` is its file within `data` and its index there.

    Raises:
        ValueError: an episode's actions, states or rewards have a wrong length, another size than those before, or
            values that are not finite; there is no episode, or no such camera.
    """
    check(frame_skip > 0, f"frame_skip is {frame_skip}, but it must be at least 1 (every frame).")
    enough = max_episodes is None or max_episodes > 0
    check(enough, f"max_episodes is {max_episodes}, but at least 1 must be read; None reads all.")
    source = _open_source(data, camera)
    source.skipped = source.skipped if skipped is None else skipped
    count, sizes = 0, ()
    for row in _shard_episodes(source, wanted) if isinstance(source, ShardSource) else source.episodes(wanted):
        try:
            episode = _read_episode(row, frame_skip)
        except (VideoDecodeError, OSError) as error:
            source.skip(row["episode_id"], str(error))
            continue
        sizes = _check_sizes(episode, sizes)
        count += 1
        yield episode
        if count == max_episodes:
            return  # before the next one is read or downloaded
    if not count and wanted is None:
        reasons = [f"{name}: {reason}" for name, reason in source.skipped.items()]
        raise ValueError(f"No episode could be read from {source.data!r}{f' ({reasons[0]})' if reasons else ''}.")


def episode_ids(data: str | os.PathLike, camera: str | None = None) -> Iterator[str]:
    """The `episode_id` of every episode of `read_episodes`, unreadable ones included, without decoding."""
    source = _open_source(data, camera)
    yield from (name for name, _ in _named_rows(source)) if isinstance(source, ShardSource) else source.names()


class _EnoughEpisodes(Exception):  # noqa: N818, no error
    """Ends the reading."""


class EpisodeStream(torch.utils.data.IterableDataset):
    """Episodes for a cache, decoded and cropped, for any number of processes and DataLoader workers.

    Each is a dict: `frames` uint8 (T, C, H, W), cropped by the processor and not normalized; `actions` float32
    (T-1, A) and, where the data has them, `proprio_states` float32 (T, S) and `rewards` float32 (T-1, 1); `fps`;
    `episode_id`. If episodes were unreadable, the last item is `{"skipped": reasons by name}`. Only the first
    `max_episodes` of the source are read, without the ids in `done`.
    """

    def __init__(
        self,
        source: EpisodeSource,
        processor: Any,
        max_episodes: int | None = None,
        done: Collection[str] = (),
        rank: int = 0,
        world_size: int = 1,
    ):
        self.source, self.processor, self.max_episodes, self.done = source, processor, max_episodes, done
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        positions, skipped = itertools.count(), {}

        def wanted(name: str) -> bool:
            position = next(positions)
            if position == self.max_episodes:
                raise _EnoughEpisodes
            mine = position % (self.world_size * workers) == self.rank * workers + number
            return mine and name not in self.done

        with contextlib.suppress(_EnoughEpisodes):
            episodes = read_episodes(self.source.path, camera=self.source.camera, wanted=wanted, skipped=skipped)
            yield from map(self._cropped, episodes)
        if skipped:
            yield {"skipped": skipped}

    def _cropped(self, episode: dict[str, Any]) -> dict[str, Any]:
        arrays = {name: episode[name] for name in ("actions", "proprio_states", "rewards")}
        if arrays["rewards"] is not None:
            arrays["rewards"] = arrays["rewards"][:, None]
        cropped = self.processor(episode["frames"], do_rescale=False, do_normalize=False, return_tensors="pt")
        return {
            "frames": cropped["pixel_values_videos"][0],
            **{name: torch.from_numpy(np.array(array)) for name, array in arrays.items() if array is not None},
            "fps": episode["fps"],
            "episode_id": episode["episode_id"],
        }


def _open_source(data: str | os.PathLike, camera: str | None) -> ShardSource | LeRobotDataset:
    lerobot = open_lerobot(data, camera)
    if lerobot is None and camera is not None:
        ShardSource(data)  # refuses what does not exist
        raise ValueError(f"camera={camera!r} is for LeRobot datasets, but {os.fspath(data)!r} is not one.")
    return lerobot or ShardSource(data)


def _check_sizes(episode: dict[str, Any], sizes: tuple) -> tuple:
    """The column sizes of the episodes so far; refuses an episode with others. Only `states` may be missing."""
    columns = (episode[name] for name in ("actions", "proprio_states", "states"))
    *found, states = (None if values is None else values.shape[1] for values in columns)
    *before, known = sizes or (*found, states)
    message = f"has (action, proprio, state) sizes {(*found, states)}, but the ones before had {(*before, known)}"
    fits = found == before and (states == known or None in (states, known))
    check(fits, f"Episode {episode['episode_id']} {message}: keep each environment's episodes in a separate folder.")
    return (*found, known or states)


def _named_rows(source: ShardSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, row) of all shards; the names do not change when the data is moved."""
    for _, shard, row_number, row in open_stream(source, seed=None):
        path = source.shards[shard]
        inside = os.path.relpath(path, source.data) if os.path.isdir(source.data) else os.path.basename(path)
        yield str(row.get("episode_id") or f"{inside}, row {row_number}"), row


def _shard_episodes(source: ShardSource, wanted: Callable[[str], bool] | None) -> Iterator[dict[str, Any]]:
    """The rows of all shards, with `open_video` and their names."""
    for name, row in _named_rows(source):
        if wanted is None or wanted(name):
            yield {**row, "episode_id": name, "open_video": functools.partial(VideoReader, row["video"])}


def _read_episode(row: dict[str, Any], frame_skip: int) -> dict[str, Any]:
    """What `read_episodes` yields for a row; a VideoDecodeError if it is shorter than one step."""
    with row["open_video"]() as video:
        if len(video) - 1 < frame_skip:
            raise VideoDecodeError(f"{len(video)} frames do not fill one step of {frame_skip}")
        arrays = _episode_arrays(row, len(video))
        actions, rewards = arrays["actions"], arrays["rewards"]
        steps = len(actions) // frame_skip
        taken = steps * frame_skip
        of_frames = {name: arrays[name] for name in ("proprio_states", "states")}
        return {
            "frames": video.frames(np.arange(0, taken + 1, frame_skip)),
            "actions": actions[:taken].reshape(steps, -1),
            **{name: None if rows is None else rows[: taken + 1 : frame_skip] for name, rows in of_frames.items()},
            "rewards": None if rewards is None else rewards[:taken].reshape(steps, -1).sum(1),
            "task": row.get("task"),
            "fps": float(row.get("fps") or video.fps) / frame_skip,
            "episode_id": row["episode_id"],
        }


def _episode_arrays(row: dict, num_frames: int) -> dict[str, np.ndarray | None]:
    """Checked actions (T-1, A), proprio and true states (T, S), rewards (T-1, 1) of a row; None for missing ones."""
    name = row["episode_id"]
    arrays = dict.fromkeys(("actions", "proprio_states", "states", "rewards"))
    recorders = "record it with examples/record_episodes.py, or import it with examples/import_episodes.py"
    check(row.get("actions") is not None, f"Episode {name} has no actions; {recorders}.")
    for column in arrays:
        if row.get(column) is None:
            continue
        try:
            array = np.asarray(row[column], np.float32)
        except (ValueError, TypeError):
            raise ValueError(f"Episode {name} has {column} whose rows differ in size; give all one size.") from None
        if column == "rewards" and array.size == len(array):
            array = array.reshape(len(array), -1)
        length = num_frames - (column in ("actions", "rewards"))
        fits = array.ndim == 2 and len(array) == length and array.shape[1] > 0
        needed = f"{length} rows for {num_frames} frames are needed"
        check(fits, f"Episode {name} has {column} of shape {array.shape}, but {needed}.")
        check(np.isfinite(array).all(), f"Episode {name} has {column} that are not finite (NaN or infinite).")
        arrays[column] = array
    return arrays


def split_episodes(ids: Sequence[str], validation_fraction: float) -> list[bool]:
    """Which episodes are held out: those whose hashed id lies in the first `validation_fraction` of all hashes.

    The fraction held out is `validation_fraction` (0 to 1) in expectation. The split depends on neither the order nor
    the amount of data, and equal ids count as one. There is one exception: with two or more episodes and a fraction
    between 0 and 1, neither side is empty. If all hashes are above the fraction, the episode with the smallest hash is
    held out; if all are below, the one with the largest hash is trained on.
    """
    return list(map(held_out_of(ids, validation_fraction), ids))


def held_out_of(ids: Iterable[str], validation_fraction: float) -> Callable[[str], bool]:
    """`split_episodes` as a function of one id. Reads `ids` until both sides have one."""
    is_fraction = 0 <= validation_fraction <= 1
    check(is_fraction, f"validation_fraction is {validation_fraction}, but a fraction from 0 to 1 is expected.")
    bound = validation_fraction * 2**64
    lowest, highest = 2**64, -1
    for name in ids if 0 < validation_fraction < 1 else ():
        lowest, highest = min(lowest, _hash(name)), max(highest, _hash(name))
        if lowest < bound <= highest:
            break
    if lowest < highest:
        bound = min(max(bound, lowest + 1), highest)
    return lambda name: _hash(name) < bound


def _hash(name: str) -> int:
    """0 to 2**64 - 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
