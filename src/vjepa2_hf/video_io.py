"""Reading of video files with PyAV.

Legend: T frames, H W pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from .video_source import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    ReadLimits,
    VideoDecodeError,
    finite_numbers,
    frame_times,
    packet_reader,
    read_image,
    resolve_source,
    turn_image,
    warn_of_repeats,
)


__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "ReadLimits",
    "VideoDecodeError",
    "VideoReader",
    "display_matrix",
    "read_image",
    "read_video",
    "resolve_source",
    "torchcodec_decoder",
]

logger = logging.getLogger(__name__)

# FFmpeg's names of the containers that are read. Playlists, session descriptions and concatenations are left out: they
# open other files and sockets
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,m4v,h261,h263,h264,hevc,vvc,vc1,av1,obu,ivf,mjpeg,"
    "flv,asf,ogg,gif,apng,yuv4mpegpipe,nut,mxf,rm,dv,dirac,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
_TRUSTED_CONTAINERS = ("mov,mp4", "matroska")  # those that store presentation times and key frames
_NOT_THE_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


@functools.cache
def torchcodec_decoder() -> type | None:
    """torchcodec's `VideoDecoder` for tests to compare with, or None if it cannot be imported.

    `VideoReader` does not use it: PyAV is as fast, and which package is installed must not change results.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # ImportError, OSError or RuntimeError, for example without its FFmpeg
        logger.debug("torchcodec cannot be imported (%s)", error)
        return None
    return VideoDecoder


@contextlib.contextmanager
def _refuse_damage(name: str, what: str = "") -> Iterator[None]:
    """Turns PyAV's errors for a corrupt video into a VideoDecodeError that names it."""
    try:
        yield
    except VideoDecodeError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, IndexError, MemoryError) as error:  # IndexError: cut MPEG-TS
        raise VideoDecodeError(f"{name} cannot be decoded{what} ({error or type(error).__name__}).") from error


