"""Future prediction and anticipation: models trained with and without a mask of the future.

    python examples/studies/compare_future.py [--output runs/future_prediction] [--seeds 3] [--jobs 2] [--steps 600]
        [--masks "blocks and future" ...] [--probes "encoder and predictor" "encoder" ...]

Data: Moving Digits, videos of 24 frames for pretraining and of 16 for the rest; scores are on other digits. For each
seed, two masked-latent models are pretrained on clips of 16 frames. One has masks of space-time blocks; the other also
has a mask of the clip's second half. `measure_future.py` measures how well each predicts 8 frames that follow 8.

Anticipation: `train_probe.py` predicts from the first 8 frames in which of 4 x 4 fields the digit will be in the 16th
frame. Probes see the encoder's tokens with or without those predicted for the next 8 frames, with pretrained or random
weights, and for comparison the tokens of the last 8 frames, which show the answer.

`--masks` and `--probes` run some of the rows only; tables hold all rows that are finished. Probes read the model with
the mask of the future.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import study
import yaml

from vjepa2_hf.metrics.planning_success.planning_success import t_interval


RECIPE = "demo/pretrain_digits.yaml"
PAST, FUTURE = 8, 8  # frames
HORIZONS = (1, 2, 4, 8)
BLOCKS, BOTH = "blocks", "blocks and future"
METRICS = {"mse": "Mean squared error", "l1": "Mean absolute error"}
# Recordings: split, fraction of `--clips` (on which probes are fitted), other arguments
RECORDINGS = {
    "videos": ("train", 0.75, "--frames 24 --seed 0"),
    "train": ("train", 1.0, f"--frames {PAST + FUTURE} --seed 1"),
    "test": ("test", 0.5, f"--frames {PAST + FUTURE} --seed 2"),
}
# Rows of the second table: settings of their probes
UNSEEN = {"anticipate_frames": FUTURE}
PROBES = {
    "encoder and predictor": {**UNSEEN, "predicted_frames": FUTURE},
    "encoder and predictor's last tubelet": {**UNSEEN, "predicted_frames": 2},  # published: one tubelet
    "encoder": UNSEEN,
    "random encoder and predictor": {**UNSEEN, "predicted_frames": FUTURE, "random_weights": True},
    "random encoder": {**UNSEEN, "random_weights": True},
    "encoder, of the last 8 frames": {"anticipate_frames": 0},
}
SCORES = {"accuracy": "accuracy", "class_mean_recall_at_5": "class-mean recall at 5"}


def run(options: argparse.Namespace) -> None:
    for name, (split, fraction, more) in RECORDINGS.items():
        command = f"record_moving_digits.py --split {split} --videos {round(options.clips * fraction)} {more}"
        study.RunFolder(options.output / "shared").record(options.output / "data" / name, command)
    study.run_side_by_side([partial(run_seed, options, seed) for seed in range(options.seeds)], options.jobs)


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """Pretraining and errors with both kinds of masks, then the probes."""
    runs, data = study.RunFolder(options.output / f"seed-{seed}"), options.output / "data"
    specs = yaml.safe_load((study.CONFIGS / RECIPE).read_text(encoding="utf-8"))["masks"]
    models = {}
    for masks in options.masks:
        kept = [spec for spec in specs if masks == BOTH or spec["type"] != "future"]
        settings = {"data": data / "videos", "seed": seed, "max_steps": options.steps, "masks": kept}
        settings |= {"frames_per_clip": PAST + FUTURE, **study.SHORT_RUN}
        models[masks] = runs.configured(f"pretrain {masks}", "pretrain.py", RECIPE, settings)
        result = runs.path / f"{study.slug(f'future {masks}')}.json"
        arguments = [models[masks], data / "test", result, "--past", PAST, "--num_threads", 1, "--horizons", *HORIZONS]
        runs.run(f"measure {masks}", result, "studies/measure_future.py", *map(str, arguments))
    for row in options.probes if BOTH in models else ():
        settings = {"data": data / "train", "validation_data": data / "test", "label": "place", "seed": seed}
        settings |= {"encoder": models[BOTH], "frames_per_clip": PAST, "cache_dir": runs.path / "features"}
        settings |= {"max_steps": options.probe_steps, **PROBES[row]}
        runs.train_probe(f"probe {row}", runs.path / "probes" / study.slug(row), settings)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    future, frames = {}, []
    for masks in (BLOCKS, BOTH):
        if runs := study.read_seeds(options.output, f"{study.slug(f'future {masks}')}.json", options.seeds):
            frames = runs[0]["frames"]
            future[masks] = {metric: summarize_errors(runs, metric) for metric in METRICS}
    anticipation = {}
    for row in PROBES:
        if runs := study.read_seeds(options.output, f"probes/{study.slug(row)}/results.json", options.seeds):
            found = {score: study.over_seeds([run["validation"][score] for run in runs]) for score in SCORES}
            guess = float(np.mean([run["same_answer_for_all"] for run in runs]))
            anticipation[row] = {**found, "same_answer_for_all": guess}
    return {"frames": frames, "future": future, "anticipation": anticipation} if future or anticipation else None


def summarize_errors(runs: list[dict[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """By method and frames after the past: error divided by that of copying."""
    found = [run["over_copying"][metric] for run in runs]
    return {
        method: {
            name: study.over_seeds([one[method][i] for one in found], t_interval)
            for i, name in enumerate(runs[0]["frames"])
        }
        for method in found[0]
    }


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    tables = [table for found in results["future"].values() for table in found.values()]
    most = max((len(one["by_seed"]) for table in tables for row in table.values() for one in row.values()), default=0)
    means = ": mean (95 % interval over seeds)" if most > 1 else ""
    yield f"{results['steps']} steps of pretraining; {study.counted(most, 'training seed')}{means}."
    for metric, title in METRICS.items():
        yield f"{title} divided by that of copying the last tubelet, by frames after the past:"
        yield (
            ["masks", "prediction", *results["frames"]],
            [
                [masks, method, *values.values()]
                for masks, found in results["future"].items()
                for method, values in found[metric].items()
            ],
        )
    if anticipation := results["anticipation"]:
        seeds = study.counted(max(len(row["accuracy"]["by_seed"]) for row in anticipation.values()), "seed")
        yield (
            f"Anticipation, {results['probe_steps']} steps of a probe on {results['clips']} clips ({seeds}), "
            f"masks: {BOTH}:"
        )
        rows = [["the same answer for all", next(iter(anticipation.values()))["same_answer_for_all"], None]]
        rows += [[row, *(found[score] for score in SCORES)] for row, found in anticipation.items()]
        yield ["probe on", *SCORES.values()], rows


PAGES, SETTINGS = ["docs/future_prediction.md"], study.PROBE_SETTINGS
CHOICES = {"masks": ((BOTH, BLOCKS), (BOTH, BLOCKS)), "probes": (tuple(PROBES), tuple(PROBES))}
STUDY = study.Study("future_prediction", __doc__, run, collect, format_tables, PAGES, SETTINGS, choices=CHOICES)


if __name__ == "__main__":
    STUDY.main()
