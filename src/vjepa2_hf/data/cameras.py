"""Several cameras of an episode: their names in a setting, the columns of their videos in a row of a shard, frames.

    {"video": ..., "video_wrist": ..., "cameras": ["front", "wrist"], "actions": ...}

`video` is the first camera, which everything that reads videos finds; the others are `video_NAME`. A row without
`cameras` has one camera without a name.

Shapes: T frames, V cameras, C channels, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Features, List, Value, Video

from ..configuration_vjepa2 import check


CAMERAS = "cameras"  # column with the names of a row's cameras
Frames = np.ndarray | dict[str, np.ndarray]  # uint8 (T, H, W, 3), of several cameras by name


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


def count_frames(frames: Frames) -> int:
    """T."""
    return len(next(iter(frames.values()))) if isinstance(frames, dict) else len(frames)


def take_frames(frames: Frames, chosen: Any) -> Frames:
    """The chosen frames of every camera, by an index of numpy."""
    return {name: view[chosen] for name, view in frames.items()} if isinstance(frames, dict) else frames[chosen]


def process_frames(processor: Callable[..., Any], frames: Frames, normalize: bool = True) -> torch.Tensor:
    """Frames through the video processor: (T, C, H, W), or (T, V, C, H, W) of several cameras, in their order.

    Args:
        processor: a `VJepa2VideoProcessor`.
        normalize: False only resizes and crops, to uint8.
    """
    how = {} if normalize else {"do_rescale": False, "do_normalize": False}
    views = frames.values() if isinstance(frames, dict) else [frames]
    pixels = [processor(view, return_tensors="pt", **how)["pixel_values_videos"][0] for view in views]
    return torch.stack(pixels, dim=1) if isinstance(frames, dict) else pixels[0]
