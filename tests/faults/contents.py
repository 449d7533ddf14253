"""What a job has left in its folder, compared with what the undisturbed one has left."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from faults.jobs import Job
from safetensors import safe_open

from vjepa2_hf.data.feature_cache import PART_NOTE, STEP_COLUMNS


CLOCK = ("clips_per_second", "data_wait", "windows_per_second", "seconds")
KEPT = {"run/notes.txt": b"mine\n", "run/work.tmp/keep.txt": b"mine\n", "run/weights.tmp": b"mine\n", "mine.tmp": b"m"}


def plant(folder: Path, job: Job) -> None:
    """Files of the user in a job's folder."""
    for name, data in KEPT.items():
        if job.is_training or not name.startswith("run/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def lost_files(folder: Path, job: Job) -> list[str]:
    """Planted files that are gone or changed."""
    wrong = []
    for name, data in KEPT.items():
        path = folder / name
        if (job.is_training or not name.startswith("run/")) and not (path.is_file() and path.read_bytes() == data):
            wrong.append(f"the user's {name} was touched")
    return wrong


def results(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what it says: without what depends on the clock, and pickles by value (two pickles
    of equal objects may refer to equal parts of them in other ways). Parts of features are joined: which process has
    written which part, and how many there are, is not part of the result."""
    found: dict[str, bytes] = {}
    parts: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.endswith((".lock", "final/README.md")) or name in KEPT:
            continue
        read = READERS.get(next((start for start in READERS if path.name.startswith(start)), ""))
        try:
            parts.setdefault(f"{path.parent.name}/parts", {}).update(read(path) if read else {})
        except Exception:  # of any type, for a damaged file
            read = None
        if read is None:
            found[name] = content(path)
    return found | {name: json.dumps(joined, sort_keys=True).encode() for name, joined in parts.items() if joined}


def _read_cache_part(path: Path) -> dict[str, str]:
    """The tensors of each episode of a feature cache's part."""
    found: dict[str, str] = {}
    with safe_open(path, framework="pt") as file:
        episodes, frame = json.loads(file.metadata()[PART_NOTE]), 0
        for number, episode in enumerate(episodes):
            for name in sorted(file.keys()):  # noqa: SIM118 (no dict)
                first = frame - number if name in STEP_COLUMNS else frame
                rows = file.get_tensor(name)[first : first + episode["length"] - (name in STEP_COLUMNS)]
                found[f"{episode['id']} {name}"] = "\n".join(_lines(rows, ""))
            frame += episode["length"]
    return found


def _read_feature_rows(path: Path) -> dict[str, str]:
    """The rows of one of extract_features.py's files."""
    rows = pq.read_table(path).to_pylist()
    return {f"{row['path']} {row['clip']}": repr(row) for row in rows}


READERS = {"part-": _read_cache_part, "train-": _read_feature_rows}


def content(path: Path) -> bytes:
    """What a file says, see `results`."""
    data = path.read_bytes()
    with contextlib.suppress(Exception):  # of any type, for a damaged file
        if path.suffix in (".pt", ".pkl", ".bin"):
            value = torch.load(io.BytesIO(data), weights_only=False)
            if path.name.startswith("random_states"):
                value.pop("step", None)  # micro-batches of this process since its start
            return "\n".join(_lines(value, "")).encode()
        if path.name == "digests.json":  # of the pickles' bytes
            return " ".join(sorted(map(str, json.loads(data)))).encode()
        if path.name == "training_step.json":  # its digests are of files that are compared themselves, or of the card
            return str(json.loads(data)["step"]).encode()
        if path.name == "index.json":  # of a feature cache
            index = json.loads(data)
            episodes = {name: index["episodes"][name] for name in ("id", "length", "fps")}
            return json.dumps([index["description"], episodes, index["skipped"]]).encode()
        if path.suffix in (".json", ".jsonl"):
            objects = [json.loads(line) for line in (data.splitlines() if path.suffix == ".jsonl" else [data])]
            kept = [
                {name: value for name, value in one.items() if name not in CLOCK} if isinstance(one, dict) else one
                for one in objects
            ]
            return json.dumps(kept).encode()
    return data


def _lines(value: Any, name: str) -> Iterator[str]:
    """The leaves of nested values, one line each."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _lines(value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        yield f"{name} {type(value).__name__} {len(value)}"
        for number, one in enumerate(value):
            yield from _lines(one, f"{name}.{number}")
    elif isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        yield f"{name} {array.dtype} {array.shape} {array.tobytes().hex()}"
    else:
        yield f"{name} {value!r}"


def differences(folder: Path, reference: dict[str, bytes]) -> list[str]:
    """How a folder's results differ from those of the run that nothing happened to."""
    found = results(folder)
    names = sorted(found.keys() ^ reference.keys())
    wrong = [f"{name} is {'missing' if name in reference else 'left over'}" for name in names]
    return wrong + [
        f"{name} differs" for name in sorted(found.keys() & reference.keys()) if found[name] != reference[name]
    ]


CHECKPOINT = re.compile(r"run/checkpoint-(\d+)/(.+)")


def whole_checkpoints(folder: Path, known: dict[str, bytes]) -> list[int]:
    """Steps of the checkpoints that are there with every byte of `known`, the checkpoints of a run that kept all."""
    expected: dict[int, set[str]] = {}
    for name in known:
        if match := CHECKPOINT.fullmatch(name):
            expected.setdefault(int(match[1]), set()).add(name)
    return [
        step
        for step, names in sorted(expected.items())
        if all((folder / name).is_file() and content(folder / name) == known[name] for name in names)
    ]
