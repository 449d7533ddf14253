"""The numbers behind the figures: features as colors, nearest neighbors, losses by position.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N tokens of a clip, D width, Q queries,
M frames to compare with, k neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction


def dense_features(encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor) -> torch.Tensor:
    """An encoder's tokens in their places: one clip (1, T, C, H, W) -> float32 (T', H', W', D), without gradient."""
    grid = encoder.get_grid(pixel_values_videos)
    return encoder.encode(pixel_values_videos)[0].unflatten(0, grid).float()


def feature_colours(features: Sequence[torch.Tensor], around_zero: bool = False) -> list[np.ndarray]:
    """The first three principal components of features as red, green and blue. All clips share one basis and one
    scale: equal colours are equal components, over time and from clip to clip.

    Args:
        features: (T', H', W', D) a clip; grids may differ.
        around_zero: 0 becomes middle grey, and the components keep their relative sizes (for features without their
            means); else each component fills its range, from its 1st to its 99th percentile.

    Returns:
        Floats (T', H', W', 3) in 0..1, a clip each.

    Raises:
        ValueError: features that are not finite.
    """
    tokens = torch.cat([clip.detach().double().cpu().flatten(0, 2) for clip in features])
    _check_finite("features", tokens)
    tokens = tokens - tokens.mean(dim=0)
    _, vectors = torch.linalg.eigh(tokens.T @ tokens)
    vectors = vectors[:, -3:].flip(1)
    largest = vectors.abs().argmax(dim=0)
    vectors = vectors * vectors[largest, torch.arange(vectors.shape[1])].sign()  # else the sign is the solver's whim
    components = torch.nn.functional.pad(tokens @ vectors, (0, 3 - vectors.shape[1])).numpy()
    if around_zero:
        high = np.percentile(np.abs(components), 99.5)
        low = -high
    else:
        low, high = np.percentile(components, [1, 99], axis=0)
    span = np.asarray(high - low)
    varies = span > 1e-9 * max(span.max(), 1e-9)  # below is rounding
    colours = np.where(varies, (components - low) / np.where(varies, span, 1), 0.5).clip(0, 1)
    ends = np.cumsum([clip.shape[:3].numel() for clip in features])[:-1]
    return [part.reshape(*clip.shape[:3], 3) for part, clip in zip(np.split(colours, ends), features, strict=True)]


def nearest_frames(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    k: int,
    metric: Literal["cosine", "l2"] = "cosine",
    groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k frames that are nearest to each query by their latents.

    Args:
        queries: (Q, D).
        gallery: (M, D).
        k: neighbours.
        metric: "cosine" is 1 − cosine of the latents less the gallery's mean (what all frames share would leave all
            cosines near 1), "l2" the Euclidean distance.
        groups: (M,) integers: of each group the nearest frame alone counts (frames of one clip are all alike).

    Returns:
        Distances (Q, k), nearest first, and places (Q, k) in the gallery, both on the CPU.

    Raises:
        ValueError: another metric; fewer than k frames or groups; latents that are not finite.
    """
    if metric not in ("cosine", "l2"):
        raise ValueError(f"metric is {metric!r}; expected 'cosine' or 'l2'.")
    groups = torch.arange(len(gallery)) if groups is None else groups
    if not 1 <= k <= len(groups.unique()):
        raise ValueError(
            f"{k} neighbours were asked for; expected 1 to {len(groups.unique())}, as many as there are frames (or "
            "clips, of which one frame each is taken) to compare with."
        )
    queries, gallery = queries.detach().float().cpu(), gallery.detach().float().cpu()
    _check_finite("queries", queries)
    _check_finite("gallery", gallery)
    if metric == "cosine":
        mean = gallery.mean(dim=0)
        queries, gallery = (torch.nn.functional.normalize(part - mean, dim=-1) for part in (queries, gallery))
        distances = 1 - queries @ gallery.T
    else:
        distances = torch.cdist(queries, gallery)
    rows = []
    for order in distances.argsort(dim=1, stable=True).tolist():
        first = {}  # of each group its nearest, in order
        for place in order:
            first.setdefault(int(groups[place]), place)
        rows.append(list(first.values())[:k])
    places = torch.tensor(rows)
    return distances.gather(1, places), places


def _check_finite(name: str, values: torch.Tensor) -> None:
    """Refuses vectors (N, D) with NaN or infinity, which would spread to all others."""
    wrong = int((~values.isfinite()).any(dim=-1).sum())
    if wrong:
        raise ValueError(
            f"{name} has {wrong} of {len(values)} vectors that are not finite; expected numbers: look for frames or "
            "weights that hold NaN, or compute in float32."
        )


class PositionLosses(NamedTuple):
    """mean: float32 (T', H', W'), of each place of the grid over the masks that hid it; NaN where none did.
    count: int64 (T', H', W'), how often (over clips, masks and draws) it was hidden."""

    mean: torch.Tensor
    count: torch.Tensor


@torch.no_grad()
def loss_by_position(
    model: VJepa2ForMaskedLatentPrediction,
    pixel_values_videos: torch.Tensor,
    samplers: Sequence[Callable],
    draws: int = 16,
    seed: int = 0,
    mask_token_index: int | None = None,
) -> PositionLosses:
    """The prediction loss |ẑ − z|^p / p of each place of the grid when it is hidden.

    Args:
        pixel_values_videos: (B, T, C, H, W), one batch: over it targets are normalised, where the model does that.
        samplers: mask samplers as of `vjepa2_hf.masking.build_mask_samplers`, a mask set each.
        draws: how often masks of the batch are drawn.
        seed: of the masks.
        mask_token_index: as of the model's forward.

    Raises:
        ValueError: no draw, or what samplers and model refuse.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}, but masks must be drawn at least once.")
    grid = model.encoder.get_grid(pixel_values_videos)
    generator = torch.Generator().manual_seed(seed)
    sums, count = torch.zeros(grid).flatten(), torch.zeros(grid, dtype=torch.int64).flatten()
    targets = model.encode_targets(pixel_values_videos)
    for _ in range(draws):
        masks = [sampler(len(pixel_values_videos), grid, generator) for sampler in samplers]
        context, target = ([ids.to(targets.device) for ids in side] for side in zip(*masks, strict=True))
        output = model(pixel_values_videos, context, target, mask_token_index, targets=targets)
        for predicted, wanted, ids in zip(output.predicted_latents, output.target_latents, target, strict=True):
            ids, errors = ids.flatten().cpu(), model.latent_errors(predicted, wanted).flatten().cpu()
            sums.index_add_(0, ids, errors)
            count.index_add_(0, ids, torch.ones_like(ids))
    return PositionLosses((sums / count).unflatten(0, grid), count.unflatten(0, grid))  # 0 / 0 is NaN: never hidden


__all__ = ["PositionLosses", "dense_features", "feature_colours", "loss_by_position", "nearest_frames"]
