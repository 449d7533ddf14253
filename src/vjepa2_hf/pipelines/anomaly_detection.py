"""Anomaly detection in videos, as a transformers pipeline: a score for each frame and tubelet.

Shapes: T kept frames, (T', H', W') grid of the video.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.frame_source import FrameSource
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..specs import check_count, check_flag, check_number, is_integer, refuse
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .anomaly_scores import (
    CALIBRATION_FILE,
    SCORES,
    Calibration,
    calibrate,
    change_statistics,
    check_quantile,
    iterate_windows,
    measure_video,
    needs_statistics,
    reversal_statistic,
    step_statistics,
    target_statistics,
)
from .base import VideoPipeline


if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_WINDOW = 2**16  # frames


class VJepa2AnomalyDetector(VideoPipeline):
    """Scores videos by the error of the predicted features of upcoming frames (`vjepa2_hf.pipelines.anomaly_scores`).

    Scores are errors until `calibrate` has seen normal video; then they are deviations from normal, and there is a
    threshold. `save_pretrained` saves the calibration with the model.

    Args:
        model: a [`VJepa2ForMaskedLatentPrediction`].
        video_processor: a [`VJepa2VideoProcessor`]; needed for all inputs but normalized tensors.
        context_frames: kept frames that the model sees. Default: three quarters of the configured clip.
        future_frames: kept frames that it predicts from them. Default: one tubelet; errors grow with the horizon.
        stride: every stride-th frame of a video is kept; choose it to match the frame rate of training.
        top_fraction: fraction of the positions with the highest errors over which a frame's score is the mean; with 1,
            small anomalies average out.
        two_sided: after calibration, a mean error that is too low raises the score "error" too. For frozen images, use
            the score "change" or "frames".
        scores: names of the scores of a call, the main one first: "error" (the default), how high the errors are;
            "change", how unusual, in both directions, the change of the errors is (objects that jump, frozen images);
            "reversal", whether a tubelet is predicted better from the future, or from the past, than in normal video
            (reversed video); "frames", how unusual, in both directions, the change of the pixels from frame to frame
            is (frozen images), without a prediction. "reversal" doubles the time of a call.
        window_batch_size: windows that go through the model at a time.

    Example:
        >>> detector = pipeline("video-anomaly-detection", model="runs/future/final")
        >>> detector.calibrate(["normal_1.mp4", "normal_2.mp4"])
        >>> result = detector("new.mp4")
        >>> result["frame_scores"], result["is_anomaly"]
        >>> detector.heat_map("new.mp4", result).savefig("new.png")
    """

    def __init__(
        self,
        model: VJepa2ForMaskedLatentPrediction,
        video_processor: VJepa2VideoProcessor | None = None,
        context_frames: int | None = None,
        future_frames: int | None = None,
        stride: int | None = None,
        top_fraction: float | None = None,
        two_sided: bool | None = None,
        scores: Sequence[str] | None = None,
        window_batch_size: int = 8,
        task: str = "video-anomaly-detection",
        **kwargs,
    ):
        if not isinstance(model, VJepa2ForMaskedLatentPrediction):
            raise ValueError(f"anomaly detection needs a VJepa2ForMaskedLatentPrediction; got {type(model).__name__}.")
        if model.config.normalize_targets == "position":
            raise ValueError(
                "anomaly detection needs targets that do not depend on later frames, but normalize_targets is "
                "'position', which subtracts a clip's mean over time: give a model of another normalization."
            )
        check_count("window_batch_size", window_batch_size)
        self.window_batch_size = window_batch_size
        self.calibration = Calibration.load(model.name_or_path) if model.name_or_path else None
        given = {"context_frames": context_frames, "future_frames": future_frames, "stride": stride}
        given |= {"top_fraction": top_fraction, "two_sided": two_sided, "scores": scores}
        self.settings = _settings(model.config, self.calibration, given)
        if self.calibration is not None and self.settings != {"scores": ["error"], **self.calibration.settings}:
            self.calibration = None  # other settings change the distribution of errors
        super().__init__(model, video_processor, task=task, **kwargs)

    def __call__(self, videos: Any, **kwargs) -> dict[str, Any] | list[dict[str, Any]]:
        """Scores one or several videos.

        Args:
            videos: a video (path, URL, bytes, uint8 array (T, H, W, 3) or tensor (T, 3, H, W), normalized float tensor
                (T, C, H, W)), or a list, generator or dataset of videos.

        Returns:
            A dict of numpy arrays, or a list of them: `frame_scores` (T,), NaN for the first `context_frames`, which
            are not predicted; `tubelet_scores` (T', H', W'), errors, or after calibration their deviations from normal
            at their position; `frames` (T,), the indices of the kept frames in the video; `times` (T,) in seconds for
            a file, else `None`; after calibration `is_anomaly` (T,) bool and the `threshold`, else `None`; `scores`, a
            dict of (T,) by the names of `scores`, and after calibration their `thresholds`, else `None`. The first
            score is `frame_scores`, and `threshold` is its threshold. "change" is also NaN in the first tubelet that
            is predicted, "reversal" in the last `context_frames`. Before calibration "change" is the logarithm of the
            upper quartile of changes, "reversal" the difference of log errors, "frames" the mean squared change of the
            normalized pixels.

        Raises:
            ValueError: the video is shorter than context and future, is corrupt, or needs a processor; or targets are
                normalized over a batch and the detector is not calibrated. A missing file is a FileNotFoundError.
        """
        return super().__call__(videos, **kwargs)

    def calibrate(self, normal_videos: Any, quantile: float = 0.99) -> Calibration:
        """Fits the distribution of errors on normal video, and sets the threshold.

        Args:
            normal_videos: a video or a list of them, each a file or array (they may be read twice), best from the same
                camera, as each position is compared with itself. Do not use training videos: their errors are too low.
            quantile: fraction of the normal time steps below the threshold. Too little normal video, or video in which
                nothing moves, is a ValueError.
        """
        videos = normal_videos if isinstance(normal_videos, (list, tuple)) else [normal_videos]
        if not videos:
            refuse("normal_videos", normal_videos, "a video, or a list of at least one")
        check_quantile(quantile)
        statistics = None
        if needs_statistics(self.model):
            size = self.settings["context_frames"] + self.settings["future_frames"]
            windows = (size, self.model.config.encoder_config.tubelet_size, self.window_batch_size)
            every = itertools.chain.from_iterable(iterate_windows(self._kept(video), *windows) for video in videos)
            statistics = target_statistics(self.model, every)
        measured = [self._measure(self._kept(video), statistics) for video in videos]
        by_name = {name: [one[name] for one in measured] for name in measured[0]}
        self.calibration = calibrate(quantile=quantile, settings=self.settings, **by_name)
        self.calibration.statistics = statistics
        return self.calibration

    def heat_map(
        self, video: Any, result: dict[str, Any], shown: Sequence[int] | None = None, labels: np.ndarray | None = None
    ) -> "Figure":
        """A figure of frames with their tubelets' scores as colors, above the curve of the scores.

        Args:
            video: a file or array, the one that gave `result`.
            shown: numbers of kept frames; default: eight, evenly spaced.
            labels: (T,), nonzero where an anomaly is known; plotted as a band.
        """
        from matplotlib.figure import Figure

        count = len(result["frame_scores"])
        first = self.settings["context_frames"]
        shown = np.linspace(first, count - 1, min(8, count - first)).round().astype(int) if shown is None else shown
        shown = sorted(int(number) for number in shown)
        frames, tubelet = self._images(video, shown), self.model.config.encoder_config.tubelet_size
        scored = ("tubelet_scores", "frame_scores", "threshold")
        tubelet_scores, frame_scores, threshold = (result[name] for name in scored)
        figure = Figure(figsize=(1.6 * len(shown), 3.6), layout="constrained")
        images, curve = figure.subfigures(2, 1, height_ratios=(1, 1))
        low, high = np.nanpercentile(tubelet_scores, [90, 99.9])  # normal scores stay transparent
        axes = np.ravel(images.subplots(1, len(shown), squeeze=False))
        for axis, frame, number in zip(axes, frames, shown, strict=True):
            scores = tubelet_scores[min(number // tubelet, len(tubelet_scores) - 1)]
            extent = (0, frame.shape[1], frame.shape[0], 0)
            axis.imshow(frame, extent=extent)
            opacity = np.nan_to_num(np.clip((scores - low) / max(high - low, 1e-12), 0, 1))
            colors = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.7 * opacity}
            axis.imshow(opacity, extent=extent, interpolation="nearest", **colors)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"frame {number}", fontsize=9)
        axis = curve.subplots()
        axis.plot(frame_scores, color="tab:red", linewidth=1)
        axis.plot(shown, np.asarray(frame_scores)[list(shown)], "k|", markersize=8)
        if threshold is not None:
            axis.axhline(threshold, color="gray", linestyle="--", linewidth=1, label="threshold")
        if labels is not None:
            band = {"where": np.asarray(labels) > 0, "transform": axis.get_xaxis_transform(), "step": "mid"}
            axis.fill_between(np.arange(len(labels)), 0, 1, **band, color="gray", alpha=0.25, label="anomaly")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="upper left")
        axis.set(xlabel="frame", ylabel="score")
        return figure

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves model, video processor and calibration; `pipeline("video-anomaly-detection", model=…)` loads them.

        The calibration of an earlier detector in the folder is removed first, for it was fitted to other weights or
        settings. It is put back if saving fails before the weights are replaced.
        """
        earlier = Path(save_directory) / CALIBRATION_FILE
        content, weights = None, _weight_times(save_directory)
        if earlier.is_file():
            content = earlier.read_bytes()
            earlier.unlink()
        try:
            super().save_pretrained(save_directory, **kwargs)
        except BaseException:
            if content is not None and _weight_times(save_directory) == weights:
                earlier.write_bytes(content)
            raise
        if self.calibration is not None:
            self.calibration.save(save_directory)

    def preprocess(self, video: Any) -> dict[str, Any]:
        """First step of the pipeline: opens the video."""
        return {"source": _Counted(self._kept(video))}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        statistics = self.calibration.statistics if self.calibration else None
        return {"measured": self._measure(inputs["source"], statistics), "source": inputs["source"]}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Last step of the pipeline: the result that a call returns."""
        measured, source = outputs["measured"], outputs["source"]
        errors = measured["errors"]
        tubelet = self.model.config.encoder_config.tubelet_size
        steps = (np.arange(source.count) // tubelet).clip(max=len(errors) - 1)  # a last frame that fills no tubelet
        names = self.settings["scores"]
        scores = {name: self._score(name, measured).numpy()[steps] for name in names}
        tubelets, thresholds, threshold, frame_scores = errors, None, None, scores[names[0]]
        if self.calibration is not None:
            tubelets = self.calibration.deviations(errors)
            thresholds = {"error": self.calibration.threshold, **self.calibration.thresholds}
            thresholds = {name: thresholds[name] for name in names}
            threshold = thresholds[names[0]]
        frames = np.arange(source.count) * self.settings["stride"]
        return {
            "frame_scores": frame_scores,
            "tubelet_scores": tubelets.numpy(),
            "frames": frames,
            "times": None if source.fps is None else frames / source.fps,
            "is_anomaly": None if threshold is None else frame_scores > threshold,
            "threshold": threshold,
            "scores": scores,
            "thresholds": thresholds,
        }

    def _score(self, name: str, measured: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.calibration is not None:
            return self.calibration.named_scores(name, **measured)
        errors = measured["errors"]
        if name == "error":
            return step_statistics(errors, self.settings["top_fraction"])[0]
        if name == "frames":
            return measured["changes"].mean(dim=(1, 2))
        return change_statistics(errors)[1] if name == "change" else reversal_statistic(errors, measured["backward"])

    def _kept(self, video: Any) -> FrameSource:
        return self._source(video, self.settings["stride"])

    def _measure(self, source: FrameSource, statistics: Any) -> dict[str, torch.Tensor]:
        frames = (self.settings["context_frames"], self.settings["future_frames"])
        options = (self.window_batch_size, statistics, self.settings["scores"])
        return measure_video(self.model, source, *frames, *options)

    def _images(self, video: Any, shown: list[int]) -> np.ndarray:
        """The kept frames with these numbers as the model sees them, uint8 (n, H, W, 3)."""
        frames = itertools.chain.from_iterable(pixels for pixels, _ in self._kept(video).chunks(64))
        found = torch.stack([frame for number, frame in enumerate(frames) if number in shown])
        return (self.video_processor or VJepa2VideoProcessor()).to_images(found)


class _Counted:
    """A frame source that counts the kept frames it has read."""

    def __init__(self, source: FrameSource):
        self._source, self.count = source, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def chunks(self, *args, **kwargs):
        for pixels, known in self._source.chunks(*args, **kwargs):
            self.count += len(pixels) - known
            yield pixels, known


def _weight_times(folder: str | Path) -> dict[str, int]:
    """When the files of weights in a folder were written, by name."""
    files = (file for file in Path(folder).glob("*.safetensors") if file.name != CALIBRATION_FILE)
    return {file.name: file.stat().st_mtime_ns for file in files}


def _settings(config: Any, calibration: Calibration | None, given: dict[str, Any]) -> dict[str, Any]:
    """The settings given, else those of the saved calibration, else the defaults for the model's clip."""
    tubelet = config.encoder_config.tubelet_size
    steps = max(config.encoder_config.frames_per_clip // tubelet, 2)
    default = {"context_frames": max(3 * steps // 4, 1) * tubelet, "future_frames": tubelet, "stride": 1}
    default |= {"top_fraction": 0.1, "two_sided": True, "scores": ["error"]}
    found = {**default, **(calibration.settings if calibration else {})}
    found |= {name: value for name, value in given.items() if value is not None}
    for name in ("context_frames", "future_frames"):
        if not is_integer(found[name]) or not 0 < found[name] <= MAX_WINDOW or found[name] % tubelet:
            expected = f"a multiple of the tubelet size, {tubelet}, above 0, at most {MAX_WINDOW}"
            refuse(name, found[name], expected)
    if not is_integer(found["stride"]) or found["stride"] < 1:
        refuse("stride", found["stride"], "1 (every frame) or more")
    check_number("top_fraction", found["top_fraction"], above=0, at_most=1)
    check_flag("two_sided", found["two_sided"])
    names = found["scores"]
    if not isinstance(names, (list, tuple)) or not names or any(name not in SCORES for name in names):
        refuse("scores", names, f"a list of at least one of {', '.join(SCORES)}")
    found["scores"] = list(dict.fromkeys(names))
    return found
