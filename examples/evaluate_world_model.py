# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Evaluates a saved world model on held-out episodes, next to two baselines that need no model.

    python examples/evaluate_world_model.py model=runs/demo/world_model/final data=runs/demo/episodes
    output=runs/demo/world_model/evaluation.json [key=value ...]

Writes a JSON file and prints a Markdown table with a column per horizon; docs/world_model.md explains its rows. The
baselines copy the last known latents, or extrapolate the last two linearly. As in planning, the model gets the proprio
states of known frames only.

For episodes with `states` it also measures how latent distance grows with true distance, which planning depends on.
For a model with a distance head it compares learned distances with the frames elapsed. A figure next to `output` shows
both.
"""

import dataclasses
import logging
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.utils import save_image
from tqdm import tqdm

from vjepa2_hf import VJepa2PixelDecoder, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.cameras import count_frames, take_frames
from vjepa2_hf.data.episodes import EpisodeSource, episode_ids, held_out_of, read_episodes
from vjepa2_hf.data.files import plain_numbers, write_aside, write_json
from vjepa2_hf.metrics.latent_rollout.latent_rollout import LatentRollout
from vjepa2_hf.modeling_embodiments import embodiment_index
from vjepa2_hf.specs import check_at_least
from vjepa2_hf.training.cached_windows import as_shards
from vjepa2_hf.training.episode_latents import find_cameras, held_out_fraction
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments
from vjepa2_hf.visualization import rollout_measures as measures
from vjepa2_hf.visualization.distance_curves import (
    TrueDistance,
    encode_episodes,
    format_distances,
    measure_distances,
)
from vjepa2_hf.visualization.rollout_windows import Windows, cut_windows, encode_frames
from vjepa2_hf.visualization.state_probe import LinearProbe, choose_probe
from vjepa2_hf.visualization.tables import format_table


logger = logging.getLogger("evaluate_world_model")

PROBE_BYTES = 2**29  # of latents that the probe is fitted on
RESIDUAL_WINDOWS = 20  # per training episode


@dataclass
class EvaluationConfig:
    """Settings of one evaluation."""

    model: str
    """Folder or Hub id of the world model, with its video processor."""
    data: str
    """Folder, glob or file of episode shards, a LeRobot folder, a dataset on the Hub, or HDF5 and npz files with
    `fps`."""
    output: str
    """JSON file to write."""
    camera: str | list[str] | None = None
    """Camera of episodes with several, or the key of the images in HDF5 and npz files. A list names those of a model
    of several views, in their order; null: their names in the model."""
    embodiment: int | None = None
    """Which of the model's robots acts in `data`, for a model of several."""
    fps: float | None = None
    """Frames per second of HDF5 and npz files, which are imported as shards first."""
    cache_dir: str | None = None
    """Folder of imported episodes; null: `latents` beside the model's run, which training shares (for a model on the
    Hub, beside `output`)."""
    validation_fraction: float | None = None
    """Fraction of `data` held out, as in training; null: that of the model's run. 1.0: all of `data`."""
    max_episodes: int | None = None
    """Number of held-out episodes; null: all."""
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
    """Columns of `states` that form a position, by name, such as {pusher: [0, 1], block: [2, 3]}; {}: all columns
    together, as `state`."""
    distance_env: str | None = None
    """Environment whose states these are, such as vjepa2_hf/TwoRooms-v0, for distances around its walls
    (`env.unwrapped.path_distance`); null: Euclidean distances only."""
    distance_env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments, such as {agent_radius: 3}."""

    # Intervals
    num_samples: int = 99
    """Samples of a stochastic model per window."""
    levels: list[float] = field(default_factory=lambda: [0.5, 0.8, 0.9])
    residual_intervals: bool = False
    """Also measure intervals from the model's one-step errors, which every model has."""

    # Images
    decoder: str | None = None
    """Folder or Hub id of a pixel decoder trained on this model's latents."""
    image_windows: int = 4
    """Windows shown in a PNG next to `output`: of each of the first episodes, the one that changes most."""
    object_colors: dict[str, list[float]] = field(default_factory=dict)
    """Red, green and blue (0 to 255) of objects to find in images, by name, such as {block: [45, 90, 200]}."""
    color_distance: float = 100.0
    """Colors farther away than this are not the object's; the weight of nearer ones falls with the distance."""
    pixels_per_unit: float | None = None
    """Converts the `state_groups` named like an object, x and y from the top left corner, to pixels; null: do not
    compare positions in images with states."""

    seed: int = 0
    num_threads: int | None = None

    renamed_settings = {"picture_windows": "image_windows"}

    def __post_init__(self):
        check_at_least(self, windows_per_episode=1, past_frames=2, probe_episodes=2, max_episodes=1)
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons are {self.horizons}; expected model steps, 1 or more.")
        for name, color in self.object_colors.items():
            if len(color) != 3:
                raise ValueError(f"object_colors.{name} is {color}; expected red, green and blue, 0 to 255.")
            columns = self.state_groups.get(name, [])
            if self.pixels_per_unit is not None and len(columns) != 2:
                raise ValueError(
                    f"pixels_per_unit is given, but state_groups.{name} is {columns or 'missing'}; expected the two "
                    "columns of states that are its x and y."
                )
        if self.object_colors and self.decoder is None:
            raise ValueError("object_colors need decoded images: set `decoder`, too.")
        for level in self.levels:
            if not 0 < level < 1 or (1 - level) / 2 * (self.num_samples + 1) < 1 - 1e-9:
                raise ValueError(
                    f"levels contain {level}, but {self.num_samples} samples have no such interval: give fractions "
                    "between 0 and 1, or raise num_samples."
                )


