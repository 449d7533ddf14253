"""Published V-JEPA 2 `.pt` files: what they hold, under which names, and which config their tensors tell.

A file is a dict of state dicts, here called parts: `encoder`, `target_encoder` and `predictor`, or `classifiers` for a
probe; beside them stand the optimiser's state and counters, which are left out. Names carry the prefixes `module.` and
`backbone.`.
"""

import logging
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from ..configuration_classification import VJepa2VideoClassificationConfig
from ..configuration_vjepa2 import PRESETS, VJepa2EncoderConfig, VJepa2MaskedLatentPredictionConfig
from ..configuration_world_model import VJepa2WorldModelConfig
from ..modeling_layers import configured_grid, sincos_table
from ..training.settings import check_known


logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]

# ------------------------------------------------------------------------------------------------ files

_MODELS = ("encoder", "target_encoder", "predictor")
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_SCALARS = [  # what numbers among the counters are pickled as, by NumPy 1 and 2
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in f"?{np.typecodes['AllInteger']}{np.typecodes['Float']}"},
]


@dataclass
class PublishedFile:
    """A published file.

    path: where it was read from.
    kind: "pretraining", "action-conditioned", "encoder" or "probe".
    parts: "encoder", "target_encoder", "predictor", "probe": published names without prefixes.
    """

    path: str
    kind: str
    parts: dict[str, State]

    def encoder_part(self, component: str | None = None) -> str | None:
        """The encoder to take: `component`, or the target encoder, or what there is (logged), or `None`.

        Raises:
            ValueError: there is no `component`.
        """
        present = [name for name in ("target_encoder", "encoder") if name in self.parts]
        if component is not None and component not in present:
            raise ValueError(f"{self.path} holds no {component!r}, but {_listed(self.parts)}: leave --component out.")
        if component is None and present == ["encoder"]:
            logger.info("%s holds no target_encoder: its encoder is taken", self.path)
        return component or (present[0] if present else None)

    def encoder_alone(self, part: str) -> "PublishedFile":
        return PublishedFile(self.path, "encoder", {"encoder": self.parts[part]})


def read_published(path: str, classifier_index: int = 0) -> PublishedFile:
    """Reads a `.pt` without running code in it; tensors stay on disk until they are used.

    Args:
        path: of the file.
        classifier_index: which of a probe file's classifiers to take.

    Raises:
        ValueError: no torch file, a damaged one, one with code, none of the known kinds (with what was found), or
            weights that are no plain floating-point tensors.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of state dicts.")
    # beside parts, a single tensor is a counter
    bare = "classifiers" not in content and not any(isinstance(content.get(name), dict) for name in _MODELS)
    if bare and any(isinstance(value, torch.Tensor) for value in content.values()):
        content = {"encoder": content}
    parts = {}
    for name in _MODELS:
        if content.get(name) is not None:
            parts[name] = _without_prefixes(content[name], name, path)
    if "classifiers" in content:
        parts["probe"] = _choose_classifier(content["classifiers"], classifier_index, path)
    _refuse_v2_1(parts, path)
    kind = _kind(parts)
    if kind is None:
        raise ValueError(f"{path} is no published V-JEPA 2 file: {_found(content, parts)}.")
    left_out = [name for name in content if name not in (*parts, "classifiers")]
    if left_out:
        logger.info("left out of %s: %s", path, _listed(left_out, limit=20))
    return PublishedFile(path, kind, parts)


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        start = file.read(4)
    packed = start == b"PK\x03\x04"
    if packed and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut short: it starts as a torch file and has no end; fetch it again.")
    if not packed and start[:1] != b"\x80":  # a pickle, as torch wrote before 1.6
        raise ValueError(
            f"{path} is no torch file (it starts with {start!r}); expected a published `.pt`, or the folder of a "
            "saved model."
        )
    try:
        if packed:  # torch itself checks no sums; costs one reading of the file
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # of pickles of another protocol, which then fail anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} holds code or objects{f' ({name[1]})' if name else ''} beside tensors and was not opened, since "
            "such a file can run anything: get it from its publisher, or, where you trust it, save its state dicts "
            "alone with torch.save."
        ) from error
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is damaged: the checksum of {error} is not that of its bytes; fetch it again (torch.save after "
            "set_crc32_options(False) writes none: save it with them)."
        ) from error
    except Exception as error:  # torch raises what the bytes lead it to
        raise ValueError(
            f"{path} does not read as a torch file: it is damaged or cut short; fetch it again."
        ) from error


def _without_prefixes(state: Any, part: str, path: str) -> State:
    if not isinstance(state, dict):
        raise ValueError(f"{path}: {part!r} is a {type(state).__name__}; expected a dict of tensors.")
    for name, value in state.items():
        fault = "its name is no string" if not isinstance(name, str) else _fault_of_weight(value)
        if fault:
            raise ValueError(
                f"{path}: {name!r} of {part!r} is no weight ({fault}); expected plain tensors of float16, bfloat16, "
                "float32 or float64 under names."
            )
    return {re.sub(r"^((module|backbone)\.)+", "", name): value for name, value in state.items()}


def _fault_of_weight(value: Any) -> str | None:
    """Why a value cannot be a weight: what comes after may take shapes and dtypes as they stand."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested or value.layout != torch.strided:
        return f"layout {'nested' if value.is_nested else value.layout}"
    if value.device.type == "meta":
        return "a meta tensor, without values"
    if value.dtype not in _WEIGHT_DTYPES:
        return str(value.dtype)
    if value.ndim == 0 or value.numel() == 0:
        return f"shape {tuple(value.shape)}"
    if value.nbytes > value.untyped_storage().nbytes():  # an expanded one: small on disk, of any size in memory
        return f"shape {tuple(value.shape)} on {value.untyped_storage().nbytes()} bytes"
    return None


