"""Import of HDF5 and npz episodes as shards; `examples/import_episodes.py` describes the layouts."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from datasets import Features, List, Value
from tqdm.auto import tqdm

from ..configuration_vjepa2 import check
from ..specs import check_choice, check_count
from ..video_io import read_image
from .boundaries import NO_ENDS, find_starts, kind_of, may_mark
from .cameras import camera_names, video_features, video_row
from .files import printable
from .lerobot import check_fps
from .shards import files_in, write_shards
from .video_writing import encode_video, resize_frame


logger = logging.getLogger(__name__)

HDF5_EXTENSIONS, NPZ_EXTENSIONS = (".hdf5", ".h5"), (".npz",)
ACTION_KEYS = ("actions", "action")
STATE_KEYS = ("proprio_states", "observations/qpos", "qpos", "proprio")
REWARD_KEYS = ("rewards", "reward")
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")  # the first bytes of a JPEG and of a PNG file
# Raised by numpy, zipfile, h5py and PyAV for truncated or mislabeled files and for images that cannot be encoded
BROKEN = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, MemoryError, zipfile.BadZipFile,
    zlib.error, av.FFmpegError,
)  # fmt: skip


@dataclass
class ImportOptions:
    """Where episodes are in a file, and how they are stored. Keys are relative to the episode; None searches them."""

    fps: float
    """Frames per second."""
    frames_key: str | list[str] | None = None
    """Several are the cameras of an episode."""
    actions_key: str | None = None
    states_key: list[str] | None = None
    """Several states are concatenated."""
    ends_key: str | None = None
    """Array that flags the last row of each episode; "none": one group of actions is one episode; None: all arrays
    that `boundaries` knows."""
    spare_action: Literal["last", "first"] = "last"
    """Which action to drop where there are as many actions as frames."""
    height: int | None = None
    """Taller frames are resized to this many pixels."""
    crf: int = 10
    """x264's quality, 0 (best) to 51."""
    num_shards: int = 8
    frames_setting: str = "--frames_key"
    """What errors call `frames_key`."""

    def __post_init__(self):
        for name, least in (("num_shards", 1), ("height", 2), ("crf", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        check_choice("spare_action", self.spare_action, ("last", "first"))
        check_fps(self.fps)
        camera_names(self.frames_key)


def import_episodes(source: str | os.PathLike, output_dir: str | os.PathLike, options: ImportOptions) -> int:
    """Writes all valid episodes below a folder as shards; returns their number.

    Invalid episodes, and episodes with other columns than the first valid one, are listed in `skipped.txt`.
    """
    source, skipped = Path(source), {}
    rows = _import_rows(_find_files(source), source, options, skipped)
    return write_shards(rows, output_dir, _features_of, options.num_shards, skipped)


def holds_arrays(data: str | os.PathLike) -> bool:
    """Whether there are HDF5 or npz files at a path, and nothing that is read without an import."""
    path, known = Path(data), HDF5_EXTENSIONS + NPZ_EXTENSIONS
    if not path.is_dir():
        return path.is_file() and path.suffix.lower() in known
    suffixes = {Path(file).suffix.lower() for file in files_in(str(path))}
    return not suffixes.isdisjoint(known) and suffixes.isdisjoint((".parquet", ".tar"))


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
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 — its filters, as stable-worldmodel's compressed files need
    return h5py


def _import_rows(files: list[Path], source: Path, options: ImportOptions, skipped: dict[str, str]) -> Iterator[dict]:
    """The rows of all valid episodes; reasons for the others go into `skipped`."""
    columns = None
    for path in tqdm(files, unit="file", desc="importing"):
        file = printable(path.name if source.is_file() else path.relative_to(source).as_posix())
        for name, read in _episodes_of(path, file, options, skipped):
            try:
                row = {**read(), "episode_id": name}
                columns = columns or _widths(row)
                check(_widths(row) == columns, f"it has {_widths(row)}, but the ones before had {columns}")
            except BROKEN as error:
                _skip(skipped, name, error)
            else:
                yield row


def _episodes_of(
    path: Path, file: str, options: ImportOptions, skipped: dict[str, str]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, function that reads its row) of each episode of a file."""
    try:
        with _open_arrays(path) as arrays:
            groups = _find_groups(arrays, options.actions_key)
            for prefix, actions in groups.items():
                name = f"{file}/{prefix}".rstrip("/")
                try:
                    group = _Group(arrays, prefix, actions, options, is_alone=len(groups) == 1)
                except BROKEN as error:
                    _skip(skipped, name, error)
                    continue
                for number in range(len(group.starts)):
                    episode = name if len(group.starts) == 1 else f"{name}/episode_{number:06d}"
                    yield episode, functools.partial(group.read, number)
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
    known = {**video_features(row), **arrays, "fps": number, "episode_id": Value("string")}
    return Features({name: feature for name, feature in known.items() if name in row})


@contextlib.contextmanager
def _open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of a file by their path in it; those of HDF5 are read where they are indexed."""
    if path.suffix.lower() in NPZ_EXTENSIONS:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(_npz_arrays(file))
        yield arrays
        return
    h5py = _import_h5py()
    with h5py.File(path, "r") as file:
        arrays = {}

        def add(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape is not None and not _names_other_files(item):
                arrays[name] = item

        file.visititems(add)
        yield arrays


def _names_other_files(dataset: Any) -> bool:
    """Whether an HDF5 dataset is made of bytes or datasets of other files, of any path."""
    sources = dataset.virtual_sources() if dataset.is_virtual else []
    return bool(dataset.external) or any(source.file_name != "." for source in sources)


def _npz_arrays(file: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of an npz file without pickled objects, which usually are infos."""
    for name in file.files:
        try:
            yield name, file[name]
        except ValueError as error:
            check("pickle" in str(error) and not kind_of(name), f"its {name} is unreadable ({error})")
            logger.debug("%s is left out (%s)", name, error)


def _find_groups(arrays: Mapping[str, Any], actions_key: str | None) -> dict[str, str]:
    """Paths of the groups with actions ("" or "data/demo_0/") -> paths of their actions.

    Groups inside of others are not among them: `demo_0/obs/actions` belongs to `demo_0/actions`.
    """
    found = {}
    for key in (actions_key,) if actions_key else ACTION_KEYS:
        for name in sorted(arrays, key=_natural):
            if name == key or name.endswith(f"/{key}"):
                found.setdefault(name.removesuffix(key), []).append(name)
    wanted, others = actions_key or " or ".join(ACTION_KEYS), ", ".join(sorted(arrays)[:8]) or "nothing"
    check(found, f"it has no {wanted}, only {others}; name --actions_key")
    outer = {prefix: names for prefix, names in found.items() if not _is_inside(prefix, found)}
    for names in outer.values():
        check(len(names) == 1, f"it has both {' and '.join(names)}; name one with --actions_key")
    return {prefix: name for prefix, (name,) in outer.items()}


def _is_inside(prefix: str, groups: Collection[str]) -> bool:
    return any(prefix != group and prefix.startswith(group) for group in groups)


class _Group:
    """A group of arrays that holds one episode, or several one after another; a ValueError says what does not fit.

    Attributes:
        starts: first frame of each episode, int64 (E,).
    """

    def __init__(self, arrays: Mapping[str, Any], prefix: str, actions: str, options: ImportOptions, is_alone: bool):
        self.arrays, self.prefix, self.options = arrays, prefix, options
        self.images = {key: arrays[name] for key, name in _frames_names(arrays, prefix, options).items()}
        for images in self.images.values():
            expected = "uint8 (T, H, W, 3) or (T, 3, H, W), or one JPEG or PNG per frame"
            found = f"its frames are {images.dtype} {tuple(images.shape)}"
            check(_are_images(images), f"{found}; expected {expected}")
        counts = {key: len(images) for key, images in self.images.items()}
        self.num_frames = min(counts.values())
        several = ", ".join(f"{count} of {key}" for key, count in counts.items())
        check(max(counts.values()) == self.num_frames, f"its cameras have different numbers of frames ({several})")
        check(self.num_frames > 1, f"it has {self.num_frames} frames, but one step needs 2")
        self.starts = find_starts(self._marks(is_alone), self.num_frames, options.ends_key)
        self.steps = {"actions": actions}
        rewards = next((prefix + key for key in REWARD_KEYS if prefix + key in arrays), None)
        if rewards:
            self.steps["rewards"] = rewards
        for name in self.steps.values():
            self._check_steps(name)
        self._check_spare_action()
        keys = options.states_key or [key for key in STATE_KEYS if prefix + key in arrays][:1]
        self.states = [_existing(arrays, prefix + key, "--states_key") for key in keys]
        lengths = [(*arrays[name].shape, None)[0] for name in self.states]
        found = f"its states have {str(lengths)[1:-1]} rows for {self.num_frames} frames"
        check({self.num_frames}.issuperset(lengths), found)

    def _marks(self, is_alone: bool) -> dict[str, np.ndarray]:
        """Arrays that mark boundaries: in the group, or anywhere in a file with one group."""
        named = self.options.ends_key
        if named is not None:
            if named == NO_ENDS:
                return {}
            return {named: self.arrays[_existing(self.arrays, self.prefix + named, "--ends_key")][()]}
        known = [name for name in self.arrays if kind_of(name) and (is_alone or name.startswith(self.prefix))]
        for name in self.arrays if not known else ():
            shape = self.arrays[name].shape
            if may_mark(name) and shape and math.prod(shape) == shape[0] and name.startswith(self.prefix):
                _warn_of_mark(name.removeprefix(self.prefix))
        # A single value is a note on the whole file, unless it is the length of a padded episode
        known = [name for name in known if self.arrays[name].shape or kind_of(name) == "length"]
        return {name: self.arrays[name][()] for name in known}

    def _check_spare_action(self) -> None:
        """Warns if the data looks as if each action were stored with the frame that it led to."""
        actions = self.arrays[self.steps["actions"]]
        if self.options.spare_action == "first" or len(actions) < self.num_frames or len(self.starts) < 2:
            return
        edges = (self.starts, np.append(self.starts[1:], self.num_frames) - 1)
        first, last = (any(np.any(actions[row]) for row in rows) for rows in edges)
        if last and not first:
            logger.warning(
                "%s is zero in the first row of every episode, as in files that store each action with the frame that "
                "it led to: check whether --spare_action first is right", self.steps["actions"],
            )  # fmt: skip

    def _check_steps(self, name: str) -> None:
        shape, expected = self.arrays[name].shape, (self.num_frames, self.num_frames - len(self.starts))
        check(shape, f"{name} is a single number, but one row per frame is needed")
        several = f" in {len(self.starts)} episodes" if len(self.starts) > 1 else ""
        found = f"{name} has {shape[0]} rows for {self.num_frames} frames{several}"
        check(shape[0] in expected, f"{found}, but {expected[0]} or {expected[1]} are needed")

    def read(self, number: int) -> dict[str, Any]:
        """The row of an episode."""
        start, stop = self.starts[number], [*self.starts[1:], self.num_frames][number]
        check(stop - start > 1, f"it has {stop - start} frames, but one step needs 2")
        row = {column: self._read_steps(name, number, start, stop) for column, name in self.steps.items()}
        if self.states:
            states = [_read_numbers(self.arrays, name, start, stop) for name in self.states]
            row["proprio_states"] = np.concatenate(states, axis=1)
        if "rewards" in row:
            count = row["rewards"].shape[1]
            name = self.steps["rewards"]
            check(count == 1, f"{name} has {count} values per step, but a reward is one number")
            row["rewards"] = row["rewards"][:, 0]
        videos = {}
        for key, images in self.images.items():
            frames = _decode_frames(images, range(start, stop), self.options.height)
            videos[key] = {"bytes": encode_video(frames, self.options.fps, crf=self.options.crf), "path": None}
        return {**row, **video_row(videos), "fps": self.options.fps}

    def _read_steps(self, name: str, number: int, start: int, stop: int) -> np.ndarray:
        """An array with one row per step; the spare row of the episode is dropped where there is one per frame."""
        if len(self.arrays[name]) < self.num_frames:
            return _read_numbers(self.arrays, name, start - number, stop - number - 1)
        first = self.options.spare_action == "first"
        return _read_numbers(self.arrays, name, start + first, stop - 1 + first)


@functools.cache  # once, not for each episode
def _warn_of_mark(name: str) -> None:
    logger.warning("%s may mark where episodes end, but its name is not known: if so, give --ends_key %s", name, name)


def _frames_names(arrays: Mapping[str, Any], episode: str, options: ImportOptions) -> dict[str | None, str]:
    """The arrays of images by camera; that of a single camera has no name (`None`)."""
    keys = camera_names(options.frames_key or None)
    if keys != [None]:
        names = {key: _existing(arrays, episode + key, options.frames_setting) for key in keys}
        return names if len(names) > 1 else {None: names[keys[0]]}
    names = sorted(name for name in arrays if name.startswith(episode) and _are_images(arrays[name]))
    keys = ", ".join(name.removeprefix(episode) for name in names)
    found = f"several arrays of images, {keys}" if names else "no array of images"
    check(len(names) == 1, f"it has {found}; name one with {options.frames_setting}")
    return {None: names[0]}


def _existing(arrays: Mapping[str, Any], name: str, option: str) -> str:
    check(name in arrays, f"it has no {name} ({option}), only {', '.join(sorted(arrays)[:8])}")
    return name


def _read_numbers(arrays: Mapping[str, Any], name: str, start: int, stop: int) -> np.ndarray:
    """Rows of an array as float32, (rows, numbers)."""
    kind = arrays[name].dtype.kind
    check(kind in "biuf", f"{name} is an array of {arrays[name].dtype}, but numbers are needed")
    with np.errstate(over="ignore"):  # too large for float32: refused as infinite
        values = np.asarray(arrays[name][start:stop], np.float32)
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


def _decode_frames(images: Any, rows: Iterable[int], height: int | None) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) RGB frames of one size, read one at a time; taller ones are resized to `height`."""
    compressed, size = _are_compressed(images), None
    for number in rows:
        frame = images[number]
        if compressed:
            frame = read_image(_to_bytes(frame))
        elif frame.shape[-1] != 3:
            frame = frame.transpose(1, 2, 0)
        size = size or frame.shape
        changed = f"row {number} of its images is {frame.shape[1]} x {frame.shape[0]} pixels"
        check(frame.shape == size, f"{changed}, but the rows before are {size[1]} x {size[0]}")
        yield shrink_frame(frame, height)


def shrink_frame(frame: np.ndarray, height: int | None) -> np.ndarray:
    """A frame (H, W, 3) of at most `height` pixels, with its aspect ratio."""
    return frame if height is None or frame.shape[0] <= height else resize_frame(frame, height)
