"""The log of skipped data, `skipped.jsonl` in a run's folder: one object per row or shard, each once.

    {"step": 12, "source": "runs/shards", "name": "runs/shards/data-00001.parquet, row 3", "reason": "it has ..."}

`ClipStream` reports skipped rows with the next clip, so the log depends on the step alone: a resumed run logs the
same. Each process writes its own file (`skipped-<rank>.jsonl`, the main process `skipped.jsonl`); `merge` joins them
at the end of the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import write_text


class SkipLog:
    """The log of one process. Entries after `last_step` are dropped, because a resumed run logs them again.

    Given `world_size`, the main process removes the logs of an abandoned run with more processes.
    """

    def __init__(
        self, output_dir: str | os.PathLike, last_step: int = 0, rank: int = 0, world_size: int | None = None
    ):
        self.output_dir = Path(output_dir)
        self.path = self.output_dir / (f"skipped-{rank}.jsonl" if rank else "skipped.jsonl")
        if rank == 0 and world_size is not None:
            for path in self.output_dir.glob("skipped-*.jsonl"):
                number = path.stem.partition("-")[2]
                if number.isdigit() and int(number) >= world_size:  # of no process of this run
                    path.unlink()
        known = [entry for entry in _read(self.path) if entry["step"] <= last_step] if self.path.exists() else []
        self._known = {(entry["source"], entry["name"]) for entry in known}
        _write(self.path, known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, step: int, lines: Iterable[str]) -> None:
        """Appends the new entries of `lines` (`skipped` of `MaskCollator`), skipped before the batch of `step`."""
        for line in lines:
            entry = json.loads(line)
            if (entry["source"], entry["name"]) not in self._known:
                self._known.add((entry["source"], entry["name"]))
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **entry}) + "\n")

    def merge(self) -> None:
        """Joins the logs of all processes in `skipped.jsonl`; for the main process, after the others."""
        parts = list(self.output_dir.glob("skipped-*.jsonl"))
        if parts:
            _write(self.output_dir / "skipped.jsonl", read_skipped(self.output_dir))
        for part in parts:
            part.unlink()


def read_skipped(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of all processes by step, each row or shard once."""
    folder, found = Path(output_dir), {}
    paths = [*folder.glob("skipped.jsonl"), *sorted(folder.glob("skipped-*.jsonl"))]
    entries = [entry for path in paths for entry in _read(path)]
    for entry in sorted(entries, key=lambda entry: entry["step"]):
        found.setdefault((entry["source"], entry["name"]), entry)
    return list(found.values())


def _read(path: Path) -> list[dict[str, Any]]:
    entries = []
    # An interruption can leave an incomplete last line
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        types = [type(entry.get(key)) for key in ("step", "source", "name")] if isinstance(entry, dict) else []
        if types != [int, str, str]:
            raise ValueError(f"Line {number} of {str(path)!r} is not an entry of a skip log: {line!r:.80}; remove it.")
        entries.append(entry)
    return entries


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes the entries; without entries, removes the file."""
    if entries:
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        path.unlink(missing_ok=True)
