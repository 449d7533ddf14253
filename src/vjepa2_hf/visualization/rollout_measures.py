"""Errors of a world model's rollouts in positions, rewards, prediction intervals and decoded images.

Letters: B windows, P model steps ahead, N tokens and D width of a latent, M numbers of a space, S state, H and W
pixels.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..metrics.latent_rollout.latent_rollout import extrapolate
from ..modeling_decoder import VJepa2PixelDecoder, side_by_side
from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .rollout_windows import Windows
from .state_probe import LinearProbe


Table = dict[str, torch.Tensor]  # measures (B, P) by name
Space = Callable[[torch.Tensor], torch.Tensor]  # latents (..., N, D) -> numbers (..., M)
# By prefix of the columns and level: low end, median, high end and truth (B, 4, P, M)
Intervals = dict[tuple[str, float], torch.Tensor]


def check_columns(groups: dict[str, list[int]], size: int) -> dict[str, list[int]]:
    """Columns of the states by name, checked against S = `size`; without groups, all columns as `state`."""
    groups = groups or {"state": list(range(size))}
    for name, columns in groups.items():
        if not columns or not set(columns) <= set(range(size)):
            raise ValueError(f"state_groups.{name} is {columns}, but the columns are 0 to {size - 1} of the states.")
    return groups


def measure_positions(
    probe: LinearProbe, windows: Windows, predicted: torch.Tensor, groups: dict[str, list[int]]
) -> Table:
    """Distances between true positions and those read from predictions (B, P, N, D), baselines and true latents."""
    previous, present = windows.known[:, -2], windows.known[:, -1]
    measured = {
        "": predicted,
        "copy_": present.unsqueeze(1).expand_as(windows.future),
        "extrapolation_": extrapolate(previous, present, windows.future.shape[1]),
        "probe_": windows.future,
    }
    groups = check_columns(groups, windows.states.shape[-1])
    table = {}
    for kind, latents in measured.items():
        offset = probe(latents) - windows.states
        table |= {f"{name}_{kind}error": offset[..., columns].norm(dim=-1) for name, columns in groups.items()}
    return table


def measure_rewards(model: VJepa2WorldModel, windows: Windows, predicted: torch.Tensor) -> Table:
    """Errors of the rewards of predicted steps (B, P, N, D), of true latents, and of two constant predictions."""

    def rewards(future: torch.Tensor) -> torch.Tensor:
        return model.predict_rewards(torch.cat([windows.known[:, -1:], future], dim=1), windows.future_actions)

    last, true = windows.rewards[:, :1], windows.rewards[:, 1:]
    return {
        "reward_error": (rewards(predicted) - true).abs(),
        "reward_head_error": (rewards(windows.future) - true).abs(),
        "reward_mean_error": (true - (model.config.reward_mean or 0.0)).abs(),
        "reward_copy_error": (true - last).abs(),
    }


def central_interval(samples: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends (...) of the central interval of samples (K, ...) in ascending order.

    The ends are the k-th smallest and k-th largest sample with k = (1 - level) / 2 · (K + 1), interpolated between
    two samples. Another sample of the same distribution lies outside either end with probability (1 - level) / 2, for
    any K.
    """
    rank = (1 - level) / 2 * (len(samples) + 1) - 1  # from 0
    low = max(0, math.floor(rank + 1e-9))
    weight = max(0.0, rank - low)
    ends = ((low, low + 1), (-1 - low, -2 - low))
    low_end, high_end = (torch.lerp(samples[a], samples[b], weight) for a, b in ends)
    return low_end, high_end


def score_interval(ends: tuple[torch.Tensor, torch.Tensor], truth: torch.Tensor, level: float) -> Table:
    """`coverage`, `width` and `score` (B, P) of intervals for truth (B, P, M), means over M.

    The score is the interval score of Gneiting and Raftery 2007, section 6.2.
    """
    low, high = ends
    width, missed = high - low, (low - truth).clamp(min=0) + (truth - high).clamp(min=0)
    scores = {"coverage": (missed == 0).float(), "width": width, "score": width + 2 / (1 - level) * missed}
    return {f"{name}_{100 * level:g}": value.flatten(2).mean(dim=-1) for name, value in scores.items()}


def interval_spaces(probe: LinearProbe | None, groups: dict[str, list[int]]) -> dict[str, Space]:
    """Spaces in which intervals are measured, by the prefix of their columns: latents, and every probed position."""
    spaces: dict[str, Space] = {"": lambda latents: latents.flatten(-2)}
    if probe is not None:
        for name, columns in check_columns(groups, len(probe.bias)).items():
            spaces[f"{name}_"] = lambda latents, columns=columns: probe(latents)[..., columns]
    return spaces


