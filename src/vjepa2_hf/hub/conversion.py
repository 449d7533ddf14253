"""Conversion between the published format, transformers' `vjepa2` folders and ours: names change, values do not."""

import contextlib
import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2ForVideoClassification, VJEPA2Model
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from ..configuration_vjepa2 import OUTPUT_LEVELS, VJepa2EncoderConfig
from ..data.files import apply_umask
from ..modeling_base import read_config_dict
from ..modeling_classification import VJepa2ForVideoClassification
from ..modeling_encoder import VJepa2Encoder
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..modeling_world_model import VJepa2WorldModel
from ..specs import refuse
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .inferred_config import CONFIGS, published_config, settings_to_read_back, split_settings
from .mismatch import describe_loading
from .model_card import CardFacts
from .published_format import (
    PublishedFile,
    add_tables,
    check_parts,
    drop_tables,
    model_to_parts,
    parts_to_model,
    read_published,
)
from .transformers_format import (
    ONLY_OURS,
    TRANSFORMERS_MODEL_TYPE,
    config_to_transformers,
    refuse_other_values,
    refuse_pixel_predictor,
    to_transformers_state_dict,
)


logger = logging.getLogger(__name__)

FORMATS = ("ours", "transformers", "published")
_MODELS = {
    model.config_class.model_type: model
    for model in (VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2WorldModel, VJepa2ForVideoClassification)
}


def convert(
    source: str | os.PathLike,
    out_dir: str | os.PathLike,
    to: str = "ours",
    component: str | None = None,
    encoder: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Converts a checkpoint and returns the new folder; what is assumed or left out is logged (info).

    Args:
        source: a published `.pt`, a folder of ours or transformers', or a Hub id.
        out_dir: new or empty folder. Its files appear when all are written; until then they are in `OUT_DIR.tmp-PID`
            beside it, which a killed process leaves behind.
        to: "ours", "transformers" or "published".
        component: "target_encoder" or "encoder": that encoder alone. For a probe or an action-conditioned file, the
            encoder that goes into the model; for a masked-latent model written for transformers, the one that goes
            with the predictor.
        encoder: the encoder of a probe or an action-conditioned file that holds none: a `.pt`, folder or Hub id.
        settings: config fields that cannot be inferred from tensors, or that replace the inferred ones; the encoder's
            by their plain names.

    Raises:
        ValueError: the source is malformed, or cannot be expressed in the wanted format.
        OSError: a file is unreadable or cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(map(repr, FORMATS))}.")
    for name, path in {"source": source, "encoder": encoder}.items():
        if not isinstance(path, (str, os.PathLike)) and (path is not None or name == "source"):
            refuse(name, path, "a file, a folder or a Hub id")
    if settings is not None and not isinstance(settings, Mapping):
        refuse("settings", settings, "a dict of config fields, or None")
    source, out = os.fspath(source), Path(out_dir).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out_dir} exists and is not an empty folder: choose another OUT_DIR.")
    settings, published = dict(settings or {}), _is_file(source)
    if published:
        model, processor = _load_published(source, to, component, encoder and os.fspath(encoder), settings), None
    elif encoder is not None:
        raise ValueError(f"--encoder is for a published probe or action-conditioned file; {source} is a folder.")
    else:
        model, processor = _load_folder(source, to, component, settings), _load_processor(source, settings)
    if published or read_config_dict(source, {}).get("model_type") not in _MODELS:
        model.card_facts = CardFacts(source=f"`{Path(source).name if os.path.exists(source) else source}`")
    _refuse_not_finite(source, model)
    with _written_aside(out) as folder:
        if to == "published":
            _write_published(model, folder)
        else:
            model.save_pretrained(folder) if to == "ours" else _write_transformers(model, folder, component)
            _write_processor(processor, model.config, folder, to)
    return out