class VideoReader:
    """Random access to the frames of one video, by their index in order of presentation.

    A table lists the frames and their times. It is read from the packets, without decoding, where container and codec
    allow (mp4, mov, Matroska and WebM with H.264, HEVC, VP8, VP9, AV1 or key frames alone), else from one decoding of
    the whole file. Decoded frames are compared with the table: a file whose container lies is decoded in order, and
    one of which frames are missing is refused. So the frames are those of decoding the file from its start, whatever
    is asked for.

    The video is the stream that FFmpeg takes for the best one, never a cover image or thumbnails. Frames are turned
    and mirrored as the file's display matrix says. Frames whose size differs from the first frame's are resized to it.

    Args:
        source: bytes of a video file, a path, a URL, or datasets' `{"bytes": ..., "path": ...}`.
        limits: sizes above which a video is refused, and how long a URL may take; None: the defaults of `ReadLimits`.

    Attributes:
        times: float64 (T,) seconds of each frame, the first at 0.
        fps: average frames per second.
        pixel_aspect: width / height of a pixel before rotation; 1 except for anamorphic video.

    Raises:
        VideoDecodeError: FFmpeg cannot read it, it exceeds a limit, or it holds no video frame.
        FileNotFoundError: the path does not exist.
    """

    def __init__(self, source: bytes | str | os.PathLike | dict, limits: ReadLimits | None = None):
        self._limits = limits or ReadLimits()
        self._source, self.name = resolve_source(source, limits=self._limits)
        self._container = None
        with _refuse_damage(self.name, " as a video"), contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self._open()
            self.pixel_aspect = float(self._stream.sample_aspect_ratio or 1)
            self._to_rgb = _RgbConverter(self._stream.width, self._stream.height)
            self._trusted = self._read_packets()
            if not self._trusted:
                self._read_by_decoding()
            on_error.pop_all()  # stays open

    def _open(self) -> None:
        """Opens the container at its first packet."""
        self.close()
        source = self._source
        if isinstance(source, io.BytesIO):
            source.seek(0)
        else:
            source = f"file:{source}"  # a name with a colon would be taken for a protocol
        reach = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        # FFmpeg counts the pixels that pad a frame to whole blocks, too; the frame's own are checked exactly
        options = {"max_pixels": str(2 * self._limits.max_frame_pixels + 2**16)}
        self._container = av.open(source, options=options, container_options=reach, metadata_errors="replace")
        self._stream = _video_stream(self._container, self.name)
        self._stream.thread_type = "NONE"  # frame threads are slower at clip sizes
        self._stream.thread_count = 1
        self._limits.check_pixels(self._stream.height, self._stream.width, f"A frame of {self.name}")
        self._stream.codec_context.options = options

    def _read_packets(self) -> bool:
        """The table from the packets; False, and no table, where they do not determine it."""
        context = self._stream.codec_context
        reads_all, read = packet_reader(context.codec.canonical_name, context.extradata)
        if read is None and context.codec.intra_only:
            reads_all, read = True, _read_intra
        is_progressive = context.field_order in (0, 1)  # unknown or progressive; else fields may be packets
        if read is None or not is_progressive or not self._container.format.name.startswith(_TRUSTED_CONTAINERS):
            return False
        ordinary = (True, False)
        packets = [
            (packet.pts, packet.size, is_key, packet.is_discard, read(packet) if is_key or reads_all else ordinary)
            for packet in self._container.demux(self._stream)
            if packet.size or packet.pts is not None  # the last one flushes the decoder
            for is_key in (packet.is_keyframe,)
        ]
        if not packets:
            raise VideoDecodeError(f"{self.name} holds no video frame.")
        pts, sizes, _, _, kinds = zip(*packets, strict=True)
        if None in pts or len(set(pts)) < len(pts) or not all(sizes) or not kinds[0][1]:
            return False
        self._key_pts = sorted(time for time, (_, is_start) in zip(pts, kinds, strict=True) if is_start)
        packets.sort()
        table = [(time, is_key, size) for time, size, is_key, left_out, kind in packets if kind[0] and not left_out]
        if not table:
            return False
        self._set_table(*zip(*table, strict=True))
        return True

    def _read_by_decoding(self) -> None:
        """The table from one decoding of the whole file, in order."""
        self._trusted, found = False, []
        for frame in self._in_order():
            if not found:
                self._limits.check_pixels(frame.height, frame.width, f"A frame of {self.name}")
                self._to_rgb = _RgbConverter(frame.width, frame.height)
            found.append((frame.pts, frame.key_frame, frame.opaque or 0))
        if not found:
            raise VideoDecodeError(f"{self.name} holds no video frame.")
        self._set_table(*zip(*found, strict=True))

    def _set_table(self, pts: Sequence[int | None], is_key: Sequence[bool], sizes: Sequence[int]) -> None:
        rate = self._stream.average_rate or self._stream.guessed_rate or 25
        self._pts, self._is_key, self._sizes = pts, np.array(is_key, bool), np.array(sizes, np.float64)
        self.times = frame_times(pts, self._stream.time_base, float(rate))
        self.fps = (len(self.times) - 1) / self.times[-1] if self.times[-1] > 0 else float(rate)

    def __len__(self) -> int:
        return len(self._pts)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._container is not None:
            self._container.close()

    @property
    def duration(self) -> float:
        """Seconds, including the last frame."""
        return float(self.times[-1] + 1 / self.fps)

    def indices_at(self, times: Sequence[float]) -> np.ndarray:
        """Indices of the frames shown at these times (seconds from the first frame).

        Warns once if the times follow each other faster than the video's frames, so that frames repeat.
        """
        times = finite_numbers(times, "times", self.name)
        steps = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0
        if 0 < steps * self.fps < 0.99 and len(self) > 1:
            warn_of_repeats(1 / steps, self.fps, self.name)
        # Half a millisecond of slack: 3 / 30 must not fall before a frame stored at 0.1
        return np.clip(np.searchsorted(self.times, times + 5e-4, side="right") - 1, 0, len(self) - 1)

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
        known = len(self)
        asked = np.arange(known) if indices is None else self._check_indices(indices)
        is_sorted = bool((asked[1:] > asked[:-1]).all())
        wanted, inverse = (asked, None) if is_sorted else np.unique(asked, return_inverse=True)
        with _refuse_damage(self.name):
            found = self._seek_and_decode(wanted) if self._trusted else None
            if found is None:
                if self._trusted:
                    logger.info("%s: decoded frames differ from the container's table; decoding in order", self.name)
                    self._read_by_decoding()
                if len(self) != known:
                    if indices is None:
                        return self.frames()
                    what = f"its container lists {known} frames, of which {len(self)} can be decoded"
                    raise VideoDecodeError(f"{self.name} cannot be decoded: {what}.")
                found = self._decode_in_order(wanted)
        return found if is_sorted else found[inverse]

    def _check_indices(self, indices: Sequence[int]) -> np.ndarray:
        asked = finite_numbers(indices, "frame indices", self.name)
        in_range = len(asked) > 0 and asked.min() >= 0 and asked.max() < len(self)
        whole = asked.astype(np.int64) if in_range else asked
        if not in_range or (asked != whole).any():
            values = "none" if len(asked) == 0 else f"{asked.min():g} to {asked.max():g}"
            raise ValueError(
                f"Frames {values} were requested from {self.name}, which has frames 0 to {len(self) - 1}; "
                "give one or more whole numbers among them."
            )
        return whole

    def iterate(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """All frames in order, not converted: (seconds from the first frame, PyAV's frame).

        A VideoDecodeError if their number is not that of the table.
        """
        with _refuse_damage(self.name):
            count, damaged = 0, False
            for frame in self._in_order():
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                self._check_damage(damaged, count)
                if count == 0 and self._trusted and frame.pts != self._pts[0]:
                    self._read_by_decoding()
                    yield from self.iterate()
                    return
                if count < len(self):
                    yield float(self.times[count]), frame
                count += 1
            if count != len(self):
                lists = f"its container lists {len(self)} frames, and {count} appear"
                raise VideoDecodeError(f"{self.name} cannot be decoded to its end: {lists}.")

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """A decoded frame as upright uint8 (H, W, 3), in the size of the first frame."""
        return np.ascontiguousarray(self._to_rgb(frame))

    def _in_order(self) -> Iterator[av.VideoFrame]:
        """All frames from the first packet on."""
        if self._trusted:
            self._rewind()
        else:
            self._open()  # some containers do not seek to their first packet
            self._stream.codec_context.copy_opaque = True
        started = False
        for packet in self._container.demux(self._stream):
            if not packet.size:  # Theora repeats a frame; the last one flushes
                continue
            packet.opaque = packet.size
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if started or self._trusted:
                    raise
                continue  # a recording that begins between two key frames
            for frame in frames:
                started = True
                yield frame
        yield from self._stream.codec_context.decode(None)

    def _rewind(self) -> None:
        try:
            self._container.seek(0, any_frame=False)
        except av.FFmpegError:
            # Some containers refuse it for streams that start after time 0
            self._container.seek(self._stream.start_time or 0, stream=self._stream, any_frame=False)

    def _decode_in_order(self, wanted: np.ndarray) -> np.ndarray:
        found, damaged = _Frames(len(wanted)), False
        for number, frame in enumerate(self._in_order()):
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if number == wanted[found.count]:
                self._check_damage(damaged, number)
                found.add(self._to_rgb(frame))
                if found.count == len(wanted):
                    return found.array
        raise VideoDecodeError(f"{self.name} cannot be decoded: {len(wanted) - found.count} frames did not appear.")

    def _seek_and_decode(self, wanted: np.ndarray) -> np.ndarray | None:
        """The wanted frames (sorted indices), decoded from as few key frames as possible.

        None if a decoded frame is not the next one in the table.
        """
        found, targets, length = _Frames(len(wanted)), [self._pts[index] for index in wanted], len(self)
        while found.count < len(targets):
            key = bisect.bisect_right(self._key_pts, targets[found.count]) - 1
            if key < 0:
                return None
            start = self._key_pts[key]
            self._container.seek(start, stream=self._stream)
            number, damaged = bisect.bisect_left(self._pts, start) - 1, False
            for frame in self._container.decode(self._stream):
                current = frame.pts
                if current is not None and current < start:
                    continue  # shown before the key frame, decoded after it
                number += 1
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                if number == length or current != self._pts[number]:
                    return None
                if current == targets[found.count]:
                    self._check_damage(damaged, number)
                    found.add(self._to_rgb(frame))
                    if found.count == len(targets) or self._key_between(number, targets[found.count]):
                        break
            else:
                return None
        return found.array

    def _check_damage(self, damaged: bool, number: int) -> None:
        """Refuses a frame of which parts are guessed, and those that follow it up to the next key frame."""
        if damaged:
            raise VideoDecodeError(f"{self.name} cannot be decoded: frame {number}, or one that it needs, is damaged.")

    def _key_between(self, number: int, target: int) -> bool:
        """Whether seeking is faster: a key frame lies well after frame `number` and not after the target."""
        last = self._key_pts[bisect.bisect_right(self._key_pts, target) - 1]
        # A seek flushes the decoder, which costs about 4 frames
        return number + 4 < len(self._pts) and last > self._pts[number + 4]


class _Frames:
    """An array (T, H, W, 3) that is filled one frame at a time."""

    def __init__(self, length: int):
        self.length, self.count, self.array = length, 0, None

    def add(self, frame: np.ndarray) -> None:
        if self.array is None:
            self.array = np.empty((self.length, *frame.shape), np.uint8)
        self.array[self.count] = frame
        self.count += 1


class _RgbConverter:
    """Converts decoded frames to upright uint8 (H, W, 3) of one size, the colors as FFmpeg's command line has them."""

    def __init__(self, width: int, height: int):
        self.size = (width, height)
        self._reformatter = VideoReformatter()  # one for all frames: its tables cost more than a small frame
        self._graph: tuple[Any, Graph | None] = (None, None)
        self._reads_matrix: bool | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """A view of the converted frame's memory."""
        matrix = None
        if self._reads_matrix is not False or frame.rotation:  # side data costs more than the rotation alone
            matrix = display_matrix(frame)
            self._reads_matrix = matrix is not None
        if frame.interlaced_frame or _is_deep(frame.format.name):
            frame = self._filter(frame)
        if (frame.width, frame.height) == self.size:
            frame = self._reformatter.reformat(frame, format="rgb24", threads=1)
        else:
            bicubic = Interpolation.BICUBIC
            frame = self._reformatter.reformat(frame, *self.size, format="rgb24", interpolation=bicubic, threads=1)
        plane = frame.planes[0]
        image = np.ndarray((frame.height, frame.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
        return image if matrix is None else turn_image(image, matrix)

    def _filter(self, frame: av.VideoFrame) -> av.VideoFrame:
        """RGB of interlaced frames and of more than 8 bits: PyAV rounds their chroma otherwise than FFmpeg."""
        kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if self._graph[0] != kind:
            graph = Graph()
            size = {"width": frame.width, "height": frame.height}
            source = graph.add_buffer(**size, format=frame.format.name, time_base=frame.time_base or Fraction(1, 1000))
            graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
            self._graph = (kind, graph)
        self._graph[1].push(frame)
        return self._graph[1].pull()


@functools.cache
def _is_deep(pixel_format: str) -> bool:
    return any(component.bits > 8 for component in av.VideoFormat(pixel_format).components)


def _read_intra(packet: av.Packet) -> tuple[bool, bool]:
    """As `packet_reader`, for codecs whose frames all are key frames."""
    return True, True


def _video_stream(container: Any, name: str) -> Any:
    """The stream that is the video: FFmpeg's best one, but no cover image and no thumbnails."""
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & _NOT_THE_VIDEO
    ]
    if not streams:
        raise VideoDecodeError(f"{name} holds no video stream.")
    best = container.streams.best("video")
    if best is not None and any(stream.index == best.index for stream in streams):
        return best
    return max(streams, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.width or 0))


def display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float] | None:
    """(a, b, c, d) of the display matrix, scaled to keep areas, or None if there is nothing to do.

    x' = a x + c y and y' = b x + d y, where x and y point right and down.
    """
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # side data of a kind that PyAV does not know
        angle = math.radians(-frame.rotation)
        a, b, c, d = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    else:
        if data is None:
            return None
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.float64)
    area = abs(a * d - b * c)
    if not area > 1e-6 * max(abs(value) for value in (a, b, c, d)) ** 2:
        return None  # maps everything to a line
    a, b, c, d = (value / math.sqrt(area) for value in (a, b, c, d))
    return None if min(a, d) > 0 and max(abs(b), abs(c)) < 0.0175 else (a, b, c, d)


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


def __getattr__(name: str) -> Any:
    """`encode_video` and `transcode_video`, which are now in `vjepa2_hf.data.video_writing`."""
    if name in ("encode_video", "transcode_video"):
        try:
            from vjepa2_hf.data import video_writing
        except ImportError as error:
            raise ImportError(f"{name} needs the package vjepa2_hf: pip install vjepa2_hf.") from error
        return getattr(video_writing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
