"""Measures how well a saved world model predicts episodes that it was not trained on, beside guesses without a model.

    python examples/evaluate_world_model.py model=runs/demo/world_model/final data=runs/demo/episodes
    output=runs/demo/world_model/evaluation.json [key=value ...]

By horizon: error and cosine of imagined latents, beside copying the last known ones and moving on from the last two
in a straight line (`latent_rollout`, an `evaluate` module). Where the episodes have `states` (the environment's true
ones, see `examples/record_episodes.py`), a linear probe, fitted on true latents of training episodes, reads them off
predicted latents, and the distance to the true ones is told in the states' units. With a reward head, the error of its
rewards. With a stochastic latent, how often the truth lies within the intervals of samples. Of proprio states the
model is told those of known frames alone, as in planning.

Writes a JSON file and prints a Markdown table. Columns, each a mean over windows at that horizon:

* `error`, `cosine`: of latents; `copy_...`, `extrapolation_...`: of the two guesses.
* `NAME_error`: distance from the position NAME, read off predicted latents, to the true one (`state_groups`);
  `NAME_probe_error`: the same of true latents, which is what the probe itself gets wrong.
* `reward_error`: |predicted - true| of the single step at that horizon; `reward_mean_error`: of always saying the
  training episodes' mean.
* `coverage_90`: share of the latents' numbers that lie in the central 90 % interval of samples; `state_coverage_90`:
  the same of the states that the probe reads off true latents.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from vjepa2_hf import VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.episodes import read_episodes, split_episodes
from vjepa2_hf.metrics.latent_rollout.latent_rollout import LatentRollout, extrapolate
from vjepa2_hf.settings import exit_on_user_error, parse_arguments


ENCODED_AT_ONCE = 64  # frames
PROBE_BYTES = 2**29  # of latents that the probe is fitted on
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried strengths, as shares of the latents' mean variance


@dataclass
class EvaluationConfig:
    """Settings of one evaluation."""

    model: str
    """Folder or Hub id of the world model, with its video processor."""
    data: str
    """Folder, glob or file of episode shards, a LeRobot folder, or a dataset on the Hub."""
    output: str
    """JSON file to write."""
    camera: str | None = None
    """Of a LeRobot dataset with several."""
    validation_fraction: float | None = None
    """Share of `data` held out, as in training; null: that of the run which the model lies in. 1.0: all of `data`."""
    max_episodes: int | None = None
    """Held-out ones; null: all."""
    windows_per_episode: int = 8
    """Spread evenly over the episode; they may overlap."""
    past_frames: int = 2
    """Known frames of a window, the present included; a model sees the last `context_frames` of them."""
    horizons: list[int] = field(default_factory=lambda: [1, 2, 4, 5, 8, 10])
    """Model steps after the present."""

    # Positions, where episodes have `states`
    probe_data: str | None = None
    """Episodes that the probe is fitted on; null: those of `data` that are not held out."""
    probe_episodes: int = 100
    state_groups: dict[str, list[int]] = field(default_factory=dict)
    """Columns of `states` that make up a position, by name, such as {pusher: [0, 1], block: [2, 3]}; {}: all columns
    together, as `state`."""

    # Calibration of a stochastic model
    num_samples: int = 99
    levels: list[float] = field(default_factory=lambda: [0.5, 0.8, 0.9])
    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self):
        lowest = {"windows_per_episode": 1, "past_frames": 2, "probe_episodes": 2, "max_episodes": 1}
        for name, bound in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}.")
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons are {self.horizons}; expected model steps, 1 or more.")
        for level in self.levels:
            if not 0 < level < 1 or (1 - level) / 2 * (self.num_samples + 1) < 1 - 1e-9:
                raise ValueError(
                    f"levels contain {level}, whose interval {self.num_samples} samples do not have: give shares "
                    "between 0 and 1, or raise num_samples."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Episodes
# ---------------------------------------------------------------------------------------------------------------------
def find_validation_fraction(config: EvaluationConfig) -> float:
    """The share that training held out: given, or that of the run's `config.yaml` beside the model's folder."""
    if config.validation_fraction is not None:
        return config.validation_fraction
    path = Path(config.model).parent / "config.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "validation_fraction" not in settings:
        raise ValueError(
            f"nothing at {str(path)!r} tells which episodes training held out: give validation_fraction (1.0 if all "
            "of data is new to the model)."
        )
    return settings["validation_fraction"]


def held_out_episodes(config: EvaluationConfig, model: VJepa2WorldModel, fraction: float) -> Iterator[dict[str, Any]]:
    """Episodes in model steps."""
    return read_episodes(
        config.data,
        model.config.frame_skip,
        config.max_episodes,
        config.camera,
        wanted=lambda name: split_episodes([name], fraction)[0],
    )


def training_episodes(config: EvaluationConfig, model: VJepa2WorldModel, fraction: float) -> Iterator[dict[str, Any]]:
    """Episodes for the probe, in model steps."""
    if config.probe_data is not None:
        return read_episodes(config.probe_data, model.config.frame_skip, config.probe_episodes, config.camera)
    return read_episodes(
        config.data,
        model.config.frame_skip,
        config.probe_episodes,
        config.camera,
        wanted=lambda name: not split_episodes([name], fraction)[0],
    )


def encode(model: VJepa2WorldModel, processor: VJepa2VideoProcessor, frames: np.ndarray, targets: bool = True):
    """uint8 frames (T, H, W, 3) -> latents (T, N, D): those that predictions are compared with, or start from."""
    parts = []
    for first in range(0, len(frames), ENCODED_AT_ONCE):
        pixels = processor(frames[first : first + ENCODED_AT_ONCE], return_tensors="pt")["pixel_values_videos"]
        parts.append((model.encode_targets if targets else model.encode)(pixels.to(model.device))[0])
    return torch.cat(parts)


def window_frames(length: int, past: int, future: int, count: int) -> np.ndarray:
    """Up to `count` windows spread over an episode of `length` frames: frame numbers (B, past + future)."""
    room = length - past - future
    if room < 0:
        return np.zeros((0, past + future), np.int64)
    starts = np.unique(np.linspace(0, room, count).round().astype(np.int64))
    return starts[:, None] + np.arange(past + future)


# ---------------------------------------------------------------------------------------------------------------------
# Probe
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class LinearProbe:
    """states ≈ (latents - mean) · weights + bias, by ridge regression."""

    mean: torch.Tensor
    """(N·D,)"""
    weights: torch.Tensor
    """(N·D, S)"""
    bias: torch.Tensor
    """(S,)"""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., N, D) -> (..., S)."""
        return (latents.float().flatten(-2) - self.mean) @ self.weights + self.bias


