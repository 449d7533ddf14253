"""Schedules of learning rate, weight decay and EMA momentum, and the parameter groups of AdamW.

    schedule = LearningRateSchedule("warmup_cosine", peak=5e-4, warmup_steps=100)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.04))
    set_learning_rate(optimizer, schedule.at(step, max_steps))

Schedules are functions of the step: a resumed run needs no state of them. Learning rates and weight decays count steps
from 1, EMA momenta from 0, as published.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..data.typed_fields import check_fields
from ..specs import check_count, check_number


def linear(step: float, total_steps: float, *, start: float, final: float) -> float:
    """From `start` at step 0 to `final` at `total_steps`, then `final`."""
    return start + (final - start) * min(step / max(total_steps, 1), 1.0)


def cosine(step: float, total_steps: float, *, start: float, final: float) -> float:
    """From `start` at step 0 to `final` at `total_steps` along half a cosine, then `final`."""
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))


@dataclass
class LearningRateSchedule:
    """A learning rate as a function of the optimizer step."""

    schedule: Literal["warmup_cosine", "warmup_stable_decay", "linear", "constant"] = "warmup_cosine"
    """warmup_cosine (V-JEPA 1), warmup_stable_decay (V-JEPA 2), linear (from `peak` to `final`: the published
    cooldown), or constant (`peak`)."""
    peak: float = 5.25e-4
    start: float = 0.0
    """Value before the first warm-up step."""
    final: float = 0.0
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    decay_steps: int = 0
    """Steps of the final linear decay of warmup_stable_decay; 0: none."""
    schedule_scale: float = 1.0
    """The schedule is computed for `schedule_scale * max_steps` steps and stops at `max_steps`: the published runs use
    1.25 and never reach `final`."""

    def __post_init__(self):
        check_fields(self)
        for name in ("peak", "start", "final"):
            check_number(f"{name} of a learning rate schedule", getattr(self, name), at_least=0)
        for name in ("warmup_steps", "decay_steps"):
            check_count(f"{name} of a learning rate schedule", getattr(self, name), lowest=0)
        check_number("schedule_scale", self.schedule_scale, above=0)

    def at(self, step: int, max_steps: int) -> float:
        """The learning rate of optimizer step `step` (from 1) of `max_steps`."""
        _check_steps(step, max_steps)
        total_steps, warmup = self.schedule_scale * max_steps, self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        if self.schedule == "linear":
            return linear(step, total_steps, start=self.peak, final=self.final)
        if step < warmup:
            return linear(step, warmup, start=self.start, final=self.peak)
        if self.schedule == "warmup_cosine":
            return cosine(step - warmup, total_steps - warmup, start=self.peak, final=self.final)
        stable_steps = total_steps - self.decay_steps
        if step <= stable_steps:
            return self.peak
        return linear(step - stable_steps, self.decay_steps, start=self.peak, final=self.final)


@dataclass
class MomentumSchedule:
    """Momentum of an exponential moving average as a function of the optimizer step."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """constant (`start`), linear (published) or cosine (the two-phase recipe)."""
    start: float = 0.99925
    """Momentum of the first step; the published value is 0.99925, constant; both recipes use 0.996."""
    final: float = 1.0
    schedule_scale: float = 1.0
    """As for learning_rate."""

    def __post_init__(self):
        check_fields(self)
        for name in ("start", "final"):
            check_number(f"{name} of an EMA momentum", getattr(self, name), at_least=0, at_most=1)
        check_number("schedule_scale", self.schedule_scale, above=0)

    def at(self, step: int, max_steps: int) -> float:
        """The momentum after optimizer step `step` (from 1) of `max_steps`."""
        _check_steps(step, max_steps)
        if self.schedule == "constant":
            return self.start
        function = linear if self.schedule == "linear" else cosine
        return function(step - 1, self.schedule_scale * max_steps, start=self.start, final=self.final)


@dataclass
class WeightDecaySchedule:
    """Weight decay as a function of the optimizer step."""

    schedule: Literal["constant", "cosine"] = "constant"
    """constant (`start`; published, 0.04) or cosine (half a cosine from `start` to `final`)."""
    start: float = 0.04
    final: float = 0.4
    schedule_scale: float = 1.0
    """As for learning_rate."""

    def __post_init__(self):
        check_fields(self)
        for name in ("start", "final"):
            check_number(f"{name} of a weight decay", getattr(self, name), at_least=0)
        check_number("schedule_scale", self.schedule_scale, above=0)

    def at(self, step: int, max_steps: int) -> float:
        """The weight decay of optimizer step `step` (from 1) of `max_steps`."""
        _check_steps(step, max_steps)
        if self.schedule == "constant":
            return self.start
        return cosine(step, self.schedule_scale * max_steps, start=self.start, final=self.final)


def _check_steps(step: float, max_steps: float) -> None:
    check_number("step", step, at_least=0)
    check_number("max_steps", max_steps, at_least=1)


def parameter_groups(model: nn.Module, weight_decay: float, decay_mask_tokens: bool = True) -> list[dict[str, Any]]:
    """Two AdamW groups of the trainable parameters of an unwrapped model: with weight decay, then without (biases,
    1-D parameters such as norms, and without `decay_mask_tokens`, which is as published, the mask tokens)."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = name.endswith(".bias") or (not decay_mask_tokens and name.endswith("mask_tokens"))
            (kept if parameter.ndim <= 1 or spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def slow_groups(groups: list[dict[str, Any]], module: nn.Module, fraction: float) -> list[dict[str, Any]]:
    """The groups with those parameters split off that belong to a module and learn at a fraction of the rate."""
    slow, split = set(module.parameters()), []
    for group in groups:
        for share, wanted in ((1.0, False), (fraction, True)):
            parameters = [parameter for parameter in group["params"] if (parameter in slow) == wanted]
            split += [{**group, "params": parameters, "rate_share": share}] if parameters else []
    return split


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Sets the weight decay of the first group of `parameter_groups`."""
    optimizer.param_groups[0]["weight_decay"] = weight_decay


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group: times its `peak` or `rate_share`, if the group has one.

    Groups keep these names because optimizer states of saved checkpoints hold them.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("peak", group.get("rate_share", 1.0))
