"""The published V-JEPA 2 format: reading `.pt` files, names of weights, tables of positions.

A file is a dict of state dicts, here called parts: `encoder`, `target_encoder` and `predictor`, or `classifiers` for a
probe. The optimizer's state and counters beside them are left out. Names carry the prefixes `module.` and `backbone.`.
V-JEPA 2.1 (arXiv 2603.14482) has the same parts with a few more names; its distilled files call the moving average of
the encoder `ema_encoder`, since their `target_encoder` is the teacher.
"""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from ..configuration_vjepa2 import VJepa2EncoderConfig
from ..modeling_layers import configured_grid, sincos_table
from .mismatch import describe_mismatch, shapes_of


logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]

_PARTS = ("encoder", "target_encoder", "predictor")
_EMA = "ema_encoder"  # of a distilled V-JEPA 2.1 file: what the others call target_encoder
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Names of a V-JEPA 2-AC predictor
_ACTION_CONDITIONED = re.compile(
    r"((predictor_(embed|norm|proj)|(action|state|extrinsics)_encoder|predictor_blocks\.\d+\.(norm[12]|attn\.(qkv|proj)"
    r"|mlp\.fc[12]))\.(weight|bias)|predictor_pos_embed)$"
)
_NUMPY_SCALARS = [  # how NumPy 1 and 2 pickle the numbers among the counters
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in f"?{np.typecodes['AllInteger']}{np.typecodes['Float']}"},
]


@dataclass
class PublishedFile:
    """A published file and where it was read from."""

    path: str
    kind: str  # "pretraining", "action-conditioned", "encoder" or "probe"
    parts: dict[str, State]  # "encoder", "target_encoder", "predictor", "probe": published names without prefixes
    distilled: bool = False  # from a larger model: V-JEPA 2.1 ViT-B and ViT-L

    def encoder_part(self, component: str | None = None) -> str | None:
        """The encoder to take: `component`, else the target encoder, else the encoder (logged), else `None`."""
        present = [name for name in ("target_encoder", "encoder") if name in self.parts]
        if component is not None and component not in present:
            raise ValueError(f"{self.path} holds no {component!r}, but {_listed(self.parts)}: leave --component out.")
        if component is None and present == ["encoder"]:
            logger.info("%s holds no target_encoder: its encoder is taken", self.path)
        return component or (present[0] if present else None)

    def encoder_alone(self, part: str) -> "PublishedFile":
        """This file with one of its encoders ("encoder" or "target_encoder") as its only part."""
        return PublishedFile(self.path, "encoder", {"encoder": self.parts[part]})


def read_published(path: str, classifier_index: int = 0) -> PublishedFile:
    """Reads a `.pt` without running code in it; tensors stay on disk until they are used."""
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of state dicts.")
    # beside parts, a single tensor is a counter
    bare = "classifiers" not in content and not any(isinstance(content.get(name), dict) for name in (*_PARTS, _EMA))
    if bare and any(isinstance(value, torch.Tensor) for value in content.values()):
        content = {"encoder": content}
    stored = {n: n for n in _PARTS if content.get(n) is not None}
    distilled = content.get(_EMA) is not None
    if distilled:
        stored["target_encoder"] = _EMA
        logger.info("%s: %s is taken as the target encoder, as in distilled models", path, _EMA)
    parts = {part: _without_prefixes(content[name], name, path) for part, name in stored.items()}
    if "classifiers" in content:
        parts["probe"] = _choose_classifier(content["classifiers"], classifier_index, path)
    kind = _kind(parts)
    if kind == "action-conditioned" and path.endswith(".pth.tar"):  # RoboJEPA's, unless every name is V-JEPA 2-AC's
        kind = kind if all(map(_ACTION_CONDITIONED.match, parts["predictor"])) else None
    if kind is None:
        inside = "".join(f"; {name!r} holds {_listed(part)}" for name, part in parts.items())
        found = f"{path} is not a published V-JEPA 2 file: it holds {_listed(content)}{inside}"
        raise ValueError(f"{found}.{_robojepa_note(path, content)}")
    left_out = [name for name in content if name not in (*stored.values(), "classifiers")]
    if left_out:
        logger.info("left out of %s: %s", path, _listed(left_out, limit=20))
    return PublishedFile(path, kind, parts, distilled)


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        start = file.read(4)
    packed = start == b"PK\x03\x04"
    if packed and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut short: it starts as a torch file and has no end; download it again.")
    if not packed and start[:1] != b"\x80":  # a pickle, as torch wrote before 1.6
        raise ValueError(f"{path} is not a torch file (it starts with {start!r}); expected a `.pt` or a model folder.")
    try:
        if packed:  # torch itself verifies no checksums; this reads the file once
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # about pickles of another protocol, which then fail anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} holds code or objects{f' ({name[1]})' if name else ''} beside tensors, which could run anything, "
            "and was not opened: if you trust it, save its state dicts alone with torch.save."
            f"{_robojepa_note(path, {})}"
        ) from error
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is damaged: the checksum of {error} differs from that of its bytes; download it again "
            "(torch.save after set_crc32_options(False) writes no checksums: save it with them)."
        ) from error
    except Exception as error:  # whatever torch raises for damaged bytes
        raise ValueError(f"{path} is unreadable: it is damaged or cut short; download it again.") from error


