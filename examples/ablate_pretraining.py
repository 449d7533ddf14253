"""What pretraining teaches, by linear probes: the demo's recipe and its ablations on three seeds, in one table.

    python examples/ablate_pretraining.py [--output runs/pretraining] [--seeds 3] [--lanes 2] [--steps 600]

Data: Moving Digits, and recordings of the two demo environments under varied appearance (random floors, colours,
distractors, light). The recipe is examples/configs/demo/pretrain.yaml; it runs on all three, also with variance and
covariance terms. Each other file of examples/configs/ablations is one row on Moving Digits. All rows have the same
number of steps and are probed with linear_probes.py on clips of other recordings. The random encoder has the recipe's
architecture and initialisation. Runs go side by side, one thread each; a stopped command goes on where it was. Results
go to `results/pretraining.json` and into docs/pretraining.md between its markers.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from demo import Road, script
from reproduce import ROOT, refuse_to_publish_nothing
from tqdm import tqdm

from vjepa2_hf.metrics.planning_success.planning_success import seed_interval
from vjepa2_hf.visualization.tables import publish_tables


ABLATED = "moving_digits"  # the dataset on which the ablations run
CONFIGS = ROOT / "examples" / "configs"
RECIPE, RANDOM, PIXELS = "pretrained", "random encoder", "raw pixels"
EVERYWHERE = {RECIPE: "demo/pretrain.yaml", "with variance and covariance terms": "ablations/pretrain_variance.yaml"}
ABLATIONS = {
    "no EMA: the online encoder as target": "ablations/pretrain_online_target.yaml",
    "pixels as target": "ablations/pretrain_pixels.yaml",
    "75 to 90 % masked": "ablations/pretrain_seed_masked.yaml",
    "predictor as wide as the encoder": "ablations/pretrain_wide_predictor.yaml",
    "layer-normed targets": "ablations/pretrain_layer_targets.yaml",
    "no bias towards neighbours": "ablations/pretrain_no_locality.yaml",
}
READOUTS = ("average", "tokens")
MEASURED = ("content", "motion")


def record_digits(split: str, output: Path) -> list[str]:
    """The command that records Moving Digits: videos for pretraining, clips for fitting and for testing probes."""
    arguments = {
        "videos": "--split train --videos 1500 --seed 0",
        "train": "--split train --videos 2000 --frames 8 --seed 1",
        "test": "--split test --videos 1000 --frames 8 --seed 2",
    }
    return script("record_moving_digits.py", *arguments[split].split(), "--output", str(output))


def record_environment(environment: str, policy: str, split: str, output: Path) -> list[str]:
    """The same for an environment under varied appearance."""
    arguments = {
        "videos": "--episodes 560 --seed 0",
        "train": "--episodes 2000 --length 7 --seed 1",
        "test": "--episodes 1000 --length 7 --seed 2",
    }
    what = f"--env {environment} --policy {policy} --varied_appearance --num_proc 1 {arguments[split]}"
    return script("record_episodes.py", *what.split(), "--output", str(output))


DATASETS = {
    "moving_digits": record_digits,
    "pushing": partial(record_environment, "vjepa2_hf/Pushing-v0", "drawn_to_block"),
    "two_rooms": partial(record_environment, "vjepa2_hf/TwoRooms-v0", "wander"),
}


class Chain:
    """The runs of one dataset, or of one dataset and seed, one after the other.

    Args:
        arguments: of the command line.
        dataset: a name of `DATASETS`.
        seed: of the runs; None for what all seeds share.
    """

    def __init__(self, arguments: argparse.Namespace, dataset: str, seed: int | None = None):
        self.data = arguments.output / dataset / "data"
        self.folder = arguments.output / dataset / ("shared" if seed is None else f"seed-{seed}")
        self.dataset, self.seed, self.steps = dataset, seed, arguments.steps

    def road(self, row: str) -> Road:
        """Of a row's own folder: rows of one seed run side by side, and would overwrite each other's times."""
        return Road(self.folder / "logs" / slug(row), threads=1, quiet=True)

    def prepare(self) -> None:
        """Recordings, and the probes of raw pixels, which depend on no seed."""
        for split in ("videos", "train", "test"):
            target = self.data / split
            self.road("data").run(
                f"record {split}", (f"record_{split}", target, DATASETS[self.dataset](split, target))
            )
        self.probe(PIXELS, "pixels")

    def run(self, row: str, config: str) -> None:
        """Pretrains one row and probes it; with the recipe's row the random encoder is probed, too."""
        name = Path(config).stem
        command = script("pretrain.py", "--config", str(CONFIGS / config), f"data={self.data / 'videos'}")
        command += [f"output_dir={self.folder / name}", f"seed={self.seed}", f"max_steps={self.steps}"]
        command += ["num_workers=0", "num_threads=1", "save_every=1000000", "resume=latest"]
        encoder = self.folder / name / "final"
        self.road(row).run(row, (name, encoder, command))
        self.probe(row, str(encoder))
        if row == RECIPE:
            self.probe(RANDOM, str(encoder), "--weights", "random", "--seed", str(self.seed))

    def probe(self, row: str, encoder: str, *more: str) -> None:
        result = self.folder / f"{slug(row)}.json"
        command = script("linear_probes.py", "--encoder", encoder, "--output", str(result), *more)
        command += ["--train", str(self.data / "train"), "--test", str(self.data / "test")]
        self.road(row).run(f"probe {row}", (f"probe_{slug(row)}", result, command))


