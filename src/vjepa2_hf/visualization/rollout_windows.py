"""Windows of episodes, encoded frame by frame, that world models are measured on.

Letters: B windows, T frames, N tokens and D width of a latent.
"""

import numpy as np
import torch

from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor


ENCODED_AT_ONCE = 64  # frames


def encode_frames(
    model: VJepa2WorldModel, processor: VJepa2VideoProcessor, frames: np.ndarray, targets: bool = True
) -> torch.Tensor:
    """uint8 frames (T, H, W, 3) -> latents (T, N, D): those that predictions are compared with, or start from."""
    parts = []
    for first in range(0, len(frames), ENCODED_AT_ONCE):
        pixels = processor(frames[first : first + ENCODED_AT_ONCE], return_tensors="pt")["pixel_values_videos"]
        parts.append((model.encode_targets if targets else model.encode)(pixels.to(model.device))[0])
    return torch.cat(parts)


def window_frames(length: int, past: int, future: int, count: int) -> np.ndarray:
    """Up to `count` windows spread over an episode of `length` frames: frame numbers (B, past + future)."""
    room = length - past - future
    if room < 0:
        return np.zeros((0, past + future), np.int64)
    starts = np.unique(np.linspace(0, room, count).round().astype(np.int64))
    return starts[:, None] + np.arange(past + future)
