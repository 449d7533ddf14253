"""Reading of LeRobot v3 datasets, from a local folder or the Hub, without the LeRobot package.

    meta/info.json                                   frame rate, features, path templates
    meta/episodes/chunk-000/file-000.parquet         one row per episode: the location of its data and videos
    data/chunk-000/file-000.parquet                  one row per frame, many episodes per file
    videos/<camera>/chunk-000/file-000.mp4           many episodes per file, AV1 by default

Source of the format: lerobot 0.4.4, `datasets/lerobot_dataset.py`. Files are opened (and downloaded
to the Hub's cache) when their first episode is reached; one file of each kind and camera is open at a time.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
import re
import string
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..configuration_vjepa2 import check
from ..specs import as_number, as_settings, is_integer
from ..specs import describe as describe_value
from ..video_io import ReadLimits, VideoDecodeError, VideoReader, read_image
from .cameras import camera_names


logger = logging.getLogger(__name__)

_INFO = "meta/info.json"
_EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
# Theirs by ours, the usual name first. Without any of them, the features "action.*" are joined in their order
_COLUMNS = {
    "actions": ("action", "actions"), "proprio_states": ("observation.state",), "rewards": ("next.reward", "reward")
}  # fmt: skip
_OF_VIDEO = ("chunk_index", "file_index", "from_timestamp")  # columns of meta/episodes for each camera
_NUMBERS = ("float", "int", "uint", "bool")  # dtypes begin with these
# Errors of one episode: its row, its files, its frames
BAD_EPISODE = (
    OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, MemoryError, av.FFmpegError,
    pa.ArrowException,
)  # fmt: skip


class LeRobotDataset:
    """The episodes of a LeRobot v3 dataset, with the frames of one camera or of several.

    Args:
        data: the folder that holds `meta/info.json`, or the id of a dataset of the Hub ("lerobot/pusht").
        camera: a feature of videos or images by full name ("observation.images.front") or last part ("front"); may be
            None for a single camera. A list names several, such as ["front", "wrist"]. Sizes and frame rates of
            cameras may differ: a row has the frame of each camera that is nearest to its timestamp.
        columns: features by our name ("actions", "proprio_states", "rewards"), concatenated, in place of the usual
            ones: {"proprio_states": ["observation.state.cartesian_position"]}.
        limits: of images and videos.

    Attributes:
        fps: frames per second.
        skipped: reasons by name of the skipped episodes.
    """

    def __init__(
        self,
        data: str | os.PathLike,
        camera: str | list[str] | None = None,
        columns: dict[str, list[str]] | None = None,
        limits: ReadLimits | None = None,
    ):
        self.data, self.revision, self.limits = os.fspath(data), None, as_settings("limits", limits, ReadLimits)
        path = self._path(_INFO)
        if not os.path.isdir(self.data):
            self.revision = Path(path).parents[1].name  # .../snapshots/<commit>/meta/info.json
        self.info = _read_info(path, self.data)
        self.fps = float(self.info["fps"])
        features = self.info["features"]
        self.cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
        names = camera_names(camera)
        self.chosen = {name or "": self._choose_camera(name) for name in names}
        for name, feature in self.chosen.items():
            twice = list(self.chosen.values()).count(feature) > 1
            check(not twice, f"camera={camera!r} names {feature} twice, the second time as {name!r}; name it once.")
        self._named = " and ".join(map(repr, self.chosen.values()))
        self._in_video = [name for name in self.chosen.values() if features[name]["dtype"] == "video"]
        self._in_rows = [name for name in self.chosen.values() if name not in self._in_video]
        self.columns = self._find_columns(columns or {})
        self._format("data_path", chunk_index=0, file_index=0)
        for name in self._in_video:
            self._format("video_path", chunk_index=0, file_index=0, video_key=name)
        self.skipped: dict[str, str] = {}
        self._table: tuple[str, pa.Table | Exception] = ("", pa.table({}))
        self._readers: dict[str, tuple[str, VideoReader]] = {}

    def _find_columns(self, named: dict[str, list[str]]) -> dict[str, list[str]]:
        """Features of numbers by our name."""
        features = self.info["features"]
        numbers = [name for name, feature in features.items() if feature["dtype"].startswith(_NUMBERS)]
        columns = {}
        for ours, usual in _COLUMNS.items():
            found = [[name] for name in usual if name in features]
            parts = [name for name in numbers if name.startswith(f"{usual[0]}.")]
            columns[ours] = named.get(ours) or (found[0] if found else parts)
            for name in columns[ours]:
                known = f"its features of numbers are {', '.join(sorted(numbers))}"
                check(name in numbers, f"{self.data!r} has no feature {name!r} of numbers for {ours}; {known}.")
        problem = f"{self.data!r} has no feature 'action', only {', '.join(sorted(features))}"
        check(columns["actions"], f"{problem}; 'actions' and 'action.*' are understood, too.")
        return {ours: theirs for ours, theirs in columns.items() if theirs}

    def skip(self, name: str, reason: str) -> None:
        """Records and logs a skipped episode."""
        self.skipped[name] = " ".join(reason.split())
        logger.warning("skipped %s: %s", name, self.skipped[name])

    def names(self) -> Iterator[str]:
        """The `episode_id` of every episode in order; only meta/episodes is read."""
        return map(_episode_name, self._episode_rows())

    def episodes(self, wanted: Callable[[str], bool] | None = None) -> Iterator[dict[str, Any]]:
        """The episodes in order, without those in unreadable files and those whose id is not `wanted`.

        Yields:
            `episode_id` ("episode_000012"), `open_views` (by name of the camera a function that returns frames like a
            `VideoReader`; the name of a camera that was not named is ""), `actions` (T-1 rows: the last of LeRobot's T
            is dropped, because no frame shows its effect),
            `proprio_states` (T rows) and `rewards` (T-1 rows) where the dataset has them, `fps`, and `task` (text;
            several are joined by "; ").
        """
        try:
            for episode in self._episode_rows():
                name = _episode_name(episode)
                if wanted is not None and not wanted(name):
                    continue
                try:
                    self._check_cameras(episode)
                    frames = self._frames(episode)
                    row = {ours: _rows(frames, theirs) for ours, theirs in self.columns.items()}
                    task = _task(episode)
                except BAD_EPISODE as error:
                    self.skip(name, describe(error))
                    continue
                yield {
                    **row,
                    **{column: row[column][:-1] for column in ("actions", "rewards") if column in row},
                    "episode_id": name,
                    "open_views": {
                        ours: functools.partial(self._open, episode, frames, theirs)
                        for ours, theirs in self.chosen.items()
                    },
                    "fps": self.fps,
                    "task": task,
                }
        finally:
            for _, reader in self._readers.values():
                reader.close()
            self._readers = {}

    def _choose_camera(self, camera: str | None) -> str:
        found = [name for name in self.cameras if camera in (None, name) or name.endswith(f".{camera}")]
        selected = f"camera={camera!r} selects {', '.join(found) or 'none'} of the cameras of {self.data!r}"
        known = ", ".join(self.cameras) or "there is none"
        check(camera in found or len(found) == 1, f"{selected} ({known}); name one of them.")
        return camera if camera in found else found[0]

    def _path(self, name: str) -> str:
        """The local path of a file of the dataset, downloaded if necessary."""
        if os.path.isdir(self.data):
            path = os.path.join(self.data, name)
            if not os.path.exists(path):
                raise FileNotFoundError(f"there is no file {path!r}")
            return path
        return huggingface_hub.hf_hub_download(self.data, name, repo_type="dataset", revision=self.revision)

    def _format(self, template: str, **values: Any) -> str:
        """The path of a file within the dataset, by a template of the info; refuses one that leaves the dataset."""
        text, fields = self.info.get(template), " and ".join(values)
        problem = f"{template} of {_INFO} of {self.data!r} is {text!r}"
        expected = f"expected a relative path with {fields}, which says where the files of {self._named} lie"
        try:
            for _, name, spec, conversion in string.Formatter().parse(text):
                fits = name is None or (name in values and not conversion and re.fullmatch(r"0?\d?d?", spec))
                check(fits, f"{problem}; {expected}.")
            path = text.format(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{problem}; {expected}.") from error
        check(_is_inside(path), f"{template} of {_INFO} leads to {path!r}, which is outside of {self.data!r}.")
        return path

    def _episode_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of meta/episodes, without their statistics."""
        count, chunk, file = 0, 0, 0
        while count < self.info["total_episodes"]:
            name = _EPISODES.format(chunk_index=chunk, file_index=file)
            try:
                path = self._path(name)
                columns = [column for column in pq.read_schema(path).names if not column.startswith("stats/")]
                self._check_columns(name, columns)
                rows = pq.read_table(path, columns=columns).to_pylist()
            except (OSError, pa.ArrowException) as error:
                total = self.info["total_episodes"]
                missing = f"{total - count} of the {total} episodes of {_INFO} are missing"
                raise ValueError(f"{name} of {self.data!r} is unreadable ({error}), but {missing}.") from error
            yield from rows
            count += len(rows)
            chunk, file = (chunk + 1, 0) if file + 1 == self.info["chunks_size"] else (chunk, file + 1)

    def _check_columns(self, name: str, columns: Collection[str]) -> None:
        """Refuses a list of episodes that does not say where their data is."""
        needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        needed += [f"videos/{camera}/{column}" for camera in self._in_video for column in _OF_VIDEO]
        missing = [column for column in needed if column not in columns]
        problem = f"{name} of {self.data!r} has no {', '.join(missing)}: it does not say where the episodes"
        check(not missing, f"{problem} of the camera {self._named} lie; write the dataset again.")

    def _check_cameras(self, episode: dict[str, Any]) -> None:
        """Refuses an episode that lacks the video of a camera: its entry in the list of episodes is empty."""
        for name in self._in_video:
            found = [episode[f"videos/{name}/{column}"] for column in _OF_VIDEO]
            check(any(value is not None for value in found), f"it has no video of the camera {name!r}")

    def _frames(self, episode: dict[str, Any]) -> pa.Table:
        """The rows of an episode, one per frame."""
        files = {name: _whole(episode, f"data/{name}") for name in ("chunk_index", "file_index")}
        name = self._format("data_path", **files)
        if self._table[0] != name:
            columns = ["episode_index", "timestamp", *itertools.chain(*self.columns.values())]
            columns += self._in_rows
            self._table = ("", pa.table({}))  # one file in memory at a time
            path = self._path(name)
            missing = sorted(set(columns) - set(pq.read_schema(path).names))
            check(not missing, f"{name} has no column {', '.join(missing)}")
            self._table = (name, pq.read_table(path, columns=columns))
        frames = self._table[1].filter(pc.field("episode_index") == _whole(episode, "episode_index"))
        expected = _whole(episode, "length")
        check(len(frames) == expected, f"{name} holds {len(frames)} of its {expected} frames")
        check(expected > 0, "it has no frame")
        return frames

    def _open(self, episode: dict[str, Any], frames: pa.Table, camera: str) -> EpisodeFrames:
        if camera in self._in_rows:
            images = frames[camera].to_pylist()
            check(None not in images, f"it has rows without an image of the camera {camera!r}")
            return EpisodeFrames(len(frames), lambda wanted: self._images([images[i] for i in wanted]))
        files = {name: _whole(episode, f"videos/{camera}/{name}") for name in ("chunk_index", "file_index")}
        name = self._format("video_path", video_key=camera, **files)
        known, reader = self._readers.get(camera, ("", None))
        if known != name:
            if reader is not None:
                del self._readers[camera]
                reader.close()
            reader = VideoReader(self._path(name), self.limits)
            self._readers[camera] = (name, reader)
        times = frames["timestamp"].to_numpy().astype(np.float64)
        numbers = self._frames_of_rows(reader, camera, episode, times)
        return EpisodeFrames(len(frames), lambda wanted: reader.frames(numbers[np.asarray(wanted)]))

    def _frames_of_rows(
        self, reader: VideoReader, camera: str, episode: dict[str, Any], timestamps: np.ndarray
    ) -> np.ndarray:
        """Indices of a camera's frames for the rows of an episode, by their timestamps (seconds)."""
        begin, end = (episode.get(f"videos/{camera}/{name}_timestamp") for name in ("from", "to"))
        info = self.info["features"][camera].get("info")
        rate = as_number(info.get("video.fps")) if isinstance(info, dict) else None
        rate = rate if rate is not None and 0 < rate < self.fps else self.fps
        last = len(reader.times) - 1
        if end is not None and rate < self.fps:  # the nearest frame of a slow camera may be the next episode's
            last = max(0, int(np.searchsorted(reader.times, end - 0.25 / rate)) - 1)
        return _frames_at(reader, begin + timestamps, self.fps, rate, last)

    def _images(self, values: list[Any]) -> np.ndarray:
        """Images of one size, uint8 (T, H, W, 3), from their bytes or from files of the dataset."""
        frames = []
        for value in values:
            path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
            if isinstance(path, str):
                check(_is_inside(path), f"the image {path!r} lies outside of {self.data!r}")
                value = self._path(path)
            frames.append(read_image(value, self.limits))
        sizes = {frame.shape for frame in frames}
        check(len(sizes) == 1, f"its images have several sizes: {', '.join(map(str, sorted(sizes)))}")
        return np.stack(frames)