def _choose_classifier(classifiers: Any, index: int, path: str) -> State:
    if not isinstance(classifiers, (list, tuple)) or not classifiers:
        raise ValueError(f"{path}: 'classifiers' is {classifiers!r:.60}; expected a list of state dicts.")
    if not isinstance(index, int) or not 0 <= index < len(classifiers):
        raise ValueError(f"classifier_index is {index!r}; {path} holds classifiers 0 to {len(classifiers) - 1}.")
    logger.info("%s holds %d classifiers: number %d is taken", path, len(classifiers), index)
    return _without_prefixes(classifiers[index], f"classifiers[{index}]", path)


def _kind(parts: Mapping[str, State]) -> str | None:
    encoders = [part for name, part in parts.items() if name.endswith("encoder")]
    if any("patch_embed.proj.weight" not in part for part in encoders):
        return None
    if "probe" in parts:
        return "probe" if {"pooler.query_tokens", "linear.weight"} <= set(parts["probe"]) else None
    predictor = parts.get("predictor", {})
    if {"action_encoder.weight", "predictor_embed.weight"} <= set(predictor):
        return "action-conditioned"
    if encoders and {"mask_tokens.0", "predictor_embed.weight"} <= set(predictor):
        return "pretraining"
    return "encoder" if encoders and not predictor else None


def _found(content: Mapping, parts: Mapping[str, State]) -> str:
    inside = "".join(f"; {name!r} holds {_listed(part)}" for name, part in parts.items())
    return f"it holds {_listed(content)}{inside}"


def _refuse_v2_1(parts: Mapping[str, State], path: str) -> None:
    marks = [n for part in parts.values() for n in part if n.startswith(("patch_embed_img.", "norms_block."))]
    if marks:
        raise ValueError(f"{path} is a V-JEPA 2.1 file (it holds {marks[0]}), which is not supported yet.")


def _listed(names: Iterable, limit: int = 6) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


# ------------------------------------------------------------------------------------------------ names

