"""The files in the folder of a run: reads and cuts its `metrics.jsonl`, removes what an interrupted run left, and
refuses a folder whose files are a user's.

    refuse_files_of_others("runs/mine", started=False)
    truncate_metrics("runs/mine/metrics.jsonl", last_step=500)
    for line in iterate_metrics("runs/mine"): ...
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..data.files import PARTIAL_SUFFIX, remove_folder
from .settings import dump_yaml, read_yaml


logger = logging.getLogger(__name__)

CONFIG, METRICS, OFFENDING = "config.yaml", "metrics.jsonl", "offending_batch.json"
FINAL_STEP = "training_step.json"  # in `final/`
SKIP_LOGS = re.compile(r"skipped(-[0-9]+)?\.jsonl")
# What a killed run leaves in its folder; a user may keep other files and folders named `*.tmp` there
PARTIAL_FOLDERS = re.compile(rf"(checkpoint-\d+|final)(\.old)?{re.escape(PARTIAL_SUFFIX)}")
PARTIAL_FILES = re.compile(
    r"\.(config\.yaml|metrics\.jsonl|offending_batch\.json|skipped(-\d+)?\.jsonl)" + re.escape(PARTIAL_SUFFIX)
)
_BLOCK = 2**16  # bytes read at once from the end of a file


def metrics_of(line: bytes) -> dict[str, Any] | None:
    """The object in a line of `metrics.jsonl`; None for a line that a run does not write."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int else None


def iterate_metrics(output_dir: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The objects of a run's `metrics.jsonl`, in order, one at a time. A warning names the first line of other
    origin; these lines are left out."""
    path, warned = Path(output_dir) / METRICS, False
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            found = metrics_of(line)
            if found is not None:
                yield found
            elif line.strip() and not warned:
                warned = True
                logger.warning("left out line %d of %s, which is not a metrics object: %.80r", number, path, line)


def read_metrics(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a run's `metrics.jsonl`, see `iterate_metrics`."""
    return list(iterate_metrics(output_dir))


def truncate_metrics(path: str | os.PathLike, last_step: int) -> None:
    """Drops the lines of a `metrics.jsonl` after `last_step`, and a line that a killed run left half written.

    It is read from the end up to the last line that stays. Lines of other origin stay too.
    """
    path = Path(path)
    if not path.exists():
        return
    others: list[bytes] = []  # lines of other origin after `cut`, from the last one
    with open(path, "r+b") as file:
        size = cut = file.seek(0, os.SEEK_END)
        for start, line in _lines_from_the_end(file):
            found, whole = metrics_of(line), line.endswith(b"\n")
            if found is not None and found["step"] <= last_step and whole:
                break
            cut = start
            if found is None and whole and line.strip(b"\0\n"):
                others.append(line)
            elif found is None:
                logger.warning("dropped a line of %s that was left half written: %.80r", path, line)
        if cut < size:
            file.seek(cut)
            file.writelines(reversed(others))
            file.truncate()


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its end) of each line, from the last to the first."""
    begin, pieces = file.seek(0, os.SEEK_END), []  # pieces of a line that starts in an earlier block, from its end
    while begin > 0:
        size = min(_BLOCK, begin)
        begin -= size
        file.seek(begin)
        block = file.read(size)
        if pieces and block.endswith(b"\n"):
            yield begin + size, b"".join(reversed(pieces))
            pieces = []
        lines = block.split(b"\n")
        lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
        offset = begin + size
        for line in reversed(lines):
            offset -= len(line)
            pieces.append(line)
            if offset > begin:
                yield offset, b"".join(reversed(pieces))
                pieces = []
    if pieces:
        yield 0, b"".join(reversed(pieces))


def remove_partial_writes(output_dir: str | os.PathLike) -> None:
    """Removes the files and folders of an interrupted run, and nothing that this package does not write."""
    for path in Path(output_dir).glob("*" + PARTIAL_SUFFIX):
        if path.is_symlink():
            continue
        if path.is_dir() and PARTIAL_FOLDERS.fullmatch(path.name):
            remove_folder(path)
        elif path.is_file() and PARTIAL_FILES.fullmatch(path.name):
            path.unlink()


def skip_logs(output_dir: str | os.PathLike) -> list[Path]:
    """The logs of skipped data of all processes."""
    return [path for path in Path(output_dir).glob("skipped*.jsonl") if SKIP_LOGS.fullmatch(path.name)]


def refuse_files_of_others(output_dir: str | os.PathLike, started: bool, results: Iterable[str] = ()) -> None:
    """Raises a ValueError if a run in this folder would overwrite, cut or remove a file that no run has written.

    The files of a run have its names, and lie beside its checkpoints (`started`) or its `config.yaml`. `results` are
    the names of files that the script writes at its end.
    """
    folder = Path(output_dir)
    offending, final = folder / OFFENDING, folder / "final"
    taken = [offending] if os.path.lexists(offending) and not _is_offending_batch(offending) else []
    if not started and not _is_run_config(folder / CONFIG):
        names = (folder / name for name in (CONFIG, METRICS, OFFENDING, final.name, *results))
        taken = [path for path in (*names, *skip_logs(folder)) if os.path.lexists(path)]
    if taken:
        names = ", ".join(path.name for path in taken)
        raise ValueError(
            f"{str(folder)!r} holds {names}, which no run in this folder has written and a new run would overwrite; "
            "choose another output_dir, like output_dir=runs/mine, or move what is there."
        )
    if not started and (final / FINAL_STEP).exists():  # a model without steps, such as k-NN, has no checkpoints
        raise ValueError(
            f"{str(folder)!r} holds final, but no checkpoint to continue from, and a new run would replace final; "
            "choose another output_dir, or move final."
        )


def _is_run_config(path: Path) -> bool:
    """Whether a file is exactly what a run writes: all settings, without a comment."""
    try:
        values = read_yaml(path)
        complete = {"output_dir", "max_steps", "log_every", "save_every", "resume", "seed"} <= values.keys()
        return complete and dump_yaml(values) == path.read_text(encoding="utf-8")
    except (ValueError, OSError):
        return False


def _is_offending_batch(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(found, dict) and {"step", "loss", "gradient_norm", "batches"} <= found.keys()
