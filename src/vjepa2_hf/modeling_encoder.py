"""The video encoder and the layers that every model of the package is made of.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N = T'·H'·W' tokens, K tokens kept,
D width, h heads, d channels of a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_vjepa2 import VJepa2EncoderConfig


RotaryTable = tuple[torch.Tensor, torch.Tensor]  # cosine and signed sine, each (L, d) or (B, L, d)


def grid_positions(grid: tuple[int, int, int], device=None) -> torch.Tensor:
    """(time, row, column) of every token of a grid (T', H', W'), in token order: float32 (N, 3)."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def rotary_table(positions: torch.Tensor, head_dim: int, interleave: bool = False) -> RotaryTable:
    """Cosine and sine of 3-D RoPE, made once a forward for all layers.

    A head's channels are split into depth, height and width, 2·((d // 3) // 2) each, and a rest that is not turned;
    ω_i = 10000^(−i / (size / 2)).

    Args:
        positions: (..., L, 3) time, row and column.
        head_dim: d.
        interleave: `False` tiles the angles ([ω0…ωk, ω0…ωk]) although `apply_rotary` turns neighbouring channels as
            pairs. The released weights were trained so; only with it do they give their numbers. `True` gives both
            channels of a pair the same angle.

    Returns:
        Cosine and sine (..., L, d) in float32, the sine with the sign that `apply_rotary` needs.
    """
    size = 2 * ((head_dim // 3) // 2)
    omega = 10000.0 ** -(torch.arange(size // 2, device=positions.device, dtype=torch.float32) / max(size / 2, 1))
    omega = omega.repeat_interleave(2) if interleave else omega.repeat(2)
    angles = (positions.float().unsqueeze(-1) * omega).flatten(-2)  # (..., L, 3 · size)
    angles = nn.functional.pad(angles, (0, head_dim - angles.shape[-1]))  # angle 0 leaves the rest unturned
    sign = torch.ones(head_dim, device=positions.device)
    sign[0::2] = -1.0
    return angles.cos(), angles.sin() * sign


def apply_rotary(states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Turns neighbouring channels of queries and keys (B, L, 2, h, d) by the table's angles."""
    cos, sin = (part.to(states.dtype).unflatten(-2, (part.shape[-2], 1, 1)) for part in table)  # (..., L, 1, 1, d)
    swapped = states.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if states.shape[-1] % 2 == 0 else _swap_odd(states)
    return torch.addcmul(states * cos, swapped, sin)


def _swap_odd(states: torch.Tensor) -> torch.Tensor:
    """Swaps neighbours where d is odd; the last channel is never turned, so its own value serves."""
    return torch.cat([states[..., :-1].unflatten(-1, (-1, 2)).flip(-1).flatten(-2), states[..., -1:]], dim=-1)


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


class VJepa2Attention(nn.Module):
    """Multi-head self-attention with fused q, k, v and rotary positions."""

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
        hidden_states: torch.Tensor,  # (B, L, D)
        rotary: RotaryTable | None = None,
        attention_mask: torch.Tensor | None = None,  # boolean, (L, M) or (B, 1, L, M), true: attend
        past: tuple[torch.Tensor, torch.Tensor] | None = None,  # keys and values (B, h, M - L, d) of earlier tokens
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, torch.Tensor]]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # (B, L, 3, h, d)
        if rotary is None:
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            query, key = apply_rotary(qkv[:, :, :2], rotary).permute(2, 0, 3, 1, 4).unbind(0)
            value = qkv[:, :, 2].transpose(1, 2)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
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
        return self.proj(output.reshape(hidden_states.shape)), weights, (key, value)


class VJepa2MLP(nn.Module):
    def __init__(self, hidden_size: int, mlp_ratio: float, hidden_act: str):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.activation = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


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
        past: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        attended, _, present = self.attention(self.norm1(hidden_states), rotary, attention_mask, past)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states))), present


def _drop_path(rate: float) -> nn.Module:
    if rate == 0.0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, mode="row")


