"""Encoding of frames as mp4, and transcoding of video files, with PyAV."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from ..video_io import ReadLimits, VideoReader, display_matrix


_TIME_BASE = Fraction(1, 90_000)  # fine enough for every usual frame rate


def encode_video(
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float,
    crf: int = 10,
    gop_size: int = 12,
    pixel_format: str = "yuv444p",
    preset: str = "veryfast",
) -> bytes:
    """Encodes frames as an h264 mp4 held in memory.

    Args:
        frames: uint8 (T, H, W, 3) RGB, or an iterable of (H, W, 3) frames, read one at a time.
        fps: frames per second.
        crf: x264's quality, 0 (best) to 51.
        gop_size: frames between key frames; small values make random access fast.
        pixel_format: "yuv444p" keeps color edges of small images sharp; "yuv420p" plays everywhere and needs even
            sizes.
        preset: x264's speed preset.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}, but a frame rate must be a positive number of frames per second.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream, reformatter = None, VideoReformatter()
        for frame in frames:
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                found = f"{getattr(frame, 'dtype', type(frame).__name__)} {getattr(frame, 'shape', '')}"
                raise ValueError(f"A frame is {found}, but encode_video takes uint8 frames (H, W, 3) in RGB.")
            if stream is None:
                stream = _add_stream(container, frame.shape, fps, crf, gop_size, pixel_format, preset)
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(reformatter.reformat(image, format=stream.pix_fmt, threads=1)))
        if stream is None:
            raise ValueError("There is no frame to encode; encode_video needs at least one.")
        container.mux(stream.encode())
    return buffer.getvalue()


def resize_frame(frame: np.ndarray, height: int) -> np.ndarray:
    """A uint8 frame (H, W, 3) resized to `height` pixels, with its aspect ratio and an even width."""
    width = max(2, 2 * round(frame.shape[1] * height / frame.shape[0] / 2))
    method = Interpolation.AREA if height < frame.shape[0] else Interpolation.BICUBIC
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return image.reformat(width, height, interpolation=method, threads=1).to_ndarray()


def transcode_video(
    source: bytes | str | os.PathLike, height: int = 256, crf: int = 20, limits: ReadLimits | None = None
) -> tuple[bytes, int, float]:
    """Re-encodes a video of any codec and size as h264 mp4 of this height, without sound.

    The aspect ratio is kept, with even sizes. Frame times are kept, variable rates included. The display
    matrix is applied. One frame is in memory at a time. A truncated or corrupt video, or one above `limits`, is a
    `VideoDecodeError`.

    Returns:
        The mp4, its number of frames and its average frames per second.
    """
    if height < 2 or height % 2:
        raise ValueError(f"height is {height}, but h264 needs a positive even number of pixels.")
    buffer, reformatter, last_pts, count = io.BytesIO(), VideoReformatter(), -1, 0
    limits = limits or ReadLimits()
    with VideoReader(source, limits) as reader, av.open(buffer, "w", format="mp4") as container:
        stream = None
        for start, frame in reader.iterate():
            count += 1
            matrix = display_matrix(frame)
            if matrix is not None:
                frame = av.VideoFrame.from_ndarray(reader.to_rgb(frame), format="rgb24")
            if stream is None:
                is_turned = matrix is not None and abs(matrix[0]) < abs(matrix[1])
                aspect = frame.width / frame.height * reader.pixel_aspect ** (-1 if is_turned else 1)
                width = max(2, 2 * round(height * aspect / 2))
                limits.check_pixels(height, width, f"A frame of {reader.name} with square pixels")
                stream = _add_stream(container, (height, width), reader.fps, crf, 12, "yuv420p", "veryfast")
                stream.codec_context.time_base = _TIME_BASE
                method = Interpolation.AREA if height < frame.height else Interpolation.BICUBIC
            image = reformatter.reformat(frame, width, height, stream.pix_fmt, interpolation=method, threads=1)
            last_pts = max(last_pts + 1, round(start / _TIME_BASE))
            image.pts, image.time_base, image.pict_type = last_pts, _TIME_BASE, PictureType.NONE
            container.mux(stream.encode(image))
        container.mux(stream.encode())
        fps = reader.fps
    return buffer.getvalue(), count, fps


def _add_stream(container, shape, fps: float, crf: int, gop_size: int, pixel_format: str, preset: str):
    has_x264 = "libx264" in av.codecs_available  # some system builds of FFmpeg lack it
    stream = container.add_stream("libx264" if has_x264 else "mpeg4", rate=Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = pixel_format if has_x264 else "yuv420p"
    stream.gop_size = gop_size
    stream.thread_count = 1  # callers run several processes
    if has_x264:
        # At small widths x264's macroblock tree reads memory that nobody wrote: bytes would change by run
        stream.options = {"crf": str(crf), "preset": preset, "tune": "fastdecode", "mbtree": "0"}
    else:
        stream.options = {"qscale": "2"}
    return stream
