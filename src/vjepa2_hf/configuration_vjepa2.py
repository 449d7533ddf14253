"""Configurations of the four models: what can be set.

Sources: "published" is the V-JEPA 2 code (arXiv 2506.09985), "seed" one of the two documents this project was created
from. Sizes are ViT-L's unless a field says otherwise. Every value has one default, here.
"""

import difflib
import math
import os
import warnings
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from packaging.version import Version
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .hub.transformers_format import TRANSFORMERS_MODEL_TYPE, config_from_transformers


VERSION = "0.1.0"

# What transformers and the Hub write into a config file by themselves.
_FOREIGN_FIELDS = {
    "architectures",
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "dtype",
    "torch_dtype",
    "model_type",
    "transformers_version",
    "name_or_path",
    "attn_implementation",
    "output_attentions",
    "num_labels",
    "pipeline_tag",
    "use_cache",  # transformers.Trainer
}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_choice(name: str, value, choices: tuple) -> None:
    _check(value in choices, f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")


def _check_positive(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value is None or 0 < value < math.inf, f"{name} is {value!r}; expected a number above 0.")


def _check_not_negative(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value is None or 0 <= value < math.inf, f"{name} is {value!r}; expected 0 or more.")


def _check_rate(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(0 <= value < 1, f"{name} is {value!r}; expected 0 <= rate < 1.")


def _check_vector(name: str, values: list | None, size: int) -> None:
    """A finite number for each dimension; a bound may be infinite, which solvers take with an `init_std`."""
    if values is None:
        return
    dimension = f"{name.split('_')[0]}_dim"
    _check(len(values) == size, f"{name} has {len(values)} numbers; expected {size}, as {dimension} says.")
    for value in values:
        number = isinstance(value, (int, float)) and not math.isnan(value)
        infinite = number and math.isinf(value) and not name.endswith(("_low", "_high"))
        _check(number and not infinite, f"{name} holds {value!r}; expected finite numbers.")


def _check_activation(name: str) -> None:
    nearest = difflib.get_close_matches(name, ACT2FN, n=1, cutoff=0.0)
    _check(name in ACT2FN, f"hidden_act is {name!r}, which transformers does not know; did you mean {nearest[0]!r}?")


def _check_heads(size_name: str, size: int, heads_name: str, heads: int) -> None:
    _check(heads > 0 and size % heads == 0, f"{heads_name}={heads} must divide {size_name}={size}: choose another.")


def _check_sincos_size(encoder_config, size_name: str, size: int) -> None:
    """Sines and cosines in pairs, half of them for time and a quarter for height and width each."""
    sincos = encoder_config.position_embedding_type == "sincos" and not encoder_config.uniform_power
    _check(
        not sincos or size % 8 == 0,
        f"position_embedding_type='sincos' needs {size_name}={size} to be a multiple of 8: choose another, or "
        "uniform_power=True.",
    )


def refuse_missing_folder(path: str | os.PathLike) -> None:
    """Tells a local folder that is not there from a Hub id that does not exist, which transformers does not.

    Raises:
        FileNotFoundError: the string reads as a local path, and nothing is there.
    """
    name = os.fspath(path)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep != "/" and os.sep in name
    if (looks_local or isinstance(path, os.PathLike)) and not os.path.exists(name):
        raise FileNotFoundError(f"There is no folder {name!r}; give the path of a saved model, or a Hub id.")


class _StrictFields:
    """Refuses unknown fields, marks files with the version that wrote them, and translates transformers' `vjepa2`
    configs."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        refuse_missing_folder(pretrained_model_name_or_path)
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._translated(config), kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        return super().from_dict(cls._translated(config_dict), **kwargs)

    @classmethod
    def _translated(cls, config: dict) -> dict:
        """The fields of this class from a `VJEPA2Config` file; anything else as it is."""
        if config.get("model_type") != TRANSFORMERS_MODEL_TYPE:
            return config
        return config_from_transformers(cls.model_type, config)

    def _refuse_unknown(self, kwargs: dict) -> dict:
        """Drops `vjepa2_hf_version`; raises on a field that nobody knows (warns when the file is newer than we
        are)."""
        written_by = kwargs.pop("vjepa2_hf_version", None) or VERSION
        known = {field.name for field in fields(self)} | set(self.attribute_map)
        for name in [n for n in kwargs if n not in _FOREIGN_FIELDS and n not in known and not n.startswith("_")]:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            if "encoder_config" in known and name in {field.name for field in fields(VJepa2EncoderConfig)}:
                hint = f" It is the encoder's: encoder_config={{{name!r}: …}}."
            message = f"{type(self).__name__} has no field {name!r} (value {kwargs[name]!r}).{hint}"
            if Version(str(written_by)) <= Version(VERSION):
                raise ValueError(message)
            warnings.warn(f"{message} The file was written by vjepa2_hf {written_by}; it is left out.", stacklevel=4)
            kwargs.pop(name)
        return kwargs

    def to_diff_dict(self) -> dict:
        """What `save_pretrained` writes. `auto_map` only where code is saved along (`register_custom_code`), and then
        every model for `AutoModel` too, beside the one Auto class that transformers notes."""
        config = {**super().to_diff_dict(), "vjepa2_hf_version": VERSION}
        code = config.pop("auto_map", None)
        if code and self._auto_class is not None:
            model = next((name for auto_class, name in code.items() if auto_class.startswith("AutoModel")), None)
            config["auto_map"] = {**code, "AutoModel": model} if model else code
        return config


# Released architectures (of arXiv 2506.09985, V-JEPA 1 and 2.1): width, blocks, heads, MLP ratio
PRESETS = {
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 22, 48 / 11),
}
_SIZE_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")


def _preset_fields(name: str) -> dict:
    """Encoder fields of a released size, by its name or the letter in its checkpoint's name."""
    _check(isinstance(name, str), f"preset is {name!r}; expected one of {', '.join(map(repr, PRESETS))}.")
    letters = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
    plain = name.lower().removeprefix("vit").lstrip("-_")
    plain = letters.get(plain, plain)
    _check_choice("preset", plain if plain in PRESETS else name, tuple(PRESETS))
    return dict(zip(_SIZE_FIELDS, PRESETS[plain]))


@strict
class VJepa2EncoderConfig(_StrictFields, PreTrainedConfig):
    r"""Configuration of [`VJepa2Encoder`]; names are those of transformers' `VJEPA2Config` where they mean the same.

    Clip:
        patch_size (`int`, defaults to 16): side of a patch in pixels.
        tubelet_size (`int`, defaults to 2): frames in a token.
        in_chans (`int`, defaults to 3): colour channels.
        crop_size (`int`, defaults to 256): side in pixels that the model was trained at; any other works too.
        frames_per_clip (`int`, defaults to 64): frames that the model was trained with; `num_frames` is its alias.
    Transformer:
        hidden_size, num_hidden_layers, num_attention_heads (`int`, default to 1024, 24, 16: ViT-L).
        mlp_ratio (`float`, defaults to 4.0): width of the MLP over `hidden_size` (48/11 for ViT-g).
        hidden_act (`str`, defaults to "gelu"), layer_norm_eps (`float`, defaults to 1e-6), qkv_bias (`bool`).
        attention_probs_dropout_prob, drop_path_rate (`float`, default to 0).
        initializer_range (`float`, defaults to 0.02): deviation of the truncated normal.
        depth_scaled_init (`bool`, defaults to `True`): the two output projections of block l (from 1) start divided by
            √(2 l), as published; in the encoder, the predictor and the dynamics.
    Positions:
        position_embedding_type (`str`, defaults to "rope"): "rope" is the 3-D rotary embedding of V-JEPA 2's released
            weights, at positions of the clip's own grid; "sincos" the fixed 3-D sin-cos table that V-JEPA 1 adds to
            the tokens; "learned" (the seeds) a table of parameters for the grid of `frames_per_clip` and `crop_size`.
            Both tables are cut for shorter clips of the configured picture size and interpolated for other sizes, as
            published for sin-cos. The masked-latent predictor has the same kind.
        uniform_power (`bool`, defaults to `False`): of "sincos" alone: time, height and width share the channels
            equally; otherwise time takes half of them. (Published V-JEPA 2 configs set it although RoPE ignores it.)
        rope_interleave (`bool`, defaults to `False`): `False` is the table that the released weights were trained
            with: it is tiled ([ω0…ωk, ω0…ωk]) although neighbouring channels are rotated as pairs. `True` is the
            corrected table, in which both channels of a pair turn by the same angle (V-JEPA 2.1).
        attention_type (`str`, defaults to "joint"): every token attends to every token (released); "factorized"
            (seed 000) attends within a frame, then to the same place in other frames, then comes the MLP, each
            pre-norm and with weights of its own. Predictor and dynamics are always joint.
    """

    model_type = "vjepa2_hf_encoder"
    base_config_key = "encoder_config"
    attribute_map = {"num_frames": "frames_per_clip"}

    patch_size: int = 16
    tubelet_size: int = 2
    in_chans: int = 3
    crop_size: int = 256
    frames_per_clip: int = 64

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

    position_embedding_type: str = "rope"
    uniform_power: bool = False
    rope_interleave: bool = False
    attention_type: str = "joint"

    @classmethod
    def from_preset(cls, name: str, **fields) -> "VJepa2EncoderConfig":
        """A released architecture.

        Args:
            name: "small", "base", "large", "huge" or "giant" ("vitl", "L" and the like too): ViT-S/B/L/H/g with
                patches of 16 and tubelets of 2. L, H and g are V-JEPA 2's, at 256 pixels and 64 frames; the g at 384
                pixels is `from_preset("giant", crop_size=384)`.
            fields: replace the preset's.
        """
        return cls(**{**_preset_fields(name), **fields})

    def __post_init__(self, **kwargs):
        _check_positive(self, "patch_size", "tubelet_size", "in_chans", "crop_size", "frames_per_clip", "hidden_size")
        _check_positive(self, "mlp_ratio", "layer_norm_eps")
        _check_not_negative(self, "num_hidden_layers", "initializer_range")
        _check_rate(self, "attention_probs_dropout_prob", "drop_path_rate")
        _check_activation(self.hidden_act)
        _check_heads("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_choice("position_embedding_type", self.position_embedding_type, ("rope", "sincos", "learned"))
        _check_sincos_size(self, "hidden_size", self.hidden_size)
        _check_choice("attention_type", self.attention_type, ("joint", "factorized"))
        super().__post_init__(**self._refuse_unknown(kwargs))


class _NestedEncoder(_StrictFields):
    """What the configs that hold an encoder's have in common."""

    published: dict = {}  # fields in which the published model differs from this class's defaults

    @classmethod
    def from_preset(cls, name: str, encoder_config: dict | None = None, **fields):
        """The published model around a released encoder.

        Args:
            name: of the encoder, see [`VJepa2EncoderConfig.from_preset`].
            encoder_config: replaces fields of the encoder.
            fields: replace the other fields.
        """
        encoder = {**_preset_fields(name), **(encoder_config or {})}
        return cls(encoder_config=encoder, **{**cls.published, **fields})

    @property
    def num_frames(self) -> int:
        """Frames per clip of the encoder (the stock video pipelines ask for it at the top level)."""
        return self.encoder_config.frames_per_clip


# Terms that may stand beside the prediction loss: the config's `<name>_weight`, in `losses.py` `<name>_loss`
AUXILIARY_LOSSES = ("temporal_diversity", "temporal_contrastive", "variance", "covariance")


@strict
class VJepa2MaskedLatentPredictionConfig(_NestedEncoder, PreTrainedConfig):
    r"""Configuration of [`VJepa2ForMaskedLatentPrediction`].

    encoder_config (`dict` or [`VJepa2EncoderConfig`]): the context encoder; the target encoder is its EMA copy.
    Predictor:
        predictor_hidden_size, predictor_num_hidden_layers, predictor_num_attention_heads (`int`, default to 384, 12,
            12, published; seed 000 has 512, 8), predictor_mlp_ratio (`float`, defaults to 4.0).
        num_mask_tokens (`int`, defaults to 10): learned mask tokens; mask set i uses token i unless told otherwise.
        zero_init_mask_tokens (`bool`, defaults to `True`): published; otherwise the truncated normal.
        predictor_query_key_bias (`float`, defaults to 0.0, published): where the biases of the predictor's queries and
            keys start. Equal biases under rotary positions make every token look at its neighbours first: above 0
            (2.0 at head size 16) a small predictor learns from the first steps what it otherwise takes hundreds to
            find, that a hidden token is best told from those around it (docs/pretraining.md).
    Loss:
        loss_exponent (`int`, defaults to 1): p of mean |ẑ − z|^p / p; 1 published, 2 in both seeds.
        normalize_targets (`str`, defaults to "layer"): "layer" is LayerNorm without affine (published); "batch"
            standardises every place and channel over the batch, which keeps content in the loss on short runs;
            "batch_channel" also takes away the batch's mean at every place, but divides by the channel's deviation
            over all places, so that places where nothing ever happens do not become noise of full size; "clip" takes
            away the clip's mean token after the place's, so that nothing is gained by telling a clip's constant
            appearance, and divides by the channel's deviation; "none".
        target_type (`str`, defaults to "ema"): what is predicted of hidden tokens. "ema" is the latents of the target
            encoder, a moving average of the encoder (published, both seeds). "online" (seed 003's ablation "No EMA")
            makes the target encoder equal to the encoder at every update, whatever the momentum; it tends to collapse.
            "pixels" (seed 003's ablation) is the pixels of the hidden tubelets, which `normalize_targets="layer"`
            standardises in each token as masked autoencoders do (arXiv 2111.06377, sec. 3): the target encoder then
            still follows the encoder, but takes no part in training.
    Terms beside the prediction loss; a term of weight 0 (the default of all) is not computed. See
    [`vjepa2_hf.losses`]; all of them but the first compare clips and need at least 2 in a batch:
        temporal_diversity_weight (`float`): of −Var_t of the predictions (seed 000: 0.1). It has no lower bound, and
            only with `loss_exponent=2` and a weight well below 0.5 does the prediction loss outgrow it.
        temporal_contrastive_weight (`float`), temporal_contrastive_temperature (`float`, defaults to 0.1): of InfoNCE
            between clips' predictions and targets (named by seed 000, without numbers).
        variance_weight, covariance_weight (`float`), variance_margin (`float`, defaults to 1.0): of VICReg's two terms
            (arXiv 2105.04906, which has 25 and 1 beside 25 for the squared error, and a margin of 1) on the context
            encoder's tokens, as they differ between clips at one place.
    """

    model_type = "vjepa2_hf_masked_latent_prediction"
    sub_configs_defaults = {"encoder_config": VJepa2EncoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None

    predictor_hidden_size: int = 384
    predictor_num_hidden_layers: int = 12
    predictor_num_attention_heads: int = 12
    predictor_mlp_ratio: int | float = 4.0
    num_mask_tokens: int = 10
    zero_init_mask_tokens: bool = True
    predictor_query_key_bias: int | float = 0.0
    initializer_range: float = 0.02

    loss_exponent: int = 1
    normalize_targets: str = "layer"
    target_type: str = "ema"

    temporal_diversity_weight: int | float = 0.0
    temporal_contrastive_weight: int | float = 0.0
    temporal_contrastive_temperature: int | float = 0.1
    variance_weight: int | float = 0.0
    covariance_weight: int | float = 0.0
    variance_margin: int | float = 1.0

    def __post_init__(self, **kwargs):
        _check_positive(self, "predictor_hidden_size", "predictor_mlp_ratio", "num_mask_tokens")
        _check_positive(self, "temporal_contrastive_temperature", "variance_margin")
        _check_not_negative(self, "predictor_num_hidden_layers", "initializer_range")
        _check_not_negative(self, *(f"{name}_weight" for name in AUXILIARY_LOSSES))
        _check_heads(
            "predictor_hidden_size",
            self.predictor_hidden_size,
            "predictor_num_attention_heads",
            self.predictor_num_attention_heads,
        )
        _check_choice("loss_exponent", self.loss_exponent, (1, 2))
        _check_choice("normalize_targets", self.normalize_targets, ("layer", "batch", "batch_channel", "clip", "none"))
        _check_choice("target_type", self.target_type, ("ema", "online", "pixels"))
        super().__post_init__(**self._refuse_unknown(kwargs))
        _check_sincos_size(self.encoder_config, "predictor_hidden_size", self.predictor_hidden_size)
        _check(
            not self.predictor_query_key_bias or self.encoder_config.qkv_bias,
            f"predictor_query_key_bias={self.predictor_query_key_bias} needs biases to set: qkv_bias=True in "
            "encoder_config.",
        )

    def predictor_fields(self) -> dict:
        """The fields that the predictor is built from, encoder aside."""
        names = ("num_mask_tokens", "zero_init_mask_tokens", "initializer_range", "target_type")
        own = [name for name in self.to_dict() if name.startswith("predictor_") or name in names]
        return {name: getattr(self, name) for name in own}

    @property
    def auxiliary_weights(self) -> dict[str, float]:
        """The weights above 0 of `AUXILIARY_LOSSES`, by name."""
        weights = {name: getattr(self, f"{name}_weight") for name in AUXILIARY_LOSSES}
        return {name: weight for name, weight in weights.items() if weight > 0}


@strict
class VJepa2WorldModelConfig(_NestedEncoder, PreTrainedConfig):
    r"""Configuration of [`VJepa2WorldModel`].

    encoder_config (`dict` or [`VJepa2EncoderConfig`]): the encoder of single frames.
    Inputs, in environment units; A and S are sizes of one model step:
        action_dim (`int`, defaults to 7): A. With `actions_per_step` = k an environment's k actions stand one after
            the other, so A is k times the environment's action size.
        action_type (`str`, defaults to "continuous"): "discrete" actions are one-hot vectors of A / k categories, k of
            them one after the other, and have no statistics; a category whose `action_high` is 0 is not planned.
        proprio_dim, extrinsics_dim (`int`, default to 0: no such token): S; camera extrinsics (6 published).
        stored_extrinsics_dim (`int`, defaults to 0: none): size of an extrinsics encoder whose weights are kept
            although the model does not use them. Every published action-conditioned file has one (6);
            `from_pretrained(folder, extrinsics_dim=6)` turns it on.
        action_mean, action_std, proprio_mean, proprio_std (lists or `None`): the model standardises inside.
        action_low, action_high (lists of A or `None`): bounds that planning searches.
        fps (`float` or `None`), frame_skip, actions_per_step (`int`, default to 1): frame rate of the environment's
            video, its frames per model step, and environment actions per model step.
    State:
        state_type (`str`, defaults to "tokens"): what N tokens of D numbers a frame becomes. "tokens": the encoder's;
            "merged": 2×2 neighbours concatenated (a quarter of the tokens, four times as wide) and, with `state_dim`,
            mapped to it; "pooled": their mean (N = 1); "projected": all concatenated, through a linear map to
            `state_dim` (N = 1); "pixels": the raw patches (the baseline without an encoder).
        state_dim (`int` or `None`): D of merged and projected states. The map is fitted by `fit_state`.
        state_projection (`str`, defaults to "pca"): that map: principal components, or "slow" (projected states
            alone): the directions that change least over time within an episode.
        normalize_latents (`str`, defaults to "layer"): LayerNorm without affine on the encoder's tokens, or "none".
        state_fitted (`bool`): set by `fit_state`; latents are then standardised per position (and mapped).
    Dynamics:
        dynamics_type (`str`, defaults to "transformer"), predictor_hidden_size, predictor_num_hidden_layers,
            predictor_num_attention_heads, predictor_mlp_ratio: 1024, 24, 16, 4 published; seed 003 has the encoder's
            width and 6 to 12 layers. "mlp" is a residual MLP on the states of the window's frames one after the other,
            for pooled and projected states; it has no attention heads.
        action_fusion (`str`, defaults to "concat"): how action, proprio state and extrinsics come in: each as a token
            of its own (the MLP: beside the state), "add" to every token, or "cross_attention" of a frame's tokens to
            them in every block (transformer alone).
        action_encoder_num_layers (`int`, defaults to 1): 1 is linear (published); more an MLP with GELU (seed 003).
        context_frames (`int`, defaults to 8): frames that a prediction sees, in training and in rollout; 1 is the
            Markov model g(s_t, a_t).
        residual (`bool`, defaults to `False`): the dynamics predicts the change; its last layer starts at zero.
        predictor_position_embedding_type (`str`, defaults to "rope"; "learned" fixes the frame's grid),
            predictor_position_std (`float`, defaults to 0.02): deviation of learned positions at the start.
        predictor_initializer_range (`float` or `None`, defaults to 0.02): `None` is PyTorch's own initialisation.
        proprio_transition (`str`, defaults to "hold"): how a proprio state goes on in a rollout: "hold", "add" (state
            plus action) or "pose_delta" (xyz, Euler angles and gripper moved by the action; published).
    Loss:
        loss_exponent (`int`, defaults to 1), teacher_forcing_weight, rollout_weight (`float`, default to 1, 1),
            rollout_steps (`int`, defaults to 2), rollout_discount (`float`, defaults to 1.0): published; seed 003 is
            2, 0, 1, 5 and λ of its multi-step loss.
        freeze_encoder (`bool`, defaults to `True`): the encoder gets no gradient. `False` trains it along (slowly: it
            is the learning rate that says how), and the targets come from its EMA copy, see
            [`VJepa2WorldModel.update_target_encoder`] (seed 003: momentum 0.9999).
    Optional parts (seed 000, "Limitations", 2 and 3):
        reward_head (`bool`, defaults to `False`): a head that says the reward of a step, which may then be planned
            for. It reads latents and changes nothing in them.
        reward_mean, reward_std (`float` or `None`): the head's rewards are standardised by them inside.
        reward_weight (`float`, defaults to 1.0): of its squared error in the loss.
        stochastic_dim (`int`, defaults to 0: none): Z, size of the Gaussian z of what one step leaves open, see
            [`VJepa2WorldModel`]: rank of its covariance beside the diagonal.
        nll_weight (`float`, defaults to 1.0): of its negative log-likelihood, nats a number, in the loss.
    Planning:
        planner (`dict` or `None`): solver settings that [`VJepa2Planner`] starts from; its `save_pretrained` writes
            them.
    """

    model_type = "vjepa2_hf_world_model"
    # V-JEPA 2-AC: poses of an arm and its gripper at 4 frames a second; planning searches ±5 cm a
    # step and the gripper; the rotation is 0, and a planned gripper value below 0.25 in size becomes 0
    published = {
        "action_dim": 7,
        "proprio_dim": 7,
        "stored_extrinsics_dim": 6,
        "proprio_transition": "pose_delta",
        "fps": 4,
        "action_low": [-0.05, -0.05, -0.05, 0.0, 0.0, 0.0, -0.75],
        "action_high": [0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 0.75],
        "planner": {
            "solver": "cem",
            "horizon": 2,
            "num_candidates": 400,
            "num_iterations": 10,
            "num_elites": 10,
            "momentum": 0.15,
            "init_std": [0.05, 0.05, 0.05, 0.0, 0.0, 0.0, 1.0],
            "draw_noise_per_step": True,
            "cost": "l1",
            "constraints": [
                {"constraint": "fixed", "dims": [3, 4, 5], "value": 0.0},
                {"constraint": "dead_zone", "dim": 6, "below": 0.25},
            ],
        },
    }
    sub_configs_defaults = {"encoder_config": VJepa2EncoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None

    action_dim: int = 7
    action_type: str = "continuous"
    proprio_dim: int = 0
    extrinsics_dim: int = 0
    stored_extrinsics_dim: int = 0
    action_mean: list | None = None
    action_std: list | None = None
    proprio_mean: list | None = None
    proprio_std: list | None = None
    action_low: list | None = None
    action_high: list | None = None
    fps: int | float | None = None
    frame_skip: int = 1
    actions_per_step: int = 1

    state_type: str = "tokens"
    state_dim: int | None = None
    state_projection: str = "pca"
    normalize_latents: str = "layer"
    state_fitted: bool = False

    dynamics_type: str = "transformer"
    predictor_hidden_size: int = 1024
    predictor_num_hidden_layers: int = 24
    predictor_num_attention_heads: int = 16
    predictor_mlp_ratio: int | float = 4.0
    action_fusion: str = "concat"
    action_encoder_num_layers: int = 1
    context_frames: int = 8
    residual: bool = False
    predictor_position_embedding_type: str = "rope"
    predictor_position_std: float = 0.02
    predictor_initializer_range: float | None = 0.02
    proprio_transition: str = "hold"

    loss_exponent: int = 1
    teacher_forcing_weight: int | float = 1.0
    rollout_weight: int | float = 1.0
    rollout_steps: int = 2
    rollout_discount: int | float = 1.0
    freeze_encoder: bool = True

    reward_head: bool = False
    reward_mean: int | float | None = None
    reward_std: int | float | None = None
    reward_weight: int | float = 1.0
    stochastic_dim: int = 0
    nll_weight: int | float = 1.0

    planner: dict | None = None

    def __post_init__(self, **kwargs):
        _check_positive(self, "action_dim", "predictor_hidden_size", "action_encoder_num_layers", "context_frames")
        _check_positive(self, "frame_skip", "actions_per_step", "rollout_steps", "rollout_discount")
        _check_positive(self, "predictor_mlp_ratio", "fps", "reward_std")
        _check_not_negative(self, "reward_weight", "stochastic_dim", "nll_weight")
        _check_not_negative(self, "proprio_dim", "extrinsics_dim", "stored_extrinsics_dim")
        _check_not_negative(self, "predictor_num_hidden_layers", "predictor_position_std")
        _check_not_negative(self, "predictor_initializer_range", "teacher_forcing_weight", "rollout_weight")
        if self.dynamics_type != "mlp":
            _check_heads(
                "predictor_hidden_size",
                self.predictor_hidden_size,
                "predictor_num_attention_heads",
                self.predictor_num_attention_heads,
            )
        _check_choice("loss_exponent", self.loss_exponent, (1, 2))
        _check_choice("action_type", self.action_type, ("continuous", "discrete"))
        _check_choice("state_type", self.state_type, ("tokens", "merged", "pooled", "projected", "pixels"))
        _check_choice("state_projection", self.state_projection, ("pca", "slow"))
        _check_choice("normalize_latents", self.normalize_latents, ("layer", "none"))
        _check_choice("dynamics_type", self.dynamics_type, ("transformer", "mlp"))
        _check_choice("action_fusion", self.action_fusion, ("concat", "add", "cross_attention"))
        _check_choice("predictor_position_embedding_type", self.predictor_position_embedding_type, ("rope", "learned"))
        _check_choice("proprio_transition", self.proprio_transition, ("hold", "add", "pose_delta"))
        self._check_vectors()
        self._check_discrete_actions()
        super().__post_init__(**self._refuse_unknown(kwargs))
        self._check_state()

    def _check_state(self) -> None:
        """What state, dynamics and encoder ask of each other; the encoder's config is known by now."""
        kind = self.state_type
        _check_positive(self, "state_dim")
        _check(
            self.state_dim is None or kind in ("merged", "projected"),
            f"state_dim is {self.state_dim}, but state_type={kind!r} has a size of its own: leave it out, or take "
            "'merged' or 'projected'.",
        )
        _check(
            kind != "projected" or self.state_dim is not None,
            "state_type='projected' needs state_dim, the size of the state: for example state_dim=64.",
        )
        _check(
            self.state_projection == "pca" or kind == "projected",
            f"state_projection={self.state_projection!r} is for state_type='projected'; state_type is {kind!r}.",
        )
        side = self.encoder_config.crop_size // self.encoder_config.patch_size
        _check(
            kind != "merged" or side % 2 == 0,
            f"state_type='merged' joins 2×2 tokens, but a frame has {side}×{side}: choose a crop_size that twice "
            "patch_size divides.",
        )
        _check(
            self.dynamics_type != "mlp" or kind in ("pooled", "projected"),
            f"dynamics_type='mlp' works on one vector a frame, but state_type is {kind!r}: take 'pooled' or "
            "'projected'.",
        )
        _check(
            self.dynamics_type != "mlp" or self.action_fusion != "cross_attention",
            "action_fusion='cross_attention' needs dynamics_type='transformer'; got 'mlp': take 'concat' or 'add'.",
        )
        _check(
            self.freeze_encoder or kind != "pixels",
            "freeze_encoder=False with state_type='pixels': raw patches have no encoder to train.",
        )

    def _check_discrete_actions(self) -> None:
        if self.action_type != "discrete":
            return
        for name in ("action_mean", "action_std"):
            value = getattr(self, name)
            _check(
                value is None,
                f"{name} is {value}, but action_type='discrete' takes one-hot actions as they are: leave it out.",
            )
        _check(
            self.proprio_transition == "hold",
            f"proprio_transition={self.proprio_transition!r} adds actions to states, which action_type='discrete' "
            "cannot: take 'hold'.",
        )

    def _check_vectors(self) -> None:
        _check(
            not self.stored_extrinsics_dim or self.extrinsics_dim in (0, self.stored_extrinsics_dim),
            f"extrinsics_dim is {self.extrinsics_dim}, but the stored extrinsics encoder takes "
            f"{self.stored_extrinsics_dim} numbers: give extrinsics_dim={self.stored_extrinsics_dim}, or 0 to leave "
            "extrinsics out.",
        )
        _check(
            self.action_dim % self.actions_per_step == 0,
            f"action_dim={self.action_dim} is the size of one model step and must be a multiple of "
            f"actions_per_step={self.actions_per_step}.",
        )
        sizes = {"action": self.action_dim, "proprio": self.proprio_dim}
        for name in ("action_mean", "action_std", "action_low", "action_high", "proprio_mean", "proprio_std"):
            _check_vector(name, getattr(self, name), sizes[name.split("_")[0]])
        for dimension, (low, high) in enumerate(zip(self.action_low or [], self.action_high or [])):
            _check(low <= high, f"action_low {low} exceeds action_high {high} in dimension {dimension}.")
        if self.proprio_transition == "add":
            _check(
                self.proprio_dim in (0, self.action_dim),
                f"proprio_transition='add' needs proprio_dim={self.proprio_dim} equal to "
                f"action_dim={self.action_dim}.",
            )
        if self.proprio_transition == "pose_delta":
            _check(
                self.proprio_dim == self.action_dim == 7,
                "proprio_transition='pose_delta' needs proprio_dim and action_dim 7 (xyz, Euler angles, gripper); got "
                f"{self.proprio_dim} and {self.action_dim}.",
            )
        for name in ("action_std", "proprio_std"):
            values = getattr(self, name) or []
            _check(all(v > 0 for v in values), f"{name} is {values}; expected numbers above 0.")


@strict
class VJepa2VideoClassificationConfig(_NestedEncoder, PreTrainedConfig):
    r"""Configuration of [`VJepa2ForVideoClassification`]: a frozen encoder's tokens, a pooler, a linear head.

    encoder_config (`dict` or [`VJepa2EncoderConfig`]): the encoder.
    pooler_type (`str`, defaults to "attentive"; "linear" is the global average).
    num_pooler_layers (`int`, defaults to 3): self-attention blocks before the cross-attention block.
    pooler_num_attention_heads (`int`, defaults to 16): published for every backbone (transformers takes the
        backbone's, 22 for ViT-g, which is another function).
    pooler_layer_norm_eps (`float`, defaults to 1e-5), pooler_mlp_ratio (`float`, defaults to 4.0): published.
    encoder_layers (list of `int` or `None`): blocks, from 0, whose outputs (each through the encoder's final norm) are
        concatenated as one longer sequence of tokens, as published probes on several layers do; `None`: the last.
    pooler_time_positions (`bool`, defaults to `False`, as published): an attentive pooler's tokens get a sin-cos
        position in time. Its attention knows no order but what the encoder's tokens say of it; those of a small
        encoder say little.
    pooler_place_positions (`bool`, defaults to `False`, as published): the same for rows and columns; frames must be
        square. Without it a pooler can tell where something is only by what the encoder's tokens say of their place.
    labels_per_frame (`bool`, defaults to `False`): logits for each tubelet, read from its own tokens (after the
        pooler's self-attention over the whole clip, if it is attentive): when something happens (seed 000, event
        detection).
    num_neighbours (`int`, defaults to 0): above 0 the linear layer's place is taken by so many nearest neighbours
        (k-NN), of `num_stored_views` (`int`, defaults to 0) stored ones, with a linear pooler and one label a clip.
    neighbour_temperature (`float`, defaults to 0.07): of their weights, exp(cosine / temperature); DINO's.
    predicted_frames (`int`, defaults to 0): above 0 the attentive pooler reads, after the encoder's tokens, those that
        a masked-latent model's predictor expects of so many frames after the clip, as the published evaluation of
        action anticipation does. A multiple of the tubelet size, as the next.
    skipped_frames (`int`, defaults to 0): frames between the clip and the predicted ones. Published: the time until
        the action, and one tubelet is predicted.
    predictor_config (`dict` or `None`): that predictor's `VJepa2MaskedLatentPredictionConfig.predictor_fields()`.
    """

    model_type = "vjepa2_hf_video_classification"
    sub_configs_defaults = {"encoder_config": VJepa2EncoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None

    pooler_type: str = "attentive"
    num_pooler_layers: int = 3
    pooler_num_attention_heads: int = 16
    pooler_layer_norm_eps: float = 1e-5
    pooler_mlp_ratio: int | float = 4.0
    encoder_layers: list | None = None
    pooler_time_positions: bool = False
    pooler_place_positions: bool = False
    labels_per_frame: bool = False
    num_neighbours: int = 0
    num_stored_views: int = 0
    neighbour_temperature: float = 0.07
    predicted_frames: int = 0
    skipped_frames: int = 0
    predictor_config: dict | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        _check_choice("pooler_type", self.pooler_type, ("attentive", "linear"))
        _check_positive(self, "pooler_mlp_ratio", "pooler_layer_norm_eps", "neighbour_temperature")
        _check_not_negative(self, "num_pooler_layers", "initializer_range", "num_neighbours", "num_stored_views")
        _check_not_negative(self, "predicted_frames", "skipped_frames")
        if self.num_neighbours:
            _check(
                self.pooler_type == "linear" and not self.labels_per_frame and self.num_stored_views > 0,
                f"num_neighbours is {self.num_neighbours}; expected 0, or pooler_type 'linear', labels_per_frame "
                "False and num_stored_views above 0.",
            )
        super().__post_init__(**self._refuse_unknown(kwargs))
        _check_positive(self, "num_labels")
        _check_choice(
            "problem_type",
            self.problem_type,
            (None, "regression", "single_label_classification", "multi_label_classification"),
        )
        _check(
            sorted(self.id2label) == list(range(self.num_labels)),
            f"id2label names {list(self.id2label)[:8]}; expected every number from 0 to {self.num_labels - 1}.",
        )
        if self.encoder_layers is not None:
            self._check_encoder_layers(self.encoder_config.num_hidden_layers)
        if self.predicted_frames or self.skipped_frames or self.predictor_config is not None:
            self._check_predictor()
        if self.pooler_type == "attentive":
            _check_heads(
                "hidden_size",
                self.encoder_config.hidden_size,
                "pooler_num_attention_heads",
                self.pooler_num_attention_heads,
            )

    @property
    def masked_latent_config(self) -> VJepa2MaskedLatentPredictionConfig:
        """What the predictor is built from."""
        return VJepa2MaskedLatentPredictionConfig(
            encoder_config=self.encoder_config.to_dict(), **(self.predictor_config or {})
        )

    def _check_predictor(self) -> None:
        tubelet, own = self.encoder_config.tubelet_size, self.predictor_config is not None
        _check(
            own and self.predicted_frames > 0 and self.predicted_frames % tubelet == 0,
            f"predicted_frames is {self.predicted_frames} and predictor_config is {self.predictor_config}; expected a "
            f"multiple of the tubelet size of {tubelet} above 0 and a predictor's fields, or 0 and None.",
        )
        _check(
            self.skipped_frames % tubelet == 0,
            f"skipped_frames is {self.skipped_frames}; expected a multiple of the tubelet size of {tubelet}.",
        )
        _check(
            self.pooler_type == "attentive" and not self.labels_per_frame and self.encoder_layers is None,
            f"predicted_frames={self.predicted_frames} needs pooler_type 'attentive', labels_per_frame False and "
            f"encoder_layers None; got {self.pooler_type!r}, {self.labels_per_frame} and {self.encoder_layers}.",
        )
        _check(
            self.masked_latent_config.target_type != "pixels",
            "predictor_config has target_type 'pixels'; expected a predictor of latents, to stand beside tokens.",
        )

    def _check_encoder_layers(self, depth: int) -> None:
        layers = self.encoder_layers
        _check(
            bool(layers)
            and all(type(layer) is int and 0 <= layer < depth for layer in layers)
            and len(set(layers)) == len(layers),
            f"encoder_layers is {layers}; expected different block numbers from 0 to {depth - 1}, or None.",
        )


@strict
class VJepa2PixelDecoderConfig(_StrictFields, PreTrainedConfig):
    r"""Configuration of [`VJepa2PixelDecoder`].

    Latents, as a world model's `encode` and `rollout` give them:
        num_latents (`int`, defaults to 256): N, tokens of a frame; a square number that divides the picture evenly.
        latent_size (`int`, defaults to 1024): D.
    Picture:
        crop_size (`int`, defaults to 256), in_chans (`int`, defaults to 3): side in pixels; colour channels.
        patch_size (`int`, defaults to 16): side of the square that an output token paints. It may be smaller than the
            encoder's: a latent then serves several squares.
        image_mean, image_std (lists): what pixels were normalised by; `decode` undoes it.
    Transformer:
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio (default to 512, 4, 8, 4.0: about VideoMAE's,
            arXiv 2203.12602), hidden_act, layer_norm_eps, initializer_range. No layers: a linear map of each latent.
    Loss:
        loss_exponent (`int`, defaults to 2): p of mean |x̂ − x|^p / p on normalised pixels.
    """

    model_type = "vjepa2_hf_pixel_decoder"

    num_latents: int = 256
    latent_size: int = 1024
    crop_size: int = 256
    in_chans: int = 3
    patch_size: int = 16
    image_mean: list | tuple = (0.485, 0.456, 0.406)
    image_std: list | tuple = (0.229, 0.224, 0.225)

    hidden_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    mlp_ratio: int | float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    loss_exponent: int = 2

    def __post_init__(self, **kwargs):
        _check_positive(self, "num_latents", "latent_size", "crop_size", "in_chans", "patch_size", "hidden_size")
        _check_positive(self, "mlp_ratio", "layer_norm_eps")
        _check_not_negative(self, "num_hidden_layers", "initializer_range")
        _check_activation(self.hidden_act)
        _check_heads("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_choice("loss_exponent", self.loss_exponent, (1, 2))
        _check(self.hidden_size % 8 == 0, f"hidden_size is {self.hidden_size}; expected a multiple of 8 (sin-cos).")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            _check(
                len(values) == self.in_chans and all(math.isfinite(value) for value in values),
                f"{name} is {values}; expected {self.in_chans} finite numbers, as in_chans says.",
            )
        _check(all(value > 0 for value in self.image_std), f"image_std is {self.image_std}; expected numbers above 0.")
        _check(
            self.crop_size % self.patch_size == 0,
            f"patch_size={self.patch_size} must divide crop_size={self.crop_size}: choose another.",
        )
        side, painted = math.isqrt(self.num_latents), self.crop_size // self.patch_size
        _check(
            side**2 == self.num_latents and painted % side == 0,
            f"num_latents={self.num_latents} is no square grid that divides the {painted} × {painted} squares of "
            f"crop_size={self.crop_size} and patch_size={self.patch_size}: choose another patch_size.",
        )
        super().__post_init__(**self._refuse_unknown(kwargs))


__all__ = [
    "VJepa2EncoderConfig",
    "VJepa2MaskedLatentPredictionConfig",
    "VJepa2WorldModelConfig",
    "VJepa2VideoClassificationConfig",
    "VJepa2PixelDecoderConfig",
]
