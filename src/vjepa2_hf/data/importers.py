"""Import of HDF5 and npz episodes as shards; `examples/import_episodes.py` describes the layouts."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from datasets import Features, List, Value, Video
from tqdm.auto import tqdm

from ..configuration_vjepa2 import check
from ..video_io import read_image
from .shards import write_shards
from .video_writing import encode_video


logger = logging.getLogger(__name__)

HDF5_EXTENSIONS, NPZ_EXTENSIONS = (".hdf5", ".h5"), (".npz",)
ACTION_KEYS = ("actions", "action")
STATE_KEYS = ("proprio_states", "observations/qpos", "qpos", "proprio")
REWARD_KEYS = ("rewards", "reward")
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")  # the first bytes of a JPEG and of a PNG file
# Raised by numpy, zipfile, h5py and PyAV for truncated or mislabeled files and for images that cannot be encoded
BROKEN = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, av.FFmpegError,
)  # fmt: skip


@dataclass
class ImportOptions:
    """Where episodes are in a file, and how they are stored. Keys are relative to the episode; None searches them."""

    fps: float
    """Frames per second."""
    frames_key: str | None = None
    actions_key: str | None = None
    states_key: list[str] | None = None
    """Several states are concatenated."""
    spare_action: Literal["last", "first"] = "last"
    """Which action to drop where there are as many actions as frames."""
    height: int | None = None
    """Taller frames are resized to this many pixels."""
    crf: int = 10
    """x264's quality, 0 (best) to 51."""
    num_shards: int = 8

    def __post_init__(self):
        for name, least in (("num_shards", 1), ("height", 2), ("crf", 0)):
            value = getattr(self, name)
            check(value is None or value >= least, f"{name} is {value}, but at least {least} is expected.")
        check(self.fps > 0, f"fps is {self.fps}, but a positive number of frames per second is expected.")


def import_episodes(source: str | os.PathLike, output_dir: str | os.PathLike, options: ImportOptions) -> int:
    """Writes all valid episodes below a folder as shards; returns their number.

    Invalid episodes, and episodes with other columns than the first valid one, are listed in `skipped.txt`.
    """
    source, skipped = Path(source), {}
    rows = _import_rows(_find_files(source), source, options, skipped)
    return write_shards(rows, output_dir, _features_of, options.num_shards, skipped)


def _find_files(source: Path) -> list[Path]:
    """The HDF5 and npz files below a folder, or the file itself, in natural order."""
    known = HDF5_EXTENSIONS + NPZ_EXTENSIONS
    if not source.exists():
        raise FileNotFoundError(f"There is nothing at {str(source)!r}; give a folder of {', '.join(known)} files.")
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix.lower() in known and not path.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"There is no episode file in {str(source)!r}; give {', '.join(known)} files.")
    if any(path.suffix.lower() in HDF5_EXTENSIONS for path in files):
        _import_h5py()  # before anything is written
    return sorted(files, key=lambda path: _natural(str(path)))


def _natural(name: str) -> list[Any]:
    """A sort key that puts demo_2 before demo_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ValueError('HDF5 files need h5py, which is not installed: pip install "vjepa2-hf[hdf5]".') from error
    return h5py


def _import_rows(files: list[Path], source: Path, options: ImportOptions, skipped: dict[str, str]) -> Iterator[dict]:
    """The rows of all valid episodes; reasons for the others go into `skipped`."""
    columns = None
    for path in tqdm(files, unit="file", desc="importing"):
        file = path.name if source.is_file() else path.relative_to(source).as_posix()
        try:
            with _open_arrays(path) as arrays:
                for episode, actions in _find_episodes(arrays, options.actions_key).items():
                    name = f"{file}/{episode}".rstrip("/")
                    try:
                        row = {**_read_episode(arrays, episode, actions, options), "episode_id": name}
                        columns = columns or _widths(row)
                        check(_widths(row) == columns, f"it has {_widths(row)}, but the ones before had {columns}")
                    except BROKEN as error:
                        _skip(skipped, name, error)
                    else:
                        yield row
        except BROKEN as error:
            _skip(skipped, file, error)


def _skip(skipped: dict[str, str], name: str, error: Exception) -> None:
    skipped[name] = " ".join(str(error).split()) or type(error).__name__
    logger.warning("skipped %s: %s", name, skipped[name])


def _widths(row: dict[str, Any]) -> str:
    """Names of the arrays with their values per row."""
    arrays = {name: row[name] for name in ("actions", "proprio_states", "rewards") if name in row}
    return ", ".join(f"{name} of {values[0].size}" for name, values in arrays.items())


def _features_of(row: dict[str, Any]) -> Features:
    number = Value("float32")
    arrays = {"actions": List(List(number)), "proprio_states": List(List(number)), "rewards": List(number)}
    known = {"video": Video(decode=False), **arrays, "fps": number, "episode_id": Value("string")}
    return Features({name: feature for name, feature in known.items() if name in row})


@contextlib.contextmanager
def _open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of a file by their path in it; those of HDF5 are read where they are indexed."""
    if path.suffix.lower() in NPZ_EXTENSIONS:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        yield arrays
        return
    h5py = _import_h5py()
    with h5py.File(path, "r") as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        yield arrays


