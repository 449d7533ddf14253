"""Example scripts run in the test's process at tiny size, and the commands of docs pages."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretrain
import pytest
import train_world_model
from builders import CLIP_FEATURES, ROOT
from record_episodes import episode_features

import vjepa2_hf
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.run import read_metrics


TINY_PRETRAIN = [
    "max_steps=6",
    "batch_size=2",
    "num_threads=1",
    "log_every=1",
    "save_every=3",
    "frames_per_clip=4",
    "fps=null",
    "crop_size=32",
    "clips_per_video=2",
    "encoder={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, drop_path_rate: 0.2, patch_size: 8}",
    "predictor={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
    "masks=[{type: multi_block, num_blocks: 2, spatial_scale: 0.3}, {type: future}]",
    "ema={schedule: cosine, start: 0.9}",
    "learning_rate={peak: 1e-3, warmup_steps: 2}",
]
TINY_WORLD_MODEL = [
    "encoder=random",
    "encoder_config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, crop_size: 32, patch_size: 16}",
    "max_steps=6",
    "batch_size=4",
    "num_threads=1",
    "log_every=1",
    "save_every=3",
    "validation_fraction=0.4",  # episodes 000 and 005, by the hash of their ids
    "frames_per_window=3",
    "rollout_start=0.5",
    "horizons=[1, 2]",
    "world_model={frame_skip: 2, context_frames: 1, residual: true, rollout_steps: 2, predictor_hidden_size: 16, "
    "predictor_num_hidden_layers: 1, predictor_num_attention_heads: 2}",
    "learning_rate={peak: 1e-3, warmup_steps: 2}",
]
TINY_RECORDING = ["--episodes", "5", "--length", "8", "--num_proc", "1"]
TINY_DYNAMICS = ["predictor_hidden_size=16", "predictor_num_hidden_layers=1", "predictor_num_attention_heads=2"]
TINY_SOLVER = ["num_candidates=4", "num_iterations=1", "num_elites=2", "horizon=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
CLOCK_METRICS = ("clips_per_second", "data_wait", "windows_per_second")


def write_square_shards(folder: Path) -> Path:
    """Five videos of a bright square that moves, in two shards."""
    rng = np.random.default_rng(0)

    def rows():
        for number in range(5):
            frames = rng.integers(0, 80, (8, 40, 40, 3), dtype=np.uint8)
            for t in range(8):
                frames[t, 4 * t : 4 * t + 8, 5 * number : 5 * number + 8] = 255
            yield {"video": {"bytes": encode_video(frames, fps=8), "path": None}, "path": f"{number}.mp4"}

    write_shards(rows(), folder, CLIP_FEATURES, num_shards=2)
    return folder


def write_noise_episodes(folder: Path, with_rewards: bool = False) -> Path:
    """Six episodes of 9 frames of noise with two actions, also with rewards of 2 and more."""
    rng = np.random.default_rng(0)

    def rows():
        for number in range(6):
            frames = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
            row = {
                "video": {"bytes": encode_video(frames, fps=10), "path": None},
                "actions": rng.uniform(-1, 1, (8, 2)).astype(np.float32),
                "fps": 10.0,
                "episode_id": f"{number:03d}",
            }
            yield row | ({"rewards": [2.0 + number + step for step in range(8)]} if with_rewards else {})

    write_shards(rows(), folder, episode_features([], with_rewards), num_shards=1)
    return folder


def clean_environment() -> dict[str, str]:
    """The variables of a fresh shell, in which the package is installed; none of Accelerate's."""
    found = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**found, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def run_processes(script: Path, arguments: list[str], count: int = 2) -> subprocess.CompletedProcess:
    """`torchrun --nproc_per_node 2 script arguments ...` in a clean environment."""
    command = [*TORCHRUN, "--nproc_per_node", str(count), str(script), *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def metrics(output_dir: Path) -> list[dict]:
    """The metrics of a run without what the clock measured."""
    return [
        {name: value for name, value in row.items() if name not in CLOCK_METRICS} for row in read_metrics(output_dir)
    ]


def run_script(monkeypatch, script, arguments: list[str]) -> None:
    """Calls `main()` of a script that reads its arguments from the command line."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
    script.main()


def run_pretrain(monkeypatch, shards: Path, output_dir: Path, *overrides: str) -> list[dict]:
    run_script(monkeypatch, pretrain, [f"data={shards}", f"output_dir={output_dir}", *TINY_PRETRAIN, *overrides])
    return metrics(output_dir)


def pretrain_in_group(rank: int, shards: Path, output_dir: Path, *overrides: str) -> None:
    """For `builders.run_group`: one process of a run."""
    with pytest.MonkeyPatch.context() as patch:
        run_pretrain(patch, shards, output_dir, *overrides)


def run_train_world_model(monkeypatch, episodes: Path, output_dir: Path, *overrides: str) -> list[dict]:
    arguments = [f"data={episodes}", f"output_dir={output_dir}", *TINY_WORLD_MODEL, *overrides]
    run_script(monkeypatch, train_world_model, arguments)
    return metrics(output_dir)


# ------------------------------------------------------------------------------------------------------------- docs


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language ("" for commands)."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for found, block in fenced if found == language]


def commands(page: str) -> list[list[str]]:
    text = "".join(blocks(page, "")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def run_command(command: list[str]) -> None:
    """A command of a page; examples run in this process, which has imported what they need."""
    script = next(part for part in command if part.endswith(".py"))
    module = __import__(Path(script).stem)
    arguments = command[command.index(script) + 1 :]
    if module is pretrain:
        program = [sys.executable, str(ROOT / script), *arguments]
        environment = {"PYTHONPATH": str(Path(vjepa2_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1", "HOME": "."}
        result = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    else:
        module.main(arguments)
