"""benchmarks/bfloat16.py at its tiny size."""

import json
from pathlib import Path

import pytest

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark as a module; it finds its neighbors as it does when run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bfloat16

    return bfloat16


def test_it_measures_both_types_and_publishes_the_tables(benchmark, tmp_path, capsys):
    page, output = tmp_path / "page.md", tmp_path / "bfloat16.json"
    page.write_text("before\n<!-- bfloat16:begin -->\nold\n<!-- bfloat16:end -->\nafter\n")
    results = benchmark.main(["--tiny", "--output", str(output), "--publish", str(page)])
    assert json.loads(output.read_text()) == results
    assert list(results["works"]) == ["encoder forward", "pretraining step", "world-model step", "CEM plan"]
    for one in results["works"].values():
        assert one["ratio"]["minimum"] > 0 and one["rounds"] == 2
        for rows in one["profile"].values():
            assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert results["works"]["encoder forward"]["agreement"]["tokens"] < 0.03
    assert results["works"]["CEM plan"]["agreement"]["costs"] < 0.05
    for rows in results["losses"].values():
        assert len(rows) == 3
        for row in rows:
            assert row["bfloat16"] == pytest.approx(row["float32"], rel=0.05)
            assert row["bfloat16_first"] == pytest.approx(row["float32_first"], rel=0.02)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| CEM plan | rank correlation |" in text and "| linear layers |" in text
    again = benchmark.main(["--table", "--output", str(output)])
    assert again == results and "| encoder forward |" in capsys.readouterr().out


def test_success_of_plans_is_shown_if_it_was_measured(benchmark):
    row = {"success": 0.9, "low": 0.8, "high": 0.95, "cpu_milliseconds": 12.0}
    work = {
        "seconds": {"float32": 0.2, "bfloat16": 0.1},
        "ratio": {"minimum": 1.9, "median": 2.0, "maximum": 2.1},
        "ratio_of_products": {"minimum": 2.0, "median": 2.5, "maximum": 3.0},
        "rounds": 7,
        "agreement": {"rank_correlation": 0.99},
        "profile": {
            "float32": [{"operator": "attention, forward", "share": 1.0, "calls": 1}],
            "bfloat16": [
                {"operator": "attention, products apart", "share": 0.5, "calls": 2},
                {"operator": "aten::_softmax", "share": 0.49, "calls": 2},
                {"operator": "3 others", "share": 0.01, "calls": 9},
            ],
        },
    }
    results = {
        "machine": {"processor": "A CPU", "torch": "2", "bfloat16": []},
        "works": {"plan": work},
        "losses": {},
        "steps": 9,
        "success": {
            "tasks": 50,
            "rows": {"default": {**row, "title": "the default"}, "b": {**row, "title": "bfloat16"}},
        },
    }
    text = benchmark.format_tables(results)
    assert "| plan | 200 | 100 | 2.00 (1.90 to 2.10) | 2.50 | 0.80 |" in text
    assert "| plan | attention | 100 % | 99 % | 2.02 |" in text and "| plan | others | 0 % | 1 % |  |" in text
    assert "success in float32, 50 tasks | 0.900 (0.800 to 0.950), 12.0 ms per plan |" in text


def test_plans_of_the_demo_are_tried_in_both_types(benchmark, tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    actions = {"action_dim": 4, "actions_per_step": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
    model = VJepa2WorldModel.from_encoder(encoder, frame_skip=2, distance_head=True, **actions, **dynamics)
    model.save_pretrained(tmp_path / "world_model" / "final")
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "world_model" / "final")
    found = benchmark.measure_success(tmp_path, 1)
    assert list(found["rows"]) == ["default", "bfloat16"] and found["tasks"] == 1
    assert all(row["plans"] > 0 for row in found["rows"].values())


def test_errors_come_before_anything_is_measured(benchmark, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no world model in"):
        benchmark.main(["--tiny", "--pushing", str(tmp_path)])