def _find_episodes(arrays: Mapping[str, Any], actions_key: str | None) -> dict[str, str]:
    """Paths of the episodes ("" or "data/demo_0/") -> paths of their actions."""
    found = {}
    for key in (actions_key,) if actions_key else ACTION_KEYS:
        for name in sorted(arrays, key=_natural):
            if name == key or name.endswith(f"/{key}"):
                found.setdefault(name.removesuffix(key), name)
    wanted, others = actions_key or " or ".join(ACTION_KEYS), ", ".join(sorted(arrays)[:8]) or "nothing"
    check(found, f"it has no {wanted}, only {others}; name --actions_key")
    return found


def _read_episode(arrays: Mapping[str, Any], episode: str, actions: str, options: ImportOptions) -> dict[str, Any]:
    """The row of an episode; a ValueError says what does not fit."""
    images = arrays[_frames_name(arrays, episode, options.frames_key)]
    expected = "uint8 (T, H, W, 3) or (T, 3, H, W), or one JPEG or PNG per frame"
    check(_are_images(images), f"its frames are {images.dtype} {tuple(images.shape)}; expected {expected}")
    num_frames = len(images)
    check(num_frames > 1, f"it has {num_frames} frames, but one step needs 2")
    row = {"actions": _read_steps(arrays, actions, num_frames, options.spare_action)}
    keys = options.states_key or [key for key in STATE_KEYS if episode + key in arrays][:1]
    states = [_read_numbers(arrays, _existing(arrays, episode + key, "--states_key")) for key in keys]
    lengths = [len(values) for values in states]
    check({num_frames}.issuperset(lengths), f"its states have {str(lengths)[1:-1]} rows for {num_frames} frames")
    if states:
        row["proprio_states"] = np.concatenate(states, axis=1)
    rewards = next((episode + key for key in REWARD_KEYS if episode + key in arrays), None)
    if rewards:
        row["rewards"] = _read_steps(arrays, rewards, num_frames, options.spare_action)
        count = row["rewards"].shape[1]
        check(count == 1, f"{rewards} has {count} values per step, but a reward is one number")
        row["rewards"] = row["rewards"][:, 0]
    video = encode_video(_decode_frames(images, options.height), options.fps, crf=options.crf)
    return {**row, "video": {"bytes": video, "path": None}, "fps": options.fps}


def _frames_name(arrays: Mapping[str, Any], episode: str, frames_key: str | None) -> str:
    if frames_key:
        return _existing(arrays, episode + frames_key, "--frames_key")
    names = sorted(name for name in arrays if name.startswith(episode) and _are_images(arrays[name]))
    keys = ", ".join(name.removeprefix(episode) for name in names)
    found = f"several arrays of images, {keys}" if names else "no array of images"
    check(len(names) == 1, f"it has {found}; name one with --frames_key")
    return names[0]


def _existing(arrays: Mapping[str, Any], name: str, option: str) -> str:
    check(name in arrays, f"it has no {name} ({option}), only {', '.join(sorted(arrays)[:8])}")
    return name


def _read_steps(arrays: Mapping[str, Any], name: str, num_frames: int, spare: str) -> np.ndarray:
    """An array with one row per step; the spare row is dropped where there is one per frame."""
    values = _read_numbers(arrays, name)
    found = f"{name} has {len(values)} rows for {num_frames} frames"
    if len(values) == num_frames:
        values = values[:-1] if spare == "last" else values[1:]
    check(len(values) == num_frames - 1, f"{found}, but as many or one less is needed")
    return values


def _read_numbers(arrays: Mapping[str, Any], name: str) -> np.ndarray:
    """An array as float32, one row per frame or step."""
    values = np.asarray(arrays[name][()], np.float32)
    check(values.ndim > 0, f"{name} is a single number, but one row per frame is needed")
    check(np.isfinite(values).all(), f"{name} has values that are not finite (NaN or infinite)")
    return values.reshape(len(values), -1)


def _are_images(array: Any) -> bool:
    """Whether an array holds images, plain or compressed."""
    if array.dtype == np.uint8 and len(array.shape) == 4:
        return array.shape[3] == 3 or array.shape[1] == 3
    return _are_compressed(array)


def _are_compressed(array: Any) -> bool:
    """Whether each row is a JPEG or PNG: bytes of any length, or uint8 padded to the longest (ACT)."""
    of_bytes = array.dtype == np.uint8 if len(array.shape) == 2 else array.dtype.kind in "OSV"
    if not of_bytes or len(array.shape) not in (1, 2) or not len(array):
        return False
    return _to_bytes(array[0]).startswith(IMAGE_SIGNATURES)


def _to_bytes(row: Any) -> bytes:
    return row if isinstance(row, bytes) else np.asarray(row).tobytes()


def _decode_frames(images: Any, height: int | None) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) RGB frames, read one at a time; taller ones are resized to `height`."""
    compressed = _are_compressed(images)
    for frame in images:
        if compressed:
            frame = read_image(_to_bytes(frame))
        elif frame.shape[-1] != 3:
            frame = frame.transpose(1, 2, 0)
        if height is not None and frame.shape[0] > height:
            width = max(2, 2 * round(frame.shape[1] * height / frame.shape[0] / 2))
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            frame = image.reformat(width, height, interpolation="AREA").to_ndarray()
        yield frame
