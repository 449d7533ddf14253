"""How transformers writes V-JEPA 2: the fields of its configs and the names of its weights, in both directions.

transformers has one config (`VJEPA2Config`, model type "vjepa2") for encoder, predictor and classifier, and keeps q, k
and v apart; ours are three configs, with q, k, v in one matrix. Loading goes through transformers' own conversion:
regular expressions rename (`TRANSFORMERS_KEY_MAPPINGS`) and registered converters join q, k, v. Values do not change.
"""

import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, WeightConverter


logger = logging.getLogger(__name__)

TRANSFORMERS_MODEL_TYPE = "vjepa2"

_ENCODER_FIELDS = (
    "patch_size",
    "crop_size",
    "frames_per_clip",
    "tubelet_size",
    "hidden_size",
    "in_chans",
    "num_attention_heads",
    "num_hidden_layers",
    "drop_path_rate",
    "mlp_ratio",
    "layer_norm_eps",
    "qkv_bias",
    "attention_probs_dropout_prob",
    "hidden_act",
    "initializer_range",
)
_PREDICTOR_FIELDS = {  # transformers' -> ours
    "pred_hidden_size": "predictor_hidden_size",
    "pred_num_attention_heads": "predictor_num_attention_heads",
    "pred_num_hidden_layers": "predictor_num_hidden_layers",
    "pred_mlp_ratio": "predictor_mlp_ratio",
    "pred_num_mask_tokens": "num_mask_tokens",
    "pred_zero_init_mask_tokens": "zero_init_mask_tokens",
}
_LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type")
# What every transformers config file may hold beside its model's fields
_COMMON_FIELDS = ("dtype", "torch_dtype", "transformers_version", "name_or_path", "attn_implementation")


# --- Config


def config_from_transformers(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a `VJEPA2Config` file into the fields of one of our configs; logs (info) what has no place there.

    Args:
        model_type: ours, such as "vjepa2_hf_encoder".
        config: the file's fields.

    Raises:
        ValueError: patches that are not square, which our models do not have.
    """
    config = dict(config)
    given = set(config)
    patch = config.get("patch_size")
    if isinstance(patch, (list, tuple)):
        if len(set(patch)) != 1:
            raise ValueError(f"patch_size is {patch}; expected square patches.")
        config["patch_size"] = patch[0]
    encoder = {name: config[name] for name in _ENCODER_FIELDS if name in config}
    encoder["layer_norm_eps"] = config.get("layer_norm_eps", 1e-6)
    fields = {name: config[name] for name in _COMMON_FIELDS if name in config}
    used = {*_ENCODER_FIELDS, *_COMMON_FIELDS, "model_type", "architectures"}
    if model_type == "vjepa2_hf_encoder":
        fields.update(encoder)
    else:
        fields["encoder_config"] = encoder
    if model_type == "vjepa2_hf_masked_latent_prediction":
        fields.update({ours: config[name] for name, ours in _PREDICTOR_FIELDS.items() if name in config})
        fields["initializer_range"] = config.get("initializer_range", 0.02)
        used |= set(_PREDICTOR_FIELDS)
    if model_type == "vjepa2_hf_video_classification":
        fields.update(_pooler_from_transformers(config))
        used |= {*_LABEL_FIELDS, "num_pooler_layers"}
    dropped = sorted(name for name in given - used if not name.startswith("_"))
    if dropped:
        shown = ", ".join(f"{name}={config[name]!r}" for name in dropped)
        logger.info("the vjepa2 config holds what a %s has no place for, left out: %s", model_type, shown)
    fields["model_type"] = model_type
    return fields


def _pooler_from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers runs the pooler with the backbone's head count and LayerNorm eps."""
    heads = config.get("num_attention_heads", 16)
    if heads == 22:  # ViT-g, whose released probes have 16
        warnings.warn(
            "this ViT-g classifier runs its attentive pooler with the backbone's 22 heads, as transformers does; "
            "published probes were trained with 16, so its scores may be wrong in transformers and here alike: pass "
            "pooler_num_attention_heads=16 if it was trained so.",
            stacklevel=2,
        )
    if config.get("attention_dropout"):
        warnings.warn(
            f"attention_dropout={config['attention_dropout']} of the pooler is left out: ours has none (it acts in "
            "training only).",
            stacklevel=2,
        )
    fields = {name: config[name] for name in _LABEL_FIELDS if name in config}
    fields["num_pooler_layers"] = config.get("num_pooler_layers", 3)
    fields["pooler_num_attention_heads"] = heads
    fields["pooler_layer_norm_eps"] = config.get("layer_norm_eps", 1e-6)
    fields["initializer_range"] = config.get("initializer_range", 0.02)
    return fields


def config_to_transformers(config) -> dict[str, Any]:
    """The fields of a `VJEPA2Config` that computes the same as ours.

    Args:
        config: of an encoder, a masked-latent model or a classifier.

    Raises:
        ValueError: transformers has no field for a setting, so that its model would compute something else.
    """
    encoder = getattr(config, "encoder_config", config)
    _refuse_unless(encoder, position_embedding_type="rope", rope_interleave=False, attention_type="joint")
    fields = {name: getattr(encoder, name) for name in _ENCODER_FIELDS}
    if config.model_type == "vjepa2_hf_masked_latent_prediction":
        refuse_pixel_predictor(config, "transformers' VJEPA2")
        fields.update({name: getattr(config, ours) for name, ours in _PREDICTOR_FIELDS.items()})
        fields["architectures"] = ["VJEPA2Model"]
    elif config.model_type == "vjepa2_hf_video_classification":
        _refuse_unless(
            config,
            pooler_type="attentive",
            encoder_layers=None,
            pooler_time_positions=False,
            pooler_space_positions=False,
            labels_per_frame=False,
            num_neighbors=0,
            predicted_frames=0,
            pooler_num_attention_heads=encoder.num_attention_heads,
            pooler_layer_norm_eps=encoder.layer_norm_eps,
            pooler_mlp_ratio=4.0,
        )
        fields["num_pooler_layers"] = config.num_pooler_layers
        fields.update(id2label=config.id2label, label2id=config.label2id, problem_type=config.problem_type)
        fields["architectures"] = ["VJEPA2ForVideoClassification"]
    elif config.model_type == "vjepa2_hf_encoder":
        fields["architectures"] = ["VJEPA2Model"]
    else:
        raise ValueError(f"transformers has no counterpart of a {config.model_type}: only ours can hold it.")
    return {**fields, "model_type": TRANSFORMERS_MODEL_TYPE, "dtype": config.dtype}


def refuse_pixel_predictor(config, program: str) -> None:
    """Refuses a predictor of pixels, which neither transformers nor the published code knows."""
    if config.target_type == "pixels":
        raise ValueError(
            f"target_type is 'pixels', but the predictor of {program} predicts latents: convert one encoder with "
            "--component, or keep our format."
        )


def _refuse_unless(config, **expected: Any) -> None:
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, but transformers' VJEPA2 always computes with {value!r} there: "
                "its outputs would differ, so the model stays in our format."
            )


