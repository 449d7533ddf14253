"""Peak memory of one task above what the imports take; `bench.py --full` runs every task in a process of its own.

python benchmarks/memory.py cem_plan_chunked
"""

import json
import resource
import sys
from functools import partial
from pathlib import Path


def plan(baseline: bool, horizon: int = 5, candidates: int = 256) -> None:
    from comparisons import VIT_S, PlanningPair

    pair = PlanningPair(VIT_S, 128, horizon, candidates, chunk_size=8)
    pair.plan(pair.other_cost if baseline else pair.our_cost)


def pretrain(baseline: bool) -> None:
    from comparisons import VIT_S, PretrainingPair

    pair = PretrainingPair(VIT_S, 2, 16, 128)
    if baseline:
        del pair.model
        step = pair.other_step()
    else:
        del pair.other, pair.other_target
        step = pair.our_step()
    for _ in range(2):  # the second has the optimiser's state
        step()


TASKS = {
    "cem_plan, 256 candidates in chunks of 8, H=5": partial(plan, baseline=False),
    "cem_plan, 256 candidates, recompute all, unchunked, H=5": partial(plan, baseline=True),
    "pretraining_step, 2 x 16x128^2": partial(pretrain, baseline=False),
    "pretraining_step, 2 x 16x128^2, transformers way": partial(pretrain, baseline=True),
}


def peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` would begin with the parent's on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    import comparisons  # noqa: F401 all imports, before the first reading
    import torch

    torch.set_num_threads(1)
    imports = peak_bytes()
    TASKS[sys.argv[1]]()
    megabytes = {"imports_mb": imports / 2**20, "peak_mb": (peak_bytes() - imports) / 2**20}
    print(json.dumps({"name": sys.argv[1], **megabytes}))


if __name__ == "__main__":
    main()
