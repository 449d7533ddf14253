"""The processes of a program: one group, or one sentence.

accelerator = build_accelerator(mixed_precision="bf16")
"""

import os
import sys
from collections.abc import Mapping

import torch
from accelerate import Accelerator, PartialState

from ..modeling_base import warn_if_bfloat16_is_slow


# Set by torchrun or mpirun for every process of a group
GROUP_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def build_accelerator(**options) -> Accelerator:
    """An Accelerator, also for several processes on CPUs, which form a group with gloo.

    Raises:
        ValueError: several processes were asked for, and this one is alone.
    """
    check_launcher(os.environ)
    # Without `cpu=True` Accelerate forms no group on a CPU: each process would train alone
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **options)
    check_group(accelerator.num_processes, accelerator.device, os.environ)
    if accelerator.mixed_precision == "bf16":
        warn_if_bfloat16_is_slow(accelerator.device, torch.bfloat16)
    return accelerator


def build_state() -> PartialState:
    """A PartialState, see `build_accelerator`."""
    check_launcher(os.environ)
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_group(state.num_processes, state.device, os.environ)
    return state


def check_launcher(environment: Mapping[str, str]) -> None:
    """Refuses `accelerate launch --cpu --num_processes 2`, which starts one process. It sets the address of a group
    and no rank."""
    sizes = [environment.get(name, "1") for name in GROUP_SIZES]
    alone = "LOCAL_RANK" not in environment and all(size in ("", "0", "1") for size in sizes)
    if alone and "ACCELERATE_USE_CPU" in environment and "MASTER_PORT" in environment:
        raise ValueError(
            "`accelerate launch` starts a single process on a machine without GPUs, but more were asked for: use "
            f"`torchrun --nproc_per_node N {sys.argv[0]} ...`, or --num_processes 1 (and unset MASTER_PORT)."
        )


def check_group(num_processes: int, device: torch.device, environment: Mapping[str, str]) -> None:
    """Refuses a process that is alone although its launcher started several."""
    started = environment.get("WORLD_SIZE", "1")
    if started != str(num_processes):
        raise ValueError(
            f"WORLD_SIZE is {started}, but this process is in a group of {num_processes} on device {str(device)!r}: "
            "launch it with torchrun or accelerate, on a device that Accelerate can connect (CPU, CUDA), or unset "
            "WORLD_SIZE for a single process."
        )
