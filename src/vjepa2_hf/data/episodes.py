"""Episodes for the world model, read from shards or LeRobot datasets, and their split.

Legend: T frames, V cameras, A action size, S proprio size.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..configuration_vjepa2 import check
from ..specs import check_count, check_fraction, check_number, refuse
from ..video_io import ReadLimits, VideoReader
from .cameras import camera_names, process_frames, video_columns
from .lerobot import BAD_EPISODE, LeRobotDataset, check_fps, describe, open_lerobot
from .shard_rows import is_empty
from .shards import ShardSource


REPLAY_COLUMNS = ("env_seed", "reset_options", "recording")  # of record_episodes.py, which explains them
TWO_EPISODES = "Two episodes are called {!r}; give every row an episode_id of its own."


@dataclass(frozen=True)
class EpisodeSource:
    """Episodes and their weight in a mixture."""

    path: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    weight: float = 1.0
    """Fraction of the sampled windows, relative to the other sources."""
    camera: str | list[str] | None = None
    """Which of several cameras: of a LeRobot dataset or of shards, or the key of the images in HDF5 and npz files. A
    list takes several, for a world model with as many views: [front, wrist]."""
    fps: float | None = None
    """Frames per second of HDF5 and npz files, which are imported as shards first."""
    embodiment: int = 0
    """Which robot or environment acts, from 0, for a world model with a projection of actions for each."""
    proprio: bool = True
    """Read its proprio states, where the model takes them. False for a robot among several whose next states its
    actions do not give: a rollout would hold the present ones."""

    def __post_init__(self):
        if not isinstance(self.path, (str, os.PathLike)):
            refuse("path", self.path, "a folder, a file or a dataset on the Hub")
        check_number(f"The weight of {os.fspath(self.path)!r}", self.weight, above=0)
        if self.fps is not None:
            check_fps(self.fps)
        check_count("embodiment", self.embodiment, 0)
        names = camera_names(self.camera)
        if len(names) == 1:  # a list of one is that camera
            object.__setattr__(self, "camera", names[0])

    @property
    def views(self) -> list[str | None]:
        """The cameras; [None] for a single one without a name."""
        return camera_names(self.camera)


def read_episodes(
    data: str | os.PathLike,
    frame_skip: int = 1,
    max_episodes: int | None = None,
    camera: str | list[str] | None = None,
    wanted: Callable[[str], bool] | None = None,
    skipped: dict[str, str] | None = None,
    columns: dict[str, list[str]] | None = None,
    limits: ReadLimits | None = None,
    frames_only: bool = False,
) -> Iterator[dict[str, Any]]:
    """Episodes in the order of the shards or of the LeRobot dataset, with every `frame_skip`-th frame.

    Invalid episodes are skipped and logged: with an unreadable video, without the video of a camera, less than one
    step, or actions, states or rewards of a wrong length or with values that are not finite.

    Args:
        data: as for `ShardSource`, or a LeRobot v3 dataset, a folder or an id of the Hub (its files are downloaded
            when they are reached).
        frame_skip: k; the k actions between two kept frames are concatenated to size k*A in order of time. An
            incomplete last step is dropped.
        max_episodes: maximum number of episodes.
        camera: of several, see `LeRobotDataset`; of shards whose rows have several. A list takes several.
        wanted: called with each `episode_id`, in order, before decoding; False leaves it out, also of `max_episodes`.
        skipped: filled with reasons by name of the skipped episodes.
        columns: of a LeRobot dataset, see `LeRobotDataset`.
        limits: of images and videos.
        frames_only: actions, states and rewards are None; rows of plain videos have none.

    Yields:
        `frames` uint8 (T, H, W, 3), or for a list of cameras a dict of them by name, `actions` float32 (T-1, k*A) in
        environment units, `proprio_states` float32 (T, S) or None, `states` likewise (the environment's true states,
        used for evaluation only), `rewards` float32 (T-1,) per step (summed over skipped frames) or None, `task` (text
        or None), `fps` of the kept frames, `episode_id`, and `replay`: which of `REPLAY_COLUMNS` the row has. The id
        of a row without `episode_id` is its file within `data` and its index there.

    Raises:
        ValueError: an episode's actions or states have another size than those before; there is no valid episode, no
            column of actions, or no such camera.
    """
    frame_skip = check_count("frame_skip", frame_skip)
    if max_episodes is not None:
        check_count("max_episodes", max_episodes)
    source = _open_source(data, camera, columns, limits)
    source.skipped = source.skipped if skipped is None else skipped
    count, sizes = 0, ()
    for row in _wanted_rows(source, camera, wanted, frames_only):
        try:
            episode = _read_episode(row, camera, frame_skip, frames_only)
        except BAD_EPISODE as error:
            source.skip(row["episode_id"], describe(error))
            continue
        sizes = _check_sizes(episode, sizes)
        count += 1
        yield episode
        if count == max_episodes:
            return  # before the next one is read or downloaded
    if not count and wanted is None:
        reasons = [f"{name}: {reason}" for name, reason in source.skipped.items()]
        raise ValueError(f"No episode could be read from {source.data!r}{f' ({reasons[0]})' if reasons else ''}.")


def episode_ids(data: str | os.PathLike, camera: str | list[str] | None = None) -> Iterator[str]:
    """The `episode_id` of every episode of `read_episodes`, unreadable ones included, without decoding."""
    source = _open_source(data, camera)
    yield from (name for name, _ in named_rows(source)) if isinstance(source, ShardSource) else source.names()


class EnoughEpisodes(Exception):  # noqa: N818, no error
    """Ends the reading."""


class EpisodeStream(torch.utils.data.IterableDataset):
    """Episodes for a cache, decoded and cropped, for any number of processes and DataLoader workers.

    Each is a dict: `frames` uint8 (T, C, H, W), of several cameras (T, V, C, H, W), cropped by the processor and not
    normalized; `actions` float32 (T-1, A) and, where the data has them, `proprio_states` float32 (T, S) and `rewards`
    float32 (T-1, 1); `fps`; `episode_id`. If episodes were unreadable, the last item is `{"skipped": reasons by
    name}`. Only the first `max_episodes` of the source are read, without the ids in `done`. With `frames_only` there
    are no actions, states and rewards, and plain videos are episodes, too.
    """

    def __init__(
        self,
        source: EpisodeSource,
        processor: Any,
        max_episodes: int | None = None,
        done: Collection[str] = (),
        rank: int = 0,
        world_size: int = 1,
        limits: ReadLimits | None = None,
        frames_only: bool = False,
    ):
        self.source, self.processor, self.max_episodes, self.done = source, processor, max_episodes, done
        self.rank, self.world_size, self.limits, self.frames_only = rank, world_size, limits, frames_only

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        positions, skipped, seen = itertools.count(), {}, set()

        def wanted(name: str) -> bool:
            position = next(positions)
            if position == self.max_episodes:
                raise EnoughEpisodes
            # Here too: a cache that continues would take the second one for done
            check(name not in seen, TWO_EPISODES.format(name))
            seen.add(name)
            mine = position % (self.world_size * workers) == self.rank * workers + number
            return mine and name not in self.done

        with contextlib.suppress(EnoughEpisodes):
            how = {"camera": self.source.camera, "skipped": skipped, "limits": self.limits}
            how["frames_only"] = self.frames_only
            yield from map(self._cropped, read_episodes(self.source.path, wanted=wanted, **how))
        if skipped:
            yield {"skipped": skipped}

    def _cropped(self, episode: dict[str, Any]) -> dict[str, Any]:
        arrays = {name: episode[name] for name in ("actions", "proprio_states", "rewards")}
        if arrays["rewards"] is not None:
            arrays["rewards"] = arrays["rewards"][:, None]
        return {
            "frames": process_frames(self.processor, episode["frames"], normalize=False),
            **{name: torch.from_numpy(np.array(array)) for name, array in arrays.items() if array is not None},
            "fps": episode["fps"],
            "episode_id": episode["episode_id"],
        }


def _open_source(
    data: str | os.PathLike,
    camera: str | list[str] | None,
    columns: dict[str, list[str]] | None = None,
    limits: ReadLimits | None = None,
) -> ShardSource | LeRobotDataset:
    if not isinstance(data, (str, os.PathLike)):
        refuse("data", data, "a folder, a file or a dataset on the Hub")
    camera_names(camera)  # refuses what is none
    lerobot = open_lerobot(data, camera, columns, limits)
    if lerobot is None and columns:
        ShardSource(data)  # refuses what does not exist
        raise ValueError(f"columns={columns!r} is for LeRobot datasets, but {os.fspath(data)!r} is not one.")
    return lerobot or ShardSource(data, limits)


def _check_sizes(episode: dict[str, Any], sizes: tuple) -> tuple:
    """The column sizes of the episodes so far; refuses an episode with others. Only `states` may be missing."""
    columns = (episode[name] for name in ("actions", "proprio_states", "states"))
    *found, states = (None if values is None else values.shape[1] for values in columns)
    *before, known = sizes or (*found, states)
    message = f"has (action, proprio, state) sizes {(*found, states)}, but the ones before had {(*before, known)}"
    fits = found == before and (states == known or None in (states, known))
    check(fits, f"Episode {episode['episode_id']} {message}: keep each environment's episodes in a separate folder.")
    return (*found, known or states)


def named_rows(source: ShardSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, row) of all shards; the names do not change when the data is moved."""
    for shard, row_number, row in source.read_all():
        path = source.shards[shard]
        inside = os.path.relpath(path, source.data) if os.path.isdir(source.data) else os.path.basename(path)
        yield str(row.get("episode_id") or f"{inside}, row {row_number}"), row