def find_held_out(config: EvaluationConfig) -> Callable[[str], bool]:
    """Whether training held out the episode of an id: by `validation_fraction`, or as in the model's run."""
    fraction = held_out_fraction(config)
    held_out = held_out_of(episode_ids(config.data, config.camera), fraction)
    if fraction < 1 and not any(map(held_out, episode_ids(config.data, config.camera))):
        raise ValueError(
            f"validation_fraction={fraction} holds out no episode of {config.data!r}: give validation_fraction=1.0 to "
            "evaluate on all of them, which measures generalization only if the model was not trained on them."
        )
    return held_out


def path_distance(env_id: str, state_size: int, **env_kwargs: Any) -> TrueDistance:
    """An environment's own distance between states."""
    from vjepa2_hf.environments.gym_tasks import make_env  # gymnasium only where it is needed

    env = make_env(env_id, **env_kwargs).unwrapped
    if not hasattr(env, "path_distance"):
        raise ValueError(f"The environment {env_id!r} has no path_distance(states, goals): leave out distance_env.")
    if env.state_dim != state_size:
        raise ValueError(
            f"distance_env is {env_id!r} with states of {env.state_dim} numbers, but the episodes' have {state_size} "
            "(0: no states): name the environment that they were recorded in."
        )
    return env.path_distance


def import_data(config: EvaluationConfig) -> EvaluationConfig:
    """Settings with HDF5 and npz files replaced by their shards."""
    run = (
        Path(config.model).resolve().parents[1]
        if Path(config.model).is_dir()
        else Path(config.output).resolve().parent
    )
    root = Path(config.cache_dir) if config.cache_dir else run / "latents"
    named = {"data": config.data, "probe_data": config.probe_data}
    sources = {name: EpisodeSource(path, camera=config.camera, fps=config.fps) for name, path in named.items() if path}
    shards = {name: as_shards(source, root) for name, source in sources.items()}
    paths = {name: source.path for name, source in shards.items()}
    return dataclasses.replace(config, **paths, camera=shards["data"].camera, fps=None)


