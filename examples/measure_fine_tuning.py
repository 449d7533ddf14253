"""Whether going on from an encoder of other videos is worth more than as many steps from scratch, by linear probes.

    python examples/measure_fine_tuning.py [--start runs/demo/pretrain/final] [--seeds 1] [--steps 100]

The start is the demo's encoder, which has seen pushing; the new videos are Moving Digits. Each row is pretrained there
for as many steps and probed by linear_probes.py on clips of other recordings: content is the digit, motion its way.
From scratch is examples/configs/demo/pretrain.yaml, continued demo/pretrain_continue.yaml, with two learning rates. A
stopped command goes on where it was. Results go to `results/fine_tuning.json` and into docs/fine_tuning.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ablate_pretraining import MEASURED, READOUTS, slug
from demo import Road, script
from reproduce import ROOT, refuse_to_publish_nothing
from seed_tables import claim_settings, settings_of

from vjepa2_hf.training.settings import exit_on_user_error, refuse_missing_model
from vjepa2_hf.visualization.tables import publish_tables


CONFIGS = ROOT / "examples" / "configs" / "demo"
START, RANDOM, SCRATCH = "the start, as it is", "random encoder", "from scratch, peak 2e-3"
CONTINUED = {f"continued, peak {peak}": peak for peak in ("5e-4", "2e-3")}
RECORDINGS = {
    "videos": "--split train --videos 1000 --seed 0",
    "train": "--split train --videos 1000 --frames 8 --seed 1",
    "test": "--split test --videos 500 --frames 8 --seed 2",
}


def pretrain(arguments: argparse.Namespace, seed: int, row: str) -> list[str]:
    """The command that trains a row."""
    name = "pretrain_continue.yaml" if row in CONTINUED else "pretrain.yaml"
    command = script("pretrain.py", "--config", str(CONFIGS / name), f"data={arguments.output / 'videos'}")
    command += [f"output_dir={folder_of(arguments, seed, row)}", f"seed={seed}", f"max_steps={arguments.steps}"]
    command += ["num_workers=0", "num_threads=1", "save_every=1000000", "resume=latest"]
    if row in CONTINUED:
        command += [f"init_from={arguments.start}", f"learning_rate.peak={CONTINUED[row]}"]
    return command


def folder_of(arguments: argparse.Namespace, seed: int, row: str) -> Path:
    return arguments.output / f"seed-{seed}" / slug(row)


def probe(arguments: argparse.Namespace, seed: int, row: str) -> list[str]:
    """The command that scores a row."""
    encoder = folder_of(arguments, seed, row) / "final" if row not in (START, RANDOM) else arguments.start
    command = script("linear_probes.py", "--encoder", str(encoder), "--output", str(result_of(arguments, seed, row)))
    command += ["--train", str(arguments.output / "train"), "--test", str(arguments.output / "test")]
    return command + (["--weights", "random", "--seed", str(seed)] if row == RANDOM else [])


def result_of(arguments: argparse.Namespace, seed: int, row: str) -> Path:
    return arguments.output / f"{slug(row)}-{seed}.json"


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the results of every run depend on."""
    return {"steps": arguments.steps, "start": arguments.start}


def run_all(arguments: argparse.Namespace) -> None:
    """Every row and seed; the start depends on no seed."""
    road = Road(arguments.output, threads=1, quiet=True)
    for split, settings in RECORDINGS.items():
        target = arguments.output / split
        command = script("record_moving_digits.py", *settings.split(), "--output", str(target))
        road.run(f"record {split}", (f"record_{split}", target, command))
    for seed in range(arguments.seeds):
        for row in (START, RANDOM, SCRATCH, *CONTINUED):
            if row not in (START, RANDOM):
                final = folder_of(arguments, seed, row) / "final"
                road.run(f"{row} {seed}", (f"{slug(row)}-{seed}", final, pretrain(arguments, seed, row)))
            if row != START or seed == 0:
                command = probe(arguments, seed, row)
                road.run(
                    f"probe {row} {seed}", (f"probe-{slug(row)}-{seed}", result_of(arguments, seed, row), command)
                )


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """By row and column the accuracies of all seeds."""
    rows = {}
    for row in (RANDOM, START, SCRATCH, *CONTINUED):
        files = [result_of(arguments, seed, row) for seed in range(arguments.seeds)]
        scores = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        rows[row] = {
            f"{name} ({readout})": [each[readout][name] for each in scores]
            for readout in READOUTS
            for name in MEASURED
        }
    refuse_to_publish_nothing(arguments.output, any(values for row in rows.values() for values in row.values()))
    steps = settings_of(arguments.output, settings(arguments))["steps"]
    return {"steps": steps, "seeds": arguments.seeds, "rows": rows}


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown: one accuracy a seed."""
    columns = list(next(iter(results["rows"].values())))
    lines = [f"Moving Digits, accuracy by seed; {results['steps']} steps of pretraining in each of the last rows."]
    lines += ["", f"| encoder | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, scores in results["rows"].items():
        cells = [", ".join(f"{value:.2f}" for value in scores[column]) for column in columns]
        lines.append(f"| {' | '.join([row, *cells])} |")
    return "\n".join(lines)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", default="runs/demo/pretrain/final", help="folder of a pretrained model")
    parser.add_argument("--output", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="of pretraining on the new videos")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "fine_tuning.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "fine_tuning.md", help="page with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what was measured so far")
    options = parser.parse_args(arguments)
    if not options.collect:
        refuse_missing_model(options.start)
        claim_settings(options.output, settings(options))
        run_all(options)
    results = collect(options)
    publish_tables(results, format_tables(results), options.results, [options.document], "fine_tuning")


if __name__ == "__main__":
    main()
