# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Embeds a folder of videos as parquet files, which `datasets` loads.

    python examples/extract_features.py MODEL SOURCE_DIR OUT_DIR [--pool clip|frame|tokens] [--batch_size 8]
    torchrun --nproc_per_node 2 examples/extract_features.py MODEL SOURCE_DIR OUT_DIR     # several processes

    rows = datasets.load_dataset("parquet", data_files="OUT_DIR/*.parquet", split="train")

MODEL is a folder or Hub id that holds an encoder and a processor. SOURCE_DIR is searched recursively. Each video is
cut into consecutive clips of `--frames` frames; the last clip may be shorter. Each clip is a row with `path`, `clip`
(its index in the video), `first_frame`, `start` (seconds) and `embedding`: one vector with `--pool clip`, one vector
per time step with "frame", all tokens with "tokens". Unreadable files are listed in OUT_DIR/skipped.txt. Repeat the
command to continue an interrupted run, with any number of processes. `--num_shards` and `--shard_index` split the work
among jobs that know nothing of one another.
"""

import argparse
import functools
import logging
import os
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path

from tqdm.auto import tqdm

from vjepa2_hf.configuration_vjepa2 import check
from vjepa2_hf.data import ingest
from vjepa2_hf.pipelines.feature_shards import EMBEDDINGS, FeaturePlan, check_frames, extract_shard, finish
from vjepa2_hf.training.processes import build_state
from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model


SETTINGS = ("source_dir", "out_dir", "model", "pool", "stride", "size", "batch_size", "num_shards")


def extract(args: argparse.Namespace) -> None:
    state = build_state()
    plan = FeaturePlan(
        files=ingest.list_files(args.source_dir, args.file_list),
        frames=check_frames(args.model, args.frames, state.device),
        **{name: getattr(args, name) for name in SETTINGS},
    )
    shards = args.shard_index or list(range(plan.num_shards))
    if args.ray:
        on_gpu = int(state.device.type == "cuda")
        done = ingest.run_on_ray(functools.partial(extract_shard, plan), shards, num_gpus=on_gpu)
        for _ in tqdm(done, total=len(shards), unit="shard", desc="embedding"):
            pass
    else:
        for shard in shards:
            extract_shard(plan, shard, state, progress=True)
    if state.is_main_process:
        finish(plan)


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
    ingest.add_job_options(parser, 1, "as in make_video_shards.py; this script always continues")
    args = parser.parse_args(arguments)
    for name in ("frames", "stride", "size", "batch_size"):
        value = getattr(args, name)
        check(value is None or value > 0, f"--{name} is {value}, but it must be positive.")
    ingest.check_job_options(args)
    refuse_missing_model(args.model)
    extract(args)


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO if not int(os.environ.get("RANK", 0)) else logging.WARNING, format="%(message)s"
    )
    main()
