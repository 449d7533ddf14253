"""Embeds a folder of videos as parquet files, which `datasets` loads.

    python examples/extract_features.py MODEL SOURCE_DIR OUT_DIR [--pool clip|frame|tokens] [--batch_size 8]
    torchrun --nproc_per_node 2 examples/extract_features.py MODEL SOURCE_DIR OUT_DIR     # several processes

    rows = datasets.load_dataset("OUT_DIR", split="train")

MODEL is a folder or Hub id that holds an encoder and a processor. SOURCE_DIR is searched recursively. Each video is
cut into consecutive clips of `--frames` frames; the last clip may be shorter. Each clip is a row with `path`, `clip`
(its index in the video), `first_frame`, `start` (seconds) and `embedding`: one vector with `--pool clip`, one vector
per time step with "frame", all tokens with "tokens". Unreadable files are listed in OUT_DIR/skipped.txt. Repeat the
command to continue an interrupted run, with any number of processes.
"""

import argparse
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object
from datasets import Features, List, Value
from tqdm.auto import tqdm

from vjepa2_hf import VJepa2Encoder, VJepa2VideoProcessor
from vjepa2_hf.configuration_vjepa2 import check
from vjepa2_hf.data.files import cache_key, claim_folder, config_fingerprint, locked, weights_fingerprint, write_text
from vjepa2_hf.data.frame_source import FrameSource, saved_processor
from vjepa2_hf.data.parts import PartWriter
from vjepa2_hf.data.shards import find_videos
from vjepa2_hf.pipelines.video_features import default_chunk_frames
from vjepa2_hf.training.processes import build_state
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model


logger = logging.getLogger("extract_features")

MANIFEST = ".manifest.json"  # `datasets` ignores hidden files
PART_VIDEOS, PART_BYTES = 64, 2**26  # limits of a part: the work that an interruption can lose
_VECTOR = List(Value("float32"))
EMBEDDINGS = {"clip": _VECTOR, "frame": List(_VECTOR), "tokens": List(_VECTOR)}


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
        return self.reason is not None or (self.is_read and len(self.rows) == self.clips)


def embed(encoder: VJepa2Encoder, processor: Any, args: argparse.Namespace, paths: Iterable[Path]) -> Iterator[Job]:
    """The videos in order, each with all its rows, or with the reason why it is skipped.

    A batch holds clips of one shape, possibly of several videos.
    """
    waiting: deque[Job] = deque()
    batch: list[tuple[Job, dict[str, Any], torch.Tensor]] = []

    def encode_batch() -> None:
        if batch:
            pixels = torch.stack([pixels for *_, pixels in batch]).to(device=encoder.device, dtype=encoder.dtype)
            embeddings = encoder.encode(pixels, pool=None if args.pool == "tokens" else args.pool)
            for (job, row, _), embedding in zip(batch, embeddings.float().cpu().numpy(), strict=True):
                job.rows.append({**row, "embedding": embedding})
            batch.clear()

    for path in paths:
        job = Job(path)
        waiting.append(job)
        clips = read_clips(path, processor, args.frames, args.stride, encoder.config.tubelet_size)
        while True:
            try:  # around the reading alone: an error of the model ends the run
                clip = next(clips, None)
            except (ValueError, OSError) as error:
                job.reason, clip = " ".join(str(error).split()), None
                batch[:] = [entry for entry in batch if entry[0] is not job]
            if clip is None:
                job.is_read = True
                break
            job.clips += 1
            if batch and batch[0][2].shape != clip[1].shape:
                encode_batch()
            batch.append((job, *clip))
            if len(batch) == args.batch_size:
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


def part_writer(out_dir: Path, source_dir: Path, pool: str, rank: int) -> PartWriter:
    """The parquet files of one process; their metadata names the videos in them."""
    numbers = {"clip": Value("int32"), "first_frame": Value("int32"), "start": Value("float64")}
    schema = Features({"path": Value("string"), **numbers, "embedding": EMBEDDINGS[pool]}).arrow_schema

    def save(path: Path, jobs: list[Job]) -> None:
        names = {job.path: str(job.path.relative_to(source_dir)) for job in jobs}
        rows = [(names[job.path], row) for job in jobs for row in job.rows]
        rows = [{"path": name, **row, "embedding": row["embedding"].tolist()} for name, row in rows]
        videos = json.dumps({names[job.path]: file_state(job.path) for job in jobs})
        with_videos = schema.with_metadata({**schema.metadata, b"videos": videos.encode()})
        pq.write_table(pa.Table.from_pylist(rows, schema=with_videos), path)

    return PartWriter(out_dir, f"train-{rank:05d}-{{:05d}}.parquet", save, PART_BYTES, PART_VIDEOS)


