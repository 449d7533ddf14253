"""Atomic writes, folder locks, and fingerprints of what saved results depend on.

A file or folder is written under another name, synced to disk and renamed: under its own name it is always complete.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from filelock import FileLock, Timeout
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from torch import nn

from ..configuration_vjepa2 import refuse_missing_folder


logger = logging.getLogger(__name__)

LOCK = ".lock"
PARTIAL_SUFFIX = ".tmp"


@contextlib.contextmanager
def write_aside(path: str | os.PathLike, unique: bool = False) -> Iterator[Path]:
    """Yields a path to write a file or folder to, and renames it to `path` when the block ends without an error.

    The parent is created. After an error `path` keeps its old content. A killed process leaves `.<name>.tmp`, which
    the next write replaces. `unique`: several processes may write `path` at the same time; the last one wins.
    """
    path = Path(path)
    owner = f".{os.getpid()}" if unique else ""
    partial = path.with_name(f".{path.name}{owner}{PARTIAL_SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        commit_folder(partial, path)
    finally:
        _remove(partial)


@contextlib.contextmanager
def staged_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A new folder, see `write_aside`. It is an error if it is not empty, or if another process writes it. A link is
    followed: the folder appears where it leads to."""
    target = Path(os.path.realpath(folder))
    if os.path.ismount(target):  # no folder can be renamed to it
        raise OSError(f"{os.fspath(folder)!r} is where a disk is mounted; give a new folder in it.")
    lock = lock_folder(target.parent, name=f".{target.name}{LOCK}", contents=target)
    try:
        with _staged(target) as partial:
            yield partial
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{str(target)!r} exists and is not empty; choose another output folder or remove it.")
    with write_aside(target) as partial:
        partial.mkdir(parents=True)
        yield partial


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file: readers find the old text or the new one, complete."""
    with writing(path), write_aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become escapes, like "\\udcff"."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1, **options: Any) -> None:
    """Writes a JSON file; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n")


def plain_numbers(value: Any) -> Any:
    """A value for JSON, also in dicts and lists: torch scalars as numbers, and None for NaN and infinity, which JSON
    does not have."""
    if isinstance(value, dict):
        return {name: plain_numbers(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_numbers(part) for part in value]
    value = value.item() if isinstance(value, torch.Tensor) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def writing(path: str | os.PathLike, advice: str = "run the same command again") -> Iterator[None]:
    """Turns an error inside the block into an OSError of one sentence that names `path`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError when the disk is full
        if "DataLoader worker" in str(error):
            raise  # torch raises it wherever the main process is when a worker dies
        reason = " ".join(str(error).split())[:200]
        steps = f"see whether the disk is full, then {advice}"
        raise OSError(f"{os.fspath(path)!r} could not be written ({reason}); {steps}.") from error


@contextlib.contextmanager
def loading(source: str | os.PathLike, kind: str, advice: str) -> Iterator[None]:
    """Turns an error of `huggingface_hub` that loads a small model inside the block into one sentence.

    Args:
        source: folder or Hub id.
        kind: what it should hold, such as "policy".
        advice: what to do where it does not.

    Raises:
        FileNotFoundError: the folder does not exist, or lacks a file.
        ValueError: its files are damaged, or of another model.
    """
    refuse_missing_folder(source)
    if os.path.isdir(source):
        for name in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE):
            if not os.path.isfile(os.path.join(source, name)):
                raise FileNotFoundError(f"{os.fspath(source)!r} has no {name}, so it holds no {kind}; {advice}.")
    try:
        yield
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        expected = f"expected the config.json and {SAFETENSORS_SINGLE_FILE} of a saved {kind}"
        raise ValueError(f"{os.fspath(source)!r} does not load ({reason}); {expected}: {advice}.") from error


def commit_folder(partial: Path, whole: Path) -> None:
    """Renames a complete file or folder after its bytes have reached the disk; a folder that is there is replaced."""
    if partial.is_dir() or whole.suffix == ".safetensors":
        apply_umask(partial)
    for path in (*partial.rglob("*"), partial):
        sync(path)
    if whole.is_dir() and any(whole.iterdir()):
        remove_folder(whole)
    elif whole.is_symlink() and partial.is_dir():
        whole.unlink()
    os.replace(partial, whole)
    sync(whole.parent)


def apply_umask(path: Path) -> None:
    """Gives a file, or the safetensors files of a folder, the permissions of a newly created file.

    safetensors 0.8 creates files that only their owner can read.
    """
    files = list(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        return
    # `os.umask` would change the mask of all threads for a moment. Of a killed process the probe goes with the folder,
    # or with the partial file whose name it has
    probe = path / f".mode{PARTIAL_SUFFIX}" if path.is_dir() else path.with_name(f".mode{path.name}")
    descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
    for file in files:
        file.chmod(mode)


def empty_folder(folder: Path) -> None:
    """Makes an empty folder; one that is there is removed first."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder, or a link to one. It is renamed first, so that a killed process leaves no part of it under its
    own name."""
    doomed = folder
    if folder.is_symlink():
        folder.unlink()
        return
    if not folder.name.endswith(PARTIAL_SUFFIX):
        doomed = folder.with_name(f"{folder.name}.old{PARTIAL_SUFFIX}")
        os.replace(folder, doomed)
        sync(doomed.parent)  # else a power loss may undo the new name and not the removal of the files
    shutil.rmtree(doomed)


def move_aside(path: Path, ending: str) -> Path:
    """Renames a file or folder to `<name>.<ending>`, or `<name>.<ending>-2` and so on where that is taken."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.{ending}" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            os.rename(path, aside)
            sync(path.parent)
            return aside


def file_digest(path: Path) -> str:
    """The XXH3 hash (128 bits) of a file, which finds accidental changes at the speed of memory."""
    digest, buffer = xxhash.xxh3_128(), bytearray(2**20)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(
    folder: str | os.PathLike,
    wait: bool = False,
    reentrant: bool = False,
    name: str = LOCK,
    contents: Path | None = None,
) -> FileLock:
    """Locks a folder until `release()`, or until the lock or the process is gone.

    The lock is the file `name` in the folder; if another process has it, this is an OSError. With `wait` the lock is
    `<folder>.lock` beside it, so that its holder can create the folder, and the others wait. `reentrant`: the same
    process may lock the folder again. `contents` is named in place of the folder.
    """
    folder = Path(folder)
    path = folder.with_name(folder.name + name) if wait else folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False, is_singleton=reentrant)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if not wait:
            written = os.fspath(contents or folder)
            raise OSError(f"Another process writes to {written!r}; wait for it, or stop it.") from error
        logger.warning("another run writes to %s: waiting for it to end", folder)
        lock.acquire()
    except OSError as error:
        logger.warning("%s cannot be locked (%s): another process could write to its folder", path, error)
    return lock


