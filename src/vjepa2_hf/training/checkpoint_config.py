"""The model's config of a training checkpoint, for `from_pretrained("RUN/checkpoint-N")`."""

import contextlib
import os
from pathlib import Path
from typing import Any


def complete_config(path: str | os.PathLike, config: dict[str, Any]) -> dict[str, Any]:
    """The content of a folder's `config.json`. A checkpoint of 0.1 has none: it takes the `config.yaml` of its run, if
    that is one of pretraining from random weights.

    Raises:
        ValueError: a checkpoint without the config of a model, or without weights in one file.
    """
    checkpoint = Path(path)
    if not (checkpoint / "progress.json").is_file():
        return config
    if not config:
        from .pretraining import PretrainConfig, build_model_config
        from .settings import load_config

        with contextlib.suppress(ValueError, OSError):
            run = load_config(PretrainConfig, checkpoint.absolute().parent / "config.yaml")
            config = {} if run.init_from else build_model_config(run).to_dict()
    if not config:
        raise ValueError(
            f"{path} is a checkpoint without config.json, from an older version or of what is not a model: load the "
            "run's final/, or copy config.json from there."
        )
    if not (checkpoint / "model.safetensors").is_file():
        raise ValueError(
            f"{path} is a checkpoint without model.safetensors, as FSDP writes it in shards: resume the run to its "
            "end (resume=latest, max_steps=<its step>) and load final/."
        )
    return config
