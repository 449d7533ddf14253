"""Where the bytes of a video or an image come from, and how much of them is read: limits, paths, URLs."""

from __future__ import annotations

import io
import math
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


# fmt: off
VIDEO_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".3gp",
    ".ogv", ".vob", ".gif", ".y4m", ".asf", ".mjpeg",
)
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# fmt: on

_CHUNK_BYTES = 2**20


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