def _without_prefixes(state: Any, part: str, path: str) -> State:
    if not isinstance(state, dict):
        raise ValueError(f"{path}: {part!r} is a {type(state).__name__}; expected a dict of tensors.")
    for name, value in state.items():
        fault = "its name is not a string" if not isinstance(name, str) else _fault_of_weight(value)
        if fault:
            expected = "plain tensors of float16, bfloat16, float32 or float64 under names"
            raise ValueError(f"{path}: {name!r} of {part!r} is not a weight ({fault}); expected {expected}.")
    plain = {re.sub(r"^((module|backbone)\.)+", "", name): value for name, value in state.items()}
    if len(plain) < len(state):
        names = f"{len(state)} names, but {len(plain)} without the prefixes module. and backbone."
        raise ValueError(f"{path}: {part!r} has {names}: save each weight under one name.")
    return plain


def _fault_of_weight(value: Any) -> str | None:
    """Why a value cannot be a weight, so that later steps can trust shapes and dtypes."""
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
    embedded = {"predictor_embed.weight", "predictor_embed.0.weight"} & set(predictor)  # one level, several levels
    if encoders and embedded and "mask_tokens.0" in predictor:
        return "pretraining"
    return "encoder" if encoders and not predictor else None


def _robojepa_note(path: str, content: Mapping) -> str:
    """A further sentence for a `.pth.tar` of unknown names, as which RoboJEPA's checkpoints are released."""
    if not path.endswith(".pth.tar"):
        return ""
    note = " If it is a checkpoint of RoboJEPA (arXiv 2610.10515): its tensor names are not public, so it cannot be "
    note += "converted"
    states, stacks = [content, *(part for part in content.values() if isinstance(part, dict))], {}
    for name, value in (item for state in states for item in state.items()):
        if isinstance(value, torch.Tensor) and 512 in value.shape:
            for number in re.finditer(r"\.(\d+)\.", str(name)):
                stacks.setdefault(name[: number.start()], set()).add(int(number[1]))
    if any(numbers == set(range(7)) for numbers in stacks.values()):
        note += "; the file has 7 blocks of width 512, as its predictor of 22M parameters"
    preset = "VJepa2WorldModelConfig.from_preset(…, predictor='robot-22m')"
    return f"{note}. {preset} has the sizes that are known, to train one."


def _listed(names: Iterable, limit: int = 6) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


