"""Pretraining continued on other videos, compared with as many steps from scratch, by linear probes.

    python examples/studies/measure_fine_tuning.py [--start runs/demo/pretrain/final] [--seeds 3] [--steps 600]

The start is the demo's encoder, which was pretrained on pushing; the new videos are Moving Digits. Each row is
pretrained there for the same number of steps and probed by `linear_probes.py` on clips of other recordings: content is
the digit, motion its direction. From scratch is `configs/demo/pretrain.yaml`; continued is
`configs/demo/pretrain_continue.yaml`, with two learning rates. Seeds are those of pretraining on the new videos and of
random weights; all continue the same start.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from typing import Any

import study


START, RANDOM, SCRATCH = "the start, as it is", "random encoder", "from scratch, peak 2e-3"
CONTINUED = {f"continued, peak {peak}": peak for peak in ("5e-4", "2e-3")}
COLUMNS = {f"{label} ({readout})": (readout, label) for readout, label in study.LINEAR_PROBES}
PAIRS = [(row, other) for row in CONTINUED for other in (SCRATCH, RANDOM)]
RECORDINGS = {
    "videos": "--split train --videos 1000 --seed 0",
    "train": "--split train --videos 1000 --frames 8 --seed 1",
    "test": "--split test --videos 500 --frames 8 --seed 2",
}


def run(options: argparse.Namespace) -> None:
    for split, arguments in RECORDINGS.items():
        study.RunFolder(options.output).record(options.output / split, f"record_moving_digits.py {arguments}")
    study.run_side_by_side([partial(run_seed, options, seed) for seed in range(options.seeds)], options.jobs)


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """Every row; the start has no seed."""
    runs = study.RunFolder(options.output / f"seed-{seed}")
    encoders = {START: options.start} if seed == 0 else {}
    settings = {"data": options.output / "videos", "seed": seed, "max_steps": options.steps, **study.SHORT_RUN}
    encoders[SCRATCH] = runs.configured(SCRATCH, "pretrain.py", "demo/pretrain.yaml", settings)
    for row, peak in CONTINUED.items():
        more = {"init_from": options.start, "learning_rate.peak": peak}
        encoders[row] = runs.configured(row, "pretrain.py", "demo/pretrain_continue.yaml", settings | more)
    for row, encoder in encoders.items():
        runs.probe_linearly(row, encoder, options.output)
    runs.probe_linearly(RANDOM, options.start, options.output, random_seed=seed)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Accuracies by row and column, and differences of rows by column, over seeds."""
    rows = {}
    for row in (RANDOM, START, SCRATCH, *CONTINUED):
        scores = study.read_seeds(options.output, f"{study.slug(row)}.json", options.seeds)
        if scores:
            found = {name: [one[readout][label] for one in scores] for name, (readout, label) in COLUMNS.items()}
            rows[row] = {name: study.over_seeds(values) for name, values in found.items()}
    if not rows:
        return None
    seeds = {len(value["by_seed"]) for row in rows if row != START for value in rows[row].values()}
    paired = options.seeds > 1 and seeds == {options.seeds}
    differences = {name: study.paired(rows, name, PAIRS) for name in COLUMNS} if paired else {}
    return {"seeds": options.seeds, "rows": rows, "differences": differences}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    yield (
        f"Moving Digits, accuracy: means over seeds (95 % interval over seeds); {results['steps']} steps of "
        "pretraining in each of the last rows."
    )
    yield study.table("encoder", results["rows"])
    if results["differences"]:
        yield "Differences, paired by seed (95 % interval):"
        by_pair = list(zip(*results["differences"].values(), strict=True))
        rows = [[f"{pair[0]['row']}, minus {pair[0]['minus']}", *map(study.difference_cell, pair)] for pair in by_pair]
        yield ["encoders", *results["differences"]], rows


SETTINGS = {
    "steps": (600, "steps of pretraining on the new videos"),
    "start": ("runs/demo/pretrain/final", "folder of a pretrained model"),
}
PAGES = ["docs/fine_tuning.md"]
STUDY = study.Study("fine_tuning", __doc__, run, collect, format_tables, PAGES, SETTINGS, model="start")


if __name__ == "__main__":
    STUDY.main()
