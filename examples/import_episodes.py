"""Imports a folder of HDF5 or npz episodes as shards for train_world_model.py.

    python examples/import_episodes.py SOURCE OUT_DIR --fps 20 [--frames_key obs/agentview_image]
        [--actions_key actions] [--states_key obs/robot0_eef_pos obs/robot0_gripper_qpos]

Files (.hdf5, .h5, .npz) are searched recursively. What is looked for in each, unless a key names it:

    actions   each `actions` or `action`; the group it lies in is an episode, so a file may hold many
              (robomimic, LIBERO: data/demo_0/actions, ...) or be one (ACT: action)
    frames    below the episode, the only array of pictures: uint8 (T, H, W, 3) or (T, 3, H, W), or T pictures as
              JPEG or PNG; of several cameras, --frames_key names one
    states    the first of `proprio_states`, `observations/qpos`, `qpos`, `proprio`; several keys are joined
    rewards   `rewards` or `reward`

Keys are relative to the episode. T frames need T-1 actions and rewards. Of T actions the last is dropped, for no frame
shows what it did; `--spare_action first` drops the first, for files that keep an action beside the frame it led to
(Dreamer). Episodes that do not read or do not fit are left out and listed in OUT_DIR/skipped.txt; the first one that
fits tells what the others must have. OUT_DIR appears when all is written; a run that was killed leaves no half of it.
HDF5 needs h5py: pip install "vjepa2-hf[hdf5]".
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from datasets import Features, List, Value, Video
from tqdm.auto import tqdm

from vjepa2_hf.data.files import staged_folder
from vjepa2_hf.data.shards import write_shard_files
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.video_io import read_image


logger = logging.getLogger("import_episodes")

HDF5_EXTENSIONS, NPZ_EXTENSIONS = (".hdf5", ".h5"), (".npz",)
ACTION_KEYS = ("actions", "action")
STATE_KEYS = ("proprio_states", "observations/qpos", "qpos", "proprio")
REWARD_KEYS = ("rewards", "reward")
PICTURE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG")  # of a JPEG, of a PNG
# What numpy, zipfile, h5py and PyAV raise on what is cut off, is not what its name says, or does not encode
BROKEN = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, av.FFmpegError,
)  # fmt: skip


def find_files(source: Path) -> list[Path]:
    """The HDF5 and npz files below a folder, or the file itself, in the order in which people count."""
    known = HDF5_EXTENSIONS + NPZ_EXTENSIONS
    if not source.exists():
        raise FileNotFoundError(f"There is nothing at {str(source)!r}; give a folder of {', '.join(known)} files.")
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix.lower() in known and not path.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"There is no episode file in {str(source)!r}; {', '.join(known)} count.")
    if any(path.suffix.lower() in HDF5_EXTENSIONS for path in files):
        import_h5py()  # refused before anything is written
    return sorted(files, key=lambda path: natural(str(path)))


def natural(name: str) -> list[Any]:
    """A key by which demo_2 comes before demo_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]


