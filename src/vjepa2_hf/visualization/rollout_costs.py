"""What a world model costs and how well it predicts: columns of `examples/plan.py`'s table.

measured = measure_world_model(planner, "runs/demo/world_model/final")
"""

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
    """`parameters` of the dynamics; `rollout_flops` of one candidate and model step; `rollout_milliseconds` of one
    model step of as many candidates as the solver samples, `rollout_candidates`; and the held-out errors."""
    model = planner.model
    candidates = getattr(planner.solver, "num_candidates", 1)
    return {
        "parameters": sum(parameter.numel() for parameter in model.predictor.parameters()),
        "rollout_flops": count_flops(model),
        "rollout_milliseconds": time_step(model, candidates),
        "rollout_candidates": candidates,
        **held_out_errors(path),
    }


def _step(model: VJepa2WorldModel, candidates: int) -> None:
    """One imagined step of so many candidates from an empty present."""
    config = model.config
    sizes = {"proprio_states": config.proprio_dim, "extrinsics": config.extrinsics_dim}
    states = {name: torch.zeros(1, 1, size, device=model.device) for name, size in sizes.items() if size}
    latents = torch.zeros(1, 1, model.tokens_per_frame, model.latent_size, device=model.device, dtype=model.dtype)
    actions = torch.zeros(1, candidates, 1, config.action_dim, device=model.device)
    with torch.no_grad():
        model.rollout(latents, actions, **states)


def count_flops(model: VJepa2WorldModel) -> int:
    """Floating-point operations of one candidate's step: of matrix products, as torch counts them."""
    # the fused attention of CPUs is not in torch's register, the products that it is made of are
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        _step(model, 1)
    return counter.get_total_flops()


def time_step(model: VJepa2WorldModel, candidates: int) -> float:
    """Milliseconds of wall time of one step of all candidates."""
    durations = []
    for _ in range(TIMED + 1):
        started = time.perf_counter()
        _step(model, candidates)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        durations.append(time.perf_counter() - started)
    return 1000 * sorted(durations[1:])[TIMED // 2]


def held_out_errors(path: str) -> dict[str, Any]:
    """`rollout_error` by horizon, from the `rollout_error.json` that training left beside the model; {} without it."""
    file = Path(path).parent / "rollout_error.json"
    if not file.is_file():
        return {}
    rows = {row["horizon"]: row for row in json.loads(file.read_text(encoding="utf-8"))}
    names = ("error", "copy_error", "cosine", "copy_cosine")
    found = {str(h): {name: rows[h][name] for name in names} for h in HORIZONS if h in rows}
    return {"rollout_error": found} if found else {}
