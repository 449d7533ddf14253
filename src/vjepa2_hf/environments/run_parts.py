"""What belongs to a trained world model: its environment, its episodes, and the models of the same run.

parts = find_parts("runs/demo/world_model/final")
parts.env, parts.episodes, parts.random_model
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ..training.settings import read_yaml
from .manifest import recording_of


@dataclass(frozen=True)
class RunParts:
    """Folders or Hub ids; `None`: there is none."""

    model: str
    """A world model, or a video model without actions."""
    video_model: str | None = None
    """Encoder or masked-latent model that the world model was trained on."""
    env: str | None = None
    """Id of the Gymnasium environment in which the episodes were recorded."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that environment."""
    episodes: str | None = None
    """Episodes that the world model was trained on."""
    random_model: str | None = None
    """The same world model on an encoder with random weights, a baseline."""
    decoder: str | None = None
    """Pixel decoder of the world model's latents."""
    cloning: str | None = None
    """Goal-conditioned policy on the world model's latents."""

    @property
    def run(self) -> Path | None:
        """Folder of the run that trained the model, with its `config.yaml` and metrics."""
        folder = Path(self.model).parent
        return folder if (folder / "config.yaml").is_file() else None

    @property
    def name(self) -> str:
        """The Hub id, or the name of the run's folder: no path of this machine."""
        path = Path(self.model)
        return self.model if not path.is_dir() else path.resolve().parent.name if path.name == "final" else path.name


def find_parts(model: str, **given: Any) -> RunParts:
    """The parts beside a model in `RUNS/RUN/final`, named as `examples/demo.py` and the configs name them.

    Episodes and video model are those of the run's `config.yaml`, or those of the same name in RUNS if the folders
    were moved. Decoder and policy are `RUNS/decoder/final` and `RUNS/cloning/final` if this model's run is the one
    that they were trained on. Nothing is known beside a Hub id.

    Args:
        model: folder or Hub id.
        given: fields of `RunParts` that replace what is found; `None` replaces nothing.
    """
    run, runs = Path(model).parent, Path(model).parent.parent
    settings, found = _settings_of(run), {}
    if settings:
        beside = {name: _existing(runs / name / "final") for name in ("pretrain", "decoder", "cloning")}
        found["episodes"] = _find(settings.get("data"), runs)
        found["video_model"] = _find(settings.get("encoder"), runs) or beside["pretrain"]
        found["random_model"] = _existing(runs / "world_model_random" / "final") if "random" not in run.name else None
        for name in ("decoder", "cloning"):
            trained_on = Path(str(_settings_of(runs / name).get("world_model")))
            found[name] = beside[name] if trained_on.parent.name == run.name else None
    found |= {name: value for name, value in given.items() if value is not None}
    if found.get("episodes") and "env" not in found:
        recording = read_recording(found["episodes"])
        found |= {"env": recording.get("env"), "env_kwargs": recording.get("env_kwargs") or {}}
    return RunParts(model, **found)


def read_recording(episodes: str) -> dict[str, Any]:
    """How `examples/record_episodes.py` recorded a folder of shards: `env`, `env_kwargs`, `policy` and other settings;
    {} if its shards do not say."""
    shards = sorted(Path(episodes).glob("*.parquet"))
    return (recording_of(pyarrow.parquet.ParquetFile(shards[0])).get("recording") or {}) if shards else {}


def _settings_of(run: Path) -> dict[str, Any]:
    return read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}


def _existing(path: Path) -> str | None:
    return str(path) if path.is_dir() else None


def _find(path: Any, runs: Path) -> str | None:
    """The folder that a config names, from the working directory, or from RUNS by the end of its name."""
    if not isinstance(path, str):
        return None
    end = Path(path).parts[-2:] if Path(path).name == "final" else Path(path).parts[-1:]
    return _existing(Path(path)) or _existing(runs.joinpath(*end))
