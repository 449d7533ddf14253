# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Records Moving Digits: videos of a handwritten digit that moves and bounces, with the digit and the direction.

    python examples/record_moving_digits.py --output runs/digits/train --split train --videos 1500
    python examples/record_moving_digits.py --output runs/digits/test --split test --videos 1000 --frames 8
    python examples/record_moving_digits.py --output runs/turns --split train --videos 1500 --frames 8 --two_motions

The digits are scikit-learn's 1797 scans of 8 x 8 pixels; `train` takes the first 1297, `test` the last 500. A row is a
video: `video` (h264 mp4, 64 x 64), `fps`, `digit` (0 to 9), `direction` (0 to 7: the heading of the first frames in
steps of 45 degrees; 0 is right, 2 is down), `place` (0 to 15: the digit's cell of a 4 x 4 grid in the last frame).
A digit moves straight for `STRAIGHT_FRAMES` frames and then bounces. The center of the straight path has the same
distribution for all directions, so that only the order of frames shows the direction. The same arguments record the
same videos. `--speed 2` moves the same digits twice as fast in the same directions, like a video at double speed.

With `--two_motions` a digit moves along one axis for half of the video and along the other for the rest, and
`first_motion` replaces `direction`: 0 if it first moves sideways, 1 if it first moves up or down. A path of one kind,
played backward, is one of the other kind, so that only the order of frames distinguishes them.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Features, Value, Video
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.settings import exit_on_user_error


IMAGE_SIZE = 64  # pixels, height and width of a video
DIGIT_SIZE = 24  # pixels, height and width of a digit
DIRECTIONS = 8
SPEED = (1.5, 3.0)  # range in pixels per frame
MAX_SPEED = 2.0  # of --speed
CELLS = 4  # `place` is one of 4 x 4 cells
STRAIGHT_FRAMES = 8  # frames without a bounce at the start: `direction` holds for them
TRAIN_DIGITS = 1297  # of 1797
FRAMES_PER_SECOND = 10.0
MOTIONS = {False: "direction", True: "first_motion"}  # the column, without and with --two_motions


def enlarge(digit: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A digit (8, 8) with values 0 to 16 as brightness 0 to 1 on a canvas (64, 64), bilinear.

    `offset` (2,) are x and y of the digit's top left corner in pixels, with subpixel accuracy.
    """
    padded = np.pad(digit / 16, 1)
    scale = DIGIT_SIZE / len(digit)
    weights = []
    for start in offset:
        position = (np.arange(IMAGE_SIZE) + 0.5 - start) / scale + 0.5  # in the padded digit's pixels
        distance = np.abs(position[:, None] - np.arange(len(padded)))
        weights.append(np.maximum(1 - distance, 0))
    return weights[1] @ padded @ weights[0].T


def sample_path(rng: np.random.Generator, frames: int, direction: int, speed: float = 1.0) -> np.ndarray:
    """Offsets (frames, 2) of a digit that starts in `direction`, straight at first, and bounces off the edges.

    At `speed` 2, straight paths lie closer to the middle; the ends of the longest are reflected by up to a pixel.
    """
    angle = direction * 2 * np.pi / DIRECTIONS
    velocity = speed * rng.uniform(*SPEED) * np.array([np.cos(angle), np.sin(angle)])
    room = IMAGE_SIZE - DIGIT_SIZE
    middle = (STRAIGHT_FRAMES - 1) / 2
    margin = min(max(SPEED) * max(speed, 1.0) * middle, room / 2)
    position = rng.uniform(margin, room - margin, 2) + (np.arange(frames)[:, None] - middle) * velocity
    return room - np.abs(position % (2 * room) - room)  # reflected at 0 and at `room`


def sample_turn(rng: np.random.Generator, frames: int, first_motion: int) -> np.ndarray:
    """Offsets (frames, 2) of a digit that moves sideways, then up or down (0), or the reverse of such a path (1)."""
    room = IMAGE_SIZE - DIGIT_SIZE
    steps = np.zeros((frames, 2))
    half = frames // 2
    longest = room / max(half, frames - half)  # pixels per frame, so that the path stays inside
    for axis, part in enumerate((slice(1, half + 1), slice(half + 1, None))):
        speed = rng.uniform(SPEED[0], max(SPEED[0], min(SPEED[1], longest)))
        steps[part, axis] = rng.choice([-1, 1]) * min(speed, longest)
    path = steps.cumsum(axis=0)
    path += rng.uniform(-path.min(axis=0), room - path.max(axis=0))
    return path[::-1] if first_motion else path


def record_videos(
    split: str, videos: int, frames: int, seed: int, two_motions: bool = False, speed: float = 1.0
) -> Iterator[dict[str, Any]]:
    """The rows of videos 0 .. videos - 1; each depends only on the seed and its number."""
    digits = load_digits()
    chosen = slice(0, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    images, names = digits.images[chosen], digits.target[chosen]
    for number in range(videos):
        rng = np.random.default_rng([seed, number])
        index = int(rng.integers(len(images)))
        motion = int(rng.integers(2 if two_motions else DIRECTIONS))
        path = sample_turn(rng, frames, motion) if two_motions else sample_path(rng, frames, motion, speed)
        brightness = np.stack([enlarge(images[index], offset) for offset in path])
        video = np.repeat((255 * brightness + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
        column, row = np.clip(path[-1] / (IMAGE_SIZE - DIGIT_SIZE) * CELLS, 0, CELLS - 1).astype(int)
        data = encode_video(video, fps=FRAMES_PER_SECOND, preset="ultrafast")
        yield {
            "video": {"bytes": data, "path": f"{split}-{seed}-{number:06d}.mp4"},
            "fps": FRAMES_PER_SECOND,
            "digit": int(names[index]),
            "place": int(row * CELLS + column),
            MOTIONS[two_motions]: motion,
        }


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; it must not exist or be empty")
    parser.add_argument("--split", required=True, choices=["train", "test"], help="which digits")
    parser.add_argument("--videos", required=True, type=int, help="number of videos")
    parser.add_argument("--frames", default=24, type=int, help="frames per video (default 24)")
    parser.add_argument("--seed", default=0, type=int, help="same seed, same videos (default 0)")
    parser.add_argument("--num_shards", default=8, type=int, help="parquet files (default 8)")
    parser.add_argument("--two_motions", action="store_true", help="record two motions, labeled by their order")
    parser.add_argument("--speed", default=1.0, type=float, help="factor of the digits' speed (default 1)")
    options = parser.parse_args(arguments)
    check_at_least(options, "--", videos=1, frames=4 if options.two_motions else 1, num_shards=1, seed=0)
    if not 0 < options.speed <= MAX_SPEED or (options.two_motions and options.speed != 1):
        raise ValueError(
            f"--speed is {options.speed:g}, but a number above 0 and up to {MAX_SPEED:g} is expected (faster have "
            "no room for a straight path), and 1 with --two_motions."
        )
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "num_shards")}
    rows = tqdm(record_videos(**settings), total=options.videos, desc="recording", unit="video")
    names = ("digit", "place", MOTIONS[options.two_motions])
    columns = {"video": Video(decode=False), "fps": Value("float32"), **dict.fromkeys(names, Value("int64"))}
    write_shards(rows, options.output, Features(columns), num_shards=min(options.num_shards, options.videos))


if __name__ == "__main__":
    main()