def _refuse_not_finite(source: str, model: PreTrainedModel) -> None:
    """Refuses weights that are NaN or infinite: every output of such a model is NaN."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = value.numel() - int(torch.isfinite(value).sum())
            raise ValueError(
                f"{source}: {bad} of the {value.numel()} values of {name} are NaN or infinite, as after a training "
                "that diverged or a damaged file; convert an earlier checkpoint."
            )


def _takes_encoder_alone(model_type: str, to: str, component: str | None) -> bool:
    with_predictor = to == "transformers" and model_type == "vjepa2_hf_masked_latent_prediction"
    return component is not None and model_type != VJepa2EncoderConfig.model_type and not with_predictor


def _is_file(source: str) -> bool:
    """True for a file, False for a folder or a Hub id; a missing file or a device is refused."""
    path = Path(source)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{source} is neither a file nor a folder: give a published `.pt` or a model folder.")
    if not path.exists() and path.suffix in (".pt", ".pth", ".tar", ".bin", ".safetensors"):
        raise FileNotFoundError(f"There is no file {source!r}; give a published `.pt`, a model folder or a Hub id.")
    return path.is_file()


def _load_published(path: str, to: str, component: str | None, encoder: str | None, settings: dict) -> PreTrainedModel:
    file = read_published(path, settings.get("classifier_index", 0))
    if file.kind == "probe":
        settings.pop("classifier_index", None)
    needs_encoder = file.kind in ("probe", "action-conditioned")
    if encoder is not None:
        if not needs_encoder:
            raise ValueError(f"{path} is a published file of kind {file.kind!r} with an encoder: leave --encoder out.")
        return _load_on_encoder(file, encoder, component, settings)
    part = file.encoder_part(component)
    if part is None:
        raise ValueError(f"{path} holds no encoder: add --encoder with the one that it was trained on.")
    alone = file.kind == "encoder" or _takes_encoder_alone(CONFIGS[file.kind].model_type, to, component)
    if alone and not needs_encoder:
        file, part = file.encoder_alone(part), "encoder"
    return _assemble(file, published_config(file, part, settings), part)


def _load_on_encoder(file: PublishedFile, path: str, component: str | None, settings: dict) -> PreTrainedModel:
    """The model of a file around an encoder from elsewhere."""
    _, of_encoder = split_settings(settings, CONFIGS[file.kind])
    for name in {"encoder", "target_encoder"} & set(file.parts):
        logger.info("left out of %s: %s, since --encoder gives another", file.path, name)
    if _is_file(path):
        encoders = read_published(path)
        part = encoders.encoder_part(component)
        if part is None:
            raise ValueError(f"{path} holds no encoder either: give --encoder a file or folder that does.")
        encoders = encoders.encoder_alone(part)
        encoder = _assemble(encoders, published_config(encoders, "encoder", of_encoder), "encoder")
    else:
        encoder = _load_folder(path, "ours", component, of_encoder, VJepa2Encoder)
    config = published_config(file, None, settings, encoder.config)
    state = model_to_parts(encoder.state_dict(), encoder.config.model_type)["encoder"]
    return _assemble(PublishedFile(file.path, file.kind, {**file.parts, "encoder": state}), config, "encoder")


def _assemble(file: PublishedFile, config: PreTrainedConfig, part: str) -> PreTrainedModel:
    """A model of this config with the weights of a file, which stay on disk until they are written."""
    parts = dict(file.parts)
    if config.model_type == "vjepa2_hf_masked_latent_prediction":
        for name in ("encoder", "target_encoder"):
            if name not in parts:
                logger.info("%s holds no %s: it starts as a copy of %s", file.path, name, part)
                parts[name] = parts[part]
    elif part != "encoder":
        if "encoder" in parts:
            logger.info("left out of %s: encoder, since the target encoder is taken", file.path)
        parts["encoder"] = parts.pop(part)
    parts = drop_tables(file.path, parts, config)
    with torch.device("meta"):
        model = _MODELS[config.model_type](config)
    expected = model_to_parts(model.state_dict(), config.model_type)
    check_parts(file.path, parts, expected)
    state = parts_to_model({name: parts[name] for name in expected}, config.model_type)
    found = {value.dtype for value in state.values()}
    if len(found) > 1:  # a saved model has one dtype; widening changes no value
        widest = reduce(torch.promote_types, found)
        logger.info("weights of %s are all written as %s", ", ".join(sorted(map(str, found))), widest)
        state = {name: value.to(widest) for name, value in state.items()}
    model.load_state_dict(_without_shared_memory(state), assign=True)
    return model


def _without_shared_memory(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clones tensors that share memory: safetensors refuses them, and torch.save writes whole storages."""
    seen, result = set(), {}
    for name, value in state.items():
        storage = value.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != value.nbytes
        seen.add(storage.data_ptr())
        result[name] = value.clone() if shared else value
    return result


