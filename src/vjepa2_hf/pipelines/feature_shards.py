"""Embeddings of many videos as parquet files, in parts that an interrupted run, or another job, completes.

plan = FeaturePlan(files, source_dir, out_dir, model="MODEL", pool="clip", num_shards=8)
extract_shard(plan, 3)                     # OUT_DIR/train-00003-of-00008-....parquet
finish(plan)                               # skipped.txt and the dataset card, once all shards are there
"""

from __future__ import annotations

import functools
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Features, List, Value
from filelock import FileLock
from tqdm.auto import tqdm

from ..configuration_vjepa2 import check
from ..data.dataset_card import write_dataset_card
from ..data.files import (
    LOCK,
    cache_key,
    claim_folder,
    config_fingerprint,
    locked,
    printable,
    weights_fingerprint,
    write_text,
)
from ..data.frame_source import FrameSource, saved_processor
from ..data.ingest import is_complete, name_of, names_digest
from ..data.parts import PartWriter
from ..modeling_encoder import VJepa2Encoder
from ..training.signals import StoppedBySignal, StopSignals
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .video_features import default_chunk_frames


logger = logging.getLogger(__name__)

MANIFEST = ".manifest.json"  # `datasets` ignores hidden files
PART_VIDEOS, PART_BYTES = 64, 2**26  # limits of a part: the work that an interruption can lose
_VECTOR = List(Value("float32"))
EMBEDDINGS = {"clip": _VECTOR, "frame": List(_VECTOR), "tokens": List(_VECTOR)}


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """The whole job, the same in each of its parts."""

    files: list[Path]
    source_dir: Path
    out_dir: Path
    model: str
    pool: str
    frames: int
    stride: int
    size: int | None
    batch_size: int
    num_shards: int = 1

    def files_of(self, shard: int) -> list[Path]:
        """The videos of a shard."""
        return self.files[shard :: self.num_shards]

    def prefix(self, shard: int) -> str:
        """What the names of a shard's files begin with."""
        return "train" if self.num_shards == 1 else f"train-{shard:05d}-of-{self.num_shards:05d}"

    def skipped(self, shard: int) -> Path:
        """The list of a shard's skipped files, written when the shard is complete."""
        return self.out_dir / f".{self.prefix(shard)}.skipped.txt"

    def missing(self, shards: Iterable[int]) -> list[int]:
        """The shards that are not complete."""
        return [shard for shard in shards if not self.skipped(shard).is_file()]


@dataclass
class Job:
    """A video in progress: its rows so far, the number of clips read, or the reason why it is skipped."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    clips: int = 0
    is_read: bool = False
    reason: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether every clip has its row, or the video is skipped."""
        return self.reason is not None or (self.is_read and len(self.rows) == self.clips)


def embed(encoder: VJepa2Encoder, processor: Any, plan: FeaturePlan, paths: Iterable[Path]) -> Iterator[Job]:
    """The videos in order, each with all its rows, or with the reason why it is skipped.

    A batch holds clips of one shape, possibly of several videos.
    """
    waiting: deque[Job] = deque()
    batch: list[tuple[Job, dict[str, Any], torch.Tensor]] = []

    def encode_batch() -> None:
        if batch:
            pixels = torch.stack([pixels for *_, pixels in batch]).to(device=encoder.device, dtype=encoder.dtype)
            embeddings = encoder.encode(pixels, pool=None if plan.pool == "tokens" else plan.pool)
            for (job, row, _), embedding in zip(batch, embeddings.float().cpu().numpy(), strict=True):
                job.rows.append({**row, "embedding": embedding})
            batch.clear()

    for path in paths:
        job = Job(path)
        waiting.append(job)
        clips = read_clips(path, processor, plan.frames, plan.stride, encoder.config.tubelet_size)
        while True:
            try:  # around the reading alone: an error of the model ends the run
                clip = next(clips, None)
            except (ValueError, OSError, MemoryError) as error:
                job.reason, clip = " ".join(str(error).split()) or "out of memory", None
                batch[:] = [entry for entry in batch if entry[0] is not job]
            if clip is None:
                job.is_read = True
                break
            job.clips += 1
            if batch and batch[0][2].shape != clip[1].shape:
                encode_batch()
            batch.append((job, *clip))
            if len(batch) == plan.batch_size:
                encode_batch()
        while waiting and waiting[0].is_done:
            yield waiting.popleft()
    encode_batch()
    yield from waiting


