"""Variance of an encoder's features: how much position alone explains, next to an encoder with random weights.

Shapes: T frames, C channels, (T', H', W') grid of tokens, P = H'·W' positions of a frame, D width of a token.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling_encoder import VJepa2Encoder
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .figures import MAX_COLUMNS, evenly_spaced, plot_rows
from .measures import dense_features, feature_colors


if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRACTIONS = ("position", "time", "rest")


def random_encoder(encoder: VJepa2Encoder, seed: int = 0) -> VJepa2Encoder:
    """An untrained encoder with the same config; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VJepa2Encoder(encoder.config).eval()


def variance_fractions(features: torch.Tensor) -> dict[str, float]:
    """Splits the variance of tokens (T', H', W', D) into the fractions of position alone, time alone, and the rest.

    A two-way analysis of variance without replication; the fractions sum to 1. `position` is the variance between
    positions of the mean over time. It is an upper bound for what position alone explains: static content counts as
    position too, and even noise has 1 / T' of its variance there. For clips concatenated along time, `position` only
    counts what is the same in all of them, and `time` separates whole frames and clips.
    """
    tokens = features.double().flatten(1, 2)  # (T', P, D)
    tokens = tokens - tokens.mean(dim=(0, 1))
    total = tokens.square().sum(-1).mean().item()
    if total < 1e-20:
        raise ValueError("All tokens of the clip are equal, so there is no variance to explain; use another clip.")
    position = tokens.mean(dim=0).square().sum(-1).mean().item() / total
    time = tokens.mean(dim=1).square().sum(-1).mean().item() / total
    return {"position": position, "time": time, "rest": 1 - position - time}


def compare_with_random(
    encoder: VJepa2Encoder, processor: VJepa2VideoProcessor, clips: list[np.ndarray]
) -> "tuple[Figure, dict[str, Any]]":
    """Plots the first clip's features, and computes the variance fractions of all clips (uint8 (T, H, W, 3) each) for
    the encoder and for a random one of the same config.

    Returns:
        The figure, and `{"grid": [T', H', W'], "trained": fractions, "random": fractions}` of the first clip (see
        `variance_fractions`). With several clips also `"over_clips": {"clips": n, "trained": fractions, "random":
        fractions}`, where the static content of a single clip does not count as position.
    """
    pixels = [processor(clip, return_tensors="pt")["pixel_values_videos"] for clip in clips]  # (1, T, C, H, W) each
    encoders = {"trained": encoder, "random": random_encoder(encoder)}
    features = {name: [dense_features(model, clip) for clip in pixels] for name, model in encoders.items()}
    first = {name: values[0] for name, values in features.items()}
    if len(first["trained"]) < 2:
        needed = 2 * encoder.config.tubelet_size
        raise ValueError(f"The clip has {len(clips[0])} frames, but at least {needed} are needed.")
    numbers = {"grid": list(first["trained"].shape[:3]), **{name: variance_fractions(first[name]) for name in first}}
    if len(clips) > 1:
        same = {name: [part for part in values if part.shape == values[0].shape] for name, values in features.items()}
        over = {name: variance_fractions(torch.cat(values)) for name, values in same.items()}
        numbers["over_clips"] = {"clips": len(same["trained"]), **over}
    return _plot_features(pixels[0][0], first, processor), numbers


def list_fractions(numbers: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Titled rows of the fractions that `compare_with_random` returns."""
    parts = {"this clip": numbers}
    if over := numbers.get("over_clips"):
        parts[f"over {over['clips']} clips"] = over
    return [(f"{kind} encoder, {name}", part[kind]) for name, part in parts.items() for kind in ("trained", "random")]


def _plot_features(clip: torch.Tensor, features: dict[str, torch.Tensor], processor: VJepa2VideoProcessor) -> "Figure":
    """Frames (T, C, H, W), and each encoder's features (T', H', W', D) as colors, with and without their mean."""
    steps = len(next(iter(features.values())))
    shown = evenly_spaced(steps, MAX_COLUMNS)
    first_frames = shown * len(clip) // steps
    rows = {"frames": processor.to_images(clip[first_frames])}
    for name, values in features.items():
        moving = values - values.mean(dim=0)
        rows[f"{name} encoder:\nfeatures"] = feature_colors([values])[0][shown]
        rows[f"{name} encoder:\nchanges"] = feature_colors([moving], around_zero=True)[0][shown]
    return plot_rows(list(rows.items()), [f"frame {frame}" for frame in first_frames])
