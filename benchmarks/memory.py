"""Peak memory of one task above that of the imports; `bench.py` runs every task in a process of its own.

python benchmarks/memory.py "pretraining_step, 2 x 16x128^2" ours
"""

import ctypes
import gc
import json
import resource
import sys
from functools import partial
from pathlib import Path


def plan(baseline: bool, horizon: int = 5, candidates: int = 256) -> None:
    from comparisons import VIT_S, PlanningPair

    pair = PlanningPair(VIT_S, 128, horizon, candidates, chunk_size=8)
    pair.plan(pair.other_cost if baseline else pair.our_cost)


def pretrain(baseline: bool, batch_size: int, side: int) -> None:
    from comparisons import VIT_S, PretrainingPair

    pair = PretrainingPair(VIT_S, batch_size, 16, side)
    if baseline:
        del pair.model
        step = pair.other_step()
    else:
        del pair.other, pair.other_target
        step = pair.our_step()
    for _ in range(2):  # the second has the optimizer's state
        step()


# Each runs once for our side and once, with `baseline=True`, for the other
TASKS = {
    "pretraining_step, 2 x 16x128^2": partial(pretrain, batch_size=2, side=128),
    "pretraining_step, 1 x 16x224^2": partial(pretrain, batch_size=1, side=224),
    "cem_plan, 256 candidates (ours: chunks of 8), H=5": plan,
}


# Without --full: long enough that weights are little beside what a plan holds
DEFAULT_TASKS = ["pretraining_step, 2 x 16x128^2", "cem_plan, 256 candidates (ours: chunks of 8), H=5"]


def peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` would begin with the parent's on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Gives unused memory back, and makes `peak_bytes` begin at the memory of now; on Linux alone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    import comparisons  # noqa: F401 all imports, before the first reading
    import torch

    torch.set_num_threads(1)
    imports = peak_bytes()
    _, name, side = sys.argv
    TASKS[name](baseline=side == "baseline")
    print(json.dumps({"imports_mb": imports / 2**20, "peak_mb": (peak_bytes() - imports) / 2**20}))


if __name__ == "__main__":
    main()
