# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]", "pandas"]
# ///
"""Writes a small LeRobot v3 dataset of synthetic arm episodes, in the units of the published Franka setting.

    python examples/make_arm_dataset.py runs/franka/train --episodes 400
    python examples/make_arm_dataset.py runs/franka/held_out --episodes 40 --seed 1

A hand moves over a table, seen from above by one camera (`observation.images.above`) at 4 frames per second. It moves
toward random targets in the workspace, at most 5 cm per step in each direction, turns a little, and opens or closes
its gripper on the way.

    observation.state   (7,) x, y, z (m), extrinsic Euler angles xyz (rad), gripper (0 open, 1 closed)
    action              (7,) change from a state to the next one: Δxyz (m), Euler angles of the rotation applied on
                        the left (rad), Δgripper; `vjepa2_hf.pose.move_pose` computes the next state

The image shows a disc (larger when the hand is closer to the camera), its shadow on the table, a bar along the hand's
x axis, and two fingers on the hand's y axis, whose distance is the opening of the gripper. The same arguments write
the same dataset.
"""

import argparse
import json
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features
from tqdm.auto import tqdm

from vjepa2_hf.data.dataset_card import write_dataset_card
from vjepa2_hf.data.files import staged_folder
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.pose import move_pose, pose_difference, rotation_from_euler
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.settings import exit_on_user_error


