"""Frames of one video as normalized pixels, read in chunks from files, arrays, tensors or iterators.

Shapes: T frames, C channels, H W pixels.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..configuration_vjepa2 import check
from ..specs import describe


class FrameSource:
    """One video, read in order with one chunk in memory at a time.

    Floats are taken as normalized pixels. All other frames are images, which a processor normalizes chunk by chunk.

    Args:
        video: a tensor (T, C, H, W) or (1, T, C, H, W) of normalized floats; uint8 frames as a tensor of those shapes
            or a numpy array (T, H, W, 3); a video file as path, URL (downloaded as a whole), bytes or datasets'
            `{"bytes": …, "path": …}`; or any iterable of frames: normalized float tensors (C, H, W), uint8 tensors
            (3, H, W), uint8 arrays (H, W, 3), or PIL images. An iterator is read once.
        processor: a `VJepa2VideoProcessor` for images.
        fallback: used for images without a processor: a processor, or a folder or Hub id that holds one.
        stride: every stride-th frame is kept, starting with the first.

    Attributes:
        fps: frames per second of a file, before `stride`, once it has been opened; else `None`.
    """

    def __init__(self, video: Any, processor: Any = None, fallback: Any = None, stride: int = 1):
        check(is_whole(stride) and stride > 0, f"stride is {stride!r}; expected 1 (every frame) or more.")
        if isinstance(video, dict):  # a row's video as datasets gives it undecoded
            check(
                video.get("bytes") or video.get("path"), f"The video is {describe(video)}; expected bytes or a path."
            )
            video = video["path"] if video.get("bytes") is None else video["bytes"]
        self.stride, self.fps = stride, None
        self.is_file = isinstance(video, (str, os.PathLike, bytes, bytearray))
        self.video = video if self.is_file else _as_frames(video)
        self.is_array = isinstance(self.video, (torch.Tensor, np.ndarray))
        if isinstance(video, (str, os.PathLike)) and "://" not in os.fspath(video) and not os.path.isfile(video):
            raise FileNotFoundError(f"There is no video file at {os.fspath(video)!r}; give the path of a video file.")
        self._processor, self._fallback = processor, fallback

    @property
    def name(self) -> str:
        """For error messages."""
        return os.fspath(self.video) if isinstance(self.video, (str, os.PathLike)) else "the video"

    def chunks(
        self, size: int, overlap: int = 0, start: int = 0, watch: Callable[[Any], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, int]]:
        """Chunks of `size` kept frames, each beginning with the last `overlap` frames of the one before.

        Frames before chunk number `start` are decoded but not processed. `watch` is called with every kept frame.

        Yields:
            Pixels (t, C, H, W) and the number of frames at the front that the previous chunk ended with. Only the last
            chunk has t < size.
        """
        frames = self._frames(start * (size - overlap), watch)
        tail, known, wanted = None, overlap if start else 0, size
        while batch := list(itertools.islice(frames, wanted)):
            pixels = self._pixels(batch)
            if tail is not None:
                if tail.shape[1:] != pixels.shape[1:]:
                    raise self.changed_size(tuple(tail.shape[1:]), tuple(pixels.shape[1:]))
                pixels = torch.cat([tail, pixels])
            if len(pixels) <= known:
                return  # a resumed run: no new frame
            yield pixels, known
            tail, known, wanted = (pixels[-overlap:] if overlap else None), overlap, size - overlap

    def fingerprint(self) -> str:
        """A hash of the file's bytes or the array's values; "frames" for an iterable, which is not read yet."""
        if isinstance(self.video, (str, os.PathLike)) and "://" not in os.fspath(self.video):
            with open(self.video, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if self.is_file:  # bytes or a URL
            return hashlib.sha256(os.fsencode(self.video) if isinstance(self.video, str) else self.video).hexdigest()
        if not self.is_array:
            return "frames"
        digest = hashlib.sha256(f"{self.video.dtype} {tuple(self.video.shape)}".encode())
        for frame in self.video:
            digest.update(frame_bytes(frame))
        return digest.hexdigest()

    @property
    def processor(self) -> Any:
        """The given processor, or the fallback; a ValueError if there is neither."""
        if self._processor is not None:
            return self._processor
        if self._fallback is None or isinstance(self._fallback, (str, os.PathLike)):
            self._fallback = saved_processor(self._fallback, self.name)
        return self._fallback

    @property
    def processes(self) -> bool:
        """Whether frames go through the processor; of an iterable, not read yet, whether there is a processor."""
        if self.is_file or self.is_array:
            return not _is_normalized(self.video)
        given = self._processor is not None or not isinstance(self._fallback, (str, os.PathLike, type(None)))
        return given or _holds_processor(self._fallback)

    def _frames(self, start: int, watch: Callable[[Any], None] | None) -> Iterator[Any]:
        """The kept frames from number `start` on."""
        kept = self._decoded(start, watch) if self.is_file else itertools.islice(self.video, None, None, self.stride)
        for number, frame in enumerate(kept):
            if watch is not None:
                watch(frame)
            if number >= start:
                yield frame

    def _decoded(self, start: int, watch: Callable | None) -> Iterator[np.ndarray | None]:
        """The kept frames of a file; `None` for those before `start` if there is no `watch`."""
        from ..video_io import VideoReader  # PyAV only where a file is decoded

        with VideoReader(self.video) as reader:
            self.fps = reader.fps
            for count, (_, frame) in enumerate(reader.iterate()):
                number, rest = divmod(count, self.stride)
                if rest == 0:
                    yield reader.to_rgb(frame) if number >= start or watch is not None else None

    def _pixels(self, frames: list[Any]) -> torch.Tensor:
        """Kept frames as normalized pixels (t, C, H, W)."""
        frames = [_as_frame(frame) for frame in frames]
        kinds = {(_is_normalized(frame), tuple(frame.shape)) for frame in frames}
        expected = "give frames of one size, all normalized floats or all uint8"
        check(len(kinds) == 1, f"The frames of {self.name} differ in kind or size: {sorted(kinds)}; {expected}.")
        if _is_normalized(frames[0]):
            advice = "but a processor was given: leave it out, or give uint8 frames"
            check(
                self._processor is None,
                f"The frames of {self.name} are floats, which are taken as normalized pixels, {advice}.",
            )
            return torch.stack(frames)
        options = {"return_tensors": "pt", "do_sample_frames": False}
        if hasattr(self.processor, "do_random_resized_crop"):
            options["do_random_resized_crop"] = False  # of a processor for training
        stack = torch.stack(frames) if isinstance(frames[0], torch.Tensor) else np.stack(frames)
        return self.processor(stack, **options)["pixel_values_videos"][0]

    def changed_size(self, before: tuple[int, ...], now: tuple[int, ...]) -> ValueError:
        """The error for frames of different sizes (C, H, W)."""
        return ValueError(
            f"The frames of {self.name} change from {before} to {now}; give frames of one size, or a processor that "
            "crops them to one."
        )


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or numpy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def frame_bytes(frame: Any) -> bytes:
    """The bytes of a frame, for hashes."""
    if isinstance(frame, torch.Tensor):
        return frame.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(frame).tobytes()


def _as_frames(video: Any) -> Iterable:
    if isinstance(video, (torch.Tensor, np.ndarray)):
        if video.ndim == 5 and len(video) == 1:
            video = video[0]
        expected = "(T, C, H, W) or (1, T, C, H, W), or an array (T, H, W, 3), not empty: one video at a time"
        check(video.ndim == 4 and 0 not in video.shape, f"video has shape {tuple(video.shape)}; expected {expected}.")
        _as_frame(video[0])
    kind = type(video).__name__
    check(hasattr(video, "__iter__"), f"video is a {kind}; expected a tensor, an array, a path, or frames.")
    return video


def _as_frame(frame: Any) -> np.ndarray | torch.Tensor:
    """A normalized or uint8 frame."""
    if isinstance(frame, PIL.Image.Image):
        return np.array(frame.convert("RGB"))
    dtype, shape = getattr(frame, "dtype", type(frame).__name__), tuple(getattr(frame, "shape", ()))
    is_frame = len(shape) == 3 and (dtype in (torch.uint8, np.uint8) or _is_normalized(frame))
    expected = "a normalized float tensor (C, H, W), a uint8 tensor or array, or a PIL image"
    check(is_frame, f"A frame of the video is {dtype} {shape}; expected {expected}.")
    return frame


def _is_normalized(frames: Any) -> bool:
    return isinstance(frames, torch.Tensor) and frames.is_floating_point()


def saved_processor(model_name: str | os.PathLike | None, video: str = "the video") -> Any:
    """The processor in a model's folder or on the Hub; a ValueError that names `video` if there is none."""
    from ..video_processing_vjepa2 import VJepa2VideoProcessor

    found = f"{os.fspath(model_name)!r} holds none" if model_name else "the model was not loaded from a folder"
    advice = "give `processor=VJepa2VideoProcessor(…)`, or save one beside the model"
    message = f"{video} must be resized and normalized by a processor, and {found}: {advice}."
    check(model_name and (not Path(model_name).exists() or _holds_processor(model_name)), message)
    try:
        return VJepa2VideoProcessor.from_pretrained(model_name)
    except OSError as error:
        raise ValueError(message) from error


def _holds_processor(folder: str | os.PathLike | None) -> bool:
    names = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
    return bool(folder) and any((Path(folder) / name).is_file() for name in names)
