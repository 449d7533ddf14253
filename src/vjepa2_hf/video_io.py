"""Reading of video files with PyAV (or torchcodec where it is installed) and of image files with Pillow.

Legend: T frames, H W pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from av.video.reformatter import VideoReformatter

from .video_source import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ReadLimits, VideoDecodeError, resolve_source


__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "ReadLimits",
    "VideoDecodeError",
    "VideoReader",
    "read_image",
    "read_video",
    "resolve_source",
    "torchcodec_decoder",
]

logger = logging.getLogger(__name__)


@functools.cache
def torchcodec_decoder() -> type | None:
    """torchcodec's `VideoDecoder`, or None if it cannot be imported, for example without its FFmpeg."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # ImportError, OSError or RuntimeError, depending on what is missing
        logger.debug("torchcodec cannot be imported (%s); PyAV decodes videos", error)
        return None
    return VideoDecoder


@contextlib.contextmanager
def _refuse_damage(name: str, what: str = "") -> Iterator[None]:
    """Turns PyAV's errors for a corrupt video into a VideoDecodeError that names it."""
    try:
        yield
    except VideoDecodeError:
        raise
    except (
        av.FFmpegError,
        ValueError,
        OverflowError,
        IndexError,
    ) as error:  # the last for cut MPEG-TS
        raise VideoDecodeError(f"{name} cannot be decoded{what} ({error}).") from error


