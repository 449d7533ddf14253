"""Work on many files in parts that separate jobs do: file lists, job arrays, Ray Data.

    python SCRIPT ... --num_shards 400 --shard_index $SLURM_ARRAY_TASK_ID --resume

A part is one shard of the files. Every job makes the same list of files and takes its shards of it, so jobs need not
know of one another. The folder of results says which shards are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..configuration_vjepa2 import check
from .files import printable
from .shards import find_videos


logger = logging.getLogger(__name__)


def add_job_options(parser: argparse.ArgumentParser, num_shards: int, resume: str) -> None:
    """The options that split a script's work among jobs. `num_shards` is the default number of parts, `resume` the
    help of `--resume`."""
    group = parser.add_argument_group("splitting the work among jobs (docs/scale.md)")
    group.add_argument(
        "--num_shards", type=int, default=num_shards, help=f"parts of the whole job (default: {num_shards})"
    )
    group.add_argument(
        "--shard_index", type=int, nargs="+", metavar="I", help="parts of this job, from 0 (default: all)"
    )
    group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument(
        "--file_list", type=Path, metavar="FILE", help="paths of the videos, one per line, in place of a search"
    )
    group.add_argument(
        "--ray", action="store_true", help="run the parts as Ray Data tasks, on the cluster of RAY_ADDRESS"
    )


def check_job_options(args: argparse.Namespace) -> None:
    """Refuses counts and indices out of range."""
    check(args.num_shards > 0, f"--num_shards is {args.num_shards}, but it must be positive.")
    for index in args.shard_index or []:
        expected = f"expected 0 to {args.num_shards - 1} (--num_shards {args.num_shards})"
        check(0 <= index < args.num_shards, f"--shard_index is {index}; {expected}.")


def list_files(source_dir: Path, file_list: Path | None = None) -> list[Path]:
    """The video files below a folder, or those of a list with one path per line, absolute or relative to the folder.

    Empty lines and repeated paths count once; a file that does not exist is skipped when it is read.
    """
    if file_list is None:
        return find_videos(source_dir)
    if not file_list.is_file():
        raise FileNotFoundError(f"There is no file list at {str(file_list)!r}; give a text file with a path per line.")
    try:
        lines = file_list.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file_list)!r} is not a text file in UTF-8; give a path per line.") from error
    names = [line.strip() for line in lines if line.strip()]
    check(names, f"{str(file_list)!r} names no file; give a path per line.")
    unique = dict.fromkeys(Path(os.path.normpath(source_dir / name)) for name in names)
    if len(unique) < len(names):
        logger.warning("%s names %d files more than once; each is read once", file_list, len(names) - len(unique))
    return list(unique)


def name_of(path: Path, source_dir: Path) -> str:
    """A file's name in results: relative to the folder, or absolute if it lies elsewhere."""
    return printable(str(path.relative_to(source_dir)) if path.is_relative_to(source_dir) else str(path))


def names_digest(names: Iterable[str]) -> str:
    """16 hex digits that change with the names or their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def read_note(path: Path, name: str) -> Any:
    """A JSON note in the metadata of a parquet file; None if there is none, or no readable file."""
    try:
        return json.loads((pq.read_metadata(path).metadata or {})[name.encode()])
    except (KeyError, ValueError, OSError, pa.ArrowException):
        return None


def is_complete(missing: list[int], num_shards: int, out_dir: Path) -> bool:
    """Whether no shard of the whole job is missing; logs those that are."""
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        logger.info("%d of %d shards are in %s; missing: %s", num_shards - len(missing), num_shards, out_dir, shown)
    return not missing


def run_on_ray(function: Callable[[int], Any], shards: list[int], num_gpus: float = 0) -> Iterator[Any]:
    """The results of `function(shard)`, computed by Ray Data tasks of one CPU and `num_gpus` GPUs each, as they end.

    A cluster that runs already is used (RAY_ADDRESS), else the CPUs of this machine.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            '--ray needs the package ray, which is not installed: pip install "vjepa2-hf[ray]".'
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    done = rows.map(lambda row: {"result": function(row["shard"])}, num_cpus=1, num_gpus=num_gpus)
    try:
        for row in done.iter_rows():
            yield row["result"]
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OSError(f"A Ray task failed ({reason}); repeat the command with --resume.") from error