def _load_folder(
    source: str, to: str, component: str | None, settings: dict, model_class: type | None = None
) -> PreTrainedModel:
    names = ("config.json", "progress.json")  # of a model, or of a training checkpoint
    if os.path.isdir(source) and not any(os.path.isfile(os.path.join(source, name)) for name in names):
        raise ValueError(f"{source} is a folder without config.json; expected a model's, or a published `.pt`.")
    file = read_config_dict(source, {})
    class_in_folder = _class_in_folder(source, file)
    model_class = model_class or class_in_folder
    if _takes_encoder_alone(model_class.config_class.model_type, to, component):
        model_class = VJepa2Encoder
    config = model_class.config_class.from_pretrained(source)
    own, of_encoder = split_settings(settings, model_class.config_class)
    if settings:
        fields = {**config.to_dict(), **own}
        if of_encoder:
            fields["encoder_config"] = {**fields["encoder_config"], **of_encoder}
        config = model_class.config_class.from_dict(fields)
    loading = {"config": config, "dtype": "auto", "output_loading_info": True, "allow_missing": True}
    if model_class is VJepa2Encoder and file["model_type"] != TRANSFORMERS_MODEL_TYPE:
        loading["component"] = component
    model, info = model_class.from_pretrained(source, **loading)
    if missing := sorted(info["missing_keys"]):
        lacking = f"{source} lacks {len(missing)} weights of a {model_class.__name__}, such as {missing[0]}"
        raise ValueError(f"{lacking}: {describe_loading(model, info)}.")
    if unexpected := sorted(info["unexpected_keys"]):
        found = f"{len(unexpected)} weights that the model does not have, such as {unexpected[0]}"
        differences = describe_loading(model, info)
        raise ValueError(f"{source} holds {found}: its config, or --set, is of another model ({differences}).")
    return model


def _class_in_folder(source: str, file: Mapping[str, Any]) -> type[PreTrainedModel]:
    model_type, architectures = file.get("model_type"), file.get("architectures") or []
    if model_type in _MODELS:
        return _MODELS[model_type]
    if model_type != TRANSFORMERS_MODEL_TYPE:
        expected = f"{TRANSFORMERS_MODEL_TYPE!r} (transformers) or one of ours: {', '.join(_MODELS)}."
        raise ValueError(f"{source} holds a model of type {model_type!r}; expected {expected}")
    if "VJEPA2ForVideoClassification" in architectures:
        logger.info("%s: the predictor, which classification does not use, is left out", source)
        return VJepa2ForVideoClassification
    if file.get("pred_num_hidden_layers") == 0:
        logger.info("%s has a predictor without layers, a placeholder: the encoder alone is taken", source)
        return VJepa2Encoder
    return VJepa2ForMaskedLatentPrediction


def _load_processor(source: str, settings: Mapping[str, Any]) -> VJepa2VideoProcessor | None:
    with contextlib.suppress(OSError):  # the folder has none
        return None if "crop_size" in settings else VJepa2VideoProcessor.from_pretrained(source)


