"""Latent and learned distances of held-out frames by their true distances, and the calibration of the learned one.

A planner descends the distance to its goal. Where mean latent distance does not grow with true distance, it has
nothing to descend, however good its predictions are.

Letters: F frames, K pairs of frames, N tokens and D width of a latent, S state.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from ..data.cameras import count_frames, take_frames
from ..modeling_costs import LatentDistance
from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .figures import evenly_spaced
from .rollout_windows import encode_frames
from .tables import format_table


EPISODES, FRAMES, PAIRS = 40, 32, 10_000  # at most; frames per episode, and half of the pairs within episodes
BYTES = 2**29  # of latents that are kept
COMPARED_AT_ONCE = 256  # pairs
EDGES = np.array(
    [0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1]
)  # of bins, in parts of the largest distance
RESAMPLES = 100
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
NAMES = {
    "latent": "latent distance (l2)",
    "whitened": "latent distance (whitened)",
    "learned": "learned distance (frames)",
}

TrueDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # states (K, S), (K, S) -> (K,)


@dataclass
class EncodedFrames:
    """Frames of E episodes, in order of episode and time."""

    latents: torch.Tensor  # (F, N, D)
    episodes: np.ndarray  # int (F,), 0 to E - 1
    times: np.ndarray  # int (F,), in frames of the video
    states: np.ndarray | None  # (F, S)


@torch.no_grad()
def encode_episodes(
    model: VJepa2WorldModel, processor: VJepa2VideoProcessor, episodes: Iterable[dict[str, Any]]
) -> EncodedFrames | None:
    """Encodes evenly spaced frames of the first `EPISODES` episodes, in model steps; None if no distance can be
    measured: the episodes have no states, and the model has no distance head."""
    affordable = BYTES // (4 * model.tokens_per_frame * model.latent_size * EPISODES)
    latents, numbers, times, states = [], [], [], []
    for number, episode in enumerate(itertools.islice(episodes, EPISODES)):
        if episode["states"] is None and not model.config.distance_head:
            return None
        chosen = evenly_spaced(count_frames(episode["frames"]), min(FRAMES, max(2, affordable)))
        latents.append(encode_frames(model, processor, take_frames(episode["frames"], chosen)).float())
        numbers.append(np.full(len(chosen), number))
        times.append(chosen * model.config.frame_skip)
        states.append(None if episode["states"] is None else episode["states"][chosen])
    known = None if any(part is None for part in states) else np.concatenate(states)
    return EncodedFrames(torch.cat(latents), np.concatenate(numbers), np.concatenate(times), known)


def sample_pairs(frames: EncodedFrames, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (K,) of starts and goals, without repetition: up to half of `PAIRS` within an episode, where the start
    is earlier, and up to half between two episodes."""
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.triu_indices(len(frames.episodes), k=1))
    within = frames.episodes[pairs[0]] == frames.episodes[pairs[1]]
    parts = [pairs[:, kind] for kind in (within, ~within)]
    parts = [part[:, rng.choice(part.shape[1], min(PAIRS // 2, part.shape[1]), replace=False)] for part in parts]
    return tuple(np.concatenate(parts, axis=1))


@torch.no_grad()
def compare_pairs(
    model: VJepa2WorldModel, latents: torch.Tensor, starts: np.ndarray, goals: np.ndarray
) -> dict[str, np.ndarray]:
    """Distances (K,) of pairs of latents (F, N, D) by name: `latent`, the planner's default cost; `whitened`, if the
    model's states are; and `learned`, in frames, with a distance head."""
    between, found, whitening = LatentDistance("l2").between, {"latent": []}, getattr(model, "state_whitening", None)
    if whitening is not None:
        found["whitened"] = []
    if model.config.distance_head:
        embedded = torch.cat([model.distance_embedding(part) for part in latents.split(COMPARED_AT_ONCE)])
        found["learned"] = []
    for start, goal in zip(*(torch.from_numpy(part).split(COMPARED_AT_ONCE) for part in (starts, goals)), strict=True):
        found["latent"].append(between(latents[start], latents[goal]))
        if whitening is not None:
            given = (latents[start], latents[goal], whitening.to(latents))
            found["whitened"].append(LatentDistance("whitened").between(*given))
        if "learned" in found:
            found["learned"].append(model.embedded_distance(embedded[start], embedded[goal]))
    return {name: torch.cat(parts).double().cpu().numpy() for name, parts in found.items()}


def measure_distances(
    model: VJepa2WorldModel,
    frames: EncodedFrames,
    groups: dict[str, list[int]],
    path_distance: TrueDistance | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All that this module measures, as plain values.

    Args:
        groups: columns of the states by name; the true distance of a group is Euclidean.
        path_distance: the true distance of a group `path`, from complete states.

    Returns:
        `episodes`, `frames` and `pairs` (their numbers); `groups`: with states, by name of the group and of the
        distance (see `compare_pairs`) what `measure_curve` returns; `calibration`: with a distance head, what
        `measure_calibration` returns.
    """
    starts, goals = sample_pairs(frames, seed)
    found = compare_pairs(model, frames.latents, starts, goals)
    result: dict[str, Any] = {"episodes": len(np.unique(frames.episodes)), "frames": len(frames.episodes)}
    result |= {"pairs": len(starts), "groups": {}}
    sides = frames.episodes[starts], frames.episodes[goals]
    if frames.states is not None:
        before, after = frames.states[starts], frames.states[goals]
        true = {
            name: np.linalg.norm((before - after)[:, columns], axis=-1).astype(np.float64)
            for name, columns in groups.items()
        }
        if path_distance is not None:
            true["path"] = np.asarray(path_distance(before, after), np.float64)
        for name, distances in true.items():
            curves = {kind: measure_curve(distances, values, sides, seed) for kind, values in found.items()}
            result["groups"][name] = curves
    if "learned" in found:
        within = sides[0] == sides[1]
        elapsed = (frames.times[goals] - frames.times[starts])[within]
        result["calibration"] = measure_calibration(elapsed, found["learned"][within], model.config.frame_skip)
    return result


def measure_curve(
    true: np.ndarray, found: np.ndarray, sides: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Any]:
    """A distance `found` (K,) by `true` distance (K,) of pairs between the episodes `sides`, (K,) each.

    Returns:
        Spearman's rank correlation over all pairs (`rank_correlation`) with its 95 % bootstrap interval over episodes
        (`low`, `high`), and over pairs `within_episodes` and `across_episodes` alone; None where it is not defined.
        `bins` of true distance, each with the mean and quantiles of the distance, and with `rank_correlation_beyond`,
        over all pairs at least as far apart as the bin's begin: near 0 where the distance is flat from there on.
    """
    within = sides[0] == sides[1]
    result = {"rank_correlation": rank_correlation(true, found), **bootstrap(true, found, sides, seed)}
    result["within_episodes"] = rank_correlation(true[within], found[within])
    result["across_episodes"] = rank_correlation(true[~within], found[~within])
    edges = np.unique(EDGES * true.max())
    edges = edges if len(edges) > 1 else np.append(edges, edges)  # all distances are 0
    last, bins = len(edges) - 2, []
    numbers = np.clip(np.searchsorted(edges, true, side="right") - 1, 0, last)
    for number in np.unique(numbers):
        inside, beyond = numbers == number, numbers >= number
        part = {"from": float(edges[number]), "to": float(edges[number + 1]), "true_mean": float(true[inside].mean())}
        part |= summarize(found[inside])
        bins.append({**part, "rank_correlation_beyond": rank_correlation(true[beyond], found[beyond])})
    return {**result, "bins": bins}


def measure_calibration(elapsed: np.ndarray, predicted: np.ndarray, step: int) -> dict[str, Any]:
    """Predicted distances (K,) by the frames elapsed (K,) between two frames of an episode, in frames of the video.

    The frames elapsed are an upper bound of the true distance, because a policy may make detours: a good distance is
    near them for small separations, below them for large ones, and seldom above. Bins double from one model step of
    `step` frames.
    """
    numbers = np.ceil(np.log2(elapsed / step)).astype(int)  # 1, 2, 3 to 4, 5 to 8, … model steps
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        part = {"from": int(elapsed[inside].min()), "to": int(elapsed[inside].max())}
        part |= {"elapsed_mean": float(elapsed[inside].mean()), **summarize(predicted[inside])}
        bins.append({**part, "fraction_above": float((predicted > elapsed)[inside].mean())})
    return {"rank_correlation": rank_correlation(elapsed, predicted), "bins": bins}


def summarize(values: np.ndarray) -> dict[str, float]:
    """Number, mean and quantiles of values (n,)."""
    quantiles = {name: float(np.quantile(values, level)) for name, level in QUANTILES.items()}
    return {"pairs": len(values), "mean": float(values.mean()), **quantiles}


def rank_correlation(true: np.ndarray, found: np.ndarray) -> float | None:
    """Spearman's rank correlation of true and found values, (n,) each; None for fewer than three pairs, or if all true
    or all found values are equal."""
    if len(true) < 3 or np.ptp(true) == 0 or np.ptp(found) == 0:
        return None
    return float(spearmanr(true, found).statistic)


def bootstrap(
    true: np.ndarray, found: np.ndarray, sides: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, float | None]:
    """95 % interval (`low`, `high`) of the rank correlation when episodes are sampled with replacement. A pair counts
    as often as its episode was sampled, or as the product of both. All arrays are (n,); `sides` are episode numbers.
    """
    rng, count, values = np.random.default_rng(seed), 1 + max(side.max() for side in sides), []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        weights = np.where(sides[0] == sides[1], times[sides[0]], times[sides[0]] * times[sides[1]])
        chosen = np.repeat(np.arange(len(true)), weights)
        values.append(rank_correlation(true[chosen], found[chosen]))
    values = [value for value in values if value is not None]
    low, high = np.percentile(values, [2.5, 97.5]).tolist() if count > 1 and values else (None, None)
    return {"low": low, "high": high}


def format_distances(result: dict[str, Any]) -> str:
    """Markdown tables of what `measure_distances` returns."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    lines = []
    for group, curves in result["groups"].items():
        lines.append(f"Distances by true distance of `{group}`, {result['pairs']} pairs of held-out frames:\n")
        titles, rows = ["true distance", "pairs"], []
        for kind in curves:
            titles += [f"{NAMES[kind]}, mean", "10 to 90 %", "rank correlation from here on"]
        for parts in zip(*(curve["bins"] for curve in curves.values()), strict=True):
            row = [f"{parts[0]['from']:.3g}–{parts[0]['to']:.3g}", str(parts[0]["pairs"])]
            for part in parts:
                row += [f"{part['mean']:.3g}", f"{part['low']:.3g}–{part['high']:.3g}"]
                row.append(number(part["rank_correlation_beyond"]))
            rows.append(row)
        lines += [*format_table(titles, rows), ""]
        for kind, curve in curves.items():
            interval = f"{number(curve['low'])} to {number(curve['high'])} over episodes"
            separate = f"within episodes {number(curve['within_episodes'])}, across {number(curve['across_episodes'])}"
            found = f"rank correlation with true distance {number(curve['rank_correlation'])}"
            lines += [f"{NAMES[kind]}: {found} ({interval}); {separate}.", ""]
    if "calibration" in result:
        lines.append("Learned distance by frames elapsed, an upper bound of the true distance:\n")
        rows = []
        for part in result["calibration"]["bins"]:
            quantiles = f"{part['low']:.1f} / {part['median']:.1f} / {part['high']:.1f}"
            elapsed = str(part["from"]) if part["from"] == part["to"] else f"{part['from']}–{part['to']}"
            rows.append(
                [elapsed, str(part["pairs"]), f"{part['mean']:.1f}", quantiles, number(part["fraction_above"])]
            )
        titles = ["frames elapsed", "pairs", "predicted, mean", "10 / 50 / 90 %", "fraction above"]
        lines += format_table(titles, rows)
    return "\n".join(lines)