def read_clips(
    path: Path, processor: Any, frames: int, stride: int, tubelet_size: int
) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """The clips of a video: the columns of a row, and pixels (t, C, H, W) padded to whole tubelets."""
    source = FrameSource(path, processor, stride=stride)
    for number, (pixels, _) in enumerate(source.chunks(frames)):
        pixels = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % tubelet_size, -1, -1, -1)])
        first = number * frames * stride
        yield {"clip": number, "first_frame": first, "start": first / source.fps}, pixels


def part_writer(plan: FeaturePlan, shard: int, rank: int) -> PartWriter:
    """The parquet files of one process; their metadata names the videos in them."""
    numbers = {"clip": Value("int32"), "first_frame": Value("int32"), "start": Value("float64")}
    schema = Features({"path": Value("string"), **numbers, "embedding": EMBEDDINGS[plan.pool]}).arrow_schema

    def save(path: Path, jobs: list[Job]) -> None:
        names = {job.path: name_of(job.path, plan.source_dir) for job in jobs}
        rows = [(names[job.path], row) for job in jobs for row in job.rows]
        rows = [{"path": name, **row, "embedding": row["embedding"].tolist()} for name, row in rows]
        videos = json.dumps({names[job.path]: file_state(job.path) for job in jobs})
        with_videos = schema.with_metadata({**schema.metadata, b"videos": videos.encode()})
        pq.write_table(pa.Table.from_pylist(rows, schema=with_videos), path)

    pattern = f"{plan.prefix(shard)}-{rank:05d}-{{:05d}}.parquet"
    return PartWriter(plan.out_dir, pattern, save, PART_BYTES, PART_VIDEOS)


def file_state(path: Path) -> list[int]:
    """Size and modification time of a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def videos_done(plan: FeaturePlan, shard: int) -> dict[str, list[int]]:
    """The videos in a shard's parts, of all processes, with the states of their files."""
    found = {}
    for part in sorted(plan.out_dir.glob(f"{plan.prefix(shard)}-*.parquet")):
        found |= json.loads(pq.read_schema(part).metadata[b"videos"])
    return found


def videos_left(plan: FeaturePlan, shard: int) -> list[Path]:
    """The videos of a shard that no part holds; an embedded video that has changed is an error."""
    done = videos_done(plan, shard)
    states = {path: done.get(name_of(path, plan.source_dir)) for path in plan.files_of(shard)}
    for path, state in states.items():
        is_same = state is None or (path.is_file() and state == file_state(path))
        check(is_same, f"{str(path)!r} has changed since it was embedded; give another OUT_DIR, or remove it.")
    return [path for path, state in states.items() if state is None]


@functools.lru_cache(maxsize=1)  # a process may extract several shards
def load_model(model: str, device: torch.device) -> tuple[VJepa2Encoder, str]:
    """The encoder, and a hash of its weights."""
    encoder = VJepa2Encoder.from_pretrained(model).eval().to(device)
    return encoder, weights_fingerprint(encoder)


def load_processor(plan: FeaturePlan) -> VJepa2VideoProcessor:
    """The processor of `size`, or the model's."""
    if plan.size:
        return VJepa2VideoProcessor(size=plan.size, crop_size=plan.size)
    return saved_processor(plan.model, "a video")


def check_frames(model: str, frames: int | None, device: torch.device) -> int:
    """Kept frames per clip, by default the model's; the tubelet size must divide them."""
    encoder = load_model(model, device)[0]
    frames, tubelet = frames or default_chunk_frames(encoder), encoder.config.tubelet_size
    check(frames % tubelet == 0, f"--frames is {frames}; expected a multiple of the model's tubelet size, {tubelet}.")
    return frames


