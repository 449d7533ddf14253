"""Ablations of pretraining, by linear probes.

    python examples/studies/ablate_pretraining.py [--output runs/pretraining] [--seeds 3] [--jobs 2] [--steps 600]

Data: Moving Digits, and recordings of the two demo environments under varied appearance (random floors, colors,
distractors, light). The recipe (`configs/demo/pretrain.yaml`) runs on all three, also with variance and covariance
terms; the other rows of `configs/ablations.yaml` run on Moving Digits. All rows train for the same number of steps.
`linear_probes.py` scores them on clips of other recordings, next to raw pixels and to a random encoder with the
recipe's architecture and initialization.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import study


ABLATED = "moving_digits"  # the dataset of the ablations
DATASETS = (ABLATED, *study.ENVIRONMENTS)
RECIPE, RANDOM, PIXELS = "pretrained", "random encoder", "raw pixels"
CONFIG = "demo/pretrain.yaml"
EVERYWHERE = {RECIPE: CONFIG, "with variance and covariance terms": f"{CONFIG}#variance"}
ABLATIONS = {
    "no EMA: the online encoder as target": f"{CONFIG}#online_target",
    "pixels as target": f"{CONFIG}#pixels",
    "75 to 90 % masked": f"{CONFIG}#high_mask_ratio",
    "predictor as wide as the encoder": f"{CONFIG}#wide_predictor",
    "layer-normed targets": f"{CONFIG}#layer_targets",
    "no bias toward neighbors": f"{CONFIG}#no_locality",
}
# Videos for pretraining; clips of 8 frames to fit and to test probes
DIGITS = {
    "videos": "--split train --videos 1500 --seed 0",
    "train": "--split train --videos 2000 --frames 8 --seed 1",
    "test": "--split test --videos 1000 --frames 8 --seed 2",
}
EPISODES = {
    "videos": "--episodes 560 --seed 0",
    "train": "--episodes 2000 --length 7 --seed 1",
    "test": "--episodes 1000 --length 7 --seed 2",
}


def prepare(options: argparse.Namespace, dataset: str) -> None:
    """Records the data, and probes raw pixels, which have no seed."""
    runs, data = study.RunFolder(options.output / dataset / "shared"), options.output / dataset / "data"
    for split in DIGITS:
        command = f"record_moving_digits.py {DIGITS[split]}"
        if dataset in study.ENVIRONMENTS:
            command = f"{study.ENVIRONMENTS[dataset]} --varied_appearance --num_proc 1 {EPISODES[split]}"
        runs.record(data / split, command)
    runs.probe_linearly(PIXELS, "pixels", data)


def run_row(options: argparse.Namespace, row: str, config: str, dataset: str, seed: int) -> None:
    """Pretrains and probes a row; the recipe's row also probes the random encoder."""
    runs, data = study.RunFolder(options.output / dataset / f"seed-{seed}"), options.output / dataset / "data"
    settings = {"data": data / "videos", "seed": seed, "max_steps": options.steps, **study.SHORT_RUN}
    encoder = runs.configured(row, "pretrain.py", config, settings)
    runs.probe_linearly(row, encoder, data)
    if row == RECIPE:
        runs.probe_linearly(RANDOM, encoder, data, random_seed=seed)


def run(options: argparse.Namespace) -> None:
    """Every row and seed: `EVERYWHERE` on all datasets, `ABLATIONS` on one."""
    study.run_side_by_side([partial(prepare, options, dataset) for dataset in DATASETS], options.jobs)
    rows = [
        partial(run_row, options, row, config, dataset, seed)
        for row, config in {**EVERYWHERE, **ABLATIONS}.items()
        for seed in range(options.seeds)
        for dataset in (DATASETS if row in EVERYWHERE else [ABLATED])
    ]
    study.run_side_by_side(rows, options.jobs)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Means over seeds with intervals, and values by seed, of every row that was measured."""
    datasets: dict[str, list] = {dataset: [] for dataset in DATASETS}
    for dataset, row in product(DATASETS, (PIXELS, RANDOM, *EVERYWHERE, *ABLATIONS)):
        folder, name = options.output / dataset, f"{study.slug(row)}.json"
        scores = study.read_results([folder / "shared" / name]) + study.read_seeds(folder, name, options.seeds)
        if scores:
            datasets[dataset].append({"name": row, "runs": len(scores), **summarize(scores)})
    if not any(datasets.values()):
        return None
    timings = [study.RunFolder(path.parent).timings for path in options.output.glob("*/seed-*/timings.json")]
    minutes = sorted(found[RECIPE] / 60 for found in timings if RECIPE in found)
    return {"datasets": datasets, "minutes": [minutes[0], minutes[-1]] if minutes else []}


def summarize(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of one row by readout and label, over seeds."""
    row: dict[str, Any] = {
        f"{readout} {label}": study.over_seeds([score[readout][label] for score in scores])
        for readout, label in study.LINEAR_PROBES
    }
    fractions = [score["between_clips"] for score in scores]
    return row | {"between_clips": None if None in fractions else float(np.mean(fractions))}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    minutes = " to ".join(f"{value:.1f}" for value in results["minutes"])
    minutes = minutes and f", {minutes} minutes on one thread"
    yield f"{results['steps']} steps of pretraining{minutes}; means over seeds (95 % interval over seeds)."
    columns = {f"{readout} {label}": f"{label} ({readout})" for readout, label in study.LINEAR_PROBES}
    columns = {"name": "row", **columns, "between_clips": "between clips"}
    for dataset, rows in results["datasets"].items():
        score, seeds = "accuracy" if dataset == ABLATED else "R²", max(row["runs"] for row in rows)
        yield f"**{study.capitalized(dataset)}** ({score}; {seeds} seeds)"
        yield columns.values(), [[row[column] for column in columns] for row in rows]


SETTINGS = {"steps": (600, "steps of pretraining in every row")}
STUDY = study.Study("pretraining", __doc__, run, collect, format_tables, ["docs/pretraining.md"], SETTINGS)


if __name__ == "__main__":
    STUDY.main()
