"""Checks of uploaded videos and images, and the files that a session keeps.

An upload may come from anybody. It is read in a process of its own with bounded time, memory and rights. That process
checks the type by content, then resolution and length by the header, and only then decodes. Small frames come back, or
a `Refused`: one sentence for the page, without any path or file name. Everything else goes to the log.

This file needs no gradio. Shapes: T frames, H W pixels.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


logger = logging.getLogger(__name__)

Kind = Literal["video", "image"]

# FFmpeg's names of the containers that are read: fewer than the package reads
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,gif"
EXPECTED = {"video": "a video: mp4, mov, webm, mkv, avi or gif", "image": "an image: png, jpeg, webp, bmp or gif"}
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError)  # of Pillow
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's names
REFUSED = 3  # exit code of the reading process
UNEXPECTED = "Something went wrong. The log of the server says what; try another clip, model or setting."


class Refused(ValueError):
    """One sentence for the page. It names no path and no file, and repeats nothing that an uploaded file says."""


@dataclass(frozen=True)
class UploadLimits:
    """What one upload may cost.

    Args:
        max_bytes: of the file.
        max_seconds: of a video.
        max_frame_pixels: height times width of a frame or an image.
        timeout: seconds until the process that reads it is stopped.
        memory: bytes of address space of that process (on Linux).
        max_frames: frames that are kept of a video, from its start.
        max_fps: frames per second that are kept of a video, at most.
        max_kept_pixels: height times width of a kept frame; larger ones are resized.
    """

    max_bytes: int = 50 * 2**20
    max_seconds: float = 120.0
    max_frame_pixels: int = 3840 * 2160
    timeout: float = 30.0
    memory: int = 3 * 2**30
    max_frames: int = 96
    max_fps: float = 10.0
    max_kept_pixels: int = 2**17


LIMITS = UploadLimits()


class Clip(NamedTuple):
    """What is kept of an upload; an image is a clip of one frame."""

    frames: np.ndarray  # uint8 (T, H, W, 3)
    fps: float
    seconds: float  # of the whole upload, of which the frames may be the beginning


def sentence_of(error: Exception) -> str:
    """What the page shows of an error: the sentence of a `Refused`, else a general one, and the log has the rest."""
    if isinstance(error, Refused):
        return str(error)
    logger.error("A request failed.", exc_info=error)
    return UNEXPECTED


def hide_paths(text: str) -> str:
    """A text with the last part alone of absolute paths, for texts that the page shows as they are (model cards)."""
    text = re.sub(r"(?:file://|(?<![\w/.]))~?/(?:[^\s/`'\"<>|()]+/)+", "…/", text)
    return re.sub(r"\b[A-Za-z]:\\(?:[^\s\\`'\"<>|()]+\\)+", r"…\\", text)


# --- In the app's process


def read_upload(path: str | os.PathLike, kind: Kind, limits: UploadLimits = LIMITS) -> Clip:
    """Checks an uploaded file and reads its frames; a `Refused` says why it is not taken."""
    try:
        file = open(path, "rb")  # noqa: SIM115, closed below
    except (OSError, ValueError) as error:
        raise Refused("The upload is no longer on the server; choose the file again.") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise Refused(f"The upload is empty; expected {EXPECTED[kind]}.")
        if size > limits.max_bytes:
            raise Refused(f"The upload has {_mebibytes(size)}, more than the {_mebibytes(limits.max_bytes)} allowed.")
        package = importlib.util.find_spec("vjepa2_hf").submodule_search_locations[0]
        command = [sys.executable, __file__, package, kind, json.dumps(dataclasses.asdict(limits))]
        given = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")  # no tokens
        environment = {name: os.environ[name] for name in given if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=limits.timeout, env=environment)
        except subprocess.TimeoutExpired as error:
            limit = f"more than the {limits.timeout:g} seconds allowed"
            raise Refused(f"Reading the {kind} takes {limit}; choose a shorter or smaller one.") from error
    details = done.stderr.decode(errors="replace").strip()
    if done.returncode == REFUSED:
        logger.info("An upload was refused. %s", details)
        raise Refused(done.stdout.decode())
    if done.returncode != 0:
        logger.warning("The process that read an upload ended with code %s. %s", done.returncode, details)
        raise Refused(f"The {kind} cannot be read within the limits of time and memory; choose another one.")
    return _load_clip(io.BytesIO(done.stdout))


def read_image(path: str | os.PathLike, limits: UploadLimits = LIMITS) -> np.ndarray:
    """An uploaded image, uint8 (H, W, 3); see `read_upload`."""
    return read_upload(path, "image", limits).frames[0]


class SessionFiles:
    """Uploads of sessions: a folder for each. It is removed with the session, at the end of the process, and when the
    session uploaded nothing for `lifetime` seconds. Names of sessions come from browsers, so they are hashed."""

    def __init__(self, lifetime: float = 3600.0):
        self._temporary = tempfile.TemporaryDirectory(prefix="vjepa2-app-")
        self.root = Path(self._temporary.name)
        self._lifetime = lifetime
        self._uploads: dict[str, set[Path]] = {}
        self._lock = threading.Lock()

    def take(self, session: str, path: str | os.PathLike, kind: Kind, limits: UploadLimits = LIMITS) -> Clip:
        """Reads an upload (see `read_upload`) and keeps it in place of the session's earlier one. The uploaded file is
        removed with the session, too."""
        oldest = time.time() - self._lifetime
        for other in [name for name in list(self._uploads) if self._last_used(name) < oldest]:
            self.forget(other)
        with self._lock:
            self.folder(session).mkdir(exist_ok=True)
            self._uploads.setdefault(session, set()).add(Path(path))
        clip = read_upload(path, kind, limits)
        with self._lock:
            self.folder(session).mkdir(exist_ok=True)
            np.savez(self.folder(session) / f"{kind}.npz", **clip._asdict())
        return clip

    def load(self, session: str, kind: Kind) -> Clip:
        """The session's last upload of this kind."""
        with self._lock:
            try:
                return _load_clip(self.folder(session) / f"{kind}.npz")
            except FileNotFoundError as error:
                raise Refused(f"There is no uploaded {kind}; upload one first.") from error

    def forget(self, session: str) -> None:
        """Removes all files of a session."""
        with self._lock:
            shutil.rmtree(self.folder(session), ignore_errors=True)
            gone = self._uploads.pop(session, set())
            for path in gone.difference(*self._uploads.values()):  # gradio gives equal files of two sessions one path
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # gradio's folder of this file

    def close(self) -> None:
        """Removes the files of all sessions."""
        for session in list(self._uploads):
            self.forget(session)
        self._temporary.cleanup()

    def folder(self, session: str) -> Path:
        return self.root / hashlib.sha256(session.encode(errors="replace")).hexdigest()[:32]

    def _last_used(self, session: str) -> float:
        folder = self.folder(session)
        return folder.stat().st_mtime if folder.exists() else 0.0