def file_state(path: Path) -> list[int]:
    """Size and modification time of a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def videos_done(out_dir: Path) -> dict[str, list[int]]:
    """The videos in the parts of all processes, with the states of their files."""
    found = {}
    for part in sorted(out_dir.glob("train-*.parquet")):
        found |= json.loads(pq.read_schema(part).metadata[b"videos"])
    return found


def videos_left(files: list[Path], source_dir: Path, out_dir: Path) -> list[Path]:
    """The videos that no part holds; an embedded video that has changed is an error."""
    done = videos_done(out_dir)
    states = {path: done.get(str(path.relative_to(source_dir))) for path in files}
    for path, state in states.items():
        is_same = state is None or state == file_state(path)
        check(is_same, f"{str(path)!r} has changed since it was embedded; give another OUT_DIR, or remove it.")
    return [path for path, state in states.items() if state is None]


def load(args: argparse.Namespace, device: torch.device) -> tuple[VJepa2Encoder, VJepa2VideoProcessor, dict]:
    """The encoder, the processor, and a description of what the embeddings depend on."""
    encoder = VJepa2Encoder.from_pretrained(args.model).eval().to(device)
    args.frames = args.frames or default_chunk_frames(encoder)
    tubelet = encoder.config.tubelet_size
    is_whole = args.frames % tubelet == 0
    check(is_whole, f"--frames is {args.frames}; expected a multiple of the model's tubelet size, {tubelet}.")
    size = args.size
    processor = VJepa2VideoProcessor(size=size, crop_size=size) if size else saved_processor(args.model, "a video")
    return encoder, processor, {
        "model": args.model,
        "weights": weights_fingerprint(encoder),
        "config": config_fingerprint(encoder.config),
        "processor": cache_key(json.loads(processor.to_json_string())),
        **{name: getattr(args, name) for name in ("pool", "frames", "stride")},
        "source_dir": str(args.source_dir.resolve()),
    }  # fmt: skip


def extract(args: argparse.Namespace) -> None:
    state = build_state()
    files = find_videos(args.source_dir)
    encoder, processor, description = load(args, state.device)
    with locked(args.out_dir, state):
        if state.is_main_process:
            claim_folder(args.out_dir / MANIFEST, description)
        state.wait_for_everyone()
        left = videos_left(files, args.source_dir, args.out_dir)
        state.wait_for_everyone()  # nobody writes before all have looked
        mine = left[state.process_index :: state.num_processes]
        parts, skipped = part_writer(args.out_dir, args.source_dir, args.pool, state.process_index), {}
        bar = tqdm(total=len(mine), unit="video", desc="embedding", disable=not state.is_main_process)
        for job in embed(encoder, processor, args, mine):
            if job.reason is None:
                parts.add(job, sum(row["embedding"].nbytes for row in job.rows))
            else:
                skipped[str(job.path.relative_to(args.source_dir))] = job.reason
                logger.warning("skipped %s: %s", job.path.relative_to(args.source_dir), job.reason)
            bar.update()
        bar.close()
        parts.flush()
        lines = sorted(gather_object([f"{name}\t{reason}\n" for name, reason in skipped.items()]))
        state.wait_for_everyone()
        if not state.is_main_process:
            return
        list_of_skipped = args.out_dir / "skipped.txt"
        write_text(list_of_skipped, "".join(lines))
        done = videos_done(args.out_dir)
        check(done, f"None of the {len(files)} files could be embedded, e.g. {''.join(lines[:1]).strip()!r}.")
        logger.info("%d videos are embedded in %s", len(done), args.out_dir)
        if lines:
            logger.warning("%d of %d files skipped, listed in %s", len(lines), len(files), list_of_skipped)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model that holds an encoder")
    parser.add_argument("source_dir", metavar="SOURCE_DIR", type=Path, help="folder of videos, searched recursively")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="new folder, or one of an interrupted run")
    parser.add_argument("--pool", choices=list(EMBEDDINGS), default="clip", help="pooling (default: clip)")
    parser.add_argument("--frames", type=int, help="kept frames per clip (default: the model's)")
    parser.add_argument("--stride", type=int, default=1, help="every stride-th frame is kept (default: 1)")
    parser.add_argument("--size", type=int, help="side of the square crop in pixels (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=8, help="clips per batch and process (default: 8)")
    args = parser.parse_args(arguments)
    for name in ("frames", "stride", "size", "batch_size"):
        value = getattr(args, name)
        check(value is None or value > 0, f"--{name} is {value}, but it must be positive.")
    refuse_missing_model(args.model)
    extract(args)


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO if not int(os.environ.get("RANK", 0)) else logging.WARNING, format="%(message)s"
    )
    main()