_ENCODER_NAMES = {  # published -> ours; a name is renamed by the first that it starts with
    "patch_embed.": "patch_embeddings.",
    "blocks.": "layer.",
    "norm.": "layernorm.",
    "pos_embed": "position_embeddings",
}
_NAMES = {
    "encoder": _ENCODER_NAMES,
    "target_encoder": _ENCODER_NAMES,
    "predictor": {
        "predictor_embed.": "embed.",
        "predictor_blocks.": "layer.",
        "predictor_norm.": "layernorm.",
        "predictor_proj.": "proj.",
        "predictor_pos_embed": "position_embeddings",
        "state_encoder.": "proprio_encoder.",
    },
    "probe": {
        "pooler.blocks.": "pooler.layer.",
        "pooler.cross_attention_block.xattn.q.": "pooler.cross_attention_layer.q.",
        "pooler.cross_attention_block.xattn.kv.": "pooler.cross_attention_layer.kv.",
        "pooler.cross_attention_block.": "pooler.cross_attention_layer.",
        "linear.": "classifier.",
    },
}
_TABLES = {"encoder": "pos_embed", "target_encoder": "pos_embed", "predictor": "predictor_pos_embed"}
# Where our models keep the parts; "" is what has no other prefix
_PREFIXES = {
    "vjepa2_hf_encoder": {"encoder": ""},
    "vjepa2_hf_masked_latent_prediction": {
        "encoder": "encoder.",
        "target_encoder": "target_encoder.",
        "predictor": "predictor.",
    },
    "vjepa2_hf_world_model": {"encoder": "encoder.", "predictor": "predictor."},
    "vjepa2_hf_video_classification": {"encoder": "encoder.", "probe": ""},
}


def from_published_names(state: Mapping[str, torch.Tensor], part: str) -> State:
    """The weights of a part ("encoder", "target_encoder", "predictor" or "probe") under the names of our module."""
    state, tokens = dict(state), []
    while f"mask_tokens.{len(tokens)}" in state:
        tokens.append(state.pop(f"mask_tokens.{len(tokens)}"))
    renamed = {_renamed(n, _NAMES[part]).replace(".attn.", ".attention."): value for n, value in state.items()}
    if tokens:
        renamed["mask_tokens"] = torch.stack(tokens)
    if "position_embeddings" in renamed:
        renamed["position_embeddings"] = renamed["position_embeddings"][0]  # (1, N, D) there
    return renamed


def to_published_names(state: Mapping[str, torch.Tensor], part: str) -> State:
    """The way back from `from_published_names`."""
    state = dict(state)
    tokens = state.pop("mask_tokens", ())
    if "position_embeddings" in state:
        state["position_embeddings"] = state["position_embeddings"][None]
    names = {ours: published for published, ours in _NAMES[part].items()}
    renamed = {_renamed(n, names).replace(".attention.", ".attn."): value for n, value in state.items()}
    return {**renamed, **{f"mask_tokens.{i}": token for i, token in enumerate(tokens)}}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def parts_to_model(parts: Mapping[str, State], model_type: str) -> State:
    """Published parts -> the state dict of a model of ours (views, no copies)."""
    state = {}
    for part, prefix in _PREFIXES[model_type].items():
        state.update({prefix + name: value for name, value in from_published_names(parts[part], part).items()})
    return state


def model_to_parts(state: Mapping[str, torch.Tensor], model_type: str) -> dict[str, State]:
    """The way back from `parts_to_model`."""
    found = {part: {} for part in _PREFIXES[model_type]}
    for name, value in state.items():
        part, prefix = next(item for item in _PREFIXES[model_type].items() if name.startswith(item[1]))
        found[part][name.removeprefix(prefix)] = value
    return {part: to_published_names(state, part) for part, state in found.items()}


def check_parts(path: str, parts: Mapping[str, State], expected: Mapping[str, State]) -> None:
    """Refuses parts whose names or shapes are not those of the expected ones, in one sentence about the first."""
    for part, state in expected.items():
        for name in [*state, *parts[part]]:
            found, wanted = (side[part].get(name) for side in (parts, expected))
            if found is None or wanted is None:
                said = "is missing" if found is None else "has no place in the model"
                raise ValueError(f"{path}: {name} of {part!r} {said}: the file is of another architecture.")
            if found.shape != wanted.shape:
                raise ValueError(
                    f"{path}: {name} of {part!r} has shape {tuple(found.shape)}, but the file's other sizes and the "
                    f"settings make it {tuple(wanted.shape)}: one of them is wrong."
                )


# ------------------------------------------------------------------------------------------------ positions


