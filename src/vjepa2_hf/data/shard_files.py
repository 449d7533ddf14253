"""The files of a data set: which kind they are, their names in little memory, and URLs.

find_shards(data) -> kind, names, root
ShardNames        <- many names as one block of bytes
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset_builder
from datasets.utils.file_utils import xopen

from ..video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ReadLimits
from .dataset_card import CARD
from .labels import read_path_list
from .lerobot import is_hub_id
from .shard_rows import is_url


_EXTENSIONS = {
    "parquet": (".parquet",), "webdataset": (".tar",), "videos": VIDEO_EXTENSIONS, "images": IMAGE_EXTENSIONS
}  # fmt: skip
_ENCODING = ("utf-8", "surrogateescape")  # of file names


class ShardNames(Sequence):
    """Names as one block of bytes without their common start: 100,000 of them take about 3 MB, and no object each."""

    def __init__(self, names: Iterable[str]):
        names = list(names)
        self._start = os.path.commonprefix([names[0], names[-1]]) if names else ""  # they are sorted, or rarely long
        if not all(name.startswith(self._start) for name in names):
            self._start = ""
        encoded = [name[len(self._start) :].encode(*_ENCODING) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return len(self._bytes) + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._start + self._bytes[self._ends[index] : self._ends[index + 1]].decode(*_ENCODING)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (ShardNames, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other))

    __hash__ = None

    def __repr__(self) -> str:
        more = ", ..." if len(self) > 3 else ""
        return f"ShardNames([{', '.join(map(repr, self[:3]))}{more}], {len(self)} names)"


class FoundShards(NamedTuple):
    """The files behind `data`."""

    kind: str
    """ "parquet", "webdataset", "videos" or "images"."""
    shards: list[str]
    root: str
    """The folder or URL that rows may name files in."""
    rows: list[dict[str, Any]] | None = None
    """Of a list of files: what it says of each."""


def find_shards(data: str, limits: ReadLimits) -> FoundShards:
    """The shards behind `data`, see `ShardSource`.

    Raises:
        FileNotFoundError: there is no such data.
        ValueError: files of several kinds.
    """
    if is_url(data):
        files, root = _remote_files(data)
    else:
        files, root = files_at(data), data_root(data)
    if len(files) == 1 and is_path_list(files[0]) and not os.path.isdir(data) and not is_url(data):
        return _listed(files[0], root, limits)
    found = {kind: [file for file in files if file.lower().endswith(end)] for kind, end in _EXTENSIONS.items()}
    found = {kind: sorted(paths) for kind, paths in found.items() if paths}
    if len(found) > 1 and not _is_table_of_files(found):
        counts = " and ".join(f"{kind} ({len(paths)}, like {paths[0]!r})" for kind, paths in found.items())
        raise ValueError(f"{data!r} holds several kinds of files: {counts}; give one, like 'FOLDER/**/*.mp4'.")
    if found:
        return FoundShards(*next(iter(found.items())), root)
    problem = None
    if any(file.lower().endswith((".hdf5", ".h5", ".npz")) for file in files):
        problem = f"{data!r} holds HDF5 or npz files; import them as shards with examples/import_episodes.py."
    elif os.path.exists(data) or is_url(data):
        problem = f"There is no parquet file, .tar shard, video or image in {data!r}; see make_video_shards.py."
    elif not is_hub_id(data):
        problem = f"There is no data at {data!r}: no such folder or file; give a folder, a glob or a Hub dataset."
    if problem:
        raise FileNotFoundError(problem)
    return _on_the_hub(data)


def _on_the_hub(data: str) -> FoundShards:
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
    files = sorted(map(str, splits["train"] if "train" in splits else next(iter(splits.values()))))
    return FoundShards(kind, files, f"hf://datasets/{data}")


def _listed(file: str, root: str, limits: ReadLimits) -> FoundShards:
    rows = read_path_list(file, limits)
    paths = [row.pop("path") for row in rows]
    images = [path.lower().endswith(IMAGE_EXTENSIONS) for path, row in zip(paths, rows) if "problem" not in row]
    return FoundShards("images" if images and all(images) else "videos", paths, root, rows)


def _is_table_of_files(found: dict[str, list[str]]) -> bool:
    """Whether there is a parquet file with paths of videos or images, which may then lie beside it."""
    try:
        return not {"video", "image"}.isdisjoint(pq.read_schema(found["parquet"][0]).names)
    except (KeyError, OSError, pa.ArrowException):  # no parquet file, or an unreadable one
        return False


def is_path_list(file: str) -> bool:
    """Whether a file is taken for a list of files, by its name."""
    return file.lower().endswith((".csv", ".txt"))


def files_in(folder: str) -> Iterator[str]:
    """The files below a folder, without hidden ones and dataset cards. Links are followed; every folder is read
    once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        # Sorted, so that of two paths to a folder the same one is always used
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        yield from (os.path.join(root, name) for name in names if not name.startswith(".") and name != CARD)


def files_at(data: str | os.PathLike) -> list[str]:
    """The files that a folder, a file or a pattern stands for. An existing path is no pattern, whatever its name."""
    data = os.fspath(data)
    if os.path.isdir(data):
        return list(files_in(data))
    if os.path.isfile(data):
        return [data]
    folder = _existing_folder(data)
    pattern = glob.escape(folder) + data[len(folder) :]
    return [file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]


def data_root(data: str) -> str:
    """The folder of the data: itself, that of the file, or the one where a pattern begins."""
    if os.path.isdir(data):
        return data
    return (os.path.dirname(data) if os.path.isfile(data) else _existing_folder(data)) or "."


def _existing_folder(pattern: str) -> str:
    """The longest start of a pattern that is a folder; "" is the working folder."""
    ends = [position for position, letter in enumerate(pattern) if letter in (os.sep, "/")]
    for end in reversed(ends):
        if os.path.isdir(pattern[: end + 1]):
            return pattern[: end + 1]
    return ""


# -------------------------------------------------------------------------------------------------------------- URLs


def _remote_files(data: str) -> tuple[list[str], str]:
    """The URLs of the files that a URL of a folder, file or pattern stands for, and the URL that they lie below."""
    try:
        system, path = fsspec.core.url_to_fs(data)
        is_pattern, is_folder = glob.has_magic(path), system.isdir(path)
        if is_folder:
            files = system.find(path)
        else:
            files = system.glob(path) if is_pattern else [path] if system.isfile(path) else []
    except Exception as error:  # of the network or of the library for its protocol
        raise FileNotFoundError(f"{data!r} cannot be opened ({' '.join(str(error).split())}).") from error
    root = system.unstrip_protocol(path).rstrip("/")
    if not is_folder:
        root = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), root.split("/")))
        root = root if is_pattern else root.rpartition("/")[0]
    names = [system.unstrip_protocol(file) for file in files]
    return [name for name in names if "/." not in name.removeprefix(root)], root


def open_url(path: str) -> BinaryIO:
    """A file or URL to read, with the retries of `datasets` for URLs."""
    return xopen(path, "rb")


def url_state(url: str) -> str:
    """What a server says of a file: its size and checksum; nothing of a file that is missing.

    Raises:
        OSError: the server does not answer.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        info = system.info(path)
    except FileNotFoundError:
        return ""
    except Exception as error:  # of the network or of the library for its protocol
        reason = " ".join(str(error).split())
        raise OSError(f"{url!r} cannot be looked up ({type(error).__name__}: {reason}); try again.") from error
    names = ("size", "ETag", "etag", "md5Hash", "blob_id", "checksum")
    return " ".join(f"{name}={info[name]}" for name in names if info.get(name) is not None)
