"""Clips and episodes: streamed from shards through `datasets`.

    shards (parquet, webdataset) or a folder of videos, local or on the Hub
      -> ClipStream    clips at a frame rate, for pretraining and probing   -> MaskCollator -> batches
      -> read_episodes frames, actions and proprio states, for the world model
    write_shards makes such shards.

Where a stream stands is three numbers (epoch, shard, row), and every random choice about a clip comes from
(seed, epoch, shard, row, clip): a stream resumed anywhere, or read by other workers, gives the same clips.

Legend: B batch, T frames, C channels, H W pixels, A action size, S proprio size.
"""

from __future__ import annotations

import atexit
import glob
import itertools
import logging
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features, IterableDataset, Video, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

from .video_io import VIDEO_EXTENSIONS, VideoDecodeError, VideoReader
from .video_processing_vjepa2 import RandomResizedClip


logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 16  # rows a reader takes at once: 16 videos of 256p are some tens of MB


# ---------------------------------------------------------------------------------------------------------------------
# Writing shards
# ---------------------------------------------------------------------------------------------------------------------
@contextmanager
def staged_folder(output_dir: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A folder written aside and renamed to `output_dir` when the block ends well; removed when it fails.

    Raises:
        FileExistsError: `output_dir` exists and is not empty, and `overwrite` is False.
    """
    target = Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not overwrite:
        raise FileExistsError(f"{str(target)!r} exists and is not empty; choose another output folder or remove it.")
    staging = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
        if target.is_dir() and overwrite:
            shutil.rmtree(target)
        os.replace(staging, target)  # takes an empty folder's place too
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_shards(
    rows: Iterable[dict[str, Any]],
    output_dir: str | os.PathLike,
    features: Features,
    num_shards: int = 8,
    overwrite: bool = False,
) -> int:
    """Writes rows in turn into `num_shards` parquet files `data-00000-of-00008.parquet`, aside first, then renamed.

    Args:
        rows: dicts with the columns of `features`; a video is `{"bytes": mp4, "path": name or None}`.
        output_dir: a folder that does not exist yet, or is empty (or is replaced, with `overwrite`).
        features: `datasets.Features`; they are stored in the files, so `load_dataset` gives a `Video` column.
        num_shards: files; more than rows leaves no empty file. A multiple of processes x workers reads fastest.

    Returns:
        The number of rows written.
    """
    with staged_folder(output_dir, overwrite) as folder:
        return write_shard_files(rows, folder, features, num_shards)


def write_shard_files(rows: Iterable[dict], folder: Path, features: Features, num_shards: int = 8) -> int:
    """`write_shards` into a folder that is already staged."""
    if num_shards < 1:
        raise ValueError(f"num_shards is {num_shards}, but at least 1 shard must be written.")
    schema = features.arrow_schema
    writers, pending, total = [], [[] for _ in range(num_shards)], 0

    def flush(shard: int) -> None:
        writers[shard].write_table(pa.Table.from_pylist(pending[shard], schema=schema))
        pending[shard] = []

    try:
        for total, row in enumerate(rows, start=1):
            shard = (total - 1) % num_shards
            if shard == len(writers):
                # Video is compressed already; another pass would only cost time.
                writers.append(pq.ParquetWriter(folder / f"data-{shard:05d}.parquet", schema, compression="none"))
            pending[shard].append(_encode_row(row, features))
            if len(pending[shard]) >= _ROWS_PER_GROUP:
                flush(shard)
        for shard in range(len(writers)):
            if pending[shard]:
                flush(shard)
    finally:
        for writer in writers:
            writer.close()
    for shard in range(len(writers)):
        os.replace(folder / f"data-{shard:05d}.parquet", folder / f"data-{shard:05d}-of-{len(writers):05d}.parquet")
    return total


def _encode_row(row: dict, features: Features) -> dict:
    # datasets would drop a video's bytes if a file of the same name happened to lie in the working folder.
    videos = {name: row[name] for name, feature in features.items() if isinstance(feature, Video)}
    encoded = features.encode_example({**row, **{name: {"bytes": b"", "path": None} for name in videos}})
    return {**encoded, **videos}


# ---------------------------------------------------------------------------------------------------------------------
# Reading shards
# ---------------------------------------------------------------------------------------------------------------------
_OPEN_READERS: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_readers() -> None:
    # A stream without end is still open when a program ends; closed later, datasets would find its modules gone.
    for rows in list(_OPEN_READERS):
        rows.close()


class ShardSource:
    """The shards behind `data`, read row by row with `datasets` (streaming), without decoding.

    Args:
        data: a folder or glob of parquet or webdataset (.tar) shards or of video files, one such file, or a dataset
            of the Hub.

    Attributes:
        kind: "parquet", "webdataset" or "videos".
        shards: paths or URLs, sorted. A video file is a shard of one row.
        skipped: reasons by name of the shards and rows that were passed over.

    Raises:
        FileNotFoundError: there is nothing at `data`, or nothing that is a shard or a video.
    """

    def __init__(self, data: str | os.PathLike):
        self.data = os.fspath(data)
        self.kind, self.shards = _find_shards(self.data)
        self.skipped: dict[str, str] = {}
        self._datasets: dict[int, IterableDataset] = {}

    def read(self, shard: int, first_row: int = 0) -> Iterator[tuple[int, dict]]:
        """(row number, row) of a shard. A shard that does not read is skipped, counted and named in the log."""
        rows = self._read(shard, first_row)
        _OPEN_READERS.add(rows)
        return rows

    def _read(self, shard: int, first_row: int) -> Iterator[tuple[int, dict]]:
        try:
            if self.kind == "videos":
                rows = [{"video": {"path": self.shards[shard], "bytes": None}}][first_row:]
            else:
                rows = self._dataset(shard)
                rows = rows.skip(first_row) if first_row else rows
                # Iterated plainly, datasets deals shards to DataLoader workers itself, a second time; `iter` does not.
                rows = ({name: values[0] for name, values in batch.items()} for batch in rows.iter(batch_size=1))
            for number, row in enumerate(rows, start=first_row):
                yield number, _normalise_row(row, self.shards[shard])
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, DatasetsError, pa.ArrowException) as error:
            self.skip(self.shards[shard], f"the shard does not read ({error})")

    def skip(self, name: str, reason: str) -> None:
        """Counts a shard or row as skipped, and names it in the log the first time."""
        if name not in self.skipped:
            logger.warning("skipped %s: %s", name, reason)
        self.skipped[name] = reason

    def row_name(self, shard: int, row: int, path: str | None = None) -> str:
        if self.kind == "videos":
            return self.shards[shard]
        return f"{self.shards[shard]}, row {row}" + (f" ({path})" if path else "")

    def _dataset(self, shard: int) -> IterableDataset:
        if shard not in self._datasets:
            path = self.shards[shard]
            if self.kind == "parquet":  # load_dataset("parquet") would ask the network, to count the download
                dataset = IterableDataset.from_parquet(path)
            else:
                dataset = load_dataset(self.kind, data_files={"train": [path]}, split="train", streaming=True)
            self._datasets[shard] = dataset.decode(False)  # Video(decode=False): bytes, without torchcodec
        return self._datasets[shard]


def open_stream(
    data: str | os.PathLike | ShardSource,
    rank: int = 0,
    world_size: int = 1,
    seed: int | None = 0,
    epoch: int = 0,
    first: tuple[int, int] = (0, 0),
) -> Iterator[tuple[int, int, int, dict]]:
    """The rows of one epoch that fall to one of `world_size` readers, undecoded.

    The order of the shards is permuted from (seed, epoch); rows keep their order within a shard. With fewer shards
    than readers every reader reads every shard and takes each world_size-th row, so shards should be plenty.

    Args:
        seed: None keeps the shards in the order of their names.
        first: (place in this reader's order, row) to begin at.

    Yields:
        place in this reader's order, shard (its number by name), row number in the shard, row (a dict whose `video`
        is bytes, a path or `{"bytes": ..., "path": ...}`).
    """
    source = data if isinstance(data, ShardSource) else ShardSource(data)
    order = np.arange(len(source.shards))
    if seed is not None:
        order = np.random.default_rng((seed, epoch)).permutation(order)
    split_rows = len(order) < world_size
    mine = order if split_rows else order[rank::world_size]
    for place in range(first[0], len(mine)):
        for row_number, row in source.read(int(mine[place]), first[1] if place == first[0] else 0):
            if not split_rows or row_number % world_size == rank:
                yield place, int(mine[place]), row_number, row


def _find_shards(data: str) -> tuple[str, list[str]]:
    if os.path.isdir(data):
        files = (os.path.join(root, name) for root, _, names in os.walk(data) for name in names)
        files = [file for file in files if not os.path.basename(file).startswith(".")]
    else:
        files = [file for file in glob.glob(data, recursive=True) if os.path.isfile(file)]
    for kind, extensions in (("parquet", (".parquet",)), ("webdataset", (".tar",)), ("videos", VIDEO_EXTENSIONS)):
        found = sorted(file for file in files if file.lower().endswith(extensions))
        if found:
            return kind, found
    if os.path.exists(data):
        raise FileNotFoundError(
            f"There is no parquet file, .tar shard or video in {data!r}; see make_video_shards.py."
        )
    # Beside a folder `runs`, `runs/shards` is a path with nothing there and no dataset of an owner called "runs"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", data) or os.path.isdir(os.path.dirname(data)):
        raise FileNotFoundError(
            f"There is no data at {data!r}: no such folder or file; give a folder, a glob or a dataset of the Hub."
        )
    try:
        builder = load_dataset_builder(data)
    except Exception as error:  # whatever the network, the Hub or datasets raises, the user needs one sentence
        raise FileNotFoundError(
            f"There is no data at {data!r}, and it does not open as a dataset of the Hub ({error})."
        ) from error
    splits = builder.config.data_files or {}
    kind = "videos" if builder.name == "videofolder" else builder.name
    if kind not in ("parquet", "webdataset", "videos") or not splits:
        raise ValueError(
            f"The dataset {data!r} is a {builder.name!r} one; parquet, webdataset or videofolder is read."
        )
    return kind, sorted(splits["train"] if "train" in splits else next(iter(splits.values())))


def _normalise_row(row: dict, shard: str) -> dict:
    """The row with its video under "video", a relative path taken from the shard's folder."""
    if "video" not in row:  # webdataset names a column by the file's extension
        column = next((name for name in row if f".{name.lower()}" in VIDEO_EXTENSIONS), None)
        if column is None:
            raise ValueError(f"it has no column 'video', only {sorted(row)}")
        row["video"] = row[column]
    video = row["video"]
    path = video.get("path") if isinstance(video, dict) and video.get("bytes") is None else video
    if isinstance(path, str) and "://" not in path and not os.path.isabs(path):
        beside = os.path.join(os.path.dirname(shard), path)
        row["video"] = beside if os.path.isfile(beside) else path
    return row


# ---------------------------------------------------------------------------------------------------------------------
# Clips
# ---------------------------------------------------------------------------------------------------------------------
class ClipStream(torch.utils.data.IterableDataset):
    """Clips of streamed videos, for any number of processes and DataLoader workers, resumable to the clip.

    Each clip is a dict: `pixel_values_videos` float32 (T, C, H, W); `clip_name`; `draw`, the int that all its
    randomness came from; `frame_indices` int64 (T,) in the video; and `label` where the row has one. Shards are dealt
    to (process, worker) by themselves, so the DataLoader must not be split again (no `accelerator.prepare`). Use it
    with torchdata's `StatefulDataLoader`, whose state then holds the place of every worker.

    A video shorter than a clip is repeated from its start, one shorter than a tubelet is skipped; so is a video that
    does not decode. What is skipped is counted in `source.skipped` and named in the log once.

    Args:
        data: as for `ShardSource`.
        frames_per_clip: T.
        crop_size: of `RandomResizedClip` with the published settings; not needed with `transform`.
        fps: frames per second of a clip; None takes neighbouring frames, whatever the video's rate.
        transform: (uint8 frames (T, C, H, W), torch.Generator) -> float frames.
        clips_per_video: clips drawn from a video each time it is decoded; they follow one another.
        tubelet_size: the fewest frames, at `fps`, that a video must have.
        seed: with the epoch it sets the order of the shards and every draw.
        rank, world_size: of the process.
        epochs: None never ends.

    Raises:
        ValueError: a setting out of range, or (while reading) an epoch without a single clip.
        FileNotFoundError: there is no data.
    """

    def __init__(
        self,
        data: str | os.PathLike,
        frames_per_clip: int,
        crop_size: int | tuple[int, int] | None = None,
        fps: float | None = None,
        transform: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
        clips_per_video: int = 1,
        tubelet_size: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
    ):
        counts = {"frames_per_clip": frames_per_clip, "clips_per_video": clips_per_video, "tubelet_size": tubelet_size}
        counts |= {"world_size": world_size, "fps": fps, "epochs": epochs}
        for name, value in counts.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, but it must be positive.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but with world_size {world_size} it must lie in 0 to {world_size - 1}.")
        if seed < 0:
            raise ValueError(f"seed is {seed}, but it must not be negative.")
        if transform is None and crop_size is None:
            raise ValueError("ClipStream got neither crop_size nor transform; give one, so that clips have one size.")
        self.source = ShardSource(data)
        self.frames_per_clip, self.fps, self.clips_per_video = frames_per_clip, fps, clips_per_video
        self.transform = transform or RandomResizedClip(crop_size)
        self.tubelet_size, self.seed, self.rank, self.world_size = tubelet_size, seed, rank, world_size
        self.epochs = epochs
        self._state = self._start = {"epoch": 0, "place": 0, "row": 0, "clip": 0}

    def state_dict(self) -> dict[str, int]:
        """The place of the next clip; in a DataLoader worker, of that worker's next clip."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration begins at this place. Nothing is decoded on the way."""
        self._state = self._start = {name: int(state[name]) for name in ("epoch", "place", "row", "clip")}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        reader, readers = self.rank * workers + worker_id, self.world_size * workers
        start, self._start = self._start, {"epoch": 0, "place": 0, "row": 0, "clip": 0}
        self._state = start
        for epoch in itertools.count(start["epoch"]) if self.epochs is None else range(start["epoch"], self.epochs):
            whole = not (start["place"] or start["row"] or start["clip"])
            num_clips = num_rows = 0
            first, first_clip = (start["place"], start["row"]), start["clip"]
            for place, shard, row_number, row in open_stream(self.source, reader, readers, self.seed, epoch, first):
                num_rows += 1
                for clip, sample in self._clips(epoch, shard, row_number, row, first_clip):
                    num_clips += 1
                    last = clip + 1 == self.clips_per_video
                    place_after = (row_number + 1, 0) if last else (row_number, clip + 1)
                    self._state = {"epoch": epoch, "place": place, "row": place_after[0], "clip": place_after[1]}
                    yield sample
                first_clip = 0
            if whole and not num_clips:
                self._refuse_empty(num_rows, readers)
                return
            start = {"epoch": epoch + 1, "place": 0, "row": 0, "clip": 0}
            self._state = start

    def _refuse_empty(self, num_rows: int, readers: int) -> None:
        """Raises after an epoch without a clip, unless this reader merely has no share of the rows."""
        if num_rows or self.source.skipped or readers == 1:
            reasons = [f"{name}: {reason}" for name, reason in self.source.skipped.items()]
            told = f" ({len(reasons)} skipped, the first {reasons[0]})" if reasons else ""
            raise ValueError(f"No clip could be read from {self.source.data!r}{told}; look at the data.")
        logger.warning("a reader of %s has no row: %d readers are more than rows", self.source.data, readers)

    def _clips(
        self, epoch: int, shard: int, row_number: int, row: dict, first_clip: int
    ) -> Iterator[tuple[int, dict]]:
        """The clips of one row from `first_clip` on; all their frames are decoded in one pass."""
        name = self.source.row_name(shard, row_number, row.get("path"))
        draws, generators, indices = [], [], []
        try:
            with VideoReader(row["video"]) as reader:
                for clip in range(first_clip, self.clips_per_video):
                    draws.append(_draw(self.seed, epoch, shard, row_number, clip))
                    generators.append(torch.Generator().manual_seed(draws[-1]))
                    indices.append(self._frame_indices(reader, generators[-1]))
                wanted, inverse = np.unique(np.concatenate(indices), return_inverse=True)
                frames = torch.from_numpy(reader.frames(wanted)).permute(0, 3, 1, 2)
        except (ValueError, OSError) as error:
            self.source.skip(name, str(error))
            return
        for i, places in enumerate(np.split(inverse.reshape(-1), len(indices))):
            sample = {
                "pixel_values_videos": self.transform(frames[torch.from_numpy(places)], generators[i]),
                "clip_name": name,
                "draw": draws[i],
                "frame_indices": torch.from_numpy(np.ascontiguousarray(indices[i])),
            }
            if row.get("label") is not None:
                sample["label"] = row["label"]
            yield first_clip + i, sample

    def _frame_indices(self, reader: VideoReader, generator: torch.Generator) -> np.ndarray:
        """Frame numbers (T,) of a clip that begins at a random frame."""
        if self.fps is None:
            offsets, times = np.arange(self.frames_per_clip), np.arange(len(reader))
        else:
            offsets, times = np.arange(self.frames_per_clip) / self.fps, reader.times
        starts = int(np.searchsorted(times + offsets[-1], times[-1] + 5e-4, side="right"))
        if starts:
            start = int(torch.randint(starts, (), generator=generator))
            return start + offsets if self.fps is None else reader.indices_at(times[start] + offsets)
        # Too short: what there is at this rate, repeated from its start.
        available = offsets[offsets <= times[-1] + 5e-4]
        if len(available) < self.tubelet_size:
            rate = "" if self.fps is None else f" at {self.fps:g} fps"
            raise ValueError(f"it has {len(available)} frames{rate}, fewer than a tubelet of {self.tubelet_size}")
        indices = available if self.fps is None else reader.indices_at(available)
        return np.resize(indices, self.frames_per_clip)


def _draw(*key: int) -> int:
    """63 random bits of a place in the data."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class MaskCollator:
    """Batches clips and draws their masks: what a masked-latent model's forward takes, and no more.

    Args:
        mask_samplers: as of `vjepa2_hf.masking`; one (context, target) pair per sampler.
        grid: (T', H', W') of the clips, in tokens.
        seed: masks come from it and the draw of the batch's first clip, so a resumed run draws the same.
    """

    def __init__(self, mask_samplers: Sequence[Callable], grid: tuple[int, int, int], seed: int = 0):
        self.mask_samplers, self.grid, self.seed = list(mask_samplers), tuple(grid), seed

    def __call__(self, clips: list[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values_videos` (B, T, C, H, W); `context_mask` and `target_mask`, lists of int64 (B, K)."""
        generator = torch.Generator().manual_seed(_draw(self.seed, clips[0]["draw"]))
        masks = [sampler(len(clips), self.grid, generator) for sampler in self.mask_samplers]
        return {
            "pixel_values_videos": torch.stack([clip["pixel_values_videos"] for clip in clips]),
            "context_mask": [context for context, _ in masks],
            "target_mask": [target for _, target in masks],
        }


# ---------------------------------------------------------------------------------------------------------------------
# Episodes
# ---------------------------------------------------------------------------------------------------------------------
def read_episodes(
    data: str | os.PathLike, frame_skip: int = 1, max_episodes: int | None = None
) -> Iterator[dict[str, Any]]:
    """Episodes in the order of the shards, each `frame_skip`-th frame kept.

    An episode whose video does not decode, or that is too short for one step, is skipped and named in the log.

    Args:
        data: as for `ShardSource`, with rows as in API.md ("Data on disk").
        frame_skip: k; the k actions between two kept frames are joined to one of size k*A, the earliest first, and a
            rest that does not fill a step is dropped.
        max_episodes: stop after so many.

    Yields:
        `frames` uint8 (T, H, W, 3), `actions` float32 (T-1, k*A) in environment units, `proprio_states` float32
        (T, S) or None, `fps` of the kept frames, `episode_id`.

    Raises:
        ValueError: an episode, named, whose actions or states have a wrong length or size or are not finite; or no
            episode at all.
    """
    if frame_skip < 1:
        raise ValueError(f"frame_skip is {frame_skip}, but at least every frame (1) is kept.")
    source, count, sizes = ShardSource(data), 0, None
    for _, shard, row_number, row in open_stream(source, seed=None):
        if count == max_episodes:
            return
        name = str(row.get("episode_id") or source.row_name(shard, row_number))
        try:
            with VideoReader(row["video"]) as reader:
                actions, states = _episode_arrays(row, name, len(reader))
                frames = reader.frames(np.arange(0, len(reader), frame_skip))
                video_fps = reader.fps
        except (VideoDecodeError, OSError) as error:
            source.skip(name, str(error))
            continue
        steps = len(actions) // frame_skip
        if steps < 1:
            source.skip(name, f"{len(actions)} actions do not fill one step of {frame_skip}")
            continue
        found = (actions.shape[1], None if states is None else states.shape[1])
        sizes = sizes or found
        if found != sizes:
            raise ValueError(f"Episode {name} has (action, proprio) sizes {found}, but the ones before had {sizes}.")
        count += 1
        yield {
            "frames": frames[: steps + 1],
            "actions": actions[: steps * frame_skip].reshape(steps, -1),
            "proprio_states": None if states is None else states[: steps * frame_skip + 1 : frame_skip],
            "fps": float(row.get("fps") or video_fps) / frame_skip,
            "episode_id": name,
        }
    if not count:
        reasons = [f"{name}: {reason}" for name, reason in source.skipped.items()]
        raise ValueError(f"No episode could be read from {source.data!r}{f' ({reasons[0]})' if reasons else ''}.")


def _episode_arrays(row: dict, name: str, num_frames: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Actions (T-1, A) and proprio states (T, S) of a row, checked."""
    arrays = []
    for column, length in (("actions", num_frames - 1), ("proprio_states", num_frames)):
        values = row.get(column)
        if values is None:
            if column == "actions":
                raise ValueError(f"Episode {name} has no actions; record it with examples/record_episodes.py.")
            arrays.append(None)
            continue
        try:
            array = np.asarray(values, np.float32)
        except (ValueError, TypeError):
            raise ValueError(
                f"Episode {name} has {column} whose rows differ in size; give each step as many."
            ) from None
        if array.ndim != 2 or len(array) != length or array.shape[1] == 0:
            wanted = f"{length} rows for {num_frames} frames"
            raise ValueError(f"Episode {name} has {column} of shape {array.shape}, but {wanted} are needed.")
        if not np.isfinite(array).all():
            raise ValueError(f"Episode {name} has {column} that are not finite (NaN or infinite).")
        arrays.append(array)
    return arrays[0], arrays[1]
