"""The tables of future prediction hold what the runs measured; the page's commands and snippets run at tiny size."""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import compare_future
import pytest

from vjepa2_hf.data.shards import ShardSource


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "future_prediction.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(command)
    for language, block in BLOCKS
    if not language
    for command in block.replace("\\\n", " ").splitlines()
]
SMALL = ["max_steps=2", "num_threads=1", "batch_size=2"]
TINY = {
    "pretrain": [*SMALL, "num_workers=0", "encoder.hidden_size=24", "encoder.num_hidden_layers=1"],
    "train_probe": [*SMALL, "selection_fraction=0.3"],
    "record_moving_digits": ["--num_shards", "1"],
    "measure_future": ["--clips", "6"],
}


def run_step(command: list[str], *more: str) -> None:
    """A script of the examples in this process, where everything is imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, *more])
        __import__(Path(command[0]).stem).main()


def test_every_command_and_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        script = next(i for i, part in enumerate(command) if part.startswith("examples/"))
        command = [str(ROOT / part) if part.startswith("examples/") else part for part in command[script:]]
        if "--videos" in command:
            command[command.index("--videos") + 1] = "20"
        run_step(command, *TINY[Path(command[0]).stem])
    found = json.loads(Path("runs/probes/anticipation/results.json").read_text())
    assert "class_mean_recall_at_5" in found["validation"] and found["clips"]["validation"] == 20
    *_, row = next(ShardSource("runs/digits/past_test").read_all())
    Path("clip.mp4").write_bytes(row["video"]["bytes"])
    names = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
    assert names["future"].shape == names["step_by_step"].shape == (1, 4, 16, 24)


def write(file: Path, value) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def test_the_tables_hold_what_the_runs_measured(run_study, tmp_path):
    for seed, error in enumerate((2.5, 2.6)):
        folder = tmp_path / "runs" / f"seed-{seed}"
        relative = {"one step": [error] * 3, "copy the last tubelet": [1.0] * 3}
        run = {"frames": ["1–2", "3–4", "7–8"], "over_copying": {"mse": relative, "l1": relative}}
        write(folder / "future_blocks.json", run)
        scores = {"accuracy": 0.5, "class_mean_recall_at_5": 0.25 * (seed + 1)}
        write(folder / "probes" / "encoder" / "results.json", {"validation": scores, "same_answer_for_all": 0.1})
    text = run_study(compare_future.STUDY, "--collect")
    assert "| masks | prediction | 1–2 | 3–4 | 7–8 |" in text
    assert "| blocks | one step | 2.55 (1.91–3.19) |" in text  # not cut at 1: ratios of errors may exceed it
    assert "| encoder | 0.50 (0.50–0.50) | 0.38 (" in text and "| the same answer for all | 0.10 |  |" in text
    assert json.loads((tmp_path / "results.json").read_text())["frames"] == ["1–2", "3–4", "7–8"]


def test_runs_with_other_settings_are_neither_taken_nor_published_as_these(run_study, tmp_path, monkeypatch, capsys):
    command = dataclasses.replace(compare_future.STUDY, run=lambda options: None)
    relative = {"copy the last tubelet": [1.0]}
    run = {"frames": ["1–2"], "over_copying": {"mse": relative, "l1": relative}}
    for seed in (0, 1, 5):
        write(tmp_path / "runs" / f"seed-{seed}" / "future_blocks.json", run)
    run_study(command, "--steps", "20")
    with pytest.raises(SystemExit):
        run_study(command, "--steps", "600")
    assert "holds runs with other steps (20, now 600)" in capsys.readouterr().err
    assert "20 steps of pretraining" in run_study(command, "--collect", "--seeds", "1")
    results = json.loads((tmp_path / "results.json").read_text())
    ratios = results["future"]["blocks"]["mse"]["copy the last tubelet"]["1–2"]
    assert results["steps"] == 20 and ratios == {"mean": 1.0, "low": None, "high": None, "by_seed": [1.0]}


def test_some_rows_can_be_run_alone(commands, tmp_path):
    given = ["--output", str(tmp_path), "--seeds", "1", "--jobs", "1"]
    compare_future.run(compare_future.STUDY.parse([*given, "--probes", "encoder"]))
    scripts = [Path(command[0]).stem for command in commands]
    assert scripts.count("pretrain") == scripts.count("measure_future") == 2 and scripts.count("train_probe") == 1
    assert "label=place" in commands[-1]
    commands.clear()
    compare_future.run(compare_future.STUDY.parse([*given[:1], str(tmp_path / "b"), *given[2:], "--masks", "blocks"]))
    scripts = [Path(command[0]).stem for command in commands]
    assert scripts == ["record_moving_digits"] * 3 + ["pretrain", "measure_future"]


@pytest.mark.slow
def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path):
    size = "--seeds 1 --jobs 1 --clips 40 --steps 2 --probe_steps 2"
    run_study(compare_future.STUDY, *size.split())
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["anticipation"]) == set(compare_future.PROBES) and len(found["future"]) == 2
    assert tiny_runs.count("train_probe") == len(compare_future.PROBES)


def test_the_table_is_that_of_the_last_measurement():
    results = json.loads((ROOT / "results" / "future_prediction.json").read_text(encoding="utf-8"))
    written = PAGE.split("<!-- future_prediction:begin -->")[1].split("<!-- future_prediction:end -->")[0]
    assert written.strip() == compare_future.format_tables(results).strip()
    assert written.strip().startswith("600 steps of pretraining; 3 training seeds: mean (95 % interval over seeds).")
    for table in (table for found in results["future"].values() for table in found.values()):
        for value in (value for row in table.values() for value in row.values()):
            value["by_seed"] = value["by_seed"][:1]
    assert "600 steps of pretraining; 1 training seed.\n" in compare_future.format_tables(results)
