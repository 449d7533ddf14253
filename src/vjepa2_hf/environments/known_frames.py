"""Frames that a world model's predictions are compared with, to show what it imagines.

Letters: F frames, H W pixels, S state, N tokens and D width of a latent.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from ..data.episodes import read_episodes
from ..modeling_decoder import VJepa2PixelDecoder
from ..pipelines.latent_planning import VJepa2Planner
from ..visualization.imagination import Imagery, check_decoder
from ..visualization.rollout_windows import ENCODED_AT_ONCE, encode_frames
from .plane import PlaneEnv


KNOWN = 600  # F
EPISODES = 40  # of recorded ones, which give the same number of frames each
SECONDS = 8.0  # for encoding; larger models know fewer frames


def sample_frames(env: PlaneEnv, count: int = KNOWN, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random states of an environment as images: uint8 (F, H, W, 3) and the states (F, S)."""
    states = env.sample_starts(np.random.default_rng(seed), count)
    return np.stack([env.render_state(state) for state in states]), states


def read_frames(episodes: str, count: int = KNOWN, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames of recorded episodes in random order, uint8 (n, H, W, 3), and their states (n, S) if all have them."""
    frames, states, each = [], [], -(-count // EPISODES)
    for episode in read_episodes(episodes, max_episodes=EPISODES):
        kept = np.unique(np.linspace(0, len(episode["frames"]) - 1, each).round().astype(int))
        frames.append(episode["frames"][kept])
        states.append(None if episode["states"] is None else episode["states"][kept])
    order = np.random.default_rng(seed).permutation(sum(map(len, frames)))[:count]
    known = all(each is not None for each in states)
    return np.concatenate(frames)[order], np.concatenate(states)[order] if known else None


@torch.no_grad()
def make_imagery(
    planner: VJepa2Planner,
    frames: np.ndarray,
    states: np.ndarray | None = None,
    render: Callable[[np.ndarray], np.ndarray] | None = None,
    decoder: VJepa2PixelDecoder | None = None,
    seconds: float = SECONDS,
) -> Imagery:
    """Encodes known frames, uint8 (n, H, W, 3), as many as the time allows and at least one batch. Arguments as of
    `Imagery`; states are (n, S)."""
    if decoder is not None:
        check_decoder(decoder, planner.model)
    end, latents = time.monotonic() + seconds, []
    for first in range(0, len(frames), ENCODED_AT_ONCE):
        if latents and time.monotonic() > end:
            break
        part = frames[first : first + ENCODED_AT_ONCE]
        latents.append(encode_frames(planner.model, planner.video_processor, part))
    latents = torch.cat(latents)
    states = None if states is None else states[: len(latents)]
    return Imagery(frames[: len(latents)], latents, states, render, decoder)
