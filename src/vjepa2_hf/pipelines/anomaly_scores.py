"""Anomaly scores: the error of the predicted features of upcoming frames, and its calibration on normal video.

A window of `context_frames` and `future_frames` slides over the video, one tubelet at a time. The encoder sees the
context alone, the predictor predicts the tokens of the future, and the target encoder sees the whole window. The error
of a token is the training loss |ẑ − z|^p / p, averaged over channels and over the windows that predicted the token.

Scores of a time step, by name (`SCORES`): "error", how high the error is; "change", how unusual, in either
direction, the change of the errors from the time step before is; "reversal", how the error of a tubelet predicted from
the past compares with its error predicted from the future, in the reversed clip; "frames", how unusual, in either
direction, the change of the pixels from frame to frame is, which is a baseline that uses no prediction.

Shapes: B windows, T kept frames, C channels, H W pixels, (T', H', W') grid of the video, P = H'·W' positions, c and f
time steps of context and future, n = (c + f)·P tokens of a window, D width of a target.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.files import write_aside
from ..data.frame_source import FrameSource
from ..modeling_masked_latent import VJepa2ForMaskedLatentPrediction
from ..specs import is_number, read_old_names, refuse


CALIBRATION_FILE = "anomaly_calibration.safetensors"
SCORES = ("error", "change", "reversal", "frames")
MIN_CHANGE = 1e-6  # added to changes of log errors: in a frozen video they are 0, up to rounding
MIN_FRAME_CHANGE = 1e-8  # of normalized pixels, squared: in a frozen video they do not change
REVERSAL_STEPS = 9  # time steps over which "reversal" is averaged, because the arrow of time is faint in one
# Names in calibrations saved by 0.1.0
OLD_TENSORS = {"place_mean": "position_mean", "place_std": "position_std"}
OLD_SETTINGS = {"top_share": "top_fraction"}


@dataclass
class TargetStatistics:
    """Means (n, D) and standard deviations of raw targets on normal video: (n, D) where a model's `normalize_targets`
    is "batch", (1, D) for "batch_channel", (D,) for "clip". They replace the batch statistics, because a detector's
    batch is windows of a single video."""

    mean: torch.Tensor
    std: torch.Tensor

    def normalize(self, targets: torch.Tensor) -> torch.Tensor:
        """Raw targets (B, n, D), as [`VJepa2ForMaskedLatentPrediction.normalize_targets`] does, in float32 or more."""
        targets = targets.to(torch.promote_types(targets.dtype, torch.float32))
        centered = targets - self.mean.to(targets)
        if self.std.ndim == 1:
            centered = centered - centered.mean(dim=1, keepdim=True)
        return centered / (self.std.to(targets) + 1e-6)


@dataclass
class Calibration:
    """The distribution of a model's errors on normal video.

    Some positions are hard to predict in every video of a camera, others easy. The error of a token is therefore
    standardized: z is the deviation of its log error from the mean at its position, in standard deviations. A time
    step has two statistics of z, see `step_statistics`.

    position_mean, position_std: (H', W') of the log errors.
    rise_mean, rise_std, fall_mean, fall_std: of the two statistics over normal time steps.
    threshold: the `quantile` of the scores of normal time steps.
    change_means, change_stds: of the two statistics of `change_statistics` over normal time steps, or `None`.
    reversal_mean, reversal_std: of `reversal_statistic` over normal time steps, or `None`.
    frames: the distribution of `frame_changes`, in the place of errors, with both sides, or `None`.
    thresholds: by the name of a score that settings["scores"] asks for; "error" has `threshold`.
    settings: of the calibrated detector.
    """

    position_mean: torch.Tensor
    position_std: torch.Tensor
    rise_mean: float
    rise_std: float
    fall_mean: float
    fall_std: float
    threshold: float
    settings: dict[str, Any]
    statistics: TargetStatistics | None = None
    change_means: list[float] | None = None
    change_stds: list[float] | None = None
    reversal_mean: float | None = None
    reversal_std: float | None = None
    frames: "Calibration | None" = None
    thresholds: dict[str, float] = field(default_factory=dict)

    def deviations(self, errors: torch.Tensor) -> torch.Tensor:
        """Errors -> z, (T', H', W')."""
        if errors.shape[1:] != self.position_mean.shape:
            raise ValueError(
                f"the video has a grid of {tuple(errors.shape[1:])} positions, but the detector was calibrated on "
                f"{tuple(self.position_mean.shape)}: give video of the same size, or calibrate again."
            )
        return (errors.log() - self.position_mean) / self.position_std

    def scores(self, errors: torch.Tensor) -> torch.Tensor:
        """Errors (T', H', W') -> (T',): how far the mean of the highest z lies above normal, in standard deviations.

        With `two_sided` the maximum of that and how far the mean z lies below normal, as for a frozen image.
        """
        rise, fall = step_statistics(self.deviations(errors), self.settings["top_fraction"])
        rise = (rise - self.rise_mean) / self.rise_std
        if not self.settings["two_sided"]:
            return rise
        return torch.maximum(rise, (self.fall_mean - fall) / self.fall_std)

    def change_scores(self, errors: torch.Tensor) -> torch.Tensor:
        """Errors (T', H', W') -> (T',): how unusual the change of the errors is, in standard deviations.

        High where errors change more than in normal video (an object that jumps), and where they change less (a frozen
        image, whose errors are constant). NaN where a time step or the one before was not predicted.
        """
        if self.change_means is None or self.change_stds is None:
            raise ValueError('the detector was calibrated without "change": calibrate with scores=["change"].')
        small, large = change_statistics(errors)
        below = (self.change_means[0] - small) / self.change_stds[0]
        return torch.maximum(below, (large - self.change_means[1]) / self.change_stds[1])

    def reversal_scores(self, errors: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
        """Errors of both directions (T', H', W') -> (T',): the deviation from normal towards reversed video.

        Reversed video swaps the two directions. Normal video has a mean difference, reversed video its negative; the
        score counts standard deviations from the first in the direction of the second.
        """
        if self.reversal_mean is None or self.reversal_std is None:
            raise ValueError('the detector was calibrated without "reversal": calibrate with scores=["reversal"].')
        deviations = (reversal_statistic(errors, backward) - self.reversal_mean) / self.reversal_std
        return -math.copysign(1, self.reversal_mean) * deviations

    def named_scores(
        self,
        name: str,
        errors: torch.Tensor,
        backward: torch.Tensor | None = None,
        changes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The score of this name of `SCORES`, (T',), from what `measure_video` returns for it."""
        if name == "error":
            return self.scores(errors)
        if name == "frames":
            if self.frames is None:
                raise ValueError('the detector was calibrated without "frames": calibrate with scores=["frames"].')
            return self.frames.scores(changes)
        return self.change_scores(errors) if name == "change" else self.reversal_scores(errors, backward)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the calibration into the folder of a detector, for `load`."""
        numbers = dict(vars(self))
        statistics, frames = numbers.pop("statistics"), numbers.pop("frames")
        tensors = {name: numbers.pop(name) for name in OLD_TENSORS.values()}
        tensors |= vars(statistics) if statistics else {}
        if frames:
            numbers["frames"] = dict(vars(frames))
            tensors |= {f"frames.{name}": numbers["frames"].pop(name) for name in OLD_TENSORS.values()}
        with write_aside(Path(folder) / CALIBRATION_FILE) as partial:
            save_file(tensors, partial, metadata={"calibration": json.dumps(numbers)})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Calibration | None":
        """The calibration in a folder, or `None` if there is none. A damaged one is a ValueError."""
        path = Path(folder) / CALIBRATION_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                numbers = dict(json.loads(file.metadata()["calibration"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
            if "frames" in numbers:
                positions = {name: tensors.pop(f"frames.{name}") for name in OLD_TENSORS.values()}
                numbers["frames"] = cls(**numbers["frames"], **positions)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{str(path)!r} is damaged ({reason}): remove it, and calibrate again.") from error
        tensors = {OLD_TENSORS.get(name, name): tensor for name, tensor in tensors.items()}
        positions = {name: tensors.pop(name) for name in OLD_TENSORS.values() if name in tensors}
        known = {one.name for one in fields(cls)} - {"statistics"}
        required = {one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING}
        if not required <= numbers.keys() | positions.keys() <= known:
            raise ValueError(f"{str(path)!r} was saved by another version; calibrate again.")
        numbers["settings"] = read_old_names(numbers["settings"], OLD_SETTINGS, str(path))
        return cls(**numbers, **positions, statistics=TargetStatistics(**tensors) if tensors else None)


def step_statistics(values: torch.Tensor, top_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(T', H', W') -> two (T',): the mean over the `top_fraction` of the highest values, and over all positions."""
    descending = values.flatten(1).sort(dim=1, descending=True).values
    count = max(round(top_fraction * descending.shape[1]), 1)
    return descending[:, :count].mean(dim=1), descending.mean(dim=1)


def change_statistics(errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors (T', H', W') -> two (T',): logarithms of the mean and of the upper quartile, over the positions, of the
    absolute change of the log errors from the time step before. NaN in the first step and after unpredicted ones."""
    logs = errors.clamp_min(1e-12).log().flatten(1)
    changes = torch.full_like(logs, float("nan"))
    changes[1:] = logs.diff(dim=0).abs() + MIN_CHANGE
    return changes.mean(dim=1).log(), changes.quantile(0.75, dim=1).log()


def reversal_statistic(errors: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Errors of both directions (T', H', W') -> (T',): the log error of a tubelet predicted from the past minus that
    predicted from the future, averaged over positions and over `REVERSAL_STEPS` time steps around it.

    NaN where one of the directions has no prediction: the first and the last c time steps.
    """
    steps = (errors.clamp_min(1e-12).log() - backward.clamp_min(1e-12).log()).mean(dim=(1, 2))
    padded = torch.nn.functional.pad(steps, (REVERSAL_STEPS // 2,) * 2, value=float("nan"))
    return torch.where(steps.isnan(), steps, padded.unfold(0, REVERSAL_STEPS, 1).nanmean(dim=1))


@torch.no_grad()
def measure_video(
    model: VJepa2ForMaskedLatentPrediction,
    source: FrameSource,
    context_frames: int,
    future_frames: int,
    batch_size: int = 8,
    statistics: TargetStatistics | None = None,
    scores: Sequence[str] = ("error",),
) -> dict[str, torch.Tensor]:
    """What scores are computed from, for a whole video, which is read and measured one batch of windows at a time.

    Args:
        context_frames, future_frames: kept frames, multiples of the tubelet size.
        statistics: of normal video, for models that normalize targets over a batch.
        scores: names of `SCORES`.

    Returns:
        float32 (T', H', W') by name: "errors" of tubelets predicted from the past, NaN for the first c time steps,
        which are not predicted; for the score "reversal" also "backward", of tubelets predicted from the future by the
        same predictor on reversed frames, NaN for the last c; for "frames" also "changes", see `frame_changes`, NaN
        where "errors" is. Frames at the end that fill no tubelet are dropped.
    """
    config = model.config.encoder_config
    past, grid = context_frames // config.tubelet_size, None
    found: dict[str, list[torch.Tensor]] = {"errors": []}
    found |= {"backward": []} if "reversal" in scores else {}
    found |= {"changes": []} if "frames" in scores else {}
    for windows in iterate_windows(source, context_frames + future_frames, config.tubelet_size, batch_size):
        if "changes" in found:
            found["changes"].append(frame_changes(windows, context_frames, config.tubelet_size, config.patch_size))
        windows = windows.to(device=model.device, dtype=model.dtype)
        grid = model.encoder.get_grid(windows)
        found["errors"].append(window_errors(model, windows, past, statistics))
        if "backward" in found:
            found["backward"].append(window_errors(model, windows.flip(1), past, statistics))
        for parts in found.values():
            parts[-1] = parts[-1].cpu()
    return {name: _by_time_step(torch.cat(parts), past, name == "backward", grid) for name, parts in found.items()}


def frame_changes(windows: torch.Tensor, context_frames: int, tubelet: int, patch: int) -> torch.Tensor:
    """Mean squared change of the pixels from frame to frame, in the future of windows (B, T, C, H, W): (B, f, P)."""
    changes = windows[:, context_frames - 1 :].float().diff(dim=1).square().mean(dim=2)  # (B, future frames, H, W)
    by_patch = torch.nn.functional.avg_pool2d(changes, patch).flatten(2)
    return by_patch.unflatten(1, (-1, tubelet)).mean(dim=2).clamp_min(MIN_FRAME_CHANGE)


def _by_time_step(errors: torch.Tensor, past: int, backward: bool, grid: Any) -> torch.Tensor:
    """Errors of windows (W, f, P) -> means by time step of the video (T', H', W'); NaN where nothing predicted it."""
    count, future, _ = errors.shape
    sums = torch.zeros(past + count + future - 1, errors.shape[2])
    counts = torch.zeros(len(sums), 1)
    for horizon in range(future):
        first = future - 1 - horizon if backward else past + horizon
        sums[first : first + count] += errors[:, horizon]
        counts[first : first + count] += 1
    return (sums / counts).unflatten(1, grid[1:])  # 0 / 0 is NaN: not predicted


def iterate_windows(source: FrameSource, size: int, tubelet: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Windows (B, size, C, H, W) of a video, each starting a tubelet after the last; B ≤ `batch_size`."""
    count = 0
    for pixels, known in source.chunks(size + (batch_size - 1) * tubelet, overlap=size - tubelet):
        count += len(pixels) - known
        if len(pixels) >= size:
            yield pixels.unfold(0, size, tubelet).movedim(-1, 1)
    if count < size:
        kept = f"keeps {count} frames with stride={source.stride}" if source.stride > 1 else f"has {count} frames"
        raise ValueError(f"{source.name} {kept}; expected at least the {size} of context and future frames.")


def window_errors(
    model: VJepa2ForMaskedLatentPrediction,
    windows: torch.Tensor,
    context_steps: int,
    statistics: TargetStatistics | None = None,
) -> torch.Tensor:
    """Errors (B, f, P) of the time steps after the first `context_steps` of windows (B, T, C, H, W)."""
    steps, rows, columns = grid = model.encoder.get_grid(windows)
    ids = torch.arange(steps * rows * columns, device=windows.device).expand(len(windows), -1)
    known, hidden = ids[:, : context_steps * rows * columns], ids[:, context_steps * rows * columns :]
    predicted, _ = model.predict(model.encoder(windows, context_mask=known), known, hidden, grid)
    targets = model.encode_targets(windows)
    if statistics is not None:
        targets = statistics.normalize(targets)
    elif needs_statistics(model):
        raise ValueError(
            f"The model normalizes targets over a batch (normalize_targets={model.config.normalize_targets!r}), which "
            "the windows of one video cannot replace: calibrate on normal video first."
        )
    else:
        targets = model.normalize_targets(targets)
    errors = model.latent_errors(predicted, targets[:, known.shape[1] :])
    return errors.unflatten(1, (steps - context_steps, rows * columns))


def needs_statistics(model: VJepa2ForMaskedLatentPrediction) -> bool:
    """Whether targets are normalized over a batch."""
    return model.config.normalize_targets in ("batch", "batch_channel", "clip")


@torch.no_grad()
def target_statistics(model: VJepa2ForMaskedLatentPrediction, windows: Iterable[torch.Tensor]) -> TargetStatistics:
    """Statistics of the raw targets of windows (B, T, C, H, W), in one pass; see `normalize_targets`."""
    count, sums = 0, [0, 0, 0]
    for batch in windows:
        targets = model.encode_targets(batch.to(device=model.device, dtype=model.dtype)).double()
        count += len(targets)
        parts = (targets, targets.square(), targets.mean(dim=1).square())
        sums = [total + part.sum(dim=0) for total, part in zip(sums, parts, strict=True)]
    if count < 2:
        raise ValueError(f"normal video gives {count} windows; expected at least 2.")
    mean, square, clip_square = (total / count for total in sums)
    variance = square - mean.square()  # (n, D)
    if model.config.normalize_targets != "batch":
        variance = variance.mean(dim=0, keepdim=True)
        count *= len(mean)
    if model.config.normalize_targets == "clip":
        # the variance within clips: the total variance minus that of the clips' means
        variance = variance[0] - (clip_square - mean.mean(dim=0).square())
    variance = (variance * count / (count - 1)).clamp_min(0)
    return TargetStatistics(mean=mean.float().cpu(), std=variance.sqrt().float().cpu())


def check_quantile(quantile: float) -> None:
    """Checks a quantile: a fraction of time steps above 0, up to 1."""
    if not is_number(quantile) or not 0 < quantile <= 1:
        refuse("quantile", quantile, "a fraction of time steps, above 0 and up to 1")


def calibrate(
    errors: Sequence[torch.Tensor],
    quantile: float,
    settings: dict[str, Any],
    backward: Sequence[torch.Tensor] | None = None,
    changes: Sequence[torch.Tensor] | None = None,
) -> Calibration:
    """Fits a calibration to the errors (T', H', W') of normal videos.

    Args:
        quantile: fraction of normal time steps below the threshold.
        settings: `top_fraction`, `two_sided`, optionally `scores` (names of `SCORES` to calibrate; default "error"),
            and others that are only stored.
        backward, changes: of the same videos, see `measure_video`; needed for "reversal" and for "frames".
    """
    check_quantile(quantile)
    found = _fit_positions(errors, quantile, settings, "errors")
    _calibrate_named(found, errors, backward, changes, quantile)
    return found


def _fit_positions(
    values: Sequence[torch.Tensor], quantile: float, settings: dict[str, Any], kind: str
) -> Calibration:
    """The distribution of errors, or of another `kind` of values (T', H', W') by video, and its threshold."""
    if len(grids := {tuple(one.shape[1:]) for one in values}) > 1:
        raise ValueError(f"normal videos have grids of {sorted(grids)} positions; expected one size.")
    steps = torch.cat(list(values))
    steps = steps[~steps.isnan().any(dim=(1, 2))]
    if len(steps) < 2:
        raise ValueError(f"normal video gives {len(steps)} predicted time steps; expected at least 2.")
    position_std, position_mean = torch.std_mean(steps.log(), dim=0)
    position_std = position_std.clamp_min(1e-3)  # where nothing ever changes
    rise, fall = step_statistics((steps.log() - position_mean) / position_std, settings["top_fraction"])
    rises, falls = ((part.mean().item(), part.std().item()) for part in (rise, fall))
    for name, (_, std) in {"rise_std": rises, "fall_std": falls}.items():
        if not 0 < std < math.inf:
            raise ValueError(
                f"the {kind} of normal video have {name}={std}; expected {kind} above 0 that vary: give more video "
                "with motion."
            )
    found = Calibration(position_mean, position_std, *rises, *falls, threshold=0.0, settings=settings)
    found.threshold = torch.quantile(found.scores(steps), quantile).item()
    return found


def _calibrate_named(
    found: Calibration,
    videos: Sequence[torch.Tensor],
    backward: Sequence[torch.Tensor] | None,
    changes: Sequence[torch.Tensor] | None,
    quantile: float,
) -> None:
    """Adds the scores beside "error" that the settings name; changes and averages do not cross videos."""
    names = found.settings.get("scores", ["error"])
    if "change" in names:
        pairs = [change_statistics(one) for one in videos]
        fitted = [_mean_and_std("change", [pair[side] for pair in pairs]) for side in (0, 1)]
        found.change_means, found.change_stds = [mean for mean, _ in fitted], [std for _, std in fitted]
    if "reversal" in names:
        if backward is None:
            raise ValueError('the score "reversal" needs `backward`, the errors predicted from the future.')
        differences = [reversal_statistic(one, other) for one, other in zip(videos, backward, strict=True)]
        found.reversal_mean, found.reversal_std = _mean_and_std("reversal", differences)
    if "frames" in names:
        if changes is None:
            raise ValueError('the score "frames" needs `changes`, those of the pixels from frame to frame.')
        settings = {"top_fraction": found.settings["top_fraction"], "two_sided": True}
        found.frames = _fit_positions(changes, quantile, settings, "changes from frame to frame")
    absent = [None] * len(videos)
    for name in set(names) - {"error"}:
        measured = zip(videos, backward or absent, changes or absent, strict=True)
        scores = torch.cat([found.named_scores(name, *one) for one in measured])
        found.thresholds[name] = torch.quantile(scores[~scores.isnan()], quantile).item()


def _mean_and_std(name: str, values: Sequence[torch.Tensor]) -> tuple[float, float]:
    known = torch.cat(list(values))
    known = known[~known.isnan()]
    std = known.std().item() if len(known) > 1 else 0.0
    if not 0 < std < math.inf:
        raise ValueError(
            f'normal video gives {len(known)} time steps for the score "{name}", with a standard deviation of {std}; '
            "expected at least 2 that differ: give more video with motion."
        )
    return known.mean().item(), std
