"""The dynamics of the world model: a block-causal transformer over frames of tokens, or an MLP on one vector a frame.

Shapes: B episodes, F frames of a window, N tokens of a frame, D width of a latent, d width of the dynamics, A action,
S proprio state, E extrinsics, C conditions of a frame (action, proprio state, extrinsics), h heads, W frames of the
longest window.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.distributions import LowRankMultivariateNormal, Normal
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_world_model import VJepa2WorldModelConfig
from .modeling_inputs import Inputs
from .modeling_layers import (
    KeyValueBuffer,
    PastKeyValues,
    RotaryTable,
    VJepa2Layer,
    VJepa2MLP,
    build_layers,
    eager_attention,
    grid_positions,
    rotary_table,
    sincos_table,
    spread_over_heads,
)
from .modeling_state import state_shape


# What the dynamics keeps of earlier frames: the transformer's keys and values (B, h, tokens so far, d) of every layer,
# the MLP's frames (B, F, …)
Cache = list[PastKeyValues | tuple[torch.Tensor]]


class Dynamics(nn.Module):
    """What the dynamics have in common: latents and conditions in, the next latents (or their change) out.

    A subclass maps F frames of a window to hidden states of every frame, from that frame and the earlier ones alone,
    and takes up what it computed for earlier frames from a cache.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size = config.predictor_hidden_size
        self.config = config
        self.embed = nn.Linear(state_shape(config)[1], size)
        self.action_encoder = _action_encoder(config)
        if config.proprio_dim:
            self.proprio_encoder = nn.Linear(config.proprio_dim, size)
        extrinsics_dim = config.extrinsics_dim or config.stored_extrinsics_dim
        if extrinsics_dim:
            self.extrinsics_encoder = nn.Linear(extrinsics_dim, size)
            self.extrinsics_encoder.requires_grad_(config.extrinsics_dim > 0)

    def _build_output(self) -> None:
        """The last layers; modules are made in the order of the data's way."""
        config, size = self.config, self.config.predictor_hidden_size
        self.layernorm = nn.LayerNorm(size, eps=config.encoder_config.layer_norm_eps)
        self.proj = nn.Linear(size, state_shape(config)[1])
        if config.residual:
            self.proj.init_scale = 0.0  # at the start nothing changes

    def condition_tokens(self, inputs: Inputs) -> list[torch.Tensor]:
        """Embedded action, proprio state and extrinsics of every frame, (B, F, d) each."""
        tokens = [self.action_encoder(inputs.actions)]
        if inputs.proprio_states is not None:
            tokens.append(self.proprio_encoder(inputs.proprio_states))
        if inputs.extrinsics is not None:
            tokens.append(self.extrinsics_encoder(inputs.extrinsics))
        return tokens

    def candidate_cache(self, cache: Cache | None, candidates: int, frames: int, places: int) -> Cache | None:
        """What each of J candidates a problem begins with, (B · J, …), from a cache (B, …) or none; with what is to
        come it will hold no more than `frames` of N tokens."""
        return [tuple(part.repeat_interleave(candidates, dim=0) for part in parts) for parts in cache or []] or None

    def project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, F, N, d) -> outputs (B, F, N, D)."""
        return self.proj(self.layernorm(hidden_states))


class VJepa2Dynamics(Dynamics):
    """Block-causal transformer over frames of latents and conditions.

    Conditions are tokens [action, proprio state, extrinsics] before a frame's latents ("concat"), added to every
    one of them, or what they attend to in every block ("cross_attention").
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        size = config.predictor_hidden_size
        if config.predictor_position_embedding_type == "learned":
            self.place_embedding = nn.Parameter(torch.zeros(state_shape(config)[0], size))
            self.time_embedding = nn.Parameter(torch.zeros(config.context_frames, size))
        self.layer = build_layers(
            config,
            size,
            config.predictor_num_attention_heads,
            config.predictor_mlp_ratio,
            config.predictor_num_hidden_layers,
            config.encoder_config,
            layer_class=VJepa2ConditionedLayer if config.action_fusion == "cross_attention" else VJepa2Layer,
        )
        self._build_output()

    def forward(self, inputs: Inputs, past: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        """Frames (B, F, N, D), which follow the cached ones, -> hidden states (B, F, N, d) for `project`, and keys and
        values of all.

        Args:
            inputs: standardised actions and states.
            past: keys and values of earlier frames.
        """
        frames, places = inputs.latents.shape[1:3]
        conditions, patches, extra, crossed = self.condition_tokens(inputs), self.embed(inputs.latents), [], ()
        if self.config.action_fusion == "add":
            patches = patches + sum(conditions).unsqueeze(2)
        elif self.config.action_fusion == "concat":
            extra = conditions
        else:
            crossed = (torch.stack(conditions, dim=2),)
        tokens_per_frame = places + len(extra)
        first = _num_cached(past) // tokens_per_frame
        patches = self._with_positions(patches, first)
        tokens = torch.cat([torch.stack(extra, dim=2), patches], dim=2) if extra else patches  # (B, F, extra + N, d)
        rotary = self._rotary(first, frames, places, len(extra), tokens.device)
        mask = _block_causal_mask(frames, first, tokens_per_frame, tokens.device) if frames > 1 else None

        hidden_states, present = tokens.flatten(1, 2), []
        for i, layer in enumerate(self.layer):
            hidden_states, key_value = layer(hidden_states, rotary, mask, past[i] if past else None, *crossed)
            present.append(key_value)
        return hidden_states.unflatten(1, (frames, tokens_per_frame))[:, :, len(extra) :], present

    def candidate_cache(self, cache: Cache | None, candidates: int, frames: int, places: int) -> Cache | None:
        if torch.is_grad_enabled():
            return super().candidate_cache(cache, candidates, frames, places)
        extra = _num_conditions(self.config) if self.config.action_fusion == "concat" else 0
        room = frames * (extra + places)
        return [KeyValueBuffer(room, shared, candidates) for shared in cache or [None] * len(self.layer)]

    def _with_positions(self, patches: torch.Tensor, first: int) -> torch.Tensor:
        if self.config.predictor_position_embedding_type != "learned":
            return patches
        frames, places = patches.shape[1:3]
        if places != len(self.place_embedding):
            raise ValueError(
                f"the frame has {places} tokens, but learned positions are for {len(self.place_embedding)}: resize it "
                f"to {self.config.encoder_config.crop_size} pixels, or use predictor_position_embedding_type='rope'."
            )
        return patches + self.place_embedding + self.time_embedding[first : first + frames].unsqueeze(1)

    def _rotary(self, first: int, frames: int, places: int, extra: int, device):
        """Patches turn by time, row and column, the other tokens by time alone; rows and columns are scaled to the
        configured grid (published; no change for square frames of that size)."""
        if self.config.predictor_position_embedding_type != "rope":
            return None
        side = math.isqrt(state_shape(self.config)[0])
        rows = columns = math.isqrt(places)
        if rows * columns != places:
            raise ValueError(f"the frame has {places} tokens, which is no square grid: crop frames to squares.")
        patches = grid_positions((frames, rows, columns), device).unflatten(0, (frames, places))
        patches[..., 1:] *= side / rows
        others = torch.zeros(frames, extra, 3, device=device)
        others[..., 0] = torch.arange(frames, device=device).unsqueeze(1)
        positions = torch.cat([others, patches], dim=1).flatten(0, 1)
        positions[:, 0] += first
        heads = self.config.predictor_num_attention_heads
        head_dim = self.config.predictor_hidden_size // heads
        return spread_over_heads(rotary_table(positions, head_dim, self.config.encoder_config.rope_interleave), heads)


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
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, _ = attention(self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.proj(attended.reshape(tokens.shape))


class VJepa2ConditionedLayer(VJepa2Layer):
    """A block whose tokens attend to the conditions of their own frame between self-attention and MLP, each pre-norm
    and added (seed 003, sec. 4.4 c)."""

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
        attended, _, present = self.attention(self.norm1(hidden_states), rotary, attention_mask, past)
        hidden_states = hidden_states + self.drop_path(attended)
        frames = self.norm_condition(hidden_states).unflatten(1, (conditions.shape[1], -1)).flatten(0, 1)
        attended = self.cross_attention(frames, conditions.flatten(0, 1)).reshape(hidden_states.shape)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states))), present


