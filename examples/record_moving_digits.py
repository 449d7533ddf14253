"""Records Moving Digits: videos of a handwritten digit that moves and bounces, with the digit and the direction.

    python examples/record_moving_digits.py --output runs/digits/train --split train --videos 1500
    python examples/record_moving_digits.py --output runs/digits/test --split test --videos 1000 --frames 8

The digits are scikit-learn's 1797 scans of 8 x 8 pixels; `train` takes the first 1297, `test` the last 500, so that no
scan is in both. A row is a video: `video` (h264 mp4, 64 x 64), `fps`, `digit` (0 to 9), `direction` (0 to 7: the
heading of the first frames in steps of 45 degrees, 0 to the right, 2 down). A digit moves straight for
`STRAIGHT_FRAMES` frames, around a place that is drawn alike for all directions, so that only the order of the frames
tells the direction; later it bounces. The same arguments record the same videos.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Features, Value, Video
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from vjepa2_hf.settings import exit_on_user_error
from vjepa2_hf.shards import write_shards
from vjepa2_hf.video_io import encode_video


IMAGE_SIZE = 64  # pixels, height and width of a video
DIGIT_SIZE = 24  # pixels, height and width of a digit
DIRECTIONS = 8
SPEED = (1.5, 3.0)  # pixels a frame, lowest and highest
STRAIGHT_FRAMES = 8  # frames without a bounce at the start: `direction` holds for them
TRAIN_DIGITS = 1297  # of 1797
FRAMES_PER_SECOND = 10.0
FEATURES = Features(
    {"video": Video(decode=False), "fps": Value("float32"), "digit": Value("int64"), "direction": Value("int64")}
)


def enlarge(digit: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A digit (8, 8) with values 0 to 16 as brightness 0 to 1 on a canvas (64, 64), bilinear.

    Args:
        offset: (2,) x and y of the digit's top left corner in pixels; parts of a pixel count.
    """
    padded = np.pad(digit / 16, 1)
    scale = DIGIT_SIZE / len(digit)
    weights = []
    for start in offset:
        position = (np.arange(IMAGE_SIZE) + 0.5 - start) / scale + 0.5  # in the padded digit's pixels
        distance = np.abs(position[:, None] - np.arange(len(padded)))
        weights.append(np.maximum(1 - distance, 0))
    return weights[1] @ padded @ weights[0].T


def draw_path(rng: np.random.Generator, frames: int, direction: int) -> np.ndarray:
    """Offsets (frames, 2) of a digit that starts in `direction`, straight at first, and bounces off the edges."""
    angle = direction * 2 * np.pi / DIRECTIONS
    velocity = rng.uniform(*SPEED) * np.array([np.cos(angle), np.sin(angle)])
    room = IMAGE_SIZE - DIGIT_SIZE
    middle = (STRAIGHT_FRAMES - 1) / 2
    margin = max(SPEED) * middle
    position = rng.uniform(margin, room - margin, 2) + (np.arange(frames)[:, None] - middle) * velocity
    return room - np.abs(position % (2 * room) - room)  # reflected at 0 and at `room`


def draw_video(rng: np.random.Generator, digit: np.ndarray, frames: int, direction: int) -> np.ndarray:
    """A video (frames, 64, 64, 3) uint8 of a white digit on black."""
    brightness = np.stack([enlarge(digit, offset) for offset in draw_path(rng, frames, direction)])
    return np.repeat((255 * brightness + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def record_videos(split: str, videos: int, frames: int, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of videos 0 .. videos - 1; each depends on the seed and its number alone."""
    digits = load_digits()
    chosen = slice(0, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    images, names = digits.images[chosen], digits.target[chosen]
    for number in range(videos):
        rng = np.random.default_rng([seed, number])
        index, direction = int(rng.integers(len(images))), int(rng.integers(DIRECTIONS))
        video = draw_video(rng, images[index], frames, direction)
        data = encode_video(video, fps=FRAMES_PER_SECOND, preset="ultrafast")
        yield {
            "video": {"bytes": data, "path": f"{split}-{seed}-{number:06d}.mp4"},
            "fps": FRAMES_PER_SECOND,
            "digit": int(names[index]),
            "direction": direction,
        }


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; it must not exist or be empty")
    parser.add_argument("--split", required=True, choices=["train", "test"], help="which digits")
    parser.add_argument("--videos", required=True, type=int, help="number of videos")
    parser.add_argument("--frames", default=24, type=int, help="frames of a video (default 24)")
    parser.add_argument("--seed", default=0, type=int, help="same seed, same videos (default 0)")
    parser.add_argument("--num_shards", default=8, type=int, help="parquet files (default 8)")
    options = parser.parse_args(arguments)
    for name, least in (("videos", 1), ("frames", 1), ("num_shards", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}, but at least {least} is expected.")
    rows = record_videos(options.split, options.videos, options.frames, options.seed)
    progress = tqdm(rows, total=options.videos, desc="recording", unit="video")
    write_shards(progress, options.output, features=FEATURES, num_shards=min(options.num_shards, options.videos))


if __name__ == "__main__":
    main()
