"""benchmarks/growth.py at tiny size: every setting has a fit, the page gets table and figure, and faster growth is
marked."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).resolve().parents[2]
MODELS = [
    "frames, encoder",
    "pixels per side, encoder",
    "frames, pretraining step",
    "pixels per side, pretraining step",
]
PLANS = ["candidates, plan", "horizon, plan", "observations, plan"]
SHARDS = ["shards, first row", "shards, later row"]
BEGIN, END = "<!-- growth:begin -->\n", "\n<!-- growth:end -->"


@pytest.fixture(scope="module")
def growth():
    """benchmarks/growth.py as a module; it finds its neighbors as it does when run."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import growth

    yield growth
    sys.path.remove(str(ROOT / "benchmarks"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def path(growth, tmp_path_factory) -> Path:
    """Results of the tiny run; memory is measured in this process, which saves its imports in another."""

    def measure_peaks(tiny: bool, names: list[str]) -> dict:
        from growth_cases import build_axes

        with tempfile.TemporaryDirectory() as scratch:
            return {
                axis.name: [[growth.measure_peak(tiny, axis.name, value, Path(scratch)) for value in axis.values]]
                for axis in build_axes(tiny)
                if axis.name in names and axis.has_memory
            }

    path = tmp_path_factory.mktemp("growth") / "growth.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "measure_peaks_apart", measure_peaks)
        names = [*MODELS, *PLANS, *SHARDS]
        returned = growth.main(["--tiny", "--output", str(path), "--only", *names])
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(returned))
    return path


def test_every_setting_is_measured_next_to_what_is_expected(path):
    rows = {f"{row['setting']}, {row['task']}": row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == [*MODELS, *PLANS, *SHARDS]
    for name, row in rows.items():
        costs = [row["time"]] if name == "shards, later row" else [row["time"], row["memory"]]
        for cost in costs:
            assert len(cost["median"]) == len(cost["expected"]) == len(row["values"]) and min(cost["median"]) > 0
        exponent = row["time"]["exponent"]
        assert exponent["low"] <= exponent["mean"] <= exponent["high"]
    assert rows["shards, later row"]["memory"] is None and not rows["shards, first row"]["attention"]


def test_expected_exponents_are_those_of_operations_and_bytes(path):
    rows = {f"{row['setting']}, {row['task']}": row for row in json.loads(path.read_text())["rows"]}
    times = {name: row["time"]["expected_exponent"] for name, row in rows.items()}
    memory = {name: row["memory"]["expected_exponent"] for name, row in rows.items() if row["memory"]}
    assert 1 < times["frames, encoder"] < 2 < times["pixels per side, encoder"] < 4
    assert times["shards, first row"] == pytest.approx(1) and times["shards, later row"] == pytest.approx(0)
    assert times["candidates, plan"] < times["observations, plan"] == pytest.approx(1)  # the plan itself is evaluated
    assert memory["frames, encoder"] == pytest.approx(1) == memory["observations, plan"]
    assert memory["horizon, plan"] < 1 and memory["shards, first row"] == pytest.approx(0)
    for name in MODELS:
        first, last = rows[name]["attention"]
        assert 0 < first < last < 1


def test_the_page_gets_table_and_figure(growth, path, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}Not measured yet.{END}\nafter\n")
    growth.main(["--table", "--output", str(path), "--publish", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "Not measured" not in text
    assert "](growth.png)" in text and (tmp_path / "growth.png").stat().st_size > 10_000
    assert "| pixels per side | pretraining step | 1 clip of 4 frames | 64 – 96 |" in text
    assert growth.format_report(json.loads(path.read_text())) in capsys.readouterr().out


def test_an_exponent_is_found_and_faster_growth_is_marked(growth):
    values = (2, 4, 8)
    rounds = [[scale * value**1.5 for value in values] for scale in (1.0, 1.1, 0.9)]
    found = growth.summarize(values, rounds, values)
    assert found["exponent"]["mean"] == pytest.approx(1.5) and found["expected_exponent"] == pytest.approx(1)
    assert found["grows_faster"] and growth.format_cost(found, 1)[1].startswith("**1.50 (")
    assert not growth.summarize(values, rounds, [value**1.47 for value in values])["grows_faster"]
    noisy = [[value**exponent for value in values] for exponent in (0.5, 1.5, 1.6)]  # 1.2, and 1 is in the interval
    assert not growth.summarize(values, noisy, values)["grows_faster"]


def test_an_unknown_setting_is_refused(growth):
    with pytest.raises(SystemExit, match="no setting begins with width"):
        growth.main(["--tiny", "--only", "width"])


def test_a_process_alone_measures_its_step(growth, tmp_path):
    import growth_processes

    growth_processes.main([str(tmp_path), "1", "--tiny"])
    found = json.loads((tmp_path / "0.json").read_text())
    assert set(found) == {"exchanging", "apart"} and min(found.values()) > 0


@pytest.mark.slow
def test_the_command_measures_processes_and_memory(tmp_path):
    output = tmp_path / "growth.json"
    command = [sys.executable, ROOT / "benchmarks" / "growth.py", "--tiny", "--output", output]
    subprocess.run([*command, "--only", "frames, encoder", "processes"], check=True, capture_output=True)
    frames, processes = json.loads(output.read_text())["rows"]
    assert frames["memory"]["median"] and processes["values"] == [1, 2]
    assert min(processes["time"]["median"]) > 0 and min(processes["memory"]["median"]) > 10**5


def test_the_page_has_the_last_measurement(growth):
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    written = page.split(BEGIN)[1].split(END)[0]
    if growth.RESULTS.exists():
        results = json.loads(growth.RESULTS.read_text(encoding="utf-8"))
        assert written.endswith(growth.format_report(results)) and (ROOT / "docs" / growth.FIGURE).exists()
    else:
        assert written == "Not measured yet."
