"""The training loop of all scripts: micro-batches, checks, logging, checkpoints, resuming.

loop = TrainingLoop(config, "decoder")                     # output folder, accelerator, trackers
model, optimizer = loop.prepare(model, optimizer, processor)   # and resume
for step in loop.steps():                                  # learning rate and progress bar
    losses = loop.update(batches, forward_backward)        # one update of the weights
    if loop.is_logged(step):
        loop.log(losses)
    loop.save_checkpoint()
loop.finish(model, processor)                              # OUTPUT_DIR/final

SIGTERM, SIGUSR1 and SIGHUP, to any process, end the run after its step with a checkpoint; see `StopSignals`.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn
from tqdm import tqdm

from ..data.files import weights_fingerprint
from .batches import next_batch
from .checkpoints import write_model_files
from .config import TrainingConfig
from .monitor import SpikeGuard, Throughput, gradient_norm
from .processes import build_accelerator
from .run import Run, check_tracker, trackio_run
from .schedules import set_learning_rate
from .signals import StopSignals


class TrainingLoop:
    """Runs the steps of one training, from an empty or interrupted `output_dir` to `final/`.

    Attributes:
        name: for trackers and the progress bar.
        start, rank_state: steps done and state of this process in the resumed checkpoint; set by `prepare`.
        scheduled: `config.scheduled` of the current step.
        throughput: samples per second since the last log.
        guard: finds the spikes of the loss, whose steps change nothing; `None`: no step is skipped.
        is_skipped: whether the last step was.
        signals: the stop signals, handled until `finish`, or until this object is gone.

    Raises:
        ValueError: the folder or its settings do not allow this run, a tracker is not installed, or the processes form
            no group.
    """

    def __init__(self, config: TrainingConfig, name: str, accelerator: Accelerator | None = None):
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        check_tracker(config.log_with)
        self.config, self.name = config, name
        # Until the first step nothing is lost, so that a signal needs no checkpoint
        self.signals = StopSignals(" before the first step; run the same command again (finished features are kept)")
        weakref.finalize(self, self.signals.restore)
        self._is_stopping = False
        self.accelerator = accelerator or build_accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.log_with,
            project_dir=config.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # no second copy of them
        )
        self.signals.is_silent = not self.accelerator.is_main_process
        self.run = Run(config, self.accelerator)
        self.run.check(config.resume)  # before hours of encoding
        self.accelerator.init_trackers(name, init_kwargs={"trackio": trackio_run(config)})
        self.model = self.optimizer = None
        self.start, self.rank_state, self.scheduled = 0, {}, {}
        self.throughput = Throughput(self.accelerator)
        deviations = getattr(config, "skip_loss_spikes", None)
        self.guard = None if deviations is None else SpikeGuard(deviations)
        self.is_skipped = False

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *processors: Any, encoder: nn.Module | None = None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Prepares both for training with Accelerate and restores them from the checkpoint of `config.resume`. New
        checkpoints also hold the model's config and its processors, for `from_pretrained`.

        `encoder` is the part of the model whose features are computed already: a checkpoint with another is refused.
        """
        if any(part.dtype in (torch.bfloat16, torch.float16) for part in model.parameters()):
            model.float()  # a model saved in half precision: small updates and the moving average would round away
        is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        checked = encoder if self.config.resume is not None and not is_sharded else None
        before = None if checked is None else weights_fingerprint(checked)
        self.run.write_model_files = functools.partial(write_model_files, model=model, processors=processors)
        if has_idle_weights(model):  # DDP would wait for the gradients that a batch lacks
            handler = self.accelerator.ddp_handler or DistributedDataParallelKwargs()
            handler.find_unused_parameters = True
            self.accelerator.ddp_handler = handler
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.start, self.rank_state = self.run.resume(self.config.resume)
        if checked is not None and weights_fingerprint(checked) != before:
            raise ValueError(
                f"resume={self.config.resume} has another encoder than this run, which has encoded the data: give the "
                "encoder that it was trained on, by the settings of its run."
            )
        state = self.rank_state.get("processes", [self.rank_state])[0]  # every process has seen the same losses
        if self.guard is not None and "guard" in state:
            self.guard.load_state_dict(state["guard"])
        return self.model, self.optimizer

    @property
    def first_micro_batch(self) -> int:
        """Number of the first micro-batch that is left to do, from 0."""
        return self.start * self.config.gradient_accumulation_steps

    def steps(self) -> Iterator[int]:
        """The steps that are left, from 1; each begins with its learning rate. A stop signal ends them."""
        self.throughput.reset()
        self.signals.deferred = True
        self.progress = tqdm(
            range(self.start + 1, self.config.max_steps + 1),
            initial=self.start,
            total=self.config.max_steps,
            disable=not self.accelerator.is_main_process,
            desc=self.name,
        )
        with self.progress:
            for step in self.progress:
                # Schedules depend on the step alone: a resumed run needs no state of them
                self.step, self.scheduled = step, self.config.scheduled(step)
                set_learning_rate(self.optimizer, self.scheduled["learning_rate"])
                yield step
        if self.accelerator.num_processes == 1:  # several write final/: one that ended would take the others with it
            self.signals.end_program_at(" after the last step, before final/ was written; continue with resume=latest")

    def update(
        self,
        batches: Iterator[tuple[list[str], Any]],
        forward_backward: Callable[[Any], dict[str, torch.Tensor]],
    ) -> dict[str, Any]:
        """One update of the weights from `gradient_accumulation_steps` micro-batches. Returns the losses, means over
        micro-batches and processes; `gradient_norm` before clipping; with a `guard` `skipped_steps` so far;
        `scheduled`.

        Args:
            batches: names of the samples, for error reports, and what `forward_backward` takes.
            forward_backward: computes the losses of a micro-batch by name, `loss` first, and adds their gradient with
                `accelerator.backward`.

        Raises:
            ValueError: loss or gradient is not finite. The weights are left as they were, see `Run.check_finite`.
        """
        accelerator, losses, names = self.accelerator, [], []
        self.throughput.samples += self.config.samples_per_step(accelerator.num_processes)
        for _ in range(self.config.gradient_accumulation_steps):
            with self.throughput.waiting():
                sample_names, batch = next_batch(batches)
            names.append(sample_names)
            with accelerator.accumulate(self.model):
                parts = forward_backward(batch)
                losses.append(torch.stack([part.detach().float() for part in parts.values()]))
                if accelerator.sync_gradients:
                    # Checked before the update and over all processes: they stop together with good weights
                    means = self._reduce_means(torch.stack(losses).mean(0))
                    norm = gradient_norm(accelerator, self.model.parameters(), self.config.gradient_clipping)
                    self.run.check_finite(self.step, means[0], norm, [part[0] for part in losses], names)
                    self.is_skipped = self.guard is not None and self.guard.is_spike(means[0])
                    if self.is_skipped:
                        self.optimizer.zero_grad()  # without gradients the optimizer changes nothing
                self.optimizer.step()
                self.optimizer.zero_grad()
        counted = {} if self.guard is None else {"skipped_steps": self.guard.skipped}
        return {**dict(zip(parts, means, strict=True)), "gradient_norm": norm, **counted, **self.scheduled}

    def _reduce_means(self, losses: torch.Tensor) -> list[float]:
        """Means over the processes, which also agree here whether a signal has reached any of them."""
        if self.accelerator.num_processes == 1:
            return losses.tolist()
        requested = losses.new_tensor([self.signals.requested is not None])
        *means, requested = self.accelerator.reduce(torch.cat([losses, requested]), "mean").tolist()
        self._is_stopping = requested > 0
        return means

    def run_steps(self, batches: Iterator, forward_backward: Callable) -> None:
        """The steps that are left, if nothing but `update` is done in them."""
        for step in self.steps():
            metrics = self.update(batches, forward_backward)
            if self.is_logged(step):
                self.log(metrics)
            self.save_checkpoint()

    def is_logged(self, step: int) -> bool:
        """Whether the metrics of a step are logged: every `log_every` steps, with an evaluation, and at the end."""
        evaluated = getattr(self.config, "eval_every", None) and step % self.config.eval_every == 0
        return evaluated or step % self.config.log_every == 0 or step == self.config.max_steps

    def log(self, metrics: dict[str, Any], *shown: str) -> None:
        """Logs the metrics of the current step; those named in `shown`, or `loss`, appear in the progress bar."""
        self.run.log({"step": self.step, **metrics})
        self.progress.set_postfix({name: f"{metrics[name]:.4f}" for name in shown or ("loss",)})

    def save_checkpoint(self, rank_state: Callable[[], dict[str, Any]] = dict) -> None:
        """Saves a checkpoint every `save_every` steps and at the end, with what this process needs to resume. After a
        signal it saves one and ends the program."""
        if self.accelerator.num_processes == 1:
            self._is_stopping = self.signals.requested is not None
        if self._is_stopping or self.step % self.config.save_every == 0 or self.step == self.config.max_steps:
            guard = {} if self.guard is None else {"guard": self.guard.state_dict()}
            checkpoint = self.run.save_checkpoint(self.step, {**rank_state(), **guard})
            if self._is_stopping:
                self._stop(checkpoint)

    def _stop(self, checkpoint: Path) -> NoReturn:
        self.progress.close()
        self.accelerator.end_training()
        try:
            self.signals.stop(f" after step {self.step}: {checkpoint} is saved; continue with resume=latest")
        finally:
            self.signals.restore()

    def finish(self, model: nn.Module, *processors: Any) -> None:
        """Saves `final/` and ends the trackers and the group of processes."""
        self._save_final(model, *processors)
        self.accelerator.end_training()
        self.signals.restore()

    def finish_stage(self, model: nn.Module, *processors: Any) -> None:
        """As `finish`, where another run follows in this program: the group of processes stays."""
        self._save_final(model, *processors)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()
        self.signals.restore()

    def _save_final(self, model: nn.Module, *processors: Any) -> None:
        final = self.run.save_final(model, *processors)
        if self.accelerator.is_main_process:
            if not (final / "config.json").is_file() or not any(final.glob("*.safetensors")):
                raise OSError(f"{str(final)!r} holds no model after saving; look at its disk, then set resume=latest.")
            tqdm.write(f"complete: {final} stays as it is" if self.run.is_complete else f"saved {final}")


def has_idle_weights(model: nn.Module) -> bool:
    """Whether a model learns weights that a batch may not use: those of images or of videos alone, and the norms of
    levels that the loss does not read."""
    parts = ("image_patch_embeddings.", "modality_embedding", "level_norms.")
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return any(part in name for name in names for part in parts)
