"""Terms that may stand beside the prediction loss of masked latent prediction, each a function of tensors alone.

All are means over the clips of one process, in float32, and go down with training; who adds them multiplies them by a
weight.

Shapes: B clips, K tokens of a context, M of a target, N places in a clip's grid (T', H', W'), D width.
"""

import math

import torch
from torch import nn

from .configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig


def auxiliary_losses(
    config: VJepa2MaskedLatentPredictionConfig,
    context: torch.Tensor,
    context_mask: torch.Tensor,
    predicted: torch.Tensor,
    target: torch.Tensor,
    target_mask: torch.Tensor,
    grid: tuple[int, int, int],
) -> dict[str, torch.Tensor]:
    """The terms of one mask set that the config gives a weight, by name, not yet times that weight.

    The two temporal ones, of seed 000, act on the predictions. Variance and covariance act on the context encoder's
    tokens: it is the encoder that collapses, and a term on the predictions could be met by the predictor alone.

    Args:
        context: the context encoder's tokens (B, K, D) at ids (B, K) of the grid (T', H', W').
        predicted, target: (B, M, D) at ids (B, M).

    Raises:
        ValueError: a term that compares clips got one clip.
    """
    wanted, terms = config.auxiliary_weights, {}
    comparing = [name for name in wanted if name != "temporal_diversity"]
    if len(context) < 2 and comparing:
        name = comparing[0]
        raise ValueError(f"{name}_weight={wanted[name]} needs at least 2 clips in a batch to compare; got 1.")
    with torch.autocast(context.device.type, enabled=False):
        if "temporal_diversity" in wanted:
            terms["temporal_diversity"] = temporal_diversity_loss(predicted, target_mask, grid)
        if "temporal_contrastive" in wanted:
            temperature = config.temporal_contrastive_temperature
            terms["temporal_contrastive"] = temporal_contrastive_loss(predicted, target, temperature)
        if wanted.keys() & {"variance", "covariance"}:
            covariance = covariance_within_places(context, context_mask, math.prod(grid))
        if "variance" in wanted:
            terms["variance"] = variance_loss(covariance, config.variance_margin)
        if "covariance" in wanted:
            terms["covariance"] = covariance_loss(covariance)
    return terms


def temporal_diversity_loss(
    predicted: torch.Tensor, target_mask: torch.Tensor, grid: tuple[int, int, int]
) -> torch.Tensor:
    """−Var_t: the less the predictions change with time, the higher (seed 000, "Temporal Collapse", with weight 0.1).

    The seed has one vector a frame. Here it is the variance (with n − 1) over the times at which one place of one clip
    is predicted, mean over channels and over places predicted at two times or more; 0 without such a place.

    Args:
        predicted: predictions (B, M, D) at the ids `target_mask` (B, M).
        grid: (T', H', W').
    """
    squares, count = squares_over_time(predicted.float(), target_mask, grid)
    variance = squares.mean(dim=-1) / (count - 1).clamp_min(1)
    return -variance.sum() / (count > 1).sum().clamp_min(1)


def temporal_contrastive_loss(predicted: torch.Tensor, target: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """A clip's predictions shall be nearer to its own targets than to those of the batch's other clips.

    Seed 000 says no more than "positive: same video, negative: different videos". Here it is InfoNCE (eq. 4 of arXiv
    1807.03748) on cosine similarities of means over the hidden tokens: what was predicted of clip i from the rest of
    it, against what hides in every clip. The negatives are the clips of one process.

    Args:
        predicted, target: (B, M, D).
        temperature: what similarities are divided by.
    """
    anchors, keys = (nn.functional.normalize(x.float().mean(dim=1), dim=-1) for x in (predicted, target))
    similarity = anchors @ keys.T / temperature
    return nn.functional.cross_entropy(similarity, torch.arange(len(keys), device=keys.device))


def variance_loss(covariance: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """mean max(0, γ − √(Var + 1e-4)) over channels (VICReg, eq. 1 of arXiv 2105.04906).

    Args:
        covariance: (D, D), see `covariance_within_places`.
        margin: γ, the deviation below which a channel costs.
    """
    return (margin - (covariance.diagonal() + 1e-4).sqrt()).clamp_min(0).mean()


def covariance_loss(covariance: torch.Tensor) -> torch.Tensor:
    """Σ over i ≠ j of C_ij² / D (VICReg, eq. 4 of arXiv 2105.04906).

    Args:
        covariance: (D, D), see `covariance_within_places`.
    """
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / len(covariance)


def covariance_within_places(tokens: torch.Tensor, ids: torch.Tensor, num_places: int) -> torch.Tensor:
    """Covariance (D, D) of tokens around the mean that the batch's clips have at the token's place in the grid.

    VICReg has one embedding a picture and takes its statistics over the batch. A clip has tokens, and there are two
    simple ways to follow: their mean (few samples, and it asks for differences between clips' averages alone), or all
    tokens as samples (which tokens satisfy by saying where they are). Here place and time are taken out, and what is
    left is how clips differ at one place: the same as the meter `target_std`, whose fall is the collapse seen in short
    runs.

    Args:
        tokens: (B, K, D).
        ids: (B, K) their places, 0 to `num_places` − 1. Places that one clip alone shows do not count.
    """
    centred, sizes = _centred(tokens.float().flatten(0, 1), ids.flatten(), num_places)
    freedom = (sizes - 1).clamp_min(0).sum().clamp_min(1)
    return centred.T @ centred / freedom


def squares_over_time(
    tokens: torch.Tensor, ids: torch.Tensor, grid: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much the tokens at a place of a clip change with time.

    Args:
        tokens: (B, M, D) at ids (B, M) of the grid (T', H', W').

    Returns:
        Sums of squared differences from the mean over time (B·H'·W', D), and the number of times (B·H'·W',).
    """
    places = grid[1] * grid[2]
    clips = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    groups = (clips * places + ids % places).flatten()
    centred, sizes = _centred(tokens.flatten(0, 1), groups, len(ids) * places)
    return centred.new_zeros(len(sizes), centred.shape[-1]).index_add(0, groups, centred.square()), sizes


def _centred(tokens: torch.Tensor, groups: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (R, D) less the mean of their group (R,), and the groups' sizes (num_groups,)."""
    sizes = tokens.new_zeros(num_groups).index_add(0, groups, tokens.new_ones(len(groups)))
    sums = tokens.new_zeros(num_groups, tokens.shape[-1]).index_add(0, groups, tokens)
    return tokens - (sums / sizes.clamp_min(1).unsqueeze(1))[groups], sizes