class VJepa2MLPDynamics(Dynamics):
    """Residual MLP on the window's frames one after the other, for states of one vector (N = 1).

    A frame is its embedded state beside its conditions ("concat"), or with them added. The newest frame always stands
    at the same end; places of frames that a short window does not have are zero.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__(config)
        size = config.predictor_hidden_size
        frame_size = size * (1 + _num_conditions(config) if config.action_fusion == "concat" else 1)
        self.mix = nn.Linear(config.context_frames * frame_size, size)
        self.layer = nn.ModuleList(VJepa2MLPLayer(config) for _ in range(config.predictor_num_hidden_layers))
        self._build_output()

    def forward(self, inputs: Inputs, past: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        """States (B, F, 1, D), which follow the cached frames, -> hidden states (B, F, 1, d) for `project`, and the
        embedded frames.

        Args:
            inputs: standardised actions and states.
            past: embedded frames before them; with them no more than W.
        """
        tokens = [self.embed(inputs.latents.squeeze(2)), *self.condition_tokens(inputs)]
        new = torch.cat(tokens, dim=-1) if self.config.action_fusion == "concat" else sum(tokens)
        frames = torch.cat([past[0][0], new], dim=1) if past else new
        window = self.config.context_frames
        windows = nn.functional.pad(frames, (0, 0, window - 1, 0)).unfold(1, window, 1)  # (B, frames, …, W)
        hidden_states = self.mix(windows[:, -new.shape[1] :].flatten(2))
        for layer in self.layer:
            hidden_states = layer(hidden_states)
        return hidden_states.unsqueeze(2), [(frames,)]


class VJepa2MLPLayer(GradientCheckpointingLayer):
    """A pre-norm MLP that is added to its input."""

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.norm = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.mlp(self.norm(hidden_states))


DYNAMICS = {"transformer": VJepa2Dynamics, "mlp": VJepa2MLPDynamics}  # by `dynamics_type`


def _num_conditions(config: VJepa2WorldModelConfig) -> int:
    """C: the action, and what else stands beside a frame."""
    return 1 + sum(size > 0 for size in (config.proprio_dim, config.extrinsics_dim))


def _num_cached(past: Cache | None) -> int:
    """Tokens that a transformer's cache holds."""
    if not past:
        return 0
    return past[0].length if isinstance(past[0], KeyValueBuffer) else past[0][0].shape[2]


