"""Measuring the optional parts: every command is one that its script takes, and the table says what was measured."""

import json
from pathlib import Path

import measure_optional_parts
import pytest
from builders import TINY_ENCODER
from measure_optional_parts import STUDY

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor


def test_one_command_measures_all_three_parts(tiny_runs, run_study, tmp_path):
    """At its smallest: 8 episodes, of which three are held out, and two steps of every model."""
    sizes = TINY_ENCODER | {"crop_size": 64, "patch_size": 16}
    VJepa2Encoder(VJepa2EncoderConfig(**sizes)).save_pretrained(tmp_path / "encoder")
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "encoder")
    size = "--seeds 1 --episodes 8 --steps 2 --decoder_steps 2 --stochastic_dim 2 --jobs 1"
    page = run_study(STUDY, "--encoder", str(tmp_path / "encoder"), *size.split())

    models = json.loads((tmp_path / "results.json").read_text())["models"]
    assert models["world_model"]["mean"]["reward_error"][0] > 0
    assert models["world_model"]["mean"]["block_locator_px"][0] < 1
    assert 0 <= models["stochastic"]["mean"]["pusher_coverage_90"][-1] <= 1
    assert models["deterministic"]["mean"]["coverage_90"] == [0] * 6  # its futures coincide
    assert models["deterministic"]["mean"]["pusher_residual_width_90"][0] > 0
    assert "| block: stochastic, samples, calibrated |" in page and "| block: 90 % intervals |" in page
    assert "| latents: stochastic, samples, calibrated |" not in page
    assert (tmp_path / "runs" / "seed-0" / "world_model.png").is_file()
    assert "| pusher: deterministic, its one future |" in page and "pretrain" not in tiny_runs


def write_evaluation(path: Path, **columns: list[float | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"horizon": horizon} | {k: v[i] for k, v in columns.items()} for i, horizon in enumerate((1, 10))]
    path.write_text(json.dumps({"horizons": rows}))


def test_means_are_over_seeds_and_what_was_not_found_stays_open(tmp_path):
    for seed, error in enumerate((1.0, 2.0)):
        for name in measure_optional_parts.MODELS:
            write_evaluation(
                tmp_path / f"seed-{seed}" / f"{name}.json",
                block_painted_px=[error, None],
                coverage_90=[0.8 + error / 10, 0.5],
            )
        (tmp_path / f"seed-{seed}" / "timings.json").write_text('{"train": 60, "evaluate": 30}')
    results = measure_optional_parts.collect(STUDY.parse(["--output", str(tmp_path), "--seeds", "2"]))
    found = results["models"]["stochastic"]
    assert found["horizon"] == [1, 10] and found["by_seed"]["block_painted_px"] == [[1.0, None], [2.0, None]]
    assert found["mean"]["block_painted_px"] == [1.5, None]
    assert found["mean"]["coverage_90"] == [pytest.approx(0.95), 0.5]
    assert (results["seeds"], results["minutes"]) == (2, 3.0)
    assert measure_optional_parts.cells(found["mean"], "block_painted_px") == ["1.50", "–"]


def test_part_of_the_models_is_no_table(tmp_path):
    write_evaluation(tmp_path / "seed-0" / "world_model.json", coverage_90=[0.5, 0.5])
    assert measure_optional_parts.collect(STUDY.parse(["--output", str(tmp_path)])) is None