@dataclass
class EpisodeFrames:
    """The frames of one episode in a file that holds several, read like those of a `VideoReader`."""

    num_frames: int
    frames: Callable[[Sequence[int]], np.ndarray]
    """Indices (0 .. T-1) -> frames uint8 (len, H, W, 3)."""

    def __len__(self) -> int:
        return self.num_frames

    def __enter__(self) -> EpisodeFrames:
        return self

    def __exit__(self, *_) -> None:
        """The dataset closes the file, which may hold the next episode, too."""


def open_lerobot(
    data: str | os.PathLike,
    camera: str | list[str] | None = None,
    columns: dict[str, list[str]] | None = None,
    limits: ReadLimits | None = None,
) -> LeRobotDataset | None:
    """The dataset at `data`, a folder or Hub id, or None if it is not a LeRobot dataset."""
    return LeRobotDataset(data, camera, columns, limits) if find_info(data) else None


def find_info(data: str | os.PathLike) -> str | None:
    """The path of a LeRobot dataset's `meta/info.json` (from the Hub, with the commit); None if there is none."""
    data = os.fspath(data)
    if os.path.isdir(data):
        path = os.path.join(data, _INFO)
        return path if os.path.isfile(path) else None
    if not is_hub_id(data):
        return None
    try:
        return huggingface_hub.hf_hub_download(data, _INFO, repo_type="dataset")
    except (OSError, ValueError) as error:  # no such dataset, no such file in it, no network, no valid id
        logger.debug("%s is not a LeRobot dataset of the Hub (%s)", data, error)
        return None


