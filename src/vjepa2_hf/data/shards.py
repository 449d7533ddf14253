"""Shards of videos or images, written and read row by row with `datasets`, without decoding.

    write_shards -> parquet shards
    ShardSource  <- parquet or webdataset shards, a folder of videos or images, local or on the Hub
    open_stream  -> the rows of one epoch for one reader

The state of a stream is three numbers (epoch, position, row), so that it resumes anywhere.
"""

from __future__ import annotations

import atexit
import glob
import itertools
import logging
import os
import tarfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, IterableDataset, Video, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

from ..configuration_vjepa2 import check
from ..video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from .files import staged_folder
from .lerobot import is_hub_id


logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 16  # rows read at once: 16 videos of 256p are some tens of MB


def write_shards(
    rows: Iterable[dict[str, Any]],
    output_dir: str | os.PathLike,
    features: Features | Callable[[dict], Features],
    num_shards: int = 8,
    skipped: dict[str, str] | None = None,
) -> int:
    """Writes rows round-robin into parquet files `data-00000-of-00008.parquet`; the folder appears complete.

    Args:
        rows: dicts with the columns of `features`; a video is `{"bytes": mp4, "path": name or None}`.
        output_dir: a folder that does not exist yet, or is empty.
        features: stored in the files, so that `load_dataset` gives a `Video` column; may be a function of a row.
        num_shards: maximum number of files. A multiple of processes x workers reads fastest.
        skipped: reasons by name of inputs that gave no row, filled while `rows` are read; they become `skipped.txt`,
            and at least one row is needed.

    Returns:
        The number of rows written.
    """
    with staged_folder(output_dir) as folder:
        rows = iter(rows)
        first = list(itertools.islice(rows, 1))
        if skipped and not first:
            name, reason = next(iter(skipped.items()))
            raise ValueError(f"None of the {len(skipped)} inputs is valid, e.g. {name}: {reason}")
        features = features if isinstance(features, Features) else features(*first)
        count = _write_files(itertools.chain(first, rows), folder, features, num_shards)
        if skipped is not None:
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(skipped.items())]
            (folder / "skipped.txt").write_text("".join(lines), encoding="utf-8")
    logger.info("%d rows written to %s", count, output_dir)
    if skipped:
        total, path = count + len(skipped), Path(output_dir) / "skipped.txt"
        logger.warning("%d of %d inputs skipped, listed in %s", len(skipped), total, path)
    return count


def _write_files(rows: Iterable[dict], folder: Path, features: Features, num_shards: int) -> int:
    check(num_shards > 0, f"num_shards is {num_shards}, but at least 1 shard must be written.")
    files, total = [], 0
    try:
        for total, row in enumerate(rows, start=1):
            shard = (total - 1) % num_shards
            if shard == len(files):
                files.append(_ParquetFile(folder / f"data-{shard:05d}.parquet", features))
            files[shard].add(row)
    finally:
        for file in files:
            file.close()
    for shard in range(len(files)):
        os.replace(folder / f"data-{shard:05d}.parquet", folder / f"data-{shard:05d}-of-{len(files):05d}.parquet")
    return total


def write_parquet(
    rows: Iterable[dict[str, Any]], path: Path, features: Features, note: Callable[[], dict[str, str]] = dict
) -> None:
    """Writes rows, as for `write_shards`, to one file. `note` gives further metadata after the last row."""
    file = _ParquetFile(path, features)
    try:
        for row in rows:
            file.add(row)
        file.flush()
        file.writer.add_key_value_metadata(note())
    finally:
        file.writer.close()


class _ParquetFile:
    """A parquet file that is written in groups of rows."""

    def __init__(self, path: Path, features: Features):
        self.features, self.schema, self.pending = features, features.arrow_schema, []
        self.video_columns = [name for name, feature in features.items() if isinstance(feature, Video)]
        self.writer = pq.ParquetWriter(path, self.schema, compression="none")  # video is compressed already

    def add(self, row: dict[str, Any]) -> None:
        # datasets drops a video's bytes if a file of the same name exists in the working folder
        videos = {name: row[name] for name in self.video_columns}
        without = {name: {"bytes": b"", "path": None} for name in videos}
        self.pending.append({**self.features.encode_example({**row, **without}), **videos})
        if len(self.pending) == _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.writer.write_table(pa.Table.from_pylist(self.pending, schema=self.schema))
            self.pending = []

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self.writer.close()


_OPEN_READERS: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_readers() -> None:
    # Endless streams are still open at exit; datasets must close them before its modules are gone
    for rows in list(_OPEN_READERS):
        rows.close()


