# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Training curves of pretraining runs side by side, and a table of their first and last values.

    python examples/plot_training_curves.py runs/mine [runs/other ...] --output curves.png

Reads each run's `metrics.jsonl`; the run need not be finished. A dotted line marks the step of a collapse warning.
"""

import argparse
import itertools
import math
import vjepa2_cli  # noqa: F401 (a quick --help)
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure

from vjepa2_hf.training.monitor import CollapseWatch
from vjepa2_hf.training.run_files import read_metrics
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.curves import STYLE, read_curves, require, smooth
from vjepa2_hf.visualization.tables import format_table, publish_tables


# By name in metrics.jsonl: second line of the title
CURVES = {
    "loss": "",
    "target_std": "standard deviation of the targets",
    "effective_rank": "effective rank of the targets",
    "prediction_variation": "temporal variation of predictions",
    "gradient_norm": "gradient norm",
    "learning_rate": "",
}
LOGARITHMIC = ("gradient_norm",)
COLORS = ("#2563eb", "#d97706", "#dc2626", "#16a34a", "#7c3aed", "#64748b")


def read_run(folder: Path) -> dict[str, Any]:
    """Curves by name, and the result of `find_warning`."""
    curves = read_curves(folder, "pretrain.py")
    missing = [name for name in (*CURVES, "step", "ema_momentum") if name not in curves]
    if missing:
        path = str(folder / "metrics.jsonl")
        raise ValueError(f"{path!r} has no {missing[0]}; give the output_dir of a run of pretrain.py.")
    return {"curves": curves, **find_warning(folder)}


def find_warning(folder: Path) -> dict[str, Any]:
    """Step and text of the first collapse warning for a run's log, by the limits of this version; or None twice."""
    path = require(folder / "config.yaml", "pretrain.py")
    normalize_targets = yaml.safe_load(path.read_text(encoding="utf-8"))["normalize_targets"]
    watch = CollapseWatch()
    for line in read_metrics(folder):
        line.pop("warning", None)  # written by the run itself
        if warning := watch.update(line, normalize_targets, line["ema_momentum"]):
            return {"warned_at": line["step"], "warning": warning}
    return {"warned_at": None, "warning": None}


def plot(runs: dict[str, dict[str, Any]]) -> Figure:
    """A panel per curve, a color per run: values as logged are faint, the moving mean is solid."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flat
    for axis, (name, title) in zip(panels, CURVES.items(), strict=True):
        for color, (label, run) in zip(itertools.cycle(COLORS), runs.items()):
            steps, values = run["curves"]["step"], run["curves"][name]
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


def summarize(run: dict[str, Any]) -> dict[str, Any]:
    """Means of the first and last three values of every curve, the lowest `target_std` relative to the first, and the
    warning."""
    curves = run["curves"]
    ends = {name: [float(np.nanmean(part)) for part in (curves[name][:3], curves[name][-3:])] for name in CURVES}
    lowest = float(np.nanmin(curves["target_std"]) / curves["target_std"][0])
    warning = {name: run[name] for name in ("warned_at", "warning")}
    return {"steps": int(curves["step"][-1]), "ends": ends, "lowest_std_fraction": lowest, **warning}


def format_summary(results: dict[str, Any]) -> str:
    """The summaries as Markdown."""
    runs = results.values()
    rows = [[f"`{name}`", *(" → ".join(map(number, run["ends"][name])) for run in runs)] for name in CURVES]
    rows.append(["lowest `target_std` relative to the first", *(f"{run['lowest_std_fraction']:.2f}" for run in runs)])
    rows.append(["step of the warning", *(str(run["warned_at"] or "none") for run in runs)])
    rows.append(["steps", *(str(run["steps"]) for run in runs)])
    lines = format_table(["value (mean of the first three → of the last three)", *results], rows)
    for label, run in results.items():
        if run["warning"]:
            lines += ["", f"The warning of `{label}`: “{run['warning']}”"]
    return "\n".join(lines)


def number(value: float) -> str:
    """Two significant digits, without an exponent from 0.001 on."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run of pretrain.py")
    parser.add_argument("--output", type=Path, required=True, help="figure: png, svg or pdf")
    parser.add_argument("--results", type=Path, help="JSON file for the table's values")
    parser.add_argument("--document", type=Path, help="page with markers `training_curves`, for the table")
    options = parser.parse_args(arguments)
    runs = {folder.resolve().name: read_run(folder) for folder in options.runs}
    if len(runs) < len(options.runs):
        raise ValueError(f"The runs are {', '.join(map(str, options.runs))}, but their folders' names must differ.")
    with matplotlib.rc_context(STYLE):
        plot(runs).savefig(options.output, dpi=80)
    results = {label: summarize(run) for label, run in runs.items()}
    documents = [options.document] if options.document else []
    publish_tables(results, format_summary(results), options.results, documents, "training_curves")


if __name__ == "__main__":
    main()
