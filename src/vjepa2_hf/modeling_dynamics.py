"""Dynamics of the world model: a block-causal transformer or an MLP.

Shapes: B episodes, T frames, F frames of a window, W the longest window (`context_frames`), V views, N tokens of a
frame (V·N where views matter: N of each), D width of a latent, d width of the dynamics, A action, S proprio state, E
extrinsics, C conditions of a frame (action, proprio state, extrinsics), h heads, g heads of keys and values.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_base import attention_mask
from .modeling_embodiments import VJepa2Embodiment, VJepa2Embodiments, action_encoder, check_macro_actions
from .modeling_heads import DISTANCE_SCALE, VJepa2DistanceHead
from .modeling_layers import (
    KeyValueBuffer,
    PastKeyValues,
    RotaryTable,
    VJepa2Attention,
    VJepa2Layer,
    VJepa2MLP,
    attend,
    build_layers,
    grid_positions,
    power_loss,
    rotary_table,
    rotate_heads,
    spread_over_heads,
)
from .modeling_learned_state import init_learned_state
from .modeling_state import DynamicsInputs, held_views, match_dtype, state_shape, token_size


# What the dynamics keeps of earlier frames: per layer the transformer's keys and values (B, h, tokens so far, d), or
# the MLP's embedded frames (B, F, …)
KeyValueCache = list[PastKeyValues | tuple[torch.Tensor]]


@dataclass
class VJepa2WorldModelOutput(ModelOutput):
    """Output of [`VJepa2WorldModel`].

    loss: teacher_forcing_weight · teacher_forcing_loss + rollout_weight · rollout_loss + losses of optional heads.
    teacher_forcing_loss: of predictions one step ahead of true latents.
    rollout_loss: of the first `rollout_steps` steps, each fed with the previous prediction; `None` for weight 0.
    predicted_latents: (B, T-1, N, D), one step ahead of true latents.
    reward_loss: with a reward head, mean (r̂ − r)² / 2 of standardized rewards.
    nll_loss: with a stochastic latent, -log p(s_{t+1} | s_t, a_t) in nats per number of the latents.
    """

    loss: torch.Tensor | None = None
    teacher_forcing_loss: torch.Tensor | None = None
    rollout_loss: torch.Tensor | None = None
    predicted_latents: torch.Tensor | None = None
    reward_loss: torch.Tensor | None = None
    nll_loss: torch.Tensor | None = None


class Dynamics(nn.Module):
    """Base of the dynamics; `forward` computes hidden states of every frame from this and earlier frames."""

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size = config.predictor_hidden_size
        self.config = config
        self.embed = nn.Linear(state_shape(config)[1], size)
        inputs = config.action_dim
        if config.macro_action_dim is not None:
            inputs = config.macro_action_dim
            self.macro_encoder = nn.Sequential(nn.Linear(config.action_dim, size), nn.GELU(), nn.Linear(size, inputs))
        if config.num_embodiments > 1:
            each = (VJepa2Embodiment(config, i) for i in range(config.num_embodiments))
            self.embodiments = VJepa2Embodiments(config, each)
        else:
            self.action_encoder = action_encoder(config, inputs)
            if config.proprio_dim:
                self.proprio_encoder = nn.Linear(config.proprio_dim, size)
        if extrinsics_dim := config.extrinsics_dim or config.stored_extrinsics_dim:
            self.extrinsics_encoder = nn.Linear(extrinsics_dim, size).requires_grad_(config.extrinsics_dim > 0)

    def _build_output(self) -> None:
        """The last layers; a subclass calls this after building its own, so that weights keep their order."""
        config, size = self.config, self.config.predictor_hidden_size
        self.layernorm = nn.LayerNorm(size, eps=config.encoder_config.layer_norm_eps)
        self.proj = nn.Linear(size, state_shape(config)[1])
        if config.residual:
            self.proj.init_scale = 0.0  # the first prediction is no change

    def condition_tokens(self, inputs: DynamicsInputs) -> list[torch.Tensor]:
        """Embedded action, proprio state and extrinsics of every frame, (B, F, d) each."""
        if self.config.num_embodiments > 1:
            tokens = self.embodiments.condition_tokens(inputs)
        else:
            actions = inputs.actions if self.config.macro_action_dim is None else self.macro_actions(inputs.actions)
            tokens = [self.action_encoder(actions)]
            if inputs.proprio_states is not None:
                tokens.append(self.proprio_encoder(inputs.proprio_states))
        if inputs.extrinsics is not None:
            tokens.append(self.extrinsics_encoder(inputs.extrinsics))
        return tokens

    def embed_latents(self, inputs: DynamicsInputs) -> torch.Tensor:
        """Latents (B, F, V·N, D) -> (B, F, V·N, d), with the embeddings of their views and embodiments."""
        mean, scale, _ = self._statistics(inputs)
        latents = inputs.latents if mean is None else (inputs.latents - mean) / scale
        tokens = self.embed(match_dtype(latents, self.embed.weight))
        if self.config.num_views > 1:
            views = held_views(self.config, inputs.views)
            embedding = self.view_embedding[list(views)]
            tokens = tokens + embedding.repeat_interleave(tokens.shape[2] // len(views), dim=0)
        if self.config.num_embodiments > 1:
            tokens = tokens + self.embodiments.embeddings(inputs).unsqueeze(2)
        return tokens

    def macro_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Standardized actions (..., A) -> macro-actions (..., M) within -1 and 1."""
        check_macro_actions(self.config)
        return self.macro_encoder(actions).tanh()

    def candidate_cache(
        self, cache: KeyValueCache | None, candidates: int, frames: int, tokens: int
    ) -> KeyValueCache | None:
        """A cache (B, …) or `None`, repeated for J candidates (B · J, …); to hold at most `frames` of N tokens."""
        return [tuple(part.repeat_interleave(candidates, dim=0) for part in parts) for parts in cache or []] or None

    def hidden_states(self, inputs: DynamicsInputs) -> torch.Tensor:
        """Hidden states of every frame (B, F, N, d), each from the window of at most W frames that ends with it."""
        return self.hidden_states_and_cache(inputs)[0]

    def hidden_states_and_cache(self, inputs: DynamicsInputs) -> tuple[torch.Tensor, KeyValueCache]:
        """`hidden_states` (B, F, N, d), and the cache of the first frame of each episode, to roll out from."""
        (batch_size, frames), window = inputs.latents.shape[:2], self.config.context_frames
        if frames > window:
            inputs = inputs.map(lambda part: part.unfold(1, window, 1).movedim(-1, 2).flatten(0, 1))
        output, cache = self(inputs)
        if frames > window:
            output = output.unflatten(0, (batch_size, -1))  # (B, windows, W, N, d)
            output = torch.cat([output[:, 0], output[:, 1:, -1]], dim=1)  # the first serves the first frames too

        def first(part: torch.Tensor) -> torch.Tensor:  # (B · windows, …, tokens, ·) -> (B, …, tokens of a frame, ·)
            part = part.unflatten(0, (batch_size, -1))[:, 0]
            return part[..., : part.shape[-2] // min(frames, window), :]

        return output, [tuple(map(first, parts)) for parts in cache]

    def next_latents(self, hidden_states: torch.Tensor, inputs: DynamicsInputs) -> torch.Tensor:
        """Hidden states (B, F, N, d) -> the next latents (B, F, N, D): a change of those of `inputs`, or latents
        normalized like the encoder's."""
        config, output = self.config, self.proj(self.layernorm(hidden_states))
        mean, scale, change = self._statistics(inputs)
        if config.residual:
            return inputs.latents + (output if change is None else (output * change).to(inputs.latents.dtype))
        if mean is not None:
            return (mean + output * scale).to(inputs.latents.dtype)
        normalized = config.normalize_latents == "layer" and not config.state_fitted
        if not normalized or config.state_type in ("pooled", "learned"):  # neither is normalized
            return output
        size = token_size(config)  # each of the merged tokens was normalized
        return nn.functional.layer_norm(output.unflatten(-1, (-1, size)), (size,)).flatten(-2)

    def predict(self, inputs: DynamicsInputs) -> torch.Tensor:
        """The next latents of every frame (B, F, N, D)."""
        return self.next_latents(self.hidden_states(inputs), inputs)

    def loss(self, predicted: torch.Tensor, targets: torch.Tensor, inputs: DynamicsInputs) -> torch.Tensor:
        """mean |ŝ − s|^p / p of latents (B, F, N, D), of several embodiments in units of the change of a step of
        each."""
        change = self._statistics(inputs)[-1]
        if change is not None:
            predicted, targets = predicted / change[:, :1], targets / change[:, :1]
        return power_loss(predicted, targets, self.config.loss_exponent)

    def _statistics(self, inputs: DynamicsInputs) -> tuple[torch.Tensor | None, ...]:
        """See `VJepa2Embodiments.statistics`; three `None` where they were not measured."""
        several = self.config.num_embodiments > 1
        return (self.embodiments.statistics(inputs) if several else None) or (None, None, None)


class VJepa2Dynamics(Dynamics):
    """Block-causal transformer over frames of latents and conditions.

    Conditions are tokens [action, proprio state, extrinsics] before the latents of a frame ("concat"), added to each
    of them ("add"), or what they attend to in every block ("cross_attention").
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        size, heads = config.predictor_hidden_size, config.predictor_num_attention_heads
        ratio, depth = config.predictor_mlp_ratio, config.predictor_num_hidden_layers
        if config.predictor_position_embedding_type == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(state_shape(config)[0], size))
            self.time_embedding = nn.Parameter(torch.zeros(config.context_frames, size))
        if config.num_views > 1:
            self.view_embedding = nn.Parameter(torch.zeros(config.num_views, size))
        kind = VJepa2ConditionedLayer if config.action_fusion == "cross_attention" else VJepa2Layer
        self.layer = build_layers(config, size, heads, ratio, depth, config.encoder_config, layer_class=kind)
        if (config.predictor_num_key_value_heads or heads) != heads:
            for layer in self.layer:
                layer.attention = VJepa2GroupedAttention(config, layer.attention)
        self._build_output()

    def forward(self, inputs: DynamicsInputs, past: KeyValueCache | None = None) -> tuple[torch.Tensor, KeyValueCache]:
        """Frames (B, F, N, D) after the cached ones -> hidden states (B, F, N, d), and keys and values of all."""
        frames, num_tokens = inputs.latents.shape[1:3]
        conditions, patches, extra, crossed = self.condition_tokens(inputs), self.embed_latents(inputs), [], ()
        views = len(held_views(self.config, inputs.views))
        if self.config.action_fusion == "add":
            patches = patches + sum(conditions).unsqueeze(2)
        elif self.config.action_fusion == "concat":
            extra = conditions
        else:
            crossed = (torch.stack(conditions, dim=2),)
        tokens_per_frame = num_tokens + len(extra)
        first = _num_cached(past) // tokens_per_frame
        patches = self._with_positions(patches, first, views)
        tokens = torch.cat([torch.stack(extra, dim=2), patches], dim=2) if extra else patches  # (B, F, extra + N, d)
        rotary = self._rotary(first, frames, num_tokens // views, views, len(extra), tokens.device)
        mask = self._block_causal_mask(frames, first, tokens_per_frame, tokens.device) if frames > 1 else None

        hidden_states, present = tokens.flatten(1, 2), []
        for i, layer in enumerate(self.layer):
            hidden_states, key_value = layer(hidden_states, rotary, mask, past[i] if past else None, *crossed)
            present.append(key_value)
        return hidden_states.unflatten(1, (frames, tokens_per_frame))[:, :, len(extra) :], present

    def candidate_cache(
        self, cache: KeyValueCache | None, candidates: int, frames: int, tokens: int
    ) -> KeyValueCache | None:
        if torch.is_grad_enabled():
            return super().candidate_cache(cache, candidates, frames, tokens)
        extra = _num_conditions(self.config) if self.config.action_fusion == "concat" else 0
        room = frames * (extra + tokens)
        return [KeyValueBuffer(room, shared, candidates) for shared in cache or [None] * len(self.layer)]

    def _with_positions(self, patches: torch.Tensor, first: int, views: int) -> torch.Tensor:
        """Adds learned positions to (B, F, V·N, d); those of a patch are the same in all views."""
        if self.config.predictor_position_embedding_type != "learned":
            return patches
        frames, num_tokens = patches.shape[1], patches.shape[2] // views
        if num_tokens != len(self.position_embedding):
            found = f"the frame has {num_tokens} tokens, but learned positions are for {len(self.position_embedding)}"
            advice = f"resize it to {self.config.encoder_config.crop_size} pixels, or use"
            raise ValueError(f"{found}: {advice} predictor_position_embedding_type='rope'.")
        positions = self.position_embedding.repeat(views, 1)
        return patches + positions + self.time_embedding[first : first + frames].unsqueeze(1)

    def _block_causal_mask(self, frames: int, first: int, tokens_per_frame: int, device) -> Any:
        """A token attends to its own frame and to earlier ones, of which `first` are cached."""
        tokens = frames * tokens_per_frame, (first + frames) * tokens_per_frame

        def attends(clip, query, key):
            return key // tokens_per_frame <= query // tokens_per_frame + first

        return attention_mask(self.config, attends, 1, *tokens, device)

    def _rotary(self, first: int, frames: int, num_tokens: int, views: int, extra: int, device) -> RotaryTable | None:
        """Rotates the N patches of each view by time, row and column of the view, the other tokens by time only. Rows
        and columns are scaled to the configured grid (published; no change for square frames of that size)."""
        if self.config.predictor_position_embedding_type != "rope":
            return None
        side = math.isqrt(state_shape(self.config)[0])
        rows = columns = math.isqrt(num_tokens)
        if rows * columns != num_tokens:
            raise ValueError(f"the frame has {num_tokens} tokens, which is not a square grid: crop frames to squares.")
        patches = grid_positions((frames, rows, columns), device).unflatten(0, (frames, num_tokens))
        patches[..., 1:] *= side / rows
        others = torch.zeros(frames, extra, 3, device=device)
        others[..., 0] = torch.arange(frames, device=device).unsqueeze(1)
        positions = torch.cat([others, *[patches] * views], dim=1).flatten(0, 1)
        positions[:, 0] += first
        heads = self.config.predictor_num_attention_heads
        head_dim = self.config.predictor_hidden_size // heads
        return spread_over_heads(rotary_table(positions, head_dim, self.config.encoder_config.rope_interleave), heads)


class VJepa2GroupedAttention(VJepa2Attention):
    """Self-attention with g heads of keys and values, each shared by a group of query heads (arXiv 2305.13245).

    Args:
        config: of the world model.
        plain: the attention of as many heads of each kind, which it replaces.
    """

    def __init__(self, config: VJepa2WorldModelConfig, plain: VJepa2Attention):
        size, heads = config.predictor_hidden_size, config.predictor_num_attention_heads
        super().__init__(config, size, heads, config.encoder_config)
        self.num_key_value_heads = config.predictor_num_key_value_heads
        width = size + 2 * self.num_key_value_heads * (size // heads)
        self.qkv = nn.Linear(size, width, bias=config.encoder_config.qkv_bias)
        self.proj.init_scale = getattr(plain.proj, "init_scale", 1.0)

    def _project(
        self, hidden_states: torch.Tensor, rotary: RotaryTable | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (B, L, d) -> rotated queries (B, h, L, d / h) and keys, and values (B, g, L, d / h)."""
        heads, shared = self.num_heads, self.num_key_value_heads
        parts = self.qkv(hidden_states).unflatten(-1, (heads + 2 * shared, -1)).split([heads, shared, shared], dim=-2)
        if rotary is not None:
            parts = rotate_heads(parts[0], rotary), rotate_heads(parts[1], rotary), parts[2]
        return tuple(part.transpose(1, 2) for part in parts)

    def _attend(self, query, key, value, mask) -> tuple[torch.Tensor, torch.Tensor | None]:
        groups = self.num_heads // self.num_key_value_heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return super()._attend(query, key, value, mask)


class VJepa2CrossAttention(nn.Module):
    """Multi-head attention of tokens to conditions."""

    is_causal = False

    def __init__(self, config: VJepa2WorldModelConfig, hidden_size: int, num_heads: int):
        super().__init__()
        bias = config.encoder_config.qkv_bias
        self.config = config
        self.num_heads = num_heads
        self.scaling = (hidden_size // num_heads) ** -0.5
        self.q = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size, bias=bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, d), conditions (B, C, d) -> (B, N, d)."""
        query = self.q(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(conditions).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(self, query, key, value)[0].reshape(tokens.shape))


class VJepa2ConditionedLayer(VJepa2Layer):
    """A block whose tokens attend to the conditions of their frame between self-attention and MLP, each pre-norm and
    residual (two-phase recipe, sec. 4.4 c)."""

    def __init__(self, config, hidden_size: int, num_heads: int, mlp_ratio: float, index: int, **kwargs):
        super().__init__(config, hidden_size, num_heads, mlp_ratio, index, **kwargs)
        self.norm_condition = nn.LayerNorm(hidden_size, eps=config.encoder_config.layer_norm_eps)
        self.cross_attention = VJepa2CrossAttention(config, hidden_size, num_heads)
        self.cross_attention.proj.init_scale = getattr(self.attention.proj, "init_scale", 1.0)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, F · N, d)
        rotary: RotaryTable | None,
        attention_mask: torch.Tensor | None,
        past: PastKeyValues | None,
        conditions: torch.Tensor,  # (B, F, C, d)
    ) -> tuple[torch.Tensor, PastKeyValues]:
        """Tokens (B, F · N, d) of F frames and their conditions (B, F, C, d); result as in [`VJepa2Layer`]."""
        attended, _, present = self.attention(self.norm1(hidden_states), rotary, attention_mask, past)
        hidden_states = hidden_states + self.drop_path(attended)
        frames = self.norm_condition(hidden_states).unflatten(1, (conditions.shape[1], -1)).flatten(0, 1)
        attended = self.cross_attention(frames, conditions.flatten(0, 1)).reshape(hidden_states.shape)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states))), present


class VJepa2MLPDynamics(Dynamics):
    """Residual MLP on the concatenated frames of the window, for states of one vector (N = 1).

    A frame is its embedded state concatenated with its conditions ("concat"), or their sum ("add"). The newest frame
    comes last; a short window is padded with zeros at the front.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        size = config.predictor_hidden_size
        frame_size = size * (1 + _num_conditions(config) if config.action_fusion == "concat" else 1)
        self.mix = nn.Linear(config.context_frames * frame_size, size)
        self.layer = nn.ModuleList(VJepa2MLPLayer(config) for _ in range(config.predictor_num_hidden_layers))
        self._build_output()

    def forward(self, inputs: DynamicsInputs, past: KeyValueCache | None = None) -> tuple[torch.Tensor, KeyValueCache]:
        """States (B, F, 1, D) after the cached frames -> hidden states (B, F, 1, d), and at most W embedded frames."""
        tokens = [self.embed_latents(inputs).squeeze(2), *self.condition_tokens(inputs)]
        new = torch.cat(tokens, dim=-1) if self.config.action_fusion == "concat" else sum(tokens)
        frames = torch.cat([past[0][0], new], dim=1) if past else new
        window = self.config.context_frames
        windows = nn.functional.pad(frames, (0, 0, window - 1, 0)).unfold(1, window, 1)  # (B, frames, …, W)
        hidden_states = self.mix(windows[:, -new.shape[1] :].flatten(2))
        for layer in self.layer:
            hidden_states = layer(hidden_states)
        return hidden_states.unsqueeze(2), [(frames,)]


class VJepa2MLPLayer(GradientCheckpointingLayer):
    """A pre-norm residual MLP."""

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.norm = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States (..., d) -> (..., d)."""
        return hidden_states + self.mlp(self.norm(hidden_states))


DYNAMICS = {"transformer": VJepa2Dynamics, "mlp": VJepa2MLPDynamics}  # by `dynamics_type`


def _num_conditions(config: VJepa2WorldModelConfig) -> int:
    """C, with the action."""
    return 1 + sum(size > 0 for size in (config.proprio_dim, config.extrinsics_dim))


def _num_cached(past: KeyValueCache | None) -> int:
    """Tokens that a transformer's cache holds."""
    if not past:
        return 0
    return past[0].length if isinstance(past[0], KeyValueBuffer) else past[0][0].shape[2]


@torch.no_grad()
def init_dynamics(config: VJepa2WorldModelConfig, module: nn.Module) -> None:
    """Initializes a module of the dynamics, its heads or a learned state, as `_init_weights` of a model."""
    if init_learned_state(module):
        return
    std, scale = config.predictor_initializer_range, getattr(module, "init_scale", 1.0)
    if isinstance(module, nn.Linear) and std is not None:
        init.trunc_normal_(module.weight, std=std * (scale or 1.0))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, (nn.Linear, nn.LayerNorm)):
        module.reset_parameters()
    if isinstance(module, nn.Linear) and scale == 0:
        init.zeros_(module.weight)
        init.zeros_(module.bias)
    if isinstance(module, VJepa2DistanceHead):
        init.constant_(module.scale, DISTANCE_SCALE)
    if isinstance(module, VJepa2Dynamics) and config.predictor_position_embedding_type == "learned":
        init.normal_(module.position_embedding, std=config.predictor_position_std)
        init.normal_(module.time_embedding, std=config.predictor_position_std)
    if isinstance(module, VJepa2Dynamics) and config.num_views > 1:
        init.normal_(module.view_embedding, std=config.predictor_position_std)
    if isinstance(module, VJepa2Embodiment):
        init.normal_(module.embedding, std=config.predictor_position_std)
        if hasattr(module, "no_state"):
            init.normal_(module.no_state, std=config.predictor_position_std)
