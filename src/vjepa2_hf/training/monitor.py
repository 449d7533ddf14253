"""Monitoring of a training run: collapse of its targets, spikes of its loss, throughput, gradient norm.

watch = CollapseWatch()
warning = watch.update(metrics, "layer", momentum)       # at every logged step; returns a warning once
"""

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .flops import peak_flops


# Fraction of the first reading. Collapsed runs ended at 0.22 (layer-normed targets), 0.02 (online targets) and
# a third (docs/training_curves.md); the lowest of eight runs that planned well was 0.43.
STD_FRACTION = 0.35
# RankMe (arXiv 2210.02885) is 1 if all tokens lie on a line and 2 if they spread evenly over a plane; runs of width 96
# that planned well stayed above 25.
LOWEST_RANK = 2.0
# One batch may hold similar clips; three in a row are not an accident
READINGS = 3
# Of these latest readings the median is the usual gradient norm
USUAL_READINGS = 10_000
# Ratio to the usual gradient norm that indicates a learning rate too high
GRADIENT_JUMP = 10.0
# Below it the target encoder forgets within 10 steps: 0.9^10 = 0.35. The published momentum is 0.99925.
LOWEST_MOMENTUM = 0.9


class CollapseWatch:
    """Detects from the metrics of a run that its targets collapse, and warns once.

    The targets have collapsed when `target_std` was below `STD_FRACTION` of its first reading, or `effective_rank`
    below `LOWEST_RANK`, in `READINGS` readings in a row. A batch of one clip has no deviation; its 0 is ignored.
    """

    def __init__(self):
        self.first_std: float | None = None
        self.warned = False
        self._norms: deque[float] = deque(maxlen=USUAL_READINGS)
        self._low = 0

    def update(self, metrics: Mapping[str, float | None], normalize_targets: str, momentum: float) -> str | None:
        """Takes the metrics of one logged step; returns the warning, once.

        Args:
            metrics: `step`, and if measured `target_std`, `effective_rank`, `gradient_norm`, `warning`. A resumed run
                passes the metrics of its earlier steps first, so that it does not warn again.
            momentum: of the target encoder's average; 0 if the online encoder is the target.
        """
        self.warned |= bool(metrics.get("warning"))
        deviation, rank = metrics.get("target_std") or None, metrics.get("effective_rank")
        self.first_std = self.first_std or deviation
        signs = []
        if deviation is not None and deviation < STD_FRACTION * self.first_std:
            signs.append(f"their deviation over the batch is {deviation:.3g}, at first it was {self.first_std:.3g}")
        if rank is not None and rank < LOWEST_RANK:
            signs.append(f"their effective rank is {rank:.2f} (1: all tokens on one line)")
        self._low = self._low + 1 if signs else 0
        warning = None
        if self._low >= READINGS and not self.warned:
            self.warned = True
            cause = self._likely_cause(metrics, normalize_targets, momentum)
            warning = f"The targets collapse at step {metrics['step']}: {' and '.join(signs)}. Likely cause: {cause}"
        if metrics.get("gradient_norm"):
            self._norms.append(metrics["gradient_norm"])
        return warning

    def replay(self, logged: Iterable[Mapping[str, Any]], normalize_targets: str) -> None:
        """Takes the metrics that a resumed run has logged before; values of other types are left out."""
        for line in logged:
            numbers = {name: value for name, value in line.items() if type(value) in (int, float)}
            if "ema_momentum" in numbers:
                numbers |= {"warning": line.get("warning")}
                self.update(numbers, normalize_targets, numbers["ema_momentum"])

    def _likely_cause(self, metrics: Mapping[str, float | None], normalize_targets: str, momentum: float) -> str:
        usual = statistics.median(self._norms or [math.inf])
        last = max(list(self._norms)[-READINGS:], default=0.0)
        if momentum < LOWEST_MOMENTUM:
            return (
                f"the target encoder follows the encoder too closely (momentum {momentum:g}), so that both agree on a "
                "constant; use target_type=ema with ema.start=0.99 or more."
            )
        if last > GRADIENT_JUMP * usual:
            return (
                f"updates too large (gradient norm {last:.3g}, usually {usual:.3g}); lower learning_rate.peak, warm "
                "up for longer, or set gradient_clipping=1.0."
            )
        if normalize_targets in ("layer", "none"):
            return (
                f"normalize_targets={normalize_targets} keeps in the targets what all clips have in common, "
                "which is the easiest to predict; on short runs normalize_targets=batch keeps content in the loss."
            )
        return (
            "clips that hardly differ (check the data and fps), or an objective that is too easy; mask more, or raise "
            "ema.start."
        )


class SpikeGuard:
    """Finds losses far above those before, whose steps are to be skipped.

    A loss is a spike if it exceeds the mean of the last `window` by `deviations` standard deviations. Spikes count
    among the last losses too, so that a lasting rise ends the skipping; before there are `window` losses, none is one.

    Attributes:
        skipped: spikes so far.
    """

    def __init__(self, deviations: float, window: int = 300):
        self.deviations, self.skipped = deviations, 0
        self._losses: deque[float] = deque(maxlen=window)

    def is_spike(self, loss: float) -> bool:
        """Whether the loss of a step is a spike; it then counts among the last losses."""
        full = len(self._losses) == self._losses.maxlen
        spike = full and loss > statistics.fmean(self._losses) + self.deviations * statistics.pstdev(self._losses)
        self._losses.append(loss)
        self.skipped += spike
        return spike

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to skip the same steps."""
        return {"losses": list(self._losses), "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self.skipped = state["skipped"]
        self._losses.extend(state["losses"])


class Throughput:
    """Samples per second over all processes, and how they spend their time, since the last reading."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.reset()

    def reset(self) -> None:
        """Starts a new reading."""
        self.samples, self.flops, self.waited, self.started = 0, 0, 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the block as waiting for data."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block out of the reading."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before

    def read(self, unit: str) -> dict[str, float]:
        """`<unit>_per_second` over all processes; `data_wait` (0 to 1) of the process that waited longest, so that all
        must call it; for devices with a known peak, `model_flops_utilization` (0 to 1) of this process. Starts a new
        reading."""
        elapsed = time.perf_counter() - self.started
        waited = torch.tensor([self.waited / elapsed], device=self.accelerator.device)
        waited = self.accelerator.gather(waited).max().item()
        reading = {f"{unit}_per_second": self.samples / elapsed, "data_wait": waited}
        peak = peak_flops(self.accelerator.device, self.accelerator.mixed_precision)
        if peak is not None:
            reading["model_flops_utilization"] = self.flops / elapsed / peak
        self.reset()
        return reading


def gradient_norm(accelerator: Accelerator, parameters: Iterable[nn.Parameter], largest: float | None) -> float:
    """Norm of all gradients, which may be sharded (FSDP). A norm above `largest` is scaled down to it (`None`: never).

    Under fp16 gradients are unscaled first; an infinite norm is not an error then, the scaler skips that update.
    """
    norm = accelerator.clip_grad_norm_(list(parameters), math.inf if largest is None else largest)
    return (norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)).item()
