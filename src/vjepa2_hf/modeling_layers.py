"""Layers of all models: positions, attention, MLP, transformer blocks.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N = T'·H'·W' tokens, K tokens kept,
L tokens of either kind, M keys, D width, h heads, d channels per head.
"""

import functools
import itertools
import math

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_vjepa2 import VJepa2EncoderConfig


# --- Positions

# Cosine and signed sine, each (L, d) or (B, L, d); or the three tensors of `spread_over_heads`
RotaryTable = tuple[torch.Tensor, ...]


def grid_positions(grid: tuple[int, int, int], device=None, stretched_to: int | None = None) -> torch.Tensor:
    """(time, row, column) of every token of a grid (T', H', W'), in token order: float32 (N, 3). Rows and columns
    `stretched_to` p go from 0 to p - 1 (`rope_grid_size`)."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid]
    if stretched_to is not None:
        factors = ((stretched_to - 1) / max(size - 1, 1) for size in grid[1:])
        axes[1:] = [axis * factor for axis, factor in zip(axes[1:], factors, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def rotary_table(positions: torch.Tensor, head_dim: int, interleave: bool = False) -> RotaryTable:
    """Cosine and sine (..., L, d) of 3-D RoPE at positions (..., L, 3), in float32, computed once per forward for all
    layers; the sine has the sign that `rotate_queries_keys` needs.

    A head's channels are split into time, height and width, 2·((d // 3) // 2) each, and a rest that is not rotated;
    ω_i = 10000^(−i / (size / 2)). Without `interleave` the angles are tiled ([ω0…ωk, ω0…ωk]) although
    `rotate_queries_keys` rotates neighboring channels as pairs: the released weights were trained with this table.
    """
    size = 2 * ((head_dim // 3) // 2)
    omega = 10000.0 ** -(torch.arange(size // 2, device=positions.device, dtype=torch.float32) / max(size / 2, 1))
    omega = omega.repeat_interleave(2) if interleave else omega.repeat(2)
    angles = (positions.float().unsqueeze(-1) * omega).flatten(-2)  # (..., L, 3 · size)
    angles = nn.functional.pad(angles, (0, head_dim - angles.shape[-1]))  # angle 0 does not rotate
    sign = torch.ones(head_dim, device=positions.device)
    sign[0::2] = -1.0
    return angles.cos(), angles.sin() * sign


def spread_over_heads(table: RotaryTable, num_heads: int) -> RotaryTable:
    """A table (L, d) repeated for h heads side by side: cosine (L, h · d), and the factors (L, h · d - 1) of a
    channel's next and previous neighbor.

    Rotation by its long rows is three times as fast, but the table is as large as the queries of one clip. It suits
    few tokens that many candidates share.
    """
    cos, (following, preceding) = table[0], _next_and_previous(table[1])
    following, preceding = nn.functional.pad(following, (0, 1)), nn.functional.pad(preceding, (1, 0))
    cos, following, preceding = (part.repeat(1, num_heads) for part in (cos, following, preceding))
    return cos, following[:, :-1], preceding[:, 1:]


def rotate_queries_keys(qkv: torch.Tensor, table: RotaryTable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotates queries and keys of `qkv` (..., L, 3, h, d): neighboring channels, by the angles of a table (..., L, d)
    or of `spread_over_heads`. Returns queries, keys and values, (..., L, h, d) each."""
    heads = qkv.shape[-2:]
    cos, *factors = (part.to(qkv.dtype).unsqueeze(-2) for part in table)  # (..., L, 1, d or h · d)
    if len(table) == 2:
        factors = _next_and_previous(*factors)
    else:
        qkv = qkv.flatten(-2).unsqueeze(-2)
    if torch.is_grad_enabled():
        parts = _RotateQueriesKeys.apply(qkv, cos, *factors)
    else:  # without gradient values need no copy
        query, key, value = qkv.unbind(-3)
        parts = _rotate(query, cos, *factors), _rotate(key, cos, *factors), value
    return tuple(part.flatten(-2).unflatten(-1, heads) for part in parts)


