"""Episodes encoded once and kept on disk: written in parts that survive a stop, read by memory map in windows.

    EpisodeStream -> (an encoder) -> CacheWriter -> part-000-00000.safetensors, ... -> finish_cache -> index.json
    FeatureCache <- a finished folder
    WindowMixture -> windows of several caches by weight -> WindowBatches, for a DataLoader

A folder belongs to one `cache_key`: of the encoder's weights, the processor, the data and whatever else the values
depend on. Parts are written aside and renamed, and `index.json` comes last: without it the folder is unfinished, and
goes on where it was.

Legend: T frames of an episode, F frames of a window, B windows, N tokens, D width, A action, S proprio state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .episodes import read_episodes
from .files import cache_key, weights_fingerprint, write_aside, write_json, writing  # noqa: F401, what a cache depends on
from .lerobot import find_info
from .shards import ShardSource, files_in


logger = logging.getLogger(__name__)

INDEX = "index.json"
STEP_COLUMNS = ("actions", "rewards")  # T-1 rows an episode; every other column has T
PART_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class EpisodeSource:
    """Episodes with their share in a mixture."""

    path: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    weight: float = 1.0
    """Share of the windows drawn, relative to the other sources'."""
    camera: str | None = None
    """Which of several cameras: of a LeRobot dataset, or the key of the pictures in HDF5 and npz files."""
    fps: float | None = None
    """Frames a second of HDF5 and npz files, which do not tell it: such files are imported first."""

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"The weight of {self.path!r} is {self.weight}, but it must be positive.")


