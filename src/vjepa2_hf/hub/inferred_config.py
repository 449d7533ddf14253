"""Configs of published files, inferred from the names and shapes of their tensors."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..configuration_classification import VJepa2VideoClassificationConfig
from ..configuration_vjepa2 import OUTPUT_LEVELS, PRESETS, VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from ..configuration_world_model import VJepa2WorldModelConfig
from ..specs import check_known
from .published_format import PublishedFile, State, number_of_levels, published_table, same_table


logger = logging.getLogger(__name__)

CONFIGS = {
    "pretraining": VJepa2MaskedLatentPredictionConfig,
    "action-conditioned": VJepa2WorldModelConfig,
    "encoder": VJepa2EncoderConfig,
    "probe": VJepa2VideoClassificationConfig,
}
_HEADS = {(width, depth): heads for width, depth, heads, _ in PRESETS.values()}
_COMMON_FIELDS = {f.name for f in fields(PreTrainedConfig)}
_LABEL_FIELDS = {"id2label", "label2id", "problem_type"}
_ACTION_INPUTS = {
    "action_encoder": "action_dim",
    "state_encoder": "proprio_dim",
    "extrinsics_encoder": "stored_extrinsics_dim",  # used only with a given extrinsics_dim
}


@dataclass
class InferredConfig:
    """What tensors say about a config."""

    fields: dict[str, Any] = field(default_factory=dict)  # determined by tensors
    assumed: dict[str, Any] = field(default_factory=dict)  # as released with these sizes, or defaults without effect
    missing: list[str] = field(default_factory=list)  # to be given by the user

    def assume(self, name: str, value: Any) -> None:
        """Assumes a field's value; `None` means that it is unknown."""
        if value is None:
            self.missing.append(name)
        else:
            self.assumed[name] = value


def published_config(
    file: PublishedFile, part: str | None, settings: Mapping[str, Any], encoder_config=None
) -> PreTrainedConfig:
    """The config of the model in a file, with the encoder `part` of the file, or for `None` one from elsewhere with
    `encoder_config`; what is assumed is logged. Settings are as for `convert`."""
    config_class = CONFIGS[file.kind]
    own, of_encoder = split_settings(settings, config_class)
    given = {**own, **of_encoder}
    if part is None:
        name = ("probe", "linear.weight") if file.kind == "probe" else ("predictor", "predictor_embed.weight")
        wanted = file.parts[name[0]][name[1]].shape[-1]
        if wanted != encoder_config.hidden_size:
            sizes = f"hidden_size {wanted}; the given one has {encoder_config.hidden_size}"
            raise ValueError(f"{file.path} is for an encoder of {sizes}: give --encoder its own.")
    encoder = InferredConfig() if part is None else infer_encoder(file, part, given)
    head = infer_head(file)
    missing = [name for name in encoder.missing + head.missing if name not in given]
    if missing:
        names, needed = ", ".join(missing), " ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{names} cannot be inferred from the tensors of {file.path}: add --set {needed}")
    assumed = {name: value for name, value in {**encoder.assumed, **head.assumed}.items() if name not in given}
    if assumed:
        shown = " ".join(f"{name}={value}" for name, value in assumed.items())
        logger.info("not inferred from tensors, so assumed as released or by default (--set changes it): %s", shown)
    encoder_fields = encoder_config.to_dict() if part is None else {**encoder.assumed, **encoder.fields}
    if config_class is VJepa2EncoderConfig:
        return VJepa2EncoderConfig(**{**encoder_fields, **own})
    head_fields = {**head.assumed, **head.fields, **own}
    if "id2label" in own:
        del head_fields["num_labels"]  # follows from the labels
    return config_class(encoder_config={**encoder_fields, **of_encoder}, **head_fields)


