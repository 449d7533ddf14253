"""Elastic resume: another number of processes, workers or micro-batches than the run that wrote a checkpoint had.

Weights, optimizer, schedules and counts continue exactly. A process that the old run did not have gets random numbers
of its own, and each data module restores its position from the states of all old processes.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, load, set_seed

from .config import TrainingConfig


def past_batch_size(progress: dict[str, int], before: TrainingConfig) -> int:
    """The global batch of the run that wrote a checkpoint; 0.1 recorded no such number in its progress."""
    return progress.get("global_batch_size") or before.samples_per_step(progress["num_processes"])


def allow_other_split(
    changed: dict[str, Any], before: TrainingConfig, now: TrainingConfig, progress: dict[str, int], num_processes: int
) -> dict[str, Any]:
    """The changed settings without `split_settings` if the global batch, and so the meaning of a step, is the same."""
    if past_batch_size(progress, before) != now.samples_per_step(num_processes):
        return changed
    return {key: values for key, values in changed.items() if key not in now.split_settings}


def describe_other_processes(
    checkpoint: Path, before: TrainingConfig, now: TrainingConfig, progress: dict[str, int], num_processes: int
) -> str | None:
    """A sentence about a checkpoint of another number of processes, or None."""
    was, old, new = progress["num_processes"], past_batch_size(progress, before), now.samples_per_step(num_processes)
    if was == num_processes:
        return None
    batch = f"the global batch stays {new} samples"
    if old != new:
        batch = (
            f"the global batch is now {new} samples instead of {old} (batch_size or gradient_accumulation_steps can "
            "keep it)"
        )
    processes = "1 process" if was == 1 else f"{was} processes"
    return (
        f"{checkpoint} was written by {processes} and continues with {num_processes}: weights, optimizer, "
        f"schedules and counts are exact; {batch}"
    )


def check_sharding_of(accelerator: Accelerator, checkpoint: Path) -> None:
    """Refuses to restore a checkpoint in shards without FSDP, and the opposite: their files differ."""
    is_sharded = any(checkpoint.glob("pytorch_model_fsdp*"))
    shards = accelerator.distributed_type == DistributedType.FSDP
    if is_sharded != shards:
        was, now = ("with" if value else "without" for value in (is_sharded, shards))
        raise ValueError(
            f"{str(checkpoint)!r} was written {was} FSDP and this run is {now} it; launch it {was} FSDP (accelerate "
            "launch --config_file examples/configs/accelerate/fsdp.yaml or ddp.yaml), with any number of processes."
        )


def load_rank_state(accelerator: Accelerator, checkpoint: Path, num_processes: int) -> dict[str, Any]:
    """What this process saved, or `{"processes": [...]}` of all `num_processes` of a run that had another number."""
    rank = accelerator.process_index
    if rank < num_processes:
        load(checkpoint / f"random_states_{rank}.pkl")  # Accelerate ignores an unreadable file without a message
    if accelerator.num_processes == num_processes:
        return torch.load(checkpoint / f"rank_state_{rank}.pt", weights_only=True)
    return {"processes": load_rank_states(checkpoint, num_processes)}


def load_rank_states(checkpoint: Path, num_processes: int) -> list[dict[str, Any]]:
    """What each process of a run saved, by rank."""
    return [torch.load(checkpoint / f"rank_state_{rank}.pt", weights_only=True) for rank in range(num_processes)]


def seed_new_process(accelerator: Accelerator, step: int, num_processes: int) -> None:
    """Random numbers for a process that the old run did not have; the others have restored theirs."""
    if accelerator.process_index >= num_processes:
        set_seed((step * 1_000_003 + accelerator.process_index) % 2**32)
