"""Draws the training curves of pretraining runs side by side, and says in a table where they began and ended.

    python examples/plot_training_curves.py runs/mine [runs/other ...] --output curves.png

It reads each run's `metrics.jsonl`, of finished runs and of runs that still go on; a dotted line is the step at which
a run warns of collapse. The page's own example (docs/training_curves.md says how its runs were made):

    python examples/plot_training_curves.py runs/curves/healthy runs/curves/narrowing runs/curves/collapsing \\
        --output docs/training_curves.png --document docs/training_curves.md --results results/training_curves.json
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure

from vjepa2_hf.training.monitor import CollapseWatch
from vjepa2_hf.training.run import read_metrics
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.curves import STYLE, read_curves, require, smooth
from vjepa2_hf.visualization.tables import write_between_markers


# As pretrain.py logs them
CURVES = {
    "loss": "",
    "target_std": "deviation of the targets",
    "effective_rank": "effective rank of the targets",
    "prediction_variation": "variation of predictions over time",
    "gradient_norm": "norm of the gradient",
    "learning_rate": "",
}
LOGARITHMIC = ("gradient_norm",)
COLORS = ("#2563eb", "#d97706", "#dc2626", "#16a34a", "#7c3aed", "#64748b")


def read_run(folder: Path) -> dict[str, Any]:
    """Curves by name, and what `find_warning` finds."""
    curves = read_curves(folder, "pretrain.py")
    missing = [name for name in (*CURVES, "step", "ema_momentum") if name not in curves]
    if missing:
        raise ValueError(
            f"{str(folder / 'metrics.jsonl')!r} has no {missing[0]}; give the output_dir of a run of pretrain.py."
        )
    return {"curves": curves, **find_warning(folder)}


def find_warning(folder: Path) -> dict[str, Any]:
    """Where a run with this log warns, by this version's limits: `warned_at`, a step, and `warning`, or None twice."""
    path = require(folder / "config.yaml", "pretrain.py")
    normalize_targets = yaml.safe_load(path.read_text(encoding="utf-8"))["normalize_targets"]
    watch = CollapseWatch()
    for line in read_metrics(folder):
        line.pop("warning", None)  # of the run itself
        if warning := watch.update(line, normalize_targets, line["ema_momentum"]):
            return {"warned_at": line["step"], "warning": warning}
    return {"warned_at": None, "warning": None}


def draw(runs: dict[str, dict[str, Any]]) -> Figure:
    """A panel for each curve, a colour for each run; faint as logged, strong smoothed."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flat
    for axis, (name, title) in zip(panels, CURVES.items(), strict=True):
        for number, (label, run) in enumerate(runs.items()):
            color, steps, values = COLORS[number % len(COLORS)], run["curves"]["step"], run["curves"][name]
            axis.plot(steps, values, color=color, alpha=0.25, lw=1)
            axis.plot(steps, smooth(values), color=color, lw=1.8, label=label)
            if run["warned_at"] is not None:
                axis.axvline(run["warned_at"], color=color, ls=":", lw=1)
        axis.set_title(f"{name}\n{title}")
        if name in LOGARITHMIC:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    for axis in figure.axes[3:]:
        axis.set_xlabel("training step")
    figure.axes[0].legend(fontsize=8.5)
    return figure


def summarise(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of each run its first and last reading of every curve (of the loss and the norm the mean of three), the lowest
    deviation as a share of the first, and the warning."""
    found = {}
    for label, run in runs.items():
        curves = run["curves"]
        ends = {name: [float(np.nanmean(part)) for part in (curves[name][:3], curves[name][-3:])] for name in CURVES}
        deviation = curves["target_std"]
        found[label] = {
            "steps": int(curves["step"][-1]),
            "ends": ends,
            "lowest_std_share": float(np.nanmin(deviation) / deviation[0]),
            "warned_at": run["warned_at"],
            "warning": run["warning"],
        }
    return found


def format_table(results: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines = [f"| number (mean of the first three readings → of the last three) | {' | '.join(results)} |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for name in CURVES:
        ends = [run["ends"][name] for run in results.values()]
        lines.append(f"| `{name}` | {' | '.join(f'{number(a)} → {number(b)}' for a, b in ends)} |")
    shares = [f"{run['lowest_std_share']:.2f}" for run in results.values()]
    lines.append(f"| lowest `target_std` as a share of the first | {' | '.join(shares)} |")
    warned = [str(run["warned_at"] or "none") for run in results.values()]
    lines.append(f"| step of the warning | {' | '.join(warned)} |")
    steps = [str(run["steps"]) for run in results.values()]
    lines.append(f"| steps | {' | '.join(steps)} |")
    for label, run in results.items():
        if run["warning"]:
            lines += ["", f"What `{label}` says: “{run['warning']}”"]
    return "\n".join(lines)


def number(value: float) -> str:
    """Two significant digits, without an exponent where a reader needs none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run of pretrain.py")
    parser.add_argument("--output", type=Path, required=True, help="picture: png, svg or pdf")
    parser.add_argument("--results", type=Path, help="JSON file for the table's numbers")
    parser.add_argument("--document", type=Path, help="page with markers `training_curves`, for the table")
    options = parser.parse_args(arguments)
    runs = {folder.resolve().name: read_run(folder) for folder in options.runs}
    if len(runs) < len(options.runs):
        raise ValueError(f"The runs are {', '.join(map(str, options.runs))}, but their folders' names must differ.")
    with matplotlib.rc_context(STYLE):
        draw(runs).savefig(options.output, dpi=80)
    results = summarise(runs)
    if options.results:
        options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.document:
        write_between_markers(format_table(results), options.document, "training_curves")
    print(format_table(results))


if __name__ == "__main__":
    main()
