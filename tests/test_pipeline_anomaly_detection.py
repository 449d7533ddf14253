"""Anomaly scores are the training loss of the next tubelets; calibration; the pipeline; the picture."""

import numpy as np
import pytest
import torch
from published import TINY_ENCODER, TINY_PREDICTOR
from test_long_video import pictures, pixels, processor, video  # noqa: F401, fixtures
from test_modeling_encoder import spread
from transformers import pipeline

from vjepa2_hf import VJepa2AnomalyDetector, VJepa2Encoder, VJepa2EncoderConfig, VJepa2ForMaskedLatentPrediction
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig
from vjepa2_hf.anomaly import calibrate, prediction_errors, target_statistics, window_errors
from vjepa2_hf.video_chunks import FrameSource


TASK = "video-anomaly-detection"


def build(**fields) -> VJepa2ForMaskedLatentPrediction:
    torch.manual_seed(0)
    encoder_config = {**TINY_ENCODER, "frames_per_clip": 8}
    return spread(
        VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=encoder_config, **TINY_PREDICTOR, **fields))
    ).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def detector(model, processor):  # noqa: F811
    return VJepa2AnomalyDetector(model, processor, device="cpu")


def windows_of(frames: torch.Tensor, size: int) -> torch.Tensor:
    return torch.stack([frames[first : first + size] for first in range(0, len(frames) - size + 1, 2)])


