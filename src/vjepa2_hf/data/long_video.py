"""Features of videos of any length: encoded chunk by chunk, kept in memory or on disk.

    encode_long -> tokens (1, N, D)
    encode_long(output_dir) -> manifest.json, part-00000.safetensors, ..., index.json -> LongFeatures

A folder belongs to one encoder, video and settings, which `manifest.json` names. Each chunk is one part, and
`index.json` is written last: a folder without it is unfinished, and the same call continues it.

Shapes: T kept frames, C channels, H W pixels, (T', H', W') grid, P = H'·W' patches, N = T'·P tokens, D width.
"""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..configuration_vjepa2 import check
from .files import (
    cache_key,
    claim_folder,
    config_fingerprint,
    locked,
    weights_fingerprint,
    write_aside,
    write_json,
    writing,
)
from .frame_source import FrameSource, frame_bytes, is_whole
from .parts import DamagedPartError, check_part, read_note, read_shapes, save_part


logger = logging.getLogger(__name__)

MANIFEST, INDEX = "manifest.json", "index.json"
PART_NOTE = "part"


@torch.no_grad()
def encode_long(
    encoder: Any,
    video: Any,
    chunk_frames: int = 64,
    overlap: int = 0,
    stride: int = 1,
    output_dir: str | os.PathLike | None = None,
    processor: Any = None,
    pool: str | None = None,
) -> "torch.Tensor | LongFeatures":
    """See [`VJepa2Encoder.encode_long`]."""
    tubelet = encoder.config.tubelet_size
    multiple = f"expected a multiple of the tubelet size, {tubelet}"
    fits = is_whole(chunk_frames) and chunk_frames > 0 and chunk_frames % tubelet == 0
    check(fits, f"chunk_frames is {chunk_frames!r}; {multiple}.")
    fits = is_whole(overlap) and 0 <= overlap < chunk_frames and overlap % tubelet == 0
    check(fits, f"overlap is {overlap!r}; {multiple}, below chunk_frames ({chunk_frames}).")
    known = pool in (None, "frame")
    check(known, f"pool is {pool!r}; expected None or 'frame' (whose mean over time is that of the clip).")
    source = video
    if not isinstance(video, FrameSource):
        source = FrameSource(video, processor, encoder.name_or_path, stride)
    if output_dir is not None:
        return _encode_to_folder(encoder, source, chunk_frames, overlap, pool, Path(output_dir))
    parts = [features for features, _, _ in _encoded(encoder, source, chunk_frames, overlap, pool)]
    check(parts, f"{source.name} has no frame; expected at least one.")
    return torch.cat(parts).flatten(0, -2).unsqueeze(0)


