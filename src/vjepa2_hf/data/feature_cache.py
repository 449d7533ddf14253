"""A cache of features on disk: written in parts that survive an interruption, read by memory map in windows.

    EpisodeStream -> (an encoder) -> CacheWriter -> part-000-00000.safetensors, ... -> finish_cache -> index.json
    FeatureCache <- a finished folder

A folder belongs to one `cache_key`: of the encoder's weights, the processor, the data and whatever else the features
depend on. `index.json` is written last: a folder without it is unfinished, and `CacheWriter` continues it. Parts and
index hold digests of their bytes; `discard_damaged` removes what has changed, so that the next fill computes it again.

Legend: E episodes, T frames of an episode, F frames of a window, B windows, A action.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import xxhash
from tqdm.auto import tqdm

from ..configuration_vjepa2 import check
from .episodes import TWO_EPISODES
from .files import write_json
from .lerobot import find_info
from .parts import (
    PART_BYTES,
    DamagedPartError,
    PartWriter,
    check_part,
    read_digest,
    read_note,
    read_shapes,
    read_tensors,
    save_part,
)
from .shard_files import files_at, files_in, is_path_list
from .shards import ShardSource


logger = logging.getLogger(__name__)

INDEX = "index.json"
STEP_COLUMNS = ("actions", "rewards")  # T-1 rows per episode; every other column has T
SHOWN_PARTS = 32  # of 256 MB: verifying more shows its progress
PART_NOTE = "episodes"  # of a part: id, length and fps of each episode in it


def data_fingerprint(data: str | os.PathLike) -> str:
    """A hash of the names, sizes and modification times of the files at `data`, or of a Hub dataset's revision."""
    data = os.fspath(data)
    if os.path.isdir(data):
        files = [(os.path.relpath(file, data), file) for file in sorted(files_in(data))]
    else:
        files = [(os.path.basename(file), file) for file in sorted(files_at(data))]
        if len(files) == 1 and is_path_list(data):
            files += [(file, file) for file in ShardSource(data).shards if os.path.isfile(file)]
    found = [(name, os.stat(file)) for name, file in files]
    lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in found]
    if not lines:
        info = find_info(data)  # of a LeRobot dataset on the Hub: its path holds the commit
        lines = ["/".join(Path(info).parts[-4:])] if info else ShardSource(data).shards
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def is_finished(folder: str | os.PathLike) -> bool:
    """Whether a cache can be read."""
    return (Path(folder) / INDEX).is_file()


def discard_damaged(folder: str | os.PathLike, rank: int = 0, world_size: int = 1) -> list[str]:
    """Removes the damaged parts of a cache, and its index if it is damaged or lists a part that is gone.

    Each of `world_size` processes reads its fraction of the parts. What was removed is logged, and computed again by
    the next fill. Returns the names of this process.
    """
    folder, removed = Path(folder), []
    if not folder.is_dir():
        return removed
    # By name, because another process may be removing parts
    parts = [path for path in _parts(folder) if zlib.crc32(path.name.encode()) % world_size == rank]
    for path in tqdm(parts, desc="verify", disable=rank > 0 or len(parts) < SHOWN_PARTS):
        try:
            check_part(path, PART_NOTE)
        except DamagedPartError as error:
            logger.warning("%s It is removed; its episodes are computed again.", error)
            path.unlink(missing_ok=True)
            removed.append(path.name)
    index = folder / INDEX
    try:
        lost = removed or (index.is_file() and not _lists_its_parts(folder, _read_index(folder)))
    except DamagedPartError as error:
        logger.warning("%s", error)
        lost = True
    if lost:
        index.unlink(missing_ok=True)
        removed.append(INDEX)
    return removed


