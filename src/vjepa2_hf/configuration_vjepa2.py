"""Configurations of the encoder and the masked-latent model, and the base that all configurations share.

Every value has one default, here or in the configuration file of its model. Sizes default to ViT-L. "Published" is the
V-JEPA 2 code (arXiv 2506.09985); the temporal and the two-phase recipe are in examples/configs/recipes.
"""

import difflib
import math
import os
import warnings
from dataclasses import fields
from typing import Any, Literal

from packaging.version import Version
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .specs import (
    check,
    check_choice,
    check_heads,
    check_numbers,
    describe,
    is_number,
    refuse_missing_folder,
    strict_config,
)


VERSION = "0.2.0"
TRANSFORMERS_MODEL_TYPE = "vjepa2"  # of transformers' own `VJEPA2Config`

# Fields that transformers (its Trainer too) and the Hub add to a config file
_FOREIGN_FIELDS = (
    "architectures auto_map custom_pipelines quantization_config dtype torch_dtype model_type transformers_version "
    "name_or_path attn_implementation output_attentions num_labels pipeline_tag use_cache"
)


# --- Checks of fields; the general ones are in specs.py


def check_activation(name: str) -> None:
    """Checks that transformers knows an activation function of this name."""
    nearest = difflib.get_close_matches(name, ACT2FN, n=1, cutoff=0.0) or ["gelu"]
    check(name in ACT2FN, f"hidden_act is {name!r}, which transformers does not know; did you mean {nearest[0]!r}?")


def _check_sincos_size(encoder_config: "VJepa2EncoderConfig", size_name: str, size: int) -> None:
    """Sines and cosines come in pairs; half of the channels are for time, a quarter each for height and width."""
    sincos = encoder_config.position_embedding_type == "sincos" and not encoder_config.uniform_power
    advice = "to be a multiple of 8: choose another, or uniform_power=True."
    check(not sincos or size % 8 == 0, f"position_embedding_type='sincos' needs {size_name}={size} {advice}")


def config_of(path: str | os.PathLike, config: dict[str, Any]) -> dict[str, Any]:
    """`config`, or for a training checkpoint without one, as 0.1 saved it, that of its run's model."""
    try:
        from vjepa2_hf.training.checkpoint_config import complete_config
    except ImportError:  # code exported to the Hub
        return config
    return complete_config(path, config)


def transformers_format():
    """The module that reads transformers' `vjepa2` folders; code exported to the Hub goes without it."""
    try:
        from vjepa2_hf.hub import transformers_format
    except ImportError as error:
        raise ImportError("Loading a transformers vjepa2 folder needs vjepa2_hf: pip install vjepa2_hf.") from error
    return transformers_format


# --- What all configurations share


