"""Masked latent prediction: VJepa2ForMaskedLatentPrediction, its loss terms and collapse meters.

Shapes: B clips, T frames, (T', H', W') grid of tokens, N = T'·H'·W' tokens of a clip, K tokens of a context, M of a
target, D width of the encoder.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from transformers.utils import ModelOutput

from .configuration_vjepa2 import VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from .modeling_base import TargetEncoderMixin, VJepa2PreTrainedModel
from .modeling_encoder import VJepa2Encoder, check_token_ids, clip_grid
from .modeling_layers import gather_tokens, power_loss
from .modeling_predictor import VJepa2Predictor, init_predictor, predict_following
from .specs import check_count, check_flag, check_tensor, is_integer, refuse


MAX_FUTURE = 2**16  # frames


@dataclass
class VJepa2MaskedLatentPredictionOutput(ModelOutput):
    """Output of [`VJepa2ForMaskedLatentPrediction`].

    loss: mean over mask sets of mean |ẑ − z|^p / p, plus the weighted auxiliary terms.
    predicted_latents, target_latents: one (B, M, D) per mask set; targets normalized as configured. For
        `target_type="pixels"` D is the number of pixel values of a tubelet.
    mask_losses: (number of mask sets,) the prediction loss of each, without gradient.
    losses: if the config gives auxiliary terms a weight: every term by name, unweighted and without gradient,
        "prediction" and those of `config.auxiliary_weights`.
    target_std, effective_rank, prediction_variation: see `collapse_meters`; with `output_meters=True`.
    targets: with `output_targets=True`, (B, N, D) of the whole clip before normalization.
    """

    loss: torch.Tensor | None = None
    predicted_latents: list[torch.Tensor] | None = None
    target_latents: list[torch.Tensor] | None = None
    mask_losses: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    target_std: torch.Tensor | None = None
    effective_rank: torch.Tensor | None = None
    prediction_variation: torch.Tensor | None = None
    targets: torch.Tensor | None = None


class VJepa2ForMaskedLatentPrediction(TargetEncoderMixin, VJepa2PreTrainedModel):
    """Context encoder, predictor and EMA target encoder of V-JEPA 2.

    ::

        clip ── kept tokens ──► encoder ──► predictor (+ mask tokens at hidden positions) ──► ẑ ─┐
          │                        │ EMA                                                         ├─► loss
          └──── all tokens ─────► target_encoder ──► gather hidden positions ──► normalize ─► z ─┘  (no gradient)

    The context encoder never sees a hidden token: tokens are dropped before its first block (arXiv 2506.09985, sec. 2;
    two-phase recipe, Algorithm 1). In a new model the target encoder is a copy.
    """

    config: VJepa2MaskedLatentPredictionConfig
    _can_record_outputs = {}
    _has_transformers_counterpart = True

    def __init__(self, config: VJepa2MaskedLatentPredictionConfig):
        super().__init__(config)
        self.encoder = VJepa2Encoder(config.encoder_config)
        self.predictor = VJepa2Predictor(config)
        self.target_encoder = VJepa2Encoder(config.encoder_config).requires_grad_(False)
        self.post_init()
        self.update_target_encoder(momentum=0.0)
        _warn_of_collapse(config)

    def train(self, mode: bool = True):
        """As in PyTorch; the target encoder stays in evaluation mode, without gradient."""
        super().train(mode)
        self.target_encoder.eval().requires_grad_(False)  # no dropout; `from_pretrained` makes new parameters
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings, by which accelerate shards the model (FSDP)."""
        return self.encoder.patch_embeddings  # accelerate asks for it to shard the model (FSDP)

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: torch.Tensor | list[torch.Tensor],
        target_mask: torch.Tensor | list[torch.Tensor],
        mask_token_index: int | None = None,
        output_meters: bool = False,
        output_targets: bool = False,
        targets: torch.Tensor | None = None,
    ) -> VJepa2MaskedLatentPredictionOutput:
        """Predicts the target tokens of every mask set and compares them with those of the target encoder.

        Args:
            pixel_values_videos: normalized pixels (B, T, C, H, W).
            context_mask, target_mask: int64 token ids (B, K) and (B, M); a tensor is one mask set, a list several.
                They must not overlap; ids may repeat within a mask (rows padded to one length).
            mask_token_index: the learned mask token for all sets; `None`: set i uses token i. (The published training
                run used token 0 for all, its inference code token 1.)
            output_meters: also compute the collapse meters (a small singular value decomposition).
            output_targets: return the raw targets, for `targets` of the next forward of these clips.
            targets: from an earlier forward of these clips, instead of computing them again. With them a training step
                may process one mask set at a time and keep the activations of only one in memory.
        """
        mask_sets = _pair_masks(context_mask, target_mask, mask_token_index, self.config.num_mask_tokens)
        grid = self.encoder.get_grid(self.encoder.fill_tubelet(pixel_values_videos))
        if targets is None:
            targets = self.encode_targets(pixel_values_videos)
        _check_targets(targets, (len(pixel_values_videos), math.prod(grid), self.predictor.proj.out_features))
        normalized = self.normalize_targets(targets)

        predicted, selected, auxiliary = [], [], []
        for i, (context_ids, target_ids) in enumerate(mask_sets):
            check_token_ids("target_mask", target_ids, len(targets), math.prod(grid))
            context = self.encoder(pixel_values_videos, context_mask=context_ids).last_hidden_state
            _check_hidden(i, context_ids, target_ids, math.prod(grid))
            token = i if mask_token_index is None else mask_token_index
            predicted.append(self.predictor(context, context_ids, target_ids, grid, token))
            selected.append(gather_tokens(normalized, target_ids))
            if self.config.auxiliary_weights:
                seen, hidden = (context, context_ids), (predicted[-1], selected[-1], target_ids)
                auxiliary.append(auxiliary_losses(self.config, *seen, *hidden, grid))
        mask_losses = torch.stack([self.latent_loss(p, z) for p, z in zip(predicted, selected, strict=True)])
        loss, losses, meters = mask_losses.mean(), None, {}
        if auxiliary:
            weights = self.config.auxiliary_weights
            terms = {name: torch.stack([each[name] for each in auxiliary]).mean() for name in weights}
            losses = {name: term.detach() for name, term in {"prediction": loss, **terms}.items()}
            loss = loss + sum(weight * terms[name] for name, weight in weights.items())
        if output_meters:
            latents = self.encode_clip(pixel_values_videos) if self.config.target_type == "pixels" else targets
            meters = collapse_meters(latents, predicted[0].detach(), mask_sets[0][1], grid)
        return VJepa2MaskedLatentPredictionOutput(
            loss=loss,
            predicted_latents=predicted,
            target_latents=selected,
            mask_losses=mask_losses.detach(),
            losses=losses,
            targets=targets if output_targets else None,
            **meters,
        )

    @torch.no_grad()
    def encode_targets(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Targets (B, N, D) of clips (B, T, C, H, W) before normalization: tokens, or pixels per tubelet."""
        if self.config.target_type == "pixels":
            return tubelet_pixels(self.config.encoder_config, self.encoder.fill_tubelet(pixel_values_videos))
        return self.encode_clip(pixel_values_videos)

    @torch.no_grad()
    def encode_clip(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """The target encoder's tokens (B, N, D) of the whole clip."""
        return self.target_encoder(pixel_values_videos).last_hidden_state

    @torch.no_grad()
    def normalize_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets (B, N, D) normalized as `config.normalize_targets` says; the batch kinds refuse a single clip."""
        kind = self.config.normalize_targets
        if kind == "layer":
            return nn.functional.layer_norm(targets, targets.shape[-1:])
        if kind == "none":
            return targets
        if len(targets) < 2:
            raise ValueError(f"normalize_targets={kind!r} needs at least 2 clips in a batch; got 1.")
        centered = targets - targets.mean(dim=0, keepdim=True)
        if kind == "clip":
            centered = centered - centered.mean(dim=1, keepdim=True)
        return centered / (centered.std(dim=0 if kind == "batch" else (0, 1), keepdim=True) + 1e-6)

    def latent_loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean |ẑ − z|^p / p of latents (..., D) over all dimensions (p = 1 published, p = 2 in both recipes)."""
        return self.latent_errors(predicted, target).mean()

    def latent_errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss per token: predictions and targets (…, D) -> mean |ẑ − z|^p / p over channels (…)."""
        return power_loss(predicted, target, self.config.loss_exponent, dim=-1)

    def update_target_encoder(self, momentum: float) -> None:
        """ξ ← τ ξ + (1 − τ) θ, in place (two-phase recipe, Algorithm 1 line 13); `target_type="online"`: ξ ← θ."""
        super().update_target_encoder(0.0 if self.config.target_type == "online" else momentum)

    @torch.no_grad()
    def predict_future(
        self, pixel_values_videos: torch.Tensor, num_future_frames: int, autoregressive: bool = False
    ) -> torch.Tensor:
        """Latents of the frames that follow a clip (B, T, C, H, W).

        Args:
            num_future_frames: a multiple of the tubelet size.
            autoregressive: predict one tubelet at a time and use it as context for the next, instead of all at once.
                (Beyond the configured clip, rotary positions continue; tables are interpolated, see `add_positions`.)

        Returns:
            (B, num_future_frames / tubelet_size, H'·W', D), in the space of the normalized targets (pixels for
            `target_type="pixels"`, which cannot be `autoregressive`).
        """
        tubelet = self.config.encoder_config.tubelet_size
        autoregressive = check_flag("autoregressive", autoregressive)
        if autoregressive and self.config.target_type == "pixels":
            raise ValueError("autoregressive=True needs predicted latents as context, but target_type is 'pixels'.")
        if not is_integer(num_future_frames) or not 0 < num_future_frames <= MAX_FUTURE or num_future_frames % tubelet:
            refuse("num_future_frames", num_future_frames, f"a multiple of {tubelet} above 0, at most {MAX_FUTURE}")
        past = self.encoder(pixel_values_videos)
        return predict_following(
            self.predictor, past.last_hidden_state, past.grid, num_future_frames // tubelet, autoregressive
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VJepa2Predictor):
            init_predictor(module)


def tubelet_pixels(config: VJepa2EncoderConfig, pixel_values_videos: torch.Tensor) -> torch.Tensor:
    """Clips (B, T, C, H, W) as tokens of pixels (B, N, C · tubelet · patch²); a single frame is repeated."""
    tubelet, patch = config.tubelet_size, config.patch_size
    clip_grid(config, pixel_values_videos)  # refuses wrong shapes
    if pixel_values_videos.shape[1] == 1:
        pixel_values_videos = pixel_values_videos.expand(-1, tubelet, -1, -1, -1)
    return rearrange(pixel_values_videos, "b (t u) c (h p) (w q) -> b (t h w) (c u p q)", u=tubelet, p=patch, q=patch)


def _warn_of_collapse(config: VJepa2MaskedLatentPredictionConfig) -> None:
    if config.target_type == "online":
        warnings.warn(
            "target_type='online' uses the context encoder itself as the target, which tends to collapse (two-phase "
            "recipe, section 9.4). It is an ablation; watch target_std and effective_rank.",
            stacklevel=3,
        )
    if config.temporal_diversity_weight and config.loss_exponent == 1:
        warnings.warn(
            f"temporal_diversity_weight={config.temporal_diversity_weight} with loss_exponent=1 has no minimum: far "
            "from the targets the variance grows faster than the loss; the temporal recipe has loss_exponent=2.",
            stacklevel=3,
        )


def _check_hidden(index: int, context_ids: torch.Tensor, target_ids: torch.Tensor, num_tokens: int) -> None:
    """Refuses a mask set whose context (B, K) and target (B, M) overlap; on the CPU, as `check_token_ids`."""
    if torch.compiler.is_compiling() or {context_ids.device.type, target_ids.device.type} != {"cpu"}:
        return
    seen = torch.zeros(len(context_ids), num_tokens, dtype=torch.bool).scatter_(1, context_ids, True)
    overlap = seen.gather(1, target_ids)
    if overlap.any():
        clip, index_in_mask = overlap.nonzero()[0].tolist()
        raise ValueError(
            f"context_mask and target_mask of mask set {index} both hold token {target_ids[clip, index_in_mask]} of "
            f"clip {clip}; the encoder would see what it is to predict, so remove it from one of them."
        )


def _check_targets(targets: torch.Tensor, expected: tuple[int, int, int]) -> None:
    check_tensor("targets", targets, "(B, N, D)")
    if targets.shape != expected:
        advice = f"expected {expected}: the `output.targets` of these clips."
        raise ValueError(f"targets have shape {tuple(targets.shape)}; {advice}")


def _pair_masks(context, target, token: int | None, num_tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(context, target) token ids of every mask set, from two tensors or two lists of them."""
    if context is None or target is None:
        raise ValueError("context_mask and target_mask are both required: token ids (B, K), or a list of them.")
    if token is not None:
        check_count("mask_token_index", token, 0, num_tokens - 1)
    for name, masks in {"context_mask": context, "target_mask": target}.items():
        listed = isinstance(masks, (list, tuple)) and all(isinstance(mask, torch.Tensor) for mask in masks)
        if not listed and not isinstance(masks, torch.Tensor):
            refuse(name, masks, "a tensor of token ids (B, K), or a list of them")
    contexts, targets = ([masks] if isinstance(masks, torch.Tensor) else list(masks) for masks in (context, target))
    if len(contexts) != len(targets) or not contexts:
        numbers = f"{len(contexts)} context masks and {len(targets)} target masks"
        raise ValueError(f"{numbers}; expected equal numbers.")
    return list(zip(contexts, targets, strict=True))


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
    comparing = [name for name in weights if name != "temporal_diversity"]
    if len(context) < 2 and comparing:
        name = comparing[0]
        raise ValueError(f"{name}_weight={weights[name]} needs at least 2 clips in a batch to compare; got 1.")
    with torch.autocast(context.device.type, enabled=False):
        if "temporal_diversity" in weights:
            terms["temporal_diversity"] = temporal_diversity_loss(predicted, target_mask, grid)
        if "temporal_contrastive" in weights:
            temperature = config.temporal_contrastive_temperature
            terms["temporal_contrastive"] = temporal_contrastive_loss(predicted, target, temperature)
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
