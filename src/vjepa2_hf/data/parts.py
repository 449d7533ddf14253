"""Numbered part files: results of long work, written piece by piece, so that an interrupted run can continue.

Every part is complete (see `files.write_aside`) and holds a JSON note in its metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .files import write_aside, writing


PART_BYTES = 2**28


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
        self._number = len(list(folder.glob(names)))
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
    """Writes a safetensors file with a JSON note under `key` of its metadata."""
    save_file({name: values.contiguous() for name, values in tensors.items()}, path, metadata={key: json.dumps(note)})


def read_note(path: Path, key: str) -> Any:
    """The JSON note of a part, without its tensors."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[key])


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a part's tensors by name."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