class VJepa2PatchEmbeddings(nn.Module):
    """Tubelets of pixels to tokens. `proj` has the shape of a 3-D convolution, as in every published checkpoint."""

    def __init__(self, config: VJepa2EncoderConfig):
        super().__init__()
        self.config = config
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Clips (B, T, C, H, W) -> (B, N, D), or (B, K, D) for the tokens at `ids` (B, K) alone."""
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
            clips = torch.arange(len(ids), device=ids.device).unsqueeze(1)
            time, place = ids // (rows * columns), ids % (rows * columns)
            patches = patches[clips, time, place // columns, place % columns].flatten(2)  # only kept pixels are read
        return nn.functional.linear(patches, weight.flatten(1), self.proj.bias)


@dataclass
class VJepa2EncoderOutput(ModelOutput):
    """Output of [`VJepa2Encoder`].

    last_hidden_state: (B, N, D), or (B, K, D) with a context mask; after the final norm.
    grid: (T', H', W') of the clip.
    hidden_states: on request, the input of the first block and every block's output, before the final norm.
    attentions: on request (eager attention), (B, h, L, L) a layer.
    """

    last_hidden_state: torch.Tensor | None = None
    grid: tuple[int, int, int] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VJepa2PreTrainedModel(PreTrainedModel):
    """What the encoder can be asked for; the other models inherit it."""

    config: VJepa2EncoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VJepa2Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_record_outputs = {
        "hidden_states": VJepa2Layer,
        "attentions": OutputRecorder(VJepa2Attention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            init.trunc_normal_(module.weight, std=std * getattr(module, "init_scale", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            super()._init_weights(module)


class VJepa2Encoder(VJepa2PreTrainedModel):
    """Vision transformer on tubelets of video, with 3-D rotary positions of the clip's own grid.

    Args:
        config ([`VJepa2EncoderConfig`]): sizes; weights are random.

    Example:
        >>> encoder = VJepa2Encoder.from_pretrained("runs/demo/pretrain/final")
        >>> tokens = encoder(pixel_values_videos).last_hidden_state  # (B, N, D)
        >>> clip_features = encoder.encode(pixel_values_videos, pool="clip")  # (B, D), no gradient
    """

    # What the folders of the models that hold an encoder have beside it.
    _keys_to_ignore_on_load_unexpected = [
        r"^(encoder|target_encoder|predictor|pooler|classifier)\.",
        r"^state_(mean|scale)$",
    ]

    def __init__(self, config: VJepa2EncoderConfig):
        super().__init__(config)
        self.patch_embeddings = VJepa2PatchEmbeddings(config)
        depth = config.num_hidden_layers
        self.layer = nn.ModuleList(
            VJepa2Layer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.mlp_ratio,
                index=i + 1,
                drop_path=config.drop_path_rate * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, component: str | None = None, **kwargs):
        """Loads an encoder from its own folder or from that of a model that holds one.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            component: for a masked-latent model, "target_encoder" (the default: what evaluation and world models use)
                or "encoder" (the online one).
        """
        hub = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
        hub = {name: kwargs[name] for name in hub if name in kwargs}
        file, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        components = _components_of(file.get("model_type"), pretrained_model_name_or_path)
        if file.get("state_type") == "pixels":
            raise ValueError(f"{pretrained_model_name_or_path} is a world model on raw pixels: it holds no encoder.")
        if component is not None and component not in components:
            raise ValueError(
                f"component is {component!r}, but {pretrained_model_name_or_path} holds a "
                f"{file.get('model_type')!r}; expected one of {components or 'none: leave it out'}."
            )
        if components:
            kwargs.setdefault("config", VJepa2EncoderConfig.from_dict(file["encoder_config"]))
            kwargs["key_mapping"] = {rf"^{component or components[0]}\.(.+)": r"\1"}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> VJepa2EncoderOutput:
        """Encodes clips.

        Args:
            pixel_values_videos: normalised pixels (B, T, C, H, W); any T, H, W that tubelet and patch divide. Fewer
                frames than a tubelet are repeated to fill it.
            context_mask: int64 (B, K) token ids. Only these are embedded and encoded, so that nothing else of the clip
                can reach them.

        Raises:
            ValueError: for a shape that does not fit, with what was expected.
        """
        pixel_values_videos = self._fill_tubelet(pixel_values_videos)
        grid = self.get_grid(pixel_values_videos)
        if context_mask is not None:
            check_token_ids("context_mask", context_mask, len(pixel_values_videos), math.prod(grid))
        hidden_states = self.patch_embeddings(pixel_values_videos, context_mask)
        rotary = self.rotary(grid, context_mask, hidden_states.device)
        for layer in self.layer:
            hidden_states = layer(hidden_states, rotary)[0]
        return VJepa2EncoderOutput(last_hidden_state=self.layernorm(hidden_states), grid=grid)

    def rotary(self, grid: tuple[int, int, int], ids: torch.Tensor | None, device) -> RotaryTable:
        """Rotary table of a grid (T', H', W'), or of the tokens `ids` (B, K) in it."""
        positions = grid_positions(grid, device)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary_table(positions, head_dim, self.config.rope_interleave)
        return (cos, sin) if ids is None else (cos[ids], sin[ids])

    def get_grid(self, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
        """Grid (T', H', W') of clips (B, T, C, H, W); a clip of one frame is a grid of one step.

        Raises:
            ValueError: for a wrong number of dimensions or channels, or sizes that tubelet and patch do not divide.
        """
        return clip_grid(self.config, pixel_values_videos)

    def _fill_tubelet(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Repeats the frames of a clip shorter than a tubelet; a single frame is left to the folded kernel."""
        tubelet = self.config.tubelet_size
        if pixel_values_videos.ndim != 5 or not 1 < pixel_values_videos.shape[1] < tubelet:
            return pixel_values_videos
        frames = torch.arange(tubelet, device=pixel_values_videos.device) % pixel_values_videos.shape[1]
        return pixel_values_videos[:, frames]

    @torch.no_grad()
    def encode(self, video: torch.Tensor, pool: str | None = None) -> torch.Tensor:
        """Features without gradient.

        Args:
            video: normalised clips (B, T, C, H, W).
            pool: `None` gives tokens (B, N, D), "frame" their mean over space (B, T', D), "clip" over all (B, D).
        """
        if pool not in (None, "frame", "clip"):
            raise ValueError(f"pool is {pool!r}; expected None, 'frame' or 'clip'.")
        output = self(video)
        if pool is None:
            return output.last_hidden_state
        by_frame = output.last_hidden_state.unflatten(1, (output.grid[0], -1)).mean(dim=2)
        return by_frame if pool == "frame" else by_frame.mean(dim=1)


def _components_of(model_type: str | None, path) -> list[str]:
    """Names under which a model type's folder keeps encoders; the first is the one to take."""
    components = {
        "vjepa2_hf_encoder": [],
        "vjepa2_hf_masked_latent_prediction": ["target_encoder", "encoder"],
        "vjepa2_hf_world_model": ["encoder"],
        "vjepa2_hf_video_classification": ["encoder"],
    }
    if model_type not in components:
        raise ValueError(f"{path} holds a model of type {model_type!r}; expected one of {', '.join(components)}.")
    return components[model_type]


def clip_grid(config: VJepa2EncoderConfig, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
    """See [`VJepa2Encoder.get_grid`]."""
    shape = tuple(pixel_values_videos.shape)
    if len(shape) != 5:
        raise ValueError(f"pixel_values_videos has shape {shape}; expected (batch, frames, channels, height, width).")
    _, frames, channels, height, width = shape
    if channels != config.in_chans:
        raise ValueError(
            f"pixel_values_videos has {channels} channels (shape {shape}); the model takes "
            f"{config.in_chans}. "
            "Channels come third: (batch, frames, channels, height, width)."
        )
    units = {"frames": 1 if frames == 1 else config.tubelet_size}
    units.update(height=config.patch_size, width=config.patch_size)
    for (name, unit), size in zip(units.items(), (frames, height, width), strict=True):
        if size == 0 or size % unit:
            raise ValueError(
                f"pixel_values_videos has {name}={size} (shape {shape}); expected a multiple of {unit}: "
                "resize, crop or cut the clip."
            )
    return frames // units["frames"], height // units["height"], width // units["width"]


def check_token_ids(name: str, ids: torch.Tensor, batch_size: int, num_tokens: int) -> None:
    """Refuses masks that are not (B, K) int64 ids. The range is checked on the CPU only, where it costs no wait."""
    if ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[0] != batch_size or ids.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected int64 token ids ({batch_size}, K) "
            "with K above 0."
        )
    if ids.device.type == "cpu" and (ids.min() < 0 or ids.max() >= num_tokens):
        raise ValueError(
            f"{name} holds ids from {ids.min()} to {ids.max()}; the clip has tokens 0 to {num_tokens - 1}."
        )


__all__ = ["VJepa2Encoder", "VJepa2EncoderOutput", "VJepa2PreTrainedModel"]
