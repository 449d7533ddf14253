"""The video encoder, VJepa2Encoder, and its patch embeddings.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N = T'·H'·W' tokens, K tokens kept,
D width, h heads, d channels per head, u frames of a tubelet, p side of a patch in pixels.
"""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vjepa2 import VJepa2EncoderConfig
from .modeling_base import VJepa2PreTrainedModel, attention_mask, check_keywords, read_config_dict
from .modeling_layers import (
    RotaryTable,
    VJepa2FactorizedLayer,
    VJepa2Layer,
    add_positions,
    build_layers,
    gather_tokens,
    grid_positions,
    init_modality,
    modality_parameters,
    position_parameter,
    rotary_table,
)
from .specs import check_count, check_flag, refuse


# By model type, the prefixes of encoders in a folder; the first is the default
_COMPONENTS = {
    "vjepa2_hf_encoder": [],
    "vjepa2_hf_masked_latent_prediction": ["target_encoder", "encoder"],
    "vjepa2_hf_world_model": ["encoder"],
    "vjepa2_hf_video_classification": ["encoder"],
}
# Weights beside the encoder in folders of other models
_OTHER_WEIGHTS = re.compile(
    r"(encoder|target_encoder|(vjepa2\.)?predictor|pooler|classifier|state_network|(reward|stochastic|chance|distance)_head)\."
    r"|state_(mean|map|scale|whitening)$"
)


@dataclass
class VJepa2EncoderOutput(ModelOutput):
    """Output of [`VJepa2Encoder`].

    last_hidden_state: (B, N, D), or (B, K, D) with a context mask; after the final norm.
    grid: (T', H', W') of the clip.
    hidden_states: on request, the input of the first block and the output of every block, before the final norm.
    attentions: on request (eager attention), (B, h, N, N) per layer. A factorized layer has two: within frames
        (B·T', h, H'·W', H'·W') and over time (B·H'·W', h, T', T'), or (B, h, K, K) each with a context mask.
    level_hidden_states: with `output_levels` in the config, the tokens of each of these blocks after its own norm, of
        the shape of `last_hidden_state`, which is the last of them.
    """

    last_hidden_state: torch.Tensor | None = None
    grid: tuple[int, int, int] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    level_hidden_states: tuple[torch.Tensor, ...] | None = None