def _load_clip(source: Any) -> Clip:
    with np.load(source, allow_pickle=False) as found:
        return Clip(found["frames"], float(found["fps"]), float(found["seconds"]))


# --- In the process that reads one upload


def main() -> None:
    """Reads an upload from the standard input; writes its frames as .npz, or a sentence, to the standard output."""
    package, kind, settings = sys.argv[1:]
    limits = UploadLimits(**json.loads(settings))
    _bound_process(limits)
    # `vjepa2_hf.video_io` alone: the import of the whole package takes seconds (PyTorch)
    sys.modules["vjepa2_hf"] = types.ModuleType("vjepa2_hf")
    sys.modules["vjepa2_hf"].__path__ = [package]
    try:
        clip = read_content(sys.stdin.buffer.read(limits.max_bytes + 1), kind, limits)
    except Refused as error:
        sys.stderr.write(repr(error.__cause__))
        sys.stdout.buffer.write(str(error).encode())
        sys.exit(REFUSED)
    buffer = io.BytesIO()
    np.savez(buffer, **clip._asdict())
    sys.stdout.buffer.write(buffer.getbuffer())


def read_content(content: bytes, kind: Kind, limits: UploadLimits) -> Clip:
    """Checks and decodes the bytes of an upload, in the process that calls it."""
    return _read_video(content, limits) if kind == "video" else _read_image(content, limits)


