"""Model cards: the README.md that `save_pretrained` and `push_to_hub` write beside the weights.

    model.card_facts = CardFacts(license="mit", data="560 episodes")    # what the model cannot know itself
    model.save_pretrained("mine")                                       # mine/README.md

A card holds the facts of config and weights, code that loads the model, and the license. For a model in the `final/`
folder of a training run it also quotes the run's `config.yaml` and `metrics.jsonl`. A README.md that a person wrote is
left alone; a generated one carries a comment and is written again.
"""

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from ..configuration_vjepa2 import VERSION
from ..modeling_embodiments import embodiment_config
from ..modeling_state import view_names
from ..training.run_files import metrics_of


logger = logging.getLogger(__name__)

README = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
MARK = "<!-- Written by vjepa2_hf"

# By model type: the Hub's pipeline tag, and further tags
_TASKS = {
    "vjepa2_hf_encoder": ("feature-extraction", ["video-encoder"]),
    "vjepa2_hf_masked_latent_prediction": ("feature-extraction", ["video-encoder", "pretraining"]),
    "vjepa2_hf_world_model": ("robotics", ["world-model", "planning"]),
    "vjepa2_hf_video_classification": ("video-classification", []),
    "vjepa2_hf_pixel_decoder": (None, ["world-model", "visualization"]),
}
_TAGS = ["vjepa2_hf", "v-jepa-2", "video"]

# Columns of metrics.jsonl that say nothing about what was learned
_SETTINGS = {"step", "learning_rate", "ema_momentum", "weight_decay", "data_wait"}
_SPEED = "_per_second"
TABLE_ROWS, TABLE_COLUMNS = 6, 6
NAMING_ROWS = 1000  # the first rows, which name the columns

# transformers' own card of a model that it pushes, which ours replaces
_STOCK_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


@dataclass(frozen=True)
class CardFacts:
    """What a model cannot know about itself; set it as `model.card_facts`.

    Attributes:
        license: of the weights, by the Hub's identifier ("apache-2.0"). `None`: that of the card which is replaced, or
            of the folder that the model was loaded from.
        source: the published checkpoint that the weights were converted from, in Markdown.
        data: what the model was trained on. `None`: the `data` of the run's config.yaml.
        run_dir: folder with the run's metrics.jsonl. `None`: the folder above `final/`.
        title: heading of the card. `None`: the name of the folder or of the run, else of the class.
    """

    license: str | None = None
    source: str | None = None
    data: str | None = None
    run_dir: str | os.PathLike | None = None
    title: str | None = None

    def __post_init__(self):
        if self.run_dir is not None and not (Path(self.run_dir) / "metrics.jsonl").is_file():
            raise FileNotFoundError(f"run_dir={str(self.run_dir)!r}, which holds no metrics.jsonl: give a run's.")


# --- Writing


def write_model_card(
    model, folder: str | os.PathLike, load_from: str = ".", sizes: Mapping[str, int] | None = None
) -> Path | None:
    """Writes the README.md of a model's folder and returns its path; `None`, with the reason in the log (info), where
    a person wrote it, or the folder holds an adapter.

    Args:
        model: any of the package's, with its `card_facts`.
        load_from: what the card's code loads: the folder itself, or a Hub id.
        sizes: number of values of every weight by its name, for a process that holds a part of each.
    """
    path = Path(folder) / README
    if not path.parent.is_dir():
        return None
    if users_card(folder) is not None:
        logger.info("%s was not generated: it stays as it is", path)
        return None
    if getattr(model, "_hf_peft_config_loaded", False):
        logger.info("no model card in %s: it holds an adapter, and a card describes a model", folder)
        return None
    path.write_text(str(build_model_card(model, folder, load_from, sizes, _metadata(path))), encoding="utf-8")
    return path


def users_card(folder: str | os.PathLike) -> str | None:
    """The README.md of a folder if a person wrote it, not we or transformers; or `None`."""
    path = Path(folder) / README
    text = path.read_text(encoding="utf-8") if path.is_file() else MARK
    stock = ModelCard.from_template(ModelCardData(library_name="x"), model_description=_STOCK_DESCRIPTION).text.strip()
    is_stock = text.startswith("---") and text.partition("\n---")[2].strip() == stock
    return None if MARK in text or is_stock else text


def _metadata(path: Path) -> dict[str, Any]:
    """The YAML header of a card; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        return metadata_load(path) or {}
    return {}


# --- Content


def build_model_card(
    model, folder=None, load_from: str = ".", sizes=None, previous=None, published: bool = False
) -> ModelCard:
    """The card of a model; arguments as of `write_model_card`. It keeps license and tags of `previous`, the metadata
    of the card that it replaces; `published` is for a card of any conversion of a released file."""
    config, facts, previous = model.config, model.card_facts or CardFacts(), previous or {}
    loaded_from = _metadata(Path(model.name_or_path or "", README))
    license = facts.license or previous.get("license") or loaded_from.get("license")
    pipeline_tag, tags = _TASKS[config.model_type]
    metadata = ModelCardData(
        library_name="transformers",  # the Hub's "Use this model" then shows from_pretrained
        license=license,
        pipeline_tag=pipeline_tag,
        base_model=_hub_id(model.name_or_path) or loaded_from.get("base_model"),
        tags=list(dict.fromkeys([*_TAGS, *tags, *(previous.get("tags") or [])])),
    )
    run = _describe_run(model, folder)
    counts = parameter_counts(model, sizes)
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        version=VERSION,
        kind=config.model_type.removeprefix("vjepa2_hf_"),
        title=facts.title or _title(folder, load_from) or type(model).__name__,
        class_name=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        counts=counts,
        config=config,
        encoder=getattr(config, "encoder_config", config),
        **_robots(config),
        setting=_setting,
        run=run,
        data=facts.data or (f"`{run['config']['data']}`" if run and run["config"].get("data") else None),
        source=facts.source,
        license=license,
        load_from=load_from,
        published=published,
        auto_class=next((name for name in getattr(config, "auto_map", None) or () if "Model" in name), None),
    )
    card.text += "\n"  # which jinja removes
    return card


def parameter_counts(model, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Number of parameters of every part of a model, by its name; of an encoder, all as one. `sizes` as above."""
    single, counts = model.config.model_type == "vjepa2_hf_encoder", Counter()
    for name, parameter in model.named_parameters():
        counts["encoder" if single else name.partition(".")[0]] += (sizes or {}).get(name, parameter.numel())
    return dict(counts)


