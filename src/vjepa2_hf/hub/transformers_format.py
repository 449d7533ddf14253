"""The format of transformers' V-JEPA 2: fields of its config and names of its weights, in both directions.

transformers has one config (`VJEPA2Config`, model type "vjepa2") for encoder, predictor and classifier, and separate
weights for q, k and v; we have three configs, and one weight for q, k, v. Loading uses transformers' own conversion:
regular expressions rename (`TRANSFORMERS_KEY_MAPPINGS`) and registered converters join. Values do not change.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, WeightConverter


logger = logging.getLogger(__name__)

TRANSFORMERS_MODEL_TYPE = "vjepa2"

_ENCODER_FIELDS = (
    "patch_size", "crop_size", "frames_per_clip", "tubelet_size", "hidden_size", "in_chans", "num_attention_heads",
    "num_hidden_layers", "drop_path_rate", "mlp_ratio", "layer_norm_eps", "qkv_bias", "attention_probs_dropout_prob",
    "hidden_act", "initializer_range",
)  # fmt: skip
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
# By model type: fields that transformers lacks; its models always compute with our default
ONLY_OURS = {
    "vjepa2_hf_encoder": (
        "position_embedding_type", "rope_interleave", "rope_grid_size", "attention_type", "image_tubelet_size",
        "modality_embeddings", "output_levels", "patch_stem",
    ),
    "vjepa2_hf_masked_latent_prediction": (
        "predictor_levels", "predictor_modality_embeddings", "predict_context", "teacher_hidden_size",
    ),
    "vjepa2_hf_video_classification": (
        "pooler_type", "encoder_layers", "pooler_time_positions", "pooler_space_positions", "labels_per_frame",
        "num_neighbors", "predicted_frames",
    ),
}  # fmt: skip


# --- Config


def config_from_transformers(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a `VJEPA2Config` file into the fields of our config of a model type; logs (info) dropped fields."""
    config, given = dict(config), set(config)
    patch = config.get("patch_size")
    if isinstance(patch, (list, tuple)):
        if len(set(patch)) != 1:
            raise ValueError(f"patch_size is {patch}; expected square patches.")
        config["patch_size"] = patch[0]
    encoder = {name: config[name] for name in _ENCODER_FIELDS if name in config}
    encoder["layer_norm_eps"] = config.get("layer_norm_eps", 1e-6)
    fields = {name: config[name] for name in _COMMON_FIELDS if name in config}
    fields |= encoder if model_type == "vjepa2_hf_encoder" else {"encoder_config": encoder}
    used = {*_ENCODER_FIELDS, *_COMMON_FIELDS, "model_type", "architectures"}
    if model_type == "vjepa2_hf_masked_latent_prediction":
        fields |= {ours: config[name] for name, ours in _PREDICTOR_FIELDS.items() if name in config}
        fields["initializer_range"] = config.get("initializer_range", 0.02)
        used |= set(_PREDICTOR_FIELDS)
    if model_type == "vjepa2_hf_video_classification":
        fields |= _pooler_from_transformers(config)
        used |= {*_LABEL_FIELDS, "num_pooler_layers"}
    dropped = sorted(name for name in given - used if not name.startswith("_"))
    if dropped:
        shown = ", ".join(f"{name}={config[name]!r}" for name in dropped)
        logger.info("left out of the vjepa2 config, since a %s has no such field: %s", model_type, shown)
    fields["model_type"] = model_type
    return fields


def _pooler_from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers runs the pooler with the backbone's head count and LayerNorm eps."""
    heads = config.get("num_attention_heads", 16)
    if heads == 22:  # ViT-g, whose released probes have 16
        warnings.warn(
            "this ViT-g classifier runs its pooler with the backbone's 22 heads, as transformers does, but published "
            "probes were trained with 16: pass pooler_num_attention_heads=16 if it was trained so.",
            stacklevel=2,
        )
    if config.get("attention_dropout"):
        dropout = f"attention_dropout={config['attention_dropout']} of the pooler"
        warnings.warn(f"{dropout} is left out: ours has none (it acts in training only).", stacklevel=2)
    return {
        **{name: config[name] for name in _LABEL_FIELDS if name in config},
        "num_pooler_layers": config.get("num_pooler_layers", 3),
        "pooler_num_attention_heads": heads,
        "pooler_layer_norm_eps": config.get("layer_norm_eps", 1e-6),
        "initializer_range": config.get("initializer_range", 0.02),
    }