def _bound_process(limits: UploadLimits) -> None:
    if sys.platform != "linux":
        return
    import resource

    seconds = math.ceil(limits.timeout) + 1
    for name, most in (("RLIMIT_AS", limits.memory), ("RLIMIT_CPU", seconds), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        resource.setrlimit(getattr(resource, name), (most, most))


def _read_video(content: bytes, limits: UploadLimits) -> Clip:
    from vjepa2_hf.video_io import ReadLimits, VideoDecodeError, VideoReader

    _check_header(content, limits)
    try:
        with VideoReader(content, ReadLimits(max_frame_pixels=limits.max_frame_pixels)) as reader:
            if len(reader) < 2:
                raise Refused("The video has one frame; expected a video that moves.")
            _check_seconds(reader.duration, limits)
            fps = min(reader.fps, limits.max_fps)
            count = min(limits.max_frames, math.floor(reader.times[-1] * fps + 1e-3) + 1)
            numbers = reader.indices_at(np.arange(count) / fps)
            kept: dict[int, np.ndarray] = {}
            for number, (_, frame) in enumerate(reader.iterate()):
                if number in numbers:
                    kept[number] = _shrink(reader.to_rgb(frame), limits)
                if number == numbers[-1]:
                    break
            return Clip(np.stack([kept[number] for number in numbers]), fps, reader.duration)
    except VideoDecodeError as error:
        problem = "The video is damaged, or its codec is not supported"
        raise Refused(f"{problem}; H.264 in an mp4 file works.") from error


def _check_header(content: bytes, limits: UploadLimits) -> None:
    """Type, resolution and length, as far as the header has them."""
    import av

    found = _image_format(content)
    if found is not None:
        raise Refused(f"The upload is an image ({found}); expected {EXPECTED['video']}.")
    pixels = {"max_pixels": str(2 * limits.max_frame_pixels + 2**16)}  # FFmpeg counts padding, too
    reach = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(io.BytesIO(content), options=pixels, container_options=reach, metadata_errors="replace")
    except (av.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        raise Refused(f"The upload is not a video that can be read; expected {EXPECTED['video']}.") from error
    with container:
        if not container.streams.video:
            raise Refused(f"The upload has no video stream; expected {EXPECTED['video']}.")
        for stream in container.streams.video:
            _check_pixels(stream.height or 0, stream.width or 0, limits)
            if stream.duration is not None and stream.time_base:
                _check_seconds(float(stream.duration * stream.time_base), limits)
        if container.duration is not None:
            _check_seconds(container.duration / av.time_base, limits)


def _image_format(content: bytes) -> str | None:
    """The format of a still image, as its content says; None for anything else."""
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            return None if image.format == "GIF" and image.is_animated else image.format
    except (*UNREADABLE, PIL.Image.DecompressionBombError):
        return None


def _read_image(content: bytes, limits: UploadLimits) -> Clip:
    import PIL.Image

    from vjepa2_hf.video_io import ReadLimits, VideoDecodeError, read_image

    try:
        with PIL.Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError as error:
        raise Refused(f"The image is too large; at most {_megapixels(limits)} are allowed.") from error
    except UNREADABLE as error:
        raise Refused(f"The upload is not an image that can be read; expected {EXPECTED['image']}.") from error
    _check_pixels(height, width, limits)
    try:
        image = read_image(content, ReadLimits(max_frame_pixels=limits.max_frame_pixels))
    except VideoDecodeError as error:
        raise Refused("The image is damaged; choose another one.") from error
    return Clip(_shrink(image, limits)[None], 1.0, 0.0)


def _check_pixels(height: int, width: int, limits: UploadLimits) -> None:
    if height * width > limits.max_frame_pixels:
        raise Refused(f"The upload is {width} × {height} pixels large; at most {_megapixels(limits)} are allowed.")


def _check_seconds(seconds: float, limits: UploadLimits) -> None:
    if seconds > limits.max_seconds:
        raise Refused(f"The video is {seconds:,.0f} seconds long; at most {limits.max_seconds:g} are allowed.")


def _shrink(image: np.ndarray, limits: UploadLimits) -> np.ndarray:
    """An image (H, W, 3) resized to at most the pixels that are kept."""
    import PIL.Image

    scale = math.sqrt(limits.max_kept_pixels / (image.shape[0] * image.shape[1]))
    if scale >= 1:
        return image
    size = tuple(max(1, math.floor(side * scale)) for side in image.shape[1::-1])
    return np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=2.0))


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size % 2**20 else f"{size >> 20:,} MiB"


def _megapixels(limits: UploadLimits) -> str:
    return f"{limits.max_frame_pixels / 1e6:.1f} million pixels"


if __name__ == "__main__":
    main()
