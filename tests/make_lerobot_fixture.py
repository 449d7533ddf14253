"""Writes the LeRobot datasets of tests/fixtures with LeRobot itself, which cannot live beside this project's versions.

    pip install --no-deps --target DIR lerobot==0.4.4 numpy==2.2.6 jsonlines draccus==0.10.0 einops mergedeep \
        pyyaml-include typing-inspect mypy-extensions toml termcolor deepdiff orderly-set imageio
    HF_HUB_OFFLINE=1 PYTHONPATH=DIR python tests/make_lerobot_fixture.py tests/fixtures

lerobot_v3: four episodes of different length, AV1 video of two cameras, two files of each kind (the recording is
resumed before the last episode, which begins new files). lerobot_v3_images: two episodes, one camera, images in the
parquet files instead of video, no states and no rewards.

The content of frame t of episode e identifies it: an image is 20 + 16 t + 4 e (the front camera gray, the
wrist camera in its green channel alone), `observation.state` is (e, t), `action` is (100 e + t, -t), `next.reward` is
10 e + t.
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


LENGTHS = (7, 5, 11, 6)
NAMES = ["height", "width", "channels"]
ACTION = {"action": {"dtype": "float32", "shape": (2,), "names": ["place", "back"]}}
VIDEO_FEATURES = {
    "observation.images.front": {"dtype": "video", "shape": (64, 64, 3), "names": NAMES},
    "observation.images.wrist": {"dtype": "video", "shape": (64, 80, 3), "names": NAMES},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["episode", "frame"]},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    **ACTION,
}
IMAGE_FEATURES = {"observation.image": {"dtype": "image", "shape": (16, 16, 3), "names": NAMES}, **ACTION}


def frame(episode: int, t: int) -> dict:
    value = 20 + 16 * t + 4 * episode
    wrist = np.zeros((64, 80, 3), np.uint8)
    wrist[..., 1] = value
    return {
        "observation.images.front": np.full((64, 64, 3), value, np.uint8),
        "observation.images.wrist": wrist,
        "observation.image": np.full((16, 16, 3), value, np.uint8),
        "observation.state": np.array([episode, t], np.float32),
        "action": np.array([100 * episode + t, -t], np.float32),
        "next.reward": np.array([10 * episode + t], np.float32),
    }


def record(dataset: LeRobotDataset, features: dict, episodes: range) -> None:
    for episode in episodes:
        for t in range(LENGTHS[episode]):
            values = {name: value for name, value in frame(episode, t).items() if name in features}
            dataset.add_frame({**values, "task": "push the block" if episode % 2 else "pull the block"})
        dataset.save_episode()
    dataset.finalize()


def main(folder: str) -> None:
    root = Path(folder) / "lerobot_v3"
    record(LeRobotDataset.create("tests/v3", fps=30, features=VIDEO_FEATURES, root=root), VIDEO_FEATURES, range(3))
    record(LeRobotDataset("tests/v3", root=root), VIDEO_FEATURES, range(3, 4))
    root = Path(folder) / "lerobot_v3_images"
    dataset = LeRobotDataset.create("tests/images", fps=30, features=IMAGE_FEATURES, root=root, use_videos=False)
    record(dataset, IMAGE_FEATURES, range(2))


if __name__ == "__main__":
    main(sys.argv[1])
