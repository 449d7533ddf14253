"""What every training script of this package needs around its own loop: configs, schedules, and a run's folder.

A run's folder holds `config.yaml` (resolved), `metrics.jsonl` (one object a logged step), `checkpoint-<step>/` and
`final/`. Checkpoints and `final/` are written aside (`*.tmp`) and renamed, so that whatever kills the process, a
folder with the final name is whole.

    config = parse_arguments(PretrainConfig, "Pretrains an encoder.")       # --config FILE key=value ...
    run = Run(config.output_dir, config, accelerator)
    step, rank_state = run.resume(config.resume)                            # after accelerator.prepare(...)
    run.log({"step": step, "loss": 0.7})
    run.save_checkpoint(step, rank_state={"loader": loader.state_dict()})
    run.save_final(model, processor)
"""

import argparse
import dataclasses
import difflib
import functools
import json
import logging
import math
import os
import re
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from torch import nn


logger = logging.getLogger(__name__)

ConfigType = TypeVar("ConfigType")
USER_ERRORS = (ValueError, OSError, StrictDataclassError)


# --- Configs: YAML and key=value into dataclasses


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML reads `1e-3` as a string, which is how learning rates are written."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def load_config(
    config_class: type[ConfigType], path: str | os.PathLike | None = None, overrides: Iterable[str] = ()
) -> ConfigType:
    """Builds a config dataclass from a YAML file and `key=value` overrides, and checks names and types.

    Args:
        config_class: a dataclass; fields may be dataclasses, `dict`, `list[...]`, unions and `Literal`s.
        path: a YAML file; None starts from the dataclass's defaults.
        overrides: strings `key=value`; keys go into dataclasses, dicts and lists with dots (`encoder.hidden_size=96`,
            `masks.0.num_blocks=4`); values are read as YAML (`resume=null`, `fps=4`, `aspect_ratio=[0.75, 1.5]`).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: not YAML, an unknown key (the nearest known one is named), a missing or wrongly typed value.
    """
    values = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    return _build(config_class, values, prefix="")


def parse_arguments(config_class: type[ConfigType], description: str, argv: list[str] | None = None) -> ConfigType:
    """The command line of every script: `--config FILE [key=value ...]` into a config (see `load_config`)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_args(argv)
    return load_config(config_class, arguments.config, arguments.overrides)


def exit_on_user_error(function: Callable) -> Callable:
    """Decorates a script's `main`: an error that the user can mend ends in one sentence on stderr and exit code 1.

    The traceback is logged at DEBUG level.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except USER_ERRORS as error:
            logger.debug("the error that ended the program", exc_info=True)
            sys.stderr.write(f"error: {_one_sentence(error)}\n")
            sys.exit(1)

    return wrapper


def _one_sentence(error: BaseException) -> str:
    text = str(error)
    if "Original Traceback (most recent call last)" in text:  # an error inside a DataLoader worker
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", text.strip().splitlines()[-1])
    return " ".join(text.split())


def _read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The config file {str(path)!r} does not exist; give the path of a YAML file.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"The config file {str(path)!r} is not valid YAML: {_one_sentence(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(
            f"The config file {str(path)!r} holds a {type(values).__name__}; it must hold `key: value` lines."
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one `a.b.c=value` in the nested dicts and lists read from YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"The argument {override!r} is not of the form key=value, like `max_steps=100`.")
    try:
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the argument {override!r} is not valid YAML; quote it.") from error
    *parents, last = key.split(".")
    node: Any = values
    for position, name in enumerate(parents):
        if isinstance(node, dict) and node.get(name) is None:
            node[name] = {}
        node = _step_into(node, name, ".".join(parents[: position + 1]))
    if isinstance(node, list):
        _step_into(node, last, key)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ValueError(f"The key {key!r} does not exist: {'.'.join(parents)!r} is the single value {node!r}.")


def _step_into(node: Any, name: str, key: str) -> Any:
    if isinstance(node, dict):
        return node[name]
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    have = f"a list of {len(node)}, counted from 0" if isinstance(node, list) else f"the single value {node!r}"
    raise ValueError(f"The key {key!r} does not exist: the part before {name!r} is {have}.")


