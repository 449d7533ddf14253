"""The rows of one parquet or webdataset file, in order, under the limits of reading.

    read_parquet, read_tar -> (row number, row) or (row number, BadRows)
    standard_row           -> the row with its video or image checked

One odd row costs that row, a corrupt part of a parquet file costs its row group. Sizes are checked in the metadata
and row by row, before values become Python objects.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import tarfile
import urllib.parse
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ReadLimits
from .cameras import video_columns


logger = logging.getLogger(__name__)

_OBJECT_BYTES = 32  # of a number in a Python list
_READING = {"buffer_size": 2**20, "page_checksum_verification": True}
_MAX_TAR_HEADER = 2**20  # bytes of an extended header, which tarfile reads at once
_SIDECAR_ERRORS = (
    ValueError, TypeError, KeyError, EOFError, OverflowError, RecursionError, MemoryError, SyntaxError
)  # fmt: skip


class BadRows(NamedTuple):
    """Consecutive rows that cannot be read."""

    reason: str
    count: int = 1
    name: str | None = None
    """The sample's name in the file."""


def is_url(path: str) -> bool:
    """Whether `resolve_source` takes a path for a URL."""
    return "://" in path


# ---------------------------------------------------------------------------------------------------------- parquet


def read_parquet(
    file: BinaryIO | str, first_row: int, end: int, is_wanted: Callable[[int], bool], limits: ReadLimits
) -> Iterator[tuple[int, dict | BadRows]]:
    """The wanted rows from `first_row` to before `end`. An error of pyarrow or a ValueError: no row can be read."""
    with pq.ParquetFile(file, **_READING) as parquet:
        names = parquet.schema_arrow.names
        if not any(_media_kind(name) for name in names):
            raise ValueError(f"it has no column 'video' or 'image', only {sorted(names)}")
        start = 0
        for group in range(parquet.num_row_groups):
            after = start + parquet.metadata.row_group(group).num_rows
            if after > first_row and start < end:
                wanted = range(max(start, first_row), min(after, end))
                yield from _read_group(parquet, file, group, start, wanted, is_wanted, limits)
            start = after
        if start != parquet.metadata.num_rows and end > start:
            raise ValueError(f"its row groups have {start} rows, but {parquet.metadata.num_rows} are expected")


def _read_group(parquet, file, group, start, wanted, is_wanted, limits) -> Iterator[tuple[int, dict | BadRows]]:
    """The rows of a row group, which begins with row `start`, whose numbers are in `wanted` and wanted."""
    number = wanted.start - 1
    try:
        repeated = _check_group(parquet, group, limits)
        # Values of lists stay in their dictionary until their size is known
        options = {"read_dictionary": repeated, "metadata": parquet.metadata} if repeated else {}
        source = pq.ParquetFile(file, **_READING, **options) if repeated else parquet
        batches = source.iter_batches(batch_size=1, row_groups=[group], use_threads=False)
        for number, batch in enumerate(itertools.islice(batches, wanted.stop - start), start=start):
            if number not in wanted or not is_wanted(number):
                continue
            try:
                _check_row(batch, limits, bool(repeated))
                yield number, batch.to_pylist()[0]
            except ValueError as error:
                yield number, BadRows(str(error))
        if number + 1 < wanted.stop:
            raise ValueError("the row group ends early")
    except (OSError, ValueError, pa.ArrowException) as error:
        first = max(number + 1, wanted.start)
        lost = sum(map(is_wanted, range(first, wanted.stop)))
        if lost:
            yield first, BadRows(f"rows {first} to {wanted.stop - 1} are unreadable ({error})", lost)


def _check_group(parquet: pq.ParquetFile, group: int, limits: ReadLimits) -> list[str]:
    """Refuses a row group by its metadata; returns its columns of lists of bytes or text that need `_check_row`."""
    metadata, repeated = parquet.metadata.row_group(group), []
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        is_bytes = column.physical_type == "BYTE_ARRAY"
        if not parquet.schema.column(index).max_repetition_level:
            if is_bytes and metadata.num_rows == 1:
                _check_size(column.path_in_schema, column.total_uncompressed_size, limits)
            continue
        # A few bytes of run-length encoding can stand for a billion values
        _check_size(f"{column.path_in_schema} of a row group", 8 * column.num_values, limits)
        if column.num_values * (column.total_uncompressed_size if is_bytes else _OBJECT_BYTES) > limits.max_bytes:
            repeated.append(column.path_in_schema)
    return repeated