@contextlib.contextmanager
def locked(folder: str | os.PathLike, state: Any = None, wait: bool = False, name: str = LOCK) -> Iterator[None]:
    """Locks a folder during the block, see `lock_folder`.

    With `state` (an Accelerator or PartialState) all its processes call this, and the main one takes the lock.
    """
    lock = lock_folder(folder, wait, name=name) if state is None or state.is_main_process else None
    try:
        if state is not None:
            state.wait_for_everyone()
        yield
    finally:
        if lock is not None:
            lock.release()


def claim_folder(manifest: Path, description: dict[str, Any], contents: str = "features") -> None:
    """Writes the manifest (a path) of a new folder; refuses a folder of other results, or of files without a manifest.

    `description` names what the results depend on; its "model" is for people to read and not compared. `contents`
    names the results in errors.
    """
    folder = manifest.parent
    if not manifest.is_file():
        leftovers = (f"{manifest.name}.tmp", f".{manifest.name}.tmp")
        if any(path.name not in leftovers and not path.name.endswith(LOCK) for path in folder.iterdir()):
            raise FileExistsError(f"{str(folder)!r} holds files, but no {contents}; choose another folder.")
        write_json(manifest, description)
        return
    try:
        found = dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{str(manifest)!r} is damaged ({error}); remove {str(folder)!r}, or choose another."
        ) from error
    names = (found.keys() | description.keys()) - {"model"}
    pairs = {name: (found.get(name), description.get(name)) for name in sorted(names)}
    different = [f"{name} ({old!s:.12}, now {new!s:.12})" for name, (old, new) in pairs.items() if old != new]
    if different:
        advice = "choose another folder, or remove it"
        raise ValueError(f"{str(folder)!r} holds {contents} with other {', '.join(different)}; {advice}.")


def cache_key(description: dict[str, Any]) -> str:
    """16 hex digits of a description that JSON can hold."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of all weights and buffers of a module: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# Encoder fields that came after version 0.1, whose caches stay valid for encoders that do not use them
_LATER_FIELDS = ("image_tubelet_size", "modality_embeddings", "output_levels", "patch_stem", "rope_grid_size")


def used_fields(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The `fields` of a config without those that came later and are at their default: what a cache depends on."""
    return {
        name: value
        for name, value in fields.items()
        if name not in _LATER_FIELDS or value != getattr(type(config), name, None)
    }


def config_fingerprint(config: Any) -> str:
    """A hash of a model's config, without the fields that change no output: source, version and dtype."""
    fields = used_fields(config, json.loads(config.to_json_string(use_diff=False)))
    names = fields.keys() - {"transformers_version", "architectures", "auto_map", "dtype"}
    return cache_key({name: fields[name] for name in names if not name.startswith("_")})