def _block_causal_mask(frames: int, first: int, tokens_per_frame: int, device) -> torch.Tensor:
    """(1, 1, F · n, (first + F) · n), true where a frame's token may look: its own frame and earlier ones."""
    query = torch.arange(first, first + frames, device=device).repeat_interleave(tokens_per_frame)
    key = torch.arange(first + frames, device=device).repeat_interleave(tokens_per_frame)
    return (key <= query.unsqueeze(1))[None, None]


def _action_encoder(config: VJepa2WorldModelConfig) -> nn.Module:
    """One linear layer (published), or an MLP with GELU (seed 003, sec. 4.4)."""
    size, layers = config.predictor_hidden_size, []
    for i in range(config.action_encoder_num_layers):
        layers += [nn.GELU()] if i else []
        layers.append(nn.Linear(size if i else config.action_dim, size))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


MIN_DEVIATION = 0.01  # of a number; latents have about 1


class VJepa2RewardHead(nn.Module):
    """A transition to its reward.

    ::

        [s_t, s_{t+1}] at a place ──► Linear ─┐
        action a_t ──► Linear ────────────────┼─► MLP ──► mean over places ──► MLP ──► Linear ──► reward
        position of the place ────────────────┘

    The mean comes after a layer that knows the place: means of the latents themselves lose where things are.

    Args:
        config: of the world model.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.embed = nn.Linear(2 * state_shape(config)[1], size)
        self.action_embed = nn.Linear(config.action_dim, size)
        self.norm1 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp1 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.norm2 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp2 = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.proj = nn.Linear(size, 1)

    def forward(self, actions: torch.Tensor, latents: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Standardised actions (..., A), latents before and after (..., N, D) -> standardised rewards (...)."""
        tokens = self.embed(torch.cat([latents, following], dim=-1)) + self.action_embed(actions).unsqueeze(-2)
        rows = math.isqrt(tokens.shape[-2])
        columns = -(-tokens.shape[-2] // rows)
        positions = sincos_table((1, rows, columns), tokens.shape[-1], uniform_power=True, device=tokens.device)
        tokens = tokens + positions[: tokens.shape[-2]].to(tokens.dtype)
        tokens = tokens + self.mlp1(self.norm1(tokens))
        pooled = tokens.mean(dim=-2)
        return self.proj(pooled + self.mlp2(self.norm2(pooled))).squeeze(-1).float()


class VJepa2GaussianHead(nn.Module):
    """The dynamics' hidden states to a Gaussian of what its prediction leaves open, over all numbers of a frame.

    ::

        s_{t+1} = ŝ_{t+1} + L z + d · e        z ~ N(0, I_Z) of the frame, e ~ N(0, 1) of every number
        L = σ · u / √(1 + |u|²),  d = σ / √(1 + |u|²),  σ > 0 and u (Z) of every number

    So σ is a number's deviation, and u says what share of it moves together with the others', and how: the
    covariance is L Lᵀ + diag(d²), whose diagonal is σ².

    Args:
        config: of the world model; `stochastic_dim` is Z.
    """

    def __init__(self, config: VJepa2WorldModelConfig):
        super().__init__()
        size, encoder_config = config.predictor_hidden_size, config.encoder_config
        self.rank, self.latent_size = config.stochastic_dim, state_shape(config)[1]
        self.norm1 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.mlp = VJepa2MLP(size, config.predictor_mlp_ratio, encoder_config.hidden_act)
        self.norm2 = nn.LayerNorm(size, eps=encoder_config.layer_norm_eps)
        self.proj = nn.Linear(size, self.latent_size * (self.rank + 1))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states (..., N, d) -> σ (..., N · D), L / σ (..., N · D, Z) and d / σ (..., N · D), float32."""
        hidden_states = hidden_states + self.mlp(self.norm1(hidden_states))
        numbers = self.proj(self.norm2(hidden_states)).float()
        numbers = numbers.unflatten(-1, (self.latent_size, self.rank + 1)).flatten(-3, -2)
        together = numbers[..., 1:] / math.sqrt(self.rank)  # at the start the same share for every Z
        alone = (1 + together.square().sum(dim=-1)).rsqrt()
        return nn.functional.softplus(numbers[..., 0]) + MIN_DEVIATION, together * alone.unsqueeze(-1), alone

    def negative_log_likelihood(
        self, hidden_states: torch.Tensor, errors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of errors s_{t+1} - ŝ_{t+1} (..., N, D), in nats a number: float32 (...), twice.

        The first is that of all numbers together, as a function of u alone; the second that of every number for
        itself, as a function of σ. Their sum is what to minimise: the margins by their own likelihood, then what
        they have in common given them ("inference functions for margins", Joe and Xu 1996). The first one as a
        function of both says next to nothing about how wide L is: of N · D numbers it is Z.
        """
        deviation, together, alone = self(hidden_states)
        errors, fixed = errors.float().flatten(-2), deviation.detach()
        with torch.autocast(errors.device.type, enabled=False):  # small determinants need all digits
            joint = LowRankMultivariateNormal(
                torch.zeros_like(errors), fixed.unsqueeze(-1) * together, (fixed * alone).square(), validate_args=False
            )
            single = Normal(torch.zeros_like(errors), deviation, validate_args=False)
            return -joint.log_prob(errors) / errors.shape[-1], -single.log_prob(errors).mean(dim=-1)

    def sample(self, hidden_states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """L z + d · e of hidden states (..., N, d) and noise [z, e] (..., Z + N · D): (..., N, D)."""
        deviation, together, alone = self(hidden_states)
        z, e = noise[..., : self.rank], noise[..., self.rank :]
        drawn = deviation * ((together @ z.unsqueeze(-1)).squeeze(-1) + alone * e)
        return drawn.unflatten(-1, (-1, self.latent_size)).to(hidden_states)
