"""Numbered part files: results of long work, written piece by piece, so that an interrupted run can continue.

Every part is complete (see `files.write_aside`), and holds a JSON note and a digest of its bytes in its metadata.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import write_aside, writing


PART_BYTES = 2**28
_DIGEST = "digest"  # in the metadata: of the whole file, with zeros in its own position
_NO_DIGEST = b"0" * 32


class DamagedPartError(ValueError):
    """A part is not as it was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{str(path)!r} is damaged ({reason}): remove this file, and the next run computes it again.")


class PartWriter:
    """Collects items and writes them to numbered files of a folder, after removing partial files of an earlier run.

    `pattern` is a file name with one `{}` for the number. `save` writes items to a path. `max_bytes` and `max_items`
    limit a part, and the memory and work that an interrupted run can lose.
    """

    def __init__(
        self,
        folder: Path,
        pattern: str,
        save: Callable[[Path, list[Any]], None],
        max_bytes: int = PART_BYTES,
        max_items: int | None = None,
    ):
        self.folder, self.pattern, self.save = folder, pattern, save
        self.max_bytes, self.max_items = max_bytes, max_items
        self._items: list[Any] = []
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        names = re.sub("{.*}", "*", pattern)
        # The next number: one in between may have been removed
        numbered = re.compile(re.sub(r"\\\{.*\\\}", r"(\\d+)", re.escape(pattern)))
        found = [numbered.fullmatch(path.name) for path in folder.glob(names)]
        self._number = max((int(match[1]) + 1 for match in found if match), default=0)
        for partial in folder.glob(f"*{names}.tmp"):
            partial.unlink()

    def add(self, item: Any, num_bytes: int) -> None:
        """Adds an item; writes a part if it is full."""
        self._items.append(item)
        self._bytes += num_bytes
        if self._bytes >= self.max_bytes or len(self._items) == self.max_items:
            self.flush()

    def flush(self) -> None:
        """Writes the items so far as a part."""
        if not self._items:
            return
        path = self.folder / self.pattern.format(self._number)
        with writing(path), write_aside(path) as partial:
            self.save(partial, self._items)
        self._items, self._bytes, self._number = [], 0, self._number + 1


def save_part(path: Path, tensors: dict[str, torch.Tensor], key: str, note: Any) -> None:
    """Writes a safetensors file with a JSON note under `key` of its metadata, and a digest."""
    metadata = {key: json.dumps(note), _DIGEST: _NO_DIGEST.decode()}
    save_file({name: values.contiguous() for name, values in tensors.items()}, path, metadata=metadata)
    digest, position, _ = _compute_digest(path)
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(digest)


def check_part(path: Path, key: str) -> None:
    """Reads a part whole and compares it with its digest. An older part without a digest is only parsed.

    Raises:
        DamagedPartError: its bytes are not those that were written.
    """
    with _opened(path) as file:
        names = set(file.metadata() or {})
    if names == {key}:
        return
    if names != {key, _DIGEST}:
        raise DamagedPartError(path, f"its metadata is {', '.join(sorted(names)) or 'empty'}")
    digest, _, written = _compute_digest(path)
    if digest != written:
        raise DamagedPartError(path, "its bytes have changed since they were written")


def _compute_digest(path: Path) -> tuple[bytes, int, bytes]:
    """The digest of a part, the position in the file where it stands, and what stands there."""
    with open(path, "rb", buffering=0) as file:
        begin = file.read(8)
        header = file.read(int.from_bytes(begin, "little"))
        mark = f'"{_DIGEST}":"'.encode()  # in the note, quotation marks are escaped
        first = header.find(mark) + len(mark)
        last = first + len(_NO_DIGEST)
        digest, buffer = xxhash.xxh3_128(begin + header[:first] + _NO_DIGEST + header[last:]), bytearray(2**20)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest().encode(), len(begin) + first, header[first:last]


def read_note(path: Path, key: str) -> Any:
    """The JSON note of a part, without its tensors."""
    with _opened(path) as file:
        try:
            return json.loads(file.metadata()[key])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedPartError(path, f"it has no note {key!r}") from error


def read_digest(path: Path) -> str | None:
    """The digest that a part was written with; None for an older part."""
    with _opened(path) as file:
        return (file.metadata() or {}).get(_DIGEST)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a part's tensors by name."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a part by name, mapped from the file."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A part opened by safetensors; a DamagedPartError if it is cut, empty or something else."""
    try:
        file = safe_open(path, framework="pt")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise DamagedPartError(path, " ".join(str(error).split())) from error
    with file:
        yield file
