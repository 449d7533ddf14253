"""Every row of the table of fine-tuning is trained and probed, on one start."""

import json

import pytest
import torch
from builders import TINY_PREDICTOR
from measure_fine_tuning import PAIRS, SCRATCH, START, STUDY, format_tables

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2MaskedLatentPredictionConfig, VJepa2VideoProcessor


def test_the_whole_command_runs_at_tiny_size(tiny_runs, run_study, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=sizes, **TINY_PREDICTOR)
    VJepa2ForMaskedLatentPrediction(config).save_pretrained(tmp_path / "start")
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "start")
    options = ["--start", str(tmp_path / "start"), "--jobs", "1", "--seeds", "2"]
    page = run_study(STUDY, *options)
    results = json.loads((tmp_path / "results.json").read_text())
    counts = {name: len(row["content (tokens)"]["by_seed"]) for name, row in results["rows"].items()}
    assert counts == dict.fromkeys(results["rows"], 2) | {START: 1} and len(counts) == 5
    assert format_tables(results) in page and tiny_runs.count("pretrain") == 6
    mine, scratch = (results["rows"][row]["motion (average)"]["mean"] for row in PAIRS[0])
    difference = results["differences"]["motion (average)"][0]
    assert difference["mean"] == pytest.approx(mine - scratch)
    assert f"| continued, peak 5e-4, minus {SCRATCH} |" in page
    with pytest.raises(SystemExit):  # runs with another number of steps
        run_study(STUDY, *options, "--steps", str(results["steps"] + 1))


def test_a_start_that_is_missing_is_refused_before_anything_is_written(run_study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_study(STUDY, "--start", str(tmp_path / "none"))
    assert "There is no model at" in capsys.readouterr().err and not (tmp_path / "runs").exists()