def measure_samples(
    model: VJepa2WorldModel,
    windows: Windows,
    spaces: dict[str, Space],
    levels: list[float],
    num_samples: int,
    generator: torch.Generator,
) -> tuple[Table, Intervals]:
    """Scores of the intervals of a stochastic model's samples, and those of positions, for `calibrate`."""
    rows, kept = [], []
    for number in range(len(windows.future)):
        samples, row, parts = windows.sample(model, number, num_samples, generator), {}, {}
        for prefix, space in spaces.items():
            ordered, truth = space(samples).sort(dim=0).values.unsqueeze(1), space(windows.future[number])[None]
            for level in levels:
                low, high = central_interval(ordered, level)
                scores = score_interval((low, high), truth, level)
                row |= {prefix + name: value for name, value in scores.items()}
                if prefix:  # latents have too many numbers to keep
                    parts[prefix, level] = torch.stack([low, central_interval(ordered, 0)[0], high, truth], dim=1)
        rows.append(row)
        kept.append(parts)
    joined = [{name: torch.cat([part[name] for part in found]) for name in found[0]} for found in (rows, kept)]
    return joined[0], joined[1]


def interval_factor(intervals: torch.Tensor, level: float) -> torch.Tensor:
    """The factor (P) by which intervals (B, 4, P, M) must be stretched around their medians to cover `level`.

    The quantile of |truth - median| over the distance of the median from the end on that side, over windows and
    numbers: conformalized quantile regression (arXiv 1905.03222) with this ratio as the score. Where windows are too
    few for the quantile, their largest ratio.
    """
    low, median, high, truth = intervals.unbind(1)
    side = torch.where(truth < median, median - low, high - median).clamp(min=1e-12)
    ratios = ((truth - median).abs() / side).transpose(1, 2).flatten(0, 1).sort(dim=0).values  # (B · M, P)
    return ratios[min(len(ratios), math.ceil((len(ratios) + 1) * level - 1e-9)) - 1]


def calibrate(episodes: list[torch.Tensor], level: float) -> Table:
    """Scores of the stretched intervals of episodes, and the factor of all of them, by column.

    Args:
        episodes: low end, median, high end and truth (B, 4, P, M) of the windows of an episode. Every second episode
            is stretched by the factor of the others, and the others by that of these; none for a single episode.
    """
    if len(episodes) < 2:
        return {}
    halves, parts = [torch.cat(episodes[first::2]) for first in (0, 1)], []
    for own, other in (halves, reversed(halves)):
        factor = interval_factor(other, level).unsqueeze(-1)
        low, median, high, truth = own.unbind(1)
        ends = median + factor * (low - median), median + factor * (high - median)
        parts.append(score_interval(ends, truth, level))
    table = {f"calibrated_{name}": torch.cat([part[name] for part in parts]) for name in parts[0]}
    return table | {f"factor_{100 * level:g}": interval_factor(torch.cat(halves), level).unsqueeze(0)}


def measure_residual_intervals(
    windows: Windows,
    predicted: torch.Tensor,
    spaces: dict[str, Space],
    levels: list[float],
    residuals: Table,
    stochastic: bool,
) -> Table:
    """Scores of predictions (B, P, N, D) ± one-step errors (`one_step_residuals`) · √h at h steps ahead; that of a
    model that is not stochastic is also scored as an interval of width 0."""
    rows = {}
    for prefix, space in spaces.items():
        found, truth = space(predicted), space(windows.future)
        growth = torch.arange(1, found.shape[1] + 1, device=found.device).sqrt().unsqueeze(-1)
        for level in levels:
            errors = central_interval(residuals[prefix], level)
            ends = {"residual_": tuple(found + growth * end for end in errors)}
            if not stochastic:
                ends[""] = (found, found)
            for kind, interval in ends.items():
                scores = score_interval(interval, truth, level)
                rows |= {prefix + kind + name: value for name, value in scores.items()}
    return rows


def one_step_residuals(
    model: VJepa2WorldModel, all_windows: Iterable[Windows], spaces: dict[str, Space], levels: list[float]
) -> Table:
    """True minus predicted numbers (K, M) one step ahead, in ascending order, by space."""
    errors: dict[str, list[torch.Tensor]] = {prefix: [] for prefix in spaces}
    for windows in all_windows:
        predicted = windows.rollout(model)
        for prefix, space in spaces.items():
            errors[prefix].append((space(windows.future) - space(predicted))[:, 0])
    count, lowest = sum(map(len, errors[""])), 2 / (1 - max(levels)) - 1
    if count < lowest - 1e-9:
        raise ValueError(
            f"the training episodes have {count} windows of one step, but residual_intervals at levels={levels} need "
            f"{math.ceil(lowest - 1e-9)}: give probe_data with more episodes."
        )
    return {prefix: torch.cat(parts).sort(dim=0).values for prefix, parts in errors.items()}


