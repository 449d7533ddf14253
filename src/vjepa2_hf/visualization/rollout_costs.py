"""Compute cost and held-out errors of a world model, as in the table of `examples/plan.py`."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..modeling_world_model import VJepa2WorldModel


HORIZONS = (1, 5, 10)  # model steps
TIMED = 5  # repetitions; their median counts


def measure_world_model(planner: Any, path: str) -> dict[str, Any]:
    """Costs of a planner's world model: `parameters` of the dynamics, `rollout_flops` per candidate and model step,
    `rollout_milliseconds` per model step of all `rollout_candidates` of the solver, `imagined_steps` per plan; and the
    `rollout_error` of the model saved at `path`, if training saved it."""
    candidates = getattr(planner.solver, "num_candidates", 1)
    return {
        "parameters": sum(parameter.numel() for parameter in planner.model.predictor.parameters()),
        "rollout_flops": count_flops(planner.model),
        "rollout_milliseconds": time_step(planner.model, candidates),
        "rollout_candidates": candidates,
        "imagined_steps": count_imagined_steps(planner.solver),
        **held_out_errors(path),
    }


def count_imagined_steps(solver: Any) -> int:
    """Model steps that a plan imagines: candidates x iterations x horizon."""
    iterations = range(getattr(solver, "num_iterations", 1))
    candidates = getattr(solver, "num_candidates", 1)
    counts = [
        solver.count_samples(number) if hasattr(solver, "count_samples") else candidates for number in iterations
    ]
    return solver.horizon * sum(counts)


@torch.no_grad()
def _step(model: VJepa2WorldModel, candidates: int) -> None:
    """One model step of all candidates from latents of zeros."""
    config, device = model.config, model.device
    sizes = {"proprio_states": config.proprio_dim, "extrinsics": config.extrinsics_dim}
    given = {name: torch.zeros(1, 1, size, device=device) for name, size in sizes.items() if size}
    given |= {"embodiment_ids": 0} if config.num_embodiments > 1 else {}
    latents = torch.zeros(1, 1, model.tokens_per_frame, model.latent_size, device=device, dtype=model.dtype)
    model.rollout(latents, torch.zeros(1, candidates, 1, config.action_dim, device=device), **given)


def count_flops(model: VJepa2WorldModel) -> int:
    """Floating-point operations of the matrix products in one candidate's step."""
    # torch does not count the fused attention of CPUs, but the products in it
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        _step(model, 1)
    return counter.get_total_flops()


def time_step(model: VJepa2WorldModel, candidates: int) -> float:
    """Milliseconds of one step of all candidates."""
    durations = []
    for _ in range(TIMED + 1):
        started = time.perf_counter()
        _step(model, candidates)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        durations.append(time.perf_counter() - started)
    return 1000 * sorted(durations[1:])[TIMED // 2]


def held_out_errors(path: str) -> dict[str, Any]:
    """`rollout_error` by horizon, from the `rollout_error.json` next to the model; {} without the file."""
    file = Path(path).parent / "rollout_error.json"
    if not file.is_file():
        return {}
    rows, names = json.loads(file.read_text(encoding="utf-8")), ("error", "copy_error", "cosine", "copy_cosine")
    found = {str(row["horizon"]): {name: row[name] for name in names} for row in rows if row["horizon"] in HORIZONS}
    return {"rollout_error": found} if found else {}