_FILE_COLUMNS = {"videos": "video", "images": "image"}  # column of the kinds whose shards are plain files
_EXTENSIONS = {
    "parquet": (".parquet",), "webdataset": (".tar",), "videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS
}  # fmt: skip
_SHARD_ERRORS = (
    OSError, ValueError, RuntimeError, TypeError, KeyError, DatasetsError, pa.ArrowException, tarfile.TarError
)  # fmt: skip


class Skip(NamedTuple):
    """A skipped row or shard."""

    name: str
    reason: str
    rows: int
    """Number of rows lost; for a shard, an estimate."""
    is_shard: bool = False


class ShardSource:
    """The shards behind `data`, read row by row with `datasets` (streaming), without decoding.

    Args:
        data: a folder or glob of parquet or webdataset (.tar) shards or of video or image files, one such file, or a
            dataset of the Hub. Folders are searched recursively, links included, hidden files and folders excluded.
            Files of several kinds are refused.

    Attributes:
        kind: "parquet", "webdataset", "videos" or "images".
        shards: paths or URLs, sorted. A video or image file is a shard of one row.
        skipped: reasons by name of the skipped shards and rows.
    """

    def __init__(self, data: str | os.PathLike):
        self.data = os.fspath(data)
        self.kind, self.shards = _find_shards(self.data)
        self.skipped: dict[str, str] = {}
        self._new_skips: list[Skip] = []
        self._row_counts: dict[int, int] = {}  # of completely read shards
        self._datasets: dict[int, IterableDataset] = {}

    def read(self, shard: int, first_row: int = 0) -> Iterator[tuple[int, dict]]:
        """(row number, row) of a shard. An unreadable shard is skipped, counted and logged."""
        rows = self._read(shard, first_row)
        _OPEN_READERS.add(rows)
        return rows

    def _read(self, shard: int, first_row: int) -> Iterator[tuple[int, dict]]:
        number = first_row - 1
        try:
            if self.kind in _FILE_COLUMNS:
                rows = [{_FILE_COLUMNS[self.kind]: {"path": self.shards[shard], "bytes": None}}][first_row:]
            else:
                rows = self._dataset(shard)
                rows = rows.skip(first_row) if first_row else rows
                # Unlike `iter`, plain iteration splits shards among DataLoader workers a second time
                rows = ({name: values[0] for name, values in batch.items()} for batch in rows.iter(batch_size=1))
            for number, row in enumerate(rows, start=first_row):
                yield number, _standard_row(row, self.shards[shard])
            self._row_counts[shard] = number + 1
        except _SHARD_ERRORS as error:
            # The number of lost rows is estimated from the other shards
            counts = list(self._row_counts.values())
            usual = round(sum(counts) / len(counts)) if counts else 0
            self.skip(self.shards[shard], f"the shard is unreadable ({error})", max(usual - number - 1, 1), True)

    def skip(self, name: str, reason: str, rows: int = 1, is_shard: bool = False) -> None:
        """Counts a shard or row as skipped, and logs it the first time."""
        reason = " ".join(reason.split())
        if name not in self.skipped:
            logger.warning("skipped %s: %s", name, reason)
        self.skipped[name] = reason
        self._new_skips.append(Skip(name, reason, rows, is_shard))

    def take_skips(self) -> list[Skip]:
        """The skipped rows and shards since the last call."""
        taken, self._new_skips = self._new_skips, []
        return taken

    @property
    def fingerprint(self) -> int:
        """A number that changes with the names of the shards, which determine the reading order."""
        return zlib.crc32("\n".join(os.path.basename(shard) for shard in self.shards).encode())

    def row_name(self, shard: int, row: int, path: str | None = None) -> str:
        if self.kind in _FILE_COLUMNS:
            return self.shards[shard]
        return f"{self.shards[shard]}, row {row}" + (f" ({path})" if path else "")

    def _dataset(self, shard: int) -> IterableDataset:
        if shard not in self._datasets:
            path = self.shards[shard]
            if self.kind == "parquet":  # load_dataset("parquet") would use the network
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
    """The undecoded rows of one epoch for one of `world_size` readers.

    Shards are permuted by (seed, epoch); rows keep their order within a shard. With fewer shards than readers, every
    reader reads every shard and takes every world_size-th row, so more shards are faster. These rows shift with the
    epoch: in `world_size` epochs every reader sees every row once, even if there are fewer rows than readers.

    Without a seed, shards keep the order of their names. `first` is the (position, row) to begin at.

    Yields:
        position in this reader's order of shards, shard (index by name), row index in the shard, row (a dict whose
        `video`, or `image` if that is None, is bytes, a path or `{"bytes": ..., "path": ...}`).
    """
    source = data if isinstance(data, ShardSource) else ShardSource(data)
    order = np.arange(len(source.shards))
    if seed is not None:
        order = np.random.default_rng((seed, epoch)).permutation(order)
    split_rows = len(order) < world_size
    mine = order if split_rows else order[rank::world_size]
    for position in range(first[0], len(mine)):
        for row_number, row in source.read(int(mine[position]), first[1] if position == first[0] else 0):
            # The shard's index splits shards of one row, too
            if not split_rows or (row_number + int(mine[position]) + epoch) % world_size == rank:
                yield position, int(mine[position]), row_number, row


