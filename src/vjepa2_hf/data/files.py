"""Results kept in a folder: hashes of what they depend on, a manifest that names it, files that appear whole or not at
all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn


LOCK = ".lock"


def cache_key(description: dict[str, Any]) -> str:
    """16 hex digits of a description that JSON can hold."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of all weights and buffers of a module: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def config_fingerprint(config: Any) -> str:
    """A hash of a model's config, without what does not change what the model computes: where it was loaded from, the
    version that wrote it, its dtype."""
    fields = json.loads(config.to_json_string(use_diff=False))
    names = fields.keys() - {"transformers_version", "architectures", "auto_map", "dtype"}
    return cache_key({name: fields[name] for name in names if not name.startswith("_")})


def publish(partial: Path, whole: Path) -> None:
    """Gives a file its final name after its bytes have reached the disk."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, whole)


def write_json(path: Path, value: Any) -> None:
    """JSON, written aside and renamed."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    publish(partial, path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder that no other process writes to meanwhile.

    Raises:
        OSError: another one does.
    """
    try:
        with FileLock(folder / LOCK, blocking=False):
            yield
    except Timeout as error:
        raise OSError(f"Another process writes to {str(folder)!r}; wait for it, or stop it.") from error


def claim_folder(manifest: Path, description: dict[str, Any], contents: str = "features") -> None:
    """Writes the manifest of a new folder; passes one that belongs to the same.

    Args:
        manifest: its path in the folder.
        description: what the results depend on; "model" is for people to read and not compared.
        contents: what the folder holds, in the errors.

    Raises:
        FileExistsError: the folder holds files, but no manifest.
        ValueError: it belongs to something else.
    """
    folder = manifest.parent
    if not manifest.is_file():
        if any(path.name not in (LOCK, f"{manifest.name}.tmp") for path in folder.iterdir()):
            raise FileExistsError(f"{str(folder)!r} holds files, but no {contents}; choose another folder.")
        write_json(manifest, description)
        return
    found = json.loads(manifest.read_text(encoding="utf-8"))
    names = (found.keys() | description.keys()) - {"model"}
    different = sorted(name for name in names if found.get(name) != description.get(name))
    if different:
        raise ValueError(
            f"{str(folder)!r} holds {contents} with other "
            + ", ".join(f"{name} ({found.get(name)!s:.12}, now {description.get(name)!s:.12})" for name in different)
            + "; choose another folder, or remove it."
        )
