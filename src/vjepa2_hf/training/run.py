"""A training run's folder: resolved settings, metrics, checkpoints, the final model.

It holds `config.yaml`, `metrics.jsonl` (one object a logged step), `checkpoint-<step>/` and `final/`; where a run
stopped at a loss or gradient that was not finite, also `offending_batch.json`. They are written aside (`*.tmp`) and
renamed, so that whatever kills the process, what has the final name is whole. `.lock` is locked while a run uses the
folder.

    run = Run(config.output_dir, config, accelerator)
    step, rank_state = run.resume(config.resume)                            # after accelerator.prepare(...)
    run.log({"step": step, "loss": 0.7})
    run.save_checkpoint(step, rank_state={"loader": loader.state_dict()})
    run.save_final(model, processor)
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch import nn

from ..data.files import (
    PARTIAL_SUFFIX,
    commit_folder,
    empty_folder,
    lock_folder,
    remove_folder,
    write_json,
    write_text,
    writing,
)
from .checkpoints import (
    ADVICE,
    check_keep_last,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from .settings import load_config


logger = logging.getLogger(__name__)

# What a run learns does not depend on these: they may be others when it goes on
FREE_SETTINGS = (
    "output_dir", "resume", "log_every", "save_every", "keep_last", "log_with", "num_threads",
    "gradient_checkpointing", "horizons", "max_skipped_fraction", "cache_dir", "eval_every",
    "evaluate_on",
)  # fmt: skip
# Settings of the training scripts that count something
COUNTS = (
    "max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "save_every", "eval_every", "num_threads",
    "max_episodes", "frames_per_episode",
)  # fmt: skip
# Trackers of Accelerate that scripts offer, with the package of each
TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


def check_run_settings(config: Any) -> None:
    """Refuses settings that all training scripts share and that no run can follow; a field that is missing is fine.

    Raises:
        ValueError: a count below 1, a seed that numpy does not take, a clipping or weight decay below 0.
    """
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in COUNTS:
        if given.get(name) is not None and given[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {given[name]}.")
    if not 0 <= given["seed"] < 2**32:
        raise ValueError(f"seed must lie in 0 to {2**32 - 1}, got {given['seed']}.")
    check_keep_last(given["keep_last"])
    clipping, decay = given.get("gradient_clipping"), given.get("weight_decay")
    if clipping is not None and not clipping > 0:
        raise ValueError(f"gradient_clipping must be above 0, got {clipping}; null clips nothing.")
    if isinstance(decay, (int, float)) and not decay >= 0:
        raise ValueError(f"A weight decay is a number of at least 0, but weight_decay is {decay}.")


def check_tracker(log_with: str | None) -> None:
    """Refuses a tracker whose package is not installed, which Accelerate leaves out in silence."""
    if log_with is not None and log_with not in map(str, get_available_trackers()):
        package = TRACKERS.get(log_with, log_with)
        raise ValueError(
            f"log_with={log_with} needs the package {package!r}, which is not installed; `pip install {package}`, or "
            "set log_with=null (metrics.jsonl is written in any case)."
        )


def check_sharding(accelerator: Accelerator) -> None:
    """Refuses the kinds of FSDP that Accelerate would leave out in silence or that this package does not support."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" and plugin is None:
        return
    if accelerator.device.type == "cpu":
        raise ValueError(
            "FSDP is asked for on a CPU, where Accelerate shards nothing and does not say so; launch with torchrun, "
            "or run on GPUs."
        )
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {plugin.fsdp_version}, whose flat parameters the target encoder's average cannot "
            "follow; set fsdp_version: 2, as in examples/configs/accelerate/fsdp.yaml."
        )


