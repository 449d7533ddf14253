"""Model cards: the README.md that `save_pretrained` and `push_to_hub` of every model write beside the weights.

    model.card_facts = CardFacts(license="mit", data="560 episodes")    # what the model cannot know itself
    model.save_pretrained("mine")                                       # mine/README.md
    python -m vjepa2_hf.hub.model_card model_cards                          # cards of the published models

A card says what the config, the weights and the run's own files say: `metrics.jsonl` and `config.yaml` in the folder
above `final/`, or above the `final/` that the model was loaded from. Where the weights come from, and the data, go
from card to card: each notes them in its metadata under `vjepa2_hf`, and the next is told so by the folder that the
model was loaded from. A README.md that somebody wrote is left alone; one of ours carries a comment and is written
anew.
"""

import argparse
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from ..configuration_vjepa2 import VERSION


logger = logging.getLogger(__name__)

README = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
MARK = "<!-- Written by vjepa2_hf"
NOTES = "vjepa2_hf"  # in a card's metadata: `source` and `data`, for the card of whoever loads the folder

# By model type: what the Hub files a model under, and what else it is found by
_TASKS = {
    "vjepa2_hf_encoder": ("feature-extraction", ["video-encoder"]),
    "vjepa2_hf_masked_latent_prediction": ("feature-extraction", ["video-encoder", "pretraining"]),
    "vjepa2_hf_world_model": ("robotics", ["world-model", "planning"]),
    "vjepa2_hf_video_classification": ("video-classification", []),
    "vjepa2_hf_pixel_decoder": (None, ["world-model", "visualization"]),
}
_TAGS = ["vjepa2_hf", "v-jepa-2", "video"]

# Of a logged step: settings and speeds, which say nothing of what was learned
_SETTINGS = {"step", "learning_rate", "ema_momentum", "weight_decay", "data_wait"}
_SPEED = "_per_second"
TABLE_ROWS, TABLE_COLUMNS = 6, 6

# transformers' own card of a model that it pushes, which ours replaces
_STOCK_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


@dataclass(frozen=True)
class CardFacts:
    """What a model cannot know about itself; set it as `model.card_facts`.

    Attributes:
        license: of the weights, by the Hub's identifier ("apache-2.0"). Without it: that of the card which is
            replaced, or of the local folder that the model was loaded from; or the card says that none is stated.
        source: the published checkpoint that the weights were converted from; without it, that of the card of the
            folder that the model was loaded from, or this folder or Hub id by its name.
        data: what the model was trained on; without it, the `data` of the run's config.yaml, or of that card.
        run_dir: folder with the run's metrics.jsonl; without it, it is looked for above `final/`.
        title: heading of the card; without it, the name of the folder or of the run, if it has one, or the class's.

    Raises:
        FileNotFoundError: `run_dir` holds no metrics.jsonl.
    """

    license: str | None = None
    source: str | None = None
    data: str | None = None
    run_dir: str | os.PathLike | None = None
    title: str | None = None

    def __post_init__(self):
        if self.run_dir is not None and not (Path(self.run_dir) / "metrics.jsonl").is_file():
            raise FileNotFoundError(
                f"CardFacts got run_dir={str(self.run_dir)!r}, which holds no metrics.jsonl; give a run's folder."
            )


# --- Writing


def write_model_card(
    model, folder: str | os.PathLike, load_from: str = ".", sizes: Mapping[str, int] | None = None
) -> Path | None:
    """Writes the README.md of a model's folder; says in the log (info) why, where it does not.

    Args:
        model: any of the package's; its `card_facts` are used.
        folder: where its weights are.
        load_from: what the card's code loads: the folder itself, or a Hub id.
        sizes: numbers in every weight by its name, where the model at hand holds a part of them only.

    Returns:
        The file, or `None`: somebody else wrote the one that is there, the folder holds an adapter and no model, or
        the template is missing (in code that was exported to the Hub).
    """
    path = Path(folder) / README
    if not path.parent.is_dir():
        return None
    previous = path.read_text(encoding="utf-8") if path.is_file() else None
    if previous is not None and not is_generated(previous):
        logger.info("%s was written by somebody: it stays as it is", path)
        return None
    if getattr(model, "_hf_peft_config_loaded", False):
        logger.info("no model card in %s: it holds an adapter, and a card describes a model", folder)
        return None
    if not TEMPLATE.is_file():
        logger.info("no model card in %s: %s is missing", folder, TEMPLATE.name)
        return None
    card = build_model_card(model, folder, load_from, sizes, _metadata_of(previous))
    path.write_text(str(card), encoding="utf-8")
    return path


