"""A run that SIGKILL ends at random moments leaves whole checkpoints; it goes on each time, and learns to the bit what
one never killed does."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pretrain
import pytest
from builders import write_numbered_shards

from vjepa2_hf.training.run import latest_checkpoint, read_metrics


SCRIPT = Path(pretrain.__file__)
TIMES = ("clips_per_second", "data_wait")
WAIT = (2, 6)  # logged steps before a kill: the first of them is saved by then
STEPS_PER_KILL = 15  # a poll may miss some
TINY = [
    "batch_size=2",
    "num_threads=1",
    "log_every=1",
    "save_every=1",
    "keep_last=3",
    "frames_per_clip=4",
    "fps=null",
    "crop_size=16",
    "encoder={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, drop_path_rate: 0.2, patch_size: 8}",
    "predictor={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
    "masks=[{type: future}]",
    "ema={schedule: cosine, start: 0.9}",
    "resume=latest",
]

IMAGE_MASKS = "images.masks=[{type: multi_block, num_blocks: 1, spatial_scale: 0.3}]"


def start(shards: Path, output_dir: Path, num_processes: int, *overrides: str) -> list[subprocess.Popen]:
    """The script's processes, by themselves: a launcher's workers would outlive it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path),
        "WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), f"data={shards}", f"output_dir={output_dir}", *TINY, *overrides]
    processes = []
    for rank in range(num_processes):
        own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if num_processes == 1:
            group = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            own = {name: value for name, value in own.items() if name not in group}
        log = open(f"{output_dir}.{rank}.log", "a")  # noqa: SIM115 (the process writes it)
        processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
        log.close()
    return processes


def finish(processes: list[subprocess.Popen], output_dir: Path) -> None:
    for rank, process in enumerate(processes):
        assert process.wait(timeout=900) == 0, Path(f"{output_dir}.{rank}.log").read_text()[-3000:]


def step_of_last_line(output_dir: Path) -> int:
    try:
        return read_metrics(output_dir)[-1]["step"]
    except (FileNotFoundError, IndexError, ValueError):  # not there, empty, or a line half written
        return 0


def kill_at_a_random_moment(processes: list[subprocess.Popen], output_dir: Path, draw: random.Random) -> None:
    """SIGKILL to all, in any order, some logged steps after the checkpoint they went on from, and a moment later."""
    checkpoint = latest_checkpoint(output_dir)
    first = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    target = first + draw.randint(*WAIT)
    deadline = time.monotonic() + 300
    # until the script has truncated the metrics, they may hold later steps of the run that was killed
    begun = time.time()
    config = output_dir / "config.yaml"
    while not config.exists() or config.stat().st_mtime < begun or step_of_last_line(output_dir) < target:
        assert time.monotonic() < deadline, f"step {target} was not reached in five minutes"
        for rank, process in enumerate(processes):
            assert process.poll() is None, Path(f"{output_dir}.{rank}.log").read_text()[-3000:]
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))
    for process in draw.sample(processes, len(processes)):
        process.kill()
    for process in processes:
        process.wait()


def check_whole(output_dir: Path) -> None:
    """A checkpoint that has its name is all there, whenever the run was killed."""
    checkpoints = [path for path in output_dir.glob("checkpoint-*") if path.suffix != ".tmp"]
    assert checkpoints
    for checkpoint in checkpoints:
        assert json.loads((checkpoint / "progress.json").read_text())["step"] == int(checkpoint.name.split("-")[1])
        files = {path.name for path in checkpoint.iterdir()}
        assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "rank_state_0.pt"} <= files


def run_with_kills(
    tmp_path: Path, kills: int, num_processes: int, num_workers: int, images_by: str | None = None
) -> tuple[Path, Path]:
    """The folders of a run that was left alone and of one killed so many times on its way."""
    shards = Path(write_numbered_shards(tmp_path / "shards"))
    settings = [f"max_steps={STEPS_PER_KILL * kills}", f"num_workers={num_workers}"]
    if images_by:
        settings += [f"images.data={shards}", f"images.by={images_by}", IMAGE_MASKS]
    finish(start(shards, tmp_path / "whole", num_processes, *settings), tmp_path / "whole")

    draw, killed = random.Random(kills), tmp_path / "killed"
    for _ in range(kills):
        kill_at_a_random_moment(start(shards, killed, num_processes, *settings), killed, draw)
        check_whole(killed)
        assert not (killed / "final").exists()
    finish(start(shards, killed, num_processes, *settings), killed)

    return tmp_path / "whole", killed


def metrics_of(output_dir: Path) -> list[dict]:
    """What a run logged, but for what the clock says."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(output_dir)]


def differing_files(whole: Path, killed: Path) -> list[str]:
    """Of `final/`, and leftovers of a half-written file."""
    names = ("model.safetensors", "config.json")
    differ = [n for n in names if (killed / "final" / n).read_bytes() != (whole / "final" / n).read_bytes()]
    return differ + [str(path) for path in killed.glob("*.tmp")]


def test_a_run_killed_twice_leaves_whole_checkpoints_and_repeats_the_uninterrupted_one_to_the_bit(tmp_path):
    whole, killed = run_with_kills(tmp_path, kills=2, num_processes=1, num_workers=0)
    assert len(metrics_of(whole)) == 2 * STEPS_PER_KILL and metrics_of(killed) == metrics_of(whole)
    assert differing_files(whole, killed) == []


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 2)])
def test_a_run_killed_twenty_times_repeats_the_uninterrupted_one_to_the_bit(tmp_path, num_processes, num_workers):
    whole, killed = run_with_kills(tmp_path, 20, num_processes, num_workers)
    assert len(metrics_of(whole)) == 20 * STEPS_PER_KILL and metrics_of(killed) == metrics_of(whole)
    assert differing_files(whole, killed) == []


@pytest.mark.slow
@pytest.mark.parametrize("images_by", ["process", "batch"])
def test_killed_processes_of_images_and_videos_repeat_the_uninterrupted_ones_to_the_bit(tmp_path, images_by):
    whole, killed = run_with_kills(tmp_path, 2, 2, 1, images_by)
    assert len(metrics_of(whole)) == 2 * STEPS_PER_KILL and metrics_of(killed) == metrics_of(whole)
    assert "image_loss" in metrics_of(whole)[0] and differing_files(whole, killed) == []