class VideoReader:
    """Random access to the frames of one video: reads a table of frame times, then seeks and decodes.

    PyAV reads the table from the packets without decoding, so frame indices are exact for variable frame rates, edit
    lists and B-frames. torchcodec decodes the frames if it is installed and counts the same frames, else PyAV.

    Args:
        source: bytes of a video file, a path, a URL, or datasets' `{"bytes": ..., "path": ...}`.
        limits: sizes above which a video is refused, and how long a URL may take; None: the defaults of `ReadLimits`.

    Attributes:
        times: float64 (T,) seconds of each frame, the first at 0.
        fps: average frames per second.
        pixel_aspect: width / height of a pixel before rotation; 1 except for anamorphic video.

    Raises:
        VideoDecodeError: FFmpeg cannot read it, or it holds no video frame.
        FileNotFoundError: the path does not exist.
    """

    def __init__(self, source: bytes | str | os.PathLike | dict, limits: ReadLimits | None = None):
        self._limits = limits or ReadLimits()
        self._source, self.name = resolve_source(source, limits=self._limits)
        with _refuse_damage(self.name, " as a video"), contextlib.ExitStack() as on_error:
            self._container = on_error.enter_context(av.open(self._source))
            self._open()
            on_error.pop_all()  # stays open

    def _open(self) -> None:
        if not self._container.streams.video:
            raise VideoDecodeError(f"{self.name} holds no video stream.")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # frame threads are slower at clip sizes
        self._stream.thread_count = 1
        self._limits.check_pixels(self._stream.height, self._stream.width, f"A frame of {self.name}")
        self._reformatter = VideoReformatter()  # one for all frames: its tables cost more than a small frame
        packets = [
            (packet.pts, packet.is_keyframe, packet.size)
            for packet in self._container.demux(self._stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise VideoDecodeError(f"{self.name} holds no video frame.")
        self._rewind()
        rate = self._stream.average_rate or self._stream.guessed_rate
        # Some containers (avi, raw streams) have no presentation times: frames are counted from the start
        self._seekable = len({pts for pts, *_ in packets if pts is not None}) == len(packets)
        pts, is_key, sizes = zip(*sorted(packets) if self._seekable else packets, strict=True)
        self._is_key, self._sizes = np.array(is_key, bool), np.array(sizes, np.float64)
        if self._seekable:
            self._pts = np.array(pts, np.int64)
            self._key_pts = self._pts[self._is_key] if self._is_key.any() else self._pts[:1]
            self.times = (self._pts - self._pts[0]) * float(self._stream.time_base)
        else:
            self._pts = np.arange(len(packets))
            self.times = self._pts / float(rate or 25)
        self.pixel_aspect = float(self._stream.sample_aspect_ratio or 1)
        span = self.times[-1]
        self.fps = (len(self.times) - 1) / span if span > 0 else float(rate or 25)

    def __len__(self) -> int:
        return len(self._pts)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def duration(self) -> float:
        """Seconds, including the last frame."""
        return float(self.times[-1] + 1 / self.fps)

    def indices_at(self, times: Sequence[float]) -> np.ndarray:
        """Indices of the frames shown at these times (seconds from the first frame)."""
        # Half a millisecond of slack: 3 / 30 must not fall before a frame stored at 0.1
        return np.clip(np.searchsorted(self.times, np.asarray(times) + 5e-4, side="right") - 1, 0, len(self) - 1)

    def motion(self) -> np.ndarray | None:
        """Motion at each frame, float64 (T,): the bytes of its difference from other frames, without decoding.

        Key frames are interpolated from their neighbors; None if there are only key frames. Strong sensor noise counts
        as motion, too (measured in tests/data/test_sampling.py).
        """
        if self._is_key.all():
            return None
        others = np.flatnonzero(~self._is_key)
        return np.interp(np.arange(len(self)), others, self._sizes[others])

    def frames(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """Decodes the frames with these indices (None: all) in the given order, uint8 (T, H, W, 3)."""
        indices = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        if indices.size == 0 or indices.min() < 0 or indices.max() >= len(self):
            asked = "none" if indices.size == 0 else f"{indices.min()} to {indices.max()}"
            raise ValueError(f"Frames {asked} were requested from {self.name}, which has frames 0 to {len(self) - 1}.")
        wanted, inverse = np.unique(indices, return_inverse=True)
        found = self._decode_with_torchcodec(wanted)
        if found is not None:
            return found[inverse]
        with _refuse_damage(self.name):
            found = self._decode(wanted, seek=self._seekable)
            if len(found) < len(wanted) and self._seekable:
                found = self._decode(wanted, seek=False)  # a broken index: decode from the start
        if len(found) < len(wanted):
            missing = len(wanted) - len(found)
            raise VideoDecodeError(f"{self.name} cannot be decoded: {missing} of {len(wanted)} frames did not appear.")
        return np.stack([found[i] for i in inverse])

    def _decode_with_torchcodec(self, wanted: np.ndarray) -> np.ndarray | None:
        decoder_class = torchcodec_decoder()
        if decoder_class is None:
            return None
        source = self._source.getvalue() if isinstance(self._source, io.BytesIO) else self._source
        try:
            decoder = decoder_class(source, dimension_order="NHWC", num_ffmpeg_threads=1)
            if len(decoder) != len(self):
                return None  # it counts frames differently, so indices would not match
            return decoder.get_frames_at(indices=wanted.tolist()).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            logger.debug("torchcodec cannot decode %s (%s); trying PyAV", self.name, error)
            return None

    def iterate(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """All frames in order, not converted: (seconds from the first frame, PyAV's frame)."""
        with _refuse_damage(self.name):
            self._rewind()
            for number, frame in enumerate(self._container.decode(self._stream)):
                timed = self._seekable and frame.pts is not None
                start = float((frame.pts - self._pts[0]) * self._stream.time_base) if timed else number / self.fps
                yield start, frame

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """A decoded frame as upright uint8 (H, W, 3)."""
        image = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.rot90(image, frame.rotation // 90) if frame.rotation % 360 else image

    def _rewind(self) -> None:
        try:
            self._container.seek(0, any_frame=False)
        except av.FFmpegError:
            # Some containers refuse it for streams that start after time 0
            self._container.seek(self._stream.start_time or 0, stream=self._stream, any_frame=False)

    def _decode(self, wanted: np.ndarray, seek: bool) -> list[np.ndarray]:
        """The wanted frames (sorted indices) that exist, decoded from as few key frames as possible."""
        found, position, current = [], 0, None
        if not seek:
            self._rewind()
        while position < len(wanted):
            if seek:
                keys_before = self._key_pts[self._key_pts <= self._pts[wanted[position]]]
                if len(keys_before):
                    self._container.seek(int(keys_before[-1]), stream=self._stream)
                else:
                    self._rewind()
            before = position
            for number, frame in enumerate(self._container.decode(self._stream)):
                current = frame.pts if self._seekable else number
                if current is None or current < self._pts[wanted[position]]:
                    continue
                if current == self._pts[wanted[position]]:
                    found.append(self.to_rgb(frame))
                    position += 1
                else:
                    return found  # a wanted frame is missing
                if position == len(wanted) or (seek and self._key_between(current, self._pts[wanted[position]])):
                    break
            if position == before or not seek:
                break
        return found

    def _key_between(self, current: int, target: int) -> bool:
        """Whether seeking is faster: a key frame lies well after the current frame and not after the target."""
        first = np.searchsorted(self._key_pts, current, side="right")
        last = np.searchsorted(self._key_pts, target, side="right")
        return last > first and np.searchsorted(self._pts, self._key_pts[last - 1]) > (
            np.searchsorted(self._pts, current) + 4  # a seek flushes the decoder, which costs about 4 frames
        )


def read_video(
    source: bytes | str | os.PathLike | dict,
    frame_indices: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    limits: ReadLimits | None = None,
) -> np.ndarray:
    """Decodes all frames of a video, or those with these indices or shown at these times, to uint8 (T, H, W, 3) RGB.

    The source, limits and errors are those of `VideoReader`; times are seconds from the first frame.
    """
    if frame_indices is not None and times is not None:
        raise ValueError("read_video got frame_indices and times; give one of them.")
    with VideoReader(source, limits) as reader:
        return reader.frames(reader.indices_at(times) if times is not None else frame_indices)


def read_image(source: bytes | str | os.PathLike | dict, limits: ReadLimits | None = None) -> np.ndarray:
    """Decodes an image to upright uint8 (H, W, 3) RGB; gray becomes RGB, transparency is dropped.

    The source and limits are as for `VideoReader`. A truncated or corrupt image is a `VideoDecodeError`.
    """
    limits = limits or ReadLimits()
    source, name = resolve_source(source, "image", limits)
    try:
        with PIL.Image.open(source) as image:
            limits.check_pixels(image.height, image.width, name)
            image = PIL.ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGBA") if image.mode == "P" else image
            return np.array(image.convert("RGB"))
    except VideoDecodeError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, PIL.Image.DecompressionBombError) as error:
        raise VideoDecodeError(f"{name} cannot be decoded as an image ({error}).") from error


def __getattr__(name: str) -> Any:
    """`encode_video` and `transcode_video`, which are now in `vjepa2_hf.data.video_writing`."""
    if name in ("encode_video", "transcode_video"):
        try:
            from vjepa2_hf.data import video_writing
        except ImportError as error:
            raise ImportError(f"{name} needs the package vjepa2_hf: pip install vjepa2_hf.") from error
        return getattr(video_writing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
