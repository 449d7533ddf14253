"""Reading without PyAV: limits, paths and URLs, images, and what the packets of a video say of its frames.

The readers import no torch: the app reads uploads in a process with little memory.

Legend: T frames, N numbers, H W pixels.
"""

from __future__ import annotations

import io
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps


# fmt: off
VIDEO_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".3gp",
    ".ogv", ".vob", ".gif", ".y4m", ".asf", ".mjpeg",
)
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# fmt: on

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20
_MOST_REORDERED = 16  # frames by which a codec's order of decoding and of presentation may differ
_warned_of_repeats = False


class VideoDecodeError(ValueError):
    """A video, the requested part of it, or an image cannot be decoded."""


@dataclass(frozen=True)
class ReadLimits:
    """What data that nobody has checked may cost and reach.

    Args:
        max_frame_pixels: height times width of a frame or an image. Larger ones are refused before memory is allocated
            for them. The default holds 8K video.
        max_bytes: bytes of one encoded video, image or column value.
        timeout: seconds to wait for a URL to answer, and again for each further mebibyte.
        allow_urls: whether rows of a dataset may name URLs. A URL that you pass to `VideoReader`, `read_video` or
            `read_image` yourself is always read.
        allow_outside: whether rows of a dataset may name files outside of the dataset's folder. A path that you pass
            yourself is always read.
    """

    max_frame_pixels: int = 2**25
    max_bytes: int = 2**31
    timeout: float = 60.0
    allow_urls: bool = False
    allow_outside: bool = False

    def __post_init__(self) -> None:
        for name in ("max_frame_pixels", "max_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1.")
        seconds = self.timeout
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise ValueError(f"timeout is {seconds!r}; expected a positive number of seconds.")
        for name in ("allow_urls", "allow_outside"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected True or False.")

    def check_bytes(self, size: int, name: str) -> None:
        """Refuses a value of `size` bytes above `max_bytes`, with a VideoDecodeError that calls it `name`."""
        if size > self.max_bytes:
            advice = "raise max_bytes if you trust it"
            raise VideoDecodeError(f"{name} has {size:,} bytes, more than max_bytes={self.max_bytes:,}; {advice}.")

    def check_pixels(self, height: int, width: int, name: str) -> None:
        """Refuses a frame or an image above `max_frame_pixels`, with a VideoDecodeError that calls it `name`."""
        if height * width > self.max_frame_pixels:
            limit = f"more pixels than max_frame_pixels={self.max_frame_pixels:,}"
            raise VideoDecodeError(f"{name} is {width} x {height}, {limit}; raise the limit if you trust it.")


def resolve_source(
    source: bytes | str | os.PathLike | dict, kind: str = "video", limits: ReadLimits | None = None
) -> tuple[Any, str]:
    """A file object or the path of an existing file, and a name for error messages.

    The source is bytes, a path, a URL (read as a whole), or datasets' `{"bytes": …, "path": …}`.
    """
    if limits is not None and not isinstance(limits, ReadLimits):
        raise ValueError(f"limits is {limits!r}; expected a ReadLimits, such as ReadLimits(timeout=10), or None.")
    limits = limits or ReadLimits()
    name = f"the {kind}"
    if isinstance(source, dict):
        name = str(source.get("path") or name)
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (bytes, bytearray, memoryview)):
        limits.check_bytes(memoryview(source).nbytes, name)
        return io.BytesIO(source), name
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"The {kind} must be given as bytes, a path or a URL, not as {type(source).__name__}.")
    source = os.fspath(source)
    if isinstance(source, bytes):
        source = os.fsdecode(source)
    if "://" in source:  # http, hf, s3, ...
        return io.BytesIO(_download(source, limits)), source
    if "\0" in source or not os.path.isfile(source):
        raise FileNotFoundError(f"There is no {kind} file at {source!r}; give the path of an existing file.")
    limits.check_bytes(os.path.getsize(source), source)
    return source, source