def _robots(config) -> dict[str, Any]:
    """Cameras of a world model of several, its embodiments by name, and the one of them that its planner is for."""
    found = {"cameras": None, "embodiments": [], "acting": config, "acting_name": None}
    if getattr(config, "num_views", 1) > 1:
        found["cameras"] = view_names(config)
    if getattr(config, "num_embodiments", 1) > 1:
        names = config.embodiment_names or list(range(config.num_embodiments))
        found["embodiments"] = [(name, embodiment_config(config, index)) for index, name in enumerate(names)]
        index = (config.planner or {}).get("embodiment", 0)
        found["acting"], found["acting_name"] = found["embodiments"][index][1], repr(names[index])
    return found


def _setting(value: Any) -> str:
    """A number, word, list or term of a setting; floats to four digits, as float32 ones have many."""
    if isinstance(value, dict):
        name, *settings = value.items()
        settings = [f"{key} {_setting(each)}" for key, each in settings if each is not None and each is not False]
        return f"{name[1]} ({', '.join(settings)})" if settings else str(name[1])
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_setting, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(folder: str | os.PathLike | None, load_from: str) -> str | None:
    """The name of the Hub's repository, of the folder, or of the run above `final` and `checkpoint-*`; `None` where it
    says nothing. Never a path: a card is read by others."""
    if load_from != ".":
        return load_from.rpartition("/")[2]
    if folder is None:
        return None
    path = Path(folder).resolve()
    name = re.sub(r"\.tmp(-\d+)?$", "", path.name)  # written aside, renamed later
    if re.fullmatch(r"final|checkpoint-.*", name):
        name = path.parent.name
    return None if not name.isprintable() or re.fullmatch(r"(tmp\w*)?", name) else name


def _hub_id(name: str | None) -> str | None:
    """The Hub id that a model was loaded from: a name in the Hub's cache that is not a local folder."""
    if not name or os.path.exists(name) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


# --- The training run


def _find_run(model, folder: str | os.PathLike | None) -> tuple[Path | None, bool]:
    """The folder of the run that saves this model or that it was loaded from, and whether it is the latter."""
    if model.card_facts is not None and model.card_facts.run_dir is not None:
        return Path(model.card_facts.run_dir), False
    for path, loaded in ((folder, False), (model.name_or_path, True)):
        path = Path(path).resolve() if path and os.path.isdir(path) else None
        # only `final` and its name while it is written: another model in a run's folder is not the run's
        if path and path.name.partition(".")[0] == "final" and (path.parent / "metrics.jsonl").is_file():
            return path.parent, loaded
    return None, False


def _describe_run(model, folder: str | os.PathLike | None) -> dict[str, Any] | None:
    """Config and a table of metrics of the model's run."""
    run_dir, loaded = _find_run(model, folder)
    shown, rows = ([], []) if run_dir is None else _read_rows(run_dir / "metrics.jsonl")
    if not shown:
        return None
    numbers = {name for row in rows for name, value in row.items() if type(value) in (int, float)} - _SETTINGS
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name in numbers]
    columns = [name for name in names if not name.endswith(_SPEED)][:TABLE_COLUMNS]
    config = None
    with contextlib.suppress(OSError, yaml.YAMLError):
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    config = _without_absolute_paths(config) if isinstance(config, dict) else {}
    return {
        "loaded": loaded,
        "columns": columns,
        "rows": [[row["step"], *(_cell(row.get(name)) for name in columns)] for row in shown],
        "last_step": rows[-1]["step"],
        "speeds": {name: _cell(rows[-1].get(name)) for name in names if name.endswith(_SPEED)},
        "config": config,
        "config_text": yaml.safe_dump(config, sort_keys=False, width=100, allow_unicode=True).rstrip(),
    }


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Evenly spread logged steps of a metrics.jsonl for the table, the first and the last among them, and rows that
    name its columns. Of a long log few lines are parsed."""
    with open(path, "rb") as lines:
        count = sum(1 for _ in lines)
    while count and not (last := _read_lines(path, {count - 1})):
        count -= 1  # a line that was left half written, or is of other origin
    if not count:
        return [], []
    stride = max((count - 1) / (TABLE_ROWS - 1), 1)
    shown = _read_lines(path, {min(round(k * stride), count - 1) for k in range(TABLE_ROWS)})
    return shown, [*_read_lines(path, set(range(min(count, NAMING_ROWS)))), *shown, *last]


def _read_lines(path: Path, wanted: set[int]) -> list[dict[str, Any]]:
    """The metrics objects in the wanted lines."""
    with open(path, "rb") as lines:
        found = [metrics_of(line) for number, line in enumerate(lines) if number in wanted]
    return [row for row in found if row is not None]


def _without_absolute_paths(value: Any) -> Any:
    """A value of a config with absolute paths cut to their last part: a card is read by others."""
    if isinstance(value, dict):
        return {key: _without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_absolute_paths(item) for item in value]
    return f"…/{Path(value).name}" if isinstance(value, str) and value.startswith(("/", "~")) else value


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