_NAMES_OF_2_1 = {"img_mod_embed": "image_modality_embedding", "video_mod_embed": "video_modality_embedding"}
_NAMES = {  # published -> ours, by the first prefix that matches
    "encoder": {
        "patch_embed.": "patch_embeddings.",
        "blocks.": "layer.",
        "norm.": "layernorm.",
        "pos_embed": "position_embeddings",
        **_NAMES_OF_2_1,
        "patch_embed_img.": "image_patch_embeddings.",
        "norms_block.": "level_norms.",
    },
    "predictor": {
        "predictor_embed.": "embed.",
        "predictor_blocks.": "layer.",
        "predictor_norm.": "layernorm.",
        "predictor_proj.": "proj.",
        "predictor_proj_context.": "proj_context.",
        **_NAMES_OF_2_1,
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
_NAMES["target_encoder"] = _NAMES["encoder"]
# Prefixes of the parts in our models
_PREFIXES = {
    "vjepa2_hf_encoder": {"encoder": ""},
    "vjepa2_hf_masked_latent_prediction": {part: f"{part}." for part in _PARTS},
    "vjepa2_hf_world_model": {"encoder": "encoder.", "predictor": "predictor."},
    "vjepa2_hf_video_classification": {"encoder": "encoder.", "probe": ""},
}


def from_published_names(state: Mapping[str, torch.Tensor], part: str) -> State:
    """The weights of a part ("encoder", "target_encoder", "predictor" or "probe") under the names of our module."""
    state, tokens, levels = dict(state), [], number_of_levels(state)
    while f"mask_tokens.{len(tokens)}" in state:
        tokens.append(state.pop(f"mask_tokens.{len(tokens)}"))
    renamed = {_renamed(n, _NAMES[part]).replace(".attn.", ".attention."): value for n, value in state.items()}
    if tokens:
        renamed["mask_tokens"] = torch.stack(tokens)
    for kind in ("weight", "bias"):  # the last level is the encoder's output, normed by `layernorm`
        if levels and f"level_norms.{levels - 1}.{kind}" in renamed:
            renamed[f"layernorm.{kind}"] = renamed.pop(f"level_norms.{levels - 1}.{kind}")
    if "position_embeddings" in renamed:
        renamed["position_embeddings"] = renamed["position_embeddings"][0]  # (1, N, D) there
    return renamed


def to_published_names(state: Mapping[str, torch.Tensor], part: str) -> State:
    """The inverse of `from_published_names`."""
    state = dict(state)
    tokens = state.pop("mask_tokens", ())
    if "position_embeddings" in state:
        state["position_embeddings"] = state["position_embeddings"][None]
    names = {ours: published for published, ours in _NAMES[part].items()}
    if levels := number_of_levels(state, "level_norms."):
        names["layernorm."] = f"norms_block.{levels}."
    renamed = {_renamed(n, names).replace(".attention.", ".attn."): value for n, value in state.items()}
    return {**renamed, **{f"mask_tokens.{i}": token for i, token in enumerate(tokens)}}


def number_of_levels(state: Mapping[str, torch.Tensor], below: str = "norms_block.") -> int:
    """The number of norms below a name: those of V-JEPA 2.1's levels."""
    return len({name.removeprefix(below).split(".")[0] for name in state if name.startswith(below)})


def _renamed(name: str, names: Mapping[str, str]) -> str:
    old = next((old for old in names if name.startswith(old)), "")
    return names.get(old, "") + name.removeprefix(old)


def parts_to_model(parts: Mapping[str, State], model_type: str) -> State:
    """Published parts -> the state dict of a model of ours (views, no copies)."""
    state = {}
    for part, prefix in _PREFIXES[model_type].items():
        state.update({prefix + name: value for name, value in from_published_names(parts[part], part).items()})
    return state


def model_to_parts(state: Mapping[str, torch.Tensor], model_type: str) -> dict[str, State]:
    """The inverse of `parts_to_model`."""
    found = {part: {} for part in _PREFIXES[model_type]}
    for name, value in state.items():
        part, prefix = next(item for item in _PREFIXES[model_type].items() if name.startswith(item[1]))
        found[part][name.removeprefix(prefix)] = value
    return {part: to_published_names(state, part) for part, state in found.items()}


def check_parts(path: str, parts: Mapping[str, State], expected: Mapping[str, State]) -> None:
    """Refuses parts whose names or shapes differ from the expected ones; one error names all of it."""
    found, wanted = ({part: shapes_of(state) for part, state in side.items()} for side in (parts, expected))
    if differences := describe_mismatch(found, wanted):
        advice = "Expected is what the file's other sizes and --set give: change --set, or download the file again."
        raise ValueError(f"{path} does not fit its config: {differences}. {advice}")


_TABLES = {"encoder": "pos_embed", "target_encoder": "pos_embed", "predictor": "predictor_pos_embed"}


def drop_tables(path: str, parts: Mapping[str, State], config: PreTrainedConfig) -> dict[str, State]:
    """The parts without the tables of positions that our models compute; another table is refused."""
    config = getattr(config, "encoder_config", config)
    parts = {part: dict(state) for part, state in parts.items()}
    for part, name in _TABLES.items():
        table = parts.get(part, {}).get(name)
        if table is None or config.position_embedding_type == "learned":
            continue
        if config.position_embedding_type == "rope":
            advice = "--set position_embedding_type=sincos uniform_power=true for V-JEPA 1, which does"
            logger.info("%s: %s of %r is left out: rotary positions do not use it (%s)", path, name, part, advice)
        elif not same_table(table, published_table(config, table.shape[-1])):
            fields = ("crop_size", "frames_per_clip", "uniform_power")
            settings = ", ".join(f"{field}={getattr(config, field)}" for field in fields)
            found = f"{path}: {name} of {part!r} ({tuple(table.shape)})"
            raise ValueError(f"{found} is not the sin-cos table of {settings}: --set what it was trained with.")
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
    """`pos_embed` of a published V-JEPA 1 file: (1, N, size), computed in float64 there."""
    return sincos_table(configured_grid(config), size, config.uniform_power, dtype=torch.float64).float()[None]


def same_table(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two position tables (N, D) are equal but for rounding."""
    tolerance = 1e-5 if found.dtype == torch.float32 else 1e-2
    return found.shape == expected.shape and torch.allclose(found.float(), expected, rtol=0, atol=tolerance)