def _build(config_class: type[ConfigType], values: Any, prefix: str) -> ConfigType:
    if not isinstance(values, dict):
        raise ValueError(f"The key {prefix[:-1]!r} must hold `key: value` lines, got {values!r}.")
    known = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    for name in values:
        check_known(str(name), known, "key", prefix)
    hints = typing.get_type_hints(config_class)
    arguments = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    for name, field in known.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in arguments and not has_default:
            raise ValueError(
                f"The key {prefix + name!r} is missing; set it in the config file or as `{prefix + name}=...`."
            )
    return config_class(**arguments)


def check_known(name: str, known: Iterable[str], kind: str, prefix: str = "") -> None:
    """Refuses `name` if it is not in `known`, with a ValueError that names the nearest known one."""
    known = list(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix + nearest[0]!r}?" if nearest else f"known ones are {', '.join(sorted(known))}."
    raise ValueError(f"Unknown {kind} {prefix + name!r}; {hint}")


def _convert(expected: Any, value: Any, key: str) -> Any:
    """Checks `value` against the type `expected` of the dataclass's field and returns it converted."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, key)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"The key {key!r} must be one of {', '.join(map(repr, arguments))}, got {value!r}.")
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, key + ".")
    if origin in (list, tuple) and isinstance(value, list):
        types_of_items = arguments if origin is tuple and Ellipsis not in arguments else arguments[:1] * len(value)
        if len(types_of_items) == len(value):
            items = [
                _convert(item_type, item, f"{key}.{i}")
                for i, (item_type, item) in enumerate(zip(types_of_items, value))
            ]
            return origin(items)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = origin or expected
    # bool is an int for Python, not for a reader: `seed: true` is a mistake
    if kind is Any or (isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool))):
        return value
    raise ValueError(f"The key {key!r} must be {_type_name(expected)}, got {value!r} of type {type(value).__name__}.")


def _convert_union(alternatives: tuple, value: Any, key: str) -> Any:
    if value is None and types.NoneType in alternatives:
        return None
    alternatives = tuple(alternative for alternative in alternatives if alternative is not types.NoneType)
    errors = []
    for alternative in alternatives:
        try:
            return _convert(alternative, value, key)
        except ValueError as error:
            errors.append(error)
    if len(errors) == 1 or dataclasses.is_dataclass(alternatives[0]) and isinstance(value, dict):
        raise errors[0]
    names = " or ".join(_type_name(alternative) for alternative in alternatives)
    raise ValueError(f"The key {key!r} must be {names}, got {value!r} of type {type(value).__name__}.")


def _type_name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)


# --- Schedules: pure functions of the step. Learning rates count steps from 1, EMA momenta from 0, as published.


def linear(step: float, total_steps: float, *, start: float, final: float) -> float:
    """From `start` at step 0 to `final` at `total_steps`, then `final`."""
    return start + (final - start) * min(step / max(total_steps, 1), 1.0)


def cosine(step: float, total_steps: float, *, start: float, final: float) -> float:
    """From `start` at step 0 to `final` at `total_steps` along half a cosine, then `final`."""
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))


def warmup_cosine(
    step: float, total_steps: float, *, peak: float, start: float = 0.0, final: float = 0.0, warmup_steps: int = 0
) -> float:
    """Linear from `start` to `peak` over `warmup_steps`, then cosine to `final` at `total_steps`."""
    if step < warmup_steps:
        return linear(step, warmup_steps, start=start, final=peak)
    return cosine(step - warmup_steps, total_steps - warmup_steps, start=peak, final=final)


def warmup_stable_decay(
    step: float,
    total_steps: float,
    *,
    peak: float,
    start: float = 0.0,
    final: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int = 0,
) -> float:
    """Linear from `start` to `peak` over `warmup_steps`, `peak`, linear to `final` over the last `decay_steps`."""
    if step < warmup_steps:
        return linear(step, warmup_steps, start=start, final=peak)
    if step <= total_steps - decay_steps:
        return peak
    return linear(step - (total_steps - decay_steps), decay_steps, start=peak, final=final)


@dataclass
class LearningRateSchedule:
    """A learning rate as a function of the optimiser step.

    Attributes:
        schedule: "warmup_cosine" (V-JEPA 1, seeds), "warmup_stable_decay" (V-JEPA 2; `decay_steps: 0` never decays),
            "linear" (from `peak` to `final`: the published cooldown) or "constant" (`peak`).
        peak: highest value.
        start: value before the first warm-up step.
        final: value at the end.
        warmup_steps: optimiser steps of linear warm-up.
        decay_steps: optimiser steps of the last, linear part of "warmup_stable_decay".
        schedule_scale: the schedule is computed for `schedule_scale * max_steps` and stopped at `max_steps`: the
            published runs use 1.25 and so never reach `final`.
    """

    schedule: Literal["warmup_cosine", "warmup_stable_decay", "linear", "constant"] = "warmup_cosine"
    peak: float = 5.25e-4
    start: float = 0.0
    final: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    schedule_scale: float = 1.0

    def __post_init__(self):
        if min(self.peak, self.start, self.final, self.warmup_steps, self.decay_steps) < 0 or self.schedule_scale <= 0:
            raise ValueError(f"A learning rate schedule holds no negative numbers and a scale above 0, got {self}.")

    def at(self, step: int, max_steps: int) -> float:
        """The learning rate of optimiser step `step` (from 1) of `max_steps`."""
        total_steps = self.schedule_scale * max_steps
        if self.schedule == "constant":
            return self.peak
        if self.schedule == "linear":
            return linear(step, total_steps, start=self.peak, final=self.final)
        ramp = {"peak": self.peak, "start": self.start, "final": self.final, "warmup_steps": self.warmup_steps}
        if self.schedule == "warmup_cosine":
            return warmup_cosine(step, total_steps, **ramp)
        return warmup_stable_decay(step, total_steps, **ramp, decay_steps=self.decay_steps)


@dataclass
class MomentumSchedule:
    """Momentum of an exponential moving average as a function of the optimiser step.

    Attributes:
        schedule: "constant" (`start`), "linear" (published) or "cosine" (seed 003).
        start: momentum of the first step; the published value is 0.99925, constant; 0.996 in the seeds.
        final: momentum at the end of the schedule.
        schedule_scale: as in `LearningRateSchedule`.
    """

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    start: float = 0.99925
    final: float = 1.0
    schedule_scale: float = 1.0

    def __post_init__(self):
        if not (0.0 <= self.start <= 1.0 and 0.0 <= self.final <= 1.0) or self.schedule_scale <= 0:
            raise ValueError(f"An EMA momentum lies between 0 and 1, with a scale above 0, got {self}.")

    def at(self, step: int, max_steps: int) -> float:
        """The momentum after optimiser step `step` (from 1) of `max_steps`."""
        if self.schedule == "constant":
            return self.start
        function = linear if self.schedule == "linear" else cosine
        return function(step - 1, self.schedule_scale * max_steps, start=self.start, final=self.final)


# --- Optimiser


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups of the trainable parameters: decayed, and not decayed (biases and 1-D: norms)."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (kept if parameter.ndim <= 1 or name.endswith(".bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every parameter group (schedules are functions of the step and keep no state)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def check_finite_loss(loss: float, step: int) -> float:
    """Returns `loss`, or raises a ValueError: after one non-finite step the weights are lost."""
    if math.isfinite(loss):
        return loss
    raise ValueError(
        f"The loss of step {step} is {loss}; lower the learning rate, clip gradients (gradient_clipping=1.0), "
        "or look for non-finite pixels in the data, then go on from the last checkpoint with resume=latest."
    )


# --- A run's folder

CHECKPOINT_PATTERN = re.compile(r"^checkpoint-(\d+)$")
PARTIAL_SUFFIX = ".tmp"


def checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Whole checkpoints of a run's folder: {step: path}, by step."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return {}
    found = ((CHECKPOINT_PATTERN.match(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def latest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The whole checkpoint with the highest step, or None."""
    return next(reversed(checkpoints(output_dir).values()), None)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    rank_state: dict[str, Any] | None = None,
    keep_last: int | None = None,
) -> Path:
    """Writes `checkpoint-<step>/` atomically: aside, synced to disk, then renamed. Every process calls it.

    Args:
        accelerator: holds the prepared model and optimiser; random states of all processes are saved too.
        step: optimiser steps done.
        rank_state: what this process needs to go on (the position of its data loader): tensors and plain values.
            Accelerate writes the data loaders of all processes to one file, so theirs would be lost there.
        keep_last: older checkpoints beyond this number are removed after the new one stands; None keeps all.
    """
    whole = Path(output_dir) / f"checkpoint-{step}"
    partial = whole.with_name(whole.name + PARTIAL_SUFFIX)
    if accelerator.is_main_process:
        _empty_folder(partial)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    torch.save(rank_state or {}, partial / f"rank_state_{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        progress = {"step": step, "num_processes": accelerator.num_processes}
        (partial / "progress.json").write_text(json.dumps(progress) + "\n")
        _publish(partial, whole)
        if keep_last is not None:
            for old in list(checkpoints(output_dir).values())[:-keep_last]:
                _remove_folder(old)
    accelerator.wait_for_everyone()
    return whole


def load_checkpoint(accelerator: Accelerator, checkpoint: str | os.PathLike) -> tuple[int, dict[str, Any]]:
    """Restores model, optimiser and random states from a folder of `save_checkpoint`; returns (step, rank_state)."""
    checkpoint = Path(checkpoint)
    if not (checkpoint / "progress.json").is_file():
        raise FileNotFoundError(
            f"{str(checkpoint)!r} is no checkpoint of this package; give a `checkpoint-<step>` folder."
        )
    progress = json.loads((checkpoint / "progress.json").read_text())
    if progress["num_processes"] != accelerator.num_processes:
        raise ValueError(
            f"{str(checkpoint)!r} was written by {progress['num_processes']} processes and this run has "
            f"{accelerator.num_processes}; an exact continuation needs the same number."
        )
    try:
        accelerator.load_state(str(checkpoint))
    except RuntimeError as error:  # load_state_dict on another architecture
        raise ValueError(
            f"{str(checkpoint)!r} does not fit the configured model; resume with its run's config.yaml "
            f"({_one_sentence(error)[:200]})."
        ) from error
    rank_state = torch.load(checkpoint / f"rank_state_{accelerator.process_index}.pt", weights_only=True)
    return progress["step"], rank_state


def truncate_metrics(path: str | os.PathLike, last_step: int) -> None:
    """Drops the lines of a `metrics.jsonl` after `last_step`, and a line that a kill left half written."""
    path = Path(path)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            logger.warning("dropped a line of %s that is no metrics object: %.80r", path, line)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


def read_metrics(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a run's `metrics.jsonl`, in order."""
    with open(Path(output_dir) / "metrics.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Run:
    """The folder of one training run: config, metrics, checkpoints, final model.

    Args:
        output_dir: created if it does not exist; what an interrupted write left there (`*.tmp`) is removed.
        config: a dataclass, written resolved to `config.yaml`.
        accelerator: only the main process writes; with `log_with` set, metrics go to its trackers too.
        keep_last: number of checkpoints to keep; None keeps all.
    """

    def __init__(
        self, output_dir: str | os.PathLike, config: Any, accelerator: Accelerator, keep_last: int | None = None
    ):
        self.output_dir = Path(output_dir)
        self.config = config
        self.accelerator = accelerator
        self.keep_last = keep_last
        self.metrics_path = self.output_dir / "metrics.jsonl"
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            for partial in self.output_dir.glob("*" + PARTIAL_SUFFIX):
                _remove_folder(partial) if partial.is_dir() else partial.unlink()
        accelerator.wait_for_everyone()

    def resume(self, resume: str | None) -> tuple[int, dict[str, Any]]:
        """Goes on where a checkpoint stood; call it after `accelerator.prepare`, before the first step.

        Args:
            resume: "latest" (from the start if there is no checkpoint yet), a checkpoint (path, or name in the run's
                folder), or None for a new run, which a folder that holds another run's results refuses.

        Returns:
            (optimiser steps done, rank_state of `save_checkpoint`): (0, {}) at the start.
        """
        checkpoint = self._find_checkpoint(resume)
        step, rank_state = (0, {}) if checkpoint is None else load_checkpoint(self.accelerator, checkpoint)
        later = [path.name for other, path in checkpoints(self.output_dir).items() if other > step]
        if later:
            raise ValueError(
                f"{str(self.output_dir)!r} holds {', '.join(later)}, later than step {step} to go on from; "
                "remove them, set resume=latest, or choose another output_dir."
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            truncate_metrics(self.metrics_path, step)
            text = yaml.safe_dump(_plain(dataclasses.asdict(self.config)), sort_keys=False)
            (self.output_dir / "config.yaml").write_text(text, encoding="utf-8")
        if step:
            logger.info("resumed %s at step %d", checkpoint, step)
        return step, rank_state

    def _find_checkpoint(self, resume: str | None) -> Path | None:
        if resume is None:
            results = [*checkpoints(self.output_dir).values(), *self.output_dir.glob("final")]
            if results:
                raise ValueError(
                    f"{str(self.output_dir)!r} already holds a run ({results[-1].name}); set resume=latest to go on "
                    "with it, or choose another output_dir."
                )
            return None
        if resume == "latest":
            return latest_checkpoint(self.output_dir)
        inside = self.output_dir / resume
        return inside if inside.is_dir() else Path(resume)

    def log(self, metrics: dict[str, float | torch.Tensor | None]) -> None:
        """Appends one object to `metrics.jsonl` (and to the accelerator's trackers); `metrics` holds `step`."""
        plain = {name: _plain_number(value) for name, value in metrics.items()}
        if self.accelerator.is_main_process:
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain, allow_nan=False) + "\n")
        numbers = {name: value for name, value in plain.items() if value is not None and name != "step"}
        self.accelerator.log(numbers, step=plain["step"])

    def save_checkpoint(self, step: int, rank_state: dict[str, Any] | None = None) -> Path:
        """`save_checkpoint` into the run's folder, keeping the last `keep_last`."""
        return save_checkpoint(self.accelerator, self.output_dir, step, rank_state, self.keep_last)

    def save_final(self, model: nn.Module, *processors: Any) -> Path:
        """Writes `final/` with `save_pretrained` of the model and of each processor: aside, then renamed."""
        final = self.output_dir / "final"
        partial = final.with_name(final.name + PARTIAL_SUFFIX)
        state_dict = self.accelerator.get_state_dict(model)  # gathers shards: every process takes part
        if self.accelerator.is_main_process:
            _empty_folder(partial)
            self.accelerator.unwrap_model(model).save_pretrained(partial, state_dict=state_dict)
            for processor in processors:
                processor.save_pretrained(partial)
            _publish(partial, final)
        self.accelerator.wait_for_everyone()
        return final


def _empty_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _remove_folder(path: Path) -> None:
    """Removes a folder; renamed first, so that a kill half way leaves no part of it under its own name."""
    doomed = path if path.name.endswith(PARTIAL_SUFFIX) else path.with_name(f"{path.name}.old{PARTIAL_SUFFIX}")
    if doomed != path:
        os.replace(path, doomed)
    shutil.rmtree(doomed)


def _publish(partial: Path, whole: Path) -> None:
    """Gives a fully written folder its final name, after its bytes have reached the disk."""
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    if whole.exists():
        _remove_folder(whole)
    os.replace(partial, whole)
    _sync(whole.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Tuples as lists: safe YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain_number(value: Any) -> Any:
    """Scalars of torch as numbers, and None for what JSON cannot hold (a deviation over a batch of one)."""
    value = value.item() if isinstance(value, torch.Tensor) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