def rotate_heads(states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Queries or keys (..., L, h, d) rotated by a table of `spread_over_heads` for h heads or more."""
    heads, size = states.shape[-2:], states.shape[-2:].numel()
    cos, *factors = (part[..., : size - index].to(states.dtype) for index, part in zip((0, 1, 1), table))
    return _rotate(states.flatten(-2), cos, *factors).unflatten(-1, heads)


class _RotateQueriesKeys(torch.autograd.Function):
    """Has its own backward: autograd's would fill and add a tensor of the size of `qkv` for each of its parts. Values
    are copied, so that `qkv` is not kept in memory for them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv, cos, following, preceding):
        query, key, value = qkv.unbind(-3)
        return _rotate(query, cos, following, preceding), _rotate(key, cos, following, preceding), value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, query, key, value):
        cos, following, preceding = ctx.saved_tensors
        transposed = cos, preceding, following  # of the linear map `_rotate`
        return torch.stack([_rotate(query, *transposed), _rotate(key, *transposed), value], dim=-3), None, None, None


def _next_and_previous(sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The signed sine (..., d) as factors (..., d - 1) of a channel's next and previous neighbor."""
    even = torch.arange(sin.shape[-1], device=sin.device) % 2 == 0
    return (sin * even)[..., :-1], (sin * ~even)[..., 1:]


def _rotate(states: torch.Tensor, cos: torch.Tensor, following: torch.Tensor, preceding: torch.Tensor) -> torch.Tensor:
    """Channels (..., d) times `cos`, plus the next and the previous channel times their factors. All passes read
    memory in order; swapping neighbors would not."""
    rotated = states * cos
    rotated[..., :-1].addcmul_(states[..., 1:], following)
    rotated[..., 1:].addcmul_(states[..., :-1], preceding)
    return rotated


def configured_grid(config: VJepa2EncoderConfig) -> tuple[int, int, int]:
    """Grid (T', H', W') of a clip of `frames_per_clip` frames of `crop_size` pixels, for which sin-cos and learned
    positions are made."""
    side = max(config.crop_size // config.patch_size, 1)
    return max(config.frames_per_clip // config.tubelet_size, 1), side, side


def modality_parameters(size: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The vectors (1, 1, size) that are added to all tokens of an image, and of a video (V-JEPA 2.1)."""
    return nn.Parameter(torch.zeros(1, 1, size)), nn.Parameter(torch.zeros(1, 1, size))


def init_modality(module: nn.Module) -> None:
    """Initializes the two vectors of a module that has them, as published."""
    for parameter in (module.image_modality_embedding, module.video_modality_embedding):
        if parameter is not None:
            init.normal_(parameter, std=1e-6)


def position_parameter(config: VJepa2EncoderConfig, size: int) -> nn.Parameter | None:
    """The parameter (configured tokens, size) of "learned" positions; `None` for the other kinds."""
    if config.position_embedding_type != "learned":
        return None
    return nn.Parameter(torch.zeros(math.prod(configured_grid(config)), size))


def sincos_table(
    grid: tuple[int, int, int], size: int, uniform_power: bool = False, device=None, dtype=torch.float32
) -> torch.Tensor:
    """Fixed positions of V-JEPA 1 (`pos_embed` in its checkpoints) for a grid (T', H', W'): (N, D).

    Channels are for time, then row, then column, each with the sines and then the cosines of position · ω_i with
    ω_i = 10000^(−i / (part / 2)). With `uniform_power` each gets 2·⌈D / 6⌉ channels, cut to D in all; otherwise time
    gets D / 2, row and column D / 4. The published tables were computed in float64.
    """
    parts = [2 * math.ceil(size / 6)] * 3 if uniform_power else [size // 2, size // 4, size // 4]
    channels = []
    for axis, (length, part) in enumerate(zip(grid, parts, strict=True)):
        omega = 10000.0 ** -(torch.arange(part // 2, device=device, dtype=dtype) / (part / 2))
        angles = torch.arange(length, device=device, dtype=dtype).unsqueeze(1) * omega
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (length, part), the same along the other two axes
        channels.append(encoded.unflatten(0, [length if i == axis else 1 for i in range(3)]).expand(*grid, -1))
    return torch.cat(channels, dim=-1).flatten(0, 2)[:, :size]


def add_positions(
    hidden_states: torch.Tensor,
    config: VJepa2EncoderConfig,
    grid: tuple[int, int, int],
    ids: torch.Tensor | None = None,
    learned: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds sin-cos or `learned` positions to tokens (B, N, D), or (B, K, D) at `ids`; with "rope" nothing is added.

    A clip of the configured height and width that is not too long gets the first steps of the table. For any other
    clip the whole table is interpolated along time, height and width to the clip's grid, as in the published code.
    """
    if config.position_embedding_type == "rope":
        return hidden_states
    size, configured = hidden_states.shape[-1], configured_grid(config)
    cut = grid[1:] == configured[1:] and grid[0] <= configured[0]
    known = grid if cut else configured
    if learned is None:
        table = sincos_table(known, size, config.uniform_power, hidden_states.device)
    else:
        table = learned[: math.prod(known)].float()
    if not cut:
        table = table.unflatten(0, known).permute(3, 0, 1, 2).unsqueeze(0)  # (1, D, T', H', W')
        table = nn.functional.interpolate(table, size=grid, mode="trilinear")[0].permute(1, 2, 3, 0).flatten(0, 2)
    table = table.to(hidden_states)
    return hidden_states + (table if ids is None else table[ids])


# --- Attention


def gather_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) at ids (B, K) -> (B, K, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def eager_attention(
    module: nn.Module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over (B, h, L, d) that returns its weights; a boolean mask is true where a query attends."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2), weights


@functools.cache
def bfloat16_instructions() -> frozenset[str] | None:
    """Those of this processor for bfloat16; `None` where PyTorch does not report them."""
    known = getattr(torch.cpu, "get_capabilities", lambda: None)()
    names = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16")
    return None if known is None else frozenset(name for name in names if known.get(name))


class _ProductAttention(torch.autograd.Function):
    """softmax(q kᵀ · scaling) v over (B, h, L, d), by matrix products; the backward computes the weights again, so
    that they are not kept. A mask is boolean, (B, 1, L, M), true where a query attends."""

    @staticmethod
    def weights(query, key, mask, scaling):
        scores = torch.matmul(query * scaling, key.transpose(-1, -2))
        return (scores if mask is None else scores.masked_fill_(~mask, -math.inf)).softmax(dim=-1)

    @staticmethod
    def forward(query, key, value, mask, scaling):
        return torch.matmul(_ProductAttention.weights(query, key, mask, scaling), value)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scaling = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, mask = ctx.saved_tensors
        weights = _ProductAttention.weights(query, key, mask, ctx.scaling)
        of_value = torch.matmul(weights.transpose(-1, -2), gradient)
        of_weights = torch.matmul(gradient, value.transpose(-1, -2))
        scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype) * ctx.scaling
        return torch.matmul(scores, key), torch.matmul(scores.transpose(-1, -2), query), of_value, None, None


def _is_faster_by_products(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether `_ProductAttention` beats the fused kernel: in bfloat16 on a CPU with AVX-512 instructions for it and
    without AMX, whose fused kernel multiplies no faster than in float32. The scores of one clip must fit in 128 MB."""
    if torch.compiler.is_compiling() or query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return False
    known = bfloat16_instructions() or ()
    scores = math.prod(query.shape[1:3]) * key.shape[2]
    return "avx512_bf16" in known and "amx_bf16" not in known and 0 < scores <= 2**26


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask=None, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over (B, h, L, d) with the implementation that `module.config` chooses: (B, L, h, d) and weights."""
    implementation = module.config._attn_implementation
    if implementation == "sdpa" and not dropout and _is_faster_by_products(query, key):
        clips = max(1, 2**24 // (math.prod(query.shape[1:3]) * key.shape[2]))  # whose scores fit in 32 MB
        mask = mask if mask is None else mask.expand(len(query), 1, query.shape[2], key.shape[2])
        masks = itertools.repeat(None) if mask is None else mask.split(clips)
        chunks = zip(*(part.split(clips) for part in (query, key, value)), masks)  # `repeat` has no end
        parts = [_ProductAttention.apply(*chunk, module.scaling) for chunk in chunks]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2), None
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    return function(module, query, key, value, mask, scaling=module.scaling, dropout=dropout, is_causal=False)


def power_loss(predicted: torch.Tensor, target: torch.Tensor, exponent: int, dim=None) -> torch.Tensor:
    """mean |predicted − target|^p / p over all or some dimensions (equal shape), in float32, for p = 1 or 2."""
    difference = predicted.float() - target.float()
    return difference.abs().mean(dim=dim) if exponent == 1 else difference.square().mean(dim=dim) / 2


class KeyValueBuffer:
    """Preallocated keys and values of one layer, to which a step copies only its own tokens. Only without gradient,
    which needs the tensors of every step unchanged.

    It has `room` for M tokens; `shared`: keys and values (B, h, L, d) of the first, repeated for `copies` candidates.
    """

    def __init__(self, room: int, shared: tuple[torch.Tensor, torch.Tensor] | None = None, copies: int = 1):
        self.room, self.length, self.parts = room, 0, None
        if shared is not None:
            self.extend(*(part.unsqueeze(1).expand(-1, copies, -1, -1, -1) for part in shared))

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds keys and values (B, h, L, d) or (B, copies, h, L, d) of the next tokens, and returns those of all
        tokens so far (B or B · copies, h, M, d)."""
        if self.parts is None:
            heads, _, channels = key.shape[-3:]
            shape = (key.shape[:-3].numel(), heads, self.room, channels)
            self.parts = key.new_empty(shape), value.new_empty(shape)
        first, self.length = self.length, self.length + key.shape[-2]
        for part, new in zip(self.parts, (key, value), strict=True):
            part[:, :, first : self.length].unflatten(0, new.shape[:-3]).copy_(new)
        return tuple(part[:, :, : self.length] for part in self.parts)


# Keys and values of earlier tokens, (B, h, L, d) each, or a buffer of them
PastKeyValues = tuple[torch.Tensor, torch.Tensor] | KeyValueBuffer


class VJepa2Attention(nn.Module):
    """Multi-head self-attention with fused q, k, v and rotary positions, over L tokens or within each of G groups."""

    is_causal = False

    def __init__(self, config: PreTrainedConfig, hidden_size: int, num_heads: int, encoder_config=None):
        super().__init__()
        encoder_config = encoder_config or config
        self.config = config
        self.num_heads = num_heads
        self.scaling = (hidden_size // num_heads) ** -0.5
        self.dropout = encoder_config.attention_probs_dropout_prob
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=encoder_config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, L, D) or (B, G, L, D)
        rotary: RotaryTable | None = None,
        attention_mask: torch.Tensor | None = None,  # boolean, (L, M) or (B, 1, L, M), true: attend
        past: PastKeyValues | None = None,  # of M - L earlier tokens
    ) -> tuple[torch.Tensor, torch.Tensor | None, PastKeyValues]:
        """Tokens (B, L, D) or (B, G, L, D) -> the same shape, attention weights or `None`, keys and values."""
        query, key, value = self._project(hidden_states, rotary)
        if isinstance(past, KeyValueBuffer):
            key, value = past.extend(key, value)
            present = past
        else:
            if past is not None:
                key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            present = (key, value)
        output, weights = self._attend(query, key, value, attention_mask)
        return self.proj(output.reshape(hidden_states.shape)), weights, present

    def _project(
        self, hidden_states: torch.Tensor, rotary: RotaryTable | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (..., L, D) -> rotated queries and keys, and values (B or B·G, h, L, d)."""
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # (..., L, 3, h, d)
        parts = qkv.unbind(-3) if rotary is None else rotate_queries_keys(qkv, rotary)
        return tuple(part.flatten(0, -4).transpose(1, 2) for part in parts)

    def _attend(self, query, key, value, mask) -> tuple[torch.Tensor, torch.Tensor | None]:
        return attend(self, query, key, value, mask, self.dropout if self.training else 0.0)


class VJepa2MLP(nn.Module):
    """Two linear layers around an activation: (..., D) -> (..., D)."""

    def __init__(self, hidden_size: int, mlp_ratio: float, hidden_act: str):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.activation = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) -> (..., D)."""
        hidden_states = self.fc1(hidden_states)
        if torch.is_grad_enabled() or not isinstance(self.activation, GELUActivation):
            return self.fc2(self.activation(hidden_states))
        # in place: these are the widest states of a block, and two of them do not fit in the CPU cache
        return self.fc2(torch.ops.aten.gelu_(hidden_states))


class VJepa2Layer(GradientCheckpointingLayer):
    """A pre-norm transformer block.

    Args:
        config: of the model that holds the layer; it chooses the attention implementation.
        index: 1 for the first block; the initialization of its two projections depends on it.
        encoder_config: has activation, norm eps, bias and dropout; `config` when `None`.
        drop_path: probability of skipping each branch, per clip.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        index: int,
        encoder_config: VJepa2EncoderConfig | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        encoder_config = encoder_config or config
        self.norm1 = nn.LayerNorm(hidden_size, eps=encoder_config.layer_norm_eps)
        self.attention = VJepa2Attention(config, hidden_size, num_heads, encoder_config)
        self.norm2 = nn.LayerNorm(hidden_size, eps=encoder_config.layer_norm_eps)
        self.mlp = VJepa2MLP(hidden_size, mlp_ratio, encoder_config.hidden_act)
        self.drop_path = StochasticDepth(drop_path, mode="row") if drop_path else nn.Identity()
        if encoder_config.depth_scaled_init:
            # on the projections: transformers does not visit a layer that has no parameters of its own
            self.attention.proj.init_scale = self.mlp.fc2.init_scale = 1 / math.sqrt(2 * index)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: RotaryTable | None = None,
        attention_mask: torch.Tensor | None = None,
        past: PastKeyValues | None = None,
    ) -> tuple[torch.Tensor, PastKeyValues]:
        """Tokens (B, L, D) -> (B, L, D), and the keys and values; arguments as in [`VJepa2Attention`]."""
        attended, _, present = self.attention(self.norm1(hidden_states), rotary, attention_mask, past)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states))), present


class VJepa2FactorizedLayer(VJepa2Layer):
    """A block that attends within a frame, then over time at each position, then applies the MLP, each pre-norm and
    residual (temporal recipe, "Factorized Space-Time Attention").

    On a whole clip, tokens are reshaped to frames and to positions: a token costs H'·W' + T' products instead of
    T'·H'·W'. With tokens dropped, masks compute the same function.
    """

    def __init__(self, config, hidden_size: int, num_heads: int, *args, encoder_config=None, **kwargs):
        super().__init__(config, hidden_size, num_heads, *args, encoder_config=encoder_config, **kwargs)
        encoder_config = encoder_config or config
        self.norm_time = nn.LayerNorm(hidden_size, eps=encoder_config.layer_norm_eps)
        self.attention_time = VJepa2Attention(config, hidden_size, num_heads, encoder_config)
        if encoder_config.depth_scaled_init:
            self.attention_time.proj.init_scale = self.attention.proj.init_scale

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: RotaryTable | None = None,
        steps: int | None = None,
        masks: tuple[torch.Tensor, torch.Tensor] | tuple[None, None] = (None, None),
    ) -> tuple[torch.Tensor, None]:
        """Tokens (B, N, D) of a whole clip of `steps` = T', or (B, K, D) with `masks` (B, 1, K, K), true for tokens of
        the same frame and of the same position."""
        same_frame, same_position = masks
        attended = _attend(self.attention, self.norm1(hidden_states), rotary, steps, same_frame)
        hidden_states = hidden_states + self.drop_path(attended)
        attended = _attend(self.attention_time, self.norm_time(hidden_states), rotary, steps, same_position, True)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states))), None