class VJepa2BaseConfig:
    """Base of all configurations: refuses unknown fields, reads renamed ones, notes the version that wrote a file, and
    translates transformers' `vjepa2` configurations."""

    renamed_fields: dict[str, str] = {}  # old name -> new name; old names are read with a warning

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As transformers' method; the fields are those of this class, also from a `vjepa2` folder."""
        refuse_missing_folder(pretrained_model_name_or_path)
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._translated(config_of(pretrained_model_name_or_path, config)), kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """A config from its fields, or from those of transformers' `vjepa2`; `kwargs` replace some, and are checked
        with them."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        replaced = {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        return super().from_dict({**cls._translated(config_dict), **replaced}, **kwargs)

    @classmethod
    def _translated(cls, config: dict) -> dict:
        """The fields of this class from a `VJEPA2Config` file; any other file unchanged."""
        if config.get("model_type") != TRANSFORMERS_MODEL_TYPE:
            return config
        return transformers_format().config_from_transformers(cls.model_type, config)

    def _read_renamed(self, kwargs: dict) -> dict:
        """Moves fields with an old name to their new one, with one warning."""
        found = {old: new for old, new in self.renamed_fields.items() if old in kwargs}
        for old, new in found.items():
            setattr(self, new, kwargs.pop(old))
        if found:
            renamed = ", ".join(f"{old} is now {new}" for old, new in found.items())
            warnings.warn(f"{type(self).__name__} has renamed fields: {renamed}.", FutureWarning, stacklevel=4)
        return kwargs

    def _refuse_unknown(self, kwargs: dict) -> dict:
        """Drops `vjepa2_hf_version`. An unknown field is an error; in a file of a newer version it is a warning."""
        written_by = kwargs.pop("vjepa2_hf_version", None) or VERSION
        known = {field.name for field in fields(self)} | set(self.attribute_map)
        for name in [n for n in kwargs if n not in {*_FOREIGN_FIELDS.split(), *known} and not n.startswith("_")]:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            if "encoder_config" in known and name in {field.name for field in fields(VJepa2EncoderConfig)}:
                hint = f" It belongs to the encoder: encoder_config={{{name!r}: …}}."
            message = f"{type(self).__name__} has no field {name!r} (value {kwargs[name]!r}).{hint}"
            if Version(str(written_by)) <= Version(VERSION):
                raise ValueError(message)
            warnings.warn(f"{message} The file was written by vjepa2_hf {written_by}; it is ignored.", stacklevel=4)
            kwargs.pop(name)
        return kwargs

    def to_diff_dict(self) -> dict:
        """The fields that `save_pretrained` writes. `auto_map` is written only when code is saved too
        (`register_custom_code`); it then names every model for `AutoModel`, beside its own Auto class."""
        config = {**super().to_diff_dict(), "vjepa2_hf_version": VERSION}
        code = config.pop("auto_map", None)
        if code and self._auto_class is not None:
            model = next((name for auto_class, name in code.items() if auto_class.startswith("AutoModel")), None)
            config["auto_map"] = {**code, "AutoModel": model} if model else code
        return config


# Released architectures (arXiv 2506.09985, V-JEPA 1 and 2.1): width, blocks, heads, MLP ratio
PRESETS = {
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 22, 48 / 11),
    "gigantic": (1664, 48, 26, 64 / 13),
}
# V-JEPA 2.1 (arXiv 2603.14482): sizes, blocks with a norm of their own by depth, and the other fields of its encoders
PRESETS_2_1 = ("2.1-base", "2.1-large", "2.1-giant", "2.1-gigantic")
OUTPUT_LEVELS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 40: [9, 19, 29, 39], 48: [11, 23, 37, 47]}
_FIELDS_2_1 = {
    "crop_size": 384,
    "image_tubelet_size": 1,
    "modality_embeddings": True,
    "rope_interleave": True,
    "rope_grid_size": 16,
}
# Encoders of our own, small enough to train on a CPU, with the initialization of the demo's
_SINGLE_FRAME = {"patch_size": 8, "tubelet_size": 1, "crop_size": 64, "frames_per_clip": 8, "hidden_size": 96}
_SINGLE_FRAME |= {"num_hidden_layers": 4, "num_attention_heads": 4}
_SINGLE_FRAME |= {"initializer_range": 0.1, "depth_scaled_init": False}
SMALL_PRESETS = {"single-frame": _SINGLE_FRAME}


def preset_name(name: str) -> str:
    """The name of a preset, from it or the letter in the name of a released checkpoint."""
    plain = str(name).lower().removeprefix("vit").lstrip("-_")
    plain = next((preset for preset in PRESETS if plain == preset[0]), plain)
    known = (*PRESETS, *PRESETS_2_1, *SMALL_PRESETS)
    check_choice("preset", plain if plain in known else name, known)
    return plain


def _preset_fields(name: str) -> dict:
    """Encoder fields of a preset."""
    plain = preset_name(name)
    if plain in SMALL_PRESETS:
        return dict(SMALL_PRESETS[plain])
    size = PRESETS[plain.removeprefix("2.1-")]
    fields = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio"), size))
    if plain in PRESETS_2_1:
        fields |= {**_FIELDS_2_1, "output_levels": [*OUTPUT_LEVELS[fields["num_hidden_layers"]]]}
    return fields


@strict_config
class VJepa2EncoderConfig(VJepa2BaseConfig, PreTrainedConfig):
    r"""Configuration of [`VJepa2Encoder`]; names are those of transformers' `VJEPA2Config` where they mean the same.

    Clip:
        patch_size (`int`, defaults to 16): side of a patch in pixels.
        tubelet_size (`int`, defaults to 2): frames per token.
        in_chans (`int`, defaults to 3): color channels.
        crop_size (`int`, defaults to 256): side in pixels of the training clips; other sizes work too.
        frames_per_clip (`int`, defaults to 64): frames of the training clips; `num_frames` is an alias.
        image_tubelet_size (`int`, *optional*): 1 gives a clip of one frame, an image, patch embeddings of its own
            (V-JEPA 2.1). `None` repeats the frame to a tubelet.
        modality_embeddings (`bool`, defaults to `False`): adds a learned vector to all tokens, one for images and one
            for videos (V-JEPA 2.1).
        patch_stem (`str`, defaults to "linear"): "linear" maps the pixels of a tubelet to a token (published). "conv"
            first reduces each patch of a frame to one vector by convolutions of 2 × 2 pixels, stride 2, each with
            GroupNorm(1) and GELU, so that a narrow encoder keeps more of a textured patch. Patches stay independent of
            each other. `patch_size` must be a power of 2.
    Transformer:
        hidden_size, num_hidden_layers, num_attention_heads (`int`, default to 1024, 24, 16: ViT-L).
        mlp_ratio (`float`, defaults to 4.0): width of the MLP over `hidden_size` (48/11 for ViT-g).
        hidden_act (`str`, defaults to "gelu"), layer_norm_eps (`float`, defaults to 1e-6), qkv_bias (`bool`).
        attention_probs_dropout_prob, drop_path_rate (`float`, default to 0).
        output_levels (`list[int]`, *optional*): blocks, from 0, whose tokens the encoder also returns, each after a
            LayerNorm of its own; the last one is the last block, hence `last_hidden_state` (V-JEPA 2.1: 4 levels).
        initializer_range (`float`, defaults to 0.02): standard deviation of the truncated normal.
        depth_scaled_init (`bool`, defaults to `True`, published): the two output projections of block l (from 1) are
            initialized divided by √(2 l), in the encoder, the predictor and the dynamics.
    Positions:
        position_embedding_type (`str`, defaults to "rope"): "rope" is the 3-D rotary embedding of the released V-JEPA
            2 weights, at positions of the clip's own grid. "sincos" is the fixed 3-D sin-cos table that V-JEPA 1 adds
            to the tokens. "learned" (both recipes) is a table of parameters for the grid of `frames_per_clip` and
            `crop_size`. Both tables are cut for shorter clips of the configured image size and interpolated for other
            sizes, as published for sin-cos. The masked-latent predictor uses the same kind.
        uniform_power (`bool`, defaults to `False`): for "sincos" only. Time, height and width get equal numbers of
            channels; otherwise time gets half of them. (Published V-JEPA 2 configs set it although RoPE ignores it.)
        rope_interleave (`bool`, defaults to `False`): `False` is the table that the released weights were trained
            with: it is tiled ([ω0…ωk, ω0…ωk]) although neighboring channels are rotated as pairs. `True` is the
            corrected table, in which both channels of a pair are rotated by the same angle (V-JEPA 2.1).
        rope_grid_size (`int`, *optional*): rows and columns of any clip are stretched to positions from 0 to this size
            minus 1, so that a larger crop has no unknown positions (V-JEPA 2.1: 16, the grid of its pretraining).
            `None` counts them. Time is always counted. For "rope" only.
        attention_type (`str`, defaults to "joint"): every token attends to every token (released). "factorized" (the
            temporal recipe) attends within a frame, then to the same position in other frames, then applies the MLP,
            each pre-norm and with its own weights. Predictor and dynamics are always joint.
    """

    model_type = "vjepa2_hf_encoder"
    base_config_key = "encoder_config"
    attribute_map = {"num_frames": "frames_per_clip"}

    patch_size: int = 16
    tubelet_size: int = 2
    in_chans: int = 3
    crop_size: int = 256
    frames_per_clip: int = 64
    image_tubelet_size: int | None = None
    modality_embeddings: bool = False
    patch_stem: Literal["linear", "conv"] = "linear"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: int | float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_probs_dropout_prob: int | float = 0.0
    drop_path_rate: int | float = 0.0
    initializer_range: float = 0.02
    depth_scaled_init: bool = True
    output_levels: list[int] | None = None

    position_embedding_type: Literal["rope", "sincos", "learned"] = "rope"
    uniform_power: bool = False
    rope_interleave: bool = False
    rope_grid_size: int | None = None
    attention_type: Literal["joint", "factorized"] = "joint"

    @classmethod
    def from_preset(cls, name: str, **fields) -> "VJepa2EncoderConfig":
        """The configuration of a released architecture, or a small one; `fields` replace those of the preset.

        Args:
            name: "small", "base", "large", "huge" or "giant" (also "vitl", "L", …): ViT-S/B/L/H/g with patches of 16
                and tubelets of 2. L, H and g are the released V-JEPA 2 models at 256 pixels and 64 frames; the g at
                384 pixels is `from_preset("giant", crop_size=384)`. "2.1-base", "2.1-large", "2.1-giant" and
                "2.1-gigantic" are the released V-JEPA 2.1 models (ViT-B, L, g, G) at 384 pixels and 64 frames.
                "single-frame" is a small encoder (96 wide, 4 blocks) for states of one frame: its tokens are patches
                of 8 pixels of one frame. It is meant for clips of 8 frames of 64 pixels.
        """
        return cls(**{**_preset_fields(name), **fields})

    def __post_init__(self, **kwargs):
        sizes = "patch_size tubelet_size in_chans crop_size frames_per_clip hidden_size mlp_ratio layer_norm_eps"
        check_numbers(self, f"{sizes} initializer_range", not_negative="num_hidden_layers")
        for name in ("attention_probs_dropout_prob", "drop_path_rate"):
            check(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)!r}; expected 0 <= rate < 1.")
        check_activation(self.hidden_act)
        check_heads("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_sincos_size(self, "hidden_size", self.hidden_size)
        halves = self.patch_stem == "linear" or self.patch_size > 1 and self.patch_size.bit_count() == 1
        check(halves, f"patch_stem='conv' halves patches, but patch_size is {self.patch_size}; expected a power of 2.")
        self._check_2_1()
        super().__post_init__(**self._refuse_unknown(kwargs))

    @property
    def stem_sizes(self) -> list[int]:
        """Channels after each convolution of the stem: they double up to `hidden_size`, and are at least the
        4 · `in_chans` numbers of 2 × 2 pixels. Empty for "linear"."""
        steps = self.patch_size.bit_length() - 1 if self.patch_stem == "conv" else 0
        return [max(self.hidden_size >> left, 4 * self.in_chans) for left in reversed(range(steps))]

    def _check_2_1(self) -> None:
        """Checks the fields that V-JEPA 2.1 brought."""
        tubelet, grid, levels = self.image_tubelet_size, self.rope_grid_size, self.output_levels
        check(tubelet in (None, 1), f"image_tubelet_size is {describe(tubelet)}; expected None or 1: one frame.")
        check_numbers(self, "rope_grid_size")
        needed = f"rope_grid_size={grid} stretches rotary positions: set position_embedding_type='rope', or leave it."
        check(grid is None or self.position_embedding_type == "rope", needed)
        if levels is not None:
            last = self.num_hidden_layers - 1
            expected = f"expected increasing numbers of blocks from 0, of which the last is {last}, the last block."
            rising = sorted({level for level in levels if 0 <= level <= last})
            check(levels == rising and rising[-1:] == [last], f"output_levels is {describe(levels)}; {expected}")


class VJepa2NestedConfig(VJepa2BaseConfig):
    """Base of the configurations that hold one of an encoder."""

    published: dict = {}  # fields of the published model that differ from the defaults
    published_by_preset: dict[str, dict] = {}  # and those of one preset alone

    @classmethod
    def from_preset(cls, name: str, encoder_config: dict | None = None, **fields):
        """The configuration of the published model around a released encoder, see [`VJepa2EncoderConfig.from_preset`];
        `encoder_config` replaces fields of the encoder, and `fields` the others."""
        encoder = {**_preset_fields(name), **(encoder_config or {})}
        own = cls.published_by_preset.get(preset_name(name), {})
        return cls(encoder_config=encoder, **{**cls.published, **own, **fields})

    @property
    def num_frames(self) -> int:
        """Frames per clip of the encoder; the stock video pipelines read it at the top level."""
        return self.encoder_config.frames_per_clip


# Optional loss terms: `<name>_weight` in the config, `<name>_loss` in modeling_masked_losses.py
AUXILIARY_LOSSES = ("temporal_diversity", "temporal_contrastive", "variance", "covariance")
# V-JEPA 2.1: g and G; B and L are distilled from G
_DENSE_2_1 = {"predictor_modality_embeddings": True, "predict_context": True, "context_loss_weight": 0.5}
_DENSE_2_1 |= {"num_mask_tokens": 8, "predictor_num_hidden_layers": 24, "predictor_levels": True}
_DISTILLED_2_1 = {**_DENSE_2_1, "predictor_num_hidden_layers": 12, "predictor_levels": False}
_DISTILLED_2_1 |= {"target_type": "teacher", "teacher_hidden_size": 1664}
# The demo's, for "single-frame"
_SMALL_PREDICTOR = {"predictor_hidden_size": 64, "predictor_num_hidden_layers": 3, "predictor_num_attention_heads": 4}
_SMALL_PREDICTOR |= {"predictor_query_key_bias": 2.0, "zero_init_mask_tokens": False}


@strict_config
class VJepa2MaskedLatentPredictionConfig(VJepa2NestedConfig, PreTrainedConfig):
    r"""Configuration of [`VJepa2ForMaskedLatentPrediction`].

    encoder_config (`dict` or [`VJepa2EncoderConfig`]): the context encoder; the target encoder is its EMA copy.
    Predictor:
        predictor_hidden_size, predictor_num_hidden_layers, predictor_num_attention_heads (`int`, default to 384, 12,
            12, published), predictor_mlp_ratio (`float`, defaults to 4.0).
        num_mask_tokens (`int`, defaults to 10): learned mask tokens; by default mask set i uses token i.
        zero_init_mask_tokens (`bool`, defaults to `True`): published; otherwise the truncated normal.
        predictor_query_key_bias (`float`, defaults to 0.0, published): initial value of the query and key biases of
            the predictor. Under rotary positions equal biases make every token attend to its neighbors first. With a
            value above 0 (2.0 at head size 16) a small predictor uses neighboring tokens from the first steps, which
            it otherwise learns in hundreds (docs/pretraining.md).
        predictor_levels (`bool`, defaults to `False`): the predictor reads all `output_levels` of the encoder, side by
            side, through a small MLP, and predicts those of the target encoder. `False`: the last level alone.
        predictor_modality_embeddings (`bool`, defaults to `False`): adds a learned vector to all tokens of the
            predictor, one for images and one for videos.
        predict_context (`bool`, defaults to `False`): the predictor also predicts the context's own tokens, through a
            projection of their own. (All three: V-JEPA 2.1.)
        initializer_range (`float`, defaults to 0.02): standard deviation of the truncated normal.
    Loss:
        loss_exponent (`int`, defaults to 1): p of mean |ẑ − z|^p / p; 1 published, 2 in both recipes.
        normalize_targets (`str`, defaults to "layer"): "layer" is LayerNorm without affine (published). "batch"
            standardizes every position and channel over the batch, which keeps content in the loss on short runs.
            "batch_channel" subtracts the batch's mean at every position, and divides by the channel's standard
            deviation over all positions, so that static positions are not amplified to noise of full size. "clip"
            also subtracts the mean token of the clip, so that predicting a clip's constant appearance gains nothing,
            and divides by the channel's standard deviation. "position" subtracts a clip's mean over time at each
            position, so that what stays the same there gains nothing, and divides by the channel's standard deviation;
            it needs clips of at least 2 time steps. "none" leaves targets unchanged.
        target_type (`str`, defaults to "ema"): what is predicted for hidden tokens. "ema" is the latents of the target
            encoder, a moving average of the encoder (published, both recipes). "online" (the ablation "No EMA" of the
            two-phase recipe) sets the target encoder to the encoder at every update, whatever the momentum; it tends
            to collapse. "pixels" (an ablation of the same recipe) is the pixels of the hidden tubelets, which
            `normalize_targets="layer"` standardizes per token as masked autoencoders do (arXiv 2111.06377, sec. 3).
            The target encoder then still follows the encoder, but is not used in training. The same holds for
            "teacher" (distillation, V-JEPA 2.1): the last level of a larger frozen encoder, which `set_teacher` gives
            to the model and which is not saved with it; `teacher_hidden_size` is its width.
        context_loss_weight (`float`, defaults to 0): λ of loss + λ · loss of the context's tokens, with
            `predict_context` (0.5 in V-JEPA 2.1). A training loop may pass another one with each step.
        weight_context_by_distance (`bool`, defaults to `False`, published): weights a context token by 1 / √d, d its
            distance in tokens to the nearest hidden one.
    Auxiliary loss terms; a term of weight 0 (the default of all) is not computed. See the functions of the same names
    in modeling_masked_losses.py. Terms that compare clips need 2: all but the first and a contrast of times.
        temporal_diversity_weight (`float`): of −Var_t of the predictions (temporal recipe: 0.1). The term has no lower
            bound; only with `loss_exponent=2` and a weight well below 0.5 does the prediction loss outgrow it.
        temporal_contrastive_weight (`float`), temporal_contrastive_temperature (`float`, defaults to 0.1): of InfoNCE
            between predictions and targets of different clips (named in the temporal recipe, without numbers).
        temporal_contrastive_negatives (`str`, defaults to "clips"): "times" compares the times of one clip instead, by
            squared distance, so that what they share cannot help. Squared distances need a higher temperature: they
            grow with the width.
        variance_weight, covariance_weight (`float`), variance_margin (`float`, defaults to 1.0): of the two terms of
            VICReg (arXiv 2105.04906, with weights 25 and 1 beside 25 for the squared error, and a margin of 1), on the
            differences between clips of the context encoder's tokens at each position.
    """

    model_type = "vjepa2_hf_masked_latent_prediction"
    sub_configs_defaults = {"encoder_config": VJepa2EncoderConfig}
    published_by_preset = dict(zip(PRESETS_2_1, [_DISTILLED_2_1] * 2 + [_DENSE_2_1] * 2, strict=True))
    published_by_preset |= {"single-frame": _SMALL_PREDICTOR}

    encoder_config: dict | PreTrainedConfig | None = None

    predictor_hidden_size: int = 384
    predictor_num_hidden_layers: int = 12
    predictor_num_attention_heads: int = 12
    predictor_mlp_ratio: int | float = 4.0
    num_mask_tokens: int = 10
    zero_init_mask_tokens: bool = True
    predictor_query_key_bias: int | float = 0.0
    predictor_levels: bool = False
    predictor_modality_embeddings: bool = False
    predict_context: bool = False
    initializer_range: float = 0.02

    loss_exponent: Literal[1, 2] = 1
    normalize_targets: Literal["layer", "batch", "batch_channel", "clip", "position", "none"] = "layer"
    target_type: Literal["ema", "online", "pixels", "teacher"] = "ema"
    teacher_hidden_size: int | None = None
    context_loss_weight: int | float = 0.0
    weight_context_by_distance: bool = False

    temporal_diversity_weight: int | float = 0.0
    temporal_contrastive_weight: int | float = 0.0
    temporal_contrastive_temperature: int | float = 0.1
    temporal_contrastive_negatives: Literal["clips", "times"] = "clips"
    variance_weight: int | float = 0.0
    covariance_weight: int | float = 0.0
    variance_margin: int | float = 1.0

    def __post_init__(self, **kwargs):
        sizes = "predictor_hidden_size predictor_mlp_ratio num_mask_tokens temporal_contrastive_temperature"
        sizes += " teacher_hidden_size"
        weights = " ".join(f"{name}_weight" for name in (*AUXILIARY_LOSSES, "context_loss"))
        check_numbers(self, f"{sizes} variance_margin initializer_range", f"predictor_num_hidden_layers {weights}")
        check(
            is_number(self.predictor_query_key_bias) and math.isfinite(self.predictor_query_key_bias),
            f"predictor_query_key_bias is {describe(self.predictor_query_key_bias)}; expected a finite number.",
        )
        size, heads = self.predictor_hidden_size, self.predictor_num_attention_heads
        check_heads("predictor_hidden_size", size, "predictor_num_attention_heads", heads)
        super().__post_init__(**self._refuse_unknown(kwargs))
        _check_sincos_size(self.encoder_config, "predictor_hidden_size", self.predictor_hidden_size)
        bias = self.predictor_query_key_bias
        needed = f"predictor_query_key_bias={bias} needs biases to set: qkv_bias=True in encoder_config."
        check(not bias or self.encoder_config.qkv_bias, needed)
        self._check_2_1()

    def _check_2_1(self) -> None:
        """Checks the fields that V-JEPA 2.1 brought, which depend on each other."""
        levels, teacher, width = self.predictor_levels, self.target_type == "teacher", self.teacher_hidden_size
        missing = "predictor_levels=True reads the output_levels of encoder_config, which is None: set them, or False."
        check(not levels or self.encoder_config.output_levels is not None, missing)
        for name in ("context_loss_weight", "weight_context_by_distance"):
            needed = f"{name}={getattr(self, name)} is about predictions of the context: set predict_context=True."
            check(not getattr(self, name) or self.predict_context, needed)
        found = f"target_type={self.target_type!r} and teacher_hidden_size={width}"
        check(
            teacher == (width is not None), f"{found}; expected 'teacher' and its width, or another target and None."
        )
        check(not (teacher and levels), "target_type='teacher' predicts one level: set predictor_levels=False.")

    @property
    def num_levels(self) -> int:
        """Levels of the encoder that the predictor reads."""
        return len(self.encoder_config.output_levels) if self.predictor_levels else 1

    @property
    def prediction_size(self) -> int:
        """Channels of a prediction: of all levels, of the teacher, or the pixels of a tubelet."""
        encoder = self.encoder_config
        if self.target_type == "pixels":
            return encoder.in_chans * encoder.tubelet_size * encoder.patch_size**2
        return self.teacher_hidden_size or self.num_levels * encoder.hidden_size

    def predictor_fields(self) -> dict:
        """The fields that the predictor is built from, without the encoder's."""
        names = ("num_mask_tokens", "zero_init_mask_tokens", "initializer_range")
        names += ("predict_context", "target_type", "teacher_hidden_size")
        return {k: value for k, value in self.to_dict().items() if k.startswith("predictor_") or k in names}

    @property
    def auxiliary_weights(self) -> dict[str, float]:
        """The weights above 0 of `AUXILIARY_LOSSES`, by name."""
        weights = {name: getattr(self, f"{name}_weight") for name in AUXILIARY_LOSSES}
        return {name: weight for name, weight in weights.items() if weight > 0}
