"""What detect_anomalies pastes into a video, and the scores that it compares."""

from argparse import Namespace

import detect_anomalies
import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, build_encoder, build_masked_latent, moving_square, noise_pixels
from detect_anomalies import freeze, jump, reverse, sample_placement

from vjepa2_hf import VJepa2AnomalyDetector, VJepa2VideoProcessor


@pytest.fixture
def frames():
    return torch.randn(30, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("paste", [jump, reverse, freeze])
def test_an_anomaly_changes_its_interval_alone(frames, paste):
    before = frames.clone()
    found = paste(frames, 10, 22, rng())
    assert torch.equal(frames, before) and found.shape == frames.shape
    same = (found == frames).flatten(1).all(dim=1)
    assert same[:10].all() and same[22:].all() and not same[11:22].all()


def test_what_each_anomaly_is(frames):
    assert torch.equal(reverse(frames, 10, 20, rng())[10:20], frames[10:20].flip(0))
    assert torch.equal(freeze(frames, 10, 20, rng())[10:20], frames[10:11].expand(10, -1, -1, -1))
    jumped = jump(frames, 10, 22, rng())
    places = (jumped != frames)[10:22].any(dim=1)  # (12, H, W)
    assert (places.flatten(1).sum(dim=1) == 16).all()  # 4 x 4 pixels
    assert all(torch.equal(places[i], places[i - 1]) == bool(i % 4) for i in range(1, 12))


def test_placements_leave_the_model_frames_before_and_the_scores_frames_after():
    generator = rng()
    drawn = [sample_placement(199, 80, 20, generator) for _ in range(500)]
    starts, firsts = zip(*drawn)
    assert min(starts) == 0 and max(starts) == 119 and min(firsts) == 30 and max(firsts) == 45


def test_the_baseline_is_the_detectors_score():
    detector = VJepa2AnomalyDetector(build_masked_latent(), device="cpu", scores=["frames"])
    normal, segment = noise_pixels(60), freeze(noise_pixels(40), 20, 30, rng())
    scorers = detect_anomalies.Scorers(detector, normal)
    found = scorers(segment)["change from frame to frame, above and below"]
    assert np.array_equal(found, detector(segment)["frame_scores"], equal_nan=True)


def test_a_distilled_model_is_given_its_teacher(tmp_path, capsys):
    build_encoder().save_pretrained(tmp_path / "teacher")
    model = build_masked_latent(target_type="teacher", teacher_hidden_size=TINY_ENCODER["hidden_size"])
    model.save_pretrained(tmp_path / "student")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path / "student")
    (tmp_path / "video.mp4").write_bytes(moving_square(120))
    arguments = [str(tmp_path / name) for name in ("student", "video.mp4", "out")]
    arguments += ["--placements", "1", "--segment", "24", "--length", "6"]
    with pytest.raises(SystemExit):
        detect_anomalies.main(arguments)
    error = capsys.readouterr().err
    assert "needs its teacher" in error and "--teacher FOLDER" in error
    detect_anomalies.main([*arguments, "--teacher", str(tmp_path / "teacher")])
    assert (tmp_path / "out" / "anomalies.json").is_file()


def test_table_names_every_method_and_anomaly():
    values = {"object that jumps": [0.9, 1.0], "frozen": [0.5, 0.5]}
    auc = {anomaly: dict.fromkeys(detect_anomalies.METHODS, found) for anomaly, found in values.items()}
    settings = vars(Namespace(placements=2, segment=80, length=20, seed=0, stride=1))
    lines = detect_anomalies.format_tables({"settings": settings, "auc": auc}).splitlines()
    assert lines[2] == "| scores | object that jumps | frozen |" and len(lines) == 4 + len(detect_anomalies.METHODS)
    assert lines[4].endswith("| 0.95 (0.31–1.00), 0.90 | 0.50 (0.50–0.50), 0.50 |")


def test_table_of_several_models_has_an_interval_over_models_and_placements():
    values = [[0.9, 1.0], [0.8, 0.7], [0.9, 0.8]]
    settings = vars(Namespace(placements=2, segment=80, length=20, seed=0, stride=1, models=3))
    auc = {"frozen": {"model, change of errors": values}}  # methods that were not measured have no row
    lines = detect_anomalies.format_tables({"settings": settings, "auc": auc}).splitlines()
    low, high = detect_anomalies.crossed_interval(np.array(values))
    assert "over 3 training seeds and placements" in lines[0] and len(lines) == 5
    assert lines[4].endswith(f"| 0.85 ({max(low, 0):.2f}–{min(high, 1):.2f}), 0.70 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "video.avi"], "Give MODEL, VIDEO and OUT_DIR"),
        (["model", "video.avi", "out", "--placements", "0"], "--placements is 0, expected a positive number"),
        (
            ["model", "video.avi", "out", "--length", "40"],
            r"--segment is 80; expected at least three times --length (40)",
        ),
        (["nowhere", "video.avi", "out"], "There is no model at 'nowhere'"),
        ([".", "video.avi", "out", "--teacher", "nowhere"], "There is no model at 'nowhere'"),
    ],
)
def test_what_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        detect_anomalies.main(arguments)
    assert message in capsys.readouterr().err
