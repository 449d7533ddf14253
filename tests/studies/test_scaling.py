"""The scaling study: fits recover known laws, and one command trains, measures, plans, tabulates and draws."""

import argparse
import json

import numpy as np
import pytest
import scaling


@pytest.mark.parametrize(("exponent", "curvature"), [(-0.3, 0.0), (-0.1, 0.02)])
def test_fit_recovers_a_known_law(exponent, curvature):
    compute = np.array([1e9, 1e10, 1e11])
    x = np.log(compute) - np.log(compute).mean()
    fitted = scaling.fit(list(compute), list(np.exp(1 + exponent * x + curvature * x**2)))
    assert fitted == {"exponent": pytest.approx(exponent), "curvature": pytest.approx(curvature)}


@pytest.mark.parametrize("given", ["64", "60x2", "64x0", "64 x two"])
def test_a_size_that_is_no_width_and_blocks_is_named(given):
    with pytest.raises(ValueError, match=f"sizes are '{given}'; expected widths, multiples of 16"):
        scaling.sizes_of(argparse.Namespace(sizes=given))


def test_compute_of_a_training_grows_with_its_steps_and_blocks(tiny_runs, run_study, tmp_path):
    sizes = ["--sizes", "16x1,16x2", "--episodes", "6,8", "--seeds", "1", "--tasks", "3", "--jobs", "1"]
    page = run_study(scaling.STUDY, *sizes)
    assert tiny_runs[:3] == ["record_episodes", "record_episodes", "pretrain"]
    assert tiny_runs[3:] == ["train_world_model", "evaluate_world_model", "plan"] * 4
    results = json.loads((tmp_path / "results.json").read_text())
    small, _, large, _ = results["rows"]
    assert (small["size"], small["episodes"], large["size"]) == ("16 x 1", 6, "16 x 2")
    # one block: per token 4 (24 · 16²) operations forward, attention apart, and more for its gradient
    assert 1.5 * small["flops"] < large["flops"] < 2 * small["flops"]
    assert set(results["fits"]) == {"6", "8"} and scaling.format_tables(results) in page
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    again = scaling.training_flops(tmp_path / "runs" / "seed-0" / "width_16_blocks_1_episodes_6" / "world_model")
    assert again == small["flops"]