def _download(url: str, limits: ReadLimits) -> bytes:
    """The bytes at a URL; a VideoDecodeError if it does not answer in time or cannot be read."""
    chunks: queue.SimpleQueue = queue.SimpleQueue()
    stopped = threading.Event()

    def read() -> None:
        try:
            for chunk in _chunks(url, limits):
                chunks.put(chunk)
                if stopped.is_set():
                    return
            chunks.put(None)
        except BaseException as error:  # raised again by the caller
            chunks.put(error)

    # A connection that hangs cannot be interrupted: the thread is left to itself, and ends with the process
    threading.Thread(target=read, daemon=True, name=f"read {url:.60}").start()
    content = bytearray()
    try:
        while (found := chunks.get(timeout=limits.timeout)) is not None:
            if isinstance(found, BaseException):
                raise found
            content += found
            limits.check_bytes(len(content), url)
    except queue.Empty:
        raise VideoDecodeError(f"{url} did not answer within {limits.timeout:g} s; try again, or copy it.") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file at {url!r}; check the address.") from error
    except VideoDecodeError:
        raise
    except Exception as error:  # of fsspec's backends, each with errors of its own
        raise VideoDecodeError(f"{url} cannot be read ({type(error).__name__}: {error}).") from error
    finally:
        stopped.set()
    return bytes(content)


def _chunks(url: str, limits: ReadLimits) -> Iterator[bytes]:
    import fsspec

    with fsspec.open(url, "rb") as file:
        size = getattr(file, "size", None)
        if isinstance(size, int):
            limits.check_bytes(size, url)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


# --- Images


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


def turn_image(image: np.ndarray, matrix: tuple[float, float, float, float]) -> np.ndarray:
    """Applies a display matrix to an image (H, W, 3). Quarter turns (to 1 degree) and flips move pixels.

    Other angles turn it about its center, in its size, with black corners, as FFmpeg does.
    """
    a, b, c, d = matrix
    if max(abs(a), abs(d)) < 0.0175:
        image, a, d = image.transpose(1, 0, 2), c, b
    elif max(abs(b), abs(c)) >= 0.0175:
        area = a * d - b * c
        inverse = np.array([[d, -c], [-b, a]]) / area
        center = np.array([image.shape[1] / 2, image.shape[0] / 2])
        shift = center - inverse @ center
        rows = (*inverse[0], shift[0], *inverse[1], shift[1])
        source = PIL.Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(source.transform(source.size, PIL.Image.AFFINE, rows, PIL.Image.BILINEAR))
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# --- Packets and times: which packets show a frame, when, and at which of them decoding can begin


def packet_reader(codec: str, extradata: bytes | None) -> tuple[bool, Callable[[Any], tuple[bool, bool]] | None]:
    """How packets of a codec are read: (all packets or those flagged as key alone, a function of PyAV's packet).

    The function says (shows a frame, decoding can begin here). It is None where packets and frames do not correspond
    one to one, or it is not known whether they do. Containers flag packets as key that are not: recovery points of an
    intra refresh, and every packet where the flags are missing. NAL units are length-prefixed, as in mp4 and Matroska.
    """
    extradata = extradata or b""
    if codec == "h264" and len(extradata) > 4 and extradata[0] == 1:
        size = (extradata[4] & 3) + 1
        return False, lambda packet: (True, _first_slice(packet, size, 0, 31, range(1, 6), _is_recovery) == 5)
    if codec == "hevc" and len(extradata) > 21 and extradata[0] == 1:
        size = (extradata[21] & 3) + 1
        return False, lambda packet: (True, 16 <= _first_slice(packet, size, 1, 63, range(32)) <= 21)
    if codec == "av1":
        return False, _read_av1
    return True, {"vp8": _read_vp8, "vp9": _read_vp9}.get(codec)