# --- Weights

# By our model type: what `from_pretrained` renames, one after the other, in a transformers checkpoint
TRANSFORMERS_KEY_MAPPINGS: dict[str, dict[str, str]] = {
    "vjepa2_hf_encoder": {
        r"^(?:vjepa2\.)?encoder\.embeddings\.": "",
        r"^(?:vjepa2\.)?encoder\.": "",
    },
    "vjepa2_hf_masked_latent_prediction": {
        r"^vjepa2\.": "",
        r"^encoder\.embeddings\.": "encoder.",
        r"^predictor\.embeddings\.predictor_embeddings\.": "predictor.embed.",
        r"^predictor\.embeddings\.": "predictor.",
    },
    "vjepa2_hf_video_classification": {
        r"^(?:vjepa2\.)?encoder\.embeddings\.": "encoder.",
        r"^vjepa2\.encoder\.": "encoder.",
        r"^pooler\.self_attention_layers\.": "pooler.layer.",
        r"\.layer_norm1\.": ".norm1.",
        r"\.layer_norm2\.": ".norm2.",
        r"\.self_attn\.out_proj\.": ".attention.proj.",
        r"\.cross_attn\.q_proj\.": ".q.",
    },
}


def _joined(sources: tuple[str, ...], target: str) -> list[WeightConverter]:
    return [
        WeightConverter([f"{source}.{kind}" for source in sources], f"{target}.{kind}", [Concatenate(dim=0)])
        for kind in ("weight", "bias")
    ]


def register_conversions(*class_names: str) -> None:
    """Has `from_pretrained` of these classes join q, k, v where a checkpoint keeps them apart. Weights of ours match
    nothing here."""
    for class_name in class_names:
        mapping = [
            *_joined(("attention.query", "attention.key", "attention.value"), "attention.qkv"),
            *_joined(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention.qkv"),
            *_joined(("cross_attn.k_proj", "cross_attn.v_proj"), "kv"),
        ]
        register_checkpoint_conversion_mapping(class_name, mapping, overwrite=True)


_TO_TRANSFORMERS = [
    (r"^((?:vjepa2\.)?encoder)\.patch_embeddings\.", r"\1.embeddings.patch_embeddings."),
    (r"^((?:vjepa2\.)?predictor)\.embed\.", r"\1.embeddings.predictor_embeddings."),
    (r"^((?:vjepa2\.)?predictor)\.mask_tokens$", r"\1.embeddings.mask_tokens"),
]
_POOLER_TO_TRANSFORMERS = [
    (r"^pooler\.layer\.", "pooler.self_attention_layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attention\.proj\.", ".self_attn.out_proj."),
    (r"\.cross_attention_layer\.q\.", ".cross_attention_layer.cross_attn.q_proj."),
]


def to_transformers_state_dict(state_dict: Mapping[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    """Our weights under transformers' names, q, k, v apart (views, no copies).

    Args:
        state_dict: of an encoder (no prefix), of a masked-latent model with the wanted encoder under `encoder.` and no
            other, or of a classifier; the last two may hold a `predictor.`.
        model_type: ours.
    """
    prefix = {"vjepa2_hf_encoder": "encoder.", "vjepa2_hf_video_classification": "vjepa2."}.get(model_type, "")
    result = {}
    for name, value in state_dict.items():
        if name.startswith("pooler."):
            result.update(_pooler_to_transformers(name, value))
        elif name.startswith("classifier."):
            result[name] = value
        else:
            name = prefix + name
            for pattern, replacement in _TO_TRANSFORMERS:
                name = re.sub(pattern, replacement, name)
            parts = [name.replace("attention.qkv", f"attention.{part}") for part in ("query", "key", "value")]
            result.update(zip(parts, value.chunk(3)) if "attention.qkv" in name else {name: value})
    return result


def _pooler_to_transformers(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    for pattern, replacement in _POOLER_TO_TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    for joined, parts in {
        ".attention.qkv.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."),
        ".cross_attention_layer.kv.": (
            ".cross_attention_layer.cross_attn.k_proj.",
            ".cross_attention_layer.cross_attn.v_proj.",
        ),
    }.items():
        if joined in name:
            return {name.replace(joined, part): rows for part, rows in zip(parts, value.chunk(len(parts)))}
    return {name: value}
