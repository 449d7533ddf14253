"""Clips for figures: frames of a video file or of shards, and the processor that resizes them.

Shapes: T frames, H W pixels.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.shards import ShardSource
from ..modeling_encoder import VJepa2Encoder
from ..specs import is_integer, refuse
from ..video_io import IMAGE_EXTENSIONS, VideoReader, read_image
from ..video_processing_vjepa2 import VJepa2VideoProcessor


logger = logging.getLogger(__name__)


def read_clips(video: str | Path, num_frames: int, fps: float | None = None, count: int = 1) -> list[np.ndarray]:
    """Reads clips, evenly spaced in a video file, or from the start of each row of shards: uint8 (T, H, W, 3) each.

    Args:
        video: a video file, an image, which is one clip of one frame, or what `vjepa2_hf.data.shards.ShardSource`
            takes.
        num_frames: T.
        fps: frames per second; `None`: the video's own rate.
        count: maximum number of clips. Clips of a file do not overlap, and the first one starts at frame 0. Rows of
            shards that are unreadable or too short are left out with a warning; it is an error if all are.
    """
    _check_numbers(num_frames, fps, count)
    if Path(video).suffix.lower() in IMAGE_EXTENSIONS:
        return [read_image(video)[None]]
    if _is_video(video):
        return _read_clips(video, str(video), num_frames, fps, count)
    clips, problem = [], None
    for _, _, row in ShardSource(str(video)).read_all():
        try:
            clips += _read_clips(row["video"], f"a video of {video}", num_frames, fps, 1)
        except (ValueError, OSError) as error:
            problem = problem or error
            logger.warning("A row of %s is left out: %s", video, error)
        if len(clips) == count:
            return clips
    if not clips:
        reason = f" ({problem})" if problem else ""
        raise ValueError(f"{video} has no readable row{reason}; give a video file or a folder of shards.")
    return clips


def read_clip(video: str | Path, num_frames: int, fps: float | None = None, number: int = 0) -> np.ndarray:
    """Reads the clip of this number, from 0: uint8 (T, H, W, 3). The clips of a file follow each other without a gap;
    a row of shards has one, its first frames."""
    if number < 0:
        raise ValueError(f"Clip {number} was requested; clips are counted from 0.")
    _check_numbers(num_frames, fps, 1)
    if not _is_video(video):
        rows, position = ShardSource(str(video)).read_all(), -1
        for position, (_, _, row) in enumerate(rows):
            if position == number:
                return _read_clips(row["video"], f"the video of row {number} of {video}", num_frames, fps, 1)[0]
        raise ValueError(f"Clip {number} was requested, but {video} has {position + 1} rows, counted from 0.")
    with VideoReader(video) as reader:
        available = _available_frames(reader, fps, str(video), num_frames)
        if available < (number + 1) * num_frames:
            raise ValueError(
                f"Clip {number} was requested, but {video} has {available} frames, which is {available // num_frames} "
                f"clips of {num_frames}, counted from 0."
            )
        return _read_frames(reader, number * num_frames, num_frames, fps)


def load_processor(
    model: str | Path, encoder: VJepa2Encoder, size: int | Sequence[int] | None = None
) -> VJepa2VideoProcessor:
    """The processor saved with a model; with a `size` or where none is saved, one that resizes whole frames.

    Args:
        size: side of a square in pixels, or height and width, multiples of the encoder's `patch_size`; `None` where
            no processor is saved: the encoder's `crop_size`.
    """
    is_saved = (Path(model) / "video_preprocessor_config.json").is_file()
    if size is None and is_saved:
        return VJepa2VideoProcessor.from_pretrained(model)
    height, width = frame_size("size", encoder.config.crop_size if size is None else size, encoder.config.patch_size)
    exact = {"height": height, "width": width}
    settings = {"size": exact, "crop_size": exact, "do_center_crop": False, "do_random_resized_crop": False}
    return VJepa2VideoProcessor.from_pretrained(model, **settings) if is_saved else VJepa2VideoProcessor(**settings)


def frame_size(name: str, size: int | Sequence[int], patch_size: int = 1) -> tuple[int, int]:
    """Height and width of a setting that is one number for both, or two."""
    numbers = [size] if is_integer(size) else list(size) if isinstance(size, (list, tuple)) else []
    if len(numbers) not in (1, 2) or not all(is_integer(n) and n > 0 and n % patch_size == 0 for n in numbers):
        refuse(name, size, f"one number or height and width, multiples of {patch_size}")
    return int(numbers[0]), int(numbers[-1])


def _check_numbers(num_frames: int, fps: float | None, count: int) -> None:
    if min(num_frames, count) < 1 or (fps is not None and not fps > 0):
        raise ValueError(f"frames={num_frames}, fps={fps} and clips={count} were given; all must be positive.")


def _is_video(video: str | Path) -> bool:
    return Path(video).is_file() and Path(video).suffix not in (".parquet", ".tar")


def _available_frames(reader: VideoReader, fps: float | None, name: str, needed: int) -> int:
    """The number of frames of a video at a frame rate; fewer than `needed` are refused."""
    available = len(reader) if fps is None else int((reader.times[-1] + 5e-4) * fps) + 1
    if available < needed:
        rate = "" if fps is None else f" at {fps:g} per second"
        raise ValueError(f"{name} has {available} frames{rate}, but the clip needs {needed}; use fewer frames.")
    return available


def _read_frames(reader: VideoReader, start: int, num_frames: int, fps: float | None) -> np.ndarray:
    numbers = start + np.arange(num_frames)
    return reader.frames(numbers if fps is None else reader.indices_at(numbers / fps))


def _read_clips(source: Any, name: str, num_frames: int, fps: float | None, count: int) -> list[np.ndarray]:
    with VideoReader(source) as reader:
        available = _available_frames(reader, fps, name, num_frames)
        count = min(count, available // num_frames)
        starts = np.linspace(0, available - num_frames, count).astype(int) if count > 1 else [0]
        return [_read_frames(reader, start, num_frames, fps) for start in starts]
