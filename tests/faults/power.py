"""What a disk may hold after the power went out: only synced bytes and names are certain.

    tree = replay(operations[:n], root)             # of `Disk`, recorded
    tree.write_to(folder, draw, "random")           # one of the states that may be found afterwards

A file's bytes are certain up to its last fsync; a name (created, renamed, removed) up to the last fsync of its folder.
What came later is lost, whole or torn, file by file; of a folder's later changes the first few survive, in order.
"""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path
from typing import Any


# What survives of changes that were not synced: nothing; all names but no bytes; all bytes but no names; a draw
MODES = ("nothing", "names", "bytes", "random", "torn")


@dataclasses.dataclass
class File:
    """Bytes at the last fsync, bytes now, and the changes between them: (offset, data) or (size, None)."""

    synced: bytes = b""
    now: bytes = b""
    changes: list[tuple[int, bytes | None]] = dataclasses.field(default_factory=list)

    def change(self, offset: int, data: bytes | None) -> None:
        self.now = _changed(self.now, offset, data)
        self.changes.append((offset, data))

    def sync(self) -> None:
        self.synced, self.changes = self.now, []

    def survivor(self, draw: random.Random, mode: str) -> bytes:
        if not self.changes or mode in ("nothing", "names"):
            return self.synced
        if mode == "bytes":
            return self.now
        kept, found = draw.randint(0, len(self.changes)), self.synced
        for offset, data in self.changes[:kept]:
            found = _changed(found, offset, data)
        if kept < len(self.changes):  # the next one is torn
            offset, data = self.changes[kept]
            if data:
                found = _changed(found, offset, data[: draw.randint(0, len(data))])
        if draw.random() < 0.3:  # the size is that of all of them, and the rest was never written
            found = found + bytes(max(0, len(self.now) - len(found)))
        return found


@dataclasses.dataclass
class Folder:
    """Names at the last fsync, names now, and the changes between them: (name, what or None)."""

    synced: dict[str, File | Folder] = dataclasses.field(default_factory=dict)
    now: dict[str, File | Folder] = dataclasses.field(default_factory=dict)
    changes: list[tuple[str, File | Folder | None]] = dataclasses.field(default_factory=list)

    def change(self, name: str, what: File | Folder | None) -> None:
        self.now = {**self.now, name: what}
        if what is None:
            del self.now[name]
        self.changes.append((name, what))

    def rename(self, old: str, new: str) -> None:
        """One change: after it, both names are as they should be."""
        what = self.now.pop(old)
        self.now[new] = what
        self.changes.append(((old, new), what))

    def sync(self) -> None:
        self.synced, self.changes = dict(self.now), []

    def survivors(self, draw: random.Random, mode: str) -> dict[str, File | Folder]:
        kept = {"nothing": 0, "bytes": 0, "names": len(self.changes), "torn": len(self.changes)}.get(mode)
        kept = draw.randint(0, len(self.changes)) if kept is None else kept
        found = dict(self.synced)
        for name, what in self.changes[:kept]:
            if isinstance(name, tuple):
                found.pop(name[0], None)
                name = name[1]
            if what is None:
                found.pop(name, None)
            else:
                found[name] = what
        return found

    def write_to(self, folder: Path, draw: random.Random, mode: str) -> None:
        """Writes one of the states that may be found."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, what in self.survivors(draw, mode).items():
            if isinstance(what, Folder):
                what.write_to(folder / name, draw, mode)
            else:
                (folder / name).write_bytes(what.survivor(draw, mode))


def _changed(found: bytes, offset: int, data: bytes | None) -> bytes:
    if data is None:
        return found[:offset].ljust(offset, b"\0")
    return found[:offset].ljust(offset, b"\0") + data + found[offset + len(data) :]


def read_tree(folder: Path) -> Folder:
    """A folder as it lies there, all of it synced."""
    found = Folder()
    for path in sorted(folder.iterdir()):
        found.now[path.name] = read_tree(path) if path.is_dir() else File(path.read_bytes(), path.read_bytes())
    found.sync()
    return found


def replay(operations: list[tuple], root: str, tree: Folder) -> tuple[Folder, list[Any]]:
    """Applies recorded operations to a tree. Returns it, and the marks on the way."""
    handles: dict[int, File | Folder] = {}
    marks = []

    def parent(path: str) -> tuple[Folder, str]:
        node, names = tree, os.path.relpath(path, root).split(os.sep)
        for name in names[:-1]:
            node = node.now[name]
        return node, names[-1]

    for kind, *details in operations:
        if kind == "mark":
            marks.append(details[0])
        elif kind == "open":
            handle, path, create, truncate = details
            if path == root:
                handles[handle] = tree
                continue
            folder, name = parent(path)
            if create and name not in folder.now:
                folder.change(name, File())
            handles[handle] = folder.now[name]
            if truncate and folder.now[name].now:
                folder.now[name].change(0, None)
        elif kind == "write":
            handles[details[0]].change(details[1], details[2])
        elif kind == "truncate":
            handles[details[0]].change(details[1], None)
        elif kind == "fsync":
            handles[details[0]].sync()
        elif kind == "mkdir":
            folder, name = parent(details[0])
            folder.change(name, Folder())
        elif kind == "unlink":
            folder, name = parent(details[0])
            folder.change(name, None)
        elif kind == "rename":
            (old, name), (new, target) = parent(details[0]), parent(details[1])
            if old is new:
                old.rename(name, target)
            else:
                new.change(target, old.now[name])
                old.change(name, None)
        else:
            raise ValueError(f"The operation {kind!r} is unknown.")
    return tree, marks
