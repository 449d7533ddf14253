"""The anomaly detector: scores of frames and tubelets, calibration that is kept, what is refused, the picture."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from builders import TINY_2_1, TINY_ENCODER, TINY_PREDICTOR, build_masked_latent, noise_frames, spread
from transformers import pipeline

from vjepa2_hf import (
    VJepa2AnomalyDetector,
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
)
from vjepa2_hf.data.frame_source import FrameSource
from vjepa2_hf.pipelines.anomaly_scores import measure_video


TASK = "video-anomaly-detection"


@pytest.fixture(scope="module")
def model():
    return build_masked_latent()


@pytest.fixture
def detector(model, processor):
    return VJepa2AnomalyDetector(model, processor, device="cpu")


class TestDetector:
    def test_scores_each_frame_and_tubelet(self, detector, model, processor, video):
        result = detector(video)
        frames = processor(str(video), return_tensors="pt")["pixel_values_videos"][0]
        errors = measure_video(model, FrameSource(frames), 6, 2)["errors"]
        assert np.allclose(result["tubelet_scores"], errors.numpy(), rtol=1e-4, equal_nan=True)
        assert result["tubelet_scores"].shape == (11, 4, 4) and result["frame_scores"].shape == (23,)
        assert np.isnan(result["frame_scores"][:6]).all() and not np.isnan(result["frame_scores"][6:]).any()
        top = np.sort(result["tubelet_scores"][5].ravel())[::-1][:2].mean()  # 10 % of 16 places
        assert np.allclose(result["frame_scores"][10:12], top, rtol=1e-5)
        assert result["frame_scores"][22] == result["frame_scores"][21]  # fills no tubelet
        assert np.allclose(result["times"], np.arange(23) / 10) and result["threshold"] is None

    def test_stride_keeps_frames_and_their_times(self, model, processor, video):
        detector = VJepa2AnomalyDetector(model, processor, device="cpu", stride=2, context_frames=4, top_fraction=1)
        result = detector([video, noise_frames(12)])
        assert result[0]["frames"].tolist() == list(range(0, 23, 2)) and result[0]["times"][1] == pytest.approx(0.2)
        assert result[1]["times"] is None and len(result[1]["frame_scores"]) == 6
        assert result[1]["frame_scores"][4] == pytest.approx(result[1]["tubelet_scores"][2].mean(), rel=1e-5)

    def test_calibration_sets_a_threshold_that_normal_video_keeps(self, detector, video):
        raw = detector(video)
        found = detector.calibrate([video, noise_frames(20)], quantile=1.0)
        result = detector(video)
        assert not result["is_anomaly"].any() and result["threshold"] == found.threshold
        assert np.nanmax(result["frame_scores"]) <= found.threshold
        z = found.deviations(torch.from_numpy(raw["tubelet_scores"])).numpy()
        assert np.allclose(z, result["tubelet_scores"], atol=1e-3, equal_nan=True)
        detector.calibrate(video, quantile=0.5)
        assert detector(video)["is_anomaly"].sum() in range(6, 12)  # of 17 frames half, in tubelets

    def test_saved_and_loaded_with_its_calibration(self, processor, video, tmp_path, monkeypatch):
        detector = VJepa2AnomalyDetector(
            build_masked_latent(normalize_targets="clip"), processor, context_frames=4, device="cpu"
        )
        detector.calibrate(video)
        detector.save_pretrained(tmp_path)
        loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
        assert type(loaded) is VJepa2AnomalyDetector and loaded.settings == detector.settings
        one, two = detector(video), loaded(video)
        assert np.allclose(one["frame_scores"], two["frame_scores"], atol=1e-3, equal_nan=True)
        assert one["threshold"] == two["threshold"]
        other = pipeline(TASK, model=str(tmp_path), device="cpu", top_fraction=0.5)
        assert other.calibration is None
        with pytest.raises(ValueError, match="full"), monkeypatch.context() as patch:
            patch.setattr(type(other.model), "save_pretrained", Mock(side_effect=ValueError("full")))
            other.save_pretrained(tmp_path)
        assert pipeline(TASK, model=str(tmp_path), device="cpu").calibration is not None
        with pytest.raises(OSError, match="full"), monkeypatch.context() as patch:  # the weights are new already
            patch.setattr(type(processor), "save_pretrained", Mock(side_effect=OSError("full")))
            detector.save_pretrained(tmp_path)
        assert pipeline(TASK, model=str(tmp_path), device="cpu").calibration is None
        detector.save_pretrained(tmp_path)
        other.save_pretrained(tmp_path)  # the calibration in the folder was fitted to other settings
        assert pipeline(TASK, model=str(tmp_path), device="cpu").calibration is None

    def test_named_scores_beside_the_old_ones(self, model, processor, video, tmp_path):
        names = ["change", "reversal", "error"]
        detector = VJepa2AnomalyDetector(model, processor, device="cpu", scores=names)
        raw = detector(video)
        assert list(raw["scores"]) == names and raw["thresholds"] is None and raw["is_anomaly"] is None
        plain = VJepa2AnomalyDetector(model, processor, device="cpu")
        assert np.allclose(plain(video)["frame_scores"], raw["scores"]["error"], rtol=1e-4, equal_nan=True)
        for one in (detector, plain):
            one.calibrate([video, noise_frames(60)])
        result, old = detector(video), plain(video)
        assert np.array_equal(result["frame_scores"], result["scores"]["change"], equal_nan=True)
        assert result["threshold"] == result["thresholds"]["change"] and set(result["thresholds"]) == set(names)
        assert np.allclose(old["frame_scores"], result["scores"]["error"], atol=1e-3, equal_nan=True)
        assert np.isnan(result["frame_scores"][:8]).all() and np.isfinite(result["frame_scores"][8:]).all()
        reversal = result["scores"]["reversal"]
        assert np.isfinite(reversal[6:16]).all() and np.isnan(reversal[:6]).all() and np.isnan(reversal[16:]).all()
        detector.save_pretrained(tmp_path)
        loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
        assert loaded.settings == detector.settings and loaded(video)["thresholds"] == result["thresholds"]

    def test_targets_normalised_over_a_batch_need_calibration(self, processor, video):
        detector = VJepa2AnomalyDetector(build_masked_latent(normalize_targets="batch"), processor, device="cpu")
        with pytest.raises(ValueError, match="calibrate on normal video first"):
            detector(video)
        detector.calibrate(video)
        assert np.isfinite(detector(video)["frame_scores"][6:]).all()

    def test_a_model_of_2_1_compares_all_its_levels(self, processor, video):
        fields = {"predictor_levels": True, "predictor_modality_embeddings": True, "predict_context": True}
        torch.manual_seed(0)
        config = VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_2_1, **TINY_PREDICTOR, **fields)
        model = spread(VJepa2ForMaskedLatentPrediction(config)).eval()
        detector = VJepa2AnomalyDetector(model, processor, device="cpu", context_frames=4)
        pixels = processor(str(video), return_tensors="pt")["pixel_values_videos"][:, :6]
        result = detector(pixels[0])
        with torch.no_grad():
            future = model.predict_future(pixels[:, :4], 2)[:, 0]
            target = model.normalize_targets(model.encode_targets(pixels))[:, 32:]
        assert target.shape == future.shape == (1, 16, 48)
        expected = (future - target).abs().mean(dim=-1).view(4, 4).numpy()
        assert np.allclose(result["tubelet_scores"][2], expected, rtol=1e-4)
        detector.calibrate(video)
        assert np.isfinite(detector(video)["frame_scores"][4:]).all()

    def test_a_distilled_model_needs_its_teacher_after_every_load(self, processor, video, tmp_path):
        torch.manual_seed(0)
        teacher = VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, "hidden_size": 36, "num_attention_heads": 3}))
        model = build_masked_latent(target_type="teacher", teacher_hidden_size=36)
        VJepa2AnomalyDetector(model, processor, device="cpu").save_pretrained(tmp_path)
        detector = pipeline(TASK, model=str(tmp_path), device="cpu")
        message = (
            r"which is not saved with the model: after loading, call model\.set_teacher\(VJepa2Encoder\.from_pretr"
        )
        for use in (detector, detector.calibrate):
            with pytest.raises(ValueError, match=message):
                use(video)
        detector.model.set_teacher(teacher)
        detector.calibrate(video)
        assert np.isfinite(detector(video)["frame_scores"][6:]).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"context_frames": 3}, "context_frames is 3; expected a multiple of the tubelet size, 2"),
            ({"future_frames": 0}, "future_frames is 0"),
            ({"stride": 0}, "stride is 0"),
            ({"top_fraction": 1.5}, "top_fraction is 1.5"),
            ({"window_batch_size": 0}, "window_batch_size is 0"),
            (
                {"scores": ["speed"]},
                "scores is .*; expected a list of at least one of error, change, reversal, frames",
            ),
            ({"scores": []}, "scores is "),
            ({"horizon": 2}, "no setting 'horizon'"),
        ],
    )
    def test_settings_out_of_range(self, model, processor, options, message):
        with pytest.raises(ValueError, match=message):
            VJepa2AnomalyDetector(model, processor, **options)

    def test_what_else_is_refused(self, detector, model, video):
        with pytest.raises(ValueError, match="needs a VJepa2ForMaskedLatentPrediction; got VJepa2Enc"):
            VJepa2AnomalyDetector(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))
        with pytest.raises(ValueError, match="quantile is 99"):
            detector.calibrate(video, quantile=99)
        with pytest.raises(ValueError, match="normal video gives 1 predicted time steps"):
            detector.calibrate(noise_frames(8))
        with pytest.raises(ValueError, match="a call of video-anomaly-detection has no setting 'stride'"):
            detector(video, stride=2)

    def test_heat_map_shows_frames_scores_and_threshold(self, detector, video):
        detector.calibrate(video)
        result = detector(video)
        figure = detector.heat_map(video, result, shown=[8, 15, 22], labels=np.arange(23) > 12)
        pictures_shown, curve = figure.subfigs
        assert [axis.get_title() for axis in pictures_shown.axes] == ["frame 8", "frame 15", "frame 22"]
        overlay = pictures_shown.axes[0].images[1].get_array()
        scores = result["tubelet_scores"][4]
        assert overlay.shape == (4, 4) and overlay.max() == overlay.ravel()[scores.argmax()]
        line = curve.axes[0].lines[0].get_ydata()
        assert np.array_equal(line, result["frame_scores"], equal_nan=True)
        assert [text.get_text() for text in curve.axes[0].get_legend().get_texts()] == ["threshold", "anomaly"]
        assert len(detector.heat_map(video, result).subfigs[0].axes) == 8
