import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vjepa2_hf.training.schedules import (
    LearningRateSchedule,
    MomentumSchedule,
    WeightDecaySchedule,
    parameter_groups,
    set_weight_decay,
)


GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "schedules.json").read_text())


def at_every_step(schedule, max_steps=100):
    return [schedule.at(step, max_steps) for step in range(1, max_steps + 1)]


def close(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_published_learning_rates():
    ramp = {"peak": 5.25e-4, "final": 1e-6}
    warmup_cosine = LearningRateSchedule("warmup_cosine", start=1e-4, warmup_steps=20, schedule_scale=1.25, **ramp)
    assert at_every_step(warmup_cosine) == close(GOLDEN["warmup_cosine"]["values"])
    stable = LearningRateSchedule("warmup_stable_decay", 4.25e-4, start=7.5e-5, warmup_steps=10, decay_steps=20)
    assert at_every_step(stable) == close(GOLDEN["warmup_stable_decay"]["values"])
    assert at_every_step(LearningRateSchedule("linear", **ramp)) == close(GOLDEN["linear_decay"]["values"])


def test_published_weight_decay():
    schedule = WeightDecaySchedule("cosine", start=0.04, final=0.4, schedule_scale=1.25)
    assert at_every_step(schedule) == close(GOLDEN["cosine_weight_decay"]["values"])
    assert at_every_step(WeightDecaySchedule()) == [0.04] * 100


def test_published_momenta():
    linear = MomentumSchedule("linear", start=0.996, final=1.0, schedule_scale=1.25)
    assert at_every_step(linear) == close(GOLDEN["ema_linear"]["values"])
    half_cosine = MomentumSchedule("cosine", start=0.996, final=1.0)
    assert at_every_step(half_cosine) == close(GOLDEN["ema_cosine"]["values"])
    assert at_every_step(MomentumSchedule(start=0.9)) == [0.9] * 100


def test_every_published_schedule_is_compared():
    compared = Path(__file__).read_text()
    assert len(GOLDEN) == 6 and all(f'GOLDEN["{name}"]' in compared for name in GOLDEN)


def test_published_cooldown_stops_before_its_end():
    """Linear over 15 k steps, stopped after 12 k: 1.06e-4."""
    cooldown = LearningRateSchedule("linear", peak=5.25e-4, final=1e-6, schedule_scale=1.25)
    assert cooldown.at(12_000, 12_000) == pytest.approx(1.06e-4, rel=0.01)


@given(
    st.sampled_from(["warmup_cosine", "warmup_stable_decay", "linear", "constant"]),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 200),
    st.integers(1, 300),
)
def test_a_learning_rate_stays_between_its_ends(schedule, warmup_steps, decay_steps, max_steps, step):
    config = LearningRateSchedule(schedule, 1.0, 0.1, 0.01, warmup_steps, decay_steps)
    assert 0.01 - 1e-12 <= config.at(step, max_steps) <= 1.0


def test_schedules_refuse_impossible_numbers():
    with pytest.raises(ValueError, match="peak of a learning rate schedule is -1"):
        LearningRateSchedule(peak=-1)
    with pytest.raises(ValueError, match="start of an EMA momentum is 1.5; expected .* at least 0 and of at most 1"):
        MomentumSchedule(start=1.5)
    for wrong in ({"start": -1.0}, {"final": -1.0}, {"start": float("nan")}, {"schedule_scale": 0.0}):
        with pytest.raises(ValueError, match="of a weight decay is -1.0|start is nan|schedule_scale is 0.0"):
            WeightDecaySchedule(**wrong)


def test_biases_norms_and_frozen_parameters_are_not_decayed():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[2].requires_grad_(False)
    decayed, kept = parameter_groups(model, weight_decay=0.04)
    assert decayed["weight_decay"] == 0.04 and [p.ndim for p in decayed["params"]] == [2]
    assert kept["weight_decay"] == 0.0 and len(kept["params"]) == 3


@pytest.mark.parametrize("decay_mask_tokens", [True, False])
def test_mask_tokens_are_decayed_as_published_or_not(decay_mask_tokens):
    model = nn.Module()
    model.predictor = nn.Module()
    model.predictor.mask_tokens = nn.Parameter(torch.zeros(10, 1, 1, 4))
    model.predictor.proj = nn.Linear(4, 4)
    decayed, kept = parameter_groups(model, 0.04, decay_mask_tokens)
    group = decayed if decay_mask_tokens else kept
    assert any(parameter is model.predictor.mask_tokens for parameter in group["params"])
    assert len(decayed["params"]) + len(kept["params"]) == 3


def test_a_weight_decay_that_changes_leaves_biases_and_norms_alone():
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(4, 4), weight_decay=0.04))
    set_weight_decay(optimizer, 0.4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.4, 0.0]


def test_a_weight_decay_that_was_zero_comes_back():
    """Of a checkpoint whose run had none, or ended with none."""
    before = torch.optim.AdamW(parameter_groups(nn.Linear(4, 4), weight_decay=0.0))
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(4, 4), weight_decay=0.04))
    optimizer.load_state_dict(before.state_dict())
    set_weight_decay(optimizer, 0.04)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.04, 0.0]
