"""The anomaly score "frames": the change of the pixels from frame to frame, calibrated on normal video."""

import numpy as np
import pytest
import torch
from builders import build_masked_latent, noise_frames, noise_pixels
from transformers import pipeline

from vjepa2_hf import VJepa2AnomalyDetector
from vjepa2_hf.data.frame_source import FrameSource
from vjepa2_hf.pipelines.anomaly_scores import calibrate, frame_changes, measure_video


@pytest.fixture(scope="module")
def model():
    return build_masked_latent()


def build(model, **settings) -> VJepa2AnomalyDetector:
    return VJepa2AnomalyDetector(model, device="cpu", **{"scores": ["frames"], **settings})


def moving(frames: int, seed: int = 0, scale: float = 0.3) -> torch.Tensor:
    """A video (T, C, H, W) in which every frame changes a little."""
    steps = torch.randn(frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(dim=0) * scale


def test_changes_are_those_of_the_frames_and_positions():
    frames = torch.zeros(6, 3, 16, 16)
    frames[3:, :, :8, 8:] = 2
    found = frame_changes(frames[None], context_frames=2, tubelet=2, patch=8)
    assert found.shape == (1, 2, 4)
    assert found[0, 0, 1] == pytest.approx(2.0)  # from frame 2 to 3; none from 1 to 2
    assert found[0, 0, 0] == found[0, 1, 1] == pytest.approx(1e-8)


@pytest.mark.parametrize(("batch_size", "future"), [(1, 2), (3, 2), (8, 4)])
def test_changes_of_a_video_do_not_depend_on_how_it_is_read(model, batch_size, future):
    frames = noise_pixels(23)
    found = measure_video(model, FrameSource(frames), 4, future, batch_size, scores=["frames"])
    assert set(found) == {"errors", "changes"} and found["changes"].shape == (11, 2, 2)
    assert torch.equal(found["changes"].isnan(), found["errors"].isnan())
    whole = frame_changes(frames[None, :22], 4, 2, 8).view(9, 2, 2)
    assert torch.allclose(found["changes"][2:], whole, rtol=1e-5)


def test_before_calibration_it_is_the_mean_squared_change_of_the_kept_frames(model):
    frames = moving(41)
    result = build(model, stride=2)(frames)
    kept = frames[::2]
    expected = (kept[10:12] - kept[9:11]).square().mean().item()
    assert result["frame_scores"][10:12] == pytest.approx([expected] * 2, rel=1e-4)
    assert len(result["frame_scores"]) == 21 and np.isnan(result["frame_scores"][:6]).all()
    assert result["thresholds"] is None and result["is_anomaly"] is None


def test_frozen_and_restless_video_are_both_above_the_threshold(model):
    detector = build(model)
    detector.calibrate([moving(80), moving(80, seed=1)])
    video = moving(60, seed=2)
    video[20:30] = video[20].clone()
    video[40:50] += torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2
    result = detector(video)
    found = result["is_anomaly"]
    assert found[22:30].all() and found[40:50].all()
    assert found[6:20].sum() <= 2 and found[32:40].sum() <= 2 and found[52:].sum() <= 2
    assert result["threshold"] == result["thresholds"]["frames"]


def test_it_is_saved_beside_the_others_which_it_leaves_as_they_are(model, processor, video, tmp_path):
    names = ["frames", "error", "reversal", "change"]
    detector = VJepa2AnomalyDetector(model, processor, device="cpu", scores=names)
    plain = VJepa2AnomalyDetector(model, processor, device="cpu", scores=names[1:])
    for one in (detector, plain):
        one.calibrate([video, noise_frames(60)])
    result, old = detector(video), plain(video)
    assert all(np.array_equal(result["scores"][name], old["scores"][name], equal_nan=True) for name in names[1:])
    assert result["thresholds"] == {"frames": result["threshold"], **old["thresholds"]}
    assert np.array_equal(result["frame_scores"], result["scores"]["frames"], equal_nan=True)
    detector.save_pretrained(tmp_path)
    loaded = pipeline("video-anomaly-detection", model=str(tmp_path), device="cpu")
    again = loaded(video)
    assert loaded.settings == detector.settings and again["thresholds"] == result["thresholds"]
    assert np.array_equal(again["scores"]["frames"], result["scores"]["frames"], equal_nan=True)
    assert pipeline("video-anomaly-detection", model=str(tmp_path), device="cpu", scores=["error"]).calibration is None


def test_repeated_frames_in_normal_video_do_not_divide_by_zero(model):
    still = moving(1).expand(40, -1, -1, -1)
    detector = build(model)
    detector.calibrate([moving(80), still])
    for frames in (moving(40, seed=2), still):
        assert np.isfinite(detector(frames)["frame_scores"][6:]).all()
    varied = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
    settings = {"top_fraction": 0.5, "two_sided": True, "scores": ["frames"]}
    with pytest.raises(
        ValueError, match=r"changes from frame to frame of normal video have rise_std=0\.0.*more video"
    ):
        calibrate([varied], 0.99, settings, changes=[torch.full((20, 2, 2), 1e-8)])
    with pytest.raises(ValueError, match="give more video with motion"):
        detector.calibrate(still)


def test_what_was_not_calibrated_is_refused():
    varied = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
    settings = {"top_fraction": 0.5, "two_sided": True}
    with pytest.raises(ValueError, match='calibrated without "frames": calibrate with scores='):
        calibrate([varied], 0.99, settings).named_scores("frames", varied, changes=varied)
    with pytest.raises(ValueError, match='"frames" needs `changes`'):
        calibrate([varied], 0.99, {**settings, "scores": ["frames"]})
