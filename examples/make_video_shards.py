"""Converts a folder of video files, of any size and codec, to parquet shards for training.

    python examples/make_video_shards.py SOURCE_DIR OUT_DIR [--height 256] [--num_proc 2]

The folder is searched recursively. Each video is re-encoded (h264, `--height` pixels high, a key frame every 12
frames, no sound) into a row with `video`, `path`, `fps` and `num_frames`. If every video lies in one of several class
folders, the row has a `label`. `--seed` determines the random order of rows. Unreadable files are listed in
OUT_DIR/skipped.txt. OUT_DIR appears only when it is complete.
"""

from __future__ import annotations

import argparse
import collections
import logging
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import av
import numpy as np
from datasets import ClassLabel, Features, Value, Video
from tqdm.auto import tqdm

from vjepa2_hf.configuration_vjepa2 import check
from vjepa2_hf.data.shards import find_videos, write_shards
from vjepa2_hf.data.video_writing import transcode_video
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.video_io import VideoDecodeError


logger = logging.getLogger("make_video_shards")


def transcode(job: tuple[Path, int]) -> tuple[Path, tuple[bytes, int, float] | None, str]:
    """One file: path, (mp4, frames, fps) or None, and the reason for skipping it."""
    path, height = job
    try:
        return path, transcode_video(path, height=height), ""
    except av.FFmpegError as error:  # of encoding; decoding raises VideoDecodeError
        reason = f"it cannot be encoded at a height of {height} pixels ({error})"
    except (VideoDecodeError, OSError) as error:
        reason = str(error)
    return path, None, " ".join(reason.split())


def run_in_order(jobs: list, num_proc: int) -> Iterator:
    """Runs `transcode` on the jobs in several processes, in order, with few results in memory."""
    if num_proc == 1 or len(jobs) == 1:
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


def make_rows(results: Iterable, source_dir: Path, has_classes: bool, skipped: dict[str, str]) -> Iterator[dict]:
    """Rows of the readable videos; reasons for the others go into `skipped`."""
    for path, encoded, reason in results:
        name = path.relative_to(source_dir)
        if encoded is None:
            skipped[str(name)] = reason
            logger.warning("skipped %s: %s", name, reason)
            continue
        mp4, num_frames, fps = encoded
        row = {"video": {"bytes": mp4, "path": None}, "path": str(name), "fps": fps, "num_frames": num_frames}
        yield row | ({"label": name.parts[0]} if has_classes else {})


def make_shards(args: argparse.Namespace) -> None:
    source_dir = args.source_dir
    files = find_videos(source_dir)
    # Files in a folder are similar, and a stream reads rows in the order written here
    files = [files[i] for i in np.random.default_rng(args.seed).permutation(len(files))]
    numbers = {"fps": Value("float32"), "num_frames": Value("int32")}
    features = {"video": Video(decode=False), "path": Value("string"), **numbers}
    parts = [path.relative_to(source_dir).parts for path in files]
    classes = sorted({part[0] for part in parts})
    has_classes = len(classes) > 1 and all(len(part) > 1 for part in parts)
    if has_classes:
        features["label"] = ClassLabel(names=classes)

    skipped: dict[str, str] = {}
    results = run_in_order([(path, args.height) for path in files], args.num_proc)
    results = tqdm(results, total=len(files), unit="video", desc="encoding")
    rows = make_rows(results, source_dir, has_classes, skipped)
    write_shards(rows, args.out_dir, Features(features), args.num_shards, skipped)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source_dir", type=Path, help="folder of video files, searched recursively")
    parser.add_argument("out_dir", type=Path, help="new folder for the shards")
    parser.add_argument("--height", type=int, default=256, help="of the stored videos, in pixels, even (default: 256)")
    parser.add_argument("--num_proc", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--num_shards", type=int, default=16, help="maximum number of files (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default: 0)")
    args = parser.parse_args(arguments)
    for name in ("height", "num_proc", "num_shards"):
        check(getattr(args, name) > 0, f"--{name} is {getattr(args, name)}, but it must be positive.")
    check(args.height % 2 == 0, f"--height is {args.height}, but h264 needs an even number; try {args.height + 1}.")
    check(args.seed >= 0, f"--seed is {args.seed}, but it must not be negative.")
    make_shards(args)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
