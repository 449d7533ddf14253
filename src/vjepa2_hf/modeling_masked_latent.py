"""Learning to see: predict the latents of masked regions from the rest of the clip.

Shapes: B clips, T frames, N tokens of a clip, K tokens of a context, M of a target, D width of the encoder, d of the
predictor.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from transformers.utils import ModelOutput

from .configuration_vjepa2 import VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from .losses import auxiliary_losses, squares_over_time
from .modeling_encoder import TargetEncoderMixin, VJepa2Encoder, VJepa2PreTrainedModel, check_token_ids, clip_grid
from .modeling_layers import gather_tokens
from .modeling_predictor import VJepa2Predictor, init_predictor, predict_following


@dataclass
class VJepa2MaskedLatentPredictionOutput(ModelOutput):
    """Output of [`VJepa2ForMaskedLatentPrediction`].

    loss: mean over mask sets of mean |ẑ − z|^p / p, and the other terms times their weights.
    predicted_latents, target_latents: one (B, M, D) per mask set; targets normalised as configured. For
        `target_type="pixels"` D is the number of a tubelet's pixel values.
    mask_losses: (number of mask sets,) the prediction loss of each, without gradient.
    losses: where the config gives other terms a weight: every term by name without its weight and without gradient,
        "prediction" and those of `config.auxiliary_weights`, see `vjepa2_hf.losses`.
    target_std, effective_rank, prediction_variation: with `output_meters=True`, see `collapse_meters`.
    targets: with `output_targets=True`, (B, N, D) of the whole clip before normalisation.
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

        clip ── kept tokens ──► encoder ──► predictor (+ mask tokens at hidden places) ──► ẑ ─┐
          │                        │ EMA                                                      ├─► loss
          └──── all tokens ─────► target_encoder ──► gather hidden places ──► normalise ─► z ─┘  (no gradient)

    The context encoder never sees a hidden token: tokens are dropped before its first block (arXiv 2506.09985, sec. 2;
    seed 003, Algorithm 1).

    Args:
        config ([`VJepa2MaskedLatentPredictionConfig`]): sizes; weights are random, the target encoder is a copy.
    """

    config: VJepa2MaskedLatentPredictionConfig
    _can_record_outputs = {}

    def __init__(self, config: VJepa2MaskedLatentPredictionConfig):
        super().__init__(config)
        self.encoder = VJepa2Encoder(config.encoder_config)
        self.predictor = VJepa2Predictor(config)
        self.target_encoder = VJepa2Encoder(config.encoder_config).requires_grad_(False)
        self.post_init()
        self.update_target_encoder(momentum=0.0)
        _warn_of_collapse(config)

    def train(self, mode: bool = True):
        super().train(mode)
        self.target_encoder.eval().requires_grad_(False)  # no dropout; `from_pretrained` makes new parameters
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.patch_embeddings  # Accelerate asks when it shards the model (FSDP)

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
        """Predicts the target tokens of every mask set and compares them with the target encoder's.

        Args:
            pixel_values_videos: normalised pixels (B, T, C, H, W).
            context_mask, target_mask: int64 token ids (B, K) and (B, M); a tensor is one mask set, a list several. No
                target may be in the context; ids may repeat within a mask (rows padded to one length).
            mask_token_index: the learned mask token for all sets; `None`: set i uses token i. (The published training
                run used token 0 for all, its inference code token 1.)
            output_meters: also compute the collapse meters (they cost a small singular value decomposition).
            output_targets: return the raw targets, for `targets` of the next forward of these clips.
            targets: of such a forward, instead of making them again: a step that goes forward and backward one mask
                set at a time keeps the activations of one alone in memory.
        """
        context_masks, target_masks = _as_mask_sets(context_mask, target_mask)
        grid = self.encoder.get_grid(self.encoder._fill_tubelet(pixel_values_videos))
        if targets is None:
            targets = self.encode_targets(pixel_values_videos)
        elif targets.shape[:2] != (len(pixel_values_videos), math.prod(grid)):
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}; expected (batch, tokens, width) with "
                f"{(len(pixel_values_videos), math.prod(grid))} in front: the `output.targets` of these clips."
            )
        normalized = self.normalize_targets(targets)

        has_other_terms = bool(self.config.auxiliary_weights)
        predicted, selected, auxiliary = [], [], []
        for i, (context_ids, target_ids) in enumerate(zip(context_masks, target_masks, strict=True)):
            check_token_ids("target_mask", target_ids, len(targets), math.prod(grid))
            context = self.encoder(pixel_values_videos, context_mask=context_ids).last_hidden_state
            _check_hidden(i, context_ids, target_ids, math.prod(grid))
            token = i if mask_token_index is None else mask_token_index
            predicted.append(self.predictor(context, context_ids, target_ids, grid, token))
            selected.append(gather_tokens(normalized, target_ids))
            if has_other_terms:
                seen, hidden = (context, context_ids), (predicted[-1], selected[-1], target_ids)
                auxiliary.append(auxiliary_losses(self.config, *seen, *hidden, grid))
        mask_losses = torch.stack([self.latent_loss(p, z) for p, z in zip(predicted, selected, strict=True)])
        loss, losses = self.total_loss(mask_losses.mean(), auxiliary)
        meters = {}
        if output_meters:
            latents = self.encode_clip(pixel_values_videos) if self.config.target_type == "pixels" else targets
            meters = collapse_meters(latents, predicted[0].detach(), target_masks[0], grid)
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
        """What is to be predicted, before normalisation: the target encoder's tokens (B, N, D) of the whole clip, or
        its pixels by tubelet (B, N, values of a tubelet) for `target_type="pixels"`."""
        if self.config.target_type == "pixels":
            return tubelet_pixels(self.config.encoder_config, self.encoder._fill_tubelet(pixel_values_videos))
        return self.encode_clip(pixel_values_videos)

    @torch.no_grad()
    def encode_clip(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """The target encoder's tokens (B, N, D) of the whole clip."""
        return self.target_encoder(pixel_values_videos).last_hidden_state

    @torch.no_grad()
    def normalize_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets (B, N, D) normalised as `config.normalize_targets` says.

        Raises:
            ValueError: for those over the batch with a single clip, which has no deviation.
        """
        if self.config.normalize_targets == "layer":
            return nn.functional.layer_norm(targets, targets.shape[-1:])
        if self.config.normalize_targets == "none":
            return targets
        if len(targets) < 2:
            name = self.config.normalize_targets
            raise ValueError(f"normalize_targets={name!r} needs at least 2 clips in a batch; got 1.")
        centred = targets - targets.mean(dim=0, keepdim=True)
        if self.config.normalize_targets == "clip":
            centred = centred - centred.mean(dim=1, keepdim=True)
        over = 0 if self.config.normalize_targets == "batch" else (0, 1)
        return centred / (centred.std(dim=over, keepdim=True) + 1e-6)

    def latent_loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean |ẑ − z|^p / p over clips, tokens and channels (p = 1 published, p = 2 both seeds)."""
        return self.latent_errors(predicted, target).mean()

    def latent_errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of each token: predictions and targets (…, D) -> mean |ẑ − z|^p / p over channels (…)."""
        difference = predicted.float() - target.float()
        if self.config.loss_exponent == 1:
            return difference.abs().mean(dim=-1)
        return difference.square().mean(dim=-1) / 2

    def total_loss(
        self, prediction: torch.Tensor, auxiliary: list[dict[str, torch.Tensor]]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """The prediction loss and the mask sets' other terms, each term its mean over sets times its weight.

        Returns:
            The sum, and every term by name without its weight and gradient, or `None` if there is no other.
        """
        if not auxiliary:
            return prediction, None
        weights = self.config.auxiliary_weights
        terms = {name: torch.stack([terms[name] for terms in auxiliary]).mean() for name in weights}
        loss = prediction + sum(weight * terms[name] for name, weight in weights.items())
        return loss, {name: term.detach() for name, term in {"prediction": prediction, **terms}.items()}

    def update_target_encoder(self, momentum: float) -> None:
        """ξ ← τ ξ + (1 − τ) θ, in place (seed 003, Algorithm 1 line 13); with `target_type="online"` ξ ← θ."""
        super().update_target_encoder(0.0 if self.config.target_type == "online" else momentum)

    @torch.no_grad()
    def predict_future(
        self, pixel_values_videos: torch.Tensor, num_future_frames: int, autoregressive: bool = False
    ) -> torch.Tensor:
        """Latents of the frames that follow a clip.

        Args:
            pixel_values_videos: (B, T, C, H, W), the past.
            num_future_frames: frames to predict, a multiple of the tubelet size.
            autoregressive: predict one tubelet at a time and take it as context for the next, instead of all at once.
                (Where past and future together are longer than the configured clip, rotary positions go on; sin-cos
                and learned tables are interpolated over the whole, see `add_positions`.)

        Returns:
            (B, num_future_frames / tubelet_size, H'·W', D), in the space of the normalised targets (pixels for
            `target_type="pixels"`, and then not `autoregressive`).
        """
        tubelet = self.config.encoder_config.tubelet_size
        if autoregressive and self.config.target_type == "pixels":
            raise ValueError(
                "autoregressive=True needs predicted latents as context, and target_type='pixels' predicts pixels: "
                "leave it out, which predicts all frames at once."
            )
        if num_future_frames < 1 or num_future_frames % tubelet:
            raise ValueError(f"num_future_frames is {num_future_frames}; expected a multiple of {tubelet} above 0.")
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
    """Clips (B, T, C, H, W) as tokens of pixels (B, N, C · tubelet · patch²), in the encoder's order of tokens; a
    single frame is repeated to fill its tubelet."""
    tubelet, patch = config.tubelet_size, config.patch_size
    clip_grid(config, pixel_values_videos)  # refuses wrong shapes
    if pixel_values_videos.shape[1] == 1:
        pixel_values_videos = pixel_values_videos.expand(-1, tubelet, -1, -1, -1)
    return rearrange(pixel_values_videos, "b (t u) c (h p) (w q) -> b (t h w) (c u p q)", u=tubelet, p=patch, q=patch)


def _warn_of_collapse(config: VJepa2MaskedLatentPredictionConfig) -> None:
    if config.target_type == "online":
        warnings.warn(
            "target_type='online' takes the context encoder itself as the target, which tends to collapse (seed 003, "
            "section 9.4): it is there for that comparison; watch target_std and effective_rank.",
            stacklevel=3,
        )
    if config.temporal_diversity_weight and config.loss_exponent == 1:
        warnings.warn(
            f"temporal_diversity_weight={config.temporal_diversity_weight} with loss_exponent=1 has no minimum: far "
            "from the targets the variance grows faster than the loss; the seed's loss has exponent 2.",
            stacklevel=3,
        )


def _check_hidden(index: int, context_ids: torch.Tensor, target_ids: torch.Tensor, num_tokens: int) -> None:
    """Refuses targets (B, M) that the context (B, K) of a mask set holds; where `check_token_ids` checks values."""
    if torch.compiler.is_compiling() or {context_ids.device.type, target_ids.device.type} != {"cpu"}:
        return
    seen = torch.zeros(len(context_ids), num_tokens, dtype=torch.bool).scatter_(1, context_ids, True)
    overlap = seen.gather(1, target_ids)
    if overlap.any():
        clip, place = overlap.nonzero()[0].tolist()
        raise ValueError(
            f"context_mask and target_mask of mask set {index} both hold token {target_ids[clip, place]} of clip "
            f"{clip}; the encoder would see what it is to predict, so take it out of one of them."
        )


def _as_mask_sets(context_mask, target_mask) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    context_masks = [context_mask] if isinstance(context_mask, torch.Tensor) else context_mask
    target_masks = [target_mask] if isinstance(target_mask, torch.Tensor) else target_mask
    if context_masks is None or target_masks is None:
        raise ValueError("context_mask and target_mask are both required: token ids (B, K), or a list of them.")
    if len(context_masks) != len(target_masks) or not context_masks:
        raise ValueError(
            f"{len(context_masks)} context masks and {len(target_masks)} target masks; expected as many of both."
        )
    return list(context_masks), list(target_masks)


@torch.no_grad()
def collapse_meters(
    targets: torch.Tensor, predicted: torch.Tensor, target_mask: torch.Tensor, grid: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """Three numbers that fall when the representation collapses.

    Args:
        targets: raw target tokens (B, N, D).
        predicted: predictions (B, M, D) at `target_mask` (B, M).
        grid: (T', H', W').

    Returns:
        target_std: deviation of the raw targets over the batch, mean over places and channels (0 for one clip).
        effective_rank: exp of the entropy of the targets' normalised singular values (RankMe, arXiv 2210.02885), of
            centred tokens; between 1 and D, NaN of targets that are not finite.
        prediction_variation: deviation of the predictions over time at a place, mean over places with at least two.
    """
    targets, predicted = targets.float(), predicted.float()
    centred = (targets - targets.mean(dim=(0, 1))).flatten(0, 1)[:2048]
    # Of values that are not finite svdvals raises; the loss, not a meter, is to stop such a run
    singular = torch.linalg.svdvals(centred) if centred.isfinite().all() else torch.full_like(centred[0], math.nan)
    share = singular / singular.sum().clamp_min(1e-12)
    entropy = -(share * (share + 1e-12).log()).sum()

    squares, count = squares_over_time(predicted, target_mask, grid)
    deviation = (squares / count.clamp_min(1).unsqueeze(1)).sqrt().mean(dim=-1)  # (B·H'·W',)
    moving = count > 1
    return {
        "target_std": targets.std(dim=0).mean() if len(targets) > 1 else targets.new_zeros(()),
        "effective_rank": entropy.exp(),
        "prediction_variation": (deviation * moving).sum() / moving.sum().clamp_min(1),
    }


__all__ = ["VJepa2ForMaskedLatentPrediction", "VJepa2MaskedLatentPredictionOutput", "collapse_meters"]