def split_settings(settings: Mapping[str, Any], config_class: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings for a config itself and for the encoder inside; a field of both is the config's own."""
    both = (config_class, VJepa2EncoderConfig)
    own_names, encoder_names = ({f.name for f in fields(c)} - _COMMON_FIELDS for c in both)
    if config_class is VJepa2VideoClassificationConfig:
        own_names |= _LABEL_FIELDS
    elif of_labels := _LABEL_FIELDS & set(settings):
        raise ValueError(f"{min(of_labels)} is a classifier's field; this becomes a {config_class.model_type}.")
    labels = settings.get("id2label", {})
    if not isinstance(labels, dict) or not all(str(number).isdigit() for number in labels):
        raise ValueError(f"id2label is {labels!r}; expected names by their numbers, like {{0: a, 1: b}}.")
    aliases = VJepa2EncoderConfig.attribute_map
    own, of_encoder = {}, {}
    for name, value in settings.items():
        if name == "num_labels":
            raise ValueError("num_labels follows from the weights; to name the labels, give id2label.")
        if name == "dtype":
            raise ValueError("dtype is that of the weights, which keep it; load them in another with from_pretrained.")
        check_known(name, sorted((own_names | encoder_names | set(aliases)) - {"encoder_config"}), "config field")
        name = aliases.get(name, name)
        (own if name in own_names else of_encoder)[name] = value
    return own, of_encoder


def settings_to_read_back(file: PublishedFile, config: PreTrainedConfig) -> dict[str, Any]:
    """The settings with which `published_config` restores a model's config from its published file, without labels."""
    encoder_config = getattr(config, "encoder_config", config)
    encoder = infer_encoder(file, "encoder", encoder_config.to_dict())
    settings = {}
    for inferred, actual in ((encoder, encoder_config), (infer_head(file), config)):
        known = {**encoder.assumed, **encoder.fields, **inferred.assumed, **inferred.fields}
        for name in [f.name for f in fields(actual) if f.name not in _COMMON_FIELDS | {"encoder_config"}]:
            value = getattr(actual, name)
            if name in inferred.missing or value != known.get(name, getattr(type(actual), name)):
                settings[name] = value
    return settings


def infer_encoder(file: PublishedFile, part: str, given: Mapping[str, Any]) -> InferredConfig:
    """Fields of an encoder's config; `given` are those that the user sets."""
    state = file.parts[part]
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 5 or kernel.shape[3] != kernel.shape[4]:
        shapes = f"{tuple(kernel.shape)}; expected (width, channels, frames, side, side)"
        raise ValueError(f"{file.path}: patch_embed.proj.weight has shape {shapes}.")
    width, channels, tubelet, patch, _ = kernel.shape
    depth, mlp_ratio = _stack(state, "blocks.", width)
    inferred = InferredConfig({"hidden_size": width, "num_hidden_layers": depth, "mlp_ratio": mlp_ratio})
    inferred.fields |= {"in_chans": channels, "tubelet_size": tubelet, "patch_size": patch}
    inferred.fields["qkv_bias"] = not depth or "blocks.0.attn.qkv.bias" in state
    crop_size = _infer_2_1(inferred, state, depth)
    heads = _HEADS.get((width, depth))
    inferred.assume("num_attention_heads", heads)
    positions = given.get("position_embedding_type", "rope")
    if positions == "rope":  # outputs do not depend on the clip's size, except in the dynamics, which scales positions
        scaled = file.kind == "action-conditioned" and not (heads and _predictor_sizes(file)[1])
        inferred.assume("crop_size", None if scaled else crop_size)
        inferred.assume("frames_per_clip", VJepa2EncoderConfig.frames_per_clip)
    elif positions == "sincos" and "pos_embed" in state:
        sizes = {**inferred.fields, "uniform_power": given.get("uniform_power", False)}
        inferred.fields |= _infer_clip(file.path, state["pos_embed"], sizes)
    else:
        inferred.missing += ["crop_size", "frames_per_clip"]
    return inferred


def _infer_2_1(inferred: InferredConfig, state: State, depth: int) -> int:
    """Adds the fields that V-JEPA 2.1 brought, if the encoder has its names; the crop size of the released models."""
    image, levels = state.get("patch_embed_img.proj.weight"), number_of_levels(state)
    inferred.fields["modality_embeddings"] = "img_mod_embed" in state
    if image is not None and image.ndim == 5:
        inferred.fields["image_tubelet_size"] = image.shape[2]
    if image is None and not levels and "img_mod_embed" not in state:
        return VJepa2EncoderConfig.crop_size
    released = VJepa2EncoderConfig.from_preset("2.1-base")
    if levels:
        blocks = OUTPUT_LEVELS.get(depth, [])
        inferred.assume("output_levels", [*blocks] if len(blocks) == levels else None)
    for name in ("rope_interleave", "rope_grid_size"):
        inferred.assume(name, getattr(released, name))
    return released.crop_size


def _infer_clip(path: str, table: torch.Tensor, sizes: Mapping[str, Any]) -> dict[str, int]:
    """crop_size and frames_per_clip of the square grid that has this sin-cos table."""
    tokens = table.shape[1] if table.ndim == 3 else 0
    for side in range(1, math.isqrt(tokens) + 1):
        clip = {"crop_size": side * sizes["patch_size"], "frames_per_clip": tokens // side**2 * sizes["tubelet_size"]}
        config = VJepa2EncoderConfig(**sizes, **clip, num_attention_heads=1, position_embedding_type="sincos")
        if same_table(table, published_table(config, table.shape[-1])):
            return clip
    found, power = f"{path}: pos_embed ({tuple(table.shape)})", sizes["uniform_power"]
    advice = f"try --set uniform_power={not power}, or leave position_embedding_type out for rotary positions."
    raise ValueError(f"{found} is not a sin-cos table of a square grid with uniform_power={power}: {advice}")


def infer_head(file: PublishedFile) -> InferredConfig:
    """Fields of the part on top of the encoder: the pooler, the predictor or the dynamics."""
    if file.kind == "encoder":
        return InferredConfig()
    if file.kind == "probe":
        return infer_probe(file.parts["probe"])
    state, (sizes, released) = file.parts["predictor"], _predictor_sizes(file)
    inferred = InferredConfig(sizes)
    heads = CONFIGS[file.kind].predictor_num_attention_heads
    inferred.assume("predictor_num_attention_heads", heads if released else None)
    if file.kind == "pretraining":
        inferred.fields["num_mask_tokens"] = sum(name.startswith("mask_tokens.") for name in state)
        inferred.fields |= _infer_dense(file)
        if "predict_context" in inferred.fields:  # in training; as published
            released = VJepa2MaskedLatentPredictionConfig.published_by_preset["2.1-giant"]
            inferred.assume("context_loss_weight", released["context_loss_weight"])
        return inferred
    sizes = {name: state[f"{name}.weight"].shape[-1] for name in _ACTION_INPUTS if f"{name}.weight" in state}
    inferred.fields |= {_ACTION_INPUTS[name]: size for name, size in sizes.items()}
    if sizes.get("action_encoder") == sizes.get("state_encoder") == 7:
        arm = ("proprio_transition", "action_low", "action_high", "planner")
        inferred.assumed |= {name: VJepa2WorldModelConfig.published[name] for name in arm}
    if released:
        inferred.assumed["fps"] = 4  # the frame rate at which V-JEPA 2-AC was trained on DROID
    return inferred


def _infer_dense(file: PublishedFile) -> dict[str, Any]:
    """The fields of a V-JEPA 2.1 predictor, which reads levels, predicts context tokens, or has a larger teacher."""
    state = file.parts["predictor"]
    names = {
        "predictor_levels": "predictor_embed.0.weight",
        "predict_context": "predictor_proj_context.weight",
        "predictor_modality_embeddings": "img_mod_embed",
    }
    fields = {field: True for field, name in names.items() if name in state}
    output = state.get("predictor_proj.weight")
    one_level = "predict_context" in fields and "predictor_levels" not in fields
    if output is not None and (file.distilled or one_level):
        fields |= {"target_type": "teacher", "teacher_hidden_size": output.shape[0]}
    return fields


def infer_probe(state: State) -> InferredConfig:
    """The config of a published probe, from the shapes of its weights."""
    width = state["pooler.query_tokens"].shape[-1]
    layers, _ = _stack(state, "pooler.blocks.", width)
    inferred = InferredConfig({"num_labels": state["linear.weight"].shape[0], "num_pooler_layers": layers})
    inferred.fields["pooler_mlp_ratio"] = _mlp_ratio(state.get("pooler.cross_attention_block.mlp.fc1.weight"), width)
    config = VJepa2VideoClassificationConfig
    heads = config.pooler_num_attention_heads
    inferred.assume("pooler_num_attention_heads", heads if width % heads == 0 else None)
    inferred.assume("pooler_layer_norm_eps", config.pooler_layer_norm_eps)
    return inferred


def _predictor_sizes(file: PublishedFile) -> tuple[dict[str, Any], bool]:
    """Sizes of a file's predictor or dynamics, and whether they are the released ones (our defaults)."""
    state, config = file.parts["predictor"], CONFIGS[file.kind]
    width = state[
        "predictor_embed.2.weight" if "predictor_embed.2.weight" in state else "predictor_embed.weight"
    ].shape[0]
    depth, mlp_ratio = _stack(state, "predictor_blocks.", width)
    sizes = {"predictor_hidden_size": width, "predictor_num_hidden_layers": depth, "predictor_mlp_ratio": mlp_ratio}
    depths = (12, 24) if file.kind == "pretraining" else (config.predictor_num_hidden_layers,)  # 24: V-JEPA 2.1 g, G
    return sizes, width == config.predictor_hidden_size and depth in depths


def _stack(state: State, blocks: str, width: int) -> tuple[int, float]:
    """Depth and MLP ratio of the transformer blocks below a name."""
    depth = len({name.removeprefix(blocks).split(".")[0] for name in state if name.startswith(blocks)})
    return depth, _mlp_ratio(state.get(f"{blocks}0.mlp.fc1.weight"), width)


def _mlp_ratio(weight: torch.Tensor | None, width: int) -> float:
    """The ratio r with int(width · r) equal to the weight's height: a quotient may round to less (ViT-g: 48/11)."""
    if weight is None:
        return 4.0
    ratio = weight.shape[0] / width
    while int(width * ratio) < weight.shape[0]:
        ratio = math.nextafter(ratio, math.inf)
    return ratio
