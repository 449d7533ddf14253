"""Figures of what a model makes of a few clips, from pixels to a plot; and an animation of features.

Shapes: T frames, C channels, H W pixels, (T', H', W') grid of tokens, N tokens of a time step, D width.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ..masking import PUBLISHED_MASKS, build_mask_samplers
from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..training.settings import read_yaml
from . import figures
from .measures import PositionLosses, dense_features, loss_by_position, nearest_frames


# Arguments of `figures.write_figure`: a function that plots the frames it is given, and the number of frames
Plot = tuple[Callable[[Sequence[int] | None], Any], int]


def animate_features(frames: np.ndarray, colors: np.ndarray, fps: float, side: int = 256) -> bytes:
    """A clip beside its features, as an animated WebP that repeats.

    Args:
        frames: uint8 (T, H, W, 3).
        colors: floats (T', H', W', 3) of the same clip, from [`~vjepa2_hf.visualization.measures.feature_colors`].
        fps: frames per second.
        side: height of both images, in pixels.
    """
    import PIL.Image

    size = (max(1, round(side * frames.shape[2] / frames.shape[1])), side)
    gap = np.full((side, 8, 3), 255, np.uint8)
    images = []
    for number, frame in enumerate(frames):
        features = (colors[number * len(colors) // len(frames)] * 255).round().astype(np.uint8)
        pair = [np.asarray(PIL.Image.fromarray(part).resize(size, 0)) for part in (frame, features)]
        images.append(PIL.Image.fromarray(np.concatenate([pair[0], gap, pair[1]], axis=1)))
    buffer = io.BytesIO()
    timing = {"duration": round(1000 / fps), "loop": 0}
    images[0].save(buffer, "WEBP", save_all=True, append_images=images[1:], quality=90, method=0, **timing)
    return buffer.getvalue()


def plot_neighbors(
    encoder: VJepa2Encoder,
    pixels: Sequence[torch.Tensor],
    frames: Sequence[np.ndarray],
    names: Sequence[str],
    neighbors: int = 4,
    metric: Literal["cosine", "l2"] = "cosine",
    pool: Literal["tokens", "frame"] = "tokens",
) -> Plot:
    """The time steps of the first clip, with the nearest ones of the other clips, one from each.

    Args:
        pixels: (T, C, H, W) per clip; T may differ.
        frames: uint8 (T, H, W, 3) per clip, as the model sees them.
        pool: compare all tokens of a time step, or their mean.
    """
    tokens = [dense_features(encoder, clip[None]).flatten(1, 2) for clip in pixels]  # (T', N, D)
    latents = [clip.mean(dim=1) if pool == "frame" else clip.flatten(1) for clip in tokens]
    others = [(clip, step) for clip, part in enumerate(latents[1:], start=1) for step in range(len(part))]
    groups, gallery = torch.tensor([clip for clip, _ in others]), torch.cat(latents[1:])
    distances, indices = nearest_frames(latents[0], gallery, neighbors, metric, groups=groups)

    def first_frame(clip: int, step: int) -> int:
        return step * (len(pixels[clip]) // len(latents[clip]))

    def image(clip: int, step: int) -> np.ndarray:
        return frames[clip][first_frame(clip, step)]

    steps = len(latents[0])
    found = [[others[at] for at in row] for row in indices.tolist()]
    labels = [f"frame {first_frame(0, step)}" for step in range(steps)]
    captions = [[f"{names[clip]}, frame {first_frame(clip, step)}" for clip, step in row] for row in found]
    queries = np.stack([image(0, step) for step in range(steps)])
    nearest = np.stack([np.stack([image(clip, step) for clip, step in row]) for row in found])
    title = f"{metric} distance of latents to {names[0]}"
    return partial(figures.plot_nearest_frames, queries, nearest, distances, labels, captions, title=title), steps


class Masks(NamedTuple):
    """Mask samplers, the mask token, and the file that they come from; `None`: the published masks."""

    samplers: list[Callable]
    mask_token_index: int | None
    source: Path | None

    @classmethod
    def of_run(cls, model: str | Path, file: Path | None = None) -> "Masks":
        """Those of `file`, else of the run that the model comes from (`config.yaml` above `final/`), else the
        published ones."""
        own = Path(model).parent / "config.yaml"
        source = file or (own if own.is_file() else None)
        settings = {} if source is None else read_yaml(source)
        samplers = build_mask_samplers(settings.get("masks", PUBLISHED_MASKS))
        return cls(samplers, settings.get("mask_token_index"), source)


def plot_losses(
    model: VJepa2ForMaskedLatentPrediction,
    pixels: Sequence[torch.Tensor],
    masks: Masks,
    num_samples: int = 16,
    seed: int = 0,
) -> tuple[Plot, PositionLosses]:
    """The prediction loss of each position when it is masked, over clips (T, C, H, W) of one size."""
    clips = torch.stack(list(pixels))
    losses = loss_by_position(model, clips, masks.samplers, num_samples, seed, masks.mask_token_index)
    kind = "published masks" if masks.source is None else f"{masks.source.name}'s masks"
    title = f"prediction loss when masked: {len(clips)} clips, {num_samples} samples of {kind}"
    size = clips.shape[1] // len(losses.mean)
    return (partial(figures.plot_loss_by_position, losses.mean, size, title=title), len(losses.mean)), losses
