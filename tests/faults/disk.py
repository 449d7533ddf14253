"""File operations of this process below one folder: counted, recorded, cut short, or ended by a kill.

    disk = Disk(folder, Fault(kill_at=17))
    disk.install()                            # the 17th operation below `folder` does not happen: SIGKILL

`open`, `write`, `fsync`, `rename`, `unlink`, `mkdir` and `rmdir` are replaced where Python finds them, and the native
writers of torch, safetensors and Arrow write through them. Nothing is compiled and no rights are needed.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import io
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors.torch
import torch


NATIVE_WRITES = 3  # writes that a native writer's file arrives in
_REAL = {name: getattr(os, name) for name in (
    "open", "close", "write", "fsync", "ftruncate", "truncate", "rename", "replace", "unlink", "mkdir", "rmdir"
)}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong.

    kill_at: number of the operation, from 1, before which the process gets SIGKILL; `torn`: a write is half done then.
    quota: bytes that fit below the folder; `strict`: a full disk takes no new files and folders either.
    record: keep all operations and their bytes in `Disk.operations`, for `power`.
    """

    kill_at: int | None = None
    torn: bool = False
    quota: int | None = None
    strict: bool = False
    record: bool = False


class Disk:
    """The operations of this process below `root`.

    Attributes:
        events: (kind, path below root, bytes) of each.
        marks: (number of events before it, promise) of each `mark`.
        operations: what `power.replay` takes, if the fault is to record them.
        used: bytes below the root before each event, then.
    """

    def __init__(self, root: str | os.PathLike, fault: Fault | None = None):
        self.root, self.fault = os.path.realpath(root), fault or Fault()
        self.pid = os.getpid()
        self.events: list[tuple[str, str, int]] = []
        self.marks: list[tuple[int, Any]] = []
        self.operations: list[tuple] = []
        self.used: list[int] = []
        self.paths: dict[int, str] = {}  # of open descriptors below the root
        self.handles: dict[int, int] = {}
        self.opened = 0
        self.scratch = Path(f"{self.root}.native.{self.pid}")

    def install(self) -> None:
        """For the rest of this process's life."""
        for name in ("open", "close", "write", "fsync", "ftruncate", "rename", "replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, getattr(self, f"_{name}"))
        os.remove, os.fdatasync = self._unlink, self._fsync
        builtins.open = io.open = self._open_file
        shutil._USE_CP_SENDFILE = False
        self._install_native()

    # ------------------------------------------------------------------------------------------------------- events

    def inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The absolute path, if it lies below the root and this is the watched process."""
        if os.getpid() != self.pid or isinstance(path, int):
            return None
        path = os.fsdecode(path)
        if dir_fd is not None:
            if dir_fd not in self.paths:
                return None
            path = os.path.join(self.paths[dir_fd], path)
        path = os.path.abspath(path)
        return path if path == self.root or path.startswith(self.root + os.sep) else None

    def event(self, kind: str, path: str, size: int = 0) -> bool:
        """Counts an operation that is about to happen. True: it is to be torn, see `Fault`."""
        self.events.append((kind, os.path.relpath(path, self.root), size))
        if self.fault.record:
            self.used.append(self.size())
        if len(self.events) != self.fault.kill_at:
            return False
        if self.fault.torn and kind == "write":
            return True
        self.kill()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        signal.pause()

    def log(self, *operation: Any) -> None:
        if self.fault.record:
            self.operations.append(operation)

    def mark(self, name: Any) -> None:
        """Notes a promise that the program has given, between two operations."""
        self.marks.append((len(self.events), name))
        self.log("mark", name)

    def size(self) -> int:
        """Bytes of all files below the root. Another process of the run may remove some meanwhile."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.path.getsize(os.path.join(folder, name))
        return total

    def room(self) -> int:
        return 2**62 if self.fault.quota is None else max(0, self.fault.quota - self.size())

    def refuse_if_full(self, path: str) -> None:
        if self.fault.strict and not self.room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def put(self, descriptor: int, path: str, data: bytes, offset: int) -> int:
        """One write to an open file, or the part of it that the fault allows."""
        torn = self.event("write", path, len(data))
        room = min(len(data) // 2 if torn else len(data), self.room())
        if room:
            _REAL["write"](descriptor, data[:room])
            self.log("write", self.handles[descriptor], offset, bytes(data[:room]))
        if torn:
            self.kill()
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return room

    # ------------------------------------------------------------------------------------------- replacements of os.*

    def _open(self, path, flags, mode=0o777, *, dir_fd=None):
        found = self.inside(path, dir_fd)
        if found is None:
            return _REAL["open"](path, flags, mode, dir_fd=dir_fd)
        if flags & _WRITES:
            self.event("open", found)
            if flags & os.O_CREAT and not os.path.exists(found):
                self.refuse_if_full(found)
        descriptor = _REAL["open"](path, flags, mode, dir_fd=dir_fd)
        self.opened += 1
        self.paths[descriptor], self.handles[descriptor] = found, self.opened
        self.log("open", self.opened, found, bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC))
        return descriptor

    def _close(self, descriptor):
        self.paths.pop(descriptor, None)
        self.handles.pop(descriptor, None)
        return _REAL["close"](descriptor)

    def _write(self, descriptor, data):
        if descriptor not in self.paths or os.getpid() != self.pid:
            return _REAL["write"](descriptor, data)
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        return self.put(descriptor, self.paths[descriptor], bytes(data), offset)

    def _fsync(self, descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if number in self.paths and os.getpid() == self.pid:
            self.event("fsync", self.paths[number])
            self.log("fsync", self.handles[number])
        return _REAL["fsync"](descriptor)

    def _ftruncate(self, descriptor, length):
        if descriptor in self.paths and os.getpid() == self.pid:
            self.event("truncate", self.paths[descriptor])
            self.log("truncate", self.handles[descriptor], length)
        return _REAL["ftruncate"](descriptor, length)

    def _rename(self, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        return self._move("rename", source, target, src_dir_fd, dst_dir_fd)

    def _replace(self, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        return self._move("replace", source, target, src_dir_fd, dst_dir_fd)

    def _move(self, name, source, target, src_dir_fd, dst_dir_fd):
        old, new = self.inside(source, src_dir_fd), self.inside(target, dst_dir_fd)
        if old or new:
            self.event("rename", new or old)
        result = _REAL[name](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        if old and new:
            self.log("rename", old, new)
            moved = {fd: path for fd, path in self.paths.items() if path == old or path.startswith(old + os.sep)}
            self.paths.update({fd: new + path[len(old) :] for fd, path in moved.items()})
        return result

    def _unlink(self, path, *, dir_fd=None):
        return self._remove("unlink", path, dir_fd)

    def _rmdir(self, path, *, dir_fd=None):
        return self._remove("rmdir", path, dir_fd)

    def _remove(self, name, path, dir_fd):
        found = self.inside(path, dir_fd)
        if found and os.path.lexists(found):
            self.event(name, found)
        result = _REAL[name](path, dir_fd=dir_fd)
        if found:
            self.log("unlink", found)
        return result

    def _mkdir(self, path, mode=0o777, *, dir_fd=None):
        found = self.inside(path, dir_fd)
        if found and not os.path.exists(found):
            self.event("mkdir", found)
            self.refuse_if_full(found)
        result = _REAL["mkdir"](path, mode, dir_fd=dir_fd)
        if found:
            self.log("mkdir", found)
        return result

    # --------------------------------------------------------------------------------------------------- Python's open

    def _open_file(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
    ):
        found = self.paths.get(file) if isinstance(file, int) else self.inside(file)
        if found is None or os.getpid() != self.pid or not set(mode) & set("wax+"):
            return _OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _File(self, file, mode.replace("b", "").replace("t", ""), closefd)
        if buffering == 0:
            return raw
        stream = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return stream
        text = io.TextIOWrapper(stream, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text

    # -------------------------------------------------------------------------------------------------- native writers

    def copy(self, source: Path, target: str) -> None:
        """The file that a native writer made, through `open` and a few writes."""
        data = source.read_bytes()
        source.unlink()
        size = max(1, -(-len(data) // NATIVE_WRITES))
        with self._open_file(target, "wb", 0) as file:
            for first in range(0, len(data), size):
                file.write(data[first : first + size])

    def _install_native(self) -> None:
        disk, scratch = self, self.scratch
        zip_writer, serialize = torch.serialization._open_zipfile_writer, safetensors.torch.serialize_file
        parquet = pq.ParquetWriter.__init__

        class Zip:
            """torch.save: the name of the file is part of its bytes."""

            def __init__(self, path: str):
                self.path, self.made = path, scratch / os.path.basename(path)
                scratch.mkdir(exist_ok=True)
                self.inner = zip_writer(str(self.made))

            def __enter__(self):
                return self.inner.__enter__()

            def __exit__(self, *error):
                self.inner.__exit__(*error)
                if error[0] is None:
                    disk.copy(self.made, self.path)

        def open_zip(target):
            is_path = isinstance(target, (str, os.PathLike)) and disk.inside(target)
            return Zip(os.fspath(target)) if is_path else zip_writer(target)

        def serialize_file(tensors, filename, metadata=None):
            if not disk.inside(filename):
                return serialize(tensors, filename, metadata=metadata)
            scratch.mkdir(exist_ok=True)
            made = scratch / os.path.basename(filename)
            serialize(tensors, str(made), metadata=metadata)
            disk.copy(made, filename)

        def open_parquet(self, where, *arguments, **options):
            inside = isinstance(where, (str, os.PathLike)) and disk.inside(where)
            handle = disk._open_file(where, "wb", 0) if inside else None
            parquet(self, handle or where, *arguments, **options)
            if handle is not None:
                self.where, self.file_handle = where, handle

        torch.serialization._open_zipfile_writer = open_zip
        safetensors.torch.serialize_file = serialize_file
        pq.ParquetWriter.__init__ = open_parquet


_OPEN = builtins.open


class _File(io.FileIO):
    """A file below the root that is open for writing."""

    def __init__(self, disk: Disk, file: Any, mode: str, closefd: bool):
        self.disk = disk
        if isinstance(file, int):
            super().__init__(file, mode, closefd)
        else:
            super().__init__(file, mode, opener=lambda path, flags: disk._open(path, flags, 0o666))
        self.path, self.number = disk.paths[self.fileno()], self.fileno()

    def write(self, data):
        offset = os.fstat(self.number).st_size if "a" in self.mode else self.tell()
        return self.disk.put(self.number, self.path, bytes(data), offset)

    def truncate(self, size=None):
        size = self.tell() if size is None else size
        self.disk._ftruncate(self.number, size)
        return size

    def close(self):
        if not self.closed and self.closefd:
            self.disk.paths.pop(self.number, None)
            self.disk.handles.pop(self.number, None)
        super().close()