def settle_tables(path: str, parts: Mapping[str, State], config: PreTrainedConfig) -> dict[str, State]:
    """The parts without the tables of positions that our models compute themselves.

    Raises:
        ValueError: a sin-cos table is another than the config's.
    """
    config = getattr(config, "encoder_config", config)
    parts = {part: dict(state) for part, state in parts.items()}
    for part, name in _TABLES.items():
        table = parts.get(part, {}).get(name)
        if table is None or config.position_embedding_type == "learned":
            continue
        if config.position_embedding_type == "rope":
            logger.info(
                "%s: %s of %r is left out, since rotary positions do not use it (a V-JEPA 1 file, which does, needs "
                "--set position_embedding_type=sincos uniform_power=true)",
                path,
                name,
                part,
            )
        elif not _same_table(table, published_table(config, table.shape[-1])):
            raise ValueError(
                f"{path}: {name} of {part!r} ({tuple(table.shape)}) is not the sin-cos table of "
                f"crop_size={config.crop_size}, frames_per_clip={config.frames_per_clip}, "
                f"uniform_power={config.uniform_power}: --set what it was trained with."
            )
        del parts[part][name]
    return parts


def add_tables(parts: Mapping[str, State], config: PreTrainedConfig) -> dict[str, State]:
    """The parts with the tables that published V-JEPA 1 files hold, if positions are sin-cos."""
    config = getattr(config, "encoder_config", config)
    parts = {part: dict(state) for part, state in parts.items()}
    if config.position_embedding_type == "sincos":
        for part, name in _TABLES.items():
            if part in parts:
                size = parts[part].get("predictor_norm.weight", parts[part].get("norm.weight")).shape[0]
                parts[part][name] = published_table(config, size)
    return parts


def published_table(config: VJepa2EncoderConfig, size: int) -> torch.Tensor:
    """`pos_embed` of a published V-JEPA 1 file: (1, N, size), made in float64 there."""
    return sincos_table(configured_grid(config), size, config.uniform_power, dtype=torch.float64).float()[None]


