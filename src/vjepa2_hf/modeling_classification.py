"""Video classification: VJepa2ForVideoClassification, its poolers, and heads for probing.

Shapes: B clips, V views, T frames, (T', H', W') grid of tubelets, N tokens, D width, h heads, d channels per head,
C labels (`num_labels`), M stored views.
"""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_classification import VJepa2VideoClassificationConfig
from .configuration_vjepa2 import VJepa2EncoderConfig
from .modeling_base import VJepa2PreTrainedModel, check_keywords
from .modeling_encoder import VJepa2Encoder, VJepa2EncoderOutput, as_encoder
from .modeling_layers import VJepa2MLP, attend, build_layers, eager_attention, sincos_table
from .modeling_predictor import VJepa2Predictor, init_predictor, predict_following, predictor_input
from .specs import refuse


@dataclass
class VJepa2VideoClassificationOutput(ModelOutput):
    """Output of [`VJepa2ForVideoClassification`]: loss (with labels), logits (B, C), or (B, T', C) with
    `config.labels_per_frame`, and on request the encoder's hidden states and attentions."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _TokenClassifier:
    """Tokens to logits, for the model and a probe's head alike; needs `config`, `pooler` and `classifier`."""

    def classify(self, tokens: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Tokens (B, N, D) of `encode_tokens` -> logits (B, C), or (B, T', C) with `labels_per_frame`; `steps` = T' is
        needed for these and for positions."""
        return self.classifier(self.pool(tokens, steps))

    def pool(self, tokens: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """The input (B, D) or (B, T', D) of the linear layer; arguments as of `classify`."""
        if self.config.pooler_type == "attentive":
            return self.pooler(*self._pooler_inputs(tokens, steps))
        if self.config.labels_per_frame:
            return _by_step(tokens, steps, self._layers).mean(dim=2)
        return tokens.mean(dim=1)

    def attention(self, tokens: torch.Tensor, steps: int) -> torch.Tensor:
        """The weights (B, h, T', H'·W') that the attentive pooler's query gives to tokens (B, N, D) of T' = `steps`.

        They sum to 1, or with `labels_per_frame` to 1 per time step; tokens of several layers are added. (The
        self-attention blocks before have mixed the tokens.)
        """
        if self.config.pooler_type != "attentive":
            raise ValueError("pooler_type is 'linear', which weighs all tokens equally; expected 'attentive'.")
        weights = self.pooler.attention(*self._pooler_inputs(tokens, steps))
        if self.config.labels_per_frame:  # (B·T', h, layers · n)
            weights = weights.unflatten(0, (-1, steps)).transpose(1, 2)
            return weights.unflatten(-1, (self._layers, -1)).sum(dim=-2)
        return weights.unflatten(-1, (self._layers, steps, -1)).sum(dim=2)

    @property
    def _layers(self) -> int:
        return len(self.config.encoder_layers or [None])

    def _pooler_inputs(self, tokens: torch.Tensor, steps: int | None) -> tuple:
        """Tokens (B, N, D) with the configured positions, and with `labels_per_frame` T' and the number of layers."""
        if self.config.pooler_time_positions or self.config.pooler_space_positions:
            tokens = tokens.unflatten(1, (self._layers, steps, -1))
            tokens = (tokens + self._positions(steps, tokens)).flatten(1, 3)
        return (tokens, steps, self._layers) if self.config.labels_per_frame else (tokens,)

    def _positions(self, steps: int, tokens: torch.Tensor) -> torch.Tensor:
        """Sin-cos positions (T' or 1, H'·W' or 1, D) of tokens (B, layers, T', H'·W', D); predicted tokens are
        `config.skipped_frames` later."""
        tubelet, per_frame = self.config.encoder_config.tubelet_size, tokens.shape[-2]
        side = math.isqrt(per_frame) if self.config.pooler_space_positions else 1
        if self.config.pooler_space_positions and side**2 != per_frame:
            raise ValueError(f"pooler_space_positions needs square frames, but a time step has {per_frame} tokens.")
        skip, seen = self.config.skipped_frames // tubelet, steps - self.config.predicted_frames // tubelet
        length = steps + skip if self.config.pooler_time_positions else 1
        table = sincos_table((length, side, side), tokens.shape[-1], device=tokens.device).to(tokens.dtype)
        table = table.unflatten(0, (length, side**2))
        return torch.cat([table[:seen], table[seen + skip :]]) if length > 1 else table


class VJepa2ForVideoClassification(_TokenClassifier, VJepa2PreTrainedModel):
    """Encoder, pooler and a linear head.

    ::

        clip ──► encoder ──► tokens ──────────────────────────────────────────┬──► pooler ──► Linear ──► logits
                               └─► predictor ─► tokens of `predicted_frames` ─┘

    Example:
        >>> model = VJepa2ForVideoClassification.from_encoder("runs/demo/pretrain/final", num_labels=10)
        >>> model(pixel_values_videos, labels=labels).loss  # labels (B,) int64
    """

    config: VJepa2VideoClassificationConfig
    _keys_to_ignore_on_load_unexpected = [r"^(vjepa2\.)?predictor\."]  # transformers' classifiers hold an unused one
    _no_split_modules = ["VJepa2Layer", "VJepa2CrossAttentionLayer"]
    _has_transformers_counterpart = True
    _can_record_outputs = {}

    def __init__(self, config: VJepa2VideoClassificationConfig):
        super().__init__(config)
        self.encoder = VJepa2Encoder(config.encoder_config)
        if config.predicted_frames:
            self.predictor = VJepa2Predictor(config.masked_latent_config, config)
        if config.pooler_type == "attentive":
            self.pooler = VJepa2AttentivePooler(config)
        if config.num_neighbors:
            self.classifier = VJepa2Neighbors(config)
        else:
            self.classifier = nn.Linear(config.encoder_config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads a classifier, see [`VJepa2PreTrainedModel.from_pretrained`], also from a checkpoint of a probe's run:
        its frozen encoder with the head of the lowest loss."""
        if os.path.isfile(os.path.join(pretrained_model_name_or_path or "", "probe.json")):
            from_probe = _load_probe(pretrained_model_name_or_path)
            if from_probe is not None:
                return from_probe
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_encoder(
        cls, encoder: "str | VJepa2Encoder", predictor: VJepa2Predictor | None = None, **config
    ) -> "VJepa2ForVideoClassification":
        """A classifier with a new pooler and head on a trained encoder, in float32.

        Args:
            encoder: a [`VJepa2Encoder`], or a folder or Hub id to load one from.
            predictor: with `predicted_frames`, the `predictor` of the encoder's masked-latent model.
            config: fields of [`VJepa2VideoClassificationConfig`], such as `num_labels`.
        """
        encoder = as_encoder(encoder)
        if predictor is not None:
            config["predictor_config"] = predictor.config.predictor_fields()
        model = cls(VJepa2VideoClassificationConfig(encoder_config=encoder.config.to_dict(), **config))
        model.encoder.load_state_dict(encoder.state_dict())
        if predictor is not None:
            model.predictor.load_state_dict(predictor.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings, by which accelerate shards the model (FSDP)."""
        return self.encoder.patch_embeddings

    @can_return_tuple
    def forward(
        self, pixel_values_videos: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> VJepa2VideoClassificationOutput:
        """Classifies clips.

        Args:
            pixel_values_videos: (B, T, C, H, W), or views of every clip (B, V, T, C, H, W), whose probabilities are
                averaged (their logarithm is returned; for regression, the scores).
            labels: as `config.problem_type` says: int64 (B,), floats of 0 and 1 (B, num_labels) for several labels
                per clip, or numbers for regression. With `config.labels_per_frame` they have T' after B.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        check_keywords(self, kwargs, "context_mask")
        if not isinstance(pixel_values_videos, torch.Tensor) or pixel_values_videos.ndim not in (5, 6):
            raise ValueError(
                "pixel_values_videos must be a tensor (batch, frames, channels, height, width), or (batch, views, …) "
                f"with views of one size; got {getattr(pixel_values_videos, 'shape', type(pixel_values_videos))}."
            )
        views = pixel_values_videos.shape[1] if pixel_values_videos.ndim == 6 else None
        if views == 0:
            raise ValueError("pixel_values_videos has 0 views; expected at least one.")
        if views is not None and self.config.labels_per_frame:
            raise ValueError("labels_per_frame does not average views, whose frames differ; pass them one by one.")
        clips = pixel_values_videos if views is None else pixel_values_videos.flatten(0, 1)
        output, tokens, steps = self._encode(clips, kwargs)
        logits = self.classify(tokens, steps)
        if views is not None:
            logits = self.mean_over_views(logits.unflatten(0, (-1, views)))
        loss = None if labels is None else self.classification_loss(logits, labels)
        return VJepa2VideoClassificationOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of `config.problem_type`; shapes as in `forward`."""
        labels = checked_labels(self.config, logits.shape[:-1], labels)
        if self.config.labels_per_frame:
            logits, labels = logits.flatten(0, 1), labels.flatten(0, 1)
        return self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)

    def encode_tokens(self, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Clips (B, T, C, H, W) -> tokens (B, N, D) and T' for `classify`, including `config.predicted_frames`."""
        return self._encode(pixel_values_videos, {})[1:]

    @torch.no_grad()
    def pooler_attention(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """The attentive pooler's weights over clips (B, T, C, H, W): (B, h, T', H', W'), see `attention`; T' includes
        predicted time steps."""
        output, tokens, steps = self._encode(pixel_values_videos, {})
        return self.attention(tokens, steps).unflatten(-1, output.grid[1:])

    def _encode(self, clips: torch.Tensor, options: dict) -> tuple[VJepa2EncoderOutput, torch.Tensor, int]:
        """The encoder's output, its tokens (B, N, D), concatenated over layers or with predicted ones, and T'."""
        layers, tubelet = self.config.encoder_layers, self.config.encoder_config.tubelet_size
        output = self.encoder(clips, **(options if layers is None else {**options, "output_hidden_states": True}))
        tokens, (steps, rows, columns) = output.last_hidden_state, output.grid
        if self.config.pooler_space_positions and rows != columns:  # the number of tokens alone does not tell
            raise ValueError(f"pooler_space_positions needs square frames, but these have {rows} × {columns} tokens.")
        if layers is not None:
            levels = dict(zip(self.config.encoder_config.output_levels or (), output.level_hidden_states or ()))
            norm, states = self.encoder.layernorm, output.hidden_states
            tokens = [levels[layer] if layer in levels else norm(states[layer + 1]) for layer in layers]
            return output, torch.cat(tokens, dim=1), steps
        more, skip = self.config.predicted_frames // tubelet, self.config.skipped_frames // tubelet
        if not more:
            return output, tokens, steps
        seen = predictor_input(self.predictor.config, output)
        future = predict_following(self.predictor, seen, output.grid, more, skip=skip)[..., -tokens.shape[-1] :]
        return output, torch.cat([tokens, future.flatten(1, 2)], dim=1), steps + more

    def mean_over_views(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, V, num_labels) -> (B, num_labels) of the mean probabilities."""
        if self.config.problem_type == "regression":
            return logits.mean(dim=1)
        if self.config.problem_type == "multi_label_classification":
            return logits.sigmoid().mean(dim=1).logit()
        return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VJepa2AttentivePooler):
            std = self.config.initializer_range
            init.trunc_normal_(module.query_tokens, std=std)
            depth = len(module.layer) + 1
            init.trunc_normal_(module.cross_attention_layer.mlp.fc2.weight, std=std / math.sqrt(2 * depth))
        elif isinstance(module, VJepa2Predictor):
            init_predictor(module)
        elif isinstance(module, VJepa2Neighbors):
            init.ones_(module.std)
            for buffer in (module.mean, module.features, module.targets):
                init.zeros_(buffer)


def checked_labels(
    config: VJepa2VideoClassificationConfig, leading: tuple[int, ...], labels: torch.Tensor
) -> torch.Tensor:
    """Labels for logits (B, C) or (B, T', C), `leading` without C, in the dtype of the loss. Their range is checked on
    the CPU only, where reading it needs no synchronization."""
    classes, leading, kind = config.num_labels, tuple(leading), config.problem_type
    if not isinstance(labels, torch.Tensor) or labels.is_complex():
        refuse("labels", labels, f"a tensor of class numbers {leading}, or of numbers {(*leading, classes)}")
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if kind is None:  # as transformers' loss chooses, which then keeps the choice in the config
        several = "single_label_classification" if whole else "multi_label_classification"
        kind = several if classes > 1 else "regression"
    single = kind == "single_label_classification"
    expected = [leading] if single else [(*leading, classes), *[leading] * (classes == 1)]
    if tuple(labels.shape) not in expected or (single and not whole):
        numbers = "integers, class numbers" if single else "numbers"
        refuse("labels", labels, f"{numbers} of shape {expected[0]}, for problem_type {kind!r}")
    labels = labels.long() if single else labels.to(torch.float32)
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return labels
    lowest, highest = labels.min(), labels.max()  # NaN, if there is one
    if single and not (lowest >= 0 and highest < classes):
        raise ValueError(f"labels lie in {lowest} to {highest}; expected class numbers, 0 to {classes - 1}.")
    if kind == "multi_label_classification" and not (lowest >= 0 and highest <= 1):
        raise ValueError(f"labels lie in {lowest} to {highest}; expected 0 to 1, for several labels per clip.")
    if not (torch.isfinite(lowest) and torch.isfinite(highest)):
        raise ValueError(f"labels lie in {lowest} to {highest}; expected finite numbers.")
    return labels


class VJepa2Neighbors(nn.Module):
    """k-NN classifier in place of a linear layer: averages the labels of the nearest stored views, weighted by
    exp(cosine / temperature) (DINO, arXiv 2104.14294). Its logits are log probabilities (log odds for several labels,
    numbers for regression)."""

    def __init__(self, config: VJepa2VideoClassificationConfig):
        super().__init__()
        self.config, size = config, config.encoder_config.hidden_size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("features", torch.zeros(config.num_stored_views, size))
        self.register_buffer("targets", torch.zeros(config.num_stored_views, config.num_labels))

    def store(self, features: torch.Tensor, targets: torch.Tensor, standardize: bool = False) -> None:
        """Stores the features (M, D), mean tokens, standardized if wanted, and targets (M, C) of the views."""
        if standardize:
            self.mean.copy_(features.mean(0))
            self.std.copy_(features.std(0).clamp(min=1e-6))
        self.features.copy_((features - self.mean) / self.std)
        self.targets.copy_(targets)

    def scores(self, features: torch.Tensor, neighbors: Sequence[int]) -> torch.Tensor:
        """Weighted mean targets (len(neighbors), B, C) of features (B, D), for each number of neighbors."""
        stored = nn.functional.normalize(self.features, dim=-1)
        found = []
        for part in features.split(1024):
            cosines = nn.functional.normalize((part.float() - self.mean) / self.std, dim=-1) @ stored.T
            nearest, indices = cosines.topk(min(max(neighbors), len(stored)), dim=-1)
            weights = ((nearest - nearest[:, :1]) / self.config.neighbor_temperature).exp()
            weighted = weights.unsqueeze(-1) * self.targets[indices]
            sums = [weighted[:, :k].sum(1) / weights[:, :k].sum(1, keepdim=True) for k in neighbors]
            found.append(torch.stack(sums))
        return torch.cat(found, dim=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, D) -> logits (B, C)."""
        (scores,) = self.scores(features, [self.config.num_neighbors])
        if self.config.problem_type == "regression":
            return scores
        tiny = torch.finfo(scores.dtype).eps
        if self.config.problem_type == "multi_label_classification":
            return scores.logit(eps=tiny)
        return scores.clamp(min=tiny).log()


def _load_probe(path: str | os.PathLike) -> VJepa2ForVideoClassification | None:
    try:
        from vjepa2_hf.probing.sweep import load_probe
    except ImportError:  # code exported to the Hub
        return None
    return load_probe(path)


class VJepa2ProbeHead(_TokenClassifier, nn.Module):
    """A copy of a classifier's pooler and linear layer, for cached tokens. Its weights have the classifier's names."""

    def __init__(self, model: VJepa2ForVideoClassification):
        super().__init__()
        self.config = model.config
        if model.config.pooler_type == "attentive":
            self.pooler = copy.deepcopy(model.pooler)
        self.classifier = copy.deepcopy(model.classifier)

    def forward(self, tokens: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """See `classify`."""
        return self.classify(tokens, steps)


def _by_step(tokens: torch.Tensor, steps: int, layers: int) -> torch.Tensor:
    """Tokens (B, layers · T' · n, D) -> (B, T', layers · n, D): those of each tubelet."""
    return tokens.unflatten(1, (layers, steps, -1)).transpose(1, 2).flatten(2, 3)


class VJepa2AttentivePooler(nn.Module):
    """Self-attention blocks, then one query that attends to all tokens."""

    def __init__(self, config: VJepa2VideoClassificationConfig):
        super().__init__()
        size, heads = config.encoder_config.hidden_size, config.pooler_num_attention_heads
        layer = {"hidden_act": config.encoder_config.hidden_act, "layer_norm_eps": config.pooler_layer_norm_eps}
        pooler_config = VJepa2EncoderConfig(hidden_size=size, num_attention_heads=heads, **layer)
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, size))
        self.layer = build_layers(
            config, size, heads, config.pooler_mlp_ratio, config.num_pooler_layers, pooler_config
        )
        self.cross_attention_layer = VJepa2CrossAttentionLayer(config)

    def forward(self, tokens: torch.Tensor, steps: int | None = None, layers: int = 1) -> torch.Tensor:
        """Tokens (B, N, D) -> (B, D); with `steps` = T' the query attends within each tubelet: (B, T', D)."""
        queries, tokens = self._mix(tokens, steps, layers)
        pooled = self.cross_attention_layer(queries, tokens).squeeze(1)
        return pooled if steps is None else pooled.unflatten(0, (-1, steps))

    def attention(self, tokens: torch.Tensor, steps: int | None = None, layers: int = 1) -> torch.Tensor:
        """The query's weights (B, h, N) of tokens (B, N, D), or (B·T', h, layers · n); arguments as of `forward`."""
        return self.cross_attention_layer.attention(*self._mix(tokens, steps, layers)).squeeze(2)

    def _mix(self, tokens: torch.Tensor, steps: int | None, layers: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and tokens after the self-attention blocks."""
        for layer in self.layer:
            tokens = layer(tokens)[0]
        if steps is not None:
            tokens = _by_step(tokens, steps, layers).flatten(0, 1)
        return self.query_tokens.expand(len(tokens), -1, -1), tokens


class VJepa2CrossAttentionLayer(nn.Module):
    """Cross-attention of queries to tokens, without an output projection, then an MLP; pre-norm on the tokens only."""

    is_causal = False

    def __init__(self, config: VJepa2VideoClassificationConfig):
        super().__init__()
        size = config.encoder_config.hidden_size
        self.config = config
        self.num_heads = config.pooler_num_attention_heads
        self.scaling = (size // self.num_heads) ** -0.5
        self.norm1 = nn.LayerNorm(size, eps=config.pooler_layer_norm_eps)
        self.q = nn.Linear(size, size)
        self.kv = nn.Linear(size, 2 * size)
        self.norm2 = nn.LayerNorm(size, eps=config.pooler_layer_norm_eps)
        self.mlp = VJepa2MLP(size, config.pooler_mlp_ratio, config.encoder_config.hidden_act)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Queries (B, M, D), tokens (B, N, D) -> (B, M, D)."""
        attended, _ = attend(self, *self.heads(queries, tokens))
        queries = queries + attended.reshape(queries.shape)
        return queries + self.mlp(self.norm2(queries))

    def attention(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The attention weights (B, h, M, N) of `forward`."""
        return eager_attention(self, *self.heads(queries, tokens), None, scaling=self.scaling)[1]

    def heads(self, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query (B, h, M, d), keys and values (B, h, N, d)."""
        query = self.q(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(self.norm1(tokens)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value