def files_in(folder: str) -> Iterator[str]:
    """The files below a folder, without hidden ones. Links are followed; every folder is read once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        # Sorted, so that of two paths to a folder the same one is always used
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def find_videos(source_dir: Path) -> list[Path]:
    """The video files below a folder, by their extensions, sorted."""
    if not source_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {str(source_dir)!r}; give a folder that holds video files.")
    files = sorted(path for path in source_dir.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    if not files:
        known = " ".join(VIDEO_EXTENSIONS)
        raise FileNotFoundError(f"There is no video file in {str(source_dir)!r}; known extensions are {known}.")
    return files


def _is_table_of_files(found: dict[str, list[str]]) -> bool:
    """Whether there is a parquet file with paths of videos or images, which may then lie beside it."""
    try:
        return not {"video", "image"}.isdisjoint(pq.read_schema(found["parquet"][0]).names)
    except (KeyError, OSError, pa.ArrowException):  # no parquet file, or an unreadable one
        return False


def _find_shards(data: str) -> tuple[str, list[str]]:
    if os.path.isdir(data):
        files = list(files_in(data))
    else:
        files = [file for file in glob.glob(data, recursive=True) if os.path.isfile(file)]
    found = {kind: [file for file in files if file.lower().endswith(end)] for kind, end in _EXTENSIONS.items()}
    found = {kind: sorted(paths) for kind, paths in found.items() if paths}
    if len(found) > 1 and not _is_table_of_files(found):
        counts = " and ".join(f"{kind} ({len(paths)}, like {paths[0]!r})" for kind, paths in found.items())
        raise ValueError(f"{data!r} holds several kinds of files: {counts}; give one, like 'FOLDER/**/*.mp4'.")
    if found:
        return next(iter(found.items()))
    problem = None
    if any(file.lower().endswith((".hdf5", ".h5", ".npz")) for file in files):
        problem = f"{data!r} holds HDF5 or npz files; import them as shards with examples/import_episodes.py."
    elif os.path.exists(data):
        problem = f"There is no parquet file, .tar shard, video or image in {data!r}; see make_video_shards.py."
    elif not is_hub_id(data):
        problem = f"There is no data at {data!r}: no such folder or file; give a folder, a glob or a Hub dataset."
    if problem:
        raise FileNotFoundError(problem)
    try:
        builder = load_dataset_builder(data)
    except Exception as error:  # of the network, the Hub or datasets
        problem = f"There is no data at {data!r}, and it cannot be opened as a dataset of the Hub ({error})."
        raise FileNotFoundError(problem) from error
    splits = builder.config.data_files or {}
    kind = {"videofolder": "videos", "imagefolder": "images"}.get(builder.name, builder.name)
    if kind not in _EXTENSIONS or not splits:
        expected = "parquet, webdataset, videofolder or imagefolder"
        raise ValueError(f"The dataset {data!r} is {builder.name!r}; expected {expected}.")
    return kind, sorted(splits["train"] if "train" in splits else next(iter(splits.values())))


def _standard_row(row: dict, shard: str) -> dict:
    """The row with its video as "video" or its image as "image"; relative paths start at the shard."""
    for name, extensions in (("video", VIDEO_EXTENSIONS), ("image", IMAGE_EXTENSIONS)):
        # webdataset names a column by the file's extension
        column = name if name in row else next((key for key in row if f".{key.lower()}" in extensions), None)
        if column is not None:
            media = row[column]
            path = media.get("path") if isinstance(media, dict) and media.get("bytes") is None else media
            if isinstance(path, str) and "://" not in path and not os.path.isabs(path):
                beside = os.path.join(os.path.dirname(shard), path)
                media = beside if os.path.isfile(beside) else path
            return {**row, "video": None, name: media}
    raise ValueError(f"it has no column 'video' or 'image', only {sorted(row)}")