def _encoded(
    encoder: Any, source: FrameSource, chunk_frames: int, overlap: int, pool: str | None, start: int = 0, watch=None
) -> Iterator[tuple[torch.Tensor, tuple[int, int], int]]:
    """For every chunk from number `start` on: features (t', P, D), or pooled (t', D), of its new frames; (H', W');
    the number of kept frames of the video up to its end."""
    tubelet, shape = encoder.config.tubelet_size, None
    end = start * (chunk_frames - overlap) + (overlap if start else 0)
    for number, (pixels, known) in enumerate(source.chunks(chunk_frames, overlap, start, watch), start):
        shape = shape or tuple(pixels.shape[1:])
        if tuple(pixels.shape[1:]) != shape:
            raise source.changed_size(shape, tuple(pixels.shape[1:]))
        end += len(pixels) - known
        missing = -len(pixels) % tubelet
        if missing and (number or len(pixels) > tubelet):  # the encoder itself fills a shorter video
            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        pixels = pixels.unsqueeze(0).to(device=encoder.device, dtype=encoder.dtype)
        features = encoder.encode(pixels, pool=pool)[0].cpu()
        grid = tuple(size // encoder.config.patch_size for size in shape[1:])
        if pool is None:
            features = features.unflatten(0, (-1, grid[0] * grid[1]))
        yield features[known // tubelet :], grid, end


def _encode_to_folder(
    encoder: Any, source: FrameSource, chunk_frames: int, overlap: int, pool: str | None, folder: Path
) -> "LongFeatures":
    config = encoder.config
    is_random = encoder.training and (config.drop_path_rate or config.attention_probs_dropout_prob)
    check(not is_random, "the encoder is in training mode and has dropout, so features are random: call eval() first.")
    settings = {"chunk_frames": chunk_frames, "overlap": overlap, "stride": source.stride, "pool": pool}
    with locked(folder):
        claim_folder(folder / MANIFEST, _description(encoder, source, settings))
        ends = _undamaged_parts(folder)
        is_finished, digests = (folder / INDEX).is_file(), None
        if not (source.is_file or source.is_array):
            digests = _FrameDigests(ends, chunk_frames, overlap, is_finished)
        if is_finished and digests is None:
            return LongFeatures(folder)
        if ends:
            logger.info("%s: continues after %d frames of %s", folder, ends[-1]["end"], source.name)
        chunks = _encoded(encoder, source, chunk_frames, overlap, pool, len(ends), digests)
        for number, (features, grid, end) in enumerate(chunks, len(ends)):
            # "places" is the name of (H', W') in the files
            note = {"end": end, "places": grid, "frames": digests.digest(end) if digests else None}
            path = folder / f"part-{number:05d}.safetensors"
            with writing(path), write_aside(path) as partial:
                save_part(partial, {"features": features}, PART_NOTE, note)
            logger.info("%s: %d frames encoded", folder, end)
        _finish(folder, source, settings, config.tubelet_size, digests)
    return LongFeatures(folder)


def _description(encoder: Any, source: FrameSource, settings: dict[str, Any]) -> dict[str, Any]:
    """What the features depend on."""
    return {
        "format": 1,
        "model": encoder.name_or_path,
        "weights": weights_fingerprint(encoder),
        "config": config_fingerprint(encoder.config),
        "dtype": str(encoder.dtype),
        "processor": cache_key(json.loads(source.processor.to_json_string())) if source.processes else None,
        "video": source.fingerprint(),
        **settings,
    }


class _FrameDigests:
    """Hashes of an iterable's frames up to the end of every chunk, compared with those in the parts' notes."""

    def __init__(self, parts: list[dict[str, Any]], chunk_frames: int, overlap: int, is_finished: bool):
        ends = [part["end"] for part in parts]
        short = bool(ends) and (ends[-1] < chunk_frames or (ends[-1] - chunk_frames) % (chunk_frames - overlap) != 0)
        self._last = ends[-1] if short or is_finished else None
        self._expected = {part["end"]: part["frames"] for part in parts}
        self._found: dict[int, str] = {}
        self._chunk_frames, self._step = chunk_frames, chunk_frames - overlap
        self._digest, self.count = hashlib.sha256(), 0

    def __call__(self, frame: Any) -> None:
        self._digest.update(frame_bytes(frame))
        self.count += 1
        if self._last is not None and self.count > self._last:
            raise self._other_frames()
        if self.count >= self._chunk_frames and (self.count - self._chunk_frames) % self._step == 0:
            self._compare()

    def digest(self, end: int) -> str:
        """Of the frames up to `end`, the end of a chunk or of the video."""
        return self._found.get(end) or self._digest.hexdigest()

    def check_end(self) -> None:
        """Refuses a video with fewer frames than the parts."""
        self._compare()
        if self._expected and max(self._expected) > self.count:
            raise self._other_frames()

    def _compare(self) -> None:
        self._found = {self.count: self._digest.hexdigest()}  # chunks are written one by one
        if self._expected.get(self.count, self._found[self.count]) != self._found[self.count]:
            raise self._other_frames()

    def _other_frames(self) -> ValueError:
        return ValueError(
            f"the first {self.count} frames of the video are not those that output_dir holds features of: give the "
            "same frames, or another output_dir."
        )


def _finish(folder: Path, source: FrameSource, settings: dict, tubelet: int, digests: _FrameDigests | None) -> None:
    """Lists the parts in `index.json`, which makes the folder readable."""
    parts = [_read_part(part) for part in _parts(folder)]
    check(parts, f"{source.name} has no frame; expected at least one.")
    if digests is not None:
        digests.check_end()
    has_one_size = len({tuple(part["shape"][1:]) for part in parts}) == 1
    check(has_one_size, f"the parts in {str(folder)!r} are of different sizes: give frames of one size.")
    index = {
        "files": [part["file"] for part in parts],
        "steps": [part["shape"][0] for part in parts],
        "places": parts[0]["places"],
        "frames": parts[-1]["end"],
        "frames_per_step": tubelet * settings["stride"],
        "fps": source.fps,
        "pool": settings["pool"],
    }
    write_json(folder / INDEX, index)


def _undamaged_parts(folder: Path) -> list[dict[str, Any]]:
    """The parts up to the first damaged one. That one and the index are removed, and encoded and written again."""
    found = []
    for part in _parts(folder):
        try:
            check_part(part, PART_NOTE)
            found.append(_read_part(part))
        except DamagedPartError as error:
            logger.warning("%s It is removed, and encoded again.", str(error).partition(": remove")[0] + ".")
            (folder / INDEX).unlink(missing_ok=True)
            part.unlink()
            break
    if (folder / INDEX).is_file() and _read_index(folder) is None:
        logger.warning("%s is damaged: it is written again.", folder / INDEX)
        (folder / INDEX).unlink()
    return found


def _read_index(folder: Path) -> dict[str, Any] | None:
    """`index.json`; `None` if it is not one."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError:
        return None
    names = {"files", "steps", "places", "frames", "frames_per_step", "fps"}
    return index if isinstance(index, dict) and names <= index.keys() else None


def _read_part(part: Path) -> dict[str, Any]:
    return {**read_note(part, PART_NOTE), "file": part.name, "shape": read_shapes(part)["features"]}


def _parts(folder: Path) -> list[Path]:
    """The complete parts from the first on."""
    numbered = (folder / f"part-{number:05d}.safetensors" for number in itertools.count())
    return list(itertools.takewhile(Path.is_file, numbered))


class LongFeatures:
    """Features in the folder of a finished `encode_long`, read one part at a time.

    Attributes:
        grid: (T', H', W').
        frames: kept frames that were encoded.
        frames_per_step: frames of the video per time step, including those left out by `stride`.
        fps: frames per second of the video, or `None` if it was not a file.

    Example:
        >>> features = LongFeatures("features/lecture")
        >>> features.shape  # (T', P, D), or (T', D) if encoded with pool="frame"
        >>> features[100:164]  # these time steps
        >>> for part in features: ...  # (t', P, D), one part in memory at a time
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            advice = "it is not finished, or holds no features; call encode_long with it again to continue"
            raise FileNotFoundError(f"{str(folder)!r} has no {INDEX}: {advice}.")
        index = _read_index(self.folder)
        check(index is not None, f"{str(self.folder / INDEX)!r} is damaged; call encode_long with the folder again.")
        self._files, self._steps = index["files"], index["steps"]
        self.grid = (sum(self._steps), *index["places"])
        self.frames, self.frames_per_step, self.fps = index["frames"], index["frames_per_step"], index["fps"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(T', P, D), or (T', D)."""
        return (len(self), *_read_part(self.folder / self._files[0])["shape"][1:])

    def __len__(self) -> int:
        """Time steps T'."""
        return self.grid[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        for name in self._files:
            with safe_open(self.folder / name, framework="pt") as file:
                yield file.get_tensor("features")

    def __getitem__(self, steps: int | slice) -> torch.Tensor:
        """A time step (P, D), or a slice of time steps with step 1, (t', P, D)."""
        if isinstance(steps, int):
            if not -len(self) <= steps < len(self):
                raise IndexError(f"time step {steps} was asked for, but there are {len(self)}.")
            return self[steps % len(self) : steps % len(self) + 1][0]
        first, last, step = steps.indices(len(self))
        if step != 1:
            raise ValueError(f"a slice with step {step} was asked for; expected step 1.")
        found, begin = [], 0
        for name, count in zip(self._files, self._steps, strict=True):
            low, high = max(first - begin, 0), min(last - begin, count)
            if low < high:
                with safe_open(self.folder / name, framework="pt") as file:
                    found.append(file.get_slice("features")[low:high])
            begin += count
        return torch.cat(found) if found else torch.empty(0, *self.shape[1:])

    def tokens(self) -> torch.Tensor:
        """All features in memory, as `encode_long` without a folder returns them: (1, N, D), or (1, T', D) pooled."""
        return torch.cat(list(self)).flatten(0, -2).unsqueeze(0)
