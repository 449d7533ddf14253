"""Timing on one GPU (or, to try the code, on the CPU), and the report that every variant is written to at once."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Check, summary

from vjepa2_hf.data.files import plain_numbers, write_json


# Dense bf16 by the vendor's datasheets, without sparsity, by the name that torch gives the device
DATASHEET = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
}


class Report:
    """Results by section and variant, written to a file after every variant, so that a killed run keeps them.

    Args:
        path: JSON file.
        seconds: the time budget; variants that would start later are skipped.
    """

    def __init__(self, path: Path, seconds: float, machine: dict[str, Any]):
        self.path, self.started, self.seconds = path, time.monotonic(), seconds
        self.results: dict[str, Any] = {"machine": machine, "budget_seconds": seconds, "sections": {}}
        self.failures: list[str] = []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def add(self, section: str, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Runs a variant. An error is recorded, and the next variant runs."""
        started = self.elapsed
        if started > self.seconds:
            found = {"skipped": f"the time budget of {self.seconds:.0f} s was used up"}
        else:
            print(f"{started:5.0f} s  {section}: {name} ...", file=sys.stderr, flush=True)
            try:
                found = run()
            except Exception as error:  # one variant must not cost the others
                found = {"error": describe_error(error)}
            found["elapsed_seconds"] = self.elapsed - started
        if "error" in found:
            self.failures.append(f"{section}, {name}: {found['error']}")
            print(f"         failed: {found['error']}", file=sys.stderr, flush=True)
        self.results["sections"].setdefault(section, {})[name] = found
        self.write()
        free_memory()

    def write(self) -> None:
        self.results["seconds"] = self.elapsed
        write_json(self.path, plain_numbers(self.results))


def describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def free_memory() -> None:
    """Gives the memory of deleted tensors back, so that one variant leaves no fragments to the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: CUDA events on a GPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def peak_memory(run: Callable[[], Any], device: torch.device) -> dict[str, float] | None:
    """Bytes of one call: the highest allocated, and how much of it the call added. `None` on a CPU."""
    if device.type != "cuda":
        run()
        return None
    free_memory()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"peak": peak, "added": peak - before}


def alternate(
    sides: dict[str, Callable[[], Any]],
    device: torch.device,
    seconds: float,
    min_rounds: int = 3,
    max_rounds: int = 15,
    warm_ups: int = 1,
) -> dict[str, Any]:
    """Times the sides in turn for about `seconds`. Ratios are of paired rounds: a side's time over that of the first,
    which is ours."""
    memory = {name: peak_memory(run, device) for name, run in sides.items()} if warm_ups else None
    for _ in range(warm_ups - 1):
        for run in sides.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    ours, started, rounds = next(iter(sides)), time.monotonic(), 0
    while rounds < min_rounds or (rounds < max_rounds and time.monotonic() - started < seconds):
        for name in list(sides) if rounds % 2 == 0 else list(sides)[::-1]:  # none always runs first
            times[name].append(timed(sides[name], device))
        rounds += 1
    pairs = {name: zip(times[ours], values, strict=True) for name, values in times.items() if name != ours}
    return {
        "rounds": rounds,
        "seconds": {name: summary(values) for name, values in times.items()},
        "ratio": {f"{name} / {ours}": summary(b / a for a, b in values) for name, values in pairs.items()},
        "memory_bytes": memory,
    }


def matmul_rate(device: torch.device, size: int, repeats: int = 10) -> float:
    """Operations per second of a bf16 matrix product of random numbers; the median."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        torch.mm(left, right)
    return 2 * size**3 / statistics.median(timed(lambda: torch.mm(left, right), device) for _ in range(repeats))


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """‖found − reference‖ / ‖reference‖."""
    found, reference = found.float(), reference.float()
    return ((found - reference).norm() / reference.norm()).item()


def precision_check(what: str, ours: torch.Tensor, other: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """Both sides in bf16 against the float32 reference. Ours passes if it errs at most 1.5 times as much as the
    other side, or by 0.01: bf16 has 8 bits, and errors add up over the layers."""
    errors = {"ours": relative_error(ours, reference), "other": relative_error(other, reference)}
    limit = max(1.5 * errors["other"], 0.01)
    return {"what": what, "relative_errors": errors, "tolerance": limit, "passed": errors["ours"] <= limit}


def float32_check(check: Check) -> dict[str, Any]:
    """A check of `measure.py`, which raises where the sides disagree, for the report."""
    return {**vars(check), "passed": True}


def with_checks(found: dict[str, Any], checks: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds checks to a result, and an error if one failed."""
    failed = [f"{check['what']}: {check['relative_errors']}" for check in checks if not check["passed"]]
    error = {"error": f"DisagreementError: {'; '.join(failed)}"} if failed else {}
    return {**found, "checks": checks, **error}


def attention_backends(run: Callable[[], Any]) -> list[str]:
    """The kernels of scaled dot product attention that torch chose in a call, by the names of their operators."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    prefix = "aten::_scaled_dot_product_"
    return sorted({row.key.removeprefix(prefix) for row in profile.key_averages() if row.key.startswith(prefix)})


def graphed(cost: Callable[[torch.Tensor], torch.Tensor], actions: torch.Tensor) -> Callable:
    """A cost function as a CUDA graph for candidates of the shape of `actions`; others are computed without it."""
    static = actions.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():  # warm-up: libraries allocate their workspaces
        for _ in range(2):
            cost(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = cost(static)

    def call(candidates: torch.Tensor) -> torch.Tensor:
        if candidates.shape != static.shape:
            return cost(candidates)
        static.copy_(candidates)
        graph.replay()
        return result.clone()

    return call
