"""Differences are paired by seed, and an earlier table is taken only with the same settings."""

import importlib
import json

import pytest
from seed_tables import claim_settings, interval_cell, joined, known_rows, over_seeds, paired, settings_of


def test_differences_are_of_the_seeds_that_both_have():
    difference = paired({0: 0.5, 1: 0.75, 3: 0.5}, {0: 0.25, 1: 0.75, 2: 1.0})
    assert difference["by_seed"] == [0.25, 0.0] and difference["mean"] == 0.125
    assert difference["low"] < 0 < difference["high"]
    assert paired({0: 0.5}, {1: 0.5}) == {}
    assert interval_cell(paired({0: 0.5}, {0: 0.25})) == "one seed"
    assert interval_cell(difference) == "-1.00 to +1.00"


def test_equal_differences_have_no_interval():
    difference = paired({0: 1.0, 1: 0.94}, {0: 0.96, 1: 0.90})
    assert len(set(difference["by_seed"])) > 1, "rounding alone tells them apart"
    assert interval_cell(difference) == "–"


def test_an_earlier_table_counts_only_with_the_same_settings(tmp_path):
    path = tmp_path / "results.json"
    row = {"name": "recipe", "seeds": [0]}
    path.write_text(json.dumps({"episodes": 4, "environments": {"pushing": {"rows": [row]}}}))
    assert known_rows(path, {"episodes": 4, "environments": {}}) == {("pushing", "recipe"): row}
    assert known_rows(path, {"episodes": 5, "environments": {}}) == {}
    assert known_rows(tmp_path / "absent.json", {"episodes": 4}) == {}


def test_joined_rows_have_each_seed_once():
    def row(seeds, values, milliseconds):
        return {"name": "a", "title": "A", "seeds": seeds, "success": over_seeds(values), "ms": milliseconds}

    both = joined(row([0, 1], [0.5, 0.25], 10.0), row([1, 2], [0.75, 1.0], 40.0))
    assert (both["seeds"], both["success"]["by_seed"]) == ([0, 1, 2], [0.5, 0.75, 1.0])
    assert both["ms"] == pytest.approx(30.0)  # one seed of the old, two of the new
    assert joined(None, row([0], [0.5], 1.0))["seeds"] == [0]


def test_runs_of_a_folder_have_the_settings_that_began_it(tmp_path):
    (tmp_path / "seed-0").mkdir()  # runs of a folder without settings
    assert settings_of(tmp_path, {"steps": 600}) == {"steps": 600}
    claim_settings(tmp_path, {"steps": 600})
    claim_settings(tmp_path, {"steps": 600})
    with pytest.raises(ValueError, match=r"holds runs with other steps \(600, now 20\); choose another folder"):
        claim_settings(tmp_path, {"steps": 20})
    assert settings_of(tmp_path, {"steps": 20}) == {"steps": 600}


@pytest.mark.parametrize("name", ["ablate_pretraining", "compare_future", "compare_probes", "measure_fine_tuning"])
def test_a_page_with_figures_is_not_replaced_by_one_without(name, tmp_path, monkeypatch):
    command = importlib.import_module(name)
    page = tmp_path / "page.md"
    page.write_text("figures")
    options = ["--collect", "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit, match="no run is finished in .*nothing to publish"):
        command.main([*options, "--document", str(page)])
    assert page.read_text() == "figures" and not (tmp_path / "r.json").exists()