def find_object(images: torch.Tensor, color: list[float], max_distance: float) -> torch.Tensor:
    """Mean position of the pixels of a color: images (..., 3, H, W) in 0 to 1 -> x, y (..., 2) in pixels.

    The weight of a pixel falls linearly with the distance of its color, from 1 (equal) to 0 (`max_distance`, in 0 to
    255). NaN where the weights of all pixels sum to less than one.
    """
    distance = (255 * images - images.new_tensor(color)[:, None, None]).norm(dim=-3)
    weights = (1 - distance / max_distance).clamp(min=0)
    total = weights.sum(dim=(-2, -1))
    rows, columns = (torch.arange(size, device=weights.device) + 0.5 for size in weights.shape[-2:])
    x, y = (weights.sum(dim=-2) * columns).sum(dim=-1), (weights.sum(dim=-1) * rows).sum(dim=-1)
    found = torch.stack([x, y], dim=-1) / total.unsqueeze(-1)
    return found.where((total >= 1).unsqueeze(-1), torch.nan)


def decode_windows(
    decoder: VJepa2PixelDecoder, processor: VJepa2VideoProcessor, windows: Windows, predicted: torch.Tensor
) -> torch.Tensor:
    """Images (B, 3, 1+P, 3, H, W), the present first: true frames, decoded true latents, decoded predictions. Views of
    several cameras are side by side, (B, 3, 1+P, 3, H, V·W)."""
    views = windows.frames.values() if isinstance(windows.frames, dict) else [windows.frames]
    true = []
    for view in views:
        frames = list(view[:, -predicted.shape[1] - 1 :])  # resized and cropped as for the model
        pixels = processor(frames, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values_videos"]
        true.append((pixels.float() / 255).to(predicted.device))
    present = decoder.decode_views(windows.known[:, -1:])
    decoded = [torch.cat([present, decoder.decode_views(future)], dim=1) for future in (windows.future, predicted)]
    return torch.stack([side_by_side(torch.stack(true, dim=-4)), *decoded], dim=1)


def measure_object(
    images: torch.Tensor, name: str, color: list[float], max_distance: float, located: torch.Tensor | None
) -> Table:
    """Distances in pixels of an object from its position in the true frame, and whether it is missing (0 or 1), from
    images of `decode_windows` and x, y (B, P, 2) in pixels from the states, if `located`. Of several views the first
    is searched."""
    first = images[..., : images.shape[-2]]  # square
    seen, decoded, predicted = find_object(first, color, max_distance).unbind(1)
    last, seen, decoded, predicted = seen[:, :1], seen[:, 1:], decoded[:, 1:], predicted[:, 1:]
    positions = {"painted": predicted, "decoder": decoded, "copy": last}
    if located is not None:
        positions["locator"] = located
    table = {f"{name}_{kind}_px": (position - seen).norm(dim=-1) for kind, position in positions.items()}
    missing = {"painted": predicted, "decoded": decoded, "seen": seen}
    return table | {f"{name}_not_{kind}": position.isnan().any(dim=-1).float() for kind, position in missing.items()}


def image_strip(images: torch.Tensor, horizons: list[int]) -> torch.Tensor:
    """The window of `decode_windows` that changes most, at the present and at `horizons`: (3, columns, 3, H, W)."""
    change = (images[:, 0, 1:] - images[:, 0, :1]).square().flatten(1).mean(dim=-1)
    return images[int(change.argmax())][:, [0, *horizons]].cpu()


def tabulate(scores: dict[str, Any], tables: dict[str, list[torch.Tensor]]) -> list[dict[str, float]]:
    """A row per horizon: scores of `latent_rollout`, and means over windows of tables (B, P).

    Means of distances in pixels leave out windows in which the object is not found.
    """
    joined = {name: torch.cat(parts) for name, parts in tables.items()}
    means = {name: (rows.nanmean if name.endswith("_px") else rows.mean)(dim=0) for name, rows in joined.items()}
    rows = []
    for index, horizon in enumerate(scores["horizon"]):
        row = {name: values[index] for name, values in scores.items() if name != "windows"}
        rows.append(row | {name: values[horizon - 1].item() for name, values in means.items()})
    return rows
