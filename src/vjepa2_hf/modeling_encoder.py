"""The video encoder, and what loading and saving all models of the package have in common.

Shapes: B clips, T frames, C channels, H W pixels, (T', H', W') grid of tokens, N = T'·H'·W' tokens, K tokens kept,
D width, h heads, d channels of a head.
"""

import json
import logging
import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, find_adapter_config_file
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_vjepa2 import VJepa2EncoderConfig, refuse_missing_folder
from .hub.transformers_format import TRANSFORMERS_KEY_MAPPINGS, TRANSFORMERS_MODEL_TYPE, register_conversions
from .modeling_layers import VJepa2Attention, VJepa2FactorizedLayer, VJepa2Layer, VJepa2PatchEmbeddings, build_layers
from .modeling_positions import RotaryTable, add_positions, grid_positions, position_parameter, rotary_table


if TYPE_CHECKING:
    from .data.long_video import LongFeatures

logger = logging.getLogger(__name__)


@dataclass
class VJepa2EncoderOutput(ModelOutput):
    """Output of [`VJepa2Encoder`].

    last_hidden_state: (B, N, D), or (B, K, D) with a context mask; after the final norm.
    grid: (T', H', W') of the clip.
    hidden_states: on request, the input of the first block and every block's output, before the final norm.
    attentions: on request (eager attention), (B, h, L, L) a layer; of a factorized layer two, within frames
        (B·T', h, H'·W', H'·W') and over time (B·H'·W', h, T', T'), or (B, h, K, K) with a context mask.
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
    _no_split_modules = ["VJepa2Layer", "VJepa2FactorizedLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_record_outputs = {
        "hidden_states": VJepa2Layer,
        "attentions": OutputRecorder(VJepa2Attention, index=1),
    }
    accepts_loss_kwargs = False  # Trainer: losses are means, to be divided by the number of micro-batches
    card_facts = None  # what the model card is told beside config and weights: `vjepa2_hf.hub.model_card.CardFacts`
    _weight_conversions = ()  # of the file a model was loaded from; `save_pretrained` would undo them, and ours stay

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads a model of ours or, where transformers has such a model, a transformers `vjepa2` checkpoint.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            args, kwargs: as transformers takes them: `dtype`, `device_map`, `attn_implementation`,
                `output_loading_info`, …, and config fields to replace.

        Raises:
            FileNotFoundError: a local folder that is not there.
            ValueError: a folder of another model, weights that do not fit the config or do not read.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        own, by_hand = cls.config_class.model_type, getattr(kwargs.get("config"), "model_type", None)
        if by_hand == TRANSFORMERS_MODEL_TYPE:
            kwargs["config"] = cls.config_class.from_dict(kwargs["config"].to_dict())
        # a folder may hold weights alone, with the config given by hand
        source = read_config_dict(pretrained_model_name_or_path, kwargs).get("model_type") or by_hand
        if source == TRANSFORMERS_MODEL_TYPE and own in TRANSFORMERS_KEY_MAPPINGS:
            kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **TRANSFORMERS_KEY_MAPPINGS[own]}
        elif source not in cls._loadable_model_types():
            loadable = [*cls._loadable_model_types(), *[TRANSFORMERS_MODEL_TYPE][: own in TRANSFORMERS_KEY_MAPPINGS]]
            hint = " Start one on an encoder with from_encoder." if hasattr(cls, "from_encoder") else ""
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {source!r}; {cls.__name__} loads "
                f"{' or '.join(map(repr, loadable))}.{hint}"
            )
        return cls._load(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _loadable_model_types(cls) -> tuple[str, ...]:
        """Model types of ours whose folders this class loads from."""
        return (cls.config_class.model_type,)

    @classmethod
    def _load(cls, path, *args, output_loading_info: bool = False, ignore_mismatched_sizes: bool = False, **kwargs):
        """transformers' `from_pretrained`, with one sentence for what does not fit."""
        try:
            model, info = super().from_pretrained(
                path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except (SafetensorError, json.JSONDecodeError, EOFError) as error:
            raise ValueError(
                f"the weights in {path} do not read ({error}): the file is damaged or cut short; fetch it again."
            ) from error
        except (RuntimeError, pickle.UnpicklingError) as error:
            if "PytorchStreamReader" not in str(error) and not isinstance(error, pickle.UnpicklingError):
                raise
            raise ValueError(
                f"the weights in {path} do not read as tensors alone: the file is damaged, cut short, or holds code, "
                "which was not run; fetch it from its publisher again."
            ) from error
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"{path}: {name} has shape {tuple(found)} in the weights, {tuple(expected)} by the config "
                f"({len(info['mismatched_keys'])} such in all): config and weights are of different models."
            )
        model._weight_conversions = ()
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *args,
        **kwargs,
    ):
        """Saves as transformers does, and a model card: README.md, unless somebody wrote the one that is there.

        The card holds the config's facts, the figures of the run in the folder above `final/`, and `card_facts`
        ([`vjepa2_hf.hub.model_card.CardFacts`]).
        """
        from .hub.model_card import users_card, write_model_card

        self._users_card = users_card(save_directory)
        sizes = {name: value.numel() for name, value in (state_dict or {}).items()}  # saving empties the dict
        super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)
        if self.should_save_on_this_rank(is_main_process) and not push_to_hub:
            write_model_card(self, save_directory, sizes=sizes)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """Puts the card in the place of the one that transformers has just written there: its own, unless the
        repository has one."""
        from .hub.model_card import README, write_model_card

        if self._users_card is not None:
            (Path(working_dir) / README).write_text(self._users_card, encoding="utf-8")
        write_model_card(self, working_dir, load_from=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            init.trunc_normal_(module.weight, std=std * getattr(module, "init_scale", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
            if start := getattr(module, "init_query_key_bias", 0.0):
                thirds = torch.tensor([start, start, 0.0], device=module.bias.device)
                init.copy_(module.bias, thirds.repeat_interleave(len(module.bias) // 3))
        elif isinstance(module, nn.LayerNorm):
            super()._init_weights(module)


class VJepa2Encoder(VJepa2PreTrainedModel):
    """Vision transformer on tubelets of video, with positions of the clip's own grid.

    Args:
        config ([`VJepa2EncoderConfig`]): sizes; weights are random.

    Example:
        >>> encoder = VJepa2Encoder.from_pretrained("runs/demo/pretrain/final")
        >>> tokens = encoder(pixel_values_videos).last_hidden_state  # (B, N, D)
        >>> clip_features = encoder.encode(pixel_values_videos, pool="clip")  # (B, D), no gradient
    """

    # What the folders of the models that hold an encoder have beside it.
    _keys_to_ignore_on_load_unexpected = [
        r"^(encoder|target_encoder|(vjepa2\.)?predictor|pooler|classifier|reward_head|chance_head)\.",
        r"^state_(mean|map|scale)$",
    ]

    def __init__(self, config: VJepa2EncoderConfig):
        super().__init__(config)
        self.patch_embeddings = VJepa2PatchEmbeddings(config)
        self.position_embeddings = position_parameter(config, config.hidden_size)
        self.layer = build_layers(
            config,
            config.hidden_size,
            config.num_attention_heads,
            config.mlp_ratio,
            config.num_hidden_layers,
            drop_path_rate=config.drop_path_rate,
            layer_class=VJepa2FactorizedLayer if config.attention_type == "factorized" else VJepa2Layer,
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, component: str | None = None, **kwargs):
        """Loads an encoder from its own folder, from that of a model of ours that holds one, or from a transformers
        `vjepa2` checkpoint.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            component: for a masked-latent model, "target_encoder" (the default: what evaluation and world models use)
                or "encoder" (the online one).
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        file = read_config_dict(pretrained_model_name_or_path, kwargs)
        components = _COMPONENTS.get(file.get("model_type"), [])
        if file.get("state_type") == "pixels":
            raise ValueError(f"{pretrained_model_name_or_path} is a world model on raw pixels: it holds no encoder.")
        if component is not None and component not in components:
            raise ValueError(
                f"component is {component!r}, but {pretrained_model_name_or_path} holds a "
                f"{file.get('model_type')!r}; expected one of {components or 'none: leave it out'}."
            )
        if components:
            own = {rf"^{component or components[0]}\.(.+)": r"\1"}
            kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **own}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _loadable_model_types(cls) -> tuple[str, ...]:
        return tuple(_COMPONENTS)

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
            check_token_ids("context_mask", context_mask, pixel_values_videos.shape[0], math.prod(grid))
        hidden_states = self.patch_embeddings(pixel_values_videos, context_mask)
        hidden_states = add_positions(hidden_states, self.config, grid, context_mask, self.position_embeddings)
        rotary = self.rotary(grid, context_mask, hidden_states.device)
        neighbours = self._neighbours(grid, context_mask)
        for layer in self.layer:
            hidden_states = layer(hidden_states, rotary, *neighbours)[0]
        return VJepa2EncoderOutput(last_hidden_state=self.layernorm(hidden_states), grid=grid)

    def rotary(self, grid: tuple[int, int, int], ids: torch.Tensor | None, device) -> RotaryTable | None:
        """Rotary table of a grid (T', H', W'), or of the tokens `ids` (B, K) in it; `None` for added positions."""
        if self.config.position_embedding_type != "rope":
            return None
        positions = grid_positions(grid, device)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary_table(positions, head_dim, self.config.rope_interleave)
        return (cos, sin) if ids is None else (cos[ids], sin[ids])

    def _neighbours(self, grid: tuple[int, int, int], ids: torch.Tensor | None) -> tuple:
        """What a factorized layer wants to know of the tokens: the clip's steps, or masks for the tokens `ids`."""
        if self.config.attention_type != "factorized":
            return ()
        if ids is None:
            return (grid[0],)
        if "flash" in (self.config._attn_implementation or ""):
            raise ValueError(
                f"attention_type='factorized' with a context_mask needs attention masks, which "
                f"{self.config._attn_implementation!r} does not take: call set_attn_implementation('sdpa')."
            )
        places = grid[1] * grid[2]
        masks = ((part.unsqueeze(1) == part.unsqueeze(2)).unsqueeze(1) for part in (ids // places, ids % places))
        return None, tuple(masks)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.position_embeddings is not None:
            init.trunc_normal_(self.position_embeddings, std=self.config.initializer_range)

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

    def encode_long(
        self,
        video: Any,
        chunk_frames: int = 64,
        overlap: int = 0,
        stride: int = 1,
        output_dir: str | os.PathLike | None = None,
        processor: Any = None,
        pool: str | None = None,
    ) -> "torch.Tensor | LongFeatures":
        """Features of a video of any length, without gradient: it is read and encoded one chunk at a time, so that
        memory does not grow with its frames. No token sees beyond its chunk.

        Args:
            video: normalised pixels (T, C, H, W) or (1, T, C, H, W); or what goes through the processor: a video file
                (path, URL, bytes), uint8 frames (an array (T, H, W, 3) or tensor (T, 3, H, W)); or any iterable of
                frames, normalised float tensors (C, H, W), uint8 or PIL images. Frames at the end that fill no
                tubelet are filled up with the last one.
            chunk_frames: frames encoded together, a multiple of the tubelet size.
            overlap: frames that a chunk has in common with the one before, a multiple of the tubelet size: they give
                context only, and their tokens in the later chunk are dropped.
            stride: every stride-th frame is kept; the others do not count in `chunk_frames`.
            output_dir: features are written there as they come, a file a chunk. A call that was killed goes on when it
                is made again. (An iterator must give the same frames again from the start; this is checked.)
            processor: a `VJepa2VideoProcessor`. Default: the one saved in the folder the encoder was loaded from.
            pool: `None` gives tokens, "frame" their mean over space.

        Returns:
            (1, N, D), N = T'·H'·W', or (1, T', D) pooled, on the CPU: of one chunk what `encode` gives. With
            `output_dir` a [`~vjepa2_hf.data.long_video.LongFeatures`], which reads from there.

        Raises:
            ValueError: a setting that does not fit, pictures without a processor, no frame, a video that does not
                decode; an `output_dir` that belongs to other weights, settings or another video.
            FileNotFoundError: a path where there is no file.
        """
        from .data.long_video import encode_long

        return encode_long(self, video, chunk_frames, overlap, stride, output_dir, processor, pool)


# Names under which our model types keep encoders; the first is the one to take.
_COMPONENTS = {
    "vjepa2_hf_encoder": [],
    "vjepa2_hf_masked_latent_prediction": ["target_encoder", "encoder"],
    "vjepa2_hf_world_model": ["encoder"],
    "vjepa2_hf_video_classification": ["encoder"],
}


def as_encoder(encoder: "str | os.PathLike | VJepa2Encoder") -> VJepa2Encoder:
    """What `from_encoder` was given, as an encoder whose weights can be copied.

    Raises:
        ValueError: it is neither an encoder nor a folder or Hub id, or it carries an adapter beside its weights.
    """
    if isinstance(encoder, (str, os.PathLike)):
        encoder = VJepa2Encoder.from_pretrained(encoder)
    if not isinstance(encoder, VJepa2Encoder):
        raise ValueError(
            f"encoder is a {type(encoder).__name__}; expected a VJepa2Encoder, a folder or a Hub id: of a PEFT model "
            "give `merge_and_unload()`, of another model the encoder in it."
        )
    if any(".base_layer." in name for name in encoder.state_dict()):
        raise ValueError(
            "encoder carries a PEFT adapter beside its weights; expected plain weights: merge the adapter with "
            "`merge_and_unload()` of its PEFT model first."
        )
    return encoder


def read_config_dict(path, options: dict) -> dict:
    """The config file of a folder or Hub id as it is; of an adapter, that of the model it belongs to.

    Args:
        path: folder or Hub id.
        options: of `from_pretrained`; those that say where to look on the Hub are used.

    Raises:
        FileNotFoundError: a local folder that is not there.
    """
    refuse_missing_folder(path)
    if os.path.isfile(path) and not os.fspath(path).endswith(".json"):
        raise ValueError(
            f"{path} is a file; from_pretrained takes a folder or a Hub id. A published `.pt` becomes one with "
            f"`python -m vjepa2_hf.convert_checkpoints {path} OUT_DIR`."
        )
    hub = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
    hub = {key: options[key] for key in hub if key in options}
    config = PreTrainedConfig.get_config_dict(path, **hub)[0]
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {path} holds no JSON object; expected the config of a model.")
    adapter = None if config else find_adapter_config_file(path, **hub)
    if adapter is not None:  # a PEFT adapter's folder: transformers loads the model that it belongs to
        return read_config_dict(json.loads(Path(adapter).read_text())["base_model_name_or_path"], options)
    return config


def clip_grid(config: VJepa2EncoderConfig, pixel_values_videos: torch.Tensor) -> tuple[int, int, int]:
    """See [`VJepa2Encoder.get_grid`]."""
    shape = tuple(pixel_values_videos.shape)
    if len(shape) != 5:
        raise ValueError(f"pixel_values_videos has shape {shape}; expected (batch, frames, channels, height, width).")
    if not pixel_values_videos.is_floating_point():
        raise ValueError(
            f"pixel_values_videos are {pixel_values_videos.dtype}; expected normalised floats: put videos through a "
            "VJepa2VideoProcessor."
        )
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
    """Refuses masks that are not (B, K) int64 ids. The range is checked on the CPU only, where it costs no wait, and
    not in a compiled graph, which cannot branch on values."""
    if ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[0] != batch_size or ids.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected int64 token ids ({batch_size}, K) "
            "with K above 0."
        )
    if torch.compiler.is_compiling() or ids.device.type != "cpu":
        return
    if ids.min() < 0 or ids.max() >= num_tokens:
        raise ValueError(
            f"{name} holds ids from {ids.min()} to {ids.max()}; the clip has tokens 0 to {num_tokens - 1}."
        )


class TargetEncoderMixin:
    """What models with an `encoder` and an EMA copy of it, `target_encoder`, have in common."""

    @torch.no_grad()
    def update_target_encoder(self, momentum: float) -> None:
        """ξ ← τ ξ + (1 − τ) θ, in place (seed 003, Algorithm 1 line 13)."""
        targets, sources = list(self.target_encoder.parameters()), list(self.encoder.parameters())
        torch._foreach_lerp_(targets, [source.detach() for source in sources], 1.0 - momentum)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        """Where a checkpoint holds one encoder (transformers' `VJEPA2Model`), the target encoder starts as its
        copy."""
        self._target_encoder_copied = hasattr(self, "target_encoder") and self._copy_missing_target_encoder()
        super()._initialize_missing_keys(is_quantized)

    def _copy_missing_target_encoder(self) -> bool:
        missing = not _loaded(self.target_encoder, any_of=True)
        offloaded, waiting = (next(part.parameters()).is_meta for part in (self.encoder, self.target_encoder))
        if missing and offloaded and not waiting:
            raise ValueError(
                "the checkpoint holds one encoder, and weights offloaded to disk cannot be copied to the target "
                "encoder: convert it first (python -m vjepa2_hf.convert_checkpoints), or load without offload."
            )
        if not missing or not _loaded(self.encoder):
            return False
        logger.info("the checkpoint holds one encoder: the target encoder starts as its copy")
        for target, source in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            target.data.copy_(source.data)
            target._is_hf_initialized = True
        return True

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        if self._target_encoder_copied:
            copied = {name for name in loading_info.missing_keys if name.startswith("target_encoder.")}
            loading_info.missing_keys -= copied


def _loaded(module: nn.Module, any_of: bool = False) -> bool:
    """Whether all (or any) parameters came from the checkpoint that is being loaded."""
    flags = [getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()]
    return any(flags) if any_of else all(flags)


# Class names that transformers looks up while it loads a checkpoint
register_conversions("VJepa2Encoder", "VJepa2ForMaskedLatentPrediction", "VJepa2ForVideoClassification")

__all__ = ["TargetEncoderMixin", "VJepa2Encoder", "VJepa2EncoderOutput", "VJepa2PreTrainedModel"]