def _wanted_rows(
    source: ShardSource | LeRobotDataset,
    camera: str | list[str] | None,
    wanted: Callable[[str], bool] | None,
    frames_only: bool,
) -> Iterator[dict[str, Any]]:
    """The rows of all episodes, with `open_views` and their names."""
    if isinstance(source, LeRobotDataset):
        yield from source.episodes(wanted)
        return
    for name, row in named_rows(source):
        if wanted is None or wanted(name):
            known, advice = ", ".join(sorted(row)), "record it with examples/record_episodes.py, or import it"
            needed = f"{advice} with examples/import_episodes.py"
            check(frames_only or "actions" in row, f"Episode {name} has no actions, only {known}; {needed}.")
            columns = {view or "": video_column(row, view, name) for view in camera_names(camera)}
            opened = {view: functools.partial(_open_video, row, column, source) for view, column in columns.items()}
            yield {**row, "episode_id": name, "open_views": opened}


def video_column(row: dict[str, Any], camera: str | None, episode: str) -> str:
    """The column of a camera, named in full or by the last part of its name; refuses one that the rows do not have."""
    if camera is None:
        return "video"
    columns = video_columns(row)
    found = [name for name in columns if name == camera or re.split(r"[./]", name)[-1] == camera]
    name = camera if camera in columns else found[0] if len(found) == 1 else None
    known = f"the cameras {', '.join(columns)}: name one" if columns else "one camera without a name: leave it out"
    check(name is not None, f"camera={camera!r}, but episode {episode} has {known}.")
    return columns[name]