CAMERA = "observation.images.above"
TASK = "move over the table"
FRAMES_PER_SECOND = 4
LOW, HIGH = np.array([0.3, -0.2, 0.1]), np.array([0.7, 0.2, 0.4])  # m, the workspace of the hand
MAX_STEP = 0.05  # m in each direction and step
MAX_TURN = 0.05  # rad per step, standard deviation of the turn about each axis
GRIPPER_STEP = 0.25  # largest change per step; 1 is from open to closed
CAMERA_HEIGHT = 0.8  # m above the table
FOCAL_LENGTH = 50 / 64  # of the image side
HAND_RADIUS = 0.07  # m
FILES_PER_CHUNK = 1000
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def sample_path(rng: np.random.Generator, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States (length, 7) and actions (length, 7); the last action leads beyond the episode."""
    angles = rng.uniform([-0.2, -0.2, -1.0], [0.2, 0.2, 1.0])
    state = torch.tensor([*rng.uniform(LOW, HIGH), *angles, float(rng.integers(2))], dtype=torch.float32)
    states, actions, target, gripper = [], [], rng.uniform(LOW, HIGH), float(rng.integers(2))
    for _ in range(length):
        if np.abs(target - state[:3].numpy()).max() < MAX_STEP:
            target, gripper = rng.uniform(LOW, HIGH), float(rng.integers(2))
        wanted = (target - state[:3].numpy()) * rng.uniform(0.2, 0.6) + rng.normal(0, 0.01, 3)
        turn = rng.normal(0, MAX_TURN, 3)
        grip = np.clip(gripper - state[6].item(), -GRIPPER_STEP, GRIPPER_STEP)
        command = [*np.clip(wanted, -MAX_STEP, MAX_STEP), *turn, grip]
        following = move_pose(state, torch.tensor(command, dtype=torch.float32))
        states.append(state)
        actions.append(pose_difference(state, following))  # the executed motion, as in DROID
        state = following
    return torch.stack(states), torch.stack(actions)


def render_frame(state: np.ndarray, size: int) -> np.ndarray:
    """The image uint8 (size, size, 3) of a state (7,)."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1) + 0.5
    table = 0.62 + 0.06 * np.sin(grid[..., :1] * 24 / size) * np.sin(grid[..., 1:] * 24 / size)
    image = table * np.array([0.9, 0.8, 0.65])

    def paint(color: tuple[float, float, float], radius: float, start: np.ndarray, end: np.ndarray) -> None:
        """Blends a line with round ends and soft edges over the image."""
        nonlocal image
        along = end - start
        fraction = ((grid - start) @ along / max(along @ along, 1e-9)).clip(0, 1)[..., None]
        distance = np.linalg.norm(grid - (start + fraction * along), axis=-1, keepdims=True)
        cover = (radius + 0.5 - distance).clip(0, 1)
        image = image * (1 - cover) + cover * np.array(color)

    shadow, _ = _seen(np.array([state[0] + 0.2 * state[2], state[1] + 0.2 * state[2], 0.0]), size)
    hand, pixels = _seen(state[:3], size)
    paint((0.3, 0.27, 0.22), HAND_RADIUS * FOCAL_LENGTH / CAMERA_HEIGHT * size, shadow, shadow)
    paint((0.2, 0.35, 0.8), HAND_RADIUS * pixels, hand, hand)
    axes = rotation_from_euler(torch.from_numpy(state[3:6].astype(np.float64))).numpy()[:2, :2].T
    ahead, beside = (axis * pixels for axis in axes)  # pixels per meter along the hand's x and y axes
    paint((0.95, 0.95, 0.95), 0.014 * pixels, hand - 0.9 * HAND_RADIUS * ahead, hand + 0.9 * HAND_RADIUS * ahead)
    apart = (0.025 + 0.05 * (1 - state[6])) * beside
    for finger in (hand + 0.1 * ahead + apart, hand + 0.1 * ahead - apart):
        paint((0.85, 0.2, 0.15), 0.025 * pixels, finger, finger)
    return (255 * image.clip(0, 1) + 0.5).astype(np.uint8)


def _seen(position: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Row and column of a point x, y, z in the image, and pixels per meter at its height."""
    pixels = FOCAL_LENGTH * size / (CAMERA_HEIGHT - position[2])
    middle = (LOW + HIGH)[:2] / 2
    return size / 2 + pixels * (position[:2] - middle), pixels


def write_dataset(folder: Path, episodes: int, length: int, size: int, seed: int) -> None:
    """The files of a LeRobot v3 dataset, with one video file per episode, and a dataset card."""
    all_states, all_actions = [], []
    for number in tqdm(range(episodes), desc="arm episodes"):
        states, actions = sample_path(np.random.default_rng([seed, number]), length)
        chunk, file = divmod(number, FILES_PER_CHUNK)
        path = folder / f"videos/{CAMERA}/chunk-{chunk:03d}/file-{file:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_video((render_frame(state, size) for state in states.numpy()), FRAMES_PER_SECOND))
        all_states += states.tolist()
        all_actions += actions.tolist()
    frames, total = np.tile(np.arange(length), episodes), episodes * length
    columns = {
        "observation.state": pa.array(all_states, pa.list_(pa.float32(), 7)),
        "action": pa.array(all_actions, pa.list_(pa.float32(), 7)),
        "timestamp": np.float32(frames / FRAMES_PER_SECOND),
        "frame_index": frames,
        "episode_index": np.repeat(np.arange(episodes), length),
        "index": np.arange(total),
        "task_index": np.zeros(total, np.int64),
    }
    for part, table in (("data", columns), ("meta/episodes", _episode_columns(episodes, length))):
        path = folder / part / "chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table), path)
    write_dataset_card(folder, Features.from_arrow_schema(pa.table(columns).schema), total, "data/*/*.parquet")
    pd.DataFrame({"task_index": [0]}, index=[TASK]).to_parquet(folder / "meta/tasks.parquet")  # LeRobot's layout
    (folder / "meta/info.json").write_text(json.dumps(_info(episodes, length, size), indent=1), encoding="utf-8")


def _episode_columns(episodes: int, length: int) -> dict[str, Any]:
    """`meta/episodes`: the location of the data and the video of each episode."""
    numbers, zeros = np.arange(episodes), np.zeros(episodes, np.int64)
    return {
        "episode_index": numbers,
        "tasks": [[TASK]] * episodes,
        "length": np.full(episodes, length),
        "data/chunk_index": zeros,
        "data/file_index": zeros,
        "dataset_from_index": numbers * length,
        "dataset_to_index": (numbers + 1) * length,
        f"videos/{CAMERA}/chunk_index": numbers // FILES_PER_CHUNK,
        f"videos/{CAMERA}/file_index": numbers % FILES_PER_CHUNK,
        f"videos/{CAMERA}/from_timestamp": np.zeros(episodes),
        f"videos/{CAMERA}/to_timestamp": np.full(episodes, length / FRAMES_PER_SECOND),
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": zeros,
    }


def _info(episodes: int, length: int, size: int) -> dict[str, Any]:
    """`meta/info.json`."""
    number = {"shape": [1], "names": None}
    features = {
        CAMERA: {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [7], "names": NAMES},
        "action": {"dtype": "float32", "shape": [7], "names": [f"delta_{name}" for name in NAMES]},
        "timestamp": {"dtype": "float32", **number},
        **{name: {"dtype": "int64", **number} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": "synthetic arm",
        "total_episodes": episodes,
        "total_frames": episodes * length,
        "total_tasks": 1,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FRAMES_PER_SECOND,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write; it must not exist or be empty")
    parser.add_argument("--episodes", default=400, type=int, help="number of episodes (default 400)")
    parser.add_argument("--length", default=24, type=int, help="frames per episode (default 24, 6 seconds)")
    parser.add_argument("--size", default=64, type=int, help="height and width of the images in pixels (default 64)")
    parser.add_argument("--seed", default=0, type=int, help="same seed, same episodes (default 0)")
    options = parser.parse_args(arguments)
    check_at_least(options, "--", episodes=1, length=2, size=16, seed=0)
    with staged_folder(options.output) as folder:
        write_dataset(folder, options.episodes, options.length, options.size, options.seed)


if __name__ == "__main__":
    main()
