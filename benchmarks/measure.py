"""Timing: both sides of a comparison in turn in one process, next to a matrix product.

Ratios of paired rounds only: the machine's speed changes by tens of percent from minute to minute, and both sides and
the matrix product of a round see the same minute. Process CPU time, since others may use the cores.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from operators import profile_operators


@dataclass
class Check:
    """Two results that must agree: the largest difference over the largest value of the baseline's."""

    what: str
    difference: float
    tolerance: float


@dataclass
class Workload:
    """One comparison, ready to run; built and checked before anything is timed.

    Attributes:
        ours, baseline: do the work once.
        checks: results that agree.
        operations: that the result needs, in matrix products (a multiply-add is 2).
        note: sampled or chosen values, for the report.
        warm: the checks have run both sides as they are timed.
    """

    ours: Callable[[], Any]
    baseline: Callable[[], Any]
    checks: list[Check]
    operations: float
    note: str = ""
    warm: bool = False


@dataclass(frozen=True)
class Comparison:
    """A comparison by name: `build` makes models and inputs and checks that the sides agree; `profiled` adds the
    operators of our side."""

    name: str
    size: str
    baseline: str
    build: Callable[[], Workload]
    profiled: bool = False


class DisagreementError(ValueError):
    """Both sides of a comparison should give the same result and do not; nothing is timed then."""


def check_agreement(what: str, ours: torch.Tensor, baseline: torch.Tensor, tolerance: float) -> Check:
    """Compares two results of one shape.

    Raises:
        DisagreementError: when they differ by more than `tolerance` times the baseline's largest value.
    """
    if ours.shape != baseline.shape:
        raise DisagreementError(f"{what}: ours has shape {tuple(ours.shape)}, the baseline's {tuple(baseline.shape)}.")
    difference = ((ours - baseline).abs().max() / baseline.abs().max().clamp_min(1e-30)).item()
    if not difference <= tolerance:  # also when it is not a number
        raise DisagreementError(f"{what}: the sides differ by {difference:.1e}, expected {tolerance:.0e} at most.")
    return Check(what, difference, tolerance)


def compare(comparison: Comparison, seconds: float, min_rounds: int = 3, max_rounds: int = 15) -> dict[str, Any]:
    """Builds, checks and times a comparison for about `seconds`; a JSON-ready summary."""
    workload = comparison.build()
    sides = {"ours": workload.ours, "baseline": workload.baseline}
    for run in () if workload.warm else sides.values():  # the allocator takes what it needs
        run()
    sgemm = Sgemm()
    times, faults = ({name: [] for name in sides} for _ in range(2))
    rates: list[float] = []
    started = time.monotonic()
    while len(rates) < min(min_rounds, max_rounds) or (
        len(rates) < max_rounds and time.monotonic() - started < seconds
    ):
        order = list(sides) if len(rates) % 2 == 0 else list(sides)[::-1]  # neither side always runs first
        before = sgemm.rate()
        for name in order:
            taken, faulted = timed(sides[name])
            times[name].append(taken)
            faults[name].append(faulted)
        rates.append((before + sgemm.rate()) / 2)
    floors = [workload.operations / rate for rate in rates]
    fractions = {name: [floor / taken for floor, taken in zip(floors, times[name], strict=True)] for name in sides}
    result = {
        "name": comparison.name,
        "size": comparison.size,
        "baseline": comparison.baseline,
        "note": workload.note,
        "rounds": len(rates),
        "ratio": summary(theirs / ours for ours, theirs in zip(times["ours"], times["baseline"], strict=True)),
        "fraction_of_floor": {name: summary(values) for name, values in fractions.items()},
        "seconds": {name: summary(values) for name, values in times.items()},
        "minor_page_faults": {name: summary(values) for name, values in faults.items()},
        "operations": workload.operations,
        "sgemm_gflops": summary(rate / 1e9 for rate in rates),
        "checks": [vars(check) for check in workload.checks],
    }
    if comparison.profiled:
        result["profile"] = profile_operators(
            workload.ours, statistics.median(times["ours"]), statistics.median(rates)
        )
    return result


def timed(run: Callable[[], Any]) -> tuple[float, int]:
    """CPU seconds of this process and minor page faults of one call."""
    gc.collect()
    gc.disable()
    try:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.process_time()
        run()
        taken = time.process_time() - started
    finally:
        gc.enable()
    return taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


class Sgemm:
    """The machine's own speed limit: products of square matrices that fit in the cache, 0.1 s per call in float32."""

    def __init__(self, size: int = 1024, repeats: int = 4, dtype: torch.dtype = torch.float32):
        self.size, self.repeats = size, repeats
        self.left, self.right = torch.randn(2, size, size).to(dtype)
        self.out = torch.empty(size, size, dtype=dtype)
        self.rate()

    def rate(self) -> float:
        """Floating-point operations per CPU second of the fastest product."""
        rates = []
        for _ in range(self.repeats):
            started = time.process_time()
            torch.mm(self.left, self.right, out=self.out)
            rates.append(2 * self.size**3 / (time.process_time() - started))
        return max(rates)


def summary(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"minimum": min(values), "median": statistics.median(values), "maximum": max(values)}
