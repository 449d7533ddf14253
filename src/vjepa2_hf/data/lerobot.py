"""Reading of LeRobot v3 datasets, from a local folder or the Hub, without the LeRobot package.

    meta/info.json                                   frame rate, features, path templates
    meta/episodes/chunk-000/file-000.parquet         one row per episode: the location of its data and videos
    data/chunk-000/file-000.parquet                  one row per frame, many episodes per file
    videos/<camera>/chunk-000/file-000.mp4           many episodes per file, AV1 by default

Source of the format: lerobot 0.4.4, `datasets/lerobot_dataset.py`. Files are opened (and downloaded
to the Hub's cache) when their first episode is reached; one file of each kind is open at a time.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..configuration_vjepa2 import check
from ..video_io import VideoDecodeError, VideoReader, read_image


logger = logging.getLogger(__name__)

_INFO = "meta/info.json"
_EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_COLUMNS = {"actions": "action", "proprio_states": "observation.state", "rewards": "next.reward"}  # theirs by ours


class LeRobotDataset:
    """The episodes of a LeRobot v3 dataset, with the frames of one camera.

    Args:
        data: the folder that holds `meta/info.json`, or the id of a dataset of the Hub ("lerobot/pusht").
        camera: a feature of videos or images by full name ("observation.images.front") or last part ("front"); may be
            None for a single camera.

    Attributes:
        fps: frames per second.
        skipped: reasons by name of the skipped episodes.
    """

    def __init__(self, data: str | os.PathLike, camera: str | None = None):
        self.data, self.revision = os.fspath(data), None
        path = self._path(_INFO)
        if not os.path.isdir(self.data):
            self.revision = Path(path).parents[1].name  # .../snapshots/<commit>/meta/info.json
        self.info = _read_info(path, self.data)
        self.fps = float(self.info["fps"])
        features = self.info["features"]
        self.cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
        self.camera = self._choose_camera(camera)
        self._in_video = features[self.camera]["dtype"] == "video"
        self.columns = {ours: theirs for ours, theirs in _COLUMNS.items() if theirs in features}
        check("actions" in self.columns, f"{self.data!r} has no feature 'action', only {', '.join(sorted(features))}.")
        self.skipped: dict[str, str] = {}
        self._table: tuple[str, pa.Table | Exception] = ("", pa.table({}))
        self._reader: tuple[str, VideoReader | None] = ("", None)

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
            `episode_id` ("episode_000012"), `open_video` (a function that returns frames like a `VideoReader`),
            `actions` (T-1 rows: the last of LeRobot's T is dropped, because no frame shows its effect),
            `proprio_states` (T rows) and `rewards` (T-1 rows) where the dataset has them, `fps`, and `task` (text;
            several are joined by "; ").
        """
        try:
            for episode in self._episode_rows():
                name = _episode_name(episode)
                if wanted is not None and not wanted(name):
                    continue
                try:
                    frames = self._frames(episode)
                except (OSError, pa.ArrowException, ValueError) as error:
                    self.skip(name, str(error))
                    continue
                row = {ours: _rows(frames[theirs]) for ours, theirs in self.columns.items()}
                yield {
                    **row,
                    **{column: row[column][:-1] for column in ("actions", "rewards") if column in row},
                    "episode_id": name,
                    "open_video": functools.partial(self._open, episode, frames),
                    "fps": self.fps,
                    "task": "; ".join(episode.get("tasks") or []) or None,
                }
        finally:
            self._close_reader()

    def _choose_camera(self, camera: str | None) -> str:
        found = [name for name in self.cameras if camera in (None, name) or name.endswith(f".{camera}")]
        selected = f"camera={camera!r} selects {', '.join(found) or 'none'} of the cameras of {self.data!r}"
        known = ", ".join(self.cameras) or "there is none"
        check(camera in found or len(found) == 1, f"{selected} ({known}); name one of them.")
        return camera if camera in found else found[0]

    def _path(self, name: str) -> str:
        """The local path of a file of the dataset, downloaded if necessary."""
        if os.path.isdir(self.data):
            return os.path.join(self.data, name)
        return huggingface_hub.hf_hub_download(self.data, name, repo_type="dataset", revision=self.revision)

    def _episode_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of meta/episodes, without their statistics."""
        count, chunk, file = 0, 0, 0
        while count < self.info["total_episodes"]:
            name = _EPISODES.format(chunk_index=chunk, file_index=file)
            try:
                path = self._path(name)
                columns = [column for column in pq.read_schema(path).names if not column.startswith("stats/")]
                rows = pq.read_table(path, columns=columns).to_pylist()
            except (OSError, pa.ArrowException) as error:
                total = self.info["total_episodes"]
                missing = f"{total - count} of the {total} episodes of {_INFO} are missing"
                raise ValueError(f"{name} of {self.data!r} is unreadable ({error}), but {missing}.") from error
            yield from rows
            count += len(rows)
            chunk, file = (chunk + 1, 0) if file + 1 == self.info["chunks_size"] else (chunk, file + 1)

    def _frames(self, episode: dict[str, Any]) -> pa.Table:
        """The rows of an episode, one per frame."""
        name = self.info["data_path"].format(
            chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
        )
        if self._table[0] != name:
            columns = ["episode_index", "timestamp", *self.columns.values()]
            columns += [] if self._in_video else [self.camera]
            self._table = ("", pa.table({}))  # one file in memory at a time
            self._table = (name, pq.read_table(self._path(name), columns=columns))
        frames = self._table[1].filter(pc.field("episode_index") == episode["episode_index"])
        expected = episode["length"]
        check(len(frames) == expected, f"{name} holds {len(frames)} of its {expected} frames")
        return frames

    def _open(self, episode: dict[str, Any], frames: pa.Table) -> EpisodeFrames:
        if not self._in_video:
            images = frames[self.camera].to_pylist()
            return EpisodeFrames(len(frames), lambda wanted: np.stack([read_image(images[i]) for i in wanted]))
        file = {name: episode[f"videos/{self.camera}/{name}"] for name in ("chunk_index", "file_index")}
        name = self.info["video_path"].format(video_key=self.camera, **file)
        if self._reader[0] != name:
            self._close_reader()
            self._reader = (name, VideoReader(self._path(name)))
        reader = self._reader[1]
        begin = episode[f"videos/{self.camera}/from_timestamp"]
        numbers = _frames_at(reader, begin + frames["timestamp"].to_numpy().astype(np.float64), self.fps)
        return EpisodeFrames(len(frames), lambda wanted: reader.frames(numbers[np.asarray(wanted)]))

    def _close_reader(self) -> None:
        if self._reader[1] is not None:
            self._reader[1].close()
        self._reader = ("", None)


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


def open_lerobot(data: str | os.PathLike, camera: str | None = None) -> LeRobotDataset | None:
    """The dataset at `data`, a folder or Hub id, or None if it is not a LeRobot dataset."""
    return LeRobotDataset(data, camera) if find_info(data) else None


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


def _read_info(path: str, data: str) -> dict[str, Any]:
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_INFO} of {data!r} does not describe a LeRobot dataset ({error!r}).") from error
    found = f"{data!r} is a LeRobot dataset of version {version}, but v3 is expected"
    command = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=..."
    check(version.startswith("v3."), f"{found}; convert it with `{command}`.")
    missing = sorted({"fps", "features", "total_episodes", "chunks_size", "data_path"} - set(info))
    check(not missing, f"{_INFO} of {data!r} lacks {', '.join(missing)}.")
    return info


def _episode_name(episode: dict[str, Any]) -> str:
    return f"episode_{episode['episode_index']:06d}"


def _rows(column: pa.ChunkedArray) -> list:
    """One list of numbers per row; LeRobot stores features of size 1 as plain numbers."""
    values = column.to_pylist()
    return values if pa.types.is_nested(column.type) else [[value] for value in values]


def _frames_at(reader: VideoReader, times: np.ndarray, fps: float) -> np.ndarray:
    """Indices of the frames nearest to these times (seconds), each within half a frame and none twice."""
    between = (reader.times[1:] + reader.times[:-1]) / 2
    numbers = np.searchsorted(between, times)
    far = np.abs(reader.times[numbers] - times)
    if far.max() > 0.5 / fps or (np.diff(numbers) < 1).any():
        worst = int(far.argmax())
        nearest = f"the nearest to {times[worst]:.3f} s is {far[worst]:.3f} s away"
        raise VideoDecodeError(f"{reader.name} lacks frames at some times: {nearest}")
    return numbers
