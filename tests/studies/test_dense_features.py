"""The study of dense features at tiny size: every row, paired differences, figures; and what is measured."""

import json

import dense_features
import measure_dense_features
import numpy as np
import pytest
from dense_features import ALL_LEVELS, NEW, OLD, RANDOM, ROWS, STUDY, differences, format_tables

from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.probing.dense_clips import DenseClip


@pytest.fixture
def tiny(monkeypatch):
    """Sizes of the recipes that the conftest's encoder of one block takes."""
    levels = {**dense_features.LEVELS, "encoder.output_levels": [0]}
    rows = {row: (10, {**changes, **(levels if changes else {})}) for row, (_, changes) in ROWS.items()}
    monkeypatch.setattr(dense_features, "ROWS", rows)


def test_the_whole_command_runs_at_tiny_size(tiny, tiny_runs, run_study, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (101, 144, 176, 3), np.uint8)
    (tmp_path / "clip.mp4").write_bytes(encode_video(frames, fps=30))
    options = ["--seeds", "1", "--jobs", "1", "--video", str(tmp_path / "clip.mp4"), "--images", str(tmp_path)]
    page = run_study(STUDY, *options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["rows"]) == {RANDOM, *ROWS, *ALL_LEVELS}
    for row in results["rows"].values():
        assert set(dense_features.COLUMNS) <= set(row)
        assert all(0 <= row[name]["mean"] <= 1 for name in dense_features.COLUMNS)
    assert len(results["differences"]) == len(dense_features.PAIRS)
    assert format_tables(results) in page and tiny_runs.count("pretrain") == 3 and tiny_runs.count("look") == 2
    assert {path.name for path in tmp_path.glob("dense_*.png")} == {"dense_pushing.png", "dense_real.png"}
    assert results["figures"] == ["pushing", "real"] and "(dense_real.png)" in page


def test_differences_are_paired_by_seed():
    rows = {OLD: {"miou": {"by_seed": [0.5, 0.7]}}, NEW: {"miou": {"by_seed": [0.6, 0.8]}}}
    (found,) = differences(rows)
    assert (found["row"], found["minus"]) == (NEW, OLD) and found["miou"]["mean"] == pytest.approx(0.1)
    assert found["miou"]["high"] - found["miou"]["low"] == pytest.approx(0, abs=1e-9)  # although the seeds differ


def test_positions_are_the_centers_of_discs():
    labels = np.zeros((2, 8, 8), int)
    labels[1, 2:4, 4:6], labels[1, 6, 0:3] = 1, 2
    clip = DenseClip("a", np.zeros((2, 8, 8, 3), np.uint8), labels)
    assert measure_dense_features.disc_centers(clip, ["floor", "agent", "block"]).tolist() == [2.5, 4.5, 6, 1]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5))
    centers = features[:, :2] * 3 + 1
    score = measure_dense_features.position_score
    assert score(features[:40], centers[:40], features[40:], centers[40:]) > 0.99
    assert score(features[:40], centers[:40], features[40:], rng.normal(size=(20, 2))) == 0.0


def test_too_few_episodes_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure_dense_features.main([str(tmp_path), str(tmp_path / "none"), str(tmp_path / "out.json")])
    assert "error: " in capsys.readouterr().err
