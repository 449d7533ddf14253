"""Small inputs of the jobs, and the jobs themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from builders import CLIP_FEATURES
from faults.jobs import STEPS, Job
from record_episodes import episode_features

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video


SIZE = 16
TINY_ENCODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 8, "crop_size": SIZE}
_TRAINING = ("output_dir=run", "resume=latest", "num_threads=1", "log_every=1", "save_every=1", f"max_steps={STEPS}")


def make_inputs(folder: Path) -> None:
    """Shards of videos, shards of episodes, a folder of labeled videos, and an encoder."""
    rng = np.random.default_rng(0)

    def videos() -> Iterator[dict]:
        for number in range(8):
            frames = rng.integers(0, 255, (6, SIZE, SIZE, 3), dtype=np.uint8)
            data = b"no video" if number in (1, 3, 6) else encode_video(frames, fps=8)
            yield {"video": {"bytes": data, "path": None}, "path": f"{number}.mp4"}

    def episodes() -> Iterator[dict]:
        for number in range(6):
            frames = rng.integers(0, 255, (6, SIZE, SIZE, 3), dtype=np.uint8)
            yield {
                "video": {"bytes": encode_video(frames, fps=8), "path": None}, "fps": 8.0,
                "actions": rng.uniform(-1, 1, (5, 2)).astype(np.float32), "episode_id": f"{number:03d}",
            }  # fmt: skip

    folder.mkdir(parents=True)
    write_shards(videos(), folder / "videos", CLIP_FEATURES, num_shards=2)
    write_shards(episodes(), folder / "episodes", episode_features([]), num_shards=2)
    for number in range(12):
        path = folder / "labeled" / ("red", "green")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = rng.integers(0, 120, (4, SIZE, SIZE, 3), dtype=np.uint8)
        frames[..., number % 2] = 250
        path.write_bytes(encode_video(frames, fps=8))
        os.utime(path, (1e9, 1e9))
    torch.manual_seed(0)
    VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).save_pretrained(folder / "encoder")
    VJepa2VideoProcessor(size=SIZE, crop_size=SIZE).save_pretrained(folder / "encoder")


def make_jobs(inputs: Path) -> dict[str, Job]:
    """The jobs by name: three training scripts, and the writers of shards and of features."""
    sizes = "hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1"
    encoder = ", ".join(f"{name}: {value}" for name, value in TINY_ENCODER.items())
    pretrain = (
        f"data={inputs}/videos", "batch_size=1", "keep_last=2", "frames_per_clip=2", "fps=null", f"crop_size={SIZE}",
        "max_skipped_fraction=0.9",
        f"encoder={{{sizes}, patch_size: 8, drop_path_rate: 0.2}}", f"predictor={{{sizes}}}",
        "masks=[{type: multi_block, num_blocks: 1, spatial_scale: 0.3}]", "ema={schedule: cosine, start: 0.9}",
    )  # fmt: skip
    world_model = (
        f"data={inputs}/episodes", "batch_size=2", "keep_last=2", "encoder=random", f"encoder_config={{{encoder}}}",
        "validation_fraction=0.4", "frames_per_window=3", "horizons=[1]",
        "world_model={context_frames: 1, rollout_steps: 2, predictor_hidden_size: 8, predictor_num_hidden_layers: 1, "
        "predictor_num_attention_heads: 1}",
    )  # fmt: skip
    probe = (
        f"data={inputs}/labeled", f"encoder={inputs}/encoder", "batch_size=2", "keep_last=2", "frames_per_clip=2",
        "validation_fraction=0.3", "selection_fraction=0.3",
        "head={num_pooler_layers: 1, pooler_num_attention_heads: 1}", "learning_rates=[1e-2]", "weight_decays=[0.01]",
    )  # fmt: skip
    shards = (f"{inputs}/labeled", "shards", "--height", "16", "--num_proc", "1", "--num_shards", "2", "--resume")
    features = (f"{inputs}/encoder", f"{inputs}/labeled", "features", "--frames", "2", "--batch_size", "4")
    return {
        "pretrain": Job("pretrain", "pretrain", (*_TRAINING, *pretrain)),
        "world_model": Job("world_model", "train_world_model", (*_TRAINING, *world_model)),
        "probe": Job("probe", "train_probe", (*_TRAINING, *probe)),
        "shards": Job("shards", "make_video_shards", shards, steps=0),
        "features": Job("features", "extract_features", features, steps=0),
    }