def fit_ridge(latents: torch.Tensor, states: torch.Tensor, ridge: float) -> LinearProbe:
    """Latents (F, N·D), states (F, S); `ridge` as a share of the latents' mean variance."""
    mean, bias = latents.mean(dim=0), states.mean(dim=0)
    centred, wanted = latents - mean, (states - bias).double()
    wide = centred.shape[1] > len(centred)  # then the smaller system is that of the frames
    kept = centred.T if wide else centred
    gram = sum(part.double().T @ part.double() for part in kept.split(1024))
    gram.diagonal().add_(max(ridge * gram.trace().item() / len(gram), 1e-12))
    if wide:
        weights = centred.T @ torch.linalg.solve(gram, wanted).float()
    else:
        right = sum(x.double().T @ y for x, y in zip(centred.split(1024), wanted.split(1024), strict=True))
        weights = torch.linalg.solve(gram, right).float()
    return LinearProbe(mean, weights, bias)


def choose_probe(latents: list[torch.Tensor], states: list[torch.Tensor]) -> tuple[LinearProbe, float]:
    """A probe on episodes (F, N·D), (F, S), and its strength: that of RIDGES which is best on every fifth of them."""
    if len(latents) < 2:
        raise ValueError(f"the probe needs 2 or more training episodes with states, but found {len(latents)}.")
    spared = [number % 5 == min(4, len(latents) - 1) for number in range(len(latents))]

    def joined(parts: list[torch.Tensor], wanted: bool) -> torch.Tensor:
        return torch.cat([part for part, left in zip(parts, spared, strict=True) if left == wanted])

    deviation = torch.cat(states).std(dim=0).clamp(min=1e-6)
    errors = []
    for ridge in RIDGES:
        probe = fit_ridge(joined(latents, False), joined(states, False), ridge)
        found = probe(joined(latents, True).unsqueeze(1))  # flat already: one token
        errors.append(((found - joined(states, True)) / deviation).square().mean().item())
    best = RIDGES[int(np.argmin(errors))]
    return fit_ridge(torch.cat(latents), torch.cat(states), best), best


