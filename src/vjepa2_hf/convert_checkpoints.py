"""Converts checkpoints: published `.pt` files, transformers' `vjepa2` folders, and ours.

    python -m vjepa2_hf.convert_checkpoints vitl.pt vjepa2-large
    python -m vjepa2_hf.convert_checkpoints vjepa2-large vjepa2-large-transformers --to transformers

Names change, values do not. `--help` has an example of every kind.
"""

import argparse
import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2ForVideoClassification, VJEPA2Model
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from .configuration_vjepa2 import VJepa2EncoderConfig
from .hub.model_card import CardFacts
from .hub.published_format import (
    CONFIGS,
    PublishedFile,
    add_tables,
    check_parts,
    model_to_parts,
    parts_to_model,
    published_config,
    read_published,
    settings_to_read_back,
    settle_tables,
    split_settings,
)
from .hub.transformers_format import (
    TRANSFORMERS_MODEL_TYPE,
    config_to_transformers,
    refuse_pixel_predictor,
    to_transformers_state_dict,
)
from .modeling_base import read_config_dict
from .modeling_classification import VJepa2ForVideoClassification
from .modeling_encoder import VJepa2Encoder
from .modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from .modeling_world_model import VJepa2WorldModel
from .training.settings import exit_on_user_error, load_config
from .video_processing_vjepa2 import VJepa2VideoProcessor


logger = logging.getLogger(f"{__package__}.convert_checkpoints")  # `__name__` is "__main__" under `python -m`

_MODELS = {
    model.config_class.model_type: model
    for model in (VJepa2Encoder, VJepa2ForMaskedLatentPrediction, VJepa2WorldModel, VJepa2ForVideoClassification)
}
_EXAMPLES = """
examples:
  a pretraining file: encoder, target encoder and predictor
    python -m vjepa2_hf.convert_checkpoints vitl.pt vjepa2-large
  its target encoder alone
    python -m vjepa2_hf.convert_checkpoints vitl.pt vjepa2-large-encoder --component target_encoder
  sizes that are no released model's: what tensors do not tell has to be given
    python -m vjepa2_hf.convert_checkpoints mine.pt mine --set num_attention_heads=3 predictor_num_attention_heads=3
  V-JEPA 1
    python -m vjepa2_hf.convert_checkpoints vitl16.pth.tar vjepa1-large \\
        --set position_embedding_type=sincos uniform_power=true
  an action-conditioned file: a world model; with the camera's extrinsics in use
    python -m vjepa2_hf.convert_checkpoints vjepa2-ac-vitg.pt vjepa2-ac
    python -m vjepa2_hf.convert_checkpoints vjepa2-ac-vitg.pt vjepa2-ac --set extrinsics_dim=6
  one with other actions: the bounds that planning searches
    python -m vjepa2_hf.convert_checkpoints mine-ac.pt mine-ac --set 'action_low=[-1, -1]' 'action_high=[1, 1]'
  a probe (it holds no encoder); with its labels' names
    python -m vjepa2_hf.convert_checkpoints ssv2-vitl-16x2x3.pt vjepa2-large-ssv2 --encoder vitl.pt
    python -m vjepa2_hf.convert_checkpoints mine-probe.pt mine-probe --encoder vitl.pt --set 'id2label={0: a, 1: b}'
  a transformers folder or Hub id into ours, and back
    python -m vjepa2_hf.convert_checkpoints facebook/vjepa2-vitl-fpc64-256 vjepa2-large
    python -m vjepa2_hf.convert_checkpoints vjepa2-large for-transformers --to transformers
  into the published format (OUT_DIR/model.pt)
    python -m vjepa2_hf.convert_checkpoints runs/pretrain/final published --to published

Everything is written into OUT_DIR.tmp-PID first; only a run that was killed outright (kill -9) leaves such a folder
behind, and it can be deleted.
"""


