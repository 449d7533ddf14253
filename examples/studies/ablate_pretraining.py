"""Ablations of pretraining, by linear probes.

    python examples/studies/ablate_pretraining.py [--output runs/pretraining] [--seeds 3] [--jobs 2] [--steps 600]

Data: Moving Digits, and recordings of the two demo environments under varied appearance (random floors, colors,
distractors, light). The recipe (`configs/demo/pretrain.yaml`) runs on all three, also with variance and covariance
terms; the other rows of `configs/ablations.yaml` run on Moving Digits. All rows train for the same number of steps.
`linear_probes.py` scores them on clips of other recordings, next to raw pixels and to a random encoder with the
recipe's architecture and initialization.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
import study

from vjepa2_hf.visualization.tables import format_table


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
COLUMNS = [(readout, label) for readout in ("average", "tokens") for label in ("content", "motion")]
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
    runs = study.RunFolder(options.output / dataset / "shared")
    for split in DIGITS:
        target = options.output / dataset / "data" / split
        script, arguments = "record_moving_digits.py", DIGITS[split].split()
        if dataset in study.ENVIRONMENTS:
            name, policy, *_ = study.ENVIRONMENTS[dataset]
            script, arguments = "record_episodes.py", ["--env", name, "--policy", policy, "--varied_appearance"]
            arguments += ["--num_proc", "1", *EPISODES[split].split()]
        runs.run(f"record {split}", target, script, *arguments, "--output", str(target))
    probe(runs, PIXELS, "pixels")


def run_row(options: argparse.Namespace, row: str, config: str, dataset: str, seed: int) -> None:
    """Pretrains and probes a row; the recipe's row also probes the random encoder."""
    runs = study.RunFolder(options.output / dataset / f"seed-{seed}")
    settings = {"data": options.output / dataset / "data" / "videos", "seed": seed, "max_steps": options.steps}
    encoder = runs.configured(row, "pretrain.py", config, settings | study.SHORT_RUN)
    probe(runs, row, str(encoder))
    if row == RECIPE:
        probe(runs, RANDOM, str(encoder), "--weights", "random", "--seed", str(seed))


def probe(runs: study.RunFolder, row: str, encoder: str, *more: str) -> None:
    result, data = runs.path / f"{study.slug(row)}.json", runs.path.parent / "data"
    arguments = ["--encoder", encoder, "--train", str(data / "train"), "--test", str(data / "test"), *more]
    runs.run(f"probe {row}", result, "studies/linear_probes.py", *arguments, "--output", str(result))


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
    datasets = {}
    for dataset in DATASETS:
        folder, rows = options.output / dataset, []
        for row in (PIXELS, RANDOM, *EVERYWHERE, *ABLATIONS):
            name = f"{study.slug(row)}.json"
            scores = study.read_results([folder / "shared" / name]) + study.read_seeds(folder, name, options.seeds)
            rows += [{"name": row, "runs": len(scores), **summarize(scores)}] if scores else []
        datasets[dataset] = rows
    if not any(datasets.values()):
        return None
    timings = [study.RunFolder(path.parent).timings for path in options.output.glob("*/seed-*/timings.json")]
    minutes = [found[RECIPE] / 60 for found in timings if RECIPE in found]
    return {"datasets": datasets, "minutes": [min(minutes), max(minutes)] if minutes else []}


def summarize(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of one row by readout and label, over seeds."""
    row: dict[str, Any] = {
        f"{readout} {label}": study.over_seeds([score[readout][label] for score in scores])
        for readout, label in COLUMNS
    }
    fractions = [score["between_clips"] for score in scores]
    return row | {"between_clips": None if None in fractions else float(np.mean(fractions))}


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"{results['steps']} steps of pretraining"]
    if results["minutes"]:
        lines[0] += f", {results['minutes'][0]:.1f} to {results['minutes'][1]:.1f} minutes on one thread"
    lines[0] += "; means over seeds (95 % interval over seeds)."
    titles = ["row", *(f"{label} ({readout})" for readout, label in COLUMNS), "between clips"]
    for dataset, rows in results["datasets"].items():
        score = "accuracy" if dataset == ABLATED else "R²"
        seeds = max(row["runs"] for row in rows)
        cells = []
        for row in rows:
            fraction = "" if row["between_clips"] is None else f"{row['between_clips']:.2f}"
            cells.append(
                [row["name"], *(study.cell(row[f"{readout} {label}"]) for readout, label in COLUMNS), fraction]
            )
        lines += ["", f"**{study.capitalized(dataset)}** ({score}; {seeds} seeds)", "", *format_table(titles, cells)]
    return "\n".join(lines)


STUDY = study.Study(
    "pretraining",
    __doc__,
    run,
    collect,
    format_tables,
    ["docs/pretraining.md"],
    settings={"steps": (600, "steps of pretraining in every row")},
)


if __name__ == "__main__":
    STUDY.main()
