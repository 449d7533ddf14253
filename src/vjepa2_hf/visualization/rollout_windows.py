"""Windows of episodes: known frames, future frames and the actions between them, encoded frame by frame.

Letters: B windows, K known and P future frames, T0 frames that the model starts from, N tokens and D width of a
latent, A action, S state. Frames of several cameras are a dict by name.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.cameras import Frames, count_frames, process_frames, take_frames
from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor


ENCODED_AT_ONCE = 64  # frames


def encode_frames(
    model: VJepa2WorldModel, processor: VJepa2VideoProcessor, frames: Frames, targets: bool = True
) -> torch.Tensor:
    """Encodes uint8 frames (T, H, W, 3), each on its own, to latents (T, N, D): by the target encoder, to compare with
    predictions, or by the encoder that rollouts start from. Several cameras are the model's views in their order."""
    parts, encode = [], model.encode_targets if targets else model.encode
    for first in range(0, count_frames(frames), ENCODED_AT_ONCE):
        part = take_frames(frames, slice(first, first + ENCODED_AT_ONCE))
        parts.append(encode(process_frames(processor, part).unsqueeze(0).to(model.device))[0])
    return torch.cat(parts)


@dataclass
class Windows:
    """Windows of an episode with K known frames and P future frames."""

    seen: torch.Tensor  # (B, T0, N, D), latents that the model starts from
    known: torch.Tensor  # (B, K, N, D), target latents
    future: torch.Tensor  # (B, P, N, D), target latents
    actions: torch.Tensor  # (B, K-1+P, A)
    proprio_states: torch.Tensor | None  # (B, T0, S)
    states: torch.Tensor | None  # (B, P, S)
    rewards: torch.Tensor | None  # (B, 1+P), the last known reward first
    frames: Frames  # uint8 (B, K+P, H, W, 3)
    embodiment: int | None = None  # of a model with several

    @property
    def future_actions(self) -> torch.Tensor:
        """Actions (B, P, A) of the future steps."""
        return self.actions[:, -self.future.shape[1] :]

    def rollout(self, model: VJepa2WorldModel) -> torch.Tensor:
        """Predicted latents (B, P, N, D)."""
        past = self._context_actions(), self.proprio_states
        return model.rollout(self.seen, self.future_actions, *past, **self._ids())

    def sample(self, model: VJepa2WorldModel, window: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """Samples `count` futures of one window from a stochastic model: (count, P, N, D)."""
        one = slice(window, window + 1)
        actions = self.future_actions[one].unsqueeze(1).expand(-1, count, -1, -1)
        context, states = self._context_actions(), self.proprio_states
        context, states = (None if part is None else part[one] for part in (context, states))
        return model.rollout(self.seen[one], actions, context, states, generator=generator, **self._ids())[0]

    def _ids(self) -> dict[str, int]:
        return {} if self.embodiment is None else {"embodiment_ids": self.embodiment}

    def _context_actions(self) -> torch.Tensor | None:
        frames, first = self.seen.shape[1], self.known.shape[1] - self.seen.shape[1]
        return self.actions[:, first : first + frames - 1] if frames > 1 else None


def cut_windows(
    model: VJepa2WorldModel,
    processor: VJepa2VideoProcessor,
    episode: dict[str, Any],
    past: int,
    future: int,
    count: int,
    embodiment: int | None = None,
) -> Windows | None:
    """Encodes up to `count` windows of K = `past` and P = `future` frames, spread evenly over an episode as
    `read_episodes` yields it, in model steps; None if it is too short for one."""
    last_start = count_frames(episode["frames"]) - past - future
    if last_start < 0:
        return None
    starts = np.unique(np.linspace(0, last_start, count).round().astype(np.int64))
    index = starts[:, None] + np.arange(past + future)  # (B, past + future)
    needed, position = np.unique(index, return_inverse=True)  # a frame of several windows is encoded once
    position, frames = position.reshape(index.shape), take_frames(episode["frames"], needed)
    latents = encode_frames(model, processor, frames)
    seen = latents if model.config.freeze_encoder else encode_frames(model, processor, frames, targets=False)
    first = past - min(past, model.config.context_frames)
    config = model.config
    state_size = config.proprio_dim if embodiment is None else config.embodiment_sizes(embodiment)[1]

    def column(name: str, chosen: np.ndarray) -> torch.Tensor | None:
        return None if episode[name] is None else torch.from_numpy(episode[name][chosen]).to(model.device)

    return Windows(
        seen=seen[position[:, first:past]],
        known=latents[position[:, :past]],
        future=latents[position[:, past:]],
        actions=column("actions", index[:, :-1]),
        proprio_states=column("proprio_states", index[:, first:past]) if state_size else None,
        states=column("states", index[:, past:]),
        rewards=column("rewards", index[:, past - 2 : -1]),
        frames=take_frames(episode["frames"], index),
        embodiment=embodiment,
    )
