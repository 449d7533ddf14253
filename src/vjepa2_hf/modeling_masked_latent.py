"""Masked latent prediction: VJepa2ForMaskedLatentPrediction. Its loss terms are in modeling_masked_losses.py.

Shapes: B clips, T frames, (T', H', W') grid of tokens, N = T'·H'·W' tokens of a clip, K tokens of a context, M of a
target, D width of the encoder, P of a prediction (`config.prediction_size`: D, or that of all levels or of a teacher).
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
from .modeling_encoder import VJepa2Encoder, VJepa2EncoderOutput, check_token_ids, clip_grid
from .modeling_layers import gather_tokens, power_loss
from .modeling_masked_losses import auxiliary_losses, collapse_meters, context_weights
from .modeling_predictor import VJepa2Predictor, init_predictor, predict_following, predictor_input
from .specs import check_count, check_flag, check_number, check_tensor, is_integer, refuse


MAX_FUTURE = 2**16  # frames


@dataclass
class VJepa2MaskedLatentPredictionOutput(ModelOutput):
    """Output of [`VJepa2ForMaskedLatentPrediction`].

    loss: mean over mask sets of mean |ẑ − z|^p / p, plus the weighted other terms.
    predicted_latents, target_latents: one (B, M, P) per mask set; targets normalized as configured. For
        `target_type="pixels"` P is the number of pixel values of a tubelet.
    predicted_context_latents, context_target_latents: with `predict_context`, the same for the context's own tokens,
        one (B, K, P) per mask set.
    mask_losses: (number of mask sets,) the prediction loss of each, without gradient.
    losses: if the loss has several terms, each by name, unweighted and without gradient: "prediction", "context" with
        `predict_context`, and those of `config.auxiliary_weights`.
    target_std, effective_rank, prediction_variation: see `collapse_meters`; with `output_meters=True`.
    targets: with `output_targets=True`, (B, N, P) of the whole clip before normalization.
    """

    loss: torch.Tensor | None = None
    predicted_latents: list[torch.Tensor] | None = None
    target_latents: list[torch.Tensor] | None = None
    predicted_context_latents: list[torch.Tensor] | None = None
    context_target_latents: list[torch.Tensor] | None = None
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

    V-JEPA 2.1 predicts several levels of the encoder (`predictor_levels`) and the context's own tokens too
    (`predict_context`); a clip of one frame is an image. For distillation (`target_type="teacher"`) see `set_teacher`.
    """

    config: VJepa2MaskedLatentPredictionConfig
    _can_record_outputs = {}
    _has_transformers_counterpart = True

    def __init__(self, config: VJepa2MaskedLatentPredictionConfig):
        super().__init__(config)
        self.encoder = VJepa2Encoder(config.encoder_config)
        self.predictor = VJepa2Predictor(config)
        self.target_encoder = VJepa2Encoder(config.encoder_config).requires_grad_(False)
        self._teacher: list[VJepa2Encoder] = []  # in a list: no module, hence neither saved nor trained
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
        return self.encoder.patch_embeddings

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: torch.Tensor | list[torch.Tensor],
        target_mask: torch.Tensor | list[torch.Tensor],
        mask_token_index: int | None = None,
        output_meters: bool = False,
        output_targets: bool = False,
        targets: torch.Tensor | None = None,
        context_loss_weight: float | None = None,
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
            context_loss_weight: of the context's own tokens in this forward; `None`: as configured.
        """
        mask_sets = _pair_masks(context_mask, target_mask, mask_token_index, self.config.num_mask_tokens)
        grid = self.encoder.get_grid(self.encoder.fill_tubelet(pixel_values_videos))
        if targets is None:
            targets = self.encode_targets(pixel_values_videos)
        _check_targets(targets, (len(pixel_values_videos), math.prod(grid), self.predictor.proj.out_features))
        normalized = self.normalize_targets(targets, grid)

        compared, terms = [], []
        for i, (context_ids, target_ids) in enumerate(mask_sets):
            check_token_ids("target_mask", target_ids, len(targets), math.prod(grid))
            context = self.encoder(pixel_values_videos, context_mask=context_ids)
            _check_hidden(i, context_ids, target_ids, math.prod(grid))
            token = i if mask_token_index is None else mask_token_index
            is_image = pixel_values_videos.shape[1] == 1
            found = self.predict(context, context_ids, target_ids, grid, token, is_image)
            latents, losses = self._compare(
                context.last_hidden_state, found, normalized, context_ids, target_ids, grid
            )
            compared.append(latents)
            terms.append(losses)
        means = {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}
        weights, loss, meters = self._weights(context_loss_weight), means["prediction"], {}
        if len(means) > 1:
            loss = loss + sum(weights[name] * mean for name, mean in means.items() if name != "prediction")
        if output_meters:
            latents = self._own_latents(pixel_values_videos, targets)
            meters = collapse_meters(latents, compared[0]["predicted_latents"].detach(), mask_sets[0][1], grid)
        return VJepa2MaskedLatentPredictionOutput(
            loss=loss,
            **{name: [latents[name] for latents in compared] for name in compared[0]},
            mask_losses=torch.stack([term["prediction"].detach() for term in terms]),
            losses={name: mean.detach() for name, mean in means.items()} if len(means) > 1 else None,
            targets=targets if output_targets else None,
            **meters,
        )

    def _compare(self, context, found, normalized, context_mask, target_mask, grid) -> tuple[dict, dict]:
        """Of one mask set, predictions (`predict`) and targets as the output names them, and the terms of the loss by
        name; `context` are the encoder's last tokens (B, K, D), `normalized` the targets (B, N, P) of the clip."""
        predicted, target = found[0], gather_tokens(normalized, target_mask)
        latents = {"predicted_latents": predicted, "target_latents": target}
        terms = {"prediction": self.latent_loss(predicted, target)}
        if found[1] is not None:
            wanted = gather_tokens(normalized, context_mask)
            latents |= {"predicted_context_latents": found[1], "context_target_latents": wanted}
            terms["context"] = self.context_loss(found[1], wanted, context_mask, target_mask, grid)
        if self.config.auxiliary_weights:
            terms |= auxiliary_losses(self.config, context, context_mask, predicted, target, target_mask, grid)
        return latents, terms

    def predict(
        self,
        context: VJepa2EncoderOutput,
        context_mask: torch.Tensor,
        target_mask: torch.Tensor,
        grid: tuple[int, int, int],
        mask_token_index: int = 0,
        is_image: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The encoder's output for the tokens at ids (B, K) -> predictions (B, M, P) at ids (B, M), and with
        `predict_context` (B, K, P) of the context's own tokens, else `None`; arguments as in [`VJepa2Predictor`]."""
        tokens, both = predictor_input(self.config, context), self.config.predict_context
        found = self.predictor(tokens, context_mask, target_mask, grid, mask_token_index, is_image, both)
        return found if both else (found, None)

    def context_loss(self, predicted, target, context_mask, target_mask, grid) -> torch.Tensor:
        """The loss of the context's own tokens: predictions and targets (B, K, P) at ids (B, K)."""
        errors = self.latent_errors(predicted, target)
        if self.config.weight_context_by_distance:
            errors = errors * context_weights(context_mask, target_mask, grid)
        return errors.mean()

    def _weights(self, context_loss_weight: float | None) -> dict[str, float]:
        """The weights of the terms of the loss beside the prediction."""
        context = self.config.context_loss_weight
        if context_loss_weight is not None:
            context = check_number("context_loss_weight", context_loss_weight, at_least=0)
            if context and not self.config.predict_context:
                refuse("context_loss_weight", context, "None or 0: the config has predict_context=False")
        return {"context": context, **self.config.auxiliary_weights}

    def set_teacher(self, teacher: VJepa2Encoder | None) -> None:
        """Gives the frozen encoder whose last level is the target with `target_type="teacher"`; `None` takes it away.

        It is no part of the model: it is neither saved nor moved with it, so put it on the model's device. Give it
        again after loading, to train or to detect anomalies; `predict_future` and the encoder need none.
        """
        if self.config.target_type != "teacher":
            refuse("target_type", self.config.target_type, "'teacher', for a model that has one")
        own, width = self.config.encoder_config, self.config.teacher_hidden_size
        if teacher is not None:
            if not isinstance(teacher, VJepa2Encoder):
                refuse("teacher", teacher, "a VJepa2Encoder: VJepa2Encoder.from_pretrained(folder)")
            expected = {"hidden_size": width, **{name: getattr(own, name) for name in ("patch_size", "tubelet_size")}}
            for name, value in expected.items():
                if getattr(teacher.config, name) != value:
                    refuse(
                        f"{name} of the teacher", getattr(teacher.config, name), f"{value}, as the model's config says"
                    )
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]

    @torch.no_grad()
    def encode_targets(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Targets (B, N, P) of clips (B, T, C, H, W) before normalization: tokens, or pixels per tubelet."""
        if self.config.target_type == "pixels":
            return tubelet_pixels(self.config.encoder_config, self.encoder.fill_tubelet(pixel_values_videos))
        if self.config.target_type == "teacher":
            if not self._teacher:
                raise ValueError(
                    "target_type='teacher' needs its teacher, which is not saved with the model: after loading, call "
                    "model.set_teacher(VJepa2Encoder.from_pretrained(folder)); scripts take --teacher FOLDER."
                )
            return self._teacher[0](pixel_values_videos).last_hidden_state
        return predictor_input(self.config, self.target_encoder(pixel_values_videos))

    @torch.no_grad()
    def encode_clip(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """The target encoder's tokens (B, N, D) of the whole clip."""
        return self.target_encoder(pixel_values_videos).last_hidden_state

    def _own_latents(self, pixel_values_videos: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Last tokens (B, N, D) of the target encoder, from raw targets where these hold them."""
        if self.config.target_type in ("pixels", "teacher"):
            return self.encode_clip(pixel_values_videos)
        return targets[..., -self.config.encoder_config.hidden_size :]

    @torch.no_grad()
    def normalize_targets(self, targets: torch.Tensor, grid: tuple[int, int, int] | None = None) -> torch.Tensor:
        """Targets (B, N, P) normalized as `config.normalize_targets` says: "layer" each level for itself. "batch",
        "batch_channel" and "clip" refuse a single clip, "position" clips of one time step.

        Args:
            grid: (T', H', W') of the clips, `model.encoder.get_grid(clips)`; "position" needs it.
        """
        kind = self.config.normalize_targets
        targets = targets.to(torch.promote_types(targets.dtype, torch.float32))  # statistics need it
        if kind == "layer":
            levels = self.config.num_levels if self.config.target_type in ("ema", "online") else 1
            if levels == 1:
                return nn.functional.layer_norm(targets, targets.shape[-1:])
            targets = targets.unflatten(-1, (levels, -1))
            return nn.functional.layer_norm(targets, targets.shape[-1:]).flatten(-2)
        if kind == "none":
            return targets
        if kind == "position":
            centered = center_positions(targets, grid)
            return centered / (centered.std(dim=(0, 1), keepdim=True) + 1e-6)
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
            (B, num_future_frames / tubelet_size, H'·W', P), in the space of the normalized targets (pixels for
            `target_type="pixels"`, which cannot be `autoregressive`, nor can those of a teacher of another width).
        """
        tubelet = self.config.encoder_config.tubelet_size
        autoregressive = check_flag("autoregressive", autoregressive)
        if autoregressive and self.config.target_type == "pixels":
            raise ValueError("autoregressive=True needs predicted latents as context, but target_type is 'pixels'.")
        if autoregressive and self.config.teacher_hidden_size not in (None, self.config.encoder_config.hidden_size):
            width = self.config.teacher_hidden_size
            raise ValueError(f"autoregressive=True needs predictions as context, but teacher_hidden_size is {width}.")
        if not is_integer(num_future_frames) or not 0 < num_future_frames <= MAX_FUTURE or num_future_frames % tubelet:
            refuse("num_future_frames", num_future_frames, f"a multiple of {tubelet} above 0, at most {MAX_FUTURE}")
        past = self.encoder(pixel_values_videos)
        return predict_following(
            self.predictor,
            predictor_input(self.config, past),
            past.grid,
            num_future_frames // tubelet,
            autoregressive,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VJepa2Predictor):
            init_predictor(module)


def center_positions(targets: torch.Tensor, grid: tuple[int, int, int] | None) -> torch.Tensor:
    """Targets (B, N, P) of a grid (T', H', W') minus the mean over time at each position of each clip."""
    if grid is None or math.prod(grid) != targets.shape[1]:
        expected = f"the grid (T', H', W') of {targets.shape[1]} tokens, model.encoder.get_grid(clips)"
        refuse("grid", grid, f"{expected}, for normalize_targets='position'")
    if grid[0] < 2:
        raise ValueError(
            "normalize_targets='position' subtracts the mean over time, which leaves nothing of clips of 1 time step: "
            "give clips of at least 2 tubelets, or choose another normalization."
        )
    by_time = targets.unflatten(1, (grid[0], -1))
    return (by_time - by_time.mean(dim=1, keepdim=True)).flatten(1, 2)


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
    check_tensor("targets", targets, "(B, N, P)")
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