@contextlib.contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out`, or fills it where it is an empty folder; removed after an error."""
    out = Path(os.path.realpath(out))  # a folder cannot be renamed to a link
    aside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    aside.mkdir(parents=True)
    moved = []
    try:
        yield aside
        apply_umask(aside)
        if not out.exists():
            aside.rename(out)
            return
        if any(out.iterdir()):
            kept = "its files stay; the result of this conversion was removed"
            raise FileExistsError(f"another process wrote {out} meanwhile: {kept}.")
        # a working directory or a mount cannot be replaced; config.json, which makes it a model's folder, comes last
        for file in sorted(aside.iterdir(), key=lambda file: file.name == "config.json"):
            moved.append(out / file.name)
            shutil.move(file, moved[-1])
        moved.clear()
    finally:
        for file in moved:  # after an error
            file.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)


def _write_processor(processor: VJepa2VideoProcessor | None, config: PreTrainedConfig, folder: Path, to: str) -> None:
    """The source's processor, or the published one for the config's crop."""
    if processor is None:
        crop = getattr(config, "encoder_config", config).crop_size
        # the world model's frames keep their border: the short side becomes the crop's
        size = {"size": {"shortest_edge": crop}} if config.model_type == "vjepa2_hf_world_model" else {}
        processor = VJepa2VideoProcessor(crop_size=crop, **size)
    if to == "transformers":
        theirs = VJEPA2VideoProcessor(**processor.to_dict())
        if theirs.size != processor.size:
            sizes = [{name: n for name, n in dict(p.size).items() if n} for p in (theirs, processor)]
            logger.info("transformers' video processor resizes to %s, not to %s", *sizes)
        processor = theirs
    processor.save_pretrained(folder)


def _write_transformers(model: PreTrainedModel, folder: Path, component: str | None) -> None:
    """transformers' model with our weights. Where ours has no predictor, theirs gets one without layers whose weights
    are 0: it predicts 0, so that nobody takes it for a trained one."""
    config, state = config_to_transformers(model.config), model.state_dict()
    if model.config.model_type == "vjepa2_hf_masked_latent_prediction":
        kept, dropped = ("encoder", "target_encoder") if component == "encoder" else ("target_encoder", "encoder")
        logger.info("transformers' model has one encoder: %s is written, %s is left out", kept, dropped)
        state = {name: value for name, value in state.items() if not name.startswith(f"{dropped}.")}
        state = {name.replace(f"{kept}.", "encoder.", 1): value for name, value in state.items()}
    else:
        logger.info("transformers' model needs a predictor: one without layers is written, whose output is 0")
        config.update(dict.fromkeys(("pred_hidden_size", "pred_num_attention_heads", "pred_num_mask_tokens"), 1))
        config["pred_num_hidden_layers"] = 0
    state = to_transformers_state_dict(state, model.config.model_type)
    classifies = model.config.model_type == "vjepa2_hf_video_classification"
    with torch.device("meta"):
        theirs = (VJEPA2ForVideoClassification if classifies else VJEPA2Model)(VJEPA2Config(**config))
    dtype = next(iter(state.values())).dtype
    for name, value in theirs.state_dict().items():
        if name not in state and "predictor." in name:
            state[name] = torch.zeros(value.shape, dtype=dtype)
    theirs.load_state_dict(state, assign=True)
    theirs.save_pretrained(folder)


# Fields of which the published code has our default alone
_UNPUBLISHED = {
    "vjepa2_hf_encoder": ("attention_type", "hidden_act", "layer_norm_eps", "patch_stem"),
    "vjepa2_hf_world_model": (
        "state_type", "normalize_latents", "state_fitted", "freeze_encoder", "action_type", "reward_head",
        "distance_head", "stochastic_dim", "dynamics_type", "action_fusion", "action_encoder_num_layers", "residual",
        "predictor_position_embedding_type", "action_mean", "action_std", "proprio_mean", "proprio_std", "num_views",
        "num_embodiments", "state_levels", "predictor_num_key_value_heads", "macro_action_dim",
    ),
    "vjepa2_hf_video_classification": ONLY_OURS["vjepa2_hf_video_classification"],
}  # fmt: skip


def _refuse_half_of_2_1(config: PreTrainedConfig, kind: str) -> None:
    """Refuses some parts of V-JEPA 2.1 without the others, and where the published code has no such encoder."""
    encoder = getattr(config, "encoder_config", config)
    fields = {name: getattr(encoder, name) for name in ("image_tubelet_size", "modality_embeddings", "output_levels")}
    if kind == "pretraining":
        fields |= {name: getattr(config, name) for name in ("predict_context", "predictor_modality_embeddings")}
        fields["predictor_levels"] = config.predictor_levels or config.target_type == "teacher"  # of its last level
    if not any(fields.values()) and encoder.rope_grid_size is None:
        return
    if kind == "action-conditioned":
        raise ValueError("the published V-JEPA 2-AC code has no V-JEPA 2.1 encoder: the model stays in our format.")
    levels = OUTPUT_LEVELS.get(encoder.num_hidden_layers, encoder.output_levels)
    if not all(fields.values()) or encoder.output_levels != levels:
        published = {**dict.fromkeys(fields, True), "image_tubelet_size": 1, "output_levels": levels}
        values, wanted = (", ".join(f"{n}={v!r}" for n, v in each.items()) for each in (fields, published))
        advice = f"the published code has {wanted} together (V-JEPA 2.1) or none: keep our format."
        raise ValueError(f"the config has {values}; {advice}")


def _write_published(model: PreTrainedModel, folder: Path) -> None:
    """Writes `model.pt`. A single encoder stands under both encoders' names, which takes no space: the published
    programs read one or the other."""
    config = model.config
    kind = next(kind for kind, config_class in CONFIGS.items() if isinstance(config, config_class))
    for part in (getattr(config, "encoder_config", config), config):
        refuse_other_values(part, "the published code", _UNPUBLISHED.get(part.model_type, ()))
    _refuse_half_of_2_1(config, kind)
    if kind == "pretraining":
        refuse_pixel_predictor(config, "the published code")
    parts = add_tables(model_to_parts(model.state_dict(), config.model_type), config)
    prefix = "module." if kind in ("action-conditioned", "probe") else "module.backbone."
    content = {
        part: {prefix + name: value for name, value in _without_shared_memory(state).items()}
        for part, state in parts.items()
    }
    distilled = kind == "pretraining" and config.target_type == "teacher"
    if distilled:  # its target_encoder would be the teacher
        content["ema_encoder"] = content.pop("target_encoder")
    elif kind == "encoder" and config.output_levels:  # where programs for ViT-B and ViT-L of V-JEPA 2.1 look
        content["ema_encoder"] = content["encoder"]
    if not distilled:
        content.setdefault("target_encoder", content["encoder"])
    if kind == "probe":
        content["classifiers"] = [content.pop("probe")]
    torch.save(content, folder / "model.pt")
    settings = settings_to_read_back(PublishedFile(str(folder / "model.pt"), kind, parts, distilled), config)
    if settings:
        values = (shlex.quote(f"{n}={json.dumps(v, separators=(',', ':'))}") for n, v in settings.items())
        logger.info("a published file holds tensors alone; to read this one back: --set %s", " ".join(values))
