"""Anomaly scores: the error of the predicted features of upcoming frames, and its calibration on normal video.

A window of `context_frames` and `future_frames` slides over the video, one tubelet at a time. The encoder sees the
context alone, the predictor predicts the tokens of the future, and the target encoder sees the whole window. The error
of a token is the training loss |ẑ − z|^p / p, averaged over channels and over the windows that predicted the token.

Shapes: B windows, T kept frames, C channels, H W pixels, (T', H', W') grid of the video, P = H'·W' positions, c and f
time steps of context and future, n = (c + f)·P tokens of a window, D width of a target.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
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
        """Raw targets (B, n, D), as [`VJepa2ForMaskedLatentPrediction.normalize_targets`] does."""
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

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the calibration into the folder of a detector, for `load`."""
        numbers = dict(vars(self))
        statistics = numbers.pop("statistics")
        tensors = {name: numbers.pop(name) for name in OLD_TENSORS.values()}
        tensors |= vars(statistics) if statistics else {}
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
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{str(path)!r} is damaged ({reason}): remove it, and calibrate again.") from error
        tensors = {OLD_TENSORS.get(name, name): tensor for name, tensor in tensors.items()}
        positions = {name: tensors.pop(name) for name in OLD_TENSORS.values() if name in tensors}
        if numbers.keys() | positions.keys() != {field.name for field in fields(cls)} - {"statistics"}:
            raise ValueError(f"{str(path)!r} was saved by another version; calibrate again.")
        numbers["settings"] = read_old_names(numbers["settings"], OLD_SETTINGS, str(path))
        return cls(**numbers, **positions, statistics=TargetStatistics(**tensors) if tensors else None)


def step_statistics(values: torch.Tensor, top_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(T', H', W') -> two (T',): the mean over the `top_fraction` of the highest values, and over all positions."""
    descending = values.flatten(1).sort(dim=1, descending=True).values
    count = max(round(top_fraction * descending.shape[1]), 1)
    return descending[:, :count].mean(dim=1), descending.mean(dim=1)


@torch.no_grad()
def prediction_errors(
    model: VJepa2ForMaskedLatentPrediction,
    source: FrameSource,
    context_frames: int,
    future_frames: int,
    batch_size: int = 8,
    statistics: TargetStatistics | None = None,
) -> torch.Tensor:
    """Errors of a whole video, which is read and scored one batch of windows at a time.

    Args:
        context_frames, future_frames: kept frames, multiples of the tubelet size.
        statistics: of normal video, for models that normalize targets over a batch.

    Returns:
        float32 (T', H', W'); NaN for the first c time steps, which are not predicted. Frames at the end that fill no
        tubelet are dropped.
    """
    tubelet = model.config.encoder_config.tubelet_size
    past, future = context_frames // tubelet, future_frames // tubelet
    found, grid = [], None
    for windows in iterate_windows(source, context_frames + future_frames, tubelet, batch_size):
        windows = windows.to(device=model.device, dtype=model.dtype)
        grid = model.encoder.get_grid(windows)
        found.append(window_errors(model, windows, past, statistics).cpu())
    errors = torch.cat(found)  # (windows, f, P)
    sums = torch.zeros(past + len(errors) + future - 1, errors.shape[2])
    counts = torch.zeros(len(sums), 1)
    for horizon in range(future):
        steps = slice(past + horizon, past + horizon + len(errors))
        sums[steps] += errors[:, horizon]
        counts[steps] += 1
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


def calibrate(errors: Sequence[torch.Tensor], quantile: float, settings: dict[str, Any]) -> Calibration:
    """Fits a calibration to the errors (T', H', W') of normal videos.

    Args:
        quantile: fraction of normal time steps below the threshold.
        settings: `top_fraction`, `two_sided`, and others that are only stored.
    """
    check_quantile(quantile)
    if len(grids := {tuple(one.shape[1:]) for one in errors}) > 1:
        raise ValueError(f"normal videos have grids of {sorted(grids)} positions; expected one size.")
    errors = torch.cat(list(errors))
    errors = errors[~errors.isnan().any(dim=(1, 2))]
    if len(errors) < 2:
        raise ValueError(f"normal video gives {len(errors)} predicted time steps; expected at least 2.")
    position_std, position_mean = torch.std_mean(errors.log(), dim=0)
    position_std = position_std.clamp_min(1e-3)  # where nothing ever changes
    rise, fall = step_statistics((errors.log() - position_mean) / position_std, settings["top_fraction"])
    rises, falls = ((part.mean().item(), part.std().item()) for part in (rise, fall))
    for name, (_, std) in {"rise_std": rises, "fall_std": falls}.items():
        if not 0 < std < math.inf:
            raise ValueError(
                f"the errors of normal video have {name}={std}; expected errors above 0 that vary: give more video "
                "with motion."
            )
    found = Calibration(position_mean, position_std, *rises, *falls, threshold=0.0, settings=settings)
    found.threshold = torch.quantile(found.scores(errors), quantile).item()
    return found