def _same_table(found: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e-5 if found.dtype == torch.float32 else 1e-2
    return found.shape == expected.shape and torch.allclose(found.float(), expected, rtol=0, atol=tolerance)


def _clip_of_table(path: str, table: torch.Tensor, sizes: Mapping[str, Any]) -> dict[str, int]:
    """crop_size and frames_per_clip of the square grid whose sin-cos table is the one found."""
    tokens = table.shape[1] if table.ndim == 3 else 0
    for side in range(1, math.isqrt(tokens) + 1):
        clip = {"crop_size": side * sizes["patch_size"], "frames_per_clip": tokens // side**2 * sizes["tubelet_size"]}
        config = VJepa2EncoderConfig(**sizes, **clip, num_attention_heads=1, position_embedding_type="sincos")
        if _same_table(table, published_table(config, table.shape[-1])):
            return clip
    raise ValueError(
        f"{path}: pos_embed ({tuple(table.shape)}) is no sin-cos table of a square grid with "
        f"uniform_power={sizes['uniform_power']}: try --set uniform_power={not sizes['uniform_power']}, or leave "
        "position_embedding_type out for rotary positions."
    )


# ------------------------------------------------------------------------------------------------ config

_HEADS = {(width, depth): heads for width, depth, heads, _ in PRESETS.values()}
CONFIGS = {
    "pretraining": VJepa2MaskedLatentPredictionConfig,
    "action-conditioned": VJepa2WorldModelConfig,
    "encoder": VJepa2EncoderConfig,
    "probe": VJepa2VideoClassificationConfig,
}
_COMMON_FIELDS = {f.name for f in fields(PreTrainedConfig)}
_LABEL_FIELDS = {"id2label", "label2id", "problem_type"}
_NOT_SET = {
    "num_labels": "num_labels follows from the weights; to name the labels, give id2label.",
    "dtype": "dtype is that of the weights, which are written as they are: load them in another with from_pretrained.",
}


@dataclass
class _Told:
    """What tensors say about a config.

    fields: that they determine. assumed: as the released model of these sizes has them, or defaults that change no
    number. missing: what somebody has to give.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def assume(self, name: str, value: Any) -> None:
        """Notes what a field probably is; `None`: nobody can say."""
        if value is None:
            self.missing.append(name)
        else:
            self.assumed[name] = value


def published_config(
    file: PublishedFile,
    part: str | None,
    settings: Mapping[str, Any],
    encoder_config: VJepa2EncoderConfig | None = None,
) -> PreTrainedConfig:
    """The config of the model in a file; what it assumes is logged.

    Args:
        part: the encoder in the file to describe, or `None` for one from elsewhere, which has `encoder_config`.
        settings: config fields that tensors cannot tell, or that are wanted otherwise; the encoder's by their plain
            names.
        encoder_config: see `part`.

    Raises:
        ValueError: an unknown field (the nearest known one is named), or missing ones (all are named, with the `--set`
            that gives them).
    """
    config_class = CONFIGS[file.kind]
    own, of_encoder = split_settings(settings, config_class)
    given = {**own, **of_encoder}
    if part is None:
        _check_width(file, encoder_config.hidden_size)
    encoder = _Told() if part is None else _tell_encoder(file, part, given)
    head = _tell_head(file)
    missing = [name for name in encoder.missing + head.missing if name not in given]
    if missing:
        needed = " ".join(f"{name}=..." for name in missing)
        raise ValueError(f"the tensors of {file.path} do not tell {', '.join(missing)}: add --set {needed}")
    assumed = {name: value for name, value in {**encoder.assumed, **head.assumed}.items() if name not in given}
    if assumed:
        shown = " ".join(f"{name}={value}" for name, value in assumed.items())
        logger.info("tensors do not tell, so taken as released or by default (--set changes it): %s", shown)
    encoder_fields = encoder_config.to_dict() if part is None else {**encoder.assumed, **encoder.fields}
    if config_class is VJepa2EncoderConfig:
        return VJepa2EncoderConfig(**{**encoder_fields, **own})
    head_fields = {**head.assumed, **head.fields, **own}
    if "id2label" in own:
        del head_fields["num_labels"]  # follows from the labels
    return config_class(encoder_config={**encoder_fields, **of_encoder}, **head_fields)


def _check_width(file: PublishedFile, width: int) -> None:
    part, name = ("probe", "linear.weight") if file.kind == "probe" else ("predictor", "predictor_embed.weight")
    wanted = file.parts[part][name]
    if wanted.shape[-1] != width:
        raise ValueError(
            f"{file.path} is for an encoder of hidden_size {wanted.shape[-1]}; the one given has {width}: give "
            "--encoder the one that it was trained on."
        )


def split_settings(settings: Mapping[str, Any], config_class: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings for a config itself and for the encoder inside; a field of both is the config's own.

    Raises:
        ValueError: a name that is neither's, with the nearest known one; labels where none belong or that are none.
    """
    own_names, encoder_names = (
        {f.name for f in fields(c)} - _COMMON_FIELDS for c in (config_class, VJepa2EncoderConfig)
    )
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
        if name in _NOT_SET:
            raise ValueError(_NOT_SET[name])
        check_known(name, sorted((own_names | encoder_names | set(aliases)) - {"encoder_config"}), "config field")
        name = aliases.get(name, name)
        (own if name in own_names else of_encoder)[name] = value
    return own, of_encoder


def settings_to_read_back(file: PublishedFile, config: PreTrainedConfig) -> dict[str, Any]:
    """What a file that was made from a model of ours does not tell of its config: with these settings
    `published_config` gives it back, labels aside."""
    encoder_config = getattr(config, "encoder_config", config)
    encoder = _tell_encoder(file, "encoder", encoder_config.to_dict())
    settings = {}
    for told, actual in ((encoder, encoder_config), (_tell_head(file), config)):
        for name in [f.name for f in fields(actual) if f.name not in _COMMON_FIELDS | {"encoder_config"}]:
            known = {**encoder.assumed, **encoder.fields, **told.assumed, **told.fields}
            value = getattr(actual, name)
            if name in told.missing or value != known.get(name, getattr(type(actual), name)):
                settings[name] = value
    return settings


def _tell_encoder(file: PublishedFile, part: str, given: Mapping[str, Any]) -> _Told:
    """Fields of an encoder's config, given those that somebody set."""
    state = file.parts[part]
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 5 or kernel.shape[3] != kernel.shape[4]:
        raise ValueError(
            f"{file.path}: patch_embed.proj.weight has shape {tuple(kernel.shape)}; expected (width, channels, "
            "frames, side, side)."
        )
    width, channels, tubelet, patch, _ = kernel.shape
    depth, mlp_ratio = _stack(state, "blocks.", width)
    told = _Told({"hidden_size": width, "num_hidden_layers": depth, "mlp_ratio": mlp_ratio})
    told.fields.update(in_chans=channels, tubelet_size=tubelet, patch_size=patch)
    told.fields["qkv_bias"] = not depth or "blocks.0.attn.qkv.bias" in state
    heads = _HEADS.get((width, depth))
    told.assume("num_attention_heads", heads)
    positions = given.get("position_embedding_type", "rope")
    if positions == "rope":  # no number depends on the clip's size, but for the dynamics, which scales positions to it
        scaled = file.kind == "action-conditioned" and not (heads and _predictor_sizes(file)[1])
        told.assume("crop_size", None if scaled else VJepa2EncoderConfig.crop_size)
        told.assume("frames_per_clip", VJepa2EncoderConfig.frames_per_clip)
    elif positions == "sincos" and "pos_embed" in state:
        fields_of_table = {**told.fields, "uniform_power": given.get("uniform_power", False)}
        told.fields.update(_clip_of_table(file.path, state["pos_embed"], fields_of_table))
    else:
        told.missing += ["crop_size", "frames_per_clip"]
    return told


def _stack(state: State, blocks: str, width: int) -> tuple[int, float]:
    """Depth and MLP ratio of the transformer blocks below a name."""
    depth = len({name.removeprefix(blocks).split(".")[0] for name in state if name.startswith(blocks)})
    return depth, _mlp_ratio(state.get(f"{blocks}0.mlp.fc1.weight"), width)


def _mlp_ratio(weight: torch.Tensor | None, width: int) -> float:
    """The ratio r for which int(width · r) is the weight's height: a quotient may round to less (ViT-g: 48/11)."""
    if weight is None:
        return 4.0
    ratio = weight.shape[0] / width
    while int(width * ratio) < weight.shape[0]:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _tell_head(file: PublishedFile) -> _Told:
    """Fields of what stands on the encoder: the pooler, the predictor or the dynamics."""
    if file.kind == "encoder":
        return _Told()
    if file.kind == "probe":
        return _tell_probe(file.parts["probe"])
    state, (sizes, released) = file.parts["predictor"], _predictor_sizes(file)
    told = _Told(sizes)
    heads = CONFIGS[file.kind].predictor_num_attention_heads
    told.assume("predictor_num_attention_heads", heads if released else None)
    if file.kind == "pretraining":
        told.fields["num_mask_tokens"] = sum(name.startswith("mask_tokens.") for name in state)
        return told
    sizes = {name: state[f"{name}.weight"].shape[-1] for name in _ACTION_INPUTS if f"{name}.weight" in state}
    told.fields.update({_ACTION_INPUTS[name]: size for name, size in sizes.items()})
    if sizes.get("action_encoder") == sizes.get("state_encoder") == 7:
        arm = ("proprio_transition", "action_low", "action_high", "planner")
        told.assumed.update({name: VJepa2WorldModelConfig.published[name] for name in arm})
    if released:
        told.assumed["fps"] = 4  # DROID's frames as V-JEPA 2-AC took them
    return told


def _predictor_sizes(file: PublishedFile) -> tuple[dict[str, Any], bool]:
    """Sizes of a file's predictor or dynamics, and whether they are the released ones (our defaults)."""
    state, config = file.parts["predictor"], CONFIGS[file.kind]
    width = state["predictor_embed.weight"].shape[0]
    depth, mlp_ratio = _stack(state, "predictor_blocks.", width)
    sizes = {"predictor_hidden_size": width, "predictor_num_hidden_layers": depth, "predictor_mlp_ratio": mlp_ratio}
    return sizes, (width, depth) == (config.predictor_hidden_size, config.predictor_num_hidden_layers)


_ACTION_INPUTS = {
    "action_encoder": "action_dim",
    "state_encoder": "proprio_dim",
    "extrinsics_encoder": "stored_extrinsics_dim",  # used only when somebody sets extrinsics_dim
}


def _tell_probe(state: State) -> _Told:
    width = state["pooler.query_tokens"].shape[-1]
    layers, _ = _stack(state, "pooler.blocks.", width)
    told = _Told({"num_labels": state["linear.weight"].shape[0], "num_pooler_layers": layers})
    told.fields["pooler_mlp_ratio"] = _mlp_ratio(state.get("pooler.cross_attention_block.mlp.fc1.weight"), width)
    config = VJepa2VideoClassificationConfig
    heads = config.pooler_num_attention_heads
    told.assume("pooler_num_attention_heads", heads if width % heads == 0 else None)
    told.assume("pooler_layer_norm_eps", config.pooler_layer_norm_eps)
    return told
