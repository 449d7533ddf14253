"""The numbers behind the figures: features as colors, nearest neighbors, losses by position.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N tokens of a clip, D width, Q queries,
M gallery frames, k neighbors.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..specs import check_choice


Levels = Literal["last", "all"]


def grid_features(encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor, levels: Levels = "last") -> torch.Tensor:
    """An encoder's tokens on their grid: clips (B, T, C, H, W) -> float32 (B, T', H', W', D), without gradient.

    Args:
        levels: "last" block, or "all": those of the encoder's `output_levels` concatenated (..., L·D).
    """
    check_choice("levels", levels, ("last", "all"))
    grid = encoder.get_grid(pixel_values_videos)
    if levels == "all" and encoder.config.output_levels is None:
        raise ValueError("levels is 'all', but the encoder's output_levels are None; expected 'last'.")
    return encoder.encode(pixel_values_videos, levels=levels == "all").unflatten(1, grid).float()


def dense_features(encoder: VJepa2Encoder, pixel_values_videos: torch.Tensor, levels: Levels = "last") -> torch.Tensor:
    """`grid_features` of one clip (1, T, C, H, W): float32 (T', H', W', D)."""
    return grid_features(encoder, pixel_values_videos, levels)[0]


def feature_colors(features: Sequence[torch.Tensor], around_zero: bool = False) -> list[np.ndarray]:
    """The first three principal components of features as red, green and blue.

    All clips share one basis and one scale, so that equal colors mean equal components over time and across clips.

    Args:
        features: (T', H', W', D) per clip; grids may differ.
        around_zero: 0 becomes middle gray, and the components keep their relative sizes (for features without their
            means). `False`: each component is scaled from its 1st to its 99th percentile.

    Returns:
        Floats (T', H', W', 3) in 0..1 per clip.
    """
    tokens = torch.cat([clip.detach().double().cpu().flatten(0, 2) for clip in features])
    _check_finite("features", tokens)
    tokens = tokens - tokens.mean(dim=0)
    _, vectors = torch.linalg.eigh(tokens.T @ tokens)
    vectors = vectors[:, -3:].flip(1)
    largest = vectors.abs().argmax(dim=0)
    # the solver leaves the sign open
    vectors = vectors * vectors[largest, torch.arange(vectors.shape[1])].sign()
    components = torch.nn.functional.pad(tokens @ vectors, (0, 3 - vectors.shape[1])).numpy()
    low, high = np.percentile(components, [1, 99], axis=0)
    if around_zero:
        low, high = np.percentile(np.abs(components), 99.5) * np.array([-1, 1])
    span = np.asarray(high - low)
    varies = span > 1e-9 * max(span.max(), 1e-9)  # smaller spans are rounding errors
    colors = np.where(varies, (components - low) / np.where(varies, span, 1), 0.5).clip(0, 1)
    ends = np.cumsum([clip.shape[:3].numel() for clip in features])[:-1]
    return [part.reshape(*clip.shape[:3], 3) for part, clip in zip(np.split(colors, ends), features, strict=True)]


def nearest_frames(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    k: int,
    metric: Literal["cosine", "l2"] = "cosine",
    groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k frames of a gallery (M, D) nearest to each query (Q, D) in latent space.

    Args:
        metric: "cosine" is 1 − cosine after subtracting the gallery's mean (without that all cosines are near 1), "l2"
            the Euclidean distance.
        groups: (M,) integers, for example the clip of each frame; only the nearest frame of each group is returned.

    Returns:
        Distances (Q, k), nearest first, and indices (Q, k) into the gallery, both on the CPU.
    """
    if metric not in ("cosine", "l2"):
        raise ValueError(f"metric is {metric!r}; expected 'cosine' or 'l2'.")
    groups = torch.arange(len(gallery)) if groups is None else groups
    if not 1 <= k <= len(groups.unique()):
        raise ValueError(
            f"{k} neighbors were requested; expected 1 to {len(groups.unique())}, the number of frames (or of clips, "
            "which give one frame each) to compare with."
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
    for order in distances.argsort(dim=1, stable=True):
        _, first = np.unique(groups[order], return_index=True)  # the nearest frame of each group
        rows.append(order[np.sort(first)[:k]])
    indices = torch.stack(rows)
    return distances.gather(1, indices), indices


def _check_finite(name: str, values: torch.Tensor) -> None:
    """Refuses vectors (N, D) with NaN or infinity, which would spread to all vectors."""
    wrong = int((~values.isfinite()).any(dim=-1).sum())
    if wrong:
        raise ValueError(
            f"{name} has {wrong} of {len(values)} vectors that are not finite; check the frames and the weights for "
            "NaN, or compute in float32."
        )


class PositionLosses(NamedTuple):
    """The mean loss of each grid position when it is masked."""

    mean: torch.Tensor  # float32 (T', H', W'); NaN where no mask covered the position
    count: torch.Tensor  # int64 (T', H', W'), how often the position was masked, over clips, mask sets and samples


@torch.no_grad()
def loss_by_position(
    model: VJepa2ForMaskedLatentPrediction,
    pixel_values_videos: torch.Tensor,
    samplers: Sequence[Callable],
    num_samples: int = 16,
    seed: int = 0,
    mask_token_index: int | None = None,
) -> PositionLosses:
    """The prediction loss |ẑ − z|^p / p of each grid position when it is masked.

    Args:
        pixel_values_videos: (B, T, C, H, W), one batch, over which batch-normalized targets are normalized.
        samplers: mask samplers (see `vjepa2_hf.masking.build_mask_samplers`), one per mask set.
        num_samples: how often the masks of the batch are sampled.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1.")
    grid = model.encoder.get_grid(pixel_values_videos)
    generator = torch.Generator().manual_seed(seed)
    sums, count = torch.zeros(grid).flatten(), torch.zeros(grid, dtype=torch.int64).flatten()
    targets = model.encode_targets(pixel_values_videos)
    for _ in range(num_samples):
        masks = [sampler(len(pixel_values_videos), grid, generator) for sampler in samplers]
        context, target = ([ids.to(targets.device) for ids in side] for side in zip(*masks, strict=True))
        output = model(pixel_values_videos, context, target, mask_token_index, targets=targets)
        for predicted, wanted, ids in zip(output.predicted_latents, output.target_latents, target, strict=True):
            ids, errors = ids.flatten().cpu(), model.latent_errors(predicted, wanted).flatten().cpu()
            sums.index_add_(0, ids, errors)
            count.index_add_(0, ids, torch.ones_like(ids))
    return PositionLosses((sums / count).unflatten(0, grid), count.unflatten(0, grid))  # 0 / 0 is NaN: never masked