def _first_slice(
    packet: Any, length_size: int, shift: int, mask: int, slices: range, is_recovery: Callable | None = None
) -> int:
    """The type of the first NAL unit that holds a part of a frame; -1 if there is none.

    With `is_recovery`, an exact recovery point before it counts as type 5, a key frame.
    """
    data, position = memoryview(packet), 0
    while position + length_size < len(data):
        kind = (data[position + length_size] >> shift) & mask
        if kind in slices:
            return kind
        end = position + length_size + int.from_bytes(data[position : position + length_size], "big")
        if is_recovery is not None and kind == 6 and is_recovery(bytes(data[position + length_size + 1 : end])):
            return 5
        position = end
    return -1


def _is_recovery(messages: bytes) -> bool:
    """Whether H.264's SEI messages (rec. H.264, D.1.8) say that decoding from here shows this frame and all later ones
    exactly, as at the I-frame of an open GOP. An intra refresh needs further frames."""
    position = 0
    while position + 2 < len(messages):
        kind, size = messages[position], messages[position + 1]
        if kind == 6:
            return messages[position + 2] & 0xC0 == 0xC0  # recovery_frame_cnt 0 is one bit, exact_match_flag the next
        if 255 in (kind, size):
            return False  # longer codes
        position += 2 + size
    return False


def _read_vp8(packet: Any) -> tuple[bool, bool]:
    first = memoryview(packet)[0] if packet.size else 0  # RFC 6386, section 9.1
    return bool(first & 0x10), not first & 1


def _read_vp9(packet: Any) -> tuple[bool, bool]:
    data = memoryview(packet) if packet.size else b"\0"
    first = data[0]  # uncompressed header: marker (2 bits), profile (2), a zero if the profile is 3, then these
    bits = first << 1 if first & 0x30 == 0x30 else first
    shows_existing, is_inter, is_shown = bits & 8, bits & 4, bits & 2
    in_superframe = data[-1] & 0xE0 == 0xC0  # hidden frames with the one that is shown
    is_start = packet.is_keyframe and not shows_existing and not is_inter
    return bool(shows_existing or is_shown or in_superframe), is_start


def _read_av1(packet: Any) -> tuple[bool, bool]:
    # A temporal unit shows one frame. Where decoding can begin, it starts with a sequence header (OBU type 1), after
    # a temporal delimiter (type 2, 2 bytes) at most
    kinds = [(byte >> 3) & 15 for byte in memoryview(packet)[:3]] if packet.size > 2 else [0]
    return True, kinds[0] == 1 or kinds == [2, 0, 1]


def frame_times(pts: Sequence[int | None], time_base: Fraction | None, rate: float) -> np.ndarray:
    """Seconds (T,) of the frames from the first on. The rate counts them where times are missing or jump back."""
    if None not in pts and time_base:
        values = np.asarray(pts, np.int64)
        order = np.argsort(values, kind="stable")
        values = values[order]
        # Times of decoding taken for times of presentation are the same times in another order
        if (np.diff(values) > 0).all() and np.abs(order - np.arange(len(order))).max() <= _MOST_REORDERED:
            return (values - values[0]) * float(time_base)
    return np.arange(len(pts)) / rate


def finite_numbers(values: Sequence[float], what: str, name: str) -> np.ndarray:
    """A sequence of finite numbers, float64 (N,)."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = None
    if numbers is None or numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError(
            f"The {what} requested from {name} are {values!r:.80}; expected a sequence of finite numbers."
        )
    return numbers


def warn_of_repeats(asked: float, fps: float, name: str) -> None:
    """Warns once per process: with several videos, the first one is named."""
    global _warned_of_repeats
    if not _warned_of_repeats:
        _warned_of_repeats = True
        logger.warning(
            "%s has %.4g frames per second, and %.4g per second are requested: frames repeat. Ask for at most the "
            "video's own rate. Further videos are not named.",
            name,
            fps,
            asked,
        )
