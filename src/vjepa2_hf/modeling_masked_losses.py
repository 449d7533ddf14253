"""Loss terms of masked latent prediction beside its prediction loss, and collapse meters.

Shapes: B clips, (T', H', W') grid of tokens, N = T'·H'·W' tokens of a clip, K tokens of a context, M of a target,
D width of the tokens.
"""

import math

import torch
from torch import nn

from .configuration_vjepa2 import VJepa2MaskedLatentPredictionConfig
from .modeling_layers import grid_positions


# --- Context tokens


def distance_to_masked(
    context_mask: torch.Tensor, target_mask: torch.Tensor, grid: tuple[int, int, int]
) -> torch.Tensor:
    """Euclidean distance, in tokens, of the context's tokens at ids (B, K) to the nearest target at ids (B, M):
    (B, K)."""
    positions = grid_positions(grid, context_mask.device)
    pairs = zip(positions[context_mask], positions[target_mask], strict=True)  # one clip at a time: K · M numbers
    return torch.stack([torch.cdist(seen, hidden).amin(dim=-1) for seen, hidden in pairs])


def context_weights(context_mask: torch.Tensor, target_mask: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Weights 1 / √d (B, K) of the context's tokens, d as in `distance_to_masked`: those next to a hidden one count
    most (V-JEPA 2.1)."""
    return distance_to_masked(context_mask, target_mask, grid).rsqrt()


# --- Auxiliary loss terms: means over the clips of one process, in float32, unweighted


def auxiliary_losses(
    config: VJepa2MaskedLatentPredictionConfig,
    context: torch.Tensor,
    context_mask: torch.Tensor,
    predicted: torch.Tensor,
    target: torch.Tensor,
    target_mask: torch.Tensor,
    grid: tuple[int, int, int],
) -> dict[str, torch.Tensor]:
    """The unweighted terms of one mask set that have a weight in the config, by name.

    Variance and covariance act on the context encoder's tokens (B, K, D): the encoder is what collapses, and the
    predictor could satisfy a term on the predictions (B, M, D) by itself.
    """
    weights, terms = config.auxiliary_weights, {}
    over_time = config.temporal_contrastive_negatives == "times"
    within_clips = ("temporal_diversity", "temporal_contrastive") if over_time else ("temporal_diversity",)
    comparing = [name for name in weights if name not in within_clips]
    if len(context) < 2 and comparing:
        name = comparing[0]
        raise ValueError(f"{name}_weight={weights[name]} needs at least 2 clips in a batch to compare; got 1.")
    with torch.autocast(context.device.type, enabled=False):
        if "temporal_diversity" in weights:
            terms["temporal_diversity"] = temporal_diversity_loss(predicted, target_mask, grid)
        if "temporal_contrastive" in weights:
            temperature = config.temporal_contrastive_temperature
            if over_time:
                contrast = time_contrastive_loss(predicted, target, target_mask, grid, temperature)
            else:
                contrast = temporal_contrastive_loss(predicted, target, temperature)
            terms["temporal_contrastive"] = contrast
        if weights.keys() & {"variance", "covariance"}:
            covariance = covariance_at_positions(context, context_mask, math.prod(grid))
        if "variance" in weights:
            terms["variance"] = variance_loss(covariance, config.variance_margin)
        if "covariance" in weights:
            terms["covariance"] = covariance_loss(covariance)
    return terms


def temporal_diversity_loss(
    predicted: torch.Tensor, target_mask: torch.Tensor, grid: tuple[int, int, int]
) -> torch.Tensor:
    """−Var_t of predictions (B, M, D) at ids `target_mask` (B, M): high if they change little over time (temporal
    recipe, "Temporal Collapse", weight 0.1).

    The recipe has one vector per frame. Here it is the variance (with n − 1) over the times at which a spatial
    position of a clip is predicted, averaged over channels and over positions predicted at least twice (else 0).
    """
    squares, count = squares_over_time(predicted.float(), target_mask, grid)
    variance = squares.mean(dim=-1) / (count - 1).clamp_min(1)
    return -variance.sum() / (count > 1).sum().clamp_min(1)


def temporal_contrastive_loss(predicted: torch.Tensor, target: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """InfoNCE (eq. 4 of arXiv 1807.03748) between the predictions and targets (B, M, D) of the batch's clips.

    The temporal recipe says only "positive: same video, negative: different videos". Here similarities are cosines of
    the means over hidden tokens; the negatives are the other clips of the process.
    """
    anchors, keys = (nn.functional.normalize(x.float().mean(dim=1), dim=-1) for x in (predicted, target))
    similarity = anchors @ keys.T / temperature
    return nn.functional.cross_entropy(similarity, torch.arange(len(keys), device=keys.device))


def time_contrastive_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    target_mask: torch.Tensor,
    grid: tuple[int, int, int],
    temperature: float = 1.0,
) -> torch.Tensor:
    """InfoNCE (eq. 4 of arXiv 1807.03748) between predictions and targets (B, M, D) at ids `target_mask` (B, M), whose
    negatives are the other times of the same clip (as in arXiv 2101.07974).

    Logits are −‖ẑ_t − z_s‖² / τ for times t and s of a clip, squared distances as in arXiv 1911.12247; here they are
    means over the spatial positions that are hidden at both. What a position shows at all times, such as background,
    colors or light, is in every distance alike: adding a constant per clip and position to both changes nothing.

    The mean is over times that share hidden positions with another one; without any, as for an image, it is 0.
    """
    predicted, hidden = _on_grid(predicted.float(), target_mask, grid)  # (B, T', P, D), (B, T', P)
    target, _ = _on_grid(target.float(), target_mask, grid)
    # Distances do not change, and rounding errors stay small
    common = target.sum(dim=1, keepdim=True) / hidden.sum(dim=1, keepdim=True).clamp_min(1).unsqueeze(-1)
    predicted, target = ((tokens - common) * hidden.unsqueeze(-1) for tokens in (predicted, target))
    squares = torch.einsum("btp,bsp->bts", predicted.square().sum(dim=-1), hidden)
    squares = squares + torch.einsum("btp,bsp->bts", hidden, target.square().sum(dim=-1))
    squares = squares - 2 * torch.einsum("btpd,bspd->bts", predicted, target)
    shared = torch.einsum("btp,bsp->bts", hidden, hidden)
    counts = (shared > 0).sum(dim=-1) > 1  # (B, T')
    logits = -squares / (temperature * shared.clamp_min(1))
    logits = logits.masked_fill(shared == 0, -math.inf).masked_fill(~counts.unsqueeze(-1), 0.0)
    losses = logits.logsumexp(dim=-1) - logits.diagonal(dim1=1, dim2=2)
    return (losses * counts).sum() / counts.sum().clamp_min(1)


def _on_grid(tokens: torch.Tensor, ids: torch.Tensor, grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, M, D) at ids (B, M) in their grid (B, T', H'·W', D), 0 at other positions, and 1 where they are (B,
    T', H'·W'). Repeated ids count once, as their mean."""
    counts = tokens.new_zeros(len(ids), math.prod(grid)).scatter_add(1, ids, torch.ones_like(tokens[..., 0]))
    sums = tokens.new_zeros(*counts.shape, tokens.shape[-1])
    sums = sums.scatter_add(1, ids.unsqueeze(-1).expand_as(tokens), tokens)
    means = sums / counts.clamp_min(1).unsqueeze(-1)
    return means.unflatten(1, (grid[0], -1)), counts.clamp_max(1).unflatten(1, (grid[0], -1))


def variance_loss(covariance: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """mean max(0, γ − √(Var + 1e-4)) over channels of a covariance (D, D), margin γ (VICReg, eq. 1 of arXiv
    2105.04906)."""
    return (margin - (covariance.diagonal() + 1e-4).sqrt()).clamp_min(0).mean()


def covariance_loss(covariance: torch.Tensor) -> torch.Tensor:
    """Σ over i ≠ j of C_ij² / D of a covariance (D, D) (VICReg, eq. 4 of arXiv 2105.04906)."""
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / len(covariance)


def covariance_at_positions(tokens: torch.Tensor, ids: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Covariance (D, D) of tokens around the batch mean at their position.

    VICReg has one embedding per image and takes statistics over the batch. For clips, the mean token would give few
    samples and compare only averages; all tokens as samples could be satisfied by encoding the position. Subtracting
    the mean per position leaves the differences between clips, as measured by `target_std`, which falls in collapse.
    Tokens are (B, K, D) at `ids` (B, K); positions that only one clip has do not count.
    """
    centered, sizes = _centered(tokens.float().flatten(0, 1), ids.flatten(), num_positions)
    freedom = (sizes - 1).clamp_min(0).sum().clamp_min(1)
    return centered.T @ centered / freedom


def squares_over_time(
    tokens: torch.Tensor, ids: torch.Tensor, grid: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For tokens (B, M, D) at ids (B, M): sums of squared differences from the mean over time of each spatial position
    of each clip (B·H'·W', D), and the number of times (B·H'·W',)."""
    per_frame = grid[1] * grid[2]
    clips = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    groups = (clips * per_frame + ids % per_frame).flatten()
    centered, sizes = _centered(tokens.flatten(0, 1), groups, len(ids) * per_frame)
    return centered.new_zeros(len(sizes), centered.shape[-1]).index_add(0, groups, centered.square()), sizes


def _centered(tokens: torch.Tensor, groups: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (R, D) minus the mean of their group (R,), and the groups' sizes (num_groups,)."""
    sizes = tokens.new_zeros(num_groups).index_add(0, groups, tokens.new_ones(len(groups)))
    sums = tokens.new_zeros(num_groups, tokens.shape[-1]).index_add(0, groups, tokens)
    return tokens - (sums / sizes.clamp_min(1).unsqueeze(1))[groups], sizes


@torch.no_grad()
def collapse_meters(
    targets: torch.Tensor, predicted: torch.Tensor, target_mask: torch.Tensor, grid: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """Numbers that fall when the representation collapses, of raw targets (B, N, D) and predictions (B, M, D).

    Returns:
        target_std: standard deviation of the raw targets over the batch, mean over positions and channels (0 for one
            clip).
        effective_rank: exp of the entropy of the normalized singular values (RankMe, arXiv 2210.02885) of the centered
            targets; between 1 and D, NaN for non-finite targets.
        prediction_variation: standard deviation of the predictions over time, mean over positions predicted at least
            twice.
    """
    targets, predicted = targets.float(), predicted.float()
    centered = (targets - targets.mean(dim=(0, 1))).flatten(0, 1)[:2048]
    # svdvals raises for non-finite values; such a run is stopped by its loss, not by a meter
    singular = torch.linalg.svdvals(centered) if centered.isfinite().all() else torch.full_like(centered[0], math.nan)
    fractions = singular / singular.sum().clamp_min(1e-12)
    entropy = -(fractions * (fractions + 1e-12).log()).sum()

    squares, count = squares_over_time(predicted, target_mask, grid)
    deviation = (squares / count.clamp_min(1).unsqueeze(1)).sqrt().mean(dim=-1)  # (B·H'·W',)
    moving = count > 1
    return {
        "target_std": targets.std(dim=0).mean() if len(targets) > 1 else targets.new_zeros(()),
        "effective_rank": entropy.exp(),
        "prediction_variation": (deviation * moving).sum() / moving.sum().clamp_min(1),
    }
