"""Shards of videos or images, written and read row by row, without decoding.

    write_shards -> parquet shards
    ShardSource  <- parquet or webdataset shards, a folder of videos or images, local or on the Hub

Training reads rows in another order, which resumes: `vjepa2_hf.data.shuffle`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import sys
import tarfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Video

from ..configuration_vjepa2 import check
from ..specs import as_settings
from ..video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ReadLimits
from .dataset_card import write_dataset_card
from .files import printable, staged_folder, write_json
from .shard_files import ShardNames, files_in, find_shards, open_url, url_state
from .shard_rows import BadRows, confined, is_url, read_parquet, read_tar, standard_row


logger = logging.getLogger(__name__)

_ROWS_PER_GROUP = 16  # rows read at once: 16 videos of 256p are some tens of MB


def write_shards(
    rows: Iterable[dict[str, Any]],
    output_dir: str | os.PathLike,
    features: Features | Callable[[dict], Features],
    num_shards: int = 8,
    skipped: dict[str, str] | None = None,
    notes: dict[str, Any] | None = None,
) -> int:
    """Writes rows round-robin into parquet files `data-00000-of-00008.parquet`, and a dataset card; the folder appears
    complete.

    Args:
        rows: dicts with the columns of `features`; a video is `{"bytes": mp4, "path": name or None}`.
        output_dir: a folder that does not exist yet, or is empty.
        features: stored in the files, so that `load_dataset` gives a `Video` column; may be a function of a row.
        num_shards: maximum number of files. A multiple of processes x workers reads fastest.
        skipped: reasons by name of inputs that gave no row, filled while `rows` are read; they become `skipped.txt`,
            and at least one row is needed.
        notes: values of JSON files by name, filled while `rows` are read.

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
        write_dataset_card(folder, features, count)
        if skipped is not None:
            lines = [printable(f"{name}\t{reason}\n") for name, reason in sorted(skipped.items())]
            (folder / "skipped.txt").write_text("".join(lines), encoding="utf-8")
        for name, value in (notes or {}).items():
            write_json(folder / name, value)
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
        # Video is compressed already; checksums are verified by `read_parquet`
        self.writer = pq.ParquetWriter(path, self.schema, compression="none", write_page_checksum=True)

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
    # Endless streams are still open at exit; files must be closed before the modules of their readers are gone
    for rows in list(_OPEN_READERS):
        rows.close()


_FILE_COLUMNS = {"videos": "video", "images": "image"}  # column of the kinds whose shards are plain files
_ROW_ERRORS = (ValueError, TypeError, KeyError, OSError, MemoryError)  # of one row
_SHARD_ERRORS = (*_ROW_ERRORS, RuntimeError, EOFError, zlib.error, pa.ArrowException, tarfile.TarError)
_CHECKED_SHARDS = 4096  # whose ends are part of the fingerprint; more would take seconds to open
_CHECKED_URLS = 64
_END_BYTES = 2**14  # of a file; a parquet footer has sizes, positions and statistics of all columns


class Skip(NamedTuple):
    """A skipped row or shard."""

    name: str
    reason: str
    rows: int
    """Number of rows lost; for a shard, an estimate."""
    is_shard: bool = False