class VJepa2Encoder(VJepa2PreTrainedModel):
    """Vision transformer on tubelets of video, with positions of the clip's own grid.

    ::

        clip (B, T, C, H, W) ──► patch embeddings ──► (context mask: drop tokens) ──► blocks ──► norm ──► (B, N, D)

    A clip of one frame is an image: with `image_tubelet_size` it has patch embeddings of its own; otherwise its frame
    is repeated to a tubelet.

    Example:
        >>> encoder = VJepa2Encoder.from_pretrained("runs/demo/pretrain/final")
        >>> tokens = encoder(pixel_values_videos).last_hidden_state  # (B, N, D)
        >>> clip_features = encoder.encode(pixel_values_videos, pool="clip")  # (B, D), no gradient
    """

    config: VJepa2EncoderConfig
    _has_transformers_counterpart = True
    _loadable_model_types = tuple(_COMPONENTS)

    def __init__(self, config: VJepa2EncoderConfig):
        super().__init__(config)
        embeddings = VJepa2ConvPatchEmbeddings if config.patch_stem == "conv" else VJepa2PatchEmbeddings
        self.patch_embeddings = embeddings(config)
        self.image_patch_embeddings = self.image_modality_embedding = self.video_modality_embedding = None
        if config.image_tubelet_size is not None:
            self.image_patch_embeddings = embeddings(config, config.image_tubelet_size)
        if config.modality_embeddings:
            self.image_modality_embedding, self.video_modality_embedding = modality_parameters(config.hidden_size)
        self.position_embeddings = position_parameter(config, config.hidden_size)
        sizes = (config.hidden_size, config.num_attention_heads, config.mlp_ratio, config.num_hidden_layers)
        kind = VJepa2FactorizedLayer if config.attention_type == "factorized" else VJepa2Layer
        self.layer = build_layers(config, *sizes, drop_path_rate=config.drop_path_rate, layer_class=kind)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # of the last block
        earlier = [*(config.output_levels or [])][:-1]
        self.level_norms = nn.ModuleList(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in earlier)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, component: str | None = None, **kwargs):
        """Loads an encoder from its own folder or Hub id, from that of a model of ours that holds one, or from a
        transformers `vjepa2` checkpoint.

        Args:
            component: for a masked-latent model, "target_encoder" (the default: what evaluation and world models use)
                or "encoder" (the online one).
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        file = read_config_dict(pretrained_model_name_or_path, kwargs)
        components = _COMPONENTS.get(file.get("model_type"), [])
        learned = file.get("state_type") == "learned" and file.get("state_input", "pixels") == "pixels"
        if file.get("state_type") == "pixels" or learned:
            raise ValueError(f"{pretrained_model_name_or_path} is a world model on pixels: it holds no encoder.")
        if component is not None and component not in components:
            held = f"{pretrained_model_name_or_path} holds a {file.get('model_type')!r}"
            expected = f"expected one of {components or 'none: leave it out'}"
            raise ValueError(f"component is {component!r}, but {held}; {expected}.")
        if components:
            own = {rf"^{component or components[0]}\.(.+)": r"\1"}
            kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **own}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings, by which accelerate shards the model (FSDP)."""
        return self.patch_embeddings  # PEFT asks for it to train adapters with reentrant checkpointing

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        loading_info.unexpected_keys = {key for key in loading_info.unexpected_keys if not _OTHER_WEIGHTS.match(key)}

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values_videos: torch.Tensor, context_mask: torch.Tensor | None = None, **kwargs
    ) -> VJepa2EncoderOutput:
        """Encodes clips.

        Args:
            pixel_values_videos: normalized pixels (B, T, C, H, W); any T, H, W that tubelet and patch divide. Fewer
                frames than a tubelet are repeated to fill it (one frame: if the model has no image tokenizer).
            context_mask: int64 (B, K) token ids. Only these tokens are embedded and encoded; they never see the rest
                of the clip.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        check_keywords(self, kwargs)
        pixel_values_videos = self.fill_tubelet(pixel_values_videos)
        grid = self.get_grid(pixel_values_videos)
        if context_mask is not None:
            check_token_ids("context_mask", context_mask, pixel_values_videos.shape[0], math.prod(grid))
        hidden_states = self._embed(pixel_values_videos, context_mask)
        hidden_states = add_positions(hidden_states, self.config, grid, context_mask, self.position_embeddings)
        rotary = self.rotary(grid, context_mask, hidden_states.device)
        groups = self._attention_groups(grid, context_mask)
        levels = []
        for index, layer in enumerate(self.layer):
            hidden_states = layer(hidden_states, rotary, *groups)[0]
            if len(levels) < len(self.level_norms) and index == self.config.output_levels[len(levels)]:
                levels.append(self.level_norms[len(levels)](hidden_states))
        last = self.layernorm(hidden_states)
        levels = None if self.config.output_levels is None else (*levels, last)
        return VJepa2EncoderOutput(last_hidden_state=last, level_hidden_states=levels, grid=grid)

    def _embed(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """Clips (B, T, C, H, W) -> (B, N, D), or (B, K, D) for the tokens at `ids` (B, K)."""
        is_image = pixel_values_videos.shape[1] == 1
        own = is_image and self.image_patch_embeddings is not None
        tokens = (self.image_patch_embeddings if own else self.patch_embeddings)(pixel_values_videos, ids)
        modality = self.image_modality_embedding if is_image else self.video_modality_embedding
        return tokens if modality is None else tokens + modality.to(tokens)

    def rotary(self, grid: tuple[int, int, int], ids: torch.Tensor | None, device) -> RotaryTable | None:
        """Rotary table of a grid (T', H', W'), or of its tokens `ids` (B, K); `None` for other kinds of positions."""
        if self.config.position_embedding_type != "rope":
            return None
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        positions = grid_positions(grid, device, self.config.rope_grid_size)
        table = rotary_table(positions, head_dim, self.config.rope_interleave)
        return table if ids is None else tuple(part[ids] for part in table)

    def _attention_groups(self, grid: tuple[int, int, int], ids: torch.Tensor | None) -> tuple:
        """Further arguments of a factorized layer: the clip's steps, or masks for the tokens `ids` (B, K)."""
        if self.config.attention_type != "factorized":
            return ()
        if ids is None:
            return (grid[0],)
        if "flash" in (self.config._attn_implementation or ""):
            raise ValueError(
                f"attention_type='factorized' with a context_mask needs attention masks, which "
                f"{self.config._attn_implementation!r} does not support: call set_attn_implementation('sdpa')."
            )
        per_frame = grid[1] * grid[2]
        frame_and_position = ids // per_frame, ids % per_frame

        def equal(part: torch.Tensor) -> Any:
            shape = (*ids.shape, ids.shape[1])
            return attention_mask(
                self.config, lambda clip, query, key: part[clip, query] == part[clip, key], *shape, ids.device
            )

        return None, tuple(map(equal, frame_and_position))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # PyTorch's own: a norm follows, and keeps the brightness of a patch only if biases are as large as inputs
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if module is not self:
            return
        if self.position_embeddings is not None:
            init.trunc_normal_(self.position_embeddings, std=self.config.initializer_range)
        init_modality(self)

    def get_grid(self, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
        """Grid (T', H', W') of clips (B, T, C, H, W), whose shape is checked; one frame has a grid of one step."""
        return clip_grid(self.config, pixel_values_videos)

    def fill_tubelet(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Repeats the frames of a clip shorter than a tubelet; the patch embeddings handle a single frame."""
        tubelet = self.config.tubelet_size
        check_clips(pixel_values_videos)
        if pixel_values_videos.ndim != 5 or not 1 < pixel_values_videos.shape[1] < tubelet:
            return pixel_values_videos
        frames = torch.arange(tubelet, device=pixel_values_videos.device) % pixel_values_videos.shape[1]
        return pixel_values_videos[:, frames]

    @torch.no_grad()
    def encode(self, video: torch.Tensor, pool: str | None = None, levels: bool = False) -> torch.Tensor:
        """Features without gradient.

        Args:
            video: normalized clips (B, T, C, H, W).
            pool: `None` returns tokens (B, N, D), "frame" their mean over space (B, T', D), "clip" over all (B, D).
            levels: the features of all L `output_levels`, side by side: (…, L · D).
        """
        if not (pool is None or isinstance(pool, str) and pool in ("frame", "clip")):
            refuse("pool", pool, "None, 'frame' or 'clip'")
        if check_flag("levels", levels) and self.config.output_levels is None:
            raise ValueError(
                "levels=True needs output_levels in the encoder's config, like [5, 11, 17, 23]; it is None."
            )
        output = self(video)
        tokens = torch.cat(output.level_hidden_states, dim=-1) if levels else output.last_hidden_state
        if pool is None:
            return tokens
        by_frame = tokens.unflatten(1, (output.grid[0], -1)).mean(dim=2)
        return by_frame if pool == "frame" else by_frame.mean(dim=1)

    def encode_long(
        self,
        video: Any,
        chunk_frames: int = 64,
        overlap: int = 0,
        stride: int = 1,
        output_dir: str | os.PathLike | None = None,
        processor: Any = None,
        pool: str | None = None,
    ) -> torch.Tensor | Any:
        """Features of a video of any length, without gradient, read and encoded one chunk at a time: memory does not
        grow with its length, and no token attends beyond its chunk.

        Args:
            video: normalized pixels (T, C, H, W) or (1, T, C, H, W); or an input of the processor: a video file (path,
                URL, bytes) or uint8 frames (array (T, H, W, 3) or tensor (T, 3, H, W)); or an iterable of frames:
                normalized float tensors (C, H, W), uint8 or PIL images. The last frame is repeated to fill a tubelet.
            chunk_frames, overlap: frames encoded together, and frames of the previous chunk that give context;
                multiples of the tubelet size.
            stride: every stride-th frame is kept; `chunk_frames` counts only these.
            output_dir: features are written here, one file per chunk. The same call continues after an interruption.
            processor: a `VJepa2VideoProcessor`. Default: the one saved in the folder of the encoder.
            pool: `None` returns tokens, "frame" their mean over space.

        Returns:
            (1, N, D), N = T'·H'·W', or pooled (1, T', D), on the CPU; with `output_dir` a
            [`~vjepa2_hf.data.long_video.LongFeatures`] that reads from it.

        Raises:
            ValueError: a setting that does not fit, images without a processor, no frame, an unreadable video, or an
                `output_dir` of other weights, settings or another video.
        """
        try:
            from vjepa2_hf.data.long_video import encode_long
        except ImportError as error:
            raise ImportError("encode_long needs the package vjepa2_hf: pip install vjepa2_hf.") from error
        chunk_frames, stride = check_count("chunk_frames", chunk_frames), check_count("stride", stride)
        overlap = check_count("overlap", overlap, lowest=0)
        return encode_long(self, video, chunk_frames, overlap, stride, output_dir, processor, pool)


class VJepa2PatchEmbeddings(nn.Module):
    """Tubelets of pixels to tokens; `proj` is a 3-D convolution, as in every published checkpoint.

    Args:
        tubelet_size: frames per token, if they differ from the config's.
    """

    def __init__(self, config: VJepa2EncoderConfig, tubelet_size: int | None = None):
        super().__init__()
        self.tubelet_size = tubelet_size or config.tubelet_size
        size = (self.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Clips (B, T, C, H, W) -> (B, N, D), or (B, K, D) for the tokens at `ids` (B, K)."""
        if not isinstance(self.proj, nn.Conv3d) or self.proj.weight.is_meta:
            return self._call_projection(pixel_values_videos, ids)
        weight = self.proj.weight
        if pixel_values_videos.shape[1] == 1:  # sum the kernel over time instead of repeating a frame
            weight = weight.sum(dim=2, keepdim=True)
        patches = cut_patches(pixel_values_videos.to(weight.dtype), weight.shape[2:], ids)
        return nn.functional.linear(patches.flatten(2), weight.flatten(1), self.proj.bias)

    def _call_projection(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """`forward` through the convolution itself: a PEFT adapter may wrap it, or accelerate may have offloaded its
        weights."""
        if pixel_values_videos.shape[1] == 1:
            pixel_values_videos = pixel_values_videos.expand(-1, self.tubelet_size, -1, -1, -1)
        videos = pixel_values_videos.to(self.proj.weight.dtype).transpose(1, 2)
        tokens = self.proj(videos).flatten(2).transpose(1, 2)
        return tokens if ids is None else gather_tokens(tokens, ids)


class VJepa2ConvPatchEmbeddings(nn.Module):
    """Tubelets of pixels to tokens through convolutions within each patch (`patch_stem="conv"`).

    ::

        patch (C, p, p) of each frame ──► log2(p) × [conv 2 × 2, stride 2 ──► GroupNorm(1) ──► GELU] ──► (D,) ─┐
        patches of a tubelet's frames, side by side (u · D,) ──► proj ──► token (D,) ◄─────────────────────────┘

    Kernels do not overlap, and norms are of one patch of one frame. So a token depends on its own pixels alone, and
    pixels of hidden tokens cannot reach the kept ones, as in the hierarchical MLP stem of arXiv 2203.09795. A single
    frame is repeated to a tubelet.

    Args:
        tubelet_size: frames per token, if they differ from the config's.
    """

    def __init__(self, config: VJepa2EncoderConfig, tubelet_size: int | None = None):
        super().__init__()
        self.tubelet_size, self.patch_size = tubelet_size or config.tubelet_size, config.patch_size
        stages, channels = [], config.in_chans
        for size in config.stem_sizes:
            norm = nn.GroupNorm(1, size, eps=config.layer_norm_eps)
            stages += [nn.Conv2d(channels, size, kernel_size=2, stride=2), norm, nn.GELU()]
            channels = size
        self.stem = nn.Sequential(*stages)
        self.proj = nn.Linear(self.tubelet_size * channels, config.hidden_size)

    def forward(self, pixel_values_videos: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Clips (B, T, C, H, W) -> (B, N, D), or (B, K, D) for the tokens at `ids` (B, K)."""
        frames = 1 if pixel_values_videos.shape[1] == 1 else self.tubelet_size
        size = (frames, self.patch_size, self.patch_size)
        patches = cut_patches(pixel_values_videos.to(self.proj.weight.dtype), size, ids).transpose(2, 3)
        features = self.stem(patches.flatten(0, 2)).reshape(*patches.shape[:3], -1)  # (B, K, u, D)
        return self.proj(features.expand(-1, -1, self.tubelet_size, -1).flatten(2))


def cut_patches(
    pixel_values_videos: torch.Tensor, size: tuple[int, int, int], ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Clips (B, T, C, H, W) as patches of `size` (u frames, p, q pixels): (B, N, C, u, p, q), or (B, K, C, u, p, q) of
    the tokens at `ids` (B, K), whose pixels alone are read."""
    sizes = dict(zip("upq", size))
    patches = rearrange(pixel_values_videos, "b (t u) c (h p) (w q) -> b t h w c u p q", **sizes)
    if ids is None:
        return patches.flatten(1, 3)
    rows, columns = patches.shape[2:4]
    clips = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1)  # `len` would fix an exported batch
    time, position = ids // (rows * columns), ids % (rows * columns)
    return patches[clips, time, position // columns, position % columns]


def as_encoder(encoder: "str | os.PathLike | VJepa2Encoder") -> VJepa2Encoder:
    """The encoder that `from_encoder` copies: an encoder, or one loaded from a folder or Hub id."""
    if isinstance(encoder, (str, os.PathLike)):
        encoder = VJepa2Encoder.from_pretrained(encoder)
    if not isinstance(encoder, VJepa2Encoder):
        raise ValueError(
            f"encoder is a {type(encoder).__name__}; expected a VJepa2Encoder, a folder or a Hub id. For a PEFT model "
            "pass `merge_and_unload()`, for another model the encoder inside it."
        )
    if any(".base_layer." in name for name in encoder.state_dict()):
        raise ValueError("encoder has an unmerged PEFT adapter: merge it with `merge_and_unload()` of the PEFT model.")
    return encoder


def check_clips(pixel_values_videos: Any) -> None:
    """Refuses clips that are no tensor."""
    if not isinstance(pixel_values_videos, torch.Tensor):
        expected = (
            "a tensor (batch, frames, channels, height, width) of normalized floats, as of a VJepa2VideoProcessor"
        )
        refuse("pixel_values_videos", pixel_values_videos, expected)


def clip_grid(config: VJepa2EncoderConfig, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
    """The grid (T', H', W') of clips (B, T, C, H, W), see [`VJepa2Encoder.get_grid`]."""
    check_clips(pixel_values_videos)
    shape = tuple(pixel_values_videos.shape)
    if len(shape) != 5:
        raise ValueError(f"pixel_values_videos has shape {shape}; expected (batch, frames, channels, height, width).")
    if not pixel_values_videos.is_floating_point():
        advice = "expected normalized floats: pass videos through a VJepa2VideoProcessor."
        raise ValueError(f"pixel_values_videos are {pixel_values_videos.dtype}; {advice}")
    batch_size, frames, channels, height, width = shape
    if batch_size == 0:
        raise ValueError(f"pixel_values_videos has no clip (shape {shape}); expected a batch of at least one.")
    if channels != config.in_chans:
        expected = f"{config.in_chans}. Channels come third: (batch, frames, channels, height, width)."
        raise ValueError(f"pixel_values_videos has {channels} channels (shape {shape}); expected {expected}")
    units = {"frames": 1 if frames == 1 else config.tubelet_size}
    units.update(height=config.patch_size, width=config.patch_size)
    for (name, unit), size in zip(units.items(), (frames, height, width), strict=True):
        if size == 0 or size % unit:
            expected = f"expected a multiple of {unit}: resize, crop or cut the clip."
            raise ValueError(f"pixel_values_videos has {name}={size} (shape {shape}); {expected}")
    return frames // units["frames"], height // units["height"], width // units["width"]


def check_token_ids(name: str, ids: torch.Tensor, batch_size: int, num_tokens: int) -> None:
    """Refuses masks that are not (B, K) int64 ids. The range is checked on the CPU only, where it needs no
    synchronization, and not in a compiled graph, which cannot branch on values."""
    if not isinstance(ids, torch.Tensor):
        refuse(name, ids, f"a tensor of int64 token ids ({batch_size}, K)")
    if ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[0] != batch_size or ids.shape[1] == 0:
        expected = f"int64 token ids ({batch_size}, K) with K above 0"
        raise ValueError(f"{name} has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected {expected}.")
    if torch.compiler.is_compiling() or ids.device.type != "cpu":
        return
    if ids.min() < 0 or ids.max() >= num_tokens:
        found = f"ids from {ids.min()} to {ids.max()}"
        raise ValueError(f"{name} holds {found}; the clip has tokens 0 to {num_tokens - 1}.")
