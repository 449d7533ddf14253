"""Accuracy of the world model's optional parts: pixel decoder, stochastic latent, reward head.

    python examples/studies/measure_optional_parts.py [--encoder runs/demo/pretrain/final]
        [--output runs/optional_parts] [--seeds 3]

On the pushing environment with the demo's recipe, measured on held-out episodes by `evaluate_world_model.py`:

- A model with a reward head on episodes with rewards, and a pixel decoder of its latents: the distance between the
  block in a decoded prediction and its true position, and the error of imagined rewards.
- Two models of episodes in which a random force pushes the agent after every action, with and without a stochastic
  latent: coverage and width of their prediction intervals, also after calibration on other held-out episodes. The
  model without one gets intervals from its one-step errors on training episodes, widened by the square root of the
  number of steps.

Without `--encoder`, an encoder is pretrained first. `OUTPUT/seed-0/world_model.png` shows decoded predictions.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import study

from vjepa2_hf.environments.appearance import IMAGE_SIZE
from vjepa2_hf.environments.pushing import PushingEnv


RANDOM_FORCE = 0.3  # 1.9 pixels per frame, 2.7 per model step: several times the error of a world model of this size
STATES = {"pusher": [0, 1], "block": [2, 3]}
EVALUATION = {"windows_per_episode": 4, "num_samples": 49, "levels": [0.5, 0.9]}
SPACES = {"latents": ("", 1), "pusher": ("pusher_", IMAGE_SIZE), "block": ("block_", IMAGE_SIZE)}  # columns, scale
MODELS = ("world_model", "deterministic", "stochastic")


def run(options: argparse.Namespace) -> None:
    """Recordings and the encoder, which the seeds share, then every seed."""
    shared = study.RunFolder(options.output)
    recordings = {"episodes": "--rewards", "random_episodes": f'--env_kwargs {{"random_force":{RANDOM_FORCE}}}'}
    for name, more in recordings.items():
        command = f"{study.ENVIRONMENTS['pushing']} --num_proc 1 {more} --episodes {options.episodes}"
        shared.record(options.output / name, command)
    encoder = options.encoder
    if not encoder:
        settings = {"data": options.output / "episodes", "resume": "latest"}
        encoder = shared.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", settings)
    study.run_side_by_side([partial(run_seed, options, encoder, seed) for seed in range(options.seeds)], options.jobs)


def run_seed(options: argparse.Namespace, encoder: Path | str, seed: int) -> None:
    runs, common = study.RunFolder(options.output / f"seed-{seed}"), {"seed": seed, "resume": "latest"}

    def train(name: str, data: str, key: str, value: Any) -> Path:
        settings = common | {"data": options.output / data, "encoder": encoder, "max_steps": options.steps}
        settings |= {"cache_dir": options.output / "latents", f"world_model.{key}": value}
        return runs.configured(name, "train_world_model.py", "demo/world_model.yaml", settings)

    def evaluate(name: str, model: Path, data: str, **more: Any) -> None:
        result = runs.path / f"{name}.json"
        settings = {"model": model, "output": result, "data": options.output / data, "state_groups": STATES}
        settings |= {"num_threads": 1, **EVALUATION, **more}
        runs.run(f"evaluate_{name}", result, "evaluate_world_model.py", *study.key_values(settings))

    model = train("world_model", "episodes", "reward_head", True)
    settings = common | {"data": options.output / "episodes", "world_model": model}
    settings["max_steps"] = options.decoder_steps
    decoder = runs.configured("decoder", "train_decoder.py", "demo/decoder.yaml", settings)
    colors = {"block": PushingEnv.plain_colors[STATES["block"][0] // 2]}
    images = {"decoder": decoder, "object_colors": colors, "pixels_per_unit": IMAGE_SIZE}
    evaluate("world_model", model, "episodes", **images)
    for name, size in (("deterministic", 0), ("stochastic", options.stochastic_dim)):
        model = train(name, "random_episodes", "stochastic_dim", size)
        evaluate(name, model, "random_episodes", residual_intervals=True)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """By model and column of its evaluation: means over seeds and values by seed, one number per horizon."""
    models: dict[str, Any] = {}
    for name in MODELS:
        runs = [run["horizons"] for run in study.read_seeds(options.output, f"{name}.json", options.seeds)]
        if not runs:
            return None
        by_seed = {column: [[row[column] for row in run] for run in runs] for column in runs[0][0]}
        means = {column: seed_means(values) for column, values in by_seed.items() if column != "horizon"}
        models[name] = {"horizon": by_seed["horizon"][0], "mean": means, "by_seed": by_seed}
    folders = [options.output, *options.output.glob("seed-*")]
    minutes = sum(sum(study.RunFolder(folder).timings.values()) for folder in folders) / 60
    return {"seeds": len(runs), "random_force": RANDOM_FORCE, "minutes": minutes, "models": models}


def seed_means(values: list[list[float | None]]) -> list[float | None]:
    """Of (seeds, horizons); None where a seed has none."""
    return [None if None in column else float(np.mean(column)) for column in zip(*values, strict=True)]


# Rows of the tables: title -> column of the evaluation; errors in pixels have 2 digits, others 3
BLOCK = {
    "decoded prediction": "block_painted_px",
    "decoded true latents": "block_decoder_px",
    "last known frame": "block_copy_px",
    "true position, of the true frame": "block_locator_px",
    "fraction without a block: decoded prediction": "block_not_painted",
    "fraction without a block: decoded true latents": "block_not_decoded",
}
REWARDS = {
    "imagined step": "reward_error",
    "true latents": "reward_head_error",
    "the last known reward": "reward_copy_error",
    "the mean reward": "reward_mean_error",
}
POSITIONS = {  # title -> model, part of the column's name
    "no random force": ("world_model", ""),
    "deterministic": ("deterministic", ""),
    "stochastic, without samples": ("stochastic", ""),
    "last known frame": ("stochastic", "copy_"),
    "true latents": ("stochastic", "probe_"),
}
INTERVALS = {  # title -> model, prefix of the columns
    "samples": ("stochastic", ""),
    "samples, calibrated": ("stochastic", "calibrated_"),  # of positions
    "one-step errors · √h around its middle": ("stochastic", "residual_"),
    "one-step errors · √h": ("deterministic", "residual_"),
    "its one future": ("deterministic", ""),
}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """One column per number of steps ahead."""
    seeds, models = results["seeds"], results["models"]
    yield f"{seeds} seed{'s' if seeds > 1 else ''}, {results['minutes']:.0f} minutes of wall time."
    horizons = [str(horizon) for horizon in models["world_model"]["horizon"]]
    means = {name: model["mean"] for name, model in models.items()}
    titles = ["pixels between the block and where it is in the true frame, steps ahead", *horizons]
    yield titles, [[title, *cells(means["world_model"], column)] for title, column in BLOCK.items()]
    yield ["pixels from the true position, as a linear probe reads it, steps ahead", *horizons], position_rows(means)
    for level in (90, 50):
        title = f"{level} % intervals: coverage, width, interval score (positions in pixels), steps ahead"
        yield [title, *horizons], interval_rows(models, level)
    if factors := list(factor_rows(means["stochastic"])):
        yield ["calibrated intervals: width divided by that of samples, steps ahead", *horizons], factors
    titles = ["error of a step's reward, steps ahead", *horizons]
    yield titles, [[title, *cells(means["world_model"], column)] for title, column in REWARDS.items()]


def cells(means: dict[str, list[float | None]], column: str) -> list[str]:
    digits = 2 if column.endswith("_px") else 3
    return ["–" if value is None else f"{value:.{digits}f}" for value in means[column]]


def position_rows(means: dict[str, Any]) -> Iterator[list[str]]:
    for (what, (space, scale)), (kind, (name, part)) in product(SPACES.items(), POSITIONS.items()):
        if space:
            yield [f"{what}: {kind}", *(f"{scale * error:.1f}" for error in means[name][f"{space}{part}error"])]


def interval_rows(models: dict[str, Any], level: int) -> Iterator[list[str]]:
    """Coverage with its interval over seeds, width and score of the latents' and the positions' intervals."""
    for (what, (space, scale)), (kind, (name, prefix)) in product(SPACES.items(), INTERVALS.items()):
        names = [f"{space}{prefix}{column}_{level}" for column in ("coverage", "width", "score")]
        if names[0] not in models[name]["mean"]:
            continue
        by_seed = models[name]["by_seed"][names[0]]
        coverage = [study.cell(study.over_seeds(list(one))) for one in zip(*by_seed, strict=True)]
        columns = [models[name]["mean"][column] for column in names[1:]]
        found = [f"{c}, {scale * w:.2g}, {scale * s:.2g}" for c, w, s in zip(coverage, *columns, strict=True)]
        yield [f"{what}: {name}, {kind}", *found]


def factor_rows(means: dict[str, list[float | None]]) -> Iterator[list[str]]:
    for what, level in product(("pusher", "block"), (90, 50)):
        if values := means.get(f"{what}_factor_{level}"):
            yield [f"{what}: {level} % intervals", *(f"{value:.2f}" for value in values)]


SETTINGS = {
    "encoder": ("", "folder of a pretrained model for images of 64 pixels; empty: one is pretrained"),
    "episodes": (560, "episodes with rewards, and as many with a random force"),
    "steps": (2000, "training steps of every world model"),
    "decoder_steps": (1000, "training steps of the decoder"),
    "stochastic_dim": (16, "size of the stochastic latent"),
}
PAGES = ["docs/world_model.md"]
STUDY = study.Study("optional_parts", __doc__, run, collect, format_tables, PAGES, SETTINGS)


if __name__ == "__main__":
    STUDY.main()
