"""The `evaluate` module of planning success: loads from the package, and gives numbers worked out by hand."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

from vjepa2_hf.metrics.planning_success import planning_success
from vjepa2_hf.metrics.planning_success.planning_success import (
    crossed_interval,
    paired_difference,
    seed_interval,
    success_by_distance,
    success_of_groups,
    summarize_success,
    t_interval,
    wilson_interval,
)


EPISODES = {
    "successes": [True, False, True, True, False, True],
    "steps": [3, -1, 5, 10, -1, 2],
    "distances": [1.0, 6.0, 2.0, 3.0, 5.0, 4.0],
    "groups": [0, 0, 0, 1, 1, 1],
}


@pytest.fixture
def metric(monkeypatch, tmp_path):
    """Loaded as users do, from the package's folder, without the Hub."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    return evaluate.load(str(Path(planning_success.__file__).parent))


def test_loaded_module_gives_the_numbers_worked_out_by_hand(metric):
    found = metric.compute(**EPISODES)
    assert (found["success"], found["episodes"], found["steps_to_success"]) == (pytest.approx(4 / 6), 6, 5.0)
    assert [part["success"] for part in found["by_distance"]] == [1.0, 1.0, 0.0]  # two episodes each, near to far
    assert [(part["from"], part["to"]) for part in found["by_distance"]] == [(1, 2), (3, 4), (5, 6)]
    assert found["by_group"] == pytest.approx([2 / 3, 2 / 3])
    assert (found["group_low"], found["group_high"]) == pytest.approx((2 / 3, 2 / 3))  # no spread between the seeds
    assert found["low"] < 4 / 6 < found["high"]
    with pytest.raises(ValueError, match="no episodes"):  # the first ones are forgotten
        metric.compute()


def test_batches_and_single_episodes_give_what_all_at_once_give(metric):
    metric.add_batch(**{name: values[:4] for name, values in EPISODES.items()})
    for number in (4, 5):
        names = {"success": "successes", "step": "steps", "distance": "distances", "group": "groups"}
        metric.add(**{one: EPISODES[many][number] for one, many in names.items()})
    assert len(metric) == 6
    assert metric.compute() == summarize_success(**EPISODES)


def test_only_successes_must_be_given(metric):
    assert set(metric.compute(successes=[True, False])) == {"success", "low", "high", "episodes"}
    assert summarize_success([False, False], steps=[-1, -1])["steps_to_success"] is None


def test_input_that_does_not_fit_is_a_sentence(metric):
    with pytest.raises(ValueError, match=r"steps have shape \(1,\); 2 successes need \(2,\)"):
        metric.add_batch(successes=[True, False], steps=[1])
    with pytest.raises(ValueError, match="successes hold .*0.5"):
        metric.add_batch(successes=[0.5])
    with pytest.raises(ValueError, match="at least one episode"):
        summarize_success([])
    with pytest.raises(ValueError, match="not finite"):
        summarize_success([True], distances=[float("nan")])
    with pytest.raises(ValueError, match="bins is 0"):
        summarize_success([True], distances=[1.0], bins=0)
    metric.add_batch(successes=[True])
    with pytest.raises(ValueError, match="ones before gave"):
        metric.add_batch(successes=[True], steps=[1])
    with pytest.raises(ValueError, match="num_process is 2"):
        planning_success.PlanningSuccess(num_process=2, process_id=0, experiment_id="x")


def test_edges_between_parts_can_be_given():
    successes, distances = np.array([True, False, True]), np.array([1.0, 5.0, 9.0])
    parts = success_by_distance(successes, distances, bins=[20.0, 3.0])  # in any order
    assert [(part["episodes"], part["success"]) for part in parts] == [(1, 1.0), (2, 0.5)]  # nothing beyond 20


def test_wilson_interval_holds_the_rate_and_stays_within_0_and_1():
    assert wilson_interval(0, 100) == (0.0, pytest.approx(0.037, abs=1e-3))
    low, high = wilson_interval(50, 100)
    assert (low, high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


def test_interval_over_seeds_contains_their_spread():
    low, high = seed_interval([0.8, 0.9, 0.85])
    assert low < 0.8 and high > 0.9
    assert high - 0.85 == pytest.approx(4.30265 * 0.05 / 3**0.5)  # Student's t with two degrees of freedom
    assert seed_interval([0.5]) == (0.0, 1.0)
    assert seed_interval([0.9, 1.0])[1] == 1.0  # a share


def test_paired_differences_are_worked_out_by_hand():
    """Of 10 tasks the first method alone succeeds in 4, the other alone in 1."""
    first = np.array([[1, 1, 1, 1, 0, 1, 1, 0, 0, 0]], bool)
    other = np.array([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0]], bool)
    found = paired_difference(first, other)
    assert (found["difference"], found["wins"], found["losses"]) == (pytest.approx(0.3), 4, 1)
    assert found["p_mcnemar"] == pytest.approx(2 * (1 + 5) / 2**5)  # exact: at most 1 of 5 heads
    half = 1.95996 * ((7 / 12 - (3 / 12) ** 2) / 12) ** 0.5  # Bonett and Price: (4 + 1) / 12 and (1 + 1) / 12
    assert (found["low"], found["high"]) == (
        pytest.approx(0.25 - half, abs=1e-4),
        pytest.approx(0.25 + half, abs=1e-4),
    )
    opposite = paired_difference(other, first)
    assert (opposite["low"], opposite["high"]) == (pytest.approx(-found["high"]), pytest.approx(-found["low"]))
    same = paired_difference(first, first)
    assert same["p_mcnemar"] == 1 and same["low"] < 0 < same["high"]  # never empty


def test_intervals_over_seeds_and_tasks_cover_the_true_mean():
    """Effects of seeds and of tasks, and noise: 95 % of the intervals hold the mean, and those over tasks do not."""
    rng, hits, plain = np.random.default_rng(0), 0, 0
    for _ in range(1500):
        values = rng.normal(size=(3, 1)) * 0.2 + rng.normal(size=(1, 40)) * 0.5 + rng.normal(size=(3, 40)) * 0.5
        low, high = crossed_interval(values)
        hits += low <= 0 <= high
        low, high = t_interval(values.mean(0).tolist())
        plain += low <= 0 <= high
    assert 0.92 <= hits / 1500 <= 0.98 and plain / 1500 < 0.85


def test_intervals_of_groups_are_not_narrower_than_over_their_tasks():
    found = success_of_groups(np.ones((3, 100), bool))
    assert (found["success"], found["high"], found["by_seed"]) == (1.0, 1.0, [1.0, 1.0, 1.0])
    assert found["low"] == pytest.approx(wilson_interval(100, 100)[0])
    spread = success_of_groups(np.arange(30).reshape(3, 10) < np.array([[4], [17], [30]]))
    assert spread["by_seed"] == [0.4, 0.7, 1.0] and spread["low"] < 0.3 and spread["high"] == 1.0
    paired = paired_difference(np.arange(30).reshape(3, 10) < np.array([[4], [17], [30]]), np.zeros((1, 10), bool))
    assert paired["difference"] == pytest.approx(0.7) and "p_mcnemar" not in paired


def test_intervals_of_errors_are_not_those_of_shares():
    half = 12.7062 * 0.5  # Student's t with one degree of freedom; 0.5: half the distance of two values
    assert t_interval([13.0, 14.0]) == (pytest.approx(13.5 - half, abs=1e-3), pytest.approx(13.5 + half, abs=1e-3))
    assert t_interval([13.0]) == (None, None)