def config_to_transformers(config) -> dict[str, Any]:
    """The fields of a `VJEPA2Config` that computes the same as ours; a ValueError names what it cannot express."""
    encoder, model_type, program = getattr(config, "encoder_config", config), config.model_type, "transformers' VJEPA2"
    if encoder.output_levels or encoder.modality_embeddings:
        has = "an image tokenizer, modality embeddings and levels"
        advice = "keep our format, or convert with --to published."
        raise ValueError(f"transformers {transformers.__version__} has no V-JEPA 2.1, which has {has}: {advice}")
    refuse_other_values(encoder, program, ONLY_OURS["vjepa2_hf_encoder"])
    fields = {name: getattr(encoder, name) for name in _ENCODER_FIELDS}
    if model_type == "vjepa2_hf_masked_latent_prediction":
        refuse_pixel_predictor(config, program)
        refuse_other_values(config, program, ONLY_OURS[model_type])
        fields |= {name: getattr(config, ours) for name, ours in _PREDICTOR_FIELDS.items()}
    elif model_type == "vjepa2_hf_video_classification":
        pooler = {"num_attention_heads": encoder.num_attention_heads, "layer_norm_eps": encoder.layer_norm_eps}
        pooler = {f"pooler_{name}": value for name, value in {**pooler, "mlp_ratio": 4.0}.items()}
        refuse_other_values(config, program, ONLY_OURS[model_type], **pooler)
        fields |= {
            name: getattr(config, name) for name in ("num_pooler_layers", "id2label", "label2id", "problem_type")
        }
    elif model_type != "vjepa2_hf_encoder":
        raise ValueError(f"transformers has no counterpart of a {model_type}: only our format can hold it.")
    classifies = model_type == "vjepa2_hf_video_classification"
    fields["architectures"] = ["VJEPA2ForVideoClassification" if classifies else "VJEPA2Model"]
    return {**fields, "model_type": TRANSFORMERS_MODEL_TYPE, "dtype": config.dtype}


def refuse_pixel_predictor(config, program: str) -> None:
    """Refuses a predictor of pixels, which neither transformers nor the published code has."""
    if config.target_type == "pixels":
        advice = "convert one encoder with --component, or keep our format."
        raise ValueError(f"target_type is 'pixels', but the predictor of {program} predicts latents: {advice}")


def refuse_other_values(config, program: str, defaults: Iterable[str], **expected: Any) -> None:
    """Refuses a config that `program` cannot compute: it has our defaults, or `expected` values, alone."""
    for name, value in {**{name: getattr(type(config), name) for name in defaults}, **expected}.items():
        if getattr(config, name) != value:
            values = f"{getattr(config, name)!r}, but {program} always computes with {value!r}"
            raise ValueError(f"{name} is {values}: its outputs would differ, so the model stays in our format.")


# --- Weights

# By our model type: how `from_pretrained` renames the weights of a transformers checkpoint, one after the other
TRANSFORMERS_KEY_MAPPINGS: dict[str, dict[str, str]] = {
    "vjepa2_hf_encoder": {r"^(?:vjepa2\.)?encoder\.embeddings\.": "", r"^(?:vjepa2\.)?encoder\.": ""},
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


_JOINED = {
    "attention.qkv": [
        ("attention.query", "attention.key", "attention.value"),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ],
    "kv": [("cross_attn.k_proj", "cross_attn.v_proj")],
}


def register_conversions(*class_names: str) -> None:
    """Lets `from_pretrained` of these classes join separate q, k, v of a checkpoint; our own names do not match."""
    for class_name in class_names:
        mapping = [
            WeightConverter([f"{source}.{kind}" for source in sources], f"{target}.{kind}", [Concatenate(dim=0)])
            for target, alternatives in _JOINED.items()
            for sources in alternatives
            for kind in ("weight", "bias")
        ]
        register_checkpoint_conversion_mapping(class_name, mapping, overwrite=True)


_TO_TRANSFORMERS = [  # one after the other, after the model's prefix
    (r"^((?:vjepa2\.)?encoder)\.patch_embeddings\.", r"\1.embeddings.patch_embeddings."),
    (r"^((?:vjepa2\.)?predictor)\.embed\.", r"\1.embeddings.predictor_embeddings."),
    (r"^((?:vjepa2\.)?predictor)\.mask_tokens$", r"\1.embeddings.mask_tokens"),
    (r"^pooler\.layer\.", "pooler.self_attention_layers."),
    (r"^(pooler\..+)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^(pooler\..+)\.attention\.proj\.", r"\1.self_attn.out_proj."),
    (r"^(pooler\..+)\.attention\.qkv\.", r"\1.self_attn.{q,k,v}_proj."),
    (r"^(pooler\..+)\.q\.", r"\1.cross_attn.q_proj."),
    (r"^(pooler\..+)\.kv\.", r"\1.cross_attn.{k,v}_proj."),
    (r"\.attention\.qkv\.", ".attention.{query,key,value}."),
]


def to_transformers_state_dict(state_dict: Mapping[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    """Our weights under transformers' names, with separate q, k, v (views, no copies).

    Args:
        state_dict: of an encoder (no prefix), of a masked-latent model with the wanted encoder under `encoder.` and no
            other, or of a classifier; the last two may hold a `predictor.`.
        model_type: ours.
    """
    prefix = {"vjepa2_hf_encoder": "encoder.", "vjepa2_hf_video_classification": "vjepa2."}.get(model_type, "")
    result = {}
    for name, value in state_dict.items():
        name = name if name.startswith(("pooler.", "classifier.")) else prefix + name
        for pattern, replacement in _TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if "{" in name:  # several weights that are one matrix of ours
            start, parts, end = re.split("[{}]", name)
            names = [start + part + end for part in parts.split(",")]
            result.update(zip(names, value.chunk(len(names))))
        else:
            result[name] = value
    return result