# ---------------------------------------------------------------------------------------------------------------------
# What a cache depends on
# ---------------------------------------------------------------------------------------------------------------------
def data_fingerprint(data: str | os.PathLike) -> str:
    """A hash of the files behind `data`: names, sizes and times of change; of the Hub's, names with their revision.

    Raises:
        FileNotFoundError: there is nothing at `data`.
    """
    data = os.fspath(data)
    if os.path.isdir(data):
        files = [(os.path.relpath(file, data), file) for file in sorted(files_in(data))]
    else:
        files = [(os.path.basename(file), file) for file in sorted(glob.glob(data, recursive=True))]
    if not files:
        info = find_info(data)  # of a LeRobot dataset of the Hub: its path holds the commit
        remote = ["/".join(Path(info).parts[-4:])] if info else ShardSource(data).shards
        return hashlib.sha256("\n".join(remote).encode()).hexdigest()
    lines = []
    for name, file in files:
        found = os.stat(file)
        lines.append(f"{name} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------
class _EnoughEpisodes(Exception):  # noqa: N818, no error
    """Ends a reading."""


class EpisodeStream(torch.utils.data.IterableDataset):
    """Episodes to be put into a cache, decoded and cropped, for any number of processes and DataLoader workers.

    Each is a dict: `frames` uint8 (T, C, H, W) as the processor crops them, before it normalises; `actions` float32
    (T-1, A) and, where the data has them, `proprio_states` float32 (T, S) and `rewards` float32 (T-1, 1); `fps`;
    `episode_id`. The last item, where something did not read, is `{"skipped": reasons by name}`.

    Args:
        source: what `read_episodes` reads.
        processor: a `VJepa2VideoProcessor`.
        max_episodes: of the source, the first ones.
        done: ids to leave out.
        rank, world_size: of the process.
    """

    def __init__(
        self,
        source: EpisodeSource,
        processor: Any,
        max_episodes: int | None = None,
        done: Collection[str] = (),
        rank: int = 0,
        world_size: int = 1,
    ):
        self.source, self.processor, self.max_episodes, self.done = source, processor, max_episodes, done
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        places, skipped = itertools.count(), {}

        def wanted(name: str) -> bool:
            place = next(places)
            if place == self.max_episodes:
                raise _EnoughEpisodes
            mine = place % (self.world_size * workers) == self.rank * workers + number
            return mine and name not in self.done

        with contextlib.suppress(_EnoughEpisodes):
            episodes = read_episodes(self.source.path, camera=self.source.camera, wanted=wanted, skipped=skipped)
            for episode in episodes:
                yield self._cropped(episode)
        if skipped:
            yield {"skipped": skipped}

    def _cropped(self, episode: dict[str, Any]) -> dict[str, Any]:
        arrays = {name: episode[name] for name in ("actions", "proprio_states", "rewards")}
        if arrays["rewards"] is not None:
            arrays["rewards"] = arrays["rewards"][:, None]
        cropped = self.processor(episode["frames"], do_rescale=False, do_normalize=False, return_tensors="pt")
        return {
            "frames": cropped["pixel_values_videos"][0],
            **{name: torch.from_numpy(np.array(array)) for name, array in arrays.items() if array is not None},
            "fps": episode["fps"],
            "episode_id": episode["episode_id"],
        }


def is_finished(folder: str | os.PathLike) -> bool:
    """Whether a cache may be read."""
    return (Path(folder) / INDEX).is_file()


class CacheWriter:
    """Writes this process's share of the episodes into an unfinished cache.

    Args:
        folder: of the cache; created.
        rank: of this process; part of its files' names.
        part_bytes: a part is written when its episodes exceed this, which bounds memory.

    Attributes:
        done: ids of the episodes in whole parts, of all processes, when the writer was made.
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0, part_bytes: int = PART_BYTES):
        self.folder, self.rank, self.part_bytes = Path(folder), rank, part_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [*self.folder.glob(f"*part-{rank:03d}-*.tmp"), self._skipped_path]:
            path.unlink(missing_ok=True)  # what did not read before is tried again
        self.done = {episode["id"] for part in _parts(self.folder) for episode in _read_header(part)}
        self._written: set[str] = set()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pending: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = []
        self._bytes = 0

    def add(self, name: str, fps: float, columns: dict[str, torch.Tensor], **notes: Any) -> None:
        """Adds an episode.

        Args:
            name: its id.
            fps: of its frames.
            columns: name -> (T, ...), or (T-1, ...) of STEP_COLUMNS.
            notes: more of the episode that JSON holds, of the same names for all; `FeatureCache.notes` gives them.

        Raises:
            ValueError: a second episode of that id, or columns that do not fit those of the episodes before.
        """
        if name in self.done or name in self._written:
            raise ValueError(f"Two episodes are called {name!r}; give every row an episode_id of its own.")
        length = max(len(values) for values in columns.values())
        self._check(name, length, columns)
        self._written.add(name)
        self._pending.append(({"id": name, "length": length, "fps": fps, **notes}, columns))
        self._bytes += sum(values.nbytes for values in columns.values())
        if self._bytes >= self.part_bytes:
            self.flush()

    def _check(self, name: str, length: int, columns: dict[str, torch.Tensor]) -> None:
        """Refuses an episode that does not fit those before: in one file they lie one after the other."""
        found = {key: tuple(values.shape[1:]) for key, values in columns.items()}
        self._shapes = self._shapes or found
        if found != self._shapes:
            raise ValueError(f"Episode {name!r} has columns {found}, but the ones before had {self._shapes}.")
        for key, values in columns.items():
            if len(values) != length - (key in STEP_COLUMNS):
                raise ValueError(f"Episode {name!r} has {len(values)} rows of {key!r} for {length} frames.")

    @property
    def _skipped_path(self) -> Path:
        return self.folder / f"skipped-{self.rank:03d}.json"

    def skip(self, reasons: dict[str, str]) -> None:
        """Notes what did not read, by name, for the index."""
        known = json.loads(self._skipped_path.read_text()) if self._skipped_path.exists() else {}
        write_json(self._skipped_path, known | reasons, indent=None)

    def flush(self) -> None:
        """Writes what is held as a part, aside, then renamed."""
        if not self._pending:
            return
        episodes, columns = zip(*self._pending, strict=True)
        tensors = {name: torch.cat([part[name] for part in columns]).contiguous() for name in columns[0]}
        number = len(list(self.folder.glob(f"part-{self.rank:03d}-*.safetensors")))
        whole = self.folder / f"part-{self.rank:03d}-{number:05d}.safetensors"
        with writing(whole), write_aside(whole) as partial:
            save_file(tensors, partial, metadata={"episodes": json.dumps(episodes)})
        self._pending, self._bytes = [], 0


def finish_cache(folder: str | os.PathLike, description: dict[str, Any]) -> None:
    """Lists all parts in `index.json`, which makes the cache readable; every writer must have flushed.

    Args:
        folder: of the cache.
        description: what its key was made of, for people to read.

    Raises:
        ValueError: no episode, two of one id (from two processes), or columns that differ between parts.
    """
    folder = Path(folder)
    episodes, shapes = [], {}
    for part in _parts(folder):
        frame, found = 0, _read_shapes(part)
        shapes = shapes or found
        if found != shapes:
            raise ValueError(f"{part.name} has columns {found}, but the parts before had {shapes}.")
        for number, episode in enumerate(_read_header(part)):
            # an episode has one row less in the step columns
            episodes.append({**episode, "file": part.name, "frame": frame, "step": frame - number})
            frame += episode["length"]
    if not episodes:
        raise ValueError(
            f"No episode was written to the cache {str(folder)!r}; look at what the log says of the data."
        )
    # By id: the order must not depend on how many processes wrote
    episodes.sort(key=lambda episode: episode["id"])
    for before, after in zip(episodes, episodes[1:]):
        if before["id"] == after["id"]:
            raise ValueError(f"Two episodes are called {after['id']!r}; give every row an episode_id of its own.")
    columns = {key: [episode[key] for episode in episodes] for key in episodes[0]}
    index = {"description": description, "episodes": columns, "skipped": _skipped(folder, columns["id"])}
    write_json(folder / INDEX, index, indent=None)


def _skipped(folder: Path, written: list[str]) -> dict[str, str]:
    """Reasons by name of what no process could read."""
    found = {}
    for path in sorted(folder.glob("skipped-*.json")):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return {name: reason for name, reason in found.items() if name not in written}


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.safetensors"))


def _read_header(part: Path) -> list[dict[str, Any]]:
    """Id, length and fps of the episodes of a part."""
    with safe_open(part, framework="pt") as file:
        return json.loads(file.metadata()["episodes"])


def _read_shapes(part: Path) -> dict[str, tuple[int, ...]]:
    """The columns of a part: a row's shape by name."""
    with safe_open(part, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()[1:]) for name in sorted(file.keys())}


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------
class FeatureCache:
    """A finished cache, read by memory map: a window costs what it holds, and processes share the pages.

    Args:
        folder: where `finish_cache` was called.
        columns: those that `windows` reads; the part files may hold more.

    Attributes:
        ids, fps: of each episode, in the order of the ids.
        lengths: T of each episode, int64 (E,).
        notes: what else the writer was given of each episode, lists by name.
        skipped: reasons by name of what did not read when the cache was filled.

    Raises:
        FileNotFoundError: the cache is not finished.
        ValueError: it lacks one of `columns`.
    """

    def __init__(self, folder: str | os.PathLike, columns: Sequence[str] = ("latents", "actions")):
        self.folder, self.columns = Path(folder), tuple(columns)
        if not is_finished(folder):
            raise FileNotFoundError(f"The cache {str(folder)!r} has no {INDEX}: it is not finished, or no cache.")
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        self.skipped: dict[str, str] = index.get("skipped", {})
        index = index["episodes"]
        self.ids: list[str] = index["id"]
        self.fps: list[float] = index["fps"]
        self.lengths = torch.tensor(index["length"])
        known = ("id", "fps", "length", "file", "frame", "step")
        self.notes: dict[str, list] = {name: values for name, values in index.items() if name not in known}
        self.files = sorted(set(index["file"]))
        numbers = {name: number for number, name in enumerate(self.files)}
        self._file = torch.tensor([numbers[name] for name in index["file"]])
        self._first = {"frame": torch.tensor(index["frame"]), "step": torch.tensor(index["step"])}
        self._open: dict[int, dict[str, torch.Tensor]] = {}
        for name in set(columns) - set(self._part(0)):
            raise ValueError(f"The episodes have no {name!r}; they have {', '.join(sorted(self._part(0)))}.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a DataLoader worker maps the files itself

    def warn_of_skipped(self) -> None:
        """Names what is not in the cache, in the run that filled it and in every later one."""
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            logger.warning(
                "%s lacks %d rows or shards that did not read when it was filled, such as %s (%s): delete it to try "
                "again", self.folder, len(self.skipped), name, reason,
            )  # fmt: skip

    def windows(self, episodes: torch.Tensor, starts: torch.Tensor, frames: int, skip: int = 1) -> dict:
        """Windows of `frames` frames, `skip` apart.

        Args:
            episodes, starts: int64 (B,), the number of the episode and of its first frame.

        Returns:
            For each column (B, F, ...), or of the STEP_COLUMNS (B, F-1, skip, ...).
        """
        return _gather_by(
            self._file[episodes],
            lambda file, chosen: self._read(file, episodes[chosen], starts[chosen], frames, skip),
        )

    def _read(self, file: int, episodes: torch.Tensor, starts: torch.Tensor, frames: int, skip: int) -> dict:
        part, batch = self._part(file), {}
        steps = torch.arange((frames - 1) * skip)
        for name in self.columns:
            if name in STEP_COLUMNS:
                rows = (self._first["step"][episodes] + starts).unsqueeze(1) + steps
                batch[name] = part[name][rows].unflatten(1, (frames - 1, skip))
            else:
                rows = (self._first["frame"][episodes] + starts).unsqueeze(1) + torch.arange(frames) * skip
                batch[name] = part[name][rows]
        return batch

    def statistics(self, column: str, episodes: torch.Tensor) -> dict[str, Any]:
        """Mean, deviation, lowest and highest value of a column (rows, A) over episodes (int64), in float64.

        Returns:
            `mean`, `std`, `low`, `high`: lists of A numbers; `rows`.
        """
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

    def _rows(self, file: int, column: str, chosen: torch.Tensor) -> torch.Tensor:
        """Which rows of a column of a file belong to the chosen episodes (mask (E,)), bool."""
        here = (self._file == file).nonzero().squeeze(1)
        here = here[self._first["frame"][here].argsort()]
        lengths = self.lengths[here] - int(column in STEP_COLUMNS)
        return chosen[here].repeat_interleave(lengths)

    def _part(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self._open:
            with safe_open(self.folder / self.files[number], framework="pt") as file:
                self._open[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
        return self._open[number]


class WindowMixture:
    """Windows of the episodes of one or several caches.

    Args:
        caches: with the same columns.
        episodes: of each cache, the numbers (int64) of those that windows are taken from.
        weights: share of each cache in the windows drawn; within a cache every window is equally likely.
    """

    def __init__(self, caches: Sequence[FeatureCache], episodes: Sequence[torch.Tensor], weights: Sequence[float]):
        self.caches, self.episodes = list(caches), list(episodes)
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)

    def __len__(self) -> int:
        """Episodes."""
        return sum(map(len, self.episodes))

    def room(self, cache: int, frames: int, skip: int) -> np.ndarray:
        """Windows that each episode of a cache has."""
        return (self.caches[cache].lengths[self.episodes[cache]] - (frames - 1) * skip).clamp(min=0).numpy()

    def draw(self, count: int, frames: int, skip: int, rng: np.random.Generator) -> torch.Tensor:
        """Random windows: int64 (count, 3) of cache, episode and first frame.

        Raises:
            ValueError: a cache has no episode that is long enough.
        """
        several = len(self.caches) > 1
        caches = rng.choice(len(self.caches), size=count, p=self.weights) if several else np.zeros(count, np.int64)
        places = np.empty((count, 3), np.int64)
        for number, cache in enumerate(self.caches):
            ends = self.room(number, frames, skip).cumsum()
            if not len(ends) or ends[-1] == 0:
                raise ValueError(
                    f"No episode has the {(frames - 1) * skip + 1} frames of a window (in {str(cache.folder)!r}); "
                    "record longer ones."
                )
            mine = np.flatnonzero(caches == number)
            draws = rng.integers(ends[-1], size=len(mine))
            index = np.searchsorted(ends, draws, side="right")
            starts = draws - np.concatenate([[0], ends])[index]
            places[mine] = np.stack([np.full_like(index, number), self.episodes[number].numpy()[index], starts], 1)
        return torch.from_numpy(places)

    def tile(self, frames: int, skip: int, stride: int, limit: int) -> torch.Tensor:
        """Windows that begin every `stride` frames, thinned evenly to `limit`: int64 (count, 3), as `draw` gives."""
        places = []
        for cache in range(len(self.caches)):
            for episode, room in zip(self.episodes[cache].tolist(), self.room(cache, frames, skip).tolist()):
                places += [(cache, episode, start) for start in range(0, room, stride)]
        places = torch.tensor(places, dtype=torch.int64).view(-1, 3)
        return places if len(places) <= limit else places[torch.linspace(0, len(places) - 1, limit).long()]

    def names(self, places: torch.Tensor) -> list[str]:
        """The windows at places (B, 3) in words: episode and first frame."""
        return [f"{self.caches[cache].ids[episode]}, frame {start}" for cache, episode, start in places.tolist()]

    def read(self, places: torch.Tensor, frames: int, skip: int) -> dict[str, torch.Tensor]:
        """The windows at places (B, 3), by column; see `FeatureCache.windows`."""
        return _gather_by(
            places[:, 0],
            lambda cache, chosen: self.caches[cache].windows(places[chosen, 1], places[chosen, 2], frames, skip),
        )


class WindowBatches(torch.utils.data.Dataset):
    """Item n is this process's micro-batch of windows number n: it depends on the seed and n alone.

    Beside the windows' columns it holds their `places` (B, 3), see `WindowMixture`.

    For a DataLoader with `batch_size=None` and a range as sampler: a resumed run begins the range later, and any
    number of workers gives the same. Processes and micro-batches share out one drawing of the whole step's windows,
    so that together they hold the batch that one process would draw.

    Args:
        mixture: what windows are drawn from.
        batch_size: B, of a process and micro-batch.
        frames_at: step (from 1) -> F.
        skip: frames from one frame of a window to the next.
        seed: of the draws.
        rank, world_size: of the process.
        micro_batches: of a step.
    """

    def __init__(
        self,
        mixture: WindowMixture,
        batch_size: int,
        frames_at: Callable[[int], int],
        skip: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ):
        self.mixture, self.batch_size, self.frames_at, self.skip = mixture, batch_size, frames_at, skip
        self.seed, self.rank, self.world_size, self.micro_batches = seed, rank, world_size, micro_batches

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        step, micro_batch = number // self.micro_batches + 1, number % self.micro_batches
        frames = self.frames_at(step)
        everyone = self.batch_size * self.world_size * self.micro_batches
        places = self.mixture.draw(everyone, frames, self.skip, np.random.default_rng((self.seed, step)))
        first = (micro_batch * self.world_size + self.rank) * self.batch_size
        places = places[first : first + self.batch_size]
        return {"places": places, **self.mixture.read(places, frames, self.skip)}


def _gather_by(groups: torch.Tensor, read: Callable[[int, Any], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Reads the rows of each group (int64 (B,)) by themselves and gives them back in the order of `groups`."""
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


__all__ = [
    "CacheWriter",
    "FeatureCache",
    "EpisodeSource",
    "EpisodeStream",
    "WindowBatches",
    "WindowMixture",
    "cache_key",
    "data_fingerprint",
    "finish_cache",
    "is_finished",
    "weights_fingerprint",
]