class CacheWriter:
    """Writes the episodes of one process into an unfinished cache; a part of `part_bytes` is held in memory.

    Attributes:
        done: ids of the episodes that the parts of all processes held when the writer was created.
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0, part_bytes: int = PART_BYTES):
        self.folder = Path(folder)
        self._parts = PartWriter(self.folder, f"part-{rank:03d}-{{:05d}}.safetensors", _save_episodes, part_bytes)
        self._skipped_path = self.folder / f"skipped-{rank:03d}.json"
        self._skipped_path.unlink(missing_ok=True)  # skipped episodes are tried again
        self.done = {episode["id"] for part in _parts(self.folder) for episode in read_note(part, PART_NOTE)}
        self._written: set[str] = set()
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, fps: float, columns: dict[str, torch.Tensor], **notes: Any) -> None:
        """Adds an episode with its id.

        `columns` are (T, ...), or (T-1, ...) for STEP_COLUMNS; `notes` are other JSON values. Their names are the same
        for all episodes.
        """
        check(not (name in self.done or name in self._written), TWO_EPISODES.format(name))
        length = max(len(values) for values in columns.values())
        found = {key: tuple(values.shape[1:]) for key, values in columns.items()}
        self._shapes = self._shapes or found
        # A part concatenates its episodes
        check(found == self._shapes, f"Episode {name!r} has columns {found}, but the ones before had {self._shapes}.")
        for key, values in columns.items():
            fits = len(values) == length - (key in STEP_COLUMNS)
            check(fits, f"Episode {name!r} has {len(values)} rows of {key!r} for {length} frames.")
        self._written.add(name)
        note = {"id": name, "length": length, "fps": fps, **notes}
        self._parts.add((note, columns), sum(values.nbytes for values in columns.values()))

    def skip(self, reasons: dict[str, str]) -> None:
        """Records unreadable episodes and their reasons, by name, for the index."""
        write_json(self._skipped_path, _read_skipped(self._skipped_path) | reasons, indent=None)

    def flush(self) -> None:
        """Writes the episodes so far as a part."""
        self._parts.flush()


def _save_episodes(path: Path, items: list[tuple[dict[str, Any], dict[str, torch.Tensor]]]) -> None:
    notes, columns = zip(*items, strict=True)
    save_part(path, {name: torch.cat([part[name] for part in columns]) for name in columns[0]}, PART_NOTE, notes)


def finish_cache(folder: str | os.PathLike, description: dict[str, Any]) -> None:
    """Lists all parts in `index.json`, which makes the cache readable. Every writer must have flushed.

    `description` names what the cache's key was made of, for people to read.
    """
    folder = Path(folder)
    episodes, shapes = [], {}
    for part in _parts(folder):
        frame, found = 0, {name: shape[1:] for name, shape in read_shapes(part).items()}
        shapes = shapes or found
        check(found == shapes, f"{part.name} has columns {found}, but the parts before had {shapes}.")
        for number, episode in enumerate(read_note(part, PART_NOTE)):
            # Step columns have one row less per episode
            episodes.append({**episode, "file": part.name, "frame": frame, "step": frame - number})
            frame += episode["length"]
    skipped = {}
    for path in sorted(folder.glob("skipped-*.json")):
        skipped |= _read_skipped(path)
    if not episodes:
        _refuse_empty(folder, skipped, description.get("path"))
    # By id: the order must not depend on how many processes wrote
    episodes.sort(key=lambda episode: episode["id"])
    for before, after in zip(episodes, episodes[1:]):  # of two processes
        check(before["id"] != after["id"], TWO_EPISODES.format(after["id"]))
    columns = {key: [episode[key] for episode in episodes] for key in episodes[0]}
    skipped = {name: reason for name, reason in skipped.items() if name not in columns["id"]}
    parts = {part.name: read_digest(part) for part in _parts(folder)}
    index = {"version": 2, "parts": parts, "description": description, "episodes": columns, "skipped": skipped}
    index = json.loads(json.dumps(index))
    write_json(folder / INDEX, {**index, "digest": _digest_of(index)}, indent=None)


def _refuse_empty(folder: Path, skipped: dict[str, str], data: str | None) -> NoReturn:
    """Refuses a cache without an episode, and says why it has none."""
    source = f" of {data!r}" if data else ""
    if not skipped:
        raise ValueError(
            f"No episode, clip or image{source} was written to the cache {str(folder)!r}: there is none, or the "
            "settings select none. Give other data, or change them."
        )
    name, reason = next(iter(skipped.items()))
    raise ValueError(
        f"All {len(skipped)} episodes, clips or images{source} that were read were skipped, the first of them {name} "
        f"({reason.rstrip('.')}): repair them, or change the setting that refuses them. All reasons are in "
        f"{str(folder / 'skipped-*.json')!r}."
    )


def _digest_of(index: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    """The content of `index.json`; one of an older version has no digest."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        digest = index.pop("digest", None)
        same = digest == _digest_of(index) if "version" in index or digest is not None else True
        complete = {"id", "fps", "length", "file", "frame", "step"} <= index["episodes"].keys()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The cache {str(folder)!r} has no {INDEX}: it is not finished, or no cache."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedPartError(path, f"{type(error).__name__}: {error}") from error
    if not (same and complete):
        raise DamagedPartError(path, "its content has changed since it was written")
    return index


