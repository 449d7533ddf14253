"""Transcoding of video files to parquet shards, one shard at a time, in one process or in many jobs.

plan = ShardPlan(files, source_dir, out_dir, height=256, num_shards=400, described=describe_files(source_dir, names))
make_shard(plan, 7)                        # OUT_DIR/data-00007-of-00400.parquet
finish(plan)                               # dataset card and list of skipped files, once all shards are there
"""

from __future__ import annotations

import collections
import functools
import json
import logging
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value, Video

from ..video_io import VideoDecodeError
from . import ingest
from .dataset_card import write_dataset_card
from .files import PARTIAL_SUFFIX, printable, write_aside, write_text, writing
from .labels import FileLabels
from .shards import write_parquet
from .video_writing import transcode_video


logger = logging.getLogger(__name__)

CHECKED_FILES = 16  # of each shard, whose sizes must stay the same when a job continues
COLUMNS = {
    "video": Video(decode=False),
    "path": Value("string"),
    "fps": Value("float32"),
    "num_frames": Value("int32"),
}
# of `ShardPlan.description`, in messages
DESCRIBED = {"num_files": "number of videos", "files_in_order": "videos or another order of them"}


@dataclass(frozen=True)
class ShardPlan:
    """The whole job, the same in each of its parts."""

    files: list[Path]
    """In the order of the rows."""
    source_dir: Path
    out_dir: Path
    height: int
    num_shards: int
    described: FileLabels
    """Labels and splits of the files."""

    @functools.cached_property
    def label_columns(self) -> dict[str, tuple[Any, list]]:
        """The feature and the values by file of `label`, if there are several, and of `split`."""
        columns, classes = {}, self.described.classes
        if len(classes) > 1:
            numbers = Value("int64" if all(isinstance(label, int) for label in classes) else "float64")
            feature = ClassLabel(names=classes) if isinstance(classes[0], str) else numbers
            columns["label"] = feature, self.described.labels
        if any(self.described.splits):
            columns["split"] = Value("string"), self.described.splits
        return columns

    @property
    def features(self) -> Features:
        """Columns of the shards."""
        return Features(COLUMNS | {name: feature for name, (feature, _) in self.label_columns.items()})

    def labels_of(self, shard: int) -> list[dict[str, Any]]:
        """The columns of `label_columns` of each of the shard's files."""
        columns = {name: values[shard :: self.num_shards] for name, (_, values) in self.label_columns.items()}
        return [{name: values[i] for name, values in columns.items()} for i in range(len(self.files_of(shard)))]

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What the shards depend on."""
        inputs = [ingest.name_of(path, self.source_dir) for path in self.files]
        names = ingest.names_digest(inputs)
        pairs = {name: sorted(zip(inputs, map(str, values))) for name, (_, values) in self.label_columns.items()}
        labels = {name: ingest.names_digest(map("\n".join, values)) for name, values in pairs.items()}
        settings = {"num_shards": self.num_shards, "height": self.height, "labels": labels}
        return {**settings, "num_files": len(self.files), "files_in_order": names}

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.out_dir / f"data-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def files_of(self, shard: int) -> list[Path]:
        """The videos of a shard."""
        return self.files[shard :: self.num_shards]

    def missing(self, shards: Iterable[int]) -> list[int]:
        """The shards that are not written yet."""
        return [shard for shard in shards if not self.path(shard).is_file()]


def sizes_of(files: Iterable[Path]) -> list[int]:
    """Bytes of files; -1 for one that is missing."""
    return [path.stat().st_size if path.is_file() else -1 for path in files]


def transcode(job: tuple[Path, int]) -> tuple[Path, tuple[bytes, int, float] | None, str]:
    """One file: path, (mp4, frames, fps) or None, and the reason for skipping it."""
    path, height = job
    try:
        return path, transcode_video(path, height=height), ""
    except av.FFmpegError as error:  # of encoding; decoding raises VideoDecodeError
        reason = f"it cannot be encoded at a height of {height} pixels ({error})"
    except (VideoDecodeError, OSError) as error:
        reason = str(error)
    return path, None, printable(" ".join(reason.split()))


def run_in_order(jobs: list, num_proc: int) -> Iterator:
    """Runs `transcode` on the jobs in several processes, in order, with few results in memory."""
    if num_proc == 1 or len(jobs) < 2:
        yield from map(transcode, jobs)
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["vjepa2_hf.data.shards"])  # imported once for all processes
    with ProcessPoolExecutor(num_proc, mp_context=context) as pool:
        waiting = collections.deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(transcode, job))
                if len(waiting) > 2 * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OSError("A worker process died, perhaps out of memory; try a smaller --num_proc.") from error
        finally:
            for future in waiting:
                future.cancel()


def write_shard(plan: ShardPlan, shard: int, results: Iterator) -> None:
    """Writes one shard from the next results, one for each of its files, with the names of the skipped ones."""
    skipped: dict[str, str] = {}

    def rows() -> Iterator[dict]:
        for columns in plan.labels_of(shard):
            path, encoded, reason = next(results)
            name = ingest.name_of(path, plan.source_dir)
            if encoded is None:
                skipped[name] = reason
                logger.warning("skipped %s: %s", name, reason)
                continue
            mp4, num_frames, fps = encoded
            row = {"video": {"bytes": mp4, "path": None}, "path": name, "fps": fps, "num_frames": num_frames}
            yield row | columns

    path = plan.path(shard)
    with writing(path, "run the same command with --resume"), write_aside(path, unique=True) as partial:
        sizes = sizes_of(plan.files_of(shard)[:CHECKED_FILES])
        note = {"job": plan.description, "sizes": sizes, "skipped": skipped}  # filled while rows are read
        write_parquet(rows(), partial, plan.features, lambda: {name: json.dumps(part) for name, part in note.items()})


def make_shard(plan: ShardPlan, shard: int) -> int:
    """Transcodes and writes one shard in this process."""
    write_shard(plan, shard, map(transcode, [(path, plan.height) for path in plan.files_of(shard)]))
    return shard


def check_out_dir(plan: ShardPlan, may_hold_shards: bool) -> None:
    """Refuses a folder of other files, and of shards that were made from other files or with other settings."""
    out_dir = plan.out_dir
    if out_dir.exists() and not (out_dir.is_dir() and (may_hold_shards or not any(out_dir.iterdir()))):
        raise FileExistsError(
            f"{str(out_dir)!r} exists and is not empty; choose another output folder, remove it, or continue an "
            "interrupted job with --resume."
        )
    for path in sorted(out_dir.glob("*.parquet")):
        found = ingest.read_note(path, "job")
        if found != plan.description:
            named = [name for name in plan.description if (found or {}).get(name) != plan.description[name]]
            shown = ", ".join(DESCRIBED.get(name, name) for name in named)
            raise ValueError(
                f"{str(path)!r} is of a job with other {shown}; repeat that job's command, or choose another OUT_DIR."
            )
    for shard in range(plan.num_shards):
        files, path = plan.files_of(shard)[:CHECKED_FILES], plan.path(shard)
        before = ingest.read_note(path, "sizes") if path.is_file() else None
        changed = [file for file, was, now in zip(files, before or (), sizes_of(files)) if was != now]
        if changed:
            raise ValueError(
                f"{str(path)!r} was made from another {str(changed[0])!r}, of another size: give the same videos, or "
                "choose another OUT_DIR."
            )


def finish(plan: ShardPlan) -> None:
    """Says what is missing; when nothing is, writes the dataset card and lists the skipped files of all shards."""
    every = range(plan.num_shards)
    if not ingest.is_complete(plan.missing(every), plan.num_shards, plan.out_dir):
        return
    check_out_dir(plan, may_hold_shards=True)  # jobs that started together could not see each other
    for partial in plan.out_dir.glob(f".data-*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)  # of killed jobs
    skipped, count = {}, 0
    for shard in every:
        skipped |= ingest.read_note(plan.path(shard), "skipped")
        count += pq.read_metadata(plan.path(shard)).num_rows
    if not count:
        name, reason = next(iter(skipped.items()))
        for shard in every:
            plan.path(shard).unlink()
        plan.out_dir.rmdir()
        raise ValueError(f"None of the {len(skipped)} inputs is valid, e.g. {name}: {reason}")
    write_dataset_card(plan.out_dir, plan.features, count)
    write_text(plan.out_dir / "skipped.txt", "".join(f"{name}\t{why}\n" for name, why in sorted(skipped.items())))
    logger.info("%d rows written to %s", count, plan.out_dir)
    if skipped:
        path = plan.out_dir / "skipped.txt"
        logger.warning("%d of %d inputs skipped, listed in %s", len(skipped), count + len(skipped), path)