class ShardSource:
    """The shards behind `data`, read row by row, without decoding.

    Args:
        data: a folder or glob of parquet or webdataset (.tar) shards or of video or image files, one such file, a
            list of "path label" lines (.csv or .txt), a URL of a folder (s3://bucket/folder), or a dataset of the
            Hub. Folders are searched recursively, links included, hidden files and folders excluded. Files of
            several kinds are refused.
        limits: what rows may cost and reach; None: the defaults of `ReadLimits`.

    Attributes:
        kind: "parquet", "webdataset", "videos" or "images".
        shards: paths or URLs, sorted. A video or image file is a shard of one row.
        root: the folder or URL that rows may name files in.
        skipped: reasons by name of the skipped shards and rows.
    """

    def __init__(self, data: str | os.PathLike, limits: ReadLimits | None = None):
        self.data, self.limits = os.fspath(data), as_settings("limits", limits, ReadLimits)
        found = find_shards(self.data, self.limits)
        self.kind, self.root, self._list = found.kind, found.root, found.rows
        self.shards: Sequence[str] = ShardNames(found.shards)
        self.skipped: dict[str, str] = {}
        self._new_skips: list[Skip] = []
        self._row_counts = [0, 0]  # shards read completely, and their rows

    def read(
        self,
        shard: int,
        first_row: int = 0,
        is_wanted: Callable[[int], bool] = lambda row: True,
        end: int | None = None,
    ) -> Iterator[tuple[int, dict]]:
        """(row number, row) of a shard, of the rows with wanted numbers from `first_row` to before `end`. Unreadable
        rows, or an unreadable shard, are skipped, counted and logged."""
        rows = self._read(shard, first_row, is_wanted, sys.maxsize if end is None else end)
        _OPEN_READERS.add(rows)
        return rows

    def read_all(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int, dict]]:
        """(shard, row number, row) of all shards, in the order of their names, for one of `world_size` readers.

        A row is a dict whose `video`, or `image` if that is None, is bytes, a path or `{"bytes": ..., "path": ...}`.
        Readers take shards in turn. With fewer shards than readers, every reader reads every shard and takes every
        world_size-th row.
        """
        split_rows = len(self.shards) < world_size
        first, step = (0, 1) if split_rows else (rank, world_size)
        for shard in range(first, len(self.shards), step):

            def is_mine(row: int, shard: int = shard) -> bool:
                # The shard's index splits shards of one row, too
                return not split_rows or (row + shard) % world_size == rank

            for row_number, row in self.read(shard, is_wanted=is_mine):
                yield shard, row_number, row

    def _read(
        self, shard: int, first_row: int, is_wanted: Callable[[int], bool], end: int
    ) -> Iterator[tuple[int, dict]]:
        path, number = self.shards[shard], first_row - 1

        def find(named: str) -> str:
            # Whoever passes a list of files passes these
            is_listed = self.kind in _FILE_COLUMNS and not is_url(named)
            return named if is_listed else confined(named, path, self.root, self.limits)

        try:
            for number, row in self._rows(shard, first_row, is_wanted, end):
                name = self.row_name(shard, number, None)
                try:
                    if isinstance(row, BadRows):
                        raise ValueError(row.reason)
                    name = self.row_name(shard, number, row.get("path"))
                    standard = standard_row(row, find, self.limits)
                except _ROW_ERRORS as error:
                    bad = row if isinstance(row, BadRows) else BadRows("")
                    self.skip(
                        name + (f" ({bad.name})" if bad.name else ""), str(error) or type(error).__name__, bad.count
                    )
                    continue
                yield number, standard
            if end == sys.maxsize:
                self.count_shard(number + 1)
        except _SHARD_ERRORS as error:
            # The number of lost rows is estimated from the other shards
            usual = round(self._row_counts[1] / max(self._row_counts[0], 1))
            self.skip(path, f"the shard is unreadable ({error})", max(usual - number - 1, 1), True)

    def _rows(
        self, shard: int, first_row: int, is_wanted: Callable[[int], bool], end: int
    ) -> Iterator[tuple[int, Any]]:
        path = self.shards[shard]
        if self.kind in _FILE_COLUMNS:
            if first_row == 0 < end and is_wanted(0):
                yield 0, self._file_row(shard, path)
        elif self.kind == "parquet":
            with self._open(path) as file:
                yield from read_parquet(file, first_row, end, is_wanted, self.limits)
        else:
            with open_url(path) as file:
                yield from read_tar(file, path, first_row, end, is_wanted, self.limits)

    def _open(self, path: str) -> contextlib.AbstractContextManager:
        """What `ParquetFile` opens: the path of a local file, which it reads faster than an open file."""
        return open_url(path) if is_url(path) else contextlib.nullcontext(path)

    def _file_row(self, shard: int, path: str) -> dict | BadRows:
        row = self._list[shard] if self._list is not None else {}
        if "problem" in row:
            return BadRows(row["problem"])
        kind = "image" if path.lower().endswith(IMAGE_EXTENSIONS) else "video"
        return {**row, kind: {"path": path, "bytes": None}}

    @property
    def is_list(self) -> bool:
        """Whether the data is a list of files."""
        return self._list is not None

    def listed(self, shard: int) -> dict[str, Any]:
        """The columns of a list of files in the line of a shard."""
        return self._list[shard]

    def values_of(self, shard: str, name: str) -> list | None:
        """The values that occur in a column of a parquet shard; None if there is none, or the shard is unreadable."""
        try:
            with self._open(shard) as file, pq.ParquetFile(file) as parquet:
                has = name in parquet.schema_arrow.names
                return parquet.read([name], use_threads=False)[name].unique().to_pylist() if has else None
        except _SHARD_ERRORS:
            return None

    def skip(self, name: str, reason: str, rows: int = 1, is_shard: bool = False) -> None:
        """Counts a shard or row as skipped, and logs it the first time."""
        reason = " ".join(reason.split())
        if name not in self.skipped:
            logger.warning("skipped %s: %s", name, reason)
        self.skipped[name] = reason
        self._new_skips.append(Skip(name, reason, rows, is_shard))

    def count_shard(self, rows: int) -> None:
        """Adds a shard's number of rows to those from which the rows of an unreadable shard are estimated."""
        self._row_counts = [self._row_counts[0] + 1, self._row_counts[1] + rows]

    def take_skips(self) -> list[Skip]:
        """The skipped rows and shards since the last call."""
        taken, self._new_skips = self._new_skips, []
        return taken

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash that changes with the names and contents of the shards, which determine what a position means.

        It has the sizes of all local files and the ends of up to 4096 of them, evenly spread, which hold the footers
        of parquet files; of shards at URLs, what the server says of up to 64.
        """
        digest, remote = hashlib.sha256(str(self.names_fingerprint).encode()), is_url(self.root)
        checked = set(np.linspace(0, len(self.shards) - 1, _CHECKED_URLS if remote else _CHECKED_SHARDS).astype(int))
        for number, shard in enumerate(self.shards):
            if not is_url(shard):
                digest.update(_file_state(shard, number in checked))
            elif number in checked and self.kind not in _FILE_COLUMNS:
                digest.update(url_state(shard).encode())
        return f"contents-{digest.hexdigest()[:24]}"

    @functools.cached_property
    def names_fingerprint(self) -> int:
        """A number that changes with the names of the shards: the fingerprint of version 0.1."""
        checksum = 0
        for number, shard in enumerate(self.shards):
            checksum = zlib.crc32(
                (("\n" if number else "") + os.path.basename(shard)).encode("utf-8", "surrogateescape"), checksum
            )
        return checksum

    def has_fingerprint(self, fingerprint: str | int) -> bool:
        """Whether a saved fingerprint, also of version 0.1, is that of these shards."""
        return fingerprint == (self.names_fingerprint if isinstance(fingerprint, int) else self.fingerprint)

    def row_name(self, shard: int, row: int, path: str | None = None) -> str:
        """What logs and errors call a row: its shard and number, or its file."""
        if self.kind in _FILE_COLUMNS:
            return self.shards[shard]
        return f"{self.shards[shard]}, row {row}" + (f" ({path})" if path else "")


def _file_state(path: str, with_end: bool) -> bytes:
    """The size and the last bytes of a file; b"" if there is none."""
    try:
        size = os.stat(path).st_size
        if not with_end:
            return f"{size} ".encode()
        with open(path, "rb") as file:
            file.seek(max(0, size - _END_BYTES))
            return f"{size} ".encode() + file.read(_END_BYTES)
    except OSError:
        return b""


def find_videos(source_dir: Path) -> list[Path]:
    """The video files below a folder, by their extensions, sorted."""
    if not source_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {str(source_dir)!r}; give a folder that holds video files.")
    files = sorted(path for path in map(Path, files_in(source_dir)) if path.suffix.lower() in VIDEO_EXTENSIONS)
    files = [path for path in files if path.is_file()]
    if not files:
        known = " ".join(VIDEO_EXTENSIONS)
        raise FileNotFoundError(f"There is no video file in {str(source_dir)!r}; known extensions are {known}.")
    return files