def _check_size(column: str, size: int, limits: ReadLimits) -> None:
    if size > limits.max_bytes:
        advice = "raise limits.max_bytes if you trust it"
        raise ValueError(f"its column {column!r} has {size:,} bytes, more than {limits.max_bytes:,}; {advice}")


def _check_row(batch: pa.RecordBatch, limits: ReadLimits, look_inside: bool) -> None:
    """Refuses a row with a value above `max_bytes`."""
    if batch.nbytes > limits.max_bytes or look_inside or batch.nbytes * 8 * _OBJECT_BYTES > limits.max_bytes:
        for name, column in zip(batch.schema.names, batch.columns):
            _check_size(name, _python_bytes(column), limits)


def _python_bytes(array: pa.Array) -> int:
    """About the bytes that an array takes as Python objects."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.StructArray):
        return sum(map(_python_bytes, array.flatten()))
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.MapArray)):
        items = [array.keys, array.items] if isinstance(array, pa.MapArray) else [array.flatten()]
        return sum(map(_python_bytes, items))
    if isinstance(array, pa.DictionaryArray):
        sizes = pc.binary_length(array.dictionary) if _is_bytes(array.dictionary.type) else None
        return len(array) * _OBJECT_BYTES + ((pc.sum(sizes.take(array.indices)).as_py() or 0) if sizes else 0)
    return array.nbytes if _is_bytes(array.type) else len(array) * _OBJECT_BYTES


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(test(kind) for test in tests)


# ------------------------------------------------------------------------------------------------------- webdataset


class _Member(tarfile.TarInfo):
    """Headers of an archive. tarfile takes a corrupt one for the end, and reads extended ones of any size."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"a header at byte {archive.offset} is corrupt: {error}") from error
        except tarfile.EmptyHeaderError as error:
            if not archive.offset:
                raise  # an empty file
            raise tarfile.ReadError("it has no end-of-archive mark, so files may be missing") from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if (
            self.type in (*extended, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
            and self.size > _MAX_TAR_HEADER
        ):
            raise tarfile.ReadError(f"an extended header has {self.size:,} bytes, more than {_MAX_TAR_HEADER:,}")
        return super()._proc_member(archive)


class _Sample:
    """The files of one sample, by their names without the sample's key."""

    def __init__(self, key: str, shared: dict[str, bytes | None] | None = None):
        self.key, self.shared = key, shared
        self.fields, self.size, self.problem = dict(shared or {}), 0, None

    @property
    def media(self) -> list[str]:
        return [field for field in self.fields if _media_kind(field)]

    def is_complete_before(self, field: str) -> bool:
        """Whether a video or image belongs to another sample, because this one has one with another dotted name."""
        kind = _media_kind(field)
        same = [name for name in self.media if _media_kind(name) == kind]
        return kind is not None and "." in field and bool(same) and all("." in name for name in self.media)

    def next_of_key(self, field: str, url: str) -> _Sample:
        """The sample that begins with `field`. It takes the files of its own dotted name."""
        if self.shared is None:
            logger.warning("%s: %r names several videos or images; each is a row", url, self.key)
            self.shared = {name: content for name, content in self.fields.items() if "." not in name}
        stem = field.rpartition(".")[0]
        own = [name for name in self.fields if name.rpartition(".")[0] == stem and not _media_kind(name)]
        sample = _Sample(self.key, self.shared)
        sample.fields |= {name: self.fields.pop(name) for name in own}
        return sample

    def row(self, url: str) -> dict | BadRows:
        """Columns as `datasets` names them. A sidecar that cannot be parsed is None."""
        if self.problem:
            return BadRows(self.problem, name=self.key)
        exact = [field for field in self.media if "." not in field]
        kinds = [_media_kind(field) for field in self.media]
        chosen = (exact or self.media or [""])[0]
        if not exact and "video" in kinds:
            chosen = self.media[kinds.index("video")]
        if not chosen:
            return BadRows(f"it has no video or image, only {sorted(self.fields)}", name=self.key)
        prefix = chosen.rpartition(".")[0] + "." if "." in chosen else ""
        row: dict[str, Any] = {"__key__": self.key + (f".{prefix[:-1]}" if prefix else ""), "__url__": url}
        for field, content in self.fields.items():
            own = field.removeprefix(prefix)
            if _media_kind(field):
                row[own if field == chosen else field] = {"path": f"{self.key}.{field}", "bytes": content}
            elif own not in row:
                row[own] = _parse_sidecar(own, content, f"{url}, {self.key}.{field}")
        return {**row, "path": f"{self.key}.{chosen}"}


def read_tar(
    file: BinaryIO, url: str, first_row: int, end: int, is_wanted: Callable[[int], bool], limits: ReadLimits
) -> Iterator[tuple[int, dict | BadRows]]:
    """The wanted samples from `first_row` to before `end`. Raises a TarError where the archive is corrupt.

    A sample is the consecutive files whose names are equal up to the first dot. If it holds several videos (or
    several images) whose names have more dots, like `clip_0.5s.mp4` and `clip_0.7s.mp4`, each is a row of its own;
    files without these additions belong to all of them.
    """
    number, sample = -1, None

    def is_read() -> bool:
        return first_row <= number < end and is_wanted(number)

    mode = "r|*" if is_url(url) else "r:*"  # a local file is not read where no row is wanted
    with tarfile.open(fileobj=file, mode=mode, tarinfo=_Member) as archive:
        while True:
            try:
                member = archive.next()
            except tarfile.TarError:
                if sample is not None and is_read():
                    yield number, sample.row(url)  # its files came before the damage
                raise
            if member is None:
                break
            archive.members = []  # tarfile would keep them all
            folder, _, name = member.name.rpartition("/")
            base, _, field = name.partition(".")
            if not member.isreg() or not (base and field) or name.startswith(("__", ".")):
                continue
            key = f"{folder}/{base}" if folder else base
            before = sample
            if sample is None or key != sample.key or field in sample.fields:
                sample = _Sample(key)
            elif sample.is_complete_before(field):
                sample = sample.next_of_key(field, url)
            if sample is not before:
                if before is not None and is_read():
                    yield number, before.row(url)
                number += 1
                if number >= end:
                    return
            _add(sample, archive, member, field, is_read(), limits)
    if sample is not None and is_read():
        yield number, sample.row(url)


def _add(sample: _Sample, archive, member: tarfile.TarInfo, field: str, wanted: bool, limits: ReadLimits) -> None:
    """Reads a file of a sample, unless the sample is too large or it is a video that nobody wants."""
    sample.size += member.size
    if sample.size > limits.max_bytes:
        limit = f"more than limits.max_bytes={limits.max_bytes:,}"
        sample.problem = f"its files have {sample.size:,} bytes, {limit}; raise it if you trust them"
        sample.fields = dict.fromkeys([*sample.fields, field])
        return
    is_read = sample.problem is None and (wanted or not _media_kind(field))
    content = archive.extractfile(member).read() if is_read else None
    if content is not None and len(content) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    sample.fields[field] = content


def _parse_sidecar(field: str, content: bytes | None, name: str) -> Any:
    """Text, a number, JSON or an array by the extension, like `datasets`; pickles and other formats stay bytes."""
    extension = field.rpartition(".")[2].lower()
    if content is None:
        return None
    try:
        if extension in ("txt", "text", "transcript"):
            return content.decode()
        if extension in ("cls", "cls2", "index", "inx", "id"):
            return int(content)
        if extension in ("json", "jsn"):
            return json.loads(content)
        if extension == "npy":
            return np.load(BytesIO(content), allow_pickle=False).tolist()
    except _SIDECAR_ERRORS as error:
        logger.warning("%s is unreadable and left out (%s)", name, " ".join(str(error).split())[:200])
        return None
    return content


# ------------------------------------------------------------------------------------------------------------- media


def _media_kind(column: str) -> str | None:
    """ "video" or "image" for a column of that name, or one named by a file's extension, as in webdataset."""
    if column in ("video", "image"):
        return column
    extension = f".{column.rpartition('.')[2].lower()}"
    if extension in VIDEO_EXTENSIONS:
        return "video"
    return "image" if extension in IMAGE_EXTENSIONS else None


def standard_row(row: dict, find: Callable[[str], str], limits: ReadLimits) -> dict:
    """The row with its video as "video" or its image as "image": bytes, a path, or a dict of both.

    `find` maps a path or URL that a row names to one that may be opened.
    """
    named = [name for name in ("video", "image") if name in row]
    kinds = {name: _media_kind(name) for name in named or row}  # a column "ts" of a table may be a time
    for kind in ("video", "image"):
        # A column of the exact name or extension comes first
        names = sorted((name for name in kinds if kinds[name] == kind), key=lambda name: (name != kind, "." in name))
        media = next((row[name] for name in names if not is_empty(row[name])), None)
        if media is not None:
            further = {name: row[name] for name in list(video_columns(row).values())[1:] if not is_empty(row[name])}
            further = {name: _checked(media, "video", find, limits) for name, media in further.items()}
            return {**row, "video": None, kind: _checked(media, kind, find, limits), **further}
    empty = sorted(name for name, kind in kinds.items() if kind)
    raise ValueError(
        f"its {empty[0]!r} is empty" if empty else f"it has no column 'video' or 'image', only {sorted(row)}"
    )


def is_empty(media: Any) -> bool:
    """Whether a column of videos or images has none in this row."""
    return media is None or (isinstance(media, dict) and media.get("bytes") is None and media.get("path") is None)


def _checked(media: Any, kind: str, find: Callable[[str], str], limits: ReadLimits) -> Any:
    content, path = (media.get("bytes"), media.get("path")) if isinstance(media, dict) else (None, media)
    if isinstance(path, (bytes, bytearray, memoryview)) and not isinstance(media, dict):
        content, path = path, None
    if content is not None:
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise ValueError(f"the bytes of its {kind} are of type {type(content).__name__}; expected bytes")
        _check_size(kind, len(content), limits)
        return {"bytes": content, "path": path if isinstance(path, str) else None}
    if not isinstance(path, str):
        expected = "bytes, a path, or a dict of bytes and path"
        raise ValueError(f"its {kind} is of type {type(media).__name__}; expected {expected}")
    return find(path)


def confined(path: str, shard: str, root: str, limits: ReadLimits) -> str:
    """What a row may open of a path or URL that it names; relative ones start at its shard, or at the root.

    Raises:
        ValueError: it lies outside of `root` (a folder or URL), and `limits` do not allow that.
    """
    remote = is_url(root)
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if not is_url(path) and remote and not os.path.isabs(path):
        path = f"{shard.rpartition('/')[0]}/{path}"
    if is_url(path):
        steps = urllib.parse.unquote(path).split("/")
        is_below = remote and "::" not in path and ".." not in steps and _is_below_url(path, root)
        if is_below or limits.allow_urls:
            return path
        place = f"outside of {root!r}" if remote else "and URLs are not read"
        raise ValueError(f"it names the URL {path!r:.200}, {place}; set limits.allow_urls=true if you trust the data")
    candidates = [path] if os.path.isabs(path) else [os.path.join(os.path.dirname(shard), path)]
    if not os.path.isabs(path) and not remote:
        candidates += [os.path.join(root, path), path]
    allowed = [file for file in candidates if limits.allow_outside or (not remote and _is_below(file, root))]
    if not allowed:
        advice = "set limits.allow_outside=true if you trust the data"
        raise ValueError(f"it names the file {path!r:.200} outside of {root!r}; {advice}")
    return next((file for file in allowed if os.path.isfile(file)), allowed[0])


def _is_below(file: str, root: str) -> bool:
    """By the names alone: links below the root may lead elsewhere, as in the Hub's cache."""
    root = os.path.join(os.path.abspath(root), "")
    return os.path.abspath(file).startswith(root)


def _is_below_url(url: str, root: str) -> bool:
    return url.startswith(root.rstrip("/") + "/") or (root.startswith("hf://") and url.startswith(root + "@"))