def slug(row: str) -> str:
    """The name of a row's files."""
    return "".join(letter if letter.isalnum() else "_" for letter in row)


def run_all(arguments: argparse.Namespace) -> None:
    """Every row and seed, `lanes` at a time: `EVERYWHERE` on all datasets, `ABLATIONS` on one."""
    for dataset in DATASETS:
        Chain(arguments, dataset).prepare()
    todo = [
        (Chain(arguments, dataset, seed), row, config)
        for row, config in {**EVERYWHERE, **ABLATIONS}.items()
        for seed in range(arguments.seeds)
        for dataset in (DATASETS if row in EVERYWHERE else [ABLATED])
    ]
    with tqdm(total=len(todo), desc="runs") as progress, ThreadPoolExecutor(arguments.lanes) as lanes:

        def run(chain: Chain, row: str, config: str) -> None:
            chain.run(row, config)
            progress.update()

        for done in [lanes.submit(run, *one) for one in todo]:
            done.result()


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Means over seeds with intervals, and the values by seed, of every row that was measured."""
    results: dict[str, Any] = {"steps": arguments.steps, "datasets": {}}
    for dataset in DATASETS:
        rows = []
        for row in (PIXELS, RANDOM, *EVERYWHERE, *ABLATIONS):
            files = sorted((arguments.output / dataset).glob(f"*/{slug(row)}.json"))
            scores = [json.loads(file.read_text()) for file in files]
            if scores:
                rows.append({"name": row, "runs": len(scores)} | summarise(scores))
        results["datasets"][dataset] = rows
    refuse_to_publish_nothing(arguments.output, any(results["datasets"].values()))
    results["minutes"] = pretraining_minutes(arguments.output)
    return results


def summarise(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: by readout and what was probed, mean, interval over seeds, and values by seed."""
    row: dict[str, Any] = {}
    for readout in READOUTS:
        for name in MEASURED:
            values = [score[readout][name] for score in scores]
            low, high = seed_interval(values)
            row[f"{readout} {name}"] = {"mean": float(np.mean(values)), "low": low, "high": high, "by_seed": values}
    shares = [score["between_clips"] for score in scores]
    row["between_clips"] = None if None in shares else float(np.mean(shares))
    return row


def pretraining_minutes(output: Path) -> list[float]:
    """Shortest and longest wall time of the recipe's pretraining, as its chains took it side by side."""
    timings = [json.loads(path.read_text()) for path in output.glob(f"*/seed-*/logs/{slug(RECIPE)}/timings.json")]
    minutes = [timing[RECIPE] / 60 for timing in timings]
    return [min(minutes), max(minutes)] if minutes else []


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    columns = [f"{readout} {name}" for readout in READOUTS for name in MEASURED]
    lines = [f"{results['steps']} steps of pretraining"]
    if results["minutes"]:
        lines[0] += f", {results['minutes'][0]:.1f} to {results['minutes'][1]:.1f} minutes on one thread"
    lines[0] += "; means over seeds (95 % interval over seeds)."
    titles = [f"{name} ({readout})" for readout in READOUTS for name in MEASURED]
    for dataset, rows in results["datasets"].items():
        score = "accuracy" if dataset == "moving_digits" else "R²"
        seeds = max(row["runs"] for row in rows)
        lines += ["", f"**{dataset.replace('_', ' ').capitalize()}** ({score}; {seeds} seeds)", ""]
        lines += [f"| row | {' | '.join(titles)} | between clips |", "|---" * (len(titles) + 2) + "|"]
        for row in rows:
            share = "" if row["between_clips"] is None else f"{row['between_clips']:.2f}"
            scores = [cell(row[column], row["runs"]) for column in columns]
            lines.append(f"| {' | '.join([row['name'], *scores, share])} |")
    return "\n".join(lines)


def cell(value: dict[str, Any], runs: int) -> str:
    """Mean, with its interval if there were several runs."""
    interval = f" ({value['low']:.2f}–{value['high']:.2f})" if runs > 1 else ""
    return f"{value['mean']:.2f}{interval}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining, in every row")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "pretraining.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "pretraining.md", help="file with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    options = parser.parse_args(arguments)
    if not options.collect:
        run_all(options)
    results = collect(options)
    publish_tables(results, format_tables(results), options.results, [options.document], "pretraining")


if __name__ == "__main__":
    main()