def _open_video(row: dict[str, Any], column: str, source: ShardSource) -> VideoReader:
    camera = {name: view for view, name in video_columns(row).items()}.get(column)
    check(not is_empty(row[column]), f"it has no video{f' of the camera {camera!r}' if camera else ''}")
    return VideoReader(row[column], source.limits)


def _read_episode(
    row: dict[str, Any], camera: str | list[str] | None, frame_skip: int, frames_only: bool
) -> dict[str, Any]:
    """What `read_episodes` yields for a row; one of `BAD_EPISODE` if it is invalid or shorter than one step."""
    fps = row.get("fps")
    if fps is not None:
        check_fps(fps)
    with contextlib.ExitStack() as stack:
        views = {name: stack.enter_context(opened()) for name, opened in row["open_views"].items()}
        video, *others = views.values()
        count = len(video)
        lengths = ", ".join(f"{len(view)} of {name}" for name, view in views.items())
        check(all(len(view) == count for view in others), f"its cameras have different numbers of frames ({lengths})")
        check(count - 1 >= frame_skip, f"{count} frames do not fill one step of {frame_skip}")
        names = ("actions", "proprio_states", "states", "rewards")
        arrays = {name: None if frames_only else _read_array(row, name, count) for name in names}
        actions, rewards = arrays["actions"], arrays["rewards"]
        check(frames_only or actions is not None, "it has no actions")
        steps = (count - 1) // frame_skip
        taken = steps * frame_skip
        of_frames = {name: arrays[name] for name in ("proprio_states", "states")}
        kept = np.arange(0, taken + 1, frame_skip)
        frames = {name: view.frames(kept) for name, view in views.items()}
        return {
            "frames": frames if isinstance(camera, (list, tuple)) else frames.popitem()[1],
            "actions": None if actions is None else actions[:taken].reshape(steps, -1),
            **{name: None if rows is None else rows[: taken + 1 : frame_skip] for name, rows in of_frames.items()},
            "rewards": None if rewards is None else rewards[:taken].reshape(steps, -1).sum(1),
            "task": row.get("task"),
            "replay": {name: row[name] for name in REPLAY_COLUMNS if row.get(name) is not None},
            "fps": float(video.fps if fps is None else fps) / frame_skip,
            "episode_id": row["episode_id"],
        }


def _read_array(row: dict[str, Any], column: str, num_frames: int) -> np.ndarray | None:
    """A checked column of a row: actions (T-1, A), either states (T, S), rewards (T-1, 1); None if missing."""
    if row.get(column) is None:
        return None
    try:
        array = np.asarray(row[column], np.float32)
    except (ValueError, TypeError):
        raise ValueError(f"it has {column} whose rows differ in size or are no numbers") from None
    if column == "rewards" and array.ndim == 1:
        array = array[:, None]
    length = num_frames - (column in ("actions", "rewards"))
    fits = array.ndim == 2 and len(array) == length and array.shape[1] > 0
    needed = f"{length} rows for {num_frames} frames are needed"
    check(fits, f"it has {column} of shape {array.shape}, but {needed}")
    check(np.isfinite(array).all(), f"it has {column} that are not finite (NaN or infinite)")
    return array


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
    check_fraction("validation_fraction", validation_fraction)
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
    if not isinstance(name, str):
        refuse("The id of an episode", name, "text")
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