def _attend(
    attention: VJepa2Attention,
    hidden_states: torch.Tensor,
    rotary: RotaryTable | None,
    steps: int | None,
    mask: torch.Tensor | None,
    over_time: bool = False,
) -> torch.Tensor:
    """Attention of tokens (B, N, D) within each of T' = `steps` frames, at each position, or where a mask is true."""
    if mask is not None:
        return attention(hidden_states, rotary, mask)[0]

    def grouped(tokens: torch.Tensor) -> torch.Tensor:  # (..., N, D) -> (..., T', H'·W', D) or (..., H'·W', T', D)
        tokens = tokens.unflatten(-2, (steps, -1))
        return tokens.transpose(-3, -2) if over_time else tokens

    rotary = None if rotary is None else (grouped(rotary[0]), grouped(rotary[1]))
    attended = attention(grouped(hidden_states), rotary)[0]
    return (attended.transpose(1, 2) if over_time else attended).flatten(1, 2)


def build_layers(
    config: PreTrainedConfig,
    hidden_size: int,
    num_heads: int,
    mlp_ratio: float,
    depth: int,
    encoder_config: VJepa2EncoderConfig | None = None,
    drop_path_rate: float = 0.0,
    layer_class: type[VJepa2Layer] = VJepa2Layer,
) -> nn.ModuleList:
    """A stack of blocks, as `VJepa2Layer`; the probability to skip a branch grows linearly to `drop_path_rate`."""
    rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        layer_class(config, hidden_size, num_heads, mlp_ratio, i + 1, encoder_config=encoder_config, drop_path=rate)
        for i, rate in enumerate(rates)
    )