def is_hub_id(data: str) -> bool:
    """Whether a dataset of the Hub may have this id: nothing is there locally."""
    # If there is a folder `runs`, `runs/shards` is a missing path, not a dataset of the owner "runs"
    is_local = os.path.exists(data) or os.path.isdir(os.path.dirname(data))
    return re.fullmatch(r"[\w.-]+/[\w.-]+", data) is not None and not is_local


def check_fps(fps: Any, name: str = "fps") -> None:
    """Refuses anything but a positive, finite number of frames per second."""
    number = as_number(fps)
    fits = number is not None and 0 < number < math.inf
    check(fits, f"{name} is {describe_value(fps)}, but a positive number of frames per second is expected.")


def describe(error: BaseException) -> str:
    """A reason for skipping an episode."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, MemoryError):
        return f"it does not fit into memory ({error})"
    return str(error) or type(error).__name__


def _read_info(path: str, data: str) -> dict[str, Any]:
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{_INFO} of {data!r} does not describe a LeRobot dataset ({error!r}).") from error
    found = f"{data!r} is a LeRobot dataset of version {version}, but v3 is expected"
    command = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=..."
    check(version.startswith("v3."), f"{found}; convert it with `{command}`.")
    missing = sorted({"fps", "features", "total_episodes", "chunks_size", "data_path"} - set(info))
    check(not missing, f"{_INFO} of {data!r} lacks {', '.join(missing)}.")
    check_fps(info["fps"], f"fps of {_INFO} of {data!r}")
    for name in ("total_episodes", "chunks_size"):
        fits = is_integer(info[name]) and info[name] > 0
        check(fits, f"{name} of {_INFO} of {data!r} is {info[name]!r}; expected a whole number of at least 1.")
    features = info["features"]
    known = isinstance(features, dict) and all(
        isinstance(feature, dict) and isinstance(feature.get("dtype"), str) for feature in features.values()
    )
    check(known, f"features of {_INFO} of {data!r} are {features!r:.80}; expected a dtype and a shape by name.")
    return info


def _is_inside(path: str) -> bool:
    """Whether a path lies in the folder that it is relative to."""
    parts = re.split(r"[/\\]", path)
    return bool(path) and ".." not in parts and not parts[0].endswith(":") and parts[0] != "" and "\0" not in path


def _whole(episode: dict[str, Any], name: str) -> int:
    value = episode[name]
    check(is_integer(value) and value >= 0, f"its {name} is {value!r}; expected a whole number")
    return value


def _task(episode: dict[str, Any]) -> str | None:
    tasks = episode.get("tasks") or []
    return "; ".join([tasks] if isinstance(tasks, str) else map(str, tasks)) or None


def _episode_name(episode: dict[str, Any]) -> str:
    index = episode["episode_index"]
    return f"episode_{index:06d}" if isinstance(index, int) else f"episode_{index}"


def _rows(frames: pa.Table, names: Sequence[str]) -> list[list]:
    """One list of numbers per row, of all columns; LeRobot stores features of size 1 as plain numbers."""
    columns = []
    for name in names:
        values, is_list = frames[name].to_pylist(), pa.types.is_nested(frames[name].type)
        check(None not in values, f"its {name} has rows without a value")
        columns.append(values if is_list else [[value] for value in values])
    return [list(itertools.chain(*parts)) for parts in zip(*columns)]


def _frames_at(reader: VideoReader, times: np.ndarray, fps: float, rate: float, last: int) -> np.ndarray:
    """Indices up to `last` of the frames nearest to these times (seconds), the rows of `fps` a second.

    Each is within half a frame and none is taken twice. Of a camera with a lower `rate`, frames are repeated, and each
    is within one of its frames.
    """
    check(np.isfinite(times).all(), "its timestamps are not finite numbers")
    between = (reader.times[1:] + reader.times[:-1]) / 2
    numbers = np.minimum(np.searchsorted(between, times), last)
    far = np.abs(reader.times[numbers] - times)
    slow = rate < fps
    if far.max() > (1 / rate if slow else 0.5 / fps) or (np.diff(numbers) < (not slow)).any():
        worst = int(far.argmax())
        nearest = f"the nearest to {times[worst]:.3f} s is {far[worst]:.3f} s away"
        raise VideoDecodeError(f"{reader.name} lacks frames at some times: {nearest}")
    return numbers