def import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ValueError('HDF5 files need h5py, which is not installed: pip install "vjepa2-hf[hdf5]".') from error
    return h5py


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of a file by their path in it; those of HDF5 are read where they are indexed."""
    if path.suffix.lower() in NPZ_EXTENSIONS:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        yield arrays
        return
    h5py = import_h5py()
    with h5py.File(path, "r") as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        yield arrays


def find_episodes(arrays: Mapping[str, Any], actions_key: str | None) -> dict[str, str]:
    """The paths of the actions by the paths ("" or "data/demo_0/") of the episodes that they belong to."""
    found = {}
    for key in (actions_key,) if actions_key else ACTION_KEYS:
        for name in sorted(arrays, key=natural):
            if name == key or name.endswith(f"/{key}"):
                found.setdefault(name.removesuffix(key), name)
    if not found:
        wanted = actions_key or " or ".join(ACTION_KEYS)
        raise ValueError(f"it has no {wanted}, only {', '.join(sorted(arrays)[:8]) or 'nothing'}; name --actions_key")
    return found


class EpisodeImporter:
    """Turns the arrays of an episode into a row of a shard.

    Args:
        options: the parsed command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options

    def row(self, arrays: Mapping[str, Any], episode: str, actions: str, name: str) -> dict[str, Any]:
        """The row of an episode; a ValueError that says what does not fit."""
        pictures = arrays[self._frames_name(arrays, episode)]
        if not is_pictures(pictures):
            raise ValueError(
                f"its frames are {pictures.dtype} {tuple(pictures.shape)}, but uint8 (T, H, W, 3) or (T, 3, H, W) is "
                "read, or a JPEG or PNG a frame"
            )
        num_frames = len(pictures)
        if num_frames < 2:
            raise ValueError(f"it has {num_frames} frames, but one step needs 2")
        row = {"actions": self._steps(arrays, actions, num_frames)}
        states = [numbers(arrays, state) for state in self._state_names(arrays, episode)]
        if any(len(values) != num_frames for values in states):
            raise ValueError(f"its states have {', '.join(str(len(v)) for v in states)} rows for {num_frames} frames")
        if states:
            row["proprio_states"] = np.concatenate(states, axis=1)
        rewards = next((episode + key for key in REWARD_KEYS if episode + key in arrays), None)
        if rewards:
            row["rewards"] = self._steps(arrays, rewards, num_frames)
            if row["rewards"].shape[1] != 1:
                raise ValueError(f"{rewards} has {row['rewards'].shape[1]} values a step, but a reward is one number")
            row["rewards"] = row["rewards"][:, 0]
        video = encode_video(frames_of(pictures, self.options.height), self.options.fps, crf=self.options.crf)
        return {**row, "video": {"bytes": video, "path": None}, "fps": self.options.fps, "episode_id": name}

    def _frames_name(self, arrays: Mapping[str, Any], episode: str) -> str:
        if self.options.frames_key:
            return existing(arrays, episode + self.options.frames_key, "--frames_key")
        names = sorted(name for name in arrays if name.startswith(episode) and is_pictures(arrays[name]))
        if len(names) != 1:
            keys = ", ".join(name.removeprefix(episode) for name in names)
            found = f"several arrays of pictures, {keys}" if names else "no array of pictures"
            raise ValueError(f"it has {found}; name one with --frames_key")
        return names[0]

    def _state_names(self, arrays: Mapping[str, Any], episode: str) -> list[str]:
        if self.options.states_key:
            return [existing(arrays, episode + key, "--states_key") for key in self.options.states_key]
        return [episode + key for key in STATE_KEYS if episode + key in arrays][:1]

    def _steps(self, arrays: Mapping[str, Any], name: str, num_frames: int) -> np.ndarray:
        """An array with a row a step; of as many rows as frames the spare one is dropped."""
        values = numbers(arrays, name)
        if len(values) == num_frames:
            values = values[:-1] if self.options.spare_action == "last" else values[1:]
        if len(values) != num_frames - 1:
            raise ValueError(
                f"{name} has {len(values)} rows for {num_frames} frames, but as many or one less is needed"
            )
        return values


def existing(arrays: Mapping[str, Any], name: str, option: str) -> str:
    if name not in arrays:
        raise ValueError(f"it has no {name} ({option}), only {', '.join(sorted(arrays)[:8])}")
    return name


def numbers(arrays: Mapping[str, Any], name: str) -> np.ndarray:
    """An array as float32, one row a frame or step."""
    values = np.asarray(arrays[name][()], np.float32)
    if values.ndim == 0:
        raise ValueError(f"{name} is a single number, but a row a frame is needed")
    values = values.reshape(len(values), -1)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite (NaN or infinite)")
    return values


def is_pictures(array: Any) -> bool:
    """Whether an array holds pictures, plain or compressed."""
    if array.dtype == np.uint8 and len(array.shape) == 4:
        return array.shape[3] == 3 or array.shape[1] == 3
    return is_compressed(array)


def is_compressed(array: Any) -> bool:
    """Whether each row is a JPEG or PNG: bytes of any length, or uint8 filled up to the longest (ACT)."""
    of_bytes = array.dtype == np.uint8 if len(array.shape) == 2 else array.dtype.kind in "OSV"
    if not of_bytes or len(array.shape) not in (1, 2) or not len(array):
        return False
    first = array[0]
    return (first if isinstance(first, bytes) else np.asarray(first).tobytes()).startswith(PICTURE_BEGINNINGS)


