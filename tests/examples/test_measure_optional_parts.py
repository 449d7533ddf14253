"""Measuring the optional parts: every command is one that its script takes, and the table says what was measured."""

import json
import runpy
import sys
from pathlib import Path

import measure_optional_parts
import pytest
import yaml
from builders import TINY_ENCODER
from demo import Road

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor


MARKERS = "before\n<!-- optional_parts:begin -->\nold\n<!-- optional_parts:end -->\nafter\n"


def run_here(self, title: str, *steps) -> None:
    """`Road.run` in this process, which saves a start of Python for every step."""
    for _, result, command in steps:
        if not result.exists():
            argv, sys.argv = sys.argv, command
            try:
                runpy.run_path(command[0], run_name="__main__")
            finally:
                sys.argv = argv


def main(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_optional_parts.py", *arguments])
    measure_optional_parts.main()


def test_one_command_measures_all_three_parts(monkeypatch, tmp_path):
    """At its smallest: 8 episodes, of which three are held out, and two steps of every model."""
    sizes = TINY_ENCODER | {"crop_size": 64, "patch_size": 16}
    VJepa2Encoder(VJepa2EncoderConfig(**sizes)).save_pretrained(tmp_path / "encoder")
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(Road, "run", run_here)
    for name in ("world_model", "decoder"):  # so few episodes need a larger share held out
        config = yaml.safe_load((measure_optional_parts.CONFIGS / f"{name}.yaml").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config | {"validation_fraction": 0.25}))
    monkeypatch.setattr(measure_optional_parts, "CONFIGS", tmp_path)
    few = ("windows_per_episode=1", "num_samples=19", "levels=[0.5, 0.9]", "num_threads=1")
    monkeypatch.setattr(measure_optional_parts, "EVALUATION", few)
    (tmp_path / "page.md").write_text(MARKERS)
    arguments = ["--encoder", str(tmp_path / "encoder"), "--output", str(tmp_path / "runs"), "--episodes", "8"]
    arguments += ["--steps", "2", "--decoder_steps", "2", "--stochastic_dim", "2"]
    arguments += ["--results", str(tmp_path / "results.json"), "--document", str(tmp_path / "page.md")]
    main(monkeypatch, *arguments)

    models = json.loads((tmp_path / "results.json").read_text())["models"]
    assert models["world_model"]["mean"]["reward_error"][0] > 0
    assert models["world_model"]["mean"]["block_locator_px"][0] < 1
    assert 0 <= models["stochastic"]["mean"]["pusher_coverage_90"][-1] <= 1
    assert models["deterministic"]["mean"]["coverage_90"] == [0] * 6  # its futures coincide
    assert models["deterministic"]["mean"]["pusher_residual_width_90"][0] > 0
    assert (tmp_path / "runs" / "seed-0" / "world_model.png").is_file()
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert "| pusher: deterministic, its one future |" in page


def write_evaluation(path: Path, **columns: list[float | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"horizon": horizon} | {k: v[i] for k, v in columns.items()} for i, horizon in enumerate((1, 10))]
    path.write_text(json.dumps({"horizons": rows}))


def test_means_are_over_seeds_and_what_was_not_found_stays_open(tmp_path):
    for seed, error in enumerate((1.0, 2.0)):
        for name in ("world_model", "deterministic", "stochastic"):
            write_evaluation(
                tmp_path / f"seed-{seed}" / f"{name}.json",
                block_painted_px=[error, None],
                coverage_90=[0.8 + error / 10, 0.5],
            )
        (tmp_path / f"seed-{seed}" / "timings.json").write_text('{"train": 60, "evaluate": 30}')
    arguments = measure_optional_parts.argparse.Namespace(output=tmp_path, seeds=2)
    results = measure_optional_parts.collect(arguments)
    found = results["models"]["stochastic"]
    assert found["horizon"] == [1, 10] and found["by_seed"]["block_painted_px"] == [[1.0, None], [2.0, None]]
    assert found["mean"]["block_painted_px"] == [1.5, None]
    assert found["mean"]["coverage_90"] == [pytest.approx(0.95), 0.5]
    assert (results["seeds"], results["minutes"]) == (2, 3.0)
    assert measure_optional_parts.cells(found["mean"]["block_painted_px"]) == ["1.50", "–"]


def test_collecting_without_a_run_ends_in_a_sentence(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(monkeypatch, "--collect", "--output", str(tmp_path), "--results", str(tmp_path / "results.json"))
    assert "no seed has measured 'world_model'" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