def fit_probe(
    config: EvaluationConfig, model: VJepa2WorldModel, processor, fraction: float
) -> tuple[LinearProbe | None, dict[str, Any]]:
    """The probe and what it was fitted on; there is none without training episodes with `states`."""
    latents, states = [], []
    frames = max(2, PROBE_BYTES // (4 * model.tokens_per_frame * model.latent_size * config.probe_episodes))
    for episode in tqdm(training_episodes(config, model, fraction), desc="probe", total=config.probe_episodes):
        if episode["states"] is None:
            return None, {}
        count = len(episode["frames"])
        chosen = np.unique(np.linspace(0, count - 1, min(count, frames)).round().astype(np.int64))
        latents.append(encode(model, processor, episode["frames"][chosen]).float().flatten(1))
        states.append(torch.from_numpy(episode["states"][chosen]).to(model.device))
    if not latents:
        return None, {}
    probe, ridge = choose_probe(latents, states)
    return probe, {"episodes": len(latents), "frames": sum(map(len, latents)), "ridge": ridge}


# ---------------------------------------------------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class Windows:
    """Windows of an episode with K known frames and P future ones."""

    seen: torch.Tensor
    """(B, T0, N, D), latents that the model starts from"""
    known: torch.Tensor
    """(B, K, N, D), target latents"""
    future: torch.Tensor
    """(B, P, N, D), target latents"""
    actions: torch.Tensor
    """(B, K-1+P, A)"""
    proprio_states: torch.Tensor | None
    """(B, T0, S)"""
    states: torch.Tensor | None
    """(B, P, S)"""
    rewards: torch.Tensor | None
    """(B, P)"""

    @property
    def future_actions(self) -> torch.Tensor:
        return self.actions[:, -self.future.shape[1] :]

    def rollout(self, model: VJepa2WorldModel) -> torch.Tensor:
        """(B, P, N, D)."""
        return model.rollout(self.seen, self.future_actions, self._context(), self.proprio_states)

    def samples(self, model: VJepa2WorldModel, window: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """Possible futures (count, P, N, D) of one window."""
        one = slice(window, window + 1)
        actions = self.future_actions[one].unsqueeze(1).expand(-1, count, -1, -1)
        context, states = self._context(), self.proprio_states
        context, states = (None if part is None else part[one] for part in (context, states))
        return model.rollout(self.seen[one], actions, context, states, generator=generator)[0]

    def _context(self) -> torch.Tensor | None:
        """Actions between the frames that are seen."""
        frames, first = self.seen.shape[1], self.known.shape[1] - self.seen.shape[1]
        return self.actions[:, first : first + frames - 1] if frames > 1 else None


def cut_windows(config: EvaluationConfig, model: VJepa2WorldModel, processor, episode: dict) -> Windows | None:
    """The windows of an episode; None if it is too short for one."""
    past, future = config.past_frames, max(config.horizons)
    index = window_frames(len(episode["frames"]), past, future, config.windows_per_episode)
    if not len(index):
        return None
    needed, place = np.unique(index, return_inverse=True)  # a frame of several windows is encoded once
    place, frames = place.reshape(index.shape), episode["frames"][needed]
    latents = encode(model, processor, frames)
    seen = latents if model.config.freeze_encoder else encode(model, processor, frames, targets=False)
    first = past - min(past, model.config.context_frames)

    def rows(name: str, chosen: np.ndarray) -> torch.Tensor | None:
        return None if episode[name] is None else torch.from_numpy(episode[name][chosen]).to(model.device)

    return Windows(
        seen=seen[place[:, first:past]],
        known=latents[place[:, :past]],
        future=latents[place[:, past:]],
        actions=rows("actions", index[:, :-1]),
        proprio_states=rows("proprio_states", index[:, first:past]) if model.config.proprio_dim else None,
        states=rows("states", index[:, past:]),
        rewards=rows("rewards", index[:, past - 1 : -1]),
    )


def position_errors(
    probe: LinearProbe, latents: torch.Tensor, states: torch.Tensor, groups: dict[str, list[int]]
) -> dict[str, torch.Tensor]:
    """Distances (B, P) between true positions and those read off latents (B, P, N, D), by name."""
    found = probe(latents)
    groups = groups or {"state": list(range(states.shape[-1]))}
    for name, columns in groups.items():
        if not columns or not set(columns) <= set(range(states.shape[-1])):
            raise ValueError(
                f"state_groups.{name} is {columns}, but the columns are 0 to {states.shape[-1] - 1} of the states."
            )
    return {name: (found - states)[..., columns].norm(dim=-1) for name, columns in groups.items()}


def interval_coverage(samples: torch.Tensor, truth: torch.Tensor, levels: list[float]) -> dict[float, torch.Tensor]:
    """Share of numbers within the central intervals of samples, by level.

    An interval ends where, of another sample of the same kind, (1 - level) / 2 is expected outside on either side: at
    the k-th smallest of K samples with k = (1 - level) / 2 · (K + 1), so that few samples tell no lie.

    Args:
        samples: (K, P, ...).
        truth: (P, ...).

    Returns:
        (P,) for each level.
    """
    ordered, coverage = samples.sort(dim=0).values, {}
    for level in levels:
        rank = (1 - level) / 2 * (len(samples) + 1) - 1  # from 0
        low = max(0, math.floor(rank + 1e-9))
        share = max(0.0, rank - low)
        ends = [
            torch.lerp(ordered[a], ordered[b], share) for a, b in ((low, low + 1), (-1 - low, -2 - low))
        ]  # between two samples where the rank is no whole number
        inside = (truth >= ends[0]) & (truth <= ends[1])
        coverage[level] = inside.float().flatten(1).mean(dim=-1)
    return coverage


def measure_positions(
    config: EvaluationConfig, probe: LinearProbe, windows: Windows, predicted: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Position errors (B, P) of predictions, of the guesses, and of the probe itself."""
    previous, present = windows.known[:, -2], windows.known[:, -1]
    steps = windows.future.shape[1]
    measured = {
        "": predicted,
        "copy_": present.unsqueeze(1).expand_as(windows.future),
        "extrapolation_": extrapolate(previous, present, steps),
        "probe_": windows.future,
    }
    return {
        f"{name}_{kind}error": error
        for kind, latents in measured.items()
        for name, error in position_errors(probe, latents, windows.states, config.state_groups).items()
    }


def measure_rewards(model: VJepa2WorldModel, windows: Windows, predicted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Errors (B, P) of the rewards of imagined steps."""
    joined = torch.cat([windows.known[:, -1:], predicted], dim=1)
    found = model.predict_rewards(joined, windows.future_actions)
    return {
        "reward_error": (found - windows.rewards).abs(),
        "reward_mean_error": (windows.rewards - (model.config.reward_mean or 0.0)).abs(),
    }


def measure_calibration(
    config: EvaluationConfig, model: VJepa2WorldModel, probe: LinearProbe | None, windows: Windows, generator
) -> dict[str, torch.Tensor]:
    """Coverage (B, P) of the intervals of samples, on latents and on probed states."""
    rows: dict[str, list[torch.Tensor]] = {}
    for number in range(len(windows.future)):
        samples, truth = windows.samples(model, number, config.num_samples, generator), windows.future[number]
        spaces = {"coverage": (samples, truth)}
        if probe is not None:
            spaces["state_coverage"] = (probe(samples), probe(truth))
        for name, (drawn, true) in spaces.items():
            for level, share in interval_coverage(drawn, true, config.levels).items():
                rows.setdefault(f"{name}_{100 * level:g}", []).append(share)
    return {name: torch.stack(shares) for name, shares in rows.items()}


def measure_windows(
    config: EvaluationConfig, model: VJepa2WorldModel, probe, windows: Windows, predicted, generator, name: str
) -> dict[str, torch.Tensor]:
    """All that the model and the episode called `name` allow to measure beside the latents: (B, P) each."""
    if (probe is None) != (windows.states is None):
        raise ValueError(
            f"Episode {name} has no states, but those that the probe was fitted on had."
            if windows.states is None
            else f"Episode {name} has states, but no training episode has, for the probe to be fitted on: give "
            "probe_data, episodes that the model was trained on."
        )
    measured = {} if probe is None else measure_positions(config, probe, windows, predicted)
    if model.config.reward_head:
        if windows.rewards is None:
            raise ValueError(f"Episode {name} has no rewards, which those of the reward head are compared with.")
        measured |= measure_rewards(model, windows, predicted)
    if model.config.stochastic_dim:
        measured |= measure_calibration(config, model, probe, windows, generator)
    return measured


@torch.no_grad()
def evaluate_model(config: EvaluationConfig, model: VJepa2WorldModel, processor: VJepa2VideoProcessor) -> dict:
    """All measures; see the head of this file."""
    fraction = find_validation_fraction(config)
    probe, probe_facts = fit_probe(config, model, processor, fraction)
    latent_rollout, tables, episodes, short = LatentRollout(), {}, 0, 0
    generator = torch.Generator(device=model.device).manual_seed(config.seed)
    for episode in tqdm(held_out_episodes(config, model, fraction), desc="evaluate"):
        windows = cut_windows(config, model, processor, episode)
        if windows is None:
            short += 1
            continue
        episodes += 1
        predicted = windows.rollout(model)
        latent_rollout.add_batch(
            predictions=predicted,
            references=windows.future,
            copies=windows.known[:, -1],
            previous=windows.known[:, -2],
        )
        measured = measure_windows(config, model, probe, windows, predicted, generator, episode["episode_id"])
        for name, values in measured.items():
            tables.setdefault(name, []).append(values.double().cpu())
    if not episodes:
        raise ValueError(
            f"no held-out episode of {config.data!r} has the {config.past_frames + max(config.horizons)} frames of a "
            f"window, {model.config.frame_skip} apart ({short} are shorter; validation_fraction is {fraction}): lower "
            f"horizons={config.horizons}, or record more or longer ones."
        )
    scores = latent_rollout.compute(horizons=config.horizons)
    facts = {"episodes": episodes, "episodes_too_short": short, "windows": scores["windows"], "probe": probe_facts}
    return {"model": config.model, "data": config.data, **facts, "horizons": tabulate(scores, tables)}


def tabulate(scores: dict[str, Any], tables: dict[str, list[torch.Tensor]]) -> list[dict[str, float]]:
    """A row for each horizon, of the module's means and the means over windows of tables (B, P)."""
    means = {name: torch.cat(parts).mean(dim=0) for name, parts in tables.items()}
    rows = []
    for place, horizon in enumerate(scores["horizon"]):
        row = {name: values[place] for name, values in scores.items() if name != "windows"}
        rows.append(row | {name: values[horizon - 1].item() for name, values in means.items()})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------
def write_json(path: Path, result: dict[str, Any]) -> None:
    """Aside, then renamed; a number that is not finite, of a rollout that explodes, becomes null."""
    rows = [
        {name: value if math.isfinite(value) else None for name, value in row.items()} for row in result["horizons"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps({**result, "horizons": rows}, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def markdown_table(rows: list[dict[str, float]]) -> str:
    """Measures down, horizons across."""
    head = ["steps ahead", *(str(row["horizon"]) for row in rows)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *(f"{row[name]:.3g}" for row in rows)] for name in rows[0] if name != "horizon"]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@exit_on_user_error
def main() -> None:
    config = parse_arguments(EvaluationConfig, __doc__)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VJepa2WorldModel.from_pretrained(config.model).to(device).eval()
    result = evaluate_model(config, model, VJepa2VideoProcessor.from_pretrained(config.model))
    write_json(Path(config.output), result)
    print(f"{result['windows']} windows of {result['episodes']} held-out episodes\n")
    print(markdown_table(result["horizons"]))


if __name__ == "__main__":
    main()