def check_precision(accelerator: Accelerator) -> None:
    """Refuses fp16 on a CPU, where Accelerate computes in float32 and does not say so."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed_precision=fp16 is asked for on a CPU, where Accelerate computes in float32 and does not say so; "
            "set mixed_precision=bf16 or no, or run on a GPU."
        )


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
    write_text(path, "".join(kept))


def read_metrics(output_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a run's `metrics.jsonl`, in order."""
    with open(Path(output_dir) / "metrics.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def changed_settings(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """The settings, but for `FREE_SETTINGS`, in which two configs of one dataclass differ: {key: (before, now)}.

    Keys of nested dataclasses and dicts are joined with dots; a value that is not set counts as None.
    """
    was, given = (_flatten(_plain(dataclasses.asdict(config))) for config in (before, now))
    keys = [key for key in {**was, **given} if key.split(".")[0] not in FREE_SETTINGS]
    return {key: (was.get(key), given.get(key)) for key in keys if was.get(key) != given.get(key)}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


class Run:
    """The folder of one training run: config, metrics, checkpoints, final model.

    Args:
        output_dir: created if it does not exist; what an interrupted write left there (`*.tmp`) is removed.
        config: a dataclass, written resolved to `config.yaml`; its `max_steps`, where it has that field, ends the run.
        accelerator: only the main process writes; with `log_with` set, metrics go to its trackers too.
        keep_last: number of checkpoints to keep, at least 1; None keeps all.

    Raises:
        OSError: another process runs in the folder.
        ValueError: the run asks for what Accelerate would leave out in silence.
    """

    def __init__(
        self, output_dir: str | os.PathLike, config: Any, accelerator: Accelerator, keep_last: int | None = None
    ):
        self.output_dir = Path(output_dir)
        self.config = config
        self.accelerator = accelerator
        self.keep_last = keep_last
        self.metrics_path = self.output_dir / "metrics.jsonl"
        self._finished = False
        check_keep_last(keep_last)
        check_sharding(accelerator)
        check_precision(accelerator)
        if accelerator.is_main_process:
            self._lock = lock_folder(self.output_dir, reentrant=True)
            for partial in self.output_dir.glob("*" + PARTIAL_SUFFIX):
                remove_folder(partial) if partial.is_dir() else partial.unlink()
        accelerator.wait_for_everyone()

    def check(
        self,
        resume: str | None,
        rates: Callable[[Any, int], Any] | None = None,
        rate_settings: Collection[str] = (),
    ) -> None:
        """Raises what `resume` would raise about folder and settings, for scripts that have long work before it."""
        checkpoint = self._find_checkpoint(resume)
        if checkpoint is not None and checkpoint.parent.resolve() == self.output_dir.resolve():
            self._check_settings(checkpoint, rates, rate_settings)

    def resume(
        self,
        resume: str | None,
        rates: Callable[[Any, int], Any] | None = None,
        rate_settings: Collection[str] = (),
    ) -> tuple[int, dict[str, Any]]:
        """Goes on where a checkpoint stood; call it after `accelerator.prepare`, before the first step.

        A run goes on in its folder with the settings it began with, but for `FREE_SETTINGS` and for those of its
        schedules while they leave the steps already done as they were: what it learns is what it would have learnt
        without a stop. A checkpoint of another folder may go on with any settings; what differs is named in the log.

        Args:
            resume: "latest" (from the start if there is no checkpoint yet), a checkpoint (path, or name in the run's
                folder), or None for a new run, which a folder that holds another run's results refuses.
            rates: (config, step) -> all that the number of a step decides: learning rate, momentum and the like.
            rate_settings: fields of the config on which `rates` depends and nothing else (`max_steps`, schedules).

        Returns:
            (optimiser steps done, rank_state of `save_checkpoint`): (0, {}) at the start.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: settings, processes or later checkpoints that do not go with the checkpoint, `max_steps` below
                its step, or a damaged one. Nothing has been written then.
        """
        checkpoint = self._find_checkpoint(resume)
        if checkpoint is not None:
            self._check_settings(checkpoint, rates, rate_settings)
        step, rank_state = (0, {}) if checkpoint is None else load_checkpoint(self.accelerator, checkpoint)
        self._check_steps(step)
        own = checkpoint is not None and checkpoint.parent.resolve() == self.output_dir.resolve()
        self._finished = own and self._holds_final_of(checkpoint, step)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for path in [] if own else self.output_dir.glob("skipped*.jsonl"):
                path.unlink()  # of a run that left no checkpoint
            (self.output_dir / "offending_batch.json").unlink(missing_ok=True)
            truncate_metrics(self.metrics_path, step)
            text = yaml.safe_dump(_plain(dataclasses.asdict(self.config)), sort_keys=False)
            write_text(self.output_dir / "config.yaml", text)
        self.accelerator.wait_for_everyone()  # the others may read them now
        if step:
            logger.info("resumed %s at step %d", checkpoint, step)
        return step, rank_state

    def _check_steps(self, step: int) -> None:
        """Refuses to go on from `step` where later results stand or where none are to come."""
        later = [path.name for other, path in checkpoints(self.output_dir).items() if other > step]
        if later:
            raise ValueError(
                f"{str(self.output_dir)!r} holds {', '.join(later)}, later than step {step} to go on from; "
                "remove them, set resume=latest, or choose another output_dir."
            )
        max_steps = getattr(self.config, "max_steps", step)
        if step > max_steps:
            raise ValueError(
                f"max_steps={max_steps} is below the {step} steps that are done; set max_steps={step} or more, or go "
                "on from an earlier checkpoint in another output_dir."
            )

    def _holds_final_of(self, checkpoint: Path, step: int) -> bool:
        """Whether the run ended with this checkpoint and `final/` was written after it."""
        final = self.output_dir / "final"
        ended = step == getattr(self.config, "max_steps", None) and final.is_dir()
        return ended and final.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns

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
        found = [path for path in (self.output_dir / resume, Path(resume)) if path.is_dir()]
        if not found:
            known = ", ".join(path.name for path in checkpoints(self.output_dir).values()) or "none"
            raise FileNotFoundError(
                f"There is no checkpoint folder {resume!r}, neither as a path nor in {str(self.output_dir)!r}, which "
                f"holds {known}."
            )
        return found[0]

    def _check_settings(self, checkpoint: Path, rates: Callable | None, rate_settings: Collection[str]) -> None:
        """Compares the settings with those that the checkpoint's run began with, see `resume`."""
        path = checkpoint.parent / "config.yaml"
        if not path.is_file():
            logger.warning("%s is not there: nothing tells whether the settings are those of %s", path, checkpoint)
            return
        try:
            before = load_config(type(self.config), path)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is no config of this script ({error}).") from error
        changed = changed_settings(before, self.config)
        if any(key.split(".")[0] in rate_settings for key in changed):
            steps = range(1, read_progress(checkpoint)["step"] + 1)
            if rates is not None and all(rates(before, step) == rates(self.config, step) for step in steps):
                changed = {key: value for key, value in changed.items() if key.split(".")[0] not in rate_settings}
        if not changed:
            return
        listed = ", ".join(f"{key}={now!r} (was {was!r})" for key, (was, now) in changed.items())
        if checkpoint.parent.resolve() != self.output_dir.resolve():
            logger.warning("%s goes on from %s with other settings: %s", self.output_dir, checkpoint, listed)
            return
        raise ValueError(
            f"{str(self.output_dir)!r} cannot go on with settings under which the steps already done would have been "
            f"others: {listed}; set them back, or go on in another folder with resume={checkpoint}."
        )

    def log(self, metrics: dict[str, float | torch.Tensor | str | None]) -> None:
        """Appends one object to `metrics.jsonl`; `metrics` holds `step`. Numbers go to the trackers too."""
        plain = {name: _plain_number(value) for name, value in metrics.items()}
        if self.accelerator.is_main_process:
            with writing(self.metrics_path, ADVICE), open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain, allow_nan=False) + "\n")
        numbers = {name: value for name, value in plain.items() if isinstance(value, (int, float)) and name != "step"}
        self.accelerator.log(numbers, step=plain["step"])

    def check_finite(
        self,
        step: int,
        loss: float,
        gradient_norm: float = 0.0,
        losses: Sequence[float] = (),
        clips: Sequence[list[str]] = (),
    ) -> None:
        """Stops before an update that would lose the weights, and says which clips it was computed from.

        Every process calls it with the same `loss` and `gradient_norm`; so they stop together.

        Args:
            step: the update that is due.
            loss: its mean over processes and micro-batches.
            gradient_norm: of all gradients; under fp16 an infinite one is left to the scaler.
            losses, clips: of each of this process's micro-batches, its loss and the names of its clips.

        Raises:
            ValueError: loss or gradient norm is not finite. `offending_batch.json` holds the names, and the last
                checkpoint stays.
        """
        scaled = self.accelerator.scaler is not None
        if math.isfinite(loss) and (scaled or math.isfinite(gradient_norm)):
            return
        what = f"gradient norm of step {step} is {gradient_norm}" if math.isfinite(loss) else None
        own = [{"loss": _plain_number(float(part)), "clips": names} for part, names in zip(losses, clips)]
        everyone = gather_object([{"process": self.accelerator.process_index, **batch} for batch in own])
        path, last = self.output_dir / "offending_batch.json", latest_checkpoint(self.output_dir)
        if self.accelerator.is_main_process:
            found = {"step": step, "loss": _plain_number(loss), "gradient_norm": _plain_number(gradient_norm)}
            write_json(path, {**found, "batches": everyone})
        onward = f"go on in another output_dir with resume={last}" if last else "start again"
        raise ValueError(
            f"The {what or f'loss of step {step} is {loss}'}; the names of its clips are in {str(path)!r}: look for "
            f"values there that are not finite, or lower the learning rate or clip gradients (gradient_clipping=1.0), "
            f"and {onward}."
        )

    def save_checkpoint(self, step: int, rank_state: dict[str, Any] | None = None) -> Path:
        """`save_checkpoint` into the run's folder, keeping the last `keep_last`."""
        return save_checkpoint(self.accelerator, self.output_dir, step, rank_state, self.keep_last)

    def save_final(self, model: nn.Module, *processors: Any) -> Path:
        """Writes `final/` with `save_pretrained` of the model and of each processor: aside, then renamed.

        Where a run that had ended was resumed, its `final/` is left as it is, with what was put there since.
        """
        final = self.output_dir / "final"
        if self._finished:
            logger.info("%s had ended: %s is left as it is", self.output_dir, final)
            return final
        partial = final.with_name(final.name + PARTIAL_SUFFIX)
        state_dict = self.accelerator.get_state_dict(model)  # gathers shards: every process takes part
        if self.accelerator.is_main_process:
            with writing(final, ADVICE):
                empty_folder(partial)
                self.accelerator.unwrap_model(model).save_pretrained(partial, state_dict=state_dict)
                for processor in processors:
                    processor.save_pretrained(partial)
                commit_folder(partial, final)
        self.accelerator.wait_for_everyone()
        return final


def _plain(value: Any) -> Any:
    """Tuples as lists: safe YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain_number(value: Any) -> Any:
    """Scalars of torch as numbers, and None for what JSON cannot hold (a deviation over a batch of one)."""
    value = value.item() if isinstance(value, torch.Tensor) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
