# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Converts a folder of video files, of any size and codec, to parquet shards for training.

    python examples/make_video_shards.py SOURCE_DIR OUT_DIR [--height 256] [--num_proc 2]
    python examples/make_video_shards.py SOURCE_DIR OUT_DIR --num_shards 400 --shard_index 7 --resume  # 1 job of 400

The folder is searched recursively. Each video is re-encoded (h264, `--height` pixels high, a key frame every 12
frames, no sound) into a row with `video`, `path`, `fps` and `num_frames`. The `label` is that of a metadata.csv with
columns file_name and label, or the last folder that names classes. Below folders like train/ and test/ rows have a
`split`, which probes keep apart. `--seed` determines the random order of rows. A shard appears when it is complete: an
interrupted job continues with `--resume`, and jobs with other shards may run at the same time. When all shards are
there, unreadable files are listed in OUT_DIR/skipped.txt.
"""

from __future__ import annotations

import argparse
import functools
import logging
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from vjepa2_hf.configuration_vjepa2 import check
from vjepa2_hf.data import ingest
from vjepa2_hf.data.labels import describe_files
from vjepa2_hf.data.video_shards import ShardPlan, check_out_dir, finish, make_shard, run_in_order, write_shard
from vjepa2_hf.training.settings import exit_on_user_error


logger = logging.getLogger("make_video_shards")


def make_plan(args: argparse.Namespace) -> ShardPlan:
    files = ingest.list_files(args.source_dir, args.file_list)
    # Files in a folder are similar, and a stream reads rows in the order written here
    files = [files[i] for i in np.random.default_rng(args.seed).permutation(len(files))]
    described = describe_files(args.source_dir, [ingest.name_of(path, args.source_dir) for path in files])
    if described.problem:
        logger.warning(described.problem)
    num_shards = min(args.num_shards, len(files))
    return ShardPlan(files, args.source_dir, args.out_dir, args.height, num_shards, described)


def make_shards(args: argparse.Namespace) -> None:
    plan = make_plan(args)
    check_out_dir(plan, may_hold_shards=bool(args.shard_index or args.resume))
    chosen = [shard for shard in args.shard_index or range(plan.num_shards) if shard < plan.num_shards]
    left = plan.missing(chosen)
    if args.shard_index and len(left) < len(chosen) and not args.resume:
        done = plan.path(next(shard for shard in chosen if shard not in left)).name
        raise FileExistsError(f"{done} is there already; add --resume to make only the missing shards.")
    files = sum(len(plan.files_of(shard)) for shard in left)
    if args.ray:
        shards = ingest.run_on_ray(functools.partial(make_shard, plan), left)
        for _ in tqdm(shards, total=len(left), unit="shard", desc="encoding"):
            pass
    else:
        jobs = [(path, args.height) for shard in left for path in plan.files_of(shard)]
        results = iter(tqdm(run_in_order(jobs, args.num_proc), total=files, unit="video", desc="encoding"))
        for shard in left:
            write_shard(plan, shard, results)
        next(results, None)  # completes the bar
    finish(plan)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source_dir", type=Path, help="folder of video files, searched recursively")
    parser.add_argument("out_dir", type=Path, help="folder for the shards")
    parser.add_argument(
        "--height",
        type=int,
        default=256,
        help="of the stored videos, in pixels, even; smaller ones are enlarged (default: 256)",
    )
    parser.add_argument("--num_proc", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default: 0)")
    ingest.add_job_options(parser, 16, "continue in OUT_DIR: shards that are there stay as they are")
    args = parser.parse_args(arguments)
    for name in ("height", "num_proc"):
        check(getattr(args, name) > 0, f"--{name} is {getattr(args, name)}, but it must be positive.")
    check(args.height % 2 == 0, f"--height is {args.height}, but h264 needs an even number; try {args.height + 1}.")
    check(args.seed >= 0, f"--seed is {args.seed}, but it must not be negative.")
    ingest.check_job_options(args)
    make_shards(args)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