def frames_of(pictures: Any, height: int | None) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) RGB frames, read one at a time; higher ones are made `height` pixels high."""
    compressed = is_compressed(pictures)
    for number in range(len(pictures)):
        frame = pictures[number]
        if compressed:
            frame = read_image(frame if isinstance(frame, bytes) else np.asarray(frame).tobytes())
        elif frame.shape[-1] != 3:
            frame = frame.transpose(1, 2, 0)
        if height is not None and frame.shape[0] > height:
            width = max(2, 2 * round(frame.shape[1] * height / frame.shape[0] / 2))
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            frame = picture.reformat(width, height, interpolation="AREA").to_ndarray()
        yield frame


def import_rows(
    files: list[Path], source: Path, options: argparse.Namespace, skipped: dict[str, str]
) -> Iterator[dict]:
    """The rows of all episodes that fit; the others go into `skipped`. The first one tells what columns there are."""
    importer, columns = EpisodeImporter(options), None
    for path in tqdm(files, unit="file", desc="importing"):
        file = path.name if source.is_file() else path.relative_to(source).as_posix()
        name = file
        try:
            with open_arrays(path) as arrays:
                for episode, actions in find_episodes(arrays, options.actions_key).items():
                    name = f"{file}/{episode}".rstrip("/")
                    row = try_row(importer, arrays, episode, actions, name, columns, skipped)
                    if row is not None:
                        columns = columns or sizes(row)
                        yield row
        except BROKEN as error:  # the file itself
            skip(skipped, file, error)


def try_row(importer, arrays, episode: str, actions: str, name: str, columns: dict | None, skipped) -> dict | None:
    """The row of an episode, or None for one that does not fit."""
    try:
        row = importer.row(arrays, episode, actions, name)
        if columns is not None and sizes(row) != columns:
            raise ValueError(f"it has {told(sizes(row))}, but the ones before had {told(columns)}")
        return row
    except BROKEN as error:
        skip(skipped, name, error)
    return None


def sizes(row: dict[str, Any]) -> dict[str, int]:
    """The values a row of each array."""
    arrays = {name: row[name] for name in ("actions", "proprio_states", "rewards") if name in row}
    return {name: values.shape[1] if values.ndim == 2 else 1 for name, values in arrays.items()}


def told(columns: dict[str, int]) -> str:
    return ", ".join(f"{name} of {size}" for name, size in columns.items())


def skip(skipped: dict[str, str], name: str, error: Exception) -> None:
    skipped[name] = " ".join(str(error).split()) or type(error).__name__
    logger.warning("skipped %s: %s", name, skipped[name])


def features_of(row: dict[str, Any]) -> Features:
    """The columns of the shards, from the first row."""
    rows = List(List(Value("float32")))
    known = {
        "video": Video(decode=False),
        "actions": rows,
        "proprio_states": rows,
        "rewards": List(Value("float32")),
        "fps": Value("float32"),
        "episode_id": Value("string"),
    }
    return Features({name: feature for name, feature in known.items() if name in row})


def import_episodes(options: argparse.Namespace) -> None:
    files, skipped = find_files(options.source), {}
    with staged_folder(options.out_dir) as folder:
        rows = import_rows(files, options.source, options, skipped)
        first = next(rows, None)
        if first is None:
            name, reason = next(iter(skipped.items()))
            raise ValueError(f"None of the episodes of the {len(files)} files could be taken, e.g. {name}: {reason}.")
        count = write_shard_files(itertools.chain([first], rows), folder, features_of(first), options.num_shards)
        lines = [f"{name}\t{reason}\n" for name, reason in skipped.items()]
        (folder / "skipped.txt").write_text("".join(lines), encoding="utf-8")
    logger.info("%d episodes with %s written to %s", count, told(sizes(first)), options.out_dir)
    if skipped:
        logger.warning("%d skipped, listed in %s", len(skipped), options.out_dir / "skipped.txt")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of HDF5 or npz files, searched recursively, or one file")
    parser.add_argument("out_dir", type=Path, help="new folder for the shards")
    parser.add_argument("--fps", type=float, required=True, help="frames a second; the files do not tell")
    parser.add_argument("--frames_key", help="path of the pictures within an episode")
    parser.add_argument("--actions_key", help="path of the actions within an episode")
    parser.add_argument("--states_key", nargs="+", help="paths of the proprio states within an episode, joined")
    parser.add_argument("--spare_action", choices=("last", "first"), default="last", help="of T actions, dropped")
    parser.add_argument("--height", type=int, help="higher pictures are made so many pixels high (default: kept)")
    parser.add_argument("--crf", type=int, default=10, help="x264's quality, 0 (best) to 51 (default: 10)")
    parser.add_argument("--num_shards", type=int, default=8, help="at most so many files (default: 8)")
    options = parser.parse_args(arguments)
    for name, least in (("num_shards", 1), ("height", 2), ("crf", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}, but at least {least} is expected.")
    if not options.fps > 0:
        raise ValueError(f"--fps is {options.fps}, but a positive number of frames a second is expected.")
    return options


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    import_episodes(parse_arguments(arguments))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