def _read_skipped(path: Path) -> dict[str, str]:
    """Reasons by name; a damaged list only loses what it listed."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        logger.warning("%s is damaged (%s): the skipped episodes that it listed are not known", path, error)
        return {}


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.safetensors"))


def _lists_its_parts(folder: Path, index: dict[str, Any]) -> bool:
    """Whether the parts that an index lists are there, and not others under their names."""
    names = set(index["episodes"]["file"])
    if not all((folder / name).is_file() for name in names):
        return False
    digests = index.get("parts")  # older versions have none
    return digests is None or all(read_digest(folder / name) == digests.get(name) for name in names)


class FeatureCache:
    """A finished cache, read by memory map: a window costs its own size, and processes share the pages.

    `columns` are those that `windows` reads; the parts may hold more, and may lack the `optional` ones, which are then
    left out. `verify` compares all parts with their digests, which reads them once; without, `discard_damaged` has
    just done so.

    Attributes:
        ids, fps: of each episode, in the order of the ids.
        lengths: T of each episode, int64 (E,).
        notes: the writer's notes of each episode, lists by name.
        skipped: reasons by name of the episodes that were unreadable when the cache was filled.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        columns: Sequence[str] = ("latents", "actions"),
        verify: bool = True,
        optional: Collection[str] = (),
    ):
        self.folder = Path(folder)
        content = _read_index(self.folder)
        self.skipped: dict[str, str] = content.get("skipped", {})
        index = content["episodes"]
        self.ids: list[str] = index["id"]
        self.fps: list[float] = index["fps"]
        self.lengths = torch.tensor(index["length"])
        known = ("id", "fps", "length", "file", "frame", "step")
        self.notes: dict[str, list] = {name: values for name, values in index.items() if name not in known}
        self.files = sorted(set(index["file"]))
        for name in self.files if verify else ():
            check_part(self.folder / name, PART_NOTE)
        if not _lists_its_parts(self.folder, content):
            raise DamagedPartError(self.folder / INDEX, "it lists other parts than those that are there")
        numbers = {name: number for number, name in enumerate(self.files)}
        self._file = torch.tensor([numbers[name] for name in index["file"]])
        self._first = {"frame": torch.tensor(index["frame"]), "step": torch.tensor(index["step"])}
        self._open: dict[int, dict[str, torch.Tensor]] = {}
        self.columns = tuple(name for name in columns if name in self._part(0) or name not in optional)
        for name in set(self.columns) - set(self._part(0)):
            raise ValueError(f"The episodes have no {name!r}; they have {', '.join(sorted(self._part(0)))}.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a DataLoader worker maps the files itself

    def warn_of_skipped(self) -> None:
        """Logs the episodes that are missing, in the run that filled the cache and in every later one."""
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            logger.warning(
                "%s lacks %d rows or shards that were unreadable when it was filled, such as %s (%s): delete it to "
                "try again", self.folder, len(self.skipped), name, reason,
            )  # fmt: skip

    def windows(self, episodes: torch.Tensor, starts: torch.Tensor, frames: int, skip: int = 1) -> dict:
        """Windows of `frames` frames, `skip` apart, from the frames `starts` of `episodes`, both int64 (B,).

        Each column is (B, F, ...), or of the STEP_COLUMNS (B, F-1, skip, ...).
        """
        return gather_by(
            self._file[episodes],
            lambda file, chosen: self._read(file, episodes[chosen], starts[chosen], frames, skip),
        )

    def _read(self, file: int, episodes: torch.Tensor, starts: torch.Tensor, frames: int, skip: int) -> dict:
        part, batch = self._part(file), {}
        for name in self.columns:
            kind = "step" if name in STEP_COLUMNS else "frame"
            offsets = torch.arange((frames - 1) * skip) if kind == "step" else torch.arange(frames) * skip
            values = part[name][(self._first[kind][episodes] + starts).unsqueeze(1) + offsets]
            batch[name] = values.unflatten(1, (frames - 1, skip)) if kind == "step" else values
        return batch

    def statistics(self, column: str, episodes: torch.Tensor) -> dict[str, Any]:
        """`mean`, `std`, `low` and `high` (lists of A numbers) of a column (rows, A) over episodes; its `rows`."""
        chosen = torch.zeros(len(self.ids), dtype=torch.bool)
        chosen[episodes] = True

        def parts() -> Iterator[torch.Tensor]:
            for file in range(len(self.files)):
                values = self._part(file)[column][self._rows(file, column, chosen)]
                if len(values):
                    yield values.double()

        rows = sum(map(len, parts()))
        mean = sum(part.sum(0) for part in parts()) / rows
        variance = sum((part - mean).square().sum(0) for part in parts()) / rows
        low = torch.stack([part.amin(0) for part in parts()]).amin(0)
        high = torch.stack([part.amax(0) for part in parts()]).amax(0)
        found = {"mean": mean, "std": variance.sqrt(), "low": low, "high": high}
        return {**{name: value.tolist() for name, value in found.items()}, "rows": rows}

    def width(self, column: str) -> int:
        """Numbers per row of a column (rows, A); 0 without it."""
        return self._part(0)[column].shape[1] if column in self.columns else 0

    def _rows(self, file: int, column: str, chosen: torch.Tensor) -> torch.Tensor:
        """Mask of the rows of a file's column that belong to the chosen episodes (mask (E,))."""
        here = (self._file == file).nonzero().squeeze(1)
        here = here[self._first["frame"][here].argsort()]
        lengths = self.lengths[here] - int(column in STEP_COLUMNS)
        return chosen[here].repeat_interleave(lengths)

    def _part(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self._open:
            self._open[number] = read_tensors(self.folder / self.files[number])
        return self._open[number]


def gather_by(groups: torch.Tensor, read: Callable[[int, Any], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Reads the rows of each group (int64 (B,)) separately and returns them in the order of `groups`."""
    numbers = groups.unique().tolist()
    if len(numbers) == 1:
        return read(numbers[0], slice(None))
    batch: dict[str, torch.Tensor] = {}
    for number in numbers:
        chosen = groups == number
        for name, values in read(number, chosen).items():
            rows = batch.setdefault(name, values.new_empty((len(groups), *values.shape[1:])))
            rows[chosen] = values
    return batch
