"""What kept results depend on: hashes of weights, settings and files; and files that appear whole or not at all."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


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
