"""Several cameras of an episode: how a setting names them, and the columns of their videos in a row of a shard.

    {"video": ..., "video_wrist": ..., "cameras": ["front", "wrist"], "actions": ...}

`video` is the first camera, which everything that reads videos finds; the others are `video_NAME`. A row without
`cameras` has one camera without a name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Features, List, Value, Video

from ..configuration_vjepa2 import check


CAMERAS = "cameras"  # column with the names of a row's cameras


def camera_names(camera: str | Sequence[str] | None) -> list[str | None]:
    """The cameras that a setting names; [None] for a single camera without a name."""
    if camera is None or isinstance(camera, str):
        return [camera]
    fits = isinstance(camera, (list, tuple)) and camera and all(isinstance(name, str) and name for name in camera)
    check(fits, f"camera is {camera!r}; expected a name, a list of names, or None.")
    check(len(set(camera)) == len(camera), f"camera is {list(camera)!r}; expected each name once.")
    return list(camera)


def columns_of(cameras: Sequence[str]) -> dict[str, str]:
    """The column of each camera."""
    return {name: f"video_{name}" if number else "video" for number, name in enumerate(cameras)}


def video_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns of the videos of a row by camera; {} if its only video has no name."""
    names = row.get(CAMERAS)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return {}
    columns = columns_of(names)
    return columns if row.keys() >= set(columns.values()) else {}


def video_row(videos: Mapping[str | None, Any]) -> dict[str, Any]:
    """The columns of an episode's videos by camera, the first one first. A single camera needs no name (`None`)."""
    if None in videos:
        return {"video": videos[None]}
    return {**{column: videos[name] for name, column in columns_of(list(videos)).items()}, CAMERAS: list(videos)}


def video_features(row: Mapping[str, Any]) -> Features:
    """The features of the columns of `video_row`."""
    columns = video_columns(row)
    features = {column: Video(decode=False) for column in columns.values() or ["video"]}
    return Features(features | ({CAMERAS: List(Value("string"))} if columns else {}))
