"""What an evaluation was run on: its tasks with checksums of their images, versions, hardware, and training data.

tasks = describe_tasks(batches)
checksum = settle_manifest(Path("runs/plan/manifest.json"), {"env": ..., "tasks": tasks, ...}, given=None)
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow.parquet
import torch

from ..data import files
from ..data.shard_files import files_in
from ..training.settings import read_yaml
from .tasks import TaskBatch


logger = logging.getLogger(__name__)

# Of the config of a training run
TRAINING_KEYS = ("data", "max_episodes", "validation_fraction", "seed", "frame_skip", "encoder")
COMPARED = {"start_sha256": "start image", "goal_sha256": "goal image"}


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an image (H, W, 3): its shape and bytes."""
    return hashlib.sha256(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def describe_tasks(batches: Iterable[TaskBatch]) -> list[dict[str, Any]]:
    """For each task where it comes from, whether its start solves it, states of start and goal and their images."""
    tasks = []
    for batch in batches:
        starts, states, goals = batch.render(), batch.states, batch.goal_states
        for number, source in enumerate(batch.sources):
            task = {**source, "solved_at_start": bool(batch.solved[number])}
            for name, values in (("start", states), ("goal", goals)):
                task[name] = None if values is None else values[number].tolist()
            sums = {"start_sha256": checksum(starts[number]), "goal_sha256": checksum(batch.goal_images[number])}
            tasks.append({**task, **sums})
    return tasks


def settle_manifest(path: Path, manifest: dict[str, Any], given: str | None) -> str:
    """Writes the manifest, unless it is there with the same settings and tasks; returns the SHA-256 of its tasks.

    Args:
        manifest: `settings`, `tasks` (lists by group) and `versions`.
        given: manifest whose tasks these must be.

    Raises:
        ValueError: a task differs from that in `given`, or from one of the same settings at `path`.
    """
    if given is not None:
        _compare(_read(Path(given)), manifest, given)
    known = _read(path) if path.is_file() else None
    if known is not None and known["settings"] == json.loads(json.dumps(manifest["settings"])):
        _compare(known, manifest, str(path))
    # With other levels of success, other tasks may be solved at their start
    if known is None or any(known[name] != json.loads(json.dumps(manifest[name])) for name in ("settings", "tasks")):
        files.write_json(path, manifest)
    return hashlib.sha256(json.dumps(manifest["tasks"], sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"The manifest {str(path)!r} does not exist; give one that examples/plan.py wrote.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = {name: dict(manifest[name]) for name in ("settings", "tasks", "versions")}
        return {**found, "tasks": {group: [dict(task) for task in tasks] for group, tasks in found["tasks"].items()}}
    except (ValueError, KeyError, TypeError) as error:
        advice = "give another, or remove it"
        raise ValueError(f"{str(path)!r} is no manifest of examples/plan.py ({error}); {advice}.") from error


def _compare(known: dict[str, Any], manifest: dict[str, Any], path: str) -> None:
    """Refuses other tasks than the known ones, and names the first that differs."""
    versions = {name: (old, manifest["versions"].get(name)) for name, old in known["versions"].items()}
    changed = [f"{name} {old}, now {new}" for name, (old, new) in versions.items() if old != new]
    versions = f" Changed versions: {'; '.join(changed)}." if changed else ""
    advice = f"run with the environment and settings of {path!r}, or without it.{versions}"
    for group, tasks in manifest["tasks"].items():
        before = known["tasks"].get(group)
        if before is None or len(before) != len(tasks):
            count = "no tasks" if before is None else f"{len(before)} tasks"
            raise ValueError(f"The manifest {path!r} has {count}{group}, but this run {len(tasks)}: {advice}")
        for number, (old, new) in enumerate(zip(before, tasks, strict=True)):
            names = [label for key, label in COMPARED.items() if old.get(key) != new[key]]
            if names:
                which = f"Task {number}{group} (seed {new['seed']})"
                raise ValueError(f"{which} has another {' and '.join(names)} than in {path!r}: {advice}")


def find_versions(env_id: str) -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, with that of the environment."""
    names = {"vjepa2-hf", "gymnasium", "torch", "transformers", "numpy"}
    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    entry = "" if spec is None else spec.entry_point  # an id without its version is not found
    module = re.split("[.:]", entry if isinstance(entry, str) else entry.__module__)[0]
    names |= set(importlib.metadata.packages_distributions().get(module, []))
    found = {"python": platform.python_version()}
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # used from its source folder
            found[name] = "not installed"
    return found


def find_hardware(device: str | None) -> dict[str, Any]:
    """Processor, its cores, threads of torch, and the accelerator if there is one."""
    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    found = {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": device}
    if torch.cuda.is_available() and device != "cpu":
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def describe_folder(path: str) -> dict[str, Any]:
    """A digest of the files of a folder; of episode shards also their number and how they were recorded."""
    if not os.path.isdir(path):
        return {"path": path}
    listed = sorted(file for file in map(Path, files_in(path)) if file.is_file())
    digest = hashlib.sha256()
    for file in listed:
        digest.update(f"{file.relative_to(path)} {file.stat().st_size} ".encode("utf-8", "surrogateescape"))
        digest.update(_ends(file))
    found = {"path": path, "digest": digest.hexdigest()}
    try:
        shards = [pyarrow.parquet.ParquetFile(file) for file in listed if file.suffix == ".parquet"]
        if shards:
            found["episodes"] = sum(shard.metadata.num_rows for shard in shards)
            found |= recording_of(shards[0])
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:  # such as training data damaged since
        logger.warning("%s holds a damaged shard (%s), so its episodes are not described", path, type(error).__name__)
    return found


def recording_of(shard: pyarrow.parquet.ParquetFile) -> dict[str, Any]:
    """`recording`: how `examples/record_episodes.py` recorded the shard (`env`, `policy`, …); {} if unknown."""
    if "recording" not in shard.schema_arrow.names or not shard.metadata.num_rows:
        return {}
    first = next(shard.iter_batches(1, columns=["recording"])).column(0)[0].as_py()
    return {"recording": json.loads(first) if first else None}


def _ends(file: Path) -> bytes:
    """The first and the last MiB of a file, where shards hold their statistics: data may be large."""
    with open(file, "rb") as opened:
        first = opened.read(2**20)
        opened.seek(max(len(first), file.stat().st_size - 2**20))
        return first + opened.read()


def describe_training(model: str) -> dict[str, Any]:
    """Settings and data of the run that trained a model, from its `config.yaml`; {} without one."""
    path = Path(model).parent / "config.yaml"
    settings = read_yaml(path) if path.is_file() else {}
    found = {name: settings[name] for name in TRAINING_KEYS if name in settings}
    data = found.get("data")
    sources = data if isinstance(data, list) else [data]
    sources = [source.get("path") if isinstance(source, dict) else source for source in sources]
    return found | {"sources": [describe_folder(source) for source in sources if isinstance(source, str)]}