def masks(count: int, context: int, total: int, places: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(total * places).expand(count, -1)
    return ids[:, : context * places], ids[:, context * places :]


class TestErrors:
    @pytest.mark.parametrize(
        "fields", [{}, {"loss_exponent": 2}, {"normalize_targets": "none"}, {"target_type": "pixels"}]
    )
    def test_are_the_training_loss_of_the_future(self, fields):
        model, windows = build(**fields), windows_of(pixels(12), 8)
        with torch.no_grad():
            errors = window_errors(model, windows, context_steps=3)
            expected = model(windows, *masks(3, 3, 4), mask_token_index=0).loss
        assert errors.shape == (3, 1, 4) and torch.allclose(errors.mean(), expected, rtol=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    @pytest.mark.parametrize("future", [2, 6])
    def test_of_a_video_are_means_over_the_windows_that_predicted(self, model, batch_size, future):
        frames, steps = pixels(19), future // 2
        found = prediction_errors(model, FrameSource(frames), 4, future, batch_size)
        by_window = window_errors(model, windows_of(frames, 4 + future), 2).detach()  # (W, f, P)
        assert found.shape == (9, 2, 2) and found[:2].isnan().all() and not found[2:].isnan().any()
        for step in range(2, 9):
            said = [by_window[step - 2 - h, h] for h in range(steps) if 0 <= step - 2 - h < len(by_window)]
            assert torch.allclose(found[step].flatten(), torch.stack(said).mean(dim=0), rtol=1e-4)

    def test_only_what_comes_later_can_change_them(self, model):
        changed = pixels(20).clone()
        changed[12:] += 3
        one, two = (prediction_errors(model, FrameSource(frames), 4, 2) for frames in (pixels(20), changed))
        assert torch.allclose(one[2:6], two[2:6], rtol=1e-4) and not torch.allclose(one[6], two[6], rtol=1e-2)

    def test_a_video_shorter_than_a_window_is_refused(self, model):
        with pytest.raises(ValueError, match="the video has 5 frames; expected at least the 6 of context and future"):
            prediction_errors(model, FrameSource(pixels(5)), 4, 2)

    @pytest.mark.parametrize("normalize", ["batch", "clip"])
    def test_statistics_of_a_batch_normalise_it_as_the_model_does(self, normalize):
        model, windows = build(normalize_targets=normalize), windows_of(pixels(24), 8)
        statistics = target_statistics(model, windows.split(4))
        targets = model.encode_targets(windows)
        assert torch.allclose(statistics.normalize(targets), model.normalize_targets(targets), atol=2e-3)
        with torch.no_grad(), pytest.raises(ValueError, match="calibrate on normal video first"):
            window_errors(model, windows, 3)


class TestDetector:
    def test_scores_each_frame_and_tubelet(self, detector, model, processor, video):  # noqa: F811
        result = detector(video)
        frames = processor(str(video), return_tensors="pt")["pixel_values_videos"][0]
        errors = prediction_errors(model, FrameSource(frames), 6, 2)
        assert np.allclose(result["tubelet_scores"], errors.numpy(), rtol=1e-4, equal_nan=True)
        assert result["tubelet_scores"].shape == (11, 4, 4) and result["frame_scores"].shape == (23,)
        assert np.isnan(result["frame_scores"][:6]).all() and not np.isnan(result["frame_scores"][6:]).any()
        top = np.sort(result["tubelet_scores"][5].ravel())[::-1][:2].mean()  # 10 % of 16 places
        assert np.allclose(result["frame_scores"][10:12], top, rtol=1e-5)
        assert result["frame_scores"][22] == result["frame_scores"][21]  # fills no tubelet
        assert np.allclose(result["times"], np.arange(23) / 10) and result["threshold"] is None

    def test_stride_keeps_frames_and_their_times(self, model, processor, video):  # noqa: F811
        detector = VJepa2AnomalyDetector(model, processor, device="cpu", stride=2, context_frames=4, top_share=1)
        result = detector([video, pictures(12)])
        assert result[0]["frames"].tolist() == list(range(0, 23, 2)) and result[0]["times"][1] == pytest.approx(0.2)
        assert result[1]["times"] is None and len(result[1]["frame_scores"]) == 6
        assert result[1]["frame_scores"][4] == pytest.approx(result[1]["tubelet_scores"][2].mean(), rel=1e-5)

    def test_calibration_sets_a_threshold_that_normal_video_keeps(self, detector, video):  # noqa: F811
        raw = detector(video)
        found = detector.calibrate([video, pictures(20)], quantile=1.0)
        result = detector(video)
        assert not result["is_anomaly"].any() and result["threshold"] == found.threshold
        assert np.nanmax(result["frame_scores"]) <= found.threshold
        assert np.array_equal(raw["tubelet_scores"], result["tubelet_scores"], equal_nan=True)
        detector.calibrate(video, quantile=0.5)
        assert detector(video)["is_anomaly"].sum() in range(6, 12)  # of 17 frames half, in tubelets

    @pytest.mark.parametrize("two_sided", [True, False])
    def test_errors_below_what_is_normal_count_if_both_sides_do(self, two_sided):
        settings = {"top_share": 0.5, "two_sided": two_sided}
        normal = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
        found = calibrate([normal], 0.9, settings)
        high, low = (found.scores(torch.full((1, 2, 2), value)).item() for value in (9.0, 0.1))
        assert high > found.threshold and (low > found.threshold) == two_sided
        assert (found.scores(normal) > found.threshold).float().mean().item() == pytest.approx(0.1, abs=0.03)

    def test_saved_and_loaded_with_its_calibration(self, processor, video, tmp_path):  # noqa: F811
        detector = VJepa2AnomalyDetector(build(normalize_targets="clip"), processor, context_frames=4, device="cpu")
        detector.calibrate(video)
        detector.save_pretrained(tmp_path)
        loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
        assert type(loaded) is VJepa2AnomalyDetector and loaded.settings == detector.settings
        one, two = detector(video), loaded(video)
        assert np.allclose(one["frame_scores"], two["frame_scores"], atol=1e-3, equal_nan=True)
        assert one["threshold"] == two["threshold"]
        assert pipeline(TASK, model=str(tmp_path), device="cpu", top_share=0.5).calibration is None

    def test_targets_normalised_over_a_batch_need_calibration(self, processor, video):  # noqa: F811
        detector = VJepa2AnomalyDetector(build(normalize_targets="batch"), processor, device="cpu")
        with pytest.raises(ValueError, match="calibrate on normal video first"):
            detector(video)
        detector.calibrate(video)
        assert np.isfinite(detector(video)["frame_scores"][6:]).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"context_frames": 3}, "context_frames is 3; expected a multiple of the tubelet size, 2"),
            ({"future_frames": 0}, "future_frames is 0"),
            ({"stride": 0}, "stride is 0"),
            ({"top_share": 1.5}, "top_share is 1.5"),
            ({"window_batch_size": 0}, "window_batch_size is 0"),
            ({"horizon": 2}, "no setting 'horizon'"),
        ],
    )
    def test_settings_out_of_range(self, model, processor, options, message):  # noqa: F811
        with pytest.raises(ValueError, match=message):
            VJepa2AnomalyDetector(model, processor, **options)

    def test_what_else_is_refused(self, detector, model, video):  # noqa: F811
        with pytest.raises(ValueError, match="needs a VJepa2ForMaskedLatentPrediction, which predicts; got VJepa2Enc"):
            VJepa2AnomalyDetector(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))
        with pytest.raises(ValueError, match="quantile is 99"):
            detector.calibrate(video, quantile=99)
        with pytest.raises(ValueError, match="normal video gives 1 predicted time steps"):
            detector.calibrate(pictures(8))
        with pytest.raises(ValueError, match="a call of video-anomaly-detection has no setting 'stride'"):
            detector(video, stride=2)

    def test_heat_map_shows_frames_scores_and_threshold(self, detector, video):  # noqa: F811
        detector.calibrate(video)
        result = detector(video)
        figure = detector.heat_map(video, result, shown=[8, 15, 22], labels=np.arange(23) > 12)
        pictures_shown, curve = figure.subfigs
        assert [axis.get_title() for axis in pictures_shown.axes] == ["frame 8", "frame 15", "frame 22"]
        overlay = pictures_shown.axes[0].images[1].get_array()
        scores = result["tubelet_scores"][4]
        assert overlay.shape == (4, 4) and overlay.argmax() == scores.argmax()
        line = curve.axes[0].lines[0].get_ydata()
        assert np.array_equal(line, result["frame_scores"], equal_nan=True)
        assert [text.get_text() for text in curve.axes[0].get_legend().get_texts()] == ["threshold", "anomaly"]
        assert len(detector.heat_map(video, result).subfigs[0].axes) == 8