def users_card(folder: str | os.PathLike) -> str | None:
    """The README.md of a folder if somebody wrote it, or `None`."""
    path = Path(folder) / README
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    return None if text is None or is_generated(text) else text


def is_generated(text: str) -> bool:
    """Whether a card is one of ours, or the one that transformers writes where there is none."""
    return MARK in text or (text.startswith("---") and _body(text) == _body(_stock_card()))


def _stock_card() -> str:
    return str(ModelCard.from_template(ModelCardData(library_name="x"), model_description=_STOCK_DESCRIPTION))


def _body(text: str) -> str:
    """A card without its metadata."""
    return text.partition("\n---")[2].strip()


def _metadata_of(text: str | None) -> dict[str, Any]:
    """What stands above a card's text, as the Hub reads it."""
    if text is None:
        return {}
    try:
        metadata = yaml.safe_load(text.removeprefix("---").partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


# --- Content


def build_model_card(
    model,
    folder: str | os.PathLike | None = None,
    load_from: str = ".",
    sizes: Mapping[str, int] | None = None,
    previous: Mapping[str, Any] | None = None,
    published: bool = False,
) -> ModelCard:
    """The card of a model.

    Args:
        model, folder, load_from, sizes: as for `write_model_card`.
        previous: metadata of a card that this one replaces: what a user may have set on the Hub's page.
        published: a card for everybody's conversion of a released file, not for weights at hand.
    """
    config, previous = model.config, previous or {}
    facts = model.card_facts or CardFacts()
    found = find_run(model, folder)
    run = _describe_run(found)
    origin = _origin_of(model, folder, found)
    data = _data_of(facts, origin, run)
    license = facts.license or previous.get("license") or origin.license
    pipeline_tag, tags = _TASKS[config.model_type]
    own_tags = [*_TAGS, *tags]
    known = {tag for _, others in _TASKS.values() for tag in others} | {*_TAGS}
    notes = {name: value for name, value in (("source", origin.source), ("data", data)) if value}
    metadata = ModelCardData(
        library_name="transformers",  # the Hub's "Use this model" then shows from_pretrained
        license=license,
        pipeline_tag=pipeline_tag,
        base_model=origin.base_model,
        tags=own_tags + [tag for tag in previous.get("tags") or [] if tag not in known],
        **({NOTES: notes} if notes else {}),
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        version=VERSION,
        kind=config.model_type.removeprefix("vjepa2_hf_"),
        title=facts.title or _title(folder, load_from) or type(model).__name__,
        config=config,
        encoder=getattr(config, "encoder_config", config),
        facts=_facts_of(model, sizes),
        run=run,
        data=data,
        data_is_whole=bool(facts.data or run and run["config"].get("data")),
        origin=origin,
        license=license,
        load_from=load_from,
        auto_class=next((name for name in getattr(config, "auto_map", None) or () if "Model" in name), None),
        published=published,
    )
    card.text += "\n"  # which jinja takes away
    return card


def _title(folder: str | os.PathLike | None, load_from: str) -> str | None:
    """The name of the Hub's repository or of the folder that is written; while a card is pushed, `folder` is a
    temporary one."""
    if load_from != ".":
        return load_from.rpartition("/")[2]
    return folder_name(folder) if folder else None


def folder_name(folder: str | os.PathLike) -> str | None:
    """What a model's folder is called: its name, that of the run above `final` and `checkpoint-*`, or `None` where it
    says nothing. Never a path: a card is read by others."""
    place = Path(folder).resolve()
    name = re.sub(r"\.tmp(-\d+)?$", "", place.name)  # written aside, renamed later
    if re.fullmatch(r"final|checkpoint-.*", name):
        name = place.parent.name
    return None if not name.isprintable() or re.fullmatch(r"(tmp\w*)?", name) else name


@dataclass(frozen=True)
class _Origin:
    """Where weights come from.

    `source`: by name, in Markdown; `converted`: they are as they were there; `base_model`: Hub id; `license` and
    `data`: by the card of the folder that they were loaded from.
    """

    source: str | None
    converted: bool
    base_model: str | list[str] | None
    license: str | None
    data: str | None


def _origin_of(model, folder: str | os.PathLike | None, run: "FoundRun | None") -> _Origin:
    """Reads the card of the folder that the model was loaded from, if there is one."""
    facts, name = model.card_facts or CardFacts(), model.name_or_path
    card = _metadata_in(name)
    notes = card.get(NOTES) if isinstance(card.get(NOTES), dict) else {}
    hub_id = _hub_source(name)
    nearest = hub_id or _folder_loaded_from(name, folder, run)
    return _Origin(
        source=facts.source or notes.get("source") or (f"`{nearest}`" if nearest else None),
        converted=facts.source is not None,
        base_model=hub_id or card.get("base_model"),
        license=card.get("license"),
        data=notes.get("data"),
    )


def _folder_loaded_from(name: str | None, folder: str | os.PathLike | None, run: "FoundRun | None") -> str | None:
    """Its name, unless the model goes back into it, or comes from a checkpoint of the run that is being saved."""
    if not name:
        return None
    place = Path(name).resolve()
    own = [Path(folder).resolve()] if folder else []
    if run and not run.loaded:
        own.append(run.folder.resolve())
    return None if set(own) & {place, *place.parents} else folder_name(place)


def _data_of(facts: CardFacts, origin: _Origin, run: Mapping[str, Any] | None) -> str | None:
    """What the weights were trained on, as far as it is told: by `facts`, the run, or the card of their folder."""
    if facts.data or not (run and run["config"].get("data")):
        return facts.data or origin.data
    own = f"`{run['config']['data']}`, as the run's config names it"
    if run["loaded"] or not origin.source:
        return own
    return f"{own}. Before this run: {origin.data or 'see the source checkpoint'}"


def _hub_source(name: str | None) -> str | None:
    """The Hub id that a model was loaded from: a name that stands in the Hub's cache, and so is no local folder."""
    if not name or os.path.exists(name) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


def _metadata_in(name: str | None) -> dict[str, Any]:
    """Metadata of the README.md in a local folder."""
    path = Path(name or "") / README
    return _metadata_of(path.read_text(encoding="utf-8", errors="replace")) if name and path.is_file() else {}


def _facts_of(model, sizes: Mapping[str, int] | None) -> dict[str, str]:
    """What config and weights say: a label and its value, in the order of the card's table."""
    config = model.config
    encoder = getattr(config, "encoder_config", config)
    facts = {"Class": f"`{type(model).__name__}`, model type `{config.model_type}`", "Precision": _name(model.dtype)}
    counts = parameter_counts(model, sizes)
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    facts["Parameters"] = f"{sum(counts.values()):,}" + (f" ({parts})" if len(counts) > 1 else "")
    if getattr(config, "state_type", "tokens") == "pixels":
        facts["State"] = f"raw patches of {encoder.patch_size}×{encoder.patch_size} pixels, no encoder"
    elif config.model_type != "vjepa2_hf_pixel_decoder":
        facts |= _encoder_facts(encoder, by_frame=config.model_type == "vjepa2_hf_world_model")
    others = {
        "vjepa2_hf_masked_latent_prediction": _masked_latent_facts,
        "vjepa2_hf_world_model": _world_model_facts,
        "vjepa2_hf_video_classification": _classification_facts,
        "vjepa2_hf_pixel_decoder": _decoder_facts,
    }
    return facts | others[config.model_type](config) if config.model_type in others else facts


def parameter_counts(model, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Parameters of every part of a model, by its name; of an encoder, all as one.

    Args:
        model: any of the package's.
        sizes: numbers in every weight by its name; without it the model's own parameters are counted.
    """
    single = model.config.model_type == "vjepa2_hf_encoder"
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = "encoder" if single else name.partition(".")[0]
        counts[part] = counts.get(part, 0) + (sizes or {}).get(name, parameter.numel())
    return counts


def _encoder_facts(encoder, by_frame: bool) -> dict[str, str]:
    """`by_frame`: the model encodes every frame on its own, so that the length of its encoder's clips says nothing."""
    pixels = f"{encoder.crop_size} × {encoder.crop_size} pixels"
    table = "corrected" if encoder.rope_interleave else "tiled"
    positions = {
        "rope": f"3-D rotary, {table} angle table",
        "sincos": "fixed 3-D sin-cos",
        "learned": "learned",
    }
    return {
        "Encoder": f"{encoder.hidden_size} wide, {_stack(encoder.num_hidden_layers, encoder.num_attention_heads)}, "
        f"MLP ratio {encoder.mlp_ratio:.4g}, {encoder.attention_type} attention",
        "Positions": positions[encoder.position_embedding_type],
        "Token": ("" if by_frame else f"{encoder.tubelet_size} frames × ")
        + f"{encoder.patch_size} × {encoder.patch_size} pixels, {encoder.in_chans} channels",
        **(
            {"Frames": f"{pixels}, each encoded on its own"}
            if by_frame
            else {"Clips": f"{encoder.frames_per_clip} frames, {pixels}"}
        ),
    }


def _masked_latent_facts(config) -> dict[str, str]:
    return {
        "Predictor": f"{config.predictor_hidden_size} wide, "
        f"{_stack(config.predictor_num_hidden_layers, config.predictor_num_attention_heads)}, "
        f"{config.num_mask_tokens} mask tokens",
        "Loss": f"exponent {config.loss_exponent}, target {config.target_type} "
        f"normalised by {config.normalize_targets}"
        + "".join(f", {name} {weight:g}" for name, weight in config.auxiliary_weights.items()),
    }


def _world_model_facts(config) -> dict[str, str]:
    sizes = {"Action": config.action_dim, "Proprio state": config.proprio_dim, "Extrinsics": config.extrinsics_dim}
    blocks, heads = config.predictor_num_hidden_layers, config.predictor_num_attention_heads
    state = {
        "merged": "2×2 neighbouring tokens as one",
        "pooled": "the mean of a frame's tokens",
        "projected": f"a frame's tokens, mapped by {config.state_projection}",
    }.get(config.state_type)
    facts = {} if state is None else {"State": state + (f", {config.state_dim} wide" if config.state_dim else "")}
    facts |= {
        "Dynamics": f"{config.dynamics_type}, {config.predictor_hidden_size} wide, "
        f"{_count(blocks, 'block') if config.dynamics_type == 'mlp' else _stack(blocks, heads)}, sees "
        f"{_count(config.context_frames, 'frame')}, actions joined by {config.action_fusion}",
        **{name: f"{_count(size, 'number')} a model step" if size else "none" for name, size in sizes.items()},
        "Model step": f"{_count(config.frame_skip, 'frame')}, {_count(config.actions_per_step, 'action')}"
        + (f", of video at {config.fps:g} frames a second" if config.fps else ""),
    }
    if config.stored_extrinsics_dim and not config.extrinsics_dim:
        facts["Extrinsics"] = f"not used; weights for {_count(config.stored_extrinsics_dim, 'number')} are kept"
    if config.action_type == "discrete":
        facts["Action"] += f": one-hot, {config.action_dim // config.actions_per_step} categories"
    if not config.freeze_encoder:
        facts["Target"] = "latents of an EMA copy of the encoder, which was trained along"
    parts = [f"latent of {_count(config.stochastic_dim, 'number')} for chance"] if config.stochastic_dim else []
    parts += ["reward head"] if config.reward_head else []
    if parts:
        facts["Optional parts"] = ", ".join(parts)
    for bound in ("action_low", "action_high"):
        if getattr(config, bound) is not None:
            facts[f"`{bound}`"] = _setting(getattr(config, bound))
    if config.planner:
        settings = [f"{name} {_setting(value)}" for name, value in config.planner.items() if value is not None]
        facts["Planner"] = ", ".join(settings)
    return facts


def _setting(value: Any) -> str:
    """A number, word, list or term of a setting; floats to four digits, as float32 ones have many."""
    if isinstance(value, dict):
        name, *settings = value.items()
        settings = [f"{key} {_setting(each)}" for key, each in settings if each is not None and each is not False]
        return f"{name[1]} ({', '.join(settings)})" if settings else str(name[1])
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_setting, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _classification_facts(config) -> dict[str, str]:
    pooler = (
        f"attentive, {_stack(config.num_pooler_layers + 1, config.pooler_num_attention_heads)}"
        if config.pooler_type == "attentive"
        else "mean over tokens"
    )
    return {"Pooler": pooler, "Labels": str(config.num_labels)}


def _decoder_facts(config) -> dict[str, str]:
    return {
        "Latents": f"{_count(config.num_latents, 'latent')} of {config.latent_size} numbers a frame",
        "Picture": f"{config.crop_size} × {config.crop_size} pixels, {config.in_chans} channels, painted in squares "
        f"of {config.patch_size} pixels",
        "Decoder": f"{config.hidden_size} wide, {_stack(config.num_hidden_layers, config.num_attention_heads)}",
    }


def _stack(blocks: int, heads: int) -> str:
    return f"{_count(blocks, 'block')}, {_count(heads, 'head')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- The training run


@dataclass(frozen=True)
class FoundRun:
    """A training run whose figures a card quotes; `loaded`: the model was loaded from it, not saved by it."""

    folder: Path
    loaded: bool


def find_run(model, folder: str | os.PathLike | None = None) -> FoundRun | None:
    """The run that a model comes from: `card_facts.run_dir`, the folder above the `final/` that is being written, or
    the folder above the `final/` that the model was loaded from."""
    facts = model.card_facts
    if facts is not None and facts.run_dir is not None:
        return FoundRun(Path(facts.run_dir), loaded=False)
    for place, loaded in ((folder, False), (model.name_or_path, True)):
        place = Path(place).resolve() if place and os.path.isdir(place) else None
        # only `final` and its name while it is written: another model saved in a run's folder is not the run's
        if place and place.name.partition(".")[0] == "final" and (place.parent / "metrics.jsonl").is_file():
            return FoundRun(place.parent, loaded)
    return None


def _describe_run(found: FoundRun | None) -> dict[str, Any] | None:
    """What the card says of a run: only what stands in its metrics.jsonl and config.yaml."""
    rows = [] if found is None else _read_rows(found.folder / "metrics.jsonl")
    if not rows:
        return None
    numbers = {name for row in rows for name, value in row.items() if _is_number(value)} - _SETTINGS
    order = [name for name in dict.fromkeys(name for row in rows for name in row) if name in numbers]
    columns = [name for name in order if not name.endswith(_SPEED)][:TABLE_COLUMNS]
    step = max((len(rows) - 1) / (TABLE_ROWS - 1), 1)
    shown = [rows[i] for i in sorted({min(round(k * step), len(rows) - 1) for k in range(TABLE_ROWS)})]
    config = _read_config(found.folder / "config.yaml")
    return {
        "loaded": found.loaded,
        "columns": columns,
        "rows": [[row["step"], *(_rounded(row.get(name)) for name in columns)] for row in shown],
        "last_step": rows[-1]["step"],
        "speeds": {name: _rounded(rows[-1].get(name)) for name in order if name.endswith(_SPEED)},
        "config": config,
        "config_text": yaml.safe_dump(config, sort_keys=False, width=100, allow_unicode=True).rstrip()
        if config
        else None,
    }


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The logged steps of a metrics.jsonl; a line that a kill left half written is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            logger.warning("left out a line of %s that is no metrics object: %.80r", path, line)
            continue
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append(row)
    return rows


def _read_config(path: Path) -> dict[str, Any]:
    """The run's config, with absolute paths cut to their last part: a card is read by others."""
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        logger.warning("the model card leaves out %s, which is not valid YAML: %s", path, error)
        return {}
    return _without_homes(config) if isinstance(config, dict) else {}


def _without_homes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_homes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_homes(item) for item in value]
    return f"…/{Path(value).name}" if isinstance(value, str) and value.startswith(("/", "~")) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


# --- Cards of the published models


@dataclass(frozen=True)
class _Published:
    """A released model: our class, the preset, what the file's name says beside it, and where it is published."""

    class_name: str
    preset: str
    title: str
    source: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def _pretraining(letter: str, preset: str, file: str, hub: str) -> _Published:
    title = f"V-JEPA 2 {letter}, converted: encoder and predictor"
    return _Published("VJepa2ForMaskedLatentPrediction", preset, title, f"`{file}`, or `{hub}` of transformers")


def _classifier(letter: str, preset: str, file: str, hub: str, **encoder) -> _Published:
    title = f"V-JEPA 2 {letter}, converted: classifier of Something-Something v2"
    source = f"`{file}` (with `--encoder`), or `{hub}` of transformers"
    fields = {"num_labels": 174, "encoder_config": encoder}
    return _Published("VJepa2ForVideoClassification", preset, title, source, fields)


_PUBLISHED = {
    "vjepa2_large.md": _pretraining("ViT-L", "large", "vitl.pt", "facebook/vjepa2-vitl-fpc64-256"),
    "vjepa2_huge.md": _pretraining("ViT-H", "huge", "vith.pt", "facebook/vjepa2-vith-fpc64-256"),
    "vjepa2_giant.md": _pretraining("ViT-g", "giant", "vitg.pt", "facebook/vjepa2-vitg-fpc64-256"),
    "vjepa2_large_classifier.md": _classifier(
        "ViT-L", "large", "ssv2-vitl-16x2x3.pt", "facebook/vjepa2-vitl-fpc16-256-ssv2", frames_per_clip=16
    ),
    "vjepa2_giant_classifier.md": _classifier(
        "ViT-g", "giant", "ssv2-vitg-384-64x2x3.pt", "facebook/vjepa2-vitg-fpc64-384-ssv2", crop_size=384
    ),
    "vjepa2_ac_giant.md": _Published(
        "VJepa2WorldModel", "giant", "V-JEPA 2-AC ViT-g, converted: world model", "`vjepa2-ac-vitg.pt`"
    ),
}


def published_cards() -> dict[str, str]:
    """The cards of the models that `convert_checkpoints` makes of released files: {file name: text}.

    Facts only, from configs and from models on the meta device; no released weights are used.
    """
    from .. import VJepa2ForMaskedLatentPrediction, VJepa2ForVideoClassification, VJepa2WorldModel

    classes = (VJepa2ForMaskedLatentPrediction, VJepa2ForVideoClassification, VJepa2WorldModel)
    by_name = {model_class.__name__: model_class for model_class in classes}
    cards = {}
    for file, released in _PUBLISHED.items():
        model_class = by_name[released.class_name]
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_preset(released.preset, **released.fields))
        model.card_facts = CardFacts(source=released.source, title=released.title)
        cards[file] = str(build_model_card(model, load_from="OUT_DIR", published=True))
    return cards


def main(argv: list[str] | None = None) -> None:
    """Writes the cards of the published models into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="of the cards: model_cards")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in published_cards().items():
        (folder / name).write_text(text, encoding="utf-8")


__all__ = ["CardFacts", "build_model_card", "parameter_counts", "published_cards", "write_model_card"]


if __name__ == "__main__":
    main()
