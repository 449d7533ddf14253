"""The layers that every model of the package is made of: patch embeddings, attention, MLP, blocks.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N = T'·H'·W' tokens, K tokens kept,
L tokens of either kind, D width, h heads, d channels of a head.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_vjepa2 import VJepa2EncoderConfig
from .modeling_positions import RotaryTable, rotate_queries_keys


def gather_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) at ids (B, K) -> (B, K, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention over (B, h, L, d), for attention weights; a boolean mask keeps where it is true."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2), weights


class KeyValueBuffer:
    """Keys and values of a layer's tokens so far, in memory with room for those to come: a step copies its own tokens
    alone. Not for gradient, which needs every step's tensors as they were.

    Args:
        room: M, the most tokens that will be held.
        shared: keys and values (B, h, L, d) that problems begin with; each serves `copies` candidates.
    """

    def __init__(self, room: int, shared: tuple[torch.Tensor, torch.Tensor] | None = None, copies: int = 1):
        self.room, self.length, self.parts = room, 0, None
        if shared is not None:
            self.extend(*(part.unsqueeze(1).expand(-1, copies, -1, -1, -1) for part in shared))

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, h, L, d) or (B, copies, h, L, d) of the tokens that follow -> those of all tokens so
        far (B or B · copies, h, M, d)."""
        if self.parts is None:
            heads, _, channels = key.shape[-3:]
            shape = (key.shape[:-3].numel(), heads, self.room, channels)
            self.parts = key.new_empty(shape), value.new_empty(shape)
        first, self.length = self.length, self.length + key.shape[-2]
        for part, new in zip(self.parts, (key, value), strict=True):
            part[:, :, first : self.length].unflatten(0, new.shape[:-3]).copy_(new)
        return tuple(part[:, :, : self.length] for part in self.parts)


# Keys and values of earlier tokens, (B, h, L, d) each, or what holds them and grows
Past = tuple[torch.Tensor, torch.Tensor] | KeyValueBuffer


class VJepa2Attention(nn.Module):
    """Multi-head self-attention with fused q, k, v and rotary positions, over L tokens or within G groups of them."""

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
        past: Past | None = None,  # of M - L earlier tokens
    ) -> tuple[torch.Tensor, torch.Tensor | None, Past]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # (..., L, 3, h, d)
        parts = qkv.unbind(-3) if rotary is None else rotate_queries_keys(qkv, rotary)
        query, key, value = (part.flatten(0, -4).transpose(1, 2) for part in parts)  # (B or B·G, h, L, d)
        if isinstance(past, KeyValueBuffer):
            key, value = past.extend(key, value)
            present = past
        else:
            if past is not None:
                key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            present = (key, value)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            is_causal=False,
        )
        return self.proj(output.reshape(hidden_states.shape)), weights, present


class VJepa2MLP(nn.Module):
    def __init__(self, hidden_size: int, mlp_ratio: float, hidden_act: str):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.activation = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        if torch.is_grad_enabled() or not isinstance(self.activation, GELUActivation):
            return self.fc2(self.activation(hidden_states))
        # in its place: these are the widest states of a block, and twice of them do not fit in a cache
        return self.fc2(torch.ops.aten.gelu_(hidden_states))


