"""The table of docs/memory.md: its cases run and are measured, at tiny size, and the page has the last measurement."""

import json
import sys
from pathlib import Path

import pytest

from vjepa2_hf import VJepa2MaskedLatentPredictionConfig


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table():
    """benchmarks/memory_table.py as a module; it finds its neighbours as it does when run."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import memory_table

    yield memory_table
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def tiny(table, monkeypatch):
    encoder = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    predictor = {f"predictor_{name}": encoder[name] for name in list(encoder)[:3]}

    def config(case):
        clip = {"frames_per_clip": case.frames, "crop_size": case.side}
        return VJepa2MaskedLatentPredictionConfig(encoder_config={**encoder, **clip}, **predictor)

    monkeypatch.setattr(table.Case, "config", property(config))
    return table


@pytest.mark.parametrize("way", ["inference", "probe", "checkpointed", "pretraining"])
def test_every_way_runs_and_has_an_estimate(tiny, way):
    cases = [tiny.Case("tiny", 4, 64, clips, way) for clips in (1, 3)]
    tiny.run_case(cases[0])
    one, three = (tiny.estimate(case, "no", mask_samples=1) for case in cases)
    assert one["state"] == three["state"] > 0
    assert three["clips"] > 2 * one["clips"] > 0


def test_estimates_are_in_the_order_of_what_the_ways_keep(tiny):
    found = {way: tiny.estimate(tiny.Case("tiny", 16, 128, 1, way), "bf16") for way in tiny.WAYS}
    states = [found[way]["state"] for way in ("inference", "probe", "checkpointed", "pretraining")]
    assert states == sorted(states) and states[2] == states[3]
    assert found["checkpointed"]["clips"] < found["pretraining"]["clips"]


@pytest.mark.slow
def test_a_case_is_measured_in_a_process_of_its_own(table):
    case = table.Case("small", 2, 32, 1, "inference")
    weights = 4 * 22e6
    assert weights < table.measure(case) < 3 * weights


def test_a_case_that_fails_says_why(table):
    with pytest.raises(RuntimeError, match="(?s)failed: .*ValueError"):
        table.measure(table.Case("small", 2, 30, 1, "inference"))


def test_the_command_writes_estimates_and_check(table, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "SIZES", ("base",))
    monkeypatch.setattr(table, "CHECKED", (table.Case("small", 16, 64, 2, "probe"),))
    monkeypatch.setattr(table, "measure", lambda case: 10**8)
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.main(["--results", str(results), "--document", str(page)])
    text = page.read_text()
    assert text.count("| ViT-B | ") == len(table.CLIPS) and "old" not in text
    assert "| ViT-S, 2 × 16 × 64² | attentive probe, encoder frozen | 100 |" in text
    assert table.format_tables(json.loads(results.read_text())) in capsys.readouterr().out


def test_the_tables_of_the_page_are_those_of_the_last_measurement(table):
    results = json.loads((ROOT / "results" / "memory.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    written = page.split(table.BEGIN)[1].split(table.END)[0]
    assert written.strip() == table.format_tables(results).strip()
