import json
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_times_both_costs_and_keeps_other_sections(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import distance_cost

    monkeypatch.setattr(distance_cost, "SOLVER", {"horizon": 2, "num_candidates": 4, "num_iterations": 1})
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"masks": {"kept": True}}))
    section = distance_cost.main(["--rounds", "3", "--output", str(output)])
    assert json.loads(output.read_text()) == {"masks": {"kept": True}, "distance_cost": section}
    assert section["ratio"]["median"] > 0.5 and min(section["milliseconds"].values()) > 0
    assert "paired rounds" in capsys.readouterr().out


def test_a_planner_of_both_costs_gets_a_head(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import distance_cost

    planner = distance_cost.build_planner(None)
    assert planner.model.config.distance_head and planner.solver.num_candidates == 128
    with pytest.raises(FileNotFoundError):
        distance_cost.build_planner(Path("nowhere"))
