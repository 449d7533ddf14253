"""The figure and table of training curves: what a run logged, a warning where it stands, refusals in one sentence."""

import json
from pathlib import Path

import PIL.Image
import plot_training_curves
import pytest
from plot_training_curves import CURVES, format_summary, number
from pretrain import METERS


ROOT = Path(__file__).resolve().parents[2]


def write_run(folder, deviation: float, name: str) -> Path:
    """A run of eight lines whose targets' deviation falls by a factor each time."""
    (folder / name).mkdir()
    lines = []
    for i in range(1, 9):
        line = {"step": 10 * i, **dict.fromkeys(CURVES, 1 / i), "target_std": deviation**i, "effective_rank": 9.0}
        lines.append({**line, "ema_momentum": 0.0, "skipped": None})
    lines[-1]["warning"] = "The run of an older version said this late."
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / name / "config.yaml").write_text("normalize_targets: none\n")
    return folder / name


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path, 0.99, "good"), write_run(tmp_path, 0.5, "bad")


def test_the_figure_and_the_table_are_of_the_runs_logs(runs, tmp_path, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("before\n<!-- training_curves:begin -->\nold\n<!-- training_curves:end -->\nafter\n")
    arguments = [*runs, "--output", tmp_path / "curves.png", "--document", page, "--results", results]
    plot_training_curves.main(list(map(str, arguments)))
    with PIL.Image.open(tmp_path / "curves.png") as figure:
        assert figure.width > figure.height > 300
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "| step of the warning | none | 50 |" in text
        and "The warning of `bad`: “The targets collapse at step 50" in text
    )
    found = json.loads(results.read_text())
    assert found["bad"]["lowest_std_fraction"] == pytest.approx(0.5**7) and found["good"]["warning"] is None
    assert found["good"]["ends"]["loss"] == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, (1 / 6 + 1 / 7 + 1 / 8) / 3])
    assert format_summary(found) in capsys.readouterr().out


def test_what_is_no_run_is_refused_in_one_sentence(runs, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for folder, message in ((tmp_path / "other", "has no target_std"), (tmp_path / "none", "There is no")):
        with pytest.raises(SystemExit):
            plot_training_curves.main([str(folder), "--output", str(tmp_path / "c.png")])
        assert message in capsys.readouterr().err
    (tmp_path / "again").mkdir()
    again = write_run(tmp_path / "again", 0.9, "good")
    with pytest.raises(SystemExit):
        plot_training_curves.main([str(runs[0]), str(again), "--output", str(tmp_path / "c.png")])
    assert "names must differ" in capsys.readouterr().err


def test_all_meters_of_a_run_are_drawn():
    assert set(METERS) < set(CURVES)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (54.01, "54"), (0.3285, "0.33"), (0.0072, "0.0072"), (2e-5, "2.0e-5"), (123.4, "123")],
)
def test_numbers_have_two_digits(value, text):
    assert number(value) == text


def test_the_table_of_the_page_is_that_of_the_last_measurement():
    results = json.loads((ROOT / "results" / "training_curves.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "training_curves.md").read_text(encoding="utf-8")
    written = page.split("<!-- training_curves:begin -->")[1].split("<!-- training_curves:end -->")[0]
    assert written.strip() == format_summary(results).strip()
