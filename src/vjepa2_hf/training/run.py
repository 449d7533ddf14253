"""The folder of a training run: settings, metrics, checkpoints and the final model.

    run = Run(config, accelerator)
    step, rank_state = run.resume(config.resume)                            # after accelerator.prepare(...)
    run.log({"step": step, "loss": 0.7})
    run.save_checkpoint(step, rank_state={"loader": loader.state_dict()})
    run.save_final(model, processor)

The folder holds `config.yaml`, `metrics.jsonl` (one object per logged step), `checkpoint-<step>/` and `final/`. If a
loss or gradient was not finite, `offending_batch.json` names its samples. Everything is written to `*.tmp` first and
then renamed, so a killed run leaves no half-written results. `.lock` is locked while a run uses the folder.
"""

import dataclasses
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch import nn

from ..data.files import (
    PARTIAL_SUFFIX,
    commit_folder,
    empty_folder,
    lock_folder,
    move_aside,
    plain_numbers,
    sync,
    write_json,
    write_text,
    writing,
)
from .checkpoints import (
    ADVICE,
    DamagedCheckpoint,
    checkpoints,
    describe_files,
    find_damage,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
    verify_checkpoint,
)
from .config import TrainingConfig
from .resuming import (
    allow_other_split,
    describe_other_processes,
    load_rank_states,
    past_batch_size,
)
from .run_files import (
    CONFIG,
    FINAL_STEP,
    METRICS,
    OFFENDING,
    read_metrics,  # noqa: F401 (its public path)
    refuse_files_of_others,
    remove_partial_writes,
    skip_logs,
    truncate_metrics,
)
from .settings import dump_yaml, load_config


logger = logging.getLogger(__name__)

# Settings that do not change what a run learns: a resumed run may have others
FREE_SETTINGS = (
    "output_dir", "resume", "log_every", "save_every", "keep_last", "log_with", "num_threads",
    "gradient_checkpointing", "horizons", "max_skipped_fraction", "cache_dir", "eval_every",
    "eval_data", "eval_probe_data", "eval_clips",
    "evaluate_on", "limits", "num_workers", "video_cache_bytes",
)  # fmt: skip

LATEST_UNDAMAGED = "latest_undamaged"  # a value of `resume`


def check_tracker(log_with: str | None) -> None:
    """Refuses a tracker whose package is not installed; Accelerate would ignore it without a message."""
    if log_with is not None and log_with not in map(str, get_available_trackers()):
        raise ValueError(
            f"log_with={log_with} needs the package {log_with!r}, which is not installed; `pip install {log_with}`, "
            "or set log_with=null (metrics.jsonl is written in any case)."
        )


def trackio_run(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `trackio.init`: the run has the name of its folder, and its curves continue when it resumes."""
    resume = "never" if config.resume is None else "allow"
    return {"name": os.fspath(config.output_dir), "resume": resume, "config": _plain_settings(config)}


def check_sharding(accelerator: Accelerator) -> None:
    """Refuses FSDP where Accelerate would ignore it without a message, and FSDP 1."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" and plugin is None:
        return
    if accelerator.device.type == "cpu":
        raise ValueError(
            "FSDP does not work on a CPU: Accelerate would shard nothing, without a message. Launch with torchrun, or "
            "run on GPUs."
        )
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {plugin.fsdp_version}, whose flat parameters the target encoder's average cannot "
            "follow; set fsdp_version: 2, as in examples/configs/accelerate/fsdp.yaml."
        )


