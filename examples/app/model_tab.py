"""The tab Model: its card, training curves, rollout errors, and the calibration of its distance."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import matplotlib
import numpy as np
from huggingface_hub import ModelCard
from look_tab import say, show_plot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from uploads import hide_paths, sentence_of

from vjepa2_hf.environments.shared_models import SharedModels
from vjepa2_hf.visualization.curves import STYLE, read_curves, smooth
from vjepa2_hf.visualization.tables import format_table


BLUE, ORANGE, GRAY = "#2563eb", "#d97706", "#64748b"
LOSSES = {"teacher_forcing_loss": "one step ahead", "rollout_loss": "rollouts"}
CURVES = {  # names in metrics.jsonl: titles
    "loss": "loss",
    "target_std": "standard deviation of the targets",
    "effective_rank": "effective rank of the targets",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
}


def plot_panels(panels: Sequence[Callable[[Axes], None]]) -> str:
    """A figure for each panel, side by side where the page is wide enough, as HTML."""
    shown = []
    for panel in panels:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.6, 2.9), layout="constrained")
            axis = figure.subplots()
            panel(axis)
            shown.append(show_plot(lambda figure=figure: figure, axis.get_title(), wide=False))
    cells = "".join(f'<div style="flex:1 1 300px;max-width:520px">{part}</div>' for part in shown)
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cells}</div>'


def plot_curves(run: Path) -> str:
    """The curves of a run's `metrics.jsonl` that there are; the two losses of a world model in one panel."""
    curves = read_curves(run, "train_world_model.py")
    curves = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    losses = {name: label for name, label in LOSSES.items() if name in curves}

    def panel(axis: Axes, name: str) -> None:
        lines = losses if name == "loss" and len(losses) == 2 else {name: ""}
        for color, (line, label) in zip((BLUE, ORANGE), lines.items(), strict=False):
            known = np.isfinite(curves[line])
            steps, values = curves["step"][known], curves[line][known]
            axis.plot(steps, values, color=color, alpha=0.25, lw=1)
            axis.plot(steps, smooth(values), color=color, lw=2, label=label)
        if len(lines) > 1:
            axis.legend()
        axis.set(title=CURVES[name], xlabel="training step")
        axis.set_ylim(bottom=0)

    return plot_panels([partial(panel, name=name) for name in CURVES if name in curves])


def tabulate_rollout(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """The errors of `rollout_error.json` as a figure and as a Markdown table."""
    horizons, errors, copies = (np.array([row[name] for row in rows]) for name in ("horizon", "error", "copy_error"))

    def absolute(axis: Axes) -> None:
        axis.plot(horizons, errors, "o-", color=BLUE, label="the model")
        axis.plot(horizons, copies, "o--", color=GRAY, lw=1, ms=4, label="copying the last state")
        axis.set(title="rollout error", xlabel="model steps ahead", ylabel="mean squared error", xticks=horizons)
        axis.set_ylim(bottom=0)
        axis.legend()

    def relative(axis: Axes) -> None:
        axis.plot(horizons, errors / copies, "o-", color=BLUE)
        axis.axhline(1, color=GRAY, ls="--", lw=1)
        axis.set(
            title="rollout error relative to copying", xlabel="model steps ahead", ylabel="ratio", xticks=horizons
        )
        axis.set_ylim(bottom=0)

    titles = ("model steps ahead", "error", "error of copying", "ratio", "cosine similarity")
    table = [
        (str(row["horizon"]), f"{row['error']:.3f}", f"{row['copy_error']:.3f}")
        + (f"{row['error'] / row['copy_error']:.2f}", f"{row['cosine']:.3f}")
        for row in rows
    ]
    windows = f"Errors of standardized latents on {rows[0]['windows']} held-out windows; lower is better."
    return plot_panels([absolute, relative]), "\n".join([windows, "", *format_table(titles, table)])


def tabulate_distance(found: dict[str, Any]) -> tuple[str, str]:
    """The calibration of a distance head in `distance.json` as a figure and as a Markdown table."""
    rows = found["held_out"]["rows"]
    elapsed = np.array([(row["from"] + row["to"]) / 2 for row in rows])

    def panel(axis: Axes) -> None:
        axis.plot(elapsed, elapsed, "--", color=GRAY, lw=1, label="frames elapsed")
        axis.plot(elapsed, [row["predicted"] for row in rows], "o-", color=BLUE, label="learned distance")
        axis.set(title="learned distance", xlabel="frames elapsed between two frames", ylabel="frames")
        axis.legend()

    spans = [str(row["from"]) if row["from"] == row["to"] else f"{row['from']}–{row['to']}" for row in rows]
    table = [(span, f"{row['predicted']:.1f}", str(row["pairs"])) for span, row in zip(spans, rows, strict=True)]
    lines = format_table(("frames elapsed", "learned distance, mean", "pairs"), table)
    correlation = f"Rank correlation with the frames elapsed: {found['held_out']['rank_correlation']:.2f}"
    pairs = f"{found['held_out']['pairs']} held-out pairs. The frames elapsed are an upper bound of the distance."
    return plot_panels([panel]), "\n".join([f"{correlation}, on {pairs}", "", *lines])


def read_card(model: str) -> str:
    folder = Path(model)
    if folder.is_dir() and not (folder / "README.md").is_file():
        return "This model has no card (README.md)."
    return hide_paths(ModelCard.load(folder / "README.md" if folder.is_dir() else model).text)


def build(models: SharedModels) -> None:
    """The tab's components, inside `gr.Blocks`. All of them are read once, when the app starts."""
    run = models.parts.run
    metrics = {"Training": "metrics.jsonl", "Rollout error": "rollout_error.json", "Learned distance": "distance.json"}
    present = [title for title, name in metrics.items() if run is not None and (run / name).is_file()]
    if len(present) < len(metrics):
        missing = ", ".join(f"{title.lower()} ({metrics[title]})" for title in metrics if title not in present)
        gr.HTML(say(f"Not measured for this model, or not beside it: {missing}."))
    for title in present:
        with gr.Accordion(title, open=True):
            try:
                show_measured(run, metrics[title])
            except Exception as error:
                gr.HTML(say(sentence_of(error)))
    with gr.Accordion("Model card", open=True):
        gr.Markdown(read_card(models.parts.model), elem_id="model-card", elem_classes="vj-text")


def show_measured(run: Path, name: str) -> None:
    if name == "metrics.jsonl":
        gr.HTML(plot_curves(run), elem_id="model-curves")
        return
    content = json.loads((run / name).read_text(encoding="utf-8"))
    figure, table = {"rollout_error.json": tabulate_rollout, "distance.json": tabulate_distance}[name](content)
    gr.HTML(figure, elem_id=f"model-{name.split('.')[0]}")
    gr.Markdown(table, elem_classes="vj-text")