def convert(
    source: str | os.PathLike,
    out_dir: str | os.PathLike,
    to: str = "ours",
    component: str | None = None,
    encoder: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Converts a checkpoint; what is assumed or left out is logged (info).

    Args:
        source: a published `.pt`, a folder of ours or transformers', or a Hub id.
        out_dir: new or empty folder; its files appear when everything is written. Until then they are in
            `OUT_DIR.tmp-PID` beside it, which a process that was killed outright leaves behind: it can be deleted.
        to: "ours", "transformers" or "published".
        component: "target_encoder" or "encoder": that encoder alone. For a probe or an action-conditioned file, the
            encoder that goes into the model; for a masked-latent model on its way to transformers, the one that goes
            with the predictor.
        encoder: the encoder of a probe or an action-conditioned file that holds none: a `.pt`, folder or Hub id.
        settings: config fields that tensors cannot tell or that are wanted otherwise; the encoder's by their plain
            names.

    Returns:
        The folder.

    Raises:
        ValueError: what was found is not what it has to be, or cannot be expressed in the wanted format.
        OSError: something cannot be read or written.
    """
    if to not in _WRITERS:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(map(repr, _WRITERS))}.")
    out = Path(out_dir).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out_dir} exists and is no empty folder: choose another OUT_DIR.")
    wish = _Wish(to, component, encoder and os.fspath(encoder), dict(settings or {}))
    model, processor = _load(os.fspath(source), wish)
    if not _is_ours(os.fspath(source)):
        model.card_facts = CardFacts(source=f"`{Path(source).name if os.path.exists(source) else source}`")
    with _written_aside(out) as folder:
        _WRITERS[to](model, folder, component)
        if to != "published":
            _write_processor(processor, model.config, folder, to)
    return out


@dataclass
class _Wish:
    """How a source is to be read; see `convert`."""

    to: str
    component: str | None
    encoder: str | None
    settings: dict[str, Any]

    def wants_encoder_alone(self, model_type: str) -> bool:
        if self.component is None or model_type == VJepa2EncoderConfig.model_type:
            return False
        return not (self.to == "transformers" and model_type == "vjepa2_hf_masked_latent_prediction")


def _load(source: str, wish: _Wish) -> tuple[PreTrainedModel, VJepa2VideoProcessor | None]:
    """The model in a source, and the video processor beside it, if there is one."""
    if _is_file(source):
        return _load_published(source, wish), None
    if wish.encoder is not None:
        raise ValueError(f"--encoder is for a published probe or action-conditioned file; {source} is a folder.")
    return _load_folder(source, wish), _load_processor(source, wish.settings)


def _is_file(source: str) -> bool:
    """Tells a file from a folder or a Hub id.

    Raises:
        FileNotFoundError: the name of a file that is not there.
        ValueError: neither file nor folder, but a device or the like.
    """
    if os.path.exists(source):
        if not os.path.isfile(source) and not os.path.isdir(source):
            raise ValueError(f"{source} is neither a file nor a folder: give a published `.pt` or a model folder.")
        return os.path.isfile(source)
    if Path(source).suffix in (".pt", ".pth", ".tar", ".bin", ".safetensors"):
        raise FileNotFoundError(f"There is no file {source!r}; give a published `.pt`, a model folder or a Hub id.")
    return False


# ------------------------------------------------------------------------------------------------ published files


def _load_published(path: str, wish: _Wish) -> PreTrainedModel:
    settings = dict(wish.settings)
    file = read_published(path, settings.get("classifier_index", 0))
    if file.kind == "probe":
        settings.pop("classifier_index", None)
    needs_encoder = file.kind in ("probe", "action-conditioned")
    if wish.encoder is not None:
        if not needs_encoder:
            raise ValueError(
                f"{path} is a published file of kind {file.kind!r}, with an encoder: leave --encoder out."
            )
        return _load_on_encoder(file, wish.encoder, wish.component, settings)
    if not {"encoder", "target_encoder"} & set(file.parts):
        raise ValueError(
            f"{path} holds no encoder: add --encoder with the `.pt` or folder of the one that it was trained on."
        )
    part = file.encoder_part(wish.component)
    alone = file.kind == "encoder" or wish.wants_encoder_alone(CONFIGS[file.kind].model_type)
    if alone and not needs_encoder:
        file, part = file.encoder_alone(part), "encoder"
    return _assembled(file, published_config(file, part, settings), part)


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
        encoder = _assembled(encoders, published_config(encoders, "encoder", of_encoder), "encoder")
    else:
        encoder = _load_folder(path, _Wish("ours", component, None, of_encoder), VJepa2Encoder)
    config = published_config(file, None, settings, encoder.config)
    state = model_to_parts(encoder.state_dict(), encoder.config.model_type)["encoder"]
    return _assembled(PublishedFile(file.path, file.kind, {**file.parts, "encoder": state}), config, "encoder")


def _assembled(file: PublishedFile, config: PreTrainedConfig, part: str) -> PreTrainedModel:
    """A model of this config with the weights of a file; they stay on disk until they are written."""
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
    parts = settle_tables(file.path, parts, config)
    with torch.device("meta"):
        model = _MODELS[config.model_type](config)
    expected = model_to_parts(model.state_dict(), config.model_type)
    check_parts(file.path, parts, expected)
    state = parts_to_model({name: parts[name] for name in expected}, config.model_type)
    model.load_state_dict(_unshared(_in_one_dtype(state)), assign=True)
    return model


def _in_one_dtype(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A saved model has one dtype: the narrower tensors of a mixture are widened, which changes no value."""
    found = {value.dtype for value in state.values()}
    if len(found) == 1:
        return state
    widest = reduce(torch.promote_types, found)
    logger.info("weights of %s are all written as %s", ", ".join(sorted(map(str, found))), widest)
    return {name: value.to(widest) for name, value in state.items()}


def _unshared(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors refuses weights that share memory, as those of an encoder and its copy do."""
    seen, result = set(), {}
    for name, value in state.items():
        storage = value.untyped_storage().data_ptr()
        result[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return result


# ------------------------------------------------------------------------------------------------ folders


def _load_folder(source: str, wish: _Wish, model_class: type | None = None) -> PreTrainedModel:
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise ValueError(f"{source} is a folder without config.json; expected a model's, or a published `.pt`.")
    file = read_config_dict(source, {})
    class_there = _class_in_folder(source, file)
    model_class = model_class or class_there
    options = {}
    if wish.wants_encoder_alone(model_class.config_class.model_type):
        model_class = VJepa2Encoder
    if model_class is VJepa2Encoder and file["model_type"] != TRANSFORMERS_MODEL_TYPE:
        options["component"] = wish.component
    config = model_class.config_class.from_pretrained(source)
    own, of_encoder = split_settings(wish.settings, model_class.config_class)
    if wish.settings:
        fields = {**config.to_dict(), **own}
        if of_encoder:
            fields["encoder_config"] = {**fields["encoder_config"], **of_encoder}
        config = model_class.config_class.from_dict(fields)
    with contextlib.nullcontext() if model_class is VJepa2Encoder else _every_weight_counted():
        model, info = model_class.from_pretrained(
            source, config=config, dtype="auto", output_loading_info=True, **options
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{source} lacks {len(missing)} weights of a {model_class.__name__}, such as {missing[0]}.")
    if info["unexpected_keys"]:
        unexpected = sorted(info["unexpected_keys"])
        raise ValueError(
            f"{source} holds {len(unexpected)} weights without a place in the model, such as {unexpected[0]}: with "
            "--set or without, its config is of a smaller or another model."
        )
    return model


@contextlib.contextmanager
def _every_weight_counted() -> Iterator[None]:
    """What an encoder leaves out of the folders of larger models, transformers leaves unmentioned in a larger model
    with an encoder inside, too: its own weights."""
    left_out = VJepa2Encoder._keys_to_ignore_on_load_unexpected
    VJepa2Encoder._keys_to_ignore_on_load_unexpected = None
    try:
        yield
    finally:
        VJepa2Encoder._keys_to_ignore_on_load_unexpected = left_out


def _class_in_folder(source: str, file: Mapping[str, Any]) -> type[PreTrainedModel]:
    model_type, architectures = file.get("model_type"), file.get("architectures") or []
    if model_type in _MODELS:
        return _MODELS[model_type]
    if model_type != TRANSFORMERS_MODEL_TYPE:
        raise ValueError(
            f"{source} holds a model of type {model_type!r}; expected {TRANSFORMERS_MODEL_TYPE!r} (transformers) or "
            f"one of ours: {', '.join(_MODELS)}."
        )
    if "VJEPA2ForVideoClassification" in architectures:
        logger.info("%s: the predictor, which classification does not use, is left out", source)
        return VJepa2ForVideoClassification
    if file.get("pred_num_hidden_layers") == 0:
        logger.info("%s has a predictor without layers, a placeholder: the encoder alone is taken", source)
        return VJepa2Encoder
    return VJepa2ForMaskedLatentPrediction


def _is_ours(source: str) -> bool:
    return not os.path.isfile(source) and read_config_dict(source, {}).get("model_type") in _MODELS


def _load_processor(source: str, settings: Mapping[str, Any]) -> VJepa2VideoProcessor | None:
    if "crop_size" in settings:
        return None
    try:
        return VJepa2VideoProcessor.from_pretrained(source)
    except OSError:  # none there
        return None


# ------------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, or fills it, and goes when not."""
    aside = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        yield aside
        _put_in_place(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, out: Path) -> None:
    """Renames a folder, or moves its files into an empty one that is there already (it may be somebody's working
    directory, or a mount); config.json, which makes it a model's, comes last."""
    try:
        if not out.exists():
            aside.rename(out)
            return
    except OSError:
        if not out.exists():
            raise
    if any(out.iterdir()):
        raise FileExistsError(
            f"another process wrote {out} meanwhile: its files stay, and the result of this conversion was removed."
        )
    moved = []
    try:
        for file in sorted(aside.iterdir(), key=lambda file: file.name == "config.json"):
            moved.append(out / file.name)
            shutil.move(file, moved[-1])
    except BaseException:
        for file in moved:
            file.unlink(missing_ok=True)
        raise


def _write_processor(processor: VJepa2VideoProcessor | None, config: PreTrainedConfig, folder: Path, to: str) -> None:
    """Beside the model: the source's processor, or the published one for the config's crop."""
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


def _write_ours(model: PreTrainedModel, folder: Path, component: str | None) -> None:
    model.save_pretrained(folder)


def _write_transformers(model: PreTrainedModel, folder: Path, component: str | None) -> None:
    """transformers' model with our weights. Where ours has no predictor, theirs gets one without layers whose weights
    are 0: it predicts 0, and nobody takes it for a trained one."""
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


_PUBLISHED_ENCODER = {"attention_type": "joint", "hidden_act": "gelu", "layer_norm_eps": 1e-6}
_PUBLISHED_HEADS = {
    "vjepa2_hf_world_model": {
        "state_type": "tokens",
        "normalize_latents": "layer",
        "state_fitted": False,
        "freeze_encoder": True,
        "action_type": "continuous",
        "reward_head": False,
        "stochastic_dim": 0,
        "dynamics_type": "transformer",
        "action_fusion": "concat",
        "action_encoder_num_layers": 1,
        "residual": False,
        "predictor_position_embedding_type": "rope",
        "action_mean": None,
        "action_std": None,
        "proprio_mean": None,
        "proprio_std": None,
    },
    "vjepa2_hf_video_classification": {
        "pooler_type": "attentive",
        "encoder_layers": None,
        "pooler_time_positions": False,
        "pooler_space_positions": False,
        "labels_per_frame": False,
        "num_neighbors": 0,
        "predicted_frames": 0,
    },
}


def _write_published(model: PreTrainedModel, folder: Path, component: str | None) -> None:
    """`model.pt` with the published layout. Where our model has one encoder, it stands under both encoders' names,
    which costs no space: the published programs read one or the other."""
    config, kinds = model.config, {c.model_type: kind for kind, c in CONFIGS.items()}
    kind = kinds[config.model_type]
    _refuse_unpublished(getattr(config, "encoder_config", config), _PUBLISHED_ENCODER)
    _refuse_unpublished(config, _PUBLISHED_HEADS.get(config.model_type, {}))
    if kind == "pretraining":
        refuse_pixel_predictor(config, "the published code")
    parts = add_tables(model_to_parts(model.state_dict(), config.model_type), config)
    prefix = "module." if kind in ("action-conditioned", "probe") else "module.backbone."
    content = {part: {prefix + n: _compact(v) for n, v in state.items()} for part, state in parts.items()}
    content.setdefault("target_encoder", content["encoder"])
    if kind == "probe":
        content["classifiers"] = [content.pop("probe")]
    torch.save(content, folder / "model.pt")
    settings = settings_to_read_back(PublishedFile(str(folder / "model.pt"), kind, parts), config)
    if settings:
        values = (shlex.quote(f"{n}={json.dumps(v, separators=(',', ':'))}") for n, v in settings.items())
        logger.info("a published file holds tensors alone; to read this one back: --set %s", " ".join(values))


def _refuse_unpublished(config: PreTrainedConfig, expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, but the published code always computes with {value!r} there: "
                "the model stays in our format."
            )


def _compact(value: torch.Tensor) -> torch.Tensor:
    """A tensor that shares no storage: torch.save writes whole storages."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


_WRITERS = {"ours": _write_ours, "transformers": _write_transformers, "published": _write_published}


# ------------------------------------------------------------------------------------------------ command line


@dataclass
class _Settings:
    """What `--set` gives, read as the scripts read their arguments."""

    set: dict[str, Any] = field(default_factory=dict)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vjepa2_hf.convert_checkpoints",
        description=__doc__.partition("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="published .pt, model folder (ours, transformers'), or Hub id"
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", help="new folder")
    parser.add_argument("--to", choices=tuple(_WRITERS), default="ours", help="format to write (default: ours)")
    parser.add_argument("--component", choices=("target_encoder", "encoder"), help="the encoder to take")
    parser.add_argument("--encoder", metavar="PATH", help="encoder of a file without: .pt, folder or Hub id")
    parser.add_argument(
        "--set", metavar="key=value", nargs="+", action="extend", default=[], help="config fields tensors cannot tell"
    )
    arguments = parser.parse_args(argv)
    settings = load_config(_Settings, overrides=[f"set.{setting}" for setting in arguments.set]).set
    with _notes_on_stdout(), _sigterm_raises():
        folder = convert(
            arguments.source, arguments.out_dir, arguments.to, arguments.component, arguments.encoder, settings
        )
        logger.info("written: %s", folder)


@contextlib.contextmanager
def _notes_on_stdout() -> Iterator[None]:
    """What the package logs while it converts, as plain lines."""
    package, handler = logging.getLogger(__package__), logging.StreamHandler(sys.stdout)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM as an exception, so that half a conversion is cleared away."""

    def end(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


if __name__ == "__main__":
    main()