def changed_settings(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """The settings, except `FREE_SETTINGS`, in which two configs of one dataclass differ: {dotted key: (before, now)}.
    A missing value counts as None."""
    was, given = (_flatten(_plain_settings(config)) for config in (before, now))
    keys = [key for key in {**was, **given} if key.split(".")[0] not in FREE_SETTINGS]
    return {key: (was.get(key), given.get(key)) for key in keys if was.get(key) != given.get(key)}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


class Run:
    """The folder of one training run, `config.output_dir`, locked for this process.

    It is created if it does not exist. `resume` removes what an interrupted run left half written.

    Raises:
        OSError: another process runs in the folder.
        ValueError: Accelerate would ignore a setting without a message.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.output_dir = Path(config.output_dir)
        self.metrics_path = self.output_dir / METRICS
        self.write_model_files: Callable[[Path], None] | None = None  # into each checkpoint
        self.is_complete = False  # whether it had ended before it was resumed
        self._damaged: list[Path] = []  # checkpoints that `latest_undamaged` has passed over
        self._verified: Path | None = None
        self.resumed: Path | None = None  # checkpoint that `resume` has restored
        check_sharding(accelerator)
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError(
                "mixed_precision=fp16 does not work on a CPU: Accelerate would compute in float32, without a message. "
                "Set mixed_precision=bf16 or no, or run on a GPU."
            )
        if accelerator.is_main_process:
            self._lock = lock_folder(self.output_dir, reentrant=True)  # until the process or this object ends
        accelerator.wait_for_everyone()

    def check(self, resume: str | None) -> None:
        """Raises the errors of `resume` about folder, damage and settings, before the long work of a script."""
        checkpoint = self._find_checkpoint(resume)
        refuse_files_of_others(self.output_dir, bool(checkpoints(self.output_dir)), self.config.result_files)
        if checkpoint is not None and self._owns(checkpoint):
            try:
                self._check_settings(checkpoint)
            except DamagedCheckpoint as error:
                self._pass_over(error, resume)
                self.check(resume)

    def resume(self, resume: str | None) -> tuple[int, dict[str, Any]]:
        """Restores a checkpoint; call it after `accelerator.prepare` and before the first step. Returns the optimizer
        steps done and the rank_state of `load_checkpoint`: (0, {}) at the start.

        A run resumes in its own folder with its original settings, so that it learns what it would have learned
        without the stop. Two kinds of settings may change: `FREE_SETTINGS`, and schedules (`config.schedule_settings`)
        whose values are the same for all past steps. A checkpoint of another folder may continue with any settings;
        the differences are logged.

        Args:
            resume: "latest" (from the start if there is no checkpoint yet); "latest_undamaged", which renames damaged
                later ones to `checkpoint-<step>.damaged`; a checkpoint (path, or name in the run's folder); or None
                for a new run, which must not find another run's results in its folder.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: the checkpoint is damaged or does not fit this run. Nothing has been written then.
        """
        checkpoint, own = self._find_checkpoint(resume), False
        refuse_files_of_others(self.output_dir, bool(checkpoints(self.output_dir)), self.config.result_files)
        step, rank_state = 0, {}
        if checkpoint is not None:
            own = self._owns(checkpoint)
            try:
                before = self._check_settings(checkpoint)
                step, rank_state = load_checkpoint(self.accelerator, checkpoint, verified=True)
            except DamagedCheckpoint as error:
                self._pass_over(error, resume)
                return self.resume(resume)
        self._check_steps(step)
        ended = own and step == self.config.max_steps
        self.is_complete = ended and _is_final_of(self.output_dir / "final", checkpoint, step)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for path in self._damaged:
                logger.warning("renamed the damaged %s to %s", path, move_aside(path, "damaged"))
            remove_partial_writes(self.output_dir)
            for path in [] if own else skip_logs(self.output_dir):
                path.unlink()  # of a run that left no checkpoint
            (self.output_dir / OFFENDING).unlink(missing_ok=True)
            truncate_metrics(self.metrics_path, step)
            write_text(self.output_dir / CONFIG, dump_yaml(_plain_settings(self.config)))
        self.accelerator.wait_for_everyone()  # before other processes read these files
        if step:
            logger.info("resumed %s at step %d", checkpoint, step)
            self._describe_processes(checkpoint, before)
        self.resumed = checkpoint
        return step, rank_state

    def _describe_processes(self, checkpoint: Path, before: TrainingConfig) -> None:
        """Says what another number of processes changes."""
        progress, processes = read_progress(checkpoint), self.accelerator.num_processes
        sentence = describe_other_processes(checkpoint, before, self.config, progress, processes)
        if sentence and self.accelerator.is_main_process:
            logger.warning(sentence)

    def read_rank_states(self) -> list[dict[str, Any]]:
        """The rank_state of every process that wrote the resumed checkpoint, by rank."""
        return load_rank_states(self.resumed, read_progress(self.resumed)["num_processes"])

    def _owns(self, checkpoint: Path) -> bool:
        return checkpoint.parent.resolve() == self.output_dir.resolve()

    def _check_steps(self, step: int) -> None:
        """Refuses to continue from `step` if later checkpoints exist or no steps are left."""
        later = [path.name for other, path in self._undamaged().items() if other > step]
        if later:
            raise ValueError(
                f"{str(self.output_dir)!r} holds {', '.join(later)}, later than step {step} to resume from; remove "
                "them, set resume=latest, or choose another output_dir."
            )
        if step > self.config.max_steps:
            raise ValueError(
                f"max_steps={self.config.max_steps} is below the {step} steps that are done; set max_steps={step} or "
                "more, or resume an earlier checkpoint in another output_dir."
            )

    def _find_checkpoint(self, resume: str | None) -> Path | None:
        if resume is None:
            results = [*checkpoints(self.output_dir).values(), *self.output_dir.glob("final")]
            if results:
                raise ValueError(
                    f"{str(self.output_dir)!r} already holds a run ({results[-1].name}); set resume=latest to "
                    "continue it, or choose another output_dir."
                )
            return None
        if resume in ("latest", LATEST_UNDAMAGED):
            return self._find_latest(resume)
        found = [path for path in (self.output_dir / resume, Path(resume)) if path.is_dir()]
        if not found:
            known = ", ".join(path.name for path in checkpoints(self.output_dir).values()) or "none"
            raise FileNotFoundError(
                f"There is no checkpoint folder {resume!r}, neither as a path nor in {str(self.output_dir)!r}, which "
                f"holds {known}."
            )
        self._verify(found[0], resume)
        return found[0]

    def _verify(self, checkpoint: Path, resume: str) -> bool:
        """Whether the files of a checkpoint are as they were written, see `_pass_over`."""
        if checkpoint != self._verified:
            try:
                verify_checkpoint(self.accelerator, checkpoint)
            except DamagedCheckpoint as error:
                self._pass_over(error, resume)
                return False
        self._verified = checkpoint
        return True

    def _undamaged(self) -> dict[int, Path]:
        """The checkpoints in the run's folder that are not known to be damaged."""
        return {step: path for step, path in checkpoints(self.output_dir).items() if path not in self._damaged}

    def _find_latest(self, resume: str) -> Path | None:
        """The latest checkpoint, whose files are as they were written; for "latest_undamaged" the latest such."""
        while left := list(self._undamaged().values()):
            if self._verify(left[-1], resume):
                return left[-1]
        if self._damaged:
            names = ", ".join(path.name for path in self._damaged)
            raise ValueError(
                f"All checkpoints in {str(self.output_dir)!r} are damaged ({names}); "
                "move them to another folder to start again with resume=latest, or choose another output_dir."
            )
        return None

    def _pass_over(self, error: DamagedCheckpoint, resume: str | None) -> None:
        """Notes a damaged checkpoint if `resume` allows an earlier one; otherwise says how to."""
        path = error.checkpoint
        if not self._owns(path):
            raise error
        if resume == LATEST_UNDAMAGED:
            logger.warning("%s is damaged (%s)", path, error.reason)
            self._damaged.append(path)
            return
        earlier = list(itertools.takewhile(lambda other: other.name != path.name, self._undamaged().values()))
        while earlier and find_damage(earlier[-1]):
            earlier.pop()
        onward = "there is no earlier one that is undamaged: move it away to start again, or set another output_dir"
        if earlier:
            renamed = f"renames {path.name} to {path.name}.damaged"
            onward = f"continue with resume={LATEST_UNDAMAGED}, which resumes {earlier[-1].name} and {renamed}"
        raise DamagedCheckpoint(path, error.reason, onward) from error

    def _check_settings(self, checkpoint: Path) -> TrainingConfig:
        """Compares the settings with the original ones of the checkpoint's run, see `resume`, and returns those."""
        path = checkpoint.parent / "config.yaml"
        if not path.is_file():
            logger.warning("%s does not exist: cannot compare the settings of %s with this run's", path, checkpoint)
            return self.config
        try:
            before = load_config(type(self.config), path)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is not a config of this script ({error}).") from error
        progress, processes = read_progress(checkpoint), self.accelerator.num_processes
        changed = changed_settings(before, self.config)
        changed = allow_other_split(changed, before, self.config, progress, processes)
        scheduled = {key for key in changed if key.split(".")[0] in self.config.schedule_settings}
        if scheduled:
            steps = range(1, progress["step"] + 1)
            if all(before.scheduled(step) == self.config.scheduled(step) for step in steps):
                changed = {key: value for key, value in changed.items() if key not in scheduled}
        if not changed:
            return before
        listed = ", ".join(f"{key}={now!r} (was {was!r})" for key, (was, now) in changed.items())
        if not self._owns(checkpoint):
            logger.warning("%s continues %s with other settings: %s", self.output_dir, checkpoint, listed)
            return before
        hint = ""
        if changed.keys() & set(self.config.split_settings):
            samples = past_batch_size(progress, before)
            hint = f" {' and '.join(self.config.split_settings)} may change if a step keeps its {samples} samples."
        raise ValueError(
            f"{str(self.output_dir)!r} cannot resume: these settings differ from the original run and would have "
            f"changed its past steps: {listed}; set them back, or continue in another folder with resume={checkpoint}."
            + hint
        )

    def log(self, metrics: dict[str, float | torch.Tensor | str | None]) -> None:
        """Appends one object to `metrics.jsonl`; `metrics` holds `step`; a tensor is one number, () or
        (1,). Numbers go to the trackers too."""
        plain = plain_numbers(metrics)
        if self.accelerator.is_main_process:
            with writing(self.metrics_path, ADVICE), open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain, allow_nan=False) + "\n")
        numbers = {name: value for name, value in plain.items() if isinstance(value, (int, float)) and name != "step"}
        self.accelerator.log(numbers, step=plain["step"])

    def check_finite(
        self, step: int, loss: float, gradient_norm: float, losses: Sequence[float], clips: Sequence[list[str]]
    ) -> None:
        """Raises a ValueError before the update `step` if it would destroy the weights. `offending_batch.json` holds
        the names of its samples, and the last checkpoint stays.

        Args:
            loss, gradient_norm: the same for all processes, so that they stop together; under fp16 the scaler handles
                an infinite gradient.
            losses, clips: the loss and the names of the samples of each micro-batch of this process.
        """
        scaled = self.accelerator.scaler is not None
        if math.isfinite(loss) and (scaled or math.isfinite(gradient_norm)):
            return
        name, value = ("gradient norm", gradient_norm) if math.isfinite(loss) else ("loss", loss)
        own = [{"loss": float(part), "clips": names} for part, names in zip(losses, clips)]
        everyone = gather_object([{"process": self.accelerator.process_index, **batch} for batch in own])
        path, last = self.output_dir / OFFENDING, latest_checkpoint(self.output_dir)
        if self.accelerator.is_main_process:
            found = {"step": step, "loss": loss, "gradient_norm": gradient_norm, "batches": everyone}
            write_json(path, plain_numbers(found))
        onward = f"continue in another output_dir with resume={last}" if last else "start again"
        raise ValueError(
            f"The {name} of step {step} is {value}; the names of its clips are in {str(path)!r}. Look for "
            "values there that are not finite, lower the learning rate or clip gradients (gradient_clipping=1.0), and "
            f"{onward}."
        )

    def save_checkpoint(self, step: int, rank_state: dict[str, Any] | None = None) -> Path:
        """`save_checkpoint` into the run's folder, keeping the last `config.keep_last`. The logs up to `step` are on
        disk before it."""
        if self.accelerator.is_main_process:
            with writing(self.output_dir, ADVICE):
                for path in (self.metrics_path, *skip_logs(self.output_dir)):
                    if path.is_file():
                        sync(path)
        keep_last, write_more = self.config.keep_last, self.write_model_files
        samples = self.config.samples_per_step(self.accelerator.num_processes)
        return save_checkpoint(self.accelerator, self.output_dir, step, rank_state, keep_last, write_more, samples)

    def save_final(self, model: nn.Module, *processors: Any) -> Path:
        """Writes `final/` with `save_pretrained` of the model and of each processor, and the step that it is of. If a
        run was resumed after its end, its `final/` stays as it is, with files that were added since. If it went on
        and a user has added or changed files in the `final/` before, that one is kept as `final.edited`."""
        final = self.output_dir / "final"
        if self.is_complete:
            logger.info("%s had ended: %s stays as it is", self.output_dir, final)
            return final
        partial = final.with_name(final.name + PARTIAL_SUFFIX)
        state_dict = self.accelerator.get_state_dict(model)  # gathers shards: every process takes part
        if self.accelerator.is_main_process:
            with writing(final, ADVICE):
                empty_folder(partial)
                self.accelerator.unwrap_model(model).save_pretrained(partial, state_dict=state_dict)
                for processor in processors:
                    processor.save_pretrained(partial)
                files, done = describe_files(partial), checkpoints(self.output_dir)
                if done:
                    write_json(partial / FINAL_STEP, {"step": max(done), "files": files}, indent=None)
                if edited := _edited_files(final, files):
                    aside = move_aside(final, "edited")
                    logger.warning("%s holds %s, which this run has not written: it is kept as %s",
                                   final, ", ".join(edited), aside)  # fmt: skip
                commit_folder(partial, final)
        self.accelerator.wait_for_everyone()
        return final


def _is_final_of(final: Path, checkpoint: Path, step: int) -> bool:
    """Whether `final/` is of this checkpoint, and not of an earlier end of the run. Times decide where `final/` does
    not record its step, as in 0.1; a copy of a run may have other times."""
    if not final.is_dir():
        return False
    try:
        return json.loads((final / FINAL_STEP).read_text(encoding="utf-8"))["step"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return final.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def _edited_files(final: Path, written: dict[str, Any]) -> list[str]:
    """The files of `final/` that a user has added or changed; those changed are known unless version 0.1 wrote it.
    `written` are the files of the new `final/`."""
    if not final.is_dir() or final.is_symlink():
        return []
    found = describe_files(final)
    step = found.pop(FINAL_STEP, None)
    try:
        before = json.loads((final / FINAL_STEP).read_text(encoding="utf-8")).get("files") if step else None
    except (ValueError, AttributeError):
        before = None
    if not isinstance(before, dict):
        return sorted(found.keys() - written.keys())
    return sorted(name for name, state in found.items() if before.get(name) != state)


def _plain_settings(config: Any) -> dict[str, Any]:
    """Settings with tuples as lists: safe YAML has no tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
