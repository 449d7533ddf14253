"""Videos whose frames tell their number, and shards of them, for several test files."""

import numpy as np
from datasets import Features, Value, Video

from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.video_io import encode_video


CLIP_FEATURES = Features({"video": Video(decode=False), "path": Value("string")})


def numbered_frames(num_frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Grey frames whose value tells their number: 4 per frame."""
    return (
        np.full((num_frames, height, width, 3), 4, np.uint8)
        * np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    )


def numbers_of(frames) -> list[int]:
    """The frame numbers back from the decoded grey values (T, H, W, C)."""
    return np.rint(np.asarray(frames, np.float32).mean((1, 2, 3)) / 4).astype(int).tolist()


def numbered_video(num_frames: int = 30, fps: float = 12) -> bytes:
    return encode_video(numbered_frames(num_frames), fps=fps)


def write_numbered_shards(folder, num_videos: int = 13, num_shards: int = 4, bad: tuple = (5,)) -> str:
    """Videos v00, v01, ... of 30 frames at 12 fps; the `bad` ones do not decode."""
    video = numbered_video()
    rows = (
        {"video": {"bytes": b"no video" if i in bad else video, "path": None}, "path": f"v{i:02d}"}
        for i in range(num_videos)
    )
    assert write_shards(rows, folder, CLIP_FEATURES, num_shards=num_shards) == num_videos
    return str(folder)
