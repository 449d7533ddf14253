"""Settings that all training scripts share.

@dataclass(kw_only=True)
class MyConfig(TrainingConfig):
    data: str
    learning_rate: LearningRateSchedule = field(default_factory=LearningRateSchedule)

config = parse_arguments(MyConfig, __doc__)
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..data.typed_fields import check_fields


MAX_THREADS = 1024  # more end torch with a segmentation fault


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of one training run; a script adds its data, model and optimizer."""

    output_dir: str
    """Folder of the run."""
    max_steps: int = 1000
    """Optimizer steps. One step is one update of the weights."""
    batch_size: int = 16
    """Samples per process and micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per step."""
    gradient_clipping: float | None = None
    """Largest norm of the gradient, above 0; null: no clipping."""
    seed: int = 0
    num_workers: int = 0
    """Processes that load data; scripts that keep their data in memory start none."""
    num_threads: int | None = None
    """Threads of torch; null: torch's default."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: the setting of `accelerate launch`."""
    log_every: int = 10
    save_every: int = 500
    keep_last: int | None = 2
    """Checkpoints to keep, at least 1; null keeps all."""
    resume: str | None = None
    """"latest", "latest_undamaged" (renames damaged later ones), a checkpoint, or null for a new run."""
    log_with: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Tracker that also receives the metrics; its package must be installed."""

    schedule_settings: ClassVar[tuple[str, ...]] = ("max_steps", "learning_rate")
    """The settings that `scheduled` depends on."""
    result_files: ClassVar[tuple[str, ...]] = ()
    """Files that the script writes into output_dir besides those of every run."""
    renamed_settings: ClassVar[dict[str, str]] = {}
    """Old names of settings, which configs and the command line may still use, and the new ones."""

    def __post_init__(self):
        check_fields(self)
        self.require_positive(
            "max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "save_every", "num_threads"
        )
        if self.num_threads is not None and self.num_threads > MAX_THREADS:
            raise ValueError(f"num_threads is {self.num_threads}, expected at most {MAX_THREADS}.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}, expected 0 (none) or more processes.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0 to {2**32 - 1}, got {self.seed}.")
        if self.keep_last is not None and self.keep_last < 1:
            raise ValueError(f"keep_last is {self.keep_last}, expected at least 1 checkpoint, or null to keep all.")
        if self.gradient_clipping is not None and not self.gradient_clipping > 0:
            raise ValueError(f"gradient_clipping must be above 0, got {self.gradient_clipping}; null: no clipping.")
        weight_decay = getattr(self, "weight_decay", 0.0)
        if isinstance(weight_decay, (int, float)) and not weight_decay >= 0:
            raise ValueError(f"A weight decay is a number of at least 0, but weight_decay is {weight_decay}.")

    def require_positive(self, *names: str) -> None:
        """Refuses counts below 1; None is allowed."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def require_fraction(self, *names: str) -> None:
        """Refuses fractions outside 0 to 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a fraction from 0 to 1.")

    def samples_per_step(self, num_processes: int) -> int:
        """Samples per step over all processes and micro-batches."""
        return self.batch_size * self.gradient_accumulation_steps * num_processes

    @property
    def split_settings(self) -> tuple[str, ...]:
        """Settings that may change together when a run resumes, if a step keeps its number of samples."""
        return ("batch_size", "gradient_accumulation_steps")

    def scheduled(self, step: int) -> dict[str, Any]:
        """All values that depend on the step (from 1) alone, such as the learning rate."""
        return {"learning_rate": self.learning_rate.at(step, self.max_steps)}