def describe(plan: FeaturePlan, device: torch.device) -> dict[str, Any]:
    """What the embeddings depend on, and how the files are split."""
    encoder, weights = load_model(plan.model, device)
    description = {
        "model": plan.model,
        "weights": weights,
        "config": config_fingerprint(encoder.config),
        "processor": cache_key(json.loads(load_processor(plan).to_json_string())),
        **{name: getattr(plan, name) for name in ("pool", "frames", "stride")},
        "source_dir": str(plan.source_dir.resolve()),
    }
    if plan.num_shards > 1:  # one job may find more videos when it continues; the parts of several would shift
        names = names_digest(name_of(path, plan.source_dir) for path in plan.files)
        description |= {"num_shards": plan.num_shards, "files": names}
    return description


def flushed_at_a_signal(jobs: Iterable[Job], parts: PartWriter, is_shown: bool) -> Iterator[Job]:
    """The jobs. While one is computed, a stop signal ends the program after the finished ones have been written."""
    signals = StopSignals("; finished videos are kept, repeat the command to continue")
    signals.is_silent = not is_shown
    try:
        for job in jobs:
            signals.deferred = True  # until the caller has added the job to its part
            yield job
            signals.end_program_at(signals.advice)
    except StoppedBySignal:
        signals.deferred = True
        parts.flush()
        raise
    finally:
        signals.restore()


def extract_shard(plan: FeaturePlan, shard: int, state: PartialState | None = None, progress: bool = False) -> int:
    """Embeds the videos of a shard that are left, on the processes of `state` (None: this one). Returns the shard.
    `progress`: of a script; shows a bar and handles stop signals."""
    state = state or PartialState(cpu=not torch.accelerator.is_available())
    encoder, processor = load_model(plan.model, state.device)[0], load_processor(plan)
    lock = LOCK if plan.num_shards == 1 else f".{plan.prefix(shard)}{LOCK}"
    with locked(plan.out_dir, state, name=lock):
        if state.is_main_process:
            with FileLock(plan.out_dir / f"{MANIFEST}{LOCK}"):  # of jobs that start at the same time
                claim_folder(plan.out_dir / MANIFEST, describe(plan, state.device))
        state.wait_for_everyone()
        left = videos_left(plan, shard)
        state.wait_for_everyone()  # nobody writes before all have looked
        mine = left[state.process_index :: state.num_processes]
        parts, skipped = part_writer(plan, shard, state.process_index), {}
        is_shown = progress and state.is_main_process
        jobs = embed(encoder, processor, plan, mine)
        jobs = tqdm(jobs, total=len(mine), unit="video", desc="embedding", disable=not is_shown)
        for job in flushed_at_a_signal(jobs, parts, is_shown) if progress else jobs:
            if job.reason is None:
                parts.add(job, sum(row["embedding"].nbytes for row in job.rows))
            else:
                name = name_of(job.path, plan.source_dir)
                skipped[name] = printable(job.reason)
                logger.warning("skipped %s: %s", name, job.reason)
        parts.flush()
        lines = sorted(gather_object([f"{name}\t{reason}\n" for name, reason in skipped.items()]))
        if state.is_main_process:
            write_text(plan.skipped(shard), "".join(lines))
        state.wait_for_everyone()
    return shard


def finish(plan: FeaturePlan) -> None:
    """Says what is missing; when nothing is, lists the skipped files of all shards and writes the dataset card."""
    every = range(plan.num_shards)
    if not is_complete(plan.missing(every), plan.num_shards, plan.out_dir):
        return
    lines = sorted(line for shard in every for line in plan.skipped(shard).read_text("utf-8").splitlines(True))
    list_of_skipped = plan.out_dir / "skipped.txt"
    write_text(list_of_skipped, "".join(lines))
    count = sum(len(videos_done(plan, shard)) for shard in every)
    check(count, f"None of the {len(plan.files)} files could be embedded, e.g. {''.join(lines[:1]).strip()!r}.")
    parts = sorted(plan.out_dir.glob("train-*.parquet"))
    rows = sum(pq.read_metadata(part).num_rows for part in parts)
    write_dataset_card(plan.out_dir, Features.from_arrow_schema(pq.read_schema(parts[0])), rows, "train-*.parquet")
    logger.info("%d videos are embedded in %s", count, plan.out_dir)
    if lines:
        logger.warning("%d of %d files skipped, listed in %s", len(lines), len(plan.files), list_of_skipped)
