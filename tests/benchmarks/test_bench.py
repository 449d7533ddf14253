import json
import os
import sys
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """benchmarks/bench.py as a module; it finds its neighbours as it does when run."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(BENCHMARKS))
    import bench

    yield bench
    sys.path.remove(str(BENCHMARKS))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "folder" / "results.json"
    returned = bench.main(["--tiny", "--output", str(path)])
    written = json.loads(path.read_text())
    assert written == returned
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    return written


def test_a_run_measures_plans_of_every_horizon_and_their_memory(bench):
    from comparisons import COMPARISONS
    from memory import DEFAULT_TASKS, TASKS

    for mode in ("default", "full"):
        plans = [each.size for each in COMPARISONS[mode] if each.name == "cem_plan"]
        assert plans == ["H=2, 32 candidates", "H=5, 16 candidates", "H=10, 16 candidates"]
    assert set(DEFAULT_TASKS) < set(TASKS) and any("256 candidates" in name for name in DEFAULT_TASKS)


def test_three_ratios_stand_beside_the_fraction_of_the_floor(results):
    assert [each["name"] for each in results["comparisons"]] == ["encoder_forward", "pretraining_step", "cem_plan"]
    for each in results["comparisons"]:
        assert 0 < each["ratio"]["minimum"] <= each["ratio"]["median"] <= each["ratio"]["maximum"]
        assert all(0 < each["fraction_of_floor"][side]["median"] < 1 for side in ("ours", "baseline"))
        assert each["sgemm_gflops"]["median"] > 0 and each["minor_page_faults"]["ours"]["minimum"] >= 0


def test_both_sides_agreed_before_they_were_timed(results):
    checks = {each["name"]: {check["what"]: check for check in each["checks"]} for each in results["comparisons"]}
    assert set(checks["encoder_forward"]) == {"tokens"}
    assert {"loss with the whole clip as context", "gradients of that loss"} < set(checks["pretraining_step"])
    assert set(checks["cem_plan"]) == {"cost of the candidates", "actions of the plans"}
    assert all(0 <= check["difference"] <= 1e-3 for each in checks.values() for check in each.values())


@pytest.mark.parametrize("index", range(3))
def test_a_side_that_computes_something_else_is_not_timed(bench, monkeypatch, index):
    import comparisons
    from measure import DisagreementError

    from vjepa2_hf import modeling_encoder

    turned = modeling_encoder.rotary_table
    wrong = lambda positions, *arguments: turned(5 * positions, *arguments)  # noqa: E731
    for module in ("modeling_encoder", "modeling_predictor", "modeling_dynamics"):
        monkeypatch.setattr(f"vjepa2_hf.{module}.rotary_table", wrong)
    with pytest.raises(DisagreementError, match="the sides differ by"):
        comparisons.COMPARISONS["tiny"][index].build()


def test_the_profile_of_a_step_covers_its_time_and_counts_its_products(results):
    encoder, step, plan = results["comparisons"]
    assert "profile" not in encoder
    for each, kinds in ((step, 4), (plan, 3)):  # a plan goes forward alone
        assert sum(row["share"] for row in each["profile"]) == pytest.approx(1.0)
        products = [row for row in each["profile"] if "fraction_of_sgemm" in row]
        assert len(products) == kinds
        assert {"linear layers, forward", "attention, forward"} < {row["operator"] for row in products}
        taken, rate = each["seconds"]["ours"]["median"], each["sgemm_gflops"]["median"] * 1e9
        operations = sum(row["fraction_of_sgemm"] * row["share"] for row in products) * taken * rate
        assert operations == pytest.approx(each["operations"], rel=0.02)  # pixels need no gradient


@pytest.mark.slow
def test_a_pretraining_step_holds_three_quarters_of_the_other_ways_memory_at_most(bench):
    result = bench.measure_memory("pretraining_step, 2 x 16x128^2")
    assert result["ratio"] == result["ours"]["peak_mb"] / result["baseline"]["peak_mb"] <= 0.75


def test_restart_fixes_the_allocator_once(bench, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    for name in bench.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    bench.restart_with_fixed_allocator()
    _, command, environment = calls.pop()
    assert command[0] == sys.executable
    assert environment["MALLOC_TRIM_THRESHOLD_"] == environment["MALLOC_MMAP_THRESHOLD_"] == str(2**34)
    assert environment["OMP_NUM_THREADS"] == "1"

    monkeypatch.setattr(os, "environ", environment)
    bench.restart_with_fixed_allocator()
    assert not calls


def test_operations_are_those_that_torch_counts(bench):
    """Where a forward does what is needed and no more, the formula and torch's own counter give the same number."""
    import comparisons
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def counted(run) -> int:
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):  # it knows no fused CPU attention
            run()
        return counter.get_total_flops()

    size, frames, side = comparisons.TINY, 4, 32
    workload = comparisons.compare_encoder(size, 1, frames, side)
    assert workload.operations == counted(workload.ours)

    pair = comparisons.PlanningPair(size, side, horizon=3, candidates=1)
    actions = torch.zeros(1, 1, 3, comparisons.ACTION_DIM)
    assert comparisons.rollout_operations(size, 4, horizon=3) == counted(lambda: pair.our_cost(actions))

    pair = comparisons.PretrainingPair(size, 1, frames, side=64)
    masks = [(c.shape[1], t.shape[1]) for c, t in zip(pair.context_masks, pair.target_masks)]
    expected = comparisons.pretraining_operations(size, pair.num_tokens, masks)
    assert expected == counted(pair.our_backward)


def test_an_unknown_comparison_is_refused(bench):
    with pytest.raises(SystemExit, match="no comparison begins with plan"):
        bench.main(["--tiny", "--only", "plan"])