class Evaluation:
    """A model with everything that its predictions are measured with; probe and residuals use training episodes."""

    @torch.no_grad()
    def __init__(self, config: EvaluationConfig, model: VJepa2WorldModel, processor: VJepa2VideoProcessor):
        self.config, self.model, self.processor = config, model, processor
        self.held_out = find_held_out(config)
        self.probe, self.probe_facts = self.fit_probe()
        self.spaces = measures.interval_spaces(self.probe, config.state_groups)
        if config.residual_intervals:
            count = max(1, min(RESIDUAL_WINDOWS, self._affordable_frames()))
            windows = (self.cut_windows(episode, 1, count) for episode in self.training_episodes("residuals"))
            found = (one for one in windows if one is not None)
            self.residuals = measures.one_step_residuals(model, found, self.spaces, config.levels)
        self.decoder = None
        if config.decoder is not None:
            self.decoder = VJepa2PixelDecoder.from_pretrained(config.decoder).to(model.device).eval()
        self.generator = torch.Generator(device=model.device).manual_seed(config.seed)  # of samples

    def fit_probe(self) -> tuple[LinearProbe | None, dict[str, Any]]:
        """A probe and what it was fitted on; None and {} if training episodes have no `states`."""
        latents, states, most = [], [], max(2, self._affordable_frames())
        for episode in self.training_episodes("probe"):
            if episode["states"] is None:
                return None, {}
            count = count_frames(episode["frames"])
            chosen = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
            frames = take_frames(episode["frames"], chosen)
            latents.append(encode_frames(self.model, self.processor, frames).float().flatten(1))
            states.append(torch.from_numpy(episode["states"][chosen]).to(self.model.device))
        if not latents:
            return None, {}
        probe, ridge = choose_probe(latents, states)
        return probe, {"episodes": len(latents), "frames": sum(map(len, latents)), "ridge": ridge}

    def _affordable_frames(self) -> int:
        size = 4 * self.model.tokens_per_frame * self.model.latent_size
        return PROBE_BYTES // (size * self.config.probe_episodes)

    def training_episodes(self, title: str) -> Iterator[dict[str, Any]]:
        """Episodes in model steps that the model was trained on."""
        config = self.config
        wanted = None if config.probe_data is not None else lambda name: not self.held_out(name)
        data, skip = config.probe_data or config.data, self.model.config.frame_skip
        episodes = read_episodes(data, skip, config.probe_episodes, config.camera, wanted=wanted)
        return tqdm(episodes, desc=title, total=config.probe_episodes)

    def cut_windows(self, episode: dict[str, Any], future: int, count: int) -> Windows | None:
        past, embodiment = self.config.past_frames, self.config.embodiment
        return cut_windows(self.model, self.processor, episode, past, future, count, embodiment)

    def measure(
        self, windows: Windows, predicted: torch.Tensor, images: torch.Tensor | None, episode_id: str
    ) -> tuple[measures.Table, measures.Intervals]:
        """All measures other than those of latents, (B, P) each, and intervals of a stochastic model's positions."""
        config, model, probe = self.config, self.model, self.probe
        found = None if windows.states is None else windows.states.shape[-1]
        expected = None if probe is None else len(probe.bias)
        if found != expected:
            raise ValueError(
                f"Episode {episode_id} has states of {found} numbers, but the probe's training episodes of {expected} "
                "(None: no states): give probe_data, training episodes of the same environment."
            )
        table, intervals = {}, {}
        if probe is not None:
            table |= measures.measure_positions(probe, windows, predicted, config.state_groups)
        if model.config.reward_head:
            if windows.rewards is None:
                raise ValueError(f"Episode {episode_id} has no rewards to compare the reward head with.")
            table |= measures.measure_rewards(model, windows, predicted)
        if model.config.stochastic_dim:
            arguments = (self.spaces, config.levels, config.num_samples, self.generator)
            scores, intervals = measures.measure_samples(model, windows, *arguments)
            table |= scores
        if config.residual_intervals:
            arguments = (self.spaces, config.levels, self.residuals, bool(model.config.stochastic_dim))
            table |= measures.measure_residual_intervals(windows, predicted, *arguments)
        for name, color in config.object_colors.items():
            located = None
            if config.pixels_per_unit is not None and windows.states is not None:
                located = windows.states[..., config.state_groups[name]] * config.pixels_per_unit
            table |= measures.measure_object(images, name, color, config.color_distance, located)
        return table, intervals

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Measures all windows of held-out episodes; with a decoder it also writes the PNG."""
        config, model = self.config, self.model
        scores, tables, intervals, strips = LatentRollout(), {}, {}, []
        lengths, measured, images = [], 0, None
        wanted = {"max_episodes": config.max_episodes, "camera": config.camera, "wanted": self.held_out}
        for episode in tqdm(read_episodes(config.data, model.config.frame_skip, **wanted), desc="evaluate"):
            lengths.append(count_frames(episode["frames"]))
            windows = self.cut_windows(episode, max(config.horizons), config.windows_per_episode)
            if windows is None:
                continue
            measured += 1
            predicted = windows.rollout(model)
            known = {"copies": windows.known[:, -1], "previous": windows.known[:, -2]}
            scores.add_batch(predictions=predicted, references=windows.future, **known)
            if self.decoder is not None:
                images = measures.decode_windows(self.decoder, self.processor, windows, predicted)
                if len(strips) < config.image_windows:
                    strips.append(measures.image_strip(images, config.horizons))
            table, kept = self.measure(windows, predicted, images, episode["episode_id"])
            for name, values in table.items():
                tables.setdefault(name, []).append(values.double().cpu())
            for name, values in kept.items():
                intervals.setdefault(name, []).append(values.double().cpu())
        if not measured:
            self.config = self.shorten_horizons(lengths)
            return self.run()
        if strips:  # below each other, three rows each: true frames, decoded true latents, decoded predictions
            with write_aside(Path(config.output).with_suffix(".png")) as partial:
                images = torch.cat([strip.flatten(0, 1) for strip in strips])
                save_image(images, partial, nrow=strips[0].shape[1], format="png")
        for (prefix, level), found in intervals.items():
            tables |= {prefix + name: [values] for name, values in measures.calibrate(found, level).items()}
        means = scores.compute(horizons=config.horizons)
        facts = {"episodes": measured, "episodes_too_short": len(lengths) - measured, "windows": means["windows"]}
        rows = measures.tabulate(means, tables)
        return {"model": config.model, "data": config.data, **facts, "probe": self.probe_facts, "horizons": rows}

    def measure_distances(self) -> dict[str, Any]:
        """Latent and learned distances by true distance, and the calibration of the learned one, as
        `distance_curves.measure_distances` returns them; {} without states and distance head."""
        config = self.config
        wanted = {"max_episodes": config.max_episodes, "camera": config.camera, "wanted": self.held_out}
        episodes = read_episodes(config.data, self.model.config.frame_skip, **wanted)
        frames = encode_episodes(self.model, self.processor, tqdm(episodes, desc="distances"))
        size = 0 if frames is None or frames.states is None else frames.states.shape[1]
        env, env_kwargs = config.distance_env, config.distance_env_kwargs
        path = None if env is None else path_distance(env, size, **env_kwargs)
        if frames is None:
            return {}
        groups = measures.check_columns(config.state_groups, size) if size else {}
        return measure_distances(self.model, frames, groups, path, config.seed)

    def shorten_horizons(self, lengths: list[int]) -> EvaluationConfig:
        """Settings without the horizons that no held-out episode is long enough for; a warning names them.

        `lengths` are the frames of each held-out episode, in model steps.
        """
        config, skip = self.config, self.model.config.frame_skip
        if not lengths:
            raise ValueError(f"no held-out episode of {config.data!r} could be read; the log names those skipped.")
        kept = [horizon for horizon in config.horizons if horizon <= max(lengths) - config.past_frames]
        if not kept:
            raise ValueError(
                f"no held-out episode of {config.data!r} has the {config.past_frames + min(config.horizons)} frames "
                f"of a window, {skip} apart (of {len(lengths)} the longest has {max(lengths)}): lower "
                f"horizons={config.horizons}, or record longer ones."
            )
        dropped = [horizon for horizon in config.horizons if horizon not in kept]
        logger.warning(
            "no held-out episode is long enough for horizons %s: the longest has %d frames, %d apart, of which %d are "
            "known; only %s are measured", dropped, max(lengths), skip, config.past_frames, kept,
        )  # fmt: skip
        return dataclasses.replace(config, horizons=kept)


def draw_distances(distances: dict[str, Any], output: Path) -> None:
    """Writes `<output>_distances.png`, if matplotlib is installed."""
    try:
        from vjepa2_hf.visualization.distance_figures import plot_distances
    except ImportError as error:
        logger.warning("distances are not drawn: %s; pip install 'vjepa2-hf[demo]'", error)
        return
    with write_aside(output.with_name(f"{output.stem}_distances.png")) as partial:
        plot_distances(distances).savefig(partial, format="png", dpi=130)


@exit_on_user_error
def main() -> None:
    config = parse_arguments(EvaluationConfig, __doc__)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VJepa2WorldModel.from_pretrained(config.model).to(device).eval()
    embodiment_index(model.config, config.embodiment)  # refuses one that is missing or unknown
    config = dataclasses.replace(config, camera=find_cameras(config.data, config.camera, model.config))
    evaluation = Evaluation(import_data(config), model, VJepa2VideoProcessor.from_pretrained(config.model))
    result = {**evaluation.run(), "data": config.data, "distances": evaluation.measure_distances()}
    rows = result["horizons"]
    write_json(config.output, plain_numbers(result))
    print(f"{result['windows']} windows of {result['episodes']} held-out episodes\n")
    cells = [[name, *(f"{row[name]:.3g}" for row in rows)] for name in rows[0] if name != "horizon"]
    print("\n".join(format_table(["steps ahead", *(str(row["horizon"]) for row in rows)], cells)))
    if result["distances"]:
        print(f"\n{format_distances(result['distances'])}")
        draw_distances(result["distances"], Path(config.output))


if __name__ == "__main__":
    main()