class VJepa2Layer(GradientCheckpointingLayer):
    """A pre-norm transformer block.

    Args:
        config: of the model that holds the layer (it chooses the attention implementation).
        hidden_size, num_heads, mlp_ratio: of this stack.
        index: 1 for the first block; the initialisation of its two projections depends on it.
        encoder_config: where activation, norm eps, bias and dropout come from; `config` when `None`.
        drop_path: chance to skip each branch, per clip.
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
        self.drop_path = _drop_path(drop_path)
        if encoder_config.depth_scaled_init:
            # on the projections themselves: transformers does not visit a layer that has no parameters of its own
            self.attention.proj.init_scale = self.mlp.fc2.init_scale = 1 / math.sqrt(2 * index)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: RotaryTable | None = None,
        attention_mask: torch.Tensor | None = None,
        past: Past | None = None,
    ) -> tuple[torch.Tensor, Past]:
        attended, _, present = self.attention(self.norm1(hidden_states), rotary, attention_mask, past)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states))), present


class VJepa2FactorizedLayer(VJepa2Layer):
    """A block that attends within a frame, then at a place over time, then applies the MLP, each pre-norm and added
    (seed 000, "Factorized Space-Time Attention").

    On a whole clip tokens are reshaped to frames and to places, so a token costs H'·W' + T' products instead of
    T'·H'·W'. With tokens dropped there is no such shape, and masks give the same function.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        *args,
        encoder_config: VJepa2EncoderConfig | None = None,
        **kwargs,
    ):
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
        the same frame and of the same place."""
        same_frame, same_place = masks
        attended = _attend(self.attention, self.norm1(hidden_states), rotary, steps, same_frame)
        hidden_states = hidden_states + self.drop_path(attended)
        attended = _attend(self.attention_time, self.norm_time(hidden_states), rotary, steps, same_place, True)
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
    """Attention of tokens (B, N, D) within each of T' = `steps` frames or at each place, or where a mask is true."""
    if mask is not None:
        return attention(hidden_states, rotary, mask)[0]

    def grouped(tokens: torch.Tensor) -> torch.Tensor:  # (..., N, D) -> (..., T', H'·W', D) or (..., H'·W', T', D)
        tokens = tokens.unflatten(-2, (steps, -1))
        return tokens.transpose(-3, -2) if over_time else tokens

    rotary = None if rotary is None else (grouped(rotary[0]), grouped(rotary[1]))
    attended = attention(grouped(hidden_states), rotary)[0]
    return (attended.transpose(1, 2) if over_time else attended).flatten(1, 2)


def _drop_path(rate: float) -> nn.Module:
    if rate == 0.0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, mode="row")


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
    """A stack of blocks; the chance to skip one grows linearly to `drop_path_rate`. Arguments as of `VJepa2Layer`."""
    rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        layer_class(config, hidden_size, num_heads, mlp_ratio, i + 1, encoder_config=encoder_config, drop_path=rate)
        for i, rate in enumerate(rates)
    )


class VJepa2PatchEmbeddings(nn.Module):
    """Tubelets of pixels to tokens. `proj` has the shape of a 3-D convolution, as in every published checkpoint."""

    def __init__(self, config: VJepa2EncoderConfig):
        super().__init__()
        self.config = config
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Clips (B, T, C, H, W) -> (B, N, D), or (B, K, D) for the tokens at `ids` (B, K) alone."""
        if not isinstance(self.proj, nn.Conv3d) or self.proj.weight.is_meta:
            return self._call_projection(pixel_values_videos, ids)
        weight = self.proj.weight
        if pixel_values_videos.shape[1] == 1:  # a still frame fills its tubelet: fold the kernel instead of repeating
            weight = weight.sum(dim=2, keepdim=True)
        patches = rearrange(
            pixel_values_videos.to(weight.dtype),
            "b (t u) c (h p) (w q) -> b t h w c u p q",
            u=weight.shape[2],
            p=weight.shape[3],
            q=weight.shape[4],
        )
        if ids is None:
            patches = patches.flatten(4).flatten(1, 3)
        else:
            rows, columns = patches.shape[2:4]
            clips = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1)  # `len` would fix an exported batch
            time, place = ids // (rows * columns), ids % (rows * columns)
            patches = patches[clips, time, place // columns, place % columns].flatten(2)  # only kept pixels are read
        return nn.functional.linear(patches, weight.flatten(1), self.proj.bias)

    def _call_projection(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """What `forward` gives where the weights are not all there is: where an adapter (PEFT) wraps the convolution
        and where accelerate offloaded its weights, a call alone adds the one and loads the others."""
        if pixel_values_videos.shape[1] == 1:
            pixel_values_videos = pixel_values_videos.expand(-1, self.config.tubelet_size, -1, -1, -1)
        videos = pixel_values_videos.to(self.proj.weight.dtype).transpose(1, 2)
        tokens = self.proj(videos).flatten(2).transpose(1, 2)
        return tokens if ids is None else gather_tokens(tokens, ids)
