"""Measures how well a saved world model predicts episodes that it was not trained on, beside guesses without a model.

    python examples/evaluate_world_model.py model=runs/demo/world_model/final data=runs/demo/episodes
    output=runs/demo/world_model/evaluation.json [key=value ...]

By horizon: error and cosine of imagined latents, beside copying the last known ones and moving on from the last two
in a straight line (`latent_rollout`, an `evaluate` module). Where the episodes have `states` (the environment's true
ones, see `examples/record_episodes.py`), a linear probe, fitted on true latents of training episodes, reads them off
predicted latents, and the distance to the true ones is told in the states' units. With a reward head, the error of its
rewards. With a stochastic latent, how often the truth lies within the intervals of samples. With a `decoder` (see
`examples/train_decoder.py`), pictures of predictions beside the true frames, and, where objects have a colour of their
own (`object_colors`), how many pixels they are off in them. Of proprio states the model is told those of known frames
alone, as in planning.

Writes a JSON file and prints a Markdown table. Columns, each a mean over windows at that horizon:

* `error`, `cosine`: of latents; `copy_...`, `extrapolation_...`: of the two guesses.
* `NAME_error`: distance from the position NAME, read off predicted latents, to the true one (`state_groups`);
  `NAME_probe_error`: the same of true latents, which is what the probe itself gets wrong.
* `reward_error`: |predicted - true| of the single step at that horizon; `reward_head_error`: of the head on true
  latents; `reward_mean_error`: of always saying the training episodes' mean; `reward_copy_error`: the last known one.
* `coverage_90`: share of the latents' numbers that lie in the central 90 % interval of samples; `width_90`: its mean
  width; `score_90`: the interval score (Gneiting and Raftery 2007, sec. 6.2), width plus 20 times the distance of what
  lies outside, which is smallest for the true quantiles. `NAME_coverage_90` and so on: of the positions that the probe
  reads off true latents. With `residual_intervals` the same of `residual_...`: the prediction plus quantiles of the
  model's own one-step errors on training episodes, number by number, wider with the root of the steps as independent
  errors are; and a model without chance, whose samples are all equal, then has intervals of width 0.
* `NAME_painted_px`: distance of the object NAME in the decoded prediction from where it is in the true frame, in
  pixels of the model's pictures; `NAME_decoder_px`: the same of decoded true latents, what decoder and encoder get
  wrong; `NAME_copy_px`: of the last known frame; `NAME_locator_px`: of the true frame from `states`. Means over the
  windows where it is found; `NAME_not_painted`, `NAME_not_decoded`, `NAME_not_seen` are the shares where no pixel has
  its colour in the decoded prediction, the decoded true latents, and the true frame.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torchvision.utils import save_image
from tqdm import tqdm

from vjepa2_hf import VJepa2PixelDecoder, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import episode_ids, held_out_of, read_episodes
from vjepa2_hf.data.files import write_aside, write_json
from vjepa2_hf.metrics.latent_rollout.latent_rollout import LatentRollout, extrapolate
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.visualization.rollout_windows import encode_frames, window_frames


logger = logging.getLogger("evaluate_world_model")

PROBE_BYTES = 2**29  # of latents that the probe is fitted on
RESIDUAL_WINDOWS = 20  # of each training episode
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

    # Intervals
    num_samples: int = 99
    """Of a stochastic model."""
    levels: list[float] = field(default_factory=lambda: [0.5, 0.8, 0.9])
    residual_intervals: bool = False
    """Also those of the model's one-step errors, which every model has."""

    # Pictures
    decoder: str | None = None
    """Folder or Hub id of a pixel decoder trained on this model's latents."""
    picture_windows: int = 4
    """Shown in a PNG beside `output`: of each of the first episodes the window in which most changes."""
    object_colors: dict[str, list[float]] = field(default_factory=dict)
    """Red, green and blue (0 to 255) of objects to be found in pictures, by name, such as {block: [45, 90, 200]}."""
    color_distance: float = 100.0
    """Colours farther than this are not the object's; nearer ones count the more the nearer they are."""
    pixels_per_unit: float | None = None
    """Of the `state_groups` that have an object's name: x and y from the top left corner in this many pixels; null:
    positions in pictures are not compared with states."""

    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self):
        lowest = {"windows_per_episode": 1, "past_frames": 2, "probe_episodes": 2, "max_episodes": 1}
        for name, bound in lowest.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}.")
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons are {self.horizons}; expected model steps, 1 or more.")
        for name, color in self.object_colors.items():
            if len(color) != 3:
                raise ValueError(f"object_colors.{name} is {color}; expected red, green and blue, 0 to 255.")
        if self.object_colors and self.decoder is None:
            raise ValueError("object_colors are looked for in decoded pictures: give the decoder, too.")
        for level in self.levels:
            if not 0 < level < 1 or (1 - level) / 2 * (self.num_samples + 1) < 1 - 1e-9:
                raise ValueError(
                    f"levels contain {level}, whose interval {self.num_samples} samples do not have: give shares "
                    "between 0 and 1, or raise num_samples."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Episodes
# ---------------------------------------------------------------------------------------------------------------------
HeldOut = Callable[[str], bool]


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


def find_held_out(config: EvaluationConfig) -> HeldOut:
    """What tells of an episode's id whether it is held out; refuses data of which none is."""
    fraction = find_validation_fraction(config)
    held_out = held_out_of(episode_ids(config.data, config.camera), fraction)
    if fraction < 1 and not any(map(held_out, episode_ids(config.data, config.camera))):
        raise ValueError(
            f"validation_fraction={fraction} holds out no episode of {config.data!r}: give validation_fraction=1.0 to "
            "score all of them, which tells of new data only where the model was not trained on it."
        )
    return held_out


def held_out_episodes(
    config: EvaluationConfig, model: VJepa2WorldModel, held_out: HeldOut
) -> Iterator[dict[str, Any]]:
    """Episodes in model steps."""
    return read_episodes(config.data, model.config.frame_skip, config.max_episodes, config.camera, wanted=held_out)


def training_episodes(
    config: EvaluationConfig, model: VJepa2WorldModel, held_out: HeldOut
) -> Iterator[dict[str, Any]]:
    """Episodes for the probe, in model steps."""
    if config.probe_data is not None:
        return read_episodes(config.probe_data, model.config.frame_skip, config.probe_episodes, config.camera)
    return read_episodes(
        config.data,
        model.config.frame_skip,
        config.probe_episodes,
        config.camera,
        wanted=lambda name: not held_out(name),
    )


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
    config: EvaluationConfig, model: VJepa2WorldModel, processor, held_out: HeldOut
) -> tuple[LinearProbe | None, dict[str, Any]]:
    """The probe and what it was fitted on; there is none without training episodes with `states`."""
    latents, states = [], []
    frames = max(2, PROBE_BYTES // (4 * model.tokens_per_frame * model.latent_size * config.probe_episodes))
    for episode in tqdm(training_episodes(config, model, held_out), desc="probe", total=config.probe_episodes):
        if episode["states"] is None:
            return None, {}
        count = len(episode["frames"])
        chosen = np.unique(np.linspace(0, count - 1, min(count, frames)).round().astype(np.int64))
        latents.append(encode_frames(model, processor, episode["frames"][chosen]).float().flatten(1))
        states.append(torch.from_numpy(episode["states"][chosen]).to(model.device))
    if not latents:
        return None, {}
    probe, ridge = choose_probe(latents, states)
    return probe, {"episodes": len(latents), "frames": sum(map(len, latents)), "ridge": ridge}


# ---------------------------------------------------------------------------------------------------------------------
# Windows
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
    """(B, 1+P), the last known one first"""
    frames: np.ndarray
    """uint8 (B, K+P, H, W, 3)"""

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
    latents = encode_frames(model, processor, frames)
    seen = latents if model.config.freeze_encoder else encode_frames(model, processor, frames, targets=False)
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
        rewards=rows("rewards", index[:, past - 2 : -1]),
        frames=episode["frames"][index],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Positions and rewards
# ---------------------------------------------------------------------------------------------------------------------
def position_errors(
    probe: LinearProbe, latents: torch.Tensor, states: torch.Tensor, groups: dict[str, list[int]]
) -> dict[str, torch.Tensor]:
    """Distances (B, P) between true positions and those read off latents (B, P, N, D), by name."""
    found = probe(latents)
    return {
        name: (found - states)[..., columns].norm(dim=-1) for name, columns in named_columns(groups, states).items()
    }


def named_columns(groups: dict[str, list[int]], states: torch.Tensor) -> dict[str, list[int]]:
    """`state_groups`, checked against states (..., S); without any, all columns as `state`."""
    groups = groups or {"state": list(range(states.shape[-1]))}
    for name, columns in groups.items():
        if not columns or not set(columns) <= set(range(states.shape[-1])):
            raise ValueError(
                f"state_groups.{name} is {columns}, but the columns are 0 to {states.shape[-1] - 1} of the states."
            )
    return groups


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
    """Errors (B, P) of the rewards of imagined steps, of those read off true latents, and of two guesses."""

    def found(future: torch.Tensor) -> torch.Tensor:
        return model.predict_rewards(torch.cat([windows.known[:, -1:], future], dim=1), windows.future_actions)

    last, true = windows.rewards[:, :1], windows.rewards[:, 1:]
    return {
        "reward_error": (found(predicted) - true).abs(),
        "reward_head_error": (found(windows.future) - true).abs(),
        "reward_mean_error": (true - (model.config.reward_mean or 0.0)).abs(),
        "reward_copy_error": (true - last).abs(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Intervals
# ---------------------------------------------------------------------------------------------------------------------
def central_interval(samples: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends (...) of the central interval of samples (K, ...) in ascending order.

    It ends where, of another sample of the same kind, (1 - level) / 2 is expected outside on either side: at the k-th
    smallest of K samples with k = (1 - level) / 2 · (K + 1), so that few samples tell no lie.
    """
    rank = (1 - level) / 2 * (len(samples) + 1) - 1  # from 0
    low = max(0, math.floor(rank + 1e-9))
    share = max(0.0, rank - low)  # between two samples where the rank is no whole number
    ends = ((low, low + 1), (-1 - low, -2 - low))
    low_end, high_end = (torch.lerp(samples[a], samples[b], share) for a, b in ends)
    return low_end, high_end


def score_interval(
    ends: tuple[torch.Tensor, torch.Tensor], truth: torch.Tensor, level: float
) -> dict[str, torch.Tensor]:
    """`coverage`, `width` and `score` (B, P) of intervals for truth (B, P, ...), means over its numbers."""
    low, high = ends
    width, missed = high - low, (low - truth).clamp(min=0) + (truth - high).clamp(min=0)
    scores = {"coverage": (missed == 0).float(), "width": width, "score": width + 2 / (1 - level) * missed}
    return {f"{name}_{100 * level:g}": value.flatten(2).mean(dim=-1) for name, value in scores.items()}


Space = Callable[[torch.Tensor], torch.Tensor]  # latents (..., N, D) -> numbers (..., M)


def interval_spaces(config: EvaluationConfig, probe: LinearProbe | None) -> dict[str, Space]:
    """What intervals are about, by the beginning of their columns' names: the latents, and every probed position."""
    spaces: dict[str, Space] = {"": lambda latents: latents.flatten(-2)}
    if probe is not None:
        for name, columns in named_columns(config.state_groups, probe.bias).items():
            spaces[f"{name}_"] = lambda latents, columns=columns: probe(latents)[..., columns]
    return spaces


def measure_samples(instruments: "Instruments", windows: Windows) -> dict[str, torch.Tensor]:
    """Scores (B, P) of the intervals of a stochastic model's samples."""
    config, rows = instruments.config, []
    for number in range(len(windows.future)):
        samples = windows.samples(instruments.model, number, config.num_samples, instruments.generator)
        row = {}
        for prefix, space in instruments.spaces.items():
            ordered, truth = space(samples).sort(dim=0).values.unsqueeze(1), space(windows.future[number])[None]
            for level in config.levels:
                scores = score_interval(central_interval(ordered, level), truth, level)
                row |= {prefix + name: value for name, value in scores.items()}
        rows.append(row)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def measure_residual_intervals(
    instruments: "Instruments", windows: Windows, predicted: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Scores (B, P) of predictions ± one-step errors · √h, and for a model without chance of predictions ± 0."""
    rows = {}
    for prefix, space in instruments.spaces.items():
        found, truth = space(predicted), space(windows.future)
        growth = torch.arange(1, found.shape[1] + 1, device=found.device).sqrt().unsqueeze(-1)
        for level in instruments.config.levels:
            errors = central_interval(instruments.residuals[prefix], level)
            ends = {"residual_": tuple(found + growth * end for end in errors)}
            if not instruments.model.config.stochastic_dim:
                ends[""] = (found, found)
            for kind, interval in ends.items():
                scores = score_interval(interval, truth, level)
                rows |= {prefix + kind + name: value for name, value in scores.items()}
    return rows


def one_step_residuals(
    config: EvaluationConfig, model: VJepa2WorldModel, processor, held_out: HeldOut, spaces: dict[str, Space]
) -> dict[str, torch.Tensor]:
    """True minus predicted numbers (K, M) one step ahead in training episodes, in ascending order, for every space."""
    room = PROBE_BYTES // (4 * model.tokens_per_frame * model.latent_size * config.probe_episodes)
    config = dataclasses.replace(config, horizons=[1], windows_per_episode=max(1, min(RESIDUAL_WINDOWS, room)))
    errors: dict[str, list[torch.Tensor]] = {prefix: [] for prefix in spaces}
    for episode in tqdm(training_episodes(config, model, held_out), desc="residuals", total=config.probe_episodes):
        windows = cut_windows(config, model, processor, episode)
        if windows is not None:
            predicted = windows.rollout(model)
            for prefix, space in spaces.items():
                errors[prefix].append((space(windows.future) - space(predicted))[:, 0])
    count = sum(map(len, errors[""]))
    lowest = 2 / (1 - max(config.levels)) - 1
    if count < lowest - 1e-9:
        raise ValueError(
            f"the training episodes have {count} windows of one step, but residual_intervals at levels="
            f"{config.levels} need {math.ceil(lowest - 1e-9)}: give probe_data with more episodes."
        )
    return {prefix: torch.cat(parts).sort(dim=0).values for prefix, parts in errors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------
def find_object(pictures: torch.Tensor, color: list[float], reach: float) -> torch.Tensor:
    """Where the pixels of a colour are on average: pictures (..., 3, H, W) in 0 to 1 -> x, y (..., 2) in pixels.

    A pixel counts by how near its colour is, from 1 (the same) to 0 (`reach` away in 0 to 255). NaN where all pixels
    together count less than one.
    """
    distance = (255 * pictures - pictures.new_tensor(color)[:, None, None]).norm(dim=-3)
    weights = (1 - distance / reach).clamp(min=0)
    total = weights.sum(dim=(-2, -1))
    down, across = (torch.arange(size, device=weights.device) + 0.5 for size in weights.shape[-2:])
    x, y = (weights.sum(dim=-2) * across).sum(dim=-1), (weights.sum(dim=-1) * down).sum(dim=-1)
    found = torch.stack([x, y], dim=-1) / total.unsqueeze(-1)
    return found.where((total >= 1).unsqueeze(-1), torch.nan)


def object_columns(config: EvaluationConfig, name: str) -> list[int] | None:
    """The columns of `states` that say where an object is; None if it is not to be compared."""
    if config.pixels_per_unit is None:
        return None
    columns = config.state_groups.get(name, [])
    if len(columns) != 2:
        raise ValueError(
            f"pixels_per_unit is given, but state_groups.{name} is {columns or 'missing'}; expected the two columns "
            "of states that are its x and y."
        )
    return columns


def measure_pictures(instruments: "Instruments", windows: Windows, predicted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Distances (B, P) in pixels of objects in decoded pictures, and where they are not found, which is NaN there."""
    config, decoder, steps = instruments.config, instruments.decoder, predicted.shape[1]
    pictures = model_pictures(instruments.processor, windows.frames).to(predicted.device)
    painted, decoded = decoder.decode(predicted), decoder.decode(windows.future)
    if len(instruments.strips) < config.picture_windows:
        present = decoder.decode(windows.known[:, -1:])
        rows = [pictures[:, -steps - 1 :]]
        rows += [torch.cat([present, future], dim=1) for future in (decoded, painted)]
        instruments.strips.append(picture_strip(torch.stack(rows, dim=1), config.horizons))
    measured = {}
    for name, color in config.object_colors.items():
        seen = find_object(pictures[:, -steps - 1 :], color, config.color_distance)
        true, last = seen[:, 1:], seen[:, :1]
        places = {
            "painted": find_object(painted, color, config.color_distance),
            "decoder": find_object(decoded, color, config.color_distance),
            "copy": last,
        }
        columns = object_columns(config, name)
        if columns is not None and windows.states is not None:
            places["locator"] = windows.states[..., columns] * config.pixels_per_unit
        measured |= {f"{name}_{kind}_px": (place - true).norm(dim=-1) for kind, place in places.items()}
        lost = {"painted": places["painted"], "decoded": places["decoder"], "seen": true}
        measured |= {f"{name}_not_{kind}": place.isnan().any(dim=-1).float() for kind, place in lost.items()}
    return measured


def model_pictures(processor: VJepa2VideoProcessor, frames: np.ndarray) -> torch.Tensor:
    """uint8 frames (B, T, H, W, 3) -> as the model is shown them, (B, T, 3, H', W') in 0 to 1."""
    pixels = processor(list(frames), do_rescale=False, do_normalize=False, return_tensors="pt")
    return pixels["pixel_values_videos"].float() / 255


def picture_strip(rows: torch.Tensor, horizons: list[int]) -> torch.Tensor:
    """Of windows (B, rows, 1+P, 3, H, W), true ones in the first row, the one in which most changes, at the present
    and at `horizons`: (rows, columns, 3, H, W)."""
    change = (rows[:, 0, 1:] - rows[:, 0, :1]).square().flatten(1).mean(dim=-1)
    return rows[int(change.argmax())][:, [0, *horizons]].cpu()


def write_picture(path: Path, strips: list[torch.Tensor]) -> None:
    """Windows one below the other, each with its rows: true frames, decoded true latents, decoded predictions."""
    columns = strips[0].shape[1]
    with write_aside(path) as partial:
        save_image(torch.cat([strip.flatten(0, 1) for strip in strips]), partial, nrow=columns, format="png")


# ---------------------------------------------------------------------------------------------------------------------
# The whole evaluation
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class Instruments:
    """What predictions are measured with."""

    config: EvaluationConfig
    model: VJepa2WorldModel
    processor: VJepa2VideoProcessor
    generator: torch.Generator
    """Of samples."""
    probe: LinearProbe | None
    spaces: dict[str, Space]
    residuals: dict[str, torch.Tensor]
    """Errors (K, M) in ascending order by space; empty if not asked for."""
    decoder: VJepa2PixelDecoder | None
    strips: list[torch.Tensor] = field(default_factory=list)
    """Pictures of windows (3, columns, 3, H, W); filled while measuring."""


def prepare_instruments(
    config: EvaluationConfig, model: VJepa2WorldModel, processor: VJepa2VideoProcessor, held_out: HeldOut
) -> tuple[Instruments, dict[str, Any]]:
    """Fits what is fitted on training episodes, and tells on what."""
    probe, probe_facts = fit_probe(config, model, processor, held_out)
    spaces, residuals, decoder = interval_spaces(config, probe), {}, None
    if config.residual_intervals:
        residuals = one_step_residuals(config, model, processor, held_out, spaces)
    if config.decoder is not None:
        decoder = VJepa2PixelDecoder.from_pretrained(config.decoder).to(model.device).eval()
    generator = torch.Generator(device=model.device).manual_seed(config.seed)
    return Instruments(config, model, processor, generator, probe, spaces, residuals, decoder), probe_facts


def measure_windows(
    instruments: Instruments, windows: Windows, predicted: torch.Tensor, name: str
) -> dict[str, torch.Tensor]:
    """All that the model and the episode called `name` allow to measure beside the latents: (B, P) each."""
    config, model, probe = instruments.config, instruments.model, instruments.probe
    if (probe is None) != (windows.states is None):
        raise ValueError(
            f"Episode {name} has no states, but those that the probe was fitted on had."
            if windows.states is None
            else f"Episode {name} has states, but no training episode has, for the probe to be fitted on: give "
            "probe_data, episodes that the model was trained on."
        )
    if probe is not None and windows.states.shape[-1] != len(probe.bias):
        raise ValueError(
            f"Episode {name} has states of {windows.states.shape[-1]} numbers, but those that the probe was fitted on "
            f"have {len(probe.bias)}: give the episodes of one environment alone."
        )
    measured = {} if probe is None else measure_positions(config, probe, windows, predicted)
    if model.config.reward_head:
        if windows.rewards is None:
            raise ValueError(f"Episode {name} has no rewards, which those of the reward head are compared with.")
        measured |= measure_rewards(model, windows, predicted)
    if model.config.stochastic_dim:
        measured |= measure_samples(instruments, windows)
    if config.residual_intervals:
        measured |= measure_residual_intervals(instruments, windows, predicted)
    if instruments.decoder is not None:
        measured |= measure_pictures(instruments, windows, predicted)
    return measured


@torch.no_grad()
def evaluate_model(config: EvaluationConfig, model: VJepa2WorldModel, processor: VJepa2VideoProcessor) -> dict:
    """All measures; see the head of this file. With a decoder it writes the picture."""
    held_out = find_held_out(config)
    instruments, probe_facts = prepare_instruments(config, model, processor, held_out)
    found = measure_episodes(instruments, held_out)
    if not found.episodes:
        config = shorten_horizons(config, model, found)
        instruments = dataclasses.replace(instruments, config=config)
        found = measure_episodes(instruments, held_out)
    if instruments.strips:
        write_picture(Path(config.output).with_suffix(".png"), instruments.strips)
    scores = found.latent_rollout.compute(horizons=config.horizons)
    facts = {"episodes": found.episodes, "episodes_too_short": found.short, "windows": scores["windows"]}
    rows = tabulate(scores, found.tables)
    return {"model": config.model, "data": config.data, **facts, "probe": probe_facts, "horizons": rows}


@dataclass
class Measured:
    """What the windows of held-out episodes gave."""

    latent_rollout: LatentRollout = field(default_factory=LatentRollout)
    tables: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """Of other measures by name: (B, P) of each episode."""
    episodes: int = 0
    short: int = 0
    """Episodes without a window."""
    longest: int = 0
    """Frames of the longest episode, in model steps."""


def measure_episodes(instruments: Instruments, held_out: HeldOut) -> Measured:
    """All windows of held-out episodes."""
    config, model, measured = instruments.config, instruments.model, Measured()
    for episode in tqdm(held_out_episodes(config, model, held_out), desc="evaluate"):
        measured.longest = max(measured.longest, len(episode["frames"]))
        windows = cut_windows(config, model, instruments.processor, episode)
        if windows is None:
            measured.short += 1
            continue
        measured.episodes += 1
        predicted = windows.rollout(model)
        measured.latent_rollout.add_batch(
            predictions=predicted,
            references=windows.future,
            copies=windows.known[:, -1],
            previous=windows.known[:, -2],
        )
        for name, values in measure_windows(instruments, windows, predicted, episode["episode_id"]).items():
            measured.tables.setdefault(name, []).append(values.double().cpu())
    return measured


def shorten_horizons(config: EvaluationConfig, model: VJepa2WorldModel, found: Measured) -> EvaluationConfig:
    """Settings without the horizons that no held-out episode is long enough for, which a warning names.

    Raises:
        ValueError: none is left, or no held-out episode could be read.
    """
    if not found.short:
        raise ValueError(f"no held-out episode of {config.data!r} could be read; the log names what was skipped.")
    kept = [horizon for horizon in config.horizons if horizon <= found.longest - config.past_frames]
    if not kept:
        raise ValueError(
            f"no held-out episode of {config.data!r} has the {config.past_frames + min(config.horizons)} frames of a "
            f"window, {model.config.frame_skip} apart (of {found.short} the longest has {found.longest}): lower "
            f"horizons={config.horizons}, or record longer ones."
        )
    dropped = [horizon for horizon in config.horizons if horizon not in kept]
    logger.warning(
        "no held-out episode is long enough for horizons %s: the longest has %d frames, %d apart, of which %d are "
        "known; only %s are measured", dropped, found.longest, model.config.frame_skip, config.past_frames, kept,
    )  # fmt: skip
    return dataclasses.replace(config, horizons=kept)


def tabulate(scores: dict[str, Any], tables: dict[str, list[torch.Tensor]]) -> list[dict[str, float]]:
    """A row for each horizon, of the module's means and the means over windows of tables (B, P).

    Of distances in pictures over those windows where the object is found; how many are not is a column of its own.
    """
    joined = {name: torch.cat(parts) for name, parts in tables.items()}
    means = {name: (rows.nanmean if name.endswith("_px") else rows.mean)(dim=0) for name, rows in joined.items()}
    rows = []
    for place, horizon in enumerate(scores["horizon"]):
        row = {name: values[place] for name, values in scores.items() if name != "windows"}
        rows.append(row | {name: values[horizon - 1].item() for name, values in means.items()})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------
def write_result(path: Path, result: dict[str, Any]) -> None:
    """A number that is not finite, of a rollout that explodes, becomes null."""
    rows = [
        {name: value if math.isfinite(value) else None for name, value in row.items()} for row in result["horizons"]
    ]
    write_json(path, {**result, "horizons": rows}, allow_nan=False)


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
    write_result(Path(config.output), result)
    print(f"{result['windows']} windows of {result['episodes']} held-out episodes\n")
    print(markdown_table(result["horizons"]))


if __name__ == "__main__":
    main()
