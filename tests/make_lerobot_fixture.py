"""Writes the LeRobot datasets of tests/fixtures with LeRobot itself, which cannot live beside this project's versions.

    pip install --no-deps --target DIR lerobot==0.4.4 numpy==2.2.6 jsonlines draccus==0.10.0 einops mergedeep \
        pyyaml-include typing-inspect mypy-extensions toml termcolor deepdiff orderly-set imageio
    HF_HUB_OFFLINE=1 PYTHONPATH=DIR python tests/make_lerobot_fixture.py tests/fixtures

lerobot_v3: four episodes of different length, AV1 video of two cameras, two files of each kind (the recording is
resumed before the last episode, which places new files). lerobot_v3_images: two episodes, one camera, images in the
parquet files instead of video, no states and no rewards.

The content of frame t of episode e identifies it: an image is 20 + 16 t + 4 e (the front camera gray, the
wrist camera in its green channel alone), `observation.state` is (e, t), `action` is (100 e + t, -t), `next.reward` is
10 e + t.

lerobot_v3_cameras is lerobot_v3 as a converter of other recordings writes it, because LeRobot itself records all
cameras at one rate: the wrist camera has 10 frames per second (t = 0, 3, 6, ...), in one file, and episode 1 lacks
it. It needs no LeRobot:

    python tests/make_lerobot_fixture.py tests/fixtures --cameras
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np


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
WRIST, WRIST_FPS, WITHOUT_WRIST = "observation.images.wrist", 10, 1


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


def record(dataset, features: dict, episodes: range) -> None:
    for episode in episodes:
        for t in range(LENGTHS[episode]):
            values = {name: value for name, value in frame(episode, t).items() if name in features}
            dataset.add_frame({**values, "task": "push the block" if episode % 2 else "pull the block"})
        dataset.save_episode()
    dataset.finalize()


def write_with_lerobot(folder: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = folder / "lerobot_v3"
    record(LeRobotDataset.create("tests/v3", fps=30, features=VIDEO_FEATURES, root=root), VIDEO_FEATURES, range(3))
    record(LeRobotDataset("tests/v3", root=root), VIDEO_FEATURES, range(3, 4))
    root = folder / "lerobot_v3_images"
    dataset = LeRobotDataset.create("tests/images", fps=30, features=IMAGE_FEATURES, root=root, use_videos=False)
    record(dataset, IMAGE_FEATURES, range(2))


def write_cameras(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vjepa2_hf.data.video_writing import encode_video

    root = folder / "lerobot_v3_cameras"
    shutil.copytree(folder / "lerobot_v3", root)
    shutil.rmtree(root / "videos" / WRIST)
    (root / "meta/stats.json").unlink()
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][WRIST]["info"] |= {"video.fps": WRIST_FPS, "video.codec": "h264"}
    path.write_text(json.dumps(info, indent=4))

    places, frames = {}, []
    for episode, length in enumerate(LENGTHS):
        if episode != WITHOUT_WRIST:
            begin = len(frames) / WRIST_FPS
            frames += [frame(episode, t)[WRIST] for t in range(0, length, 30 // WRIST_FPS)]
            places[episode] = (begin, len(frames) / WRIST_FPS)
    video = root / "videos" / WRIST / "chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(encode_video(frames, WRIST_FPS, crf=1))

    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        rows = pq.read_table(path)
        rows = rows.select([name for name in rows.column_names if not name.startswith("stats/")])
        columns = rows.to_pydict()
        found = [places.get(episode) for episode in columns["episode_index"]]
        for number, name in enumerate(("from_timestamp", "to_timestamp")):
            columns[f"videos/{WRIST}/{name}"] = [None if place is None else place[number] for place in found]
        for name in ("chunk_index", "file_index"):
            columns[f"videos/{WRIST}/{name}"] = [None if place is None else 0 for place in found]
        pq.write_table(pa.table(columns, schema=rows.schema.remove_metadata()), path)


if __name__ == "__main__":
    write = write_cameras if "--cameras" in sys.argv else write_with_lerobot
    write(Path(sys.argv[1]))
