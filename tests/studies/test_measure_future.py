"""The errors of predicted futures are of the tubelets they claim to be, and guesses have not seen the future."""

import json
import re

import measure_future
import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR, clips

from vjepa2_hf import (
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2VideoProcessor,
)
from vjepa2_hf.data.video_writing import encode_video


def build(**fields) -> VJepa2ForMaskedLatentPrediction:
    torch.manual_seed(0)
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR, **fields)
    return VJepa2ForMaskedLatentPrediction(config).eval()


def test_a_horizon_is_that_of_the_tubelet_which_holds_the_frame():
    assert [measure_future.tubelet_of(horizon, 2) for horizon in (1, 2, 4, 8)] == [0, 0, 1, 3]
    assert [measure_future.tubelet_of(horizon, 1) for horizon in (1, 2, 4, 8)] == [0, 1, 3, 7]
    assert measure_future.covered(1, 2) == "3–4" and measure_future.covered(7, 1) == "8"


def test_guesses_without_a_model():
    known = torch.arange(3.0).view(1, 3, 1, 1) * 2  # 0, 2, 4
    truth = torch.tensor([6.0, 9.0]).view(1, 2, 1, 1)
    guesses = measure_future.baselines(known, truth)
    found = {name: guess.flatten().tolist() for name, guess in guesses.items()}
    assert found == {"copy the last tubelet": [4, 4], "linear extrapolation": [6, 8], "mean of all clips": [6, 9]}
    errors = measure_future.errors(guesses["copy the last tubelet"], truth)
    assert errors == {"mse": [4, 25], "l1": [2, 5]}


@pytest.mark.parametrize("normalize", ["layer", "clip"])
def test_a_clip_is_predicted_from_its_past_alone(normalize):
    model, pixels = build(normalize_targets=normalize), clips(batch_size=4, frames=8)
    found = measure_future.measure(model, iter([pixels[:2], pixels[2:]]), past=4)
    targets = model.normalize_targets(model.encode_targets(pixels))[:, 32:].unflatten(1, (2, 16))
    expected = (model.predict_future(pixels[:, :4], 4) - targets).square().mean(dim=(0, 2, 3))
    assert found["clips"] == 4 and found["errors"]["one step"]["mse"] == pytest.approx(expected.tolist(), rel=1e-5)
    past = model.normalize_targets(model.encode_targets(pixels[:, :4]))[:, 16:].unflatten(1, (1, 16))
    expected = (past - targets).abs().mean(dim=(0, 2, 3))
    assert found["errors"][measure_future.COPY]["l1"] == pytest.approx(expected.tolist(), rel=1e-5)


def test_targets_without_their_mean_over_time_are_refused():
    with pytest.raises(ValueError, match="unknown to baselines that see only the past"):
        measure_future.measure(build(normalize_targets="position"), iter([clips(frames=8)]), past=4)


def test_predictors_of_pixels_are_measured_in_one_step():
    model = build(target_type="pixels")
    found = measure_future.measure(model, iter([clips(frames=8)]), past=4)["errors"]
    assert "one step" in found and "autoregressive" not in found


def test_the_command_writes_what_it_measured_and_refuses_odd_pasts(tmp_path, capsys):
    build().save_pretrained(tmp_path / "model")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    for number, frames in enumerate((12, 12, 12, 5)):  # the last is too short
        pictures = np.random.default_rng(number).integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(encode_video(pictures, fps=10))
    options = [str(tmp_path / name) for name in ("model", "videos", "future.json")]
    measure_future.main([*options, "--past", "4", "--horizons", "1", "4"])
    found = json.loads((tmp_path / "future.json").read_text())
    assert found["clips"] == 3 and found["horizons"] == {"1": 0, "4": 1} and found["frames"] == ["1–2", "3–4"]
    assert found["over_copying"]["mse"]["copy the last tubelet"] == [1.0, 1.0]
    assert "| copy the last tubelet | 1.00 | 1.00 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        measure_future.main([*options, "--past", "3"])
    assert "--past is 3" in capsys.readouterr().err
    for more, message in (
        (["--fps", "15"], "0 videos of .* hold 8 different frames at --fps 15,.* not above their own"),
        (["--past", "20"], "0 videos of .* hold 24 different frames at each video's own rate,.* or more of them"),
        (["--clips", "0"], "--clips is 0; expected 2 or more"),
    ):
        with pytest.raises(SystemExit):
            measure_future.main([*options, "--past", "4", "--horizons", "1", "4", *more])
        assert re.search(message, capsys.readouterr().err)
