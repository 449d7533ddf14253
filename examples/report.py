"""Writes the demo's report: one self-contained HTML file with figures, tables and an animation.

    python examples/report.py RUN_DIR

RUN_DIR is the output of `examples/demo.py`: `episodes`, `pretrain`, `world_model`, `world_model_random` and `plan`.
Writes `RUN_DIR/report.html`, and `RUN_DIR/demo.gif` with the planner's first episodes. The report shows what the other
scripts measured; only the variance fractions of the features are measured here.
"""

import argparse
import base64
import functools
import html
import io
import json
import platform
import string
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.data.files import write_aside, write_text
from vjepa2_hf.environments import SUCCESS_PIXELS
from vjepa2_hf.environments.animation import animate_episodes
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.curves import STYLE, read_curves, require, smooth
from vjepa2_hf.visualization.feature_variance import FRACTIONS, compare_with_random, list_fractions
from vjepa2_hf.visualization.video_clips import load_processor, read_clips


PRETRAINED, RANDOM = "pretrained encoder", "random encoder"
WORLD_MODELS = {PRETRAINED: "world_model", RANDOM: "world_model_random"}
COLORS = {PRETRAINED: "#2563eb", RANDOM: "#d97706", "copy": "#94a3b8", "other": "#64748b"}
FEATURE_CLIPS, FEATURE_FRAMES = 32, 16
ANIMATED_EPISODES, GIF_EPISODES = 12, 3
PAGE = string.Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------------
# The run folder
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Contents of a run folder."""

    folder: Path
    pretraining: dict[str, np.ndarray]
    world_models: dict[str, dict[str, np.ndarray]]
    """Training curves by encoder."""
    rollout_errors: dict[str, list[dict[str, float]]]
    env: str
    rows: list[dict[str, Any]]
    """Rows of the success table."""
    states: dict[str, np.ndarray]
    """Episodes (E, T + 1, S) by row."""
    seeds: np.ndarray
    configs: dict[str, dict[str, Any]]
    timings: dict[str, float]

    @functools.cached_property
    def tasks(self) -> Tasks:
        return Tasks(self.env, self.seeds)

    def find_row(self, encoder: str) -> dict[str, Any]:
        """The row of the planner on this encoder."""
        for row in self.rows:
            if row["name"].endswith(encoder):
                return row
        raise ValueError(
            f"{self.folder / 'plan' / 'results.json'} has no row 'CEM, {encoder}'; plan with both encoders."
        )


def read_json(path: Path, script: str) -> Any:
    try:
        return json.loads(require(path, script).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error}); run examples/{script} again.") from error


def read_run(folder: Path) -> Run:
    """Reads the run folder.

    Raises:
        FileNotFoundError, ValueError: a part is missing or corrupt.
    """
    require(folder, "demo.py")
    require(folder / "episodes", "record_episodes.py")
    require(folder / "pretrain" / "final", "pretrain.py")
    train, plan = "train_world_model.py", folder / "plan"
    results = read_json(plan / "results.json", "plan.py")
    with np.load(require(plan / "episodes.npz", "plan.py")) as episodes:
        states = {name: episodes[name] for name in episodes if name != "seeds"}
        seeds = episodes["seeds"]
    configs = {}
    trainings = {"pretrain": "pretrain.py", **dict.fromkeys(WORLD_MODELS.values(), train)}
    for name, script in {**trainings, "plan": "plan.py"}.items():
        text = require(folder / name / "config.yaml", script).read_text(encoding="utf-8")
        configs[name] = yaml.safe_load(text)
    timings = folder / "timings.json"
    return Run(
        folder=folder,
        pretraining=read_curves(folder / "pretrain", "pretrain.py"),
        world_models={name: read_curves(folder / part, train) for name, part in WORLD_MODELS.items()},
        rollout_errors={
            name: read_json(folder / part / "rollout_error.json", train) for name, part in WORLD_MODELS.items()
        },
        env=results["env"],
        rows=results["rows"],
        states=states,
        seeds=seeds,
        configs=configs,
        timings=read_json(timings, "demo.py") if timings.exists() else {},
    )


def find_reached(run: Run) -> dict[str, np.ndarray]:
    """The step at which each episode reached its goal (E,), -1 if it did not, by encoder.

    Raises:
        ValueError: episodes and table are of different runs.
    """
    tasks, reached = run.tasks, {}
    for encoder in WORLD_MODELS:
        row = run.find_row(encoder)
        if row["name"] not in run.states:
            raise ValueError(
                f"{run.folder / 'plan' / 'episodes.npz'} lacks {row['name']!r}; run examples/plan.py again."
            )
        distances = tasks.env.distance_px(run.states[row["name"]], tasks.goals[:, None])
        hits = distances[:, 1:] <= SUCCESS_PIXELS
        reached[encoder] = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, -1)
        if abs((reached[encoder] > 0).mean() - row["success"]) > 1e-6:
            raise ValueError(
                f"The episodes and the table in {run.folder / 'plan'} disagree about {row['name']!r}, so they are of "
                "different runs; run examples/plan.py again."
            )
    return reached


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of the sign test; ties are left out."""
    return binomtest(wins, wins + losses).pvalue if wins + losses else 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def plot_smoothed(axis: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """A pretraining curve: raw values (thin) and their moving mean (thick)."""
    axis.plot(steps, values, color=COLORS[PRETRAINED], alpha=0.25, lw=1)
    axis.plot(steps, smooth(values), color=COLORS[PRETRAINED], lw=2)
    axis.set(xlabel="training step")


def plot_pretraining_loss(run: Run) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    plot_smoothed(axis, run.pretraining["step"], run.pretraining["loss"])
    axis.set(ylabel="loss")
    return figure


def plot_collapse(run: Run) -> Figure:
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    titles = {
        "target_std": "standard deviation of the targets",
        "effective_rank": "effective rank of the targets",
        "prediction_variation": "variation of predictions over time",
    }
    for axis, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = run.pretraining.get(name)
        if values is None:
            path = run.folder / "pretrain" / "metrics.jsonl"
            raise ValueError(f"{str(path)!r} has no {name}; run examples/pretrain.py of this version.")
        plot_smoothed(axis, run.pretraining["step"], values)
        axis.set(title=title)
        axis.set_ylim(bottom=0)
    return figure


def plot_world_model_loss(run: Run) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    for encoder, metrics in run.world_models.items():
        axis.plot(metrics["step"], metrics["loss"], color=COLORS[encoder], lw=1.6, label=encoder)
    training = run.configs["world_model"]
    switch = training["rollout_start"] * training["max_steps"]
    if 0 < switch < training["max_steps"]:
        axis.axvline(switch, color=COLORS["copy"], ls="--", lw=1)
        axis.annotate(
            " loss of rollouts from here on",
            (switch, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=9,
            color=COLORS["other"],
        )
    axis.set(xlabel="training step", ylabel="loss")
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower left")
    return figure


def plot_rollout_error(run: Run) -> Figure:
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    ratio, absolute = figure.subplots(1, 2)
    for encoder, rows in run.rollout_errors.items():
        horizons, errors, copies = (
            np.array([row[name] for row in rows]) for name in ("horizon", "error", "copy_error")
        )
        ratio.plot(horizons, errors / copies, "o-", color=COLORS[encoder], label=encoder)
        absolute.plot(horizons, errors, "o-", color=COLORS[encoder], label=encoder)
        absolute.plot(
            horizons, copies, "o--", color=COLORS[encoder], alpha=0.5, lw=1, ms=3, label="  copy the last state"
        )
    ratio.axhline(1, color=COLORS["other"], ls="--", lw=1)
    ratio.annotate("copy the last state", (horizons[-1], 1.02), ha="right", fontsize=9, color=COLORS["other"])
    ratio.set(title="error relative to copying", ylabel="ratio (lower is better)")
    absolute.set(title="error of standardized latents", ylabel="mean squared error")
    ratio.set_ylim(0, max(1.15, ratio.get_ylim()[1]))
    absolute.set_ylim(bottom=0)
    for axis in (ratio, absolute):
        axis.set(xlabel="model steps ahead", xticks=horizons)
        axis.legend(fontsize=8.5)
    return figure


def plot_success(run: Run) -> Figure:
    figure = Figure(figsize=(8, 0.45 * len(run.rows) + 0.8), layout="constrained")
    axis = figure.subplots()
    for index, row in enumerate(run.rows):
        color = next((COLORS[name] for name in WORLD_MODELS if row["name"].endswith(name)), COLORS["copy"])
        span = [[row["success"] - row["low"]], [row["high"] - row["success"]]]
        axis.barh(index, row["success"], color=color, height=0.62)
        axis.errorbar(row["success"], index, xerr=np.maximum(span, 0), color="#0f172a", capsize=4, lw=1.3)
        axis.annotate(f"{row['success']:.2f}", (1.03, index), va="center", annotation_clip=False)
    axis.set(xlim=(0, 1), xlabel="success rate with 95 % interval")
    axis.set_yticks(range(len(run.rows)), [row["name"] for row in run.rows])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure


def plot_features(run: Run) -> tuple[Figure, dict[str, Any]]:
    """The encoder's features of the first clip, and the variance fractions."""
    model = str(run.folder / "pretrain" / "final")
    encoder = VJepa2Encoder.from_pretrained(model).eval()
    clips = read_clips(run.folder / "episodes", FEATURE_FRAMES, count=FEATURE_CLIPS)
    return compare_with_random(encoder, load_processor(model, encoder), clips)


def animate_planner(run: Run, count: int) -> bytes:
    """A GIF of the first episodes of the planner with the pretrained encoder."""
    states = run.states[run.find_row(PRETRAINED)["name"]]
    return animate_episodes(run.tasks, states, find_reached(run)[PRETRAINED], count)


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def encode_figure(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def format_figure(content: str, shows: str, limits: str) -> str:
    """A figure or table with a caption: what it shows and what it does not."""
    if content.startswith("data:"):
        content = f'<img src="{content}" alt="{html.escape(shows, quote=True)}">'
    caption = f"<b>Shows:</b> {html.escape(shows)} <b>Does not show:</b> {html.escape(limits)}"
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def format_table(header: list[str], rows: list[list[str]], marked: int | None = None) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in row)
        mark = ' class="marked"' if number == marked else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def format_head(run: Run) -> str:
    rates = {
        "success rate with the pretrained encoder": run.find_row(PRETRAINED)["success"],
        "success rate with a random encoder": run.find_row(RANDOM)["success"],
    }
    tiles = [(f"{100 * rate:.0f} %", text) for text, rate in rates.items()]
    if run.timings:
        tiles.append((f"{sum(run.timings.values()) / 60:.1f} min", "from the first recorded episode to the results"))
    boxes = "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(text)}</span></div>' for value, text in tiles)
    return f"""<h1>From pixels to plans</h1>
<p class="lead">A video encoder was pretrained on recorded videos, without labels. A world model on its features
learned the effect of actions. A planner used both to reach goals given as images in {html.escape(run.env)},
without rewards. This page shows the results of one run.</p>
<div class="tiles">{boxes}</div>
<p class="note">{html.escape(compare_encoders(run))}</p>"""


def compare_encoders(run: Run) -> str:
    """Whether this run shows a gain of pretraining."""
    solved = {encoder: steps > 0 for encoder, steps in find_reached(run).items()}
    wins = int((solved[PRETRAINED] & ~solved[RANDOM]).sum())
    losses = int((solved[RANDOM] & ~solved[PRETRAINED]).sum())
    p = sign_test(wins, losses)
    rates = f"{run.find_row(PRETRAINED)['success']:.2f} and {run.find_row(RANDOM)['success']:.2f}"
    counts = (
        f"Success rates with the pretrained and the random encoder: {rates}. Tasks solved with the pretrained one "
        f"only: {wins}, with the random one only: {losses} (sign test, p = {p:.2g})."
    )
    if p >= 0.05:
        verdict = (
            "This run does not show a gain of pretraining: random features keep enough information about such simple "
            "images to plan with."
        )
    elif wins > losses:
        verdict = (
            "In this run pretraining improved planning. This is one training run in one small environment; it says "
            "nothing about others."
        )
    else:
        verdict = "In this run planning was better with random weights: pretraining did harm at this scale."
    return f"{counts} {verdict}"


def format_pretraining(run: Run) -> str:
    figure, numbers = plot_features(run)
    width = run.configs["pretrain"].get("encoder", {}).get("hidden_size")
    fractions = [[title, *(f"{values[name]:.3f}" for name in FRACTIONS)] for title, values in list_fractions(numbers)]
    return "\n".join(
        [
            "<h2>1. Pretraining</h2>",
            "<p>Parts of each video clip are masked. The encoder sees the rest, and a predictor predicts the features "
            "(not the pixels) of the masked parts. The target features come from an exponential moving average of the "
            "encoder.</p>",
            format_figure(
                encode_figure(plot_pretraining_loss(run)),
                "the error of the predicted features during pretraining (thin: raw, thick: moving mean).",
                "the quality of the features: the targets change with the encoder, so a lower loss may also mean "
                "easier targets.",
            ),
            format_figure(
                encode_figure(plot_collapse(run)),
                "whether the features collapse. A standard deviation or a variation of 0, or a rank of 1, would mean "
                f"that all clips have equal features. The highest possible rank is {width or 'the width'}.",
                "the content of the features: they may differ and still lack what a task needs.",
            ),
            format_figure(
                encode_figure(figure),
                "the first three principal components of the features of one clip as red, green and blue, before and "
                "after subtracting the mean of each position, with pretrained and with random weights.",
                "the other components. Colors of different rows do not compare: each row has its own components.",
            ),
            format_figure(
                format_table(["fraction of the variance", *FRACTIONS], fractions),
                "the fraction of the features' variance explained by the position in the image alone, by the frame "
                "alone, and by neither. Within one clip static content counts as position; over many clips it does "
                "not.",
                "which encoder is more useful: more variance beyond position is not more information.",
            ),
        ]
    )


def format_world_model(run: Run) -> str:
    skip = run.configs["world_model"]["world_model"].get("frame_skip", 1)
    windows = run.rollout_errors[PRETRAINED][0]["windows"]
    return "\n".join(
        [
            "<h2>2. World model</h2>",
            "<p>The encoder is frozen. The world model learns from recorded episodes to predict the features after an "
            "action. One model uses the pretrained encoder; another one with the same settings uses an encoder with "
            "random weights.</p>",
            format_figure(
                encode_figure(plot_world_model_loss(run)),
                "the training error of both world models. It jumps where the loss changes from one step ahead to "
                "rollouts over several steps, which are harder.",
                "which model is better: each is measured in the features of its own encoder.",
            ),
            format_figure(
                encode_figure(plot_rollout_error(run)),
                f"rollout errors on held-out episodes ({windows} windows) by the number of model steps ahead ({skip} "
                "actions each), next to copying the last state. On the left, below 1 is better than copying.",
                "planning performance: the error counts everything in the features, and absolute errors of two "
                "encoders do not compare.",
            ),
        ]
    )


def format_number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def format_planning(run: Run) -> str:
    best, num_steps = run.find_row(PRETRAINED), next(iter(run.states.values())).shape[1] - 1
    animation = animate_planner(run, count=ANIMATED_EPISODES)
    rows = [
        [
            row["name"],
            f"{row['success']:.2f}",
            f"{row['low']:.2f}–{row['high']:.2f}",
            str(row["episodes"]),
            format_number(row["steps_to_success"], 1),
            format_number(row["plan_milliseconds"], 0),
        ]
        for row in run.rows
    ]
    header = ["method", "success", "95 % interval", "episodes", "steps to success", "ms per plan"]
    return "\n".join(
        [
            "<h2>3. Planning</h2>",
            "<p>The planner gets the current image and the goal image. It samples sequences of actions, predicts "
            "their outcomes with the world model, refits its distribution to those that end closest to the goal's "
            "features (cross-entropy method, CEM), executes the first actions and plans again. All methods have the "
            f"same tasks. An episode succeeds if it is within {SUCCESS_PIXELS:g} pixels of the goal at any of its "
            f"{num_steps} steps.</p>",
            format_figure(
                format_table(header, rows, marked=run.rows.index(best)),
                "the success rate of each method. The oracle searches in the same way with the true state and "
                "physics; with its short horizon it is not an upper bound.",
                "the variation over training runs: the interval is over these episodes, with one trained model.",
            ),
            format_figure(
                encode_figure(plot_success(run)),
                "the same rates with their 95 % intervals. The random encoder is the baseline of pretraining.",
                "a test between two rows: see the top for one that compares them task by task.",
            ),
            format_figure(
                "data:image/gif;base64," + base64.b64encode(animation).decode(),
                f"the first {min(ANIMATED_EPISODES, len(run.seeds))} episodes of '{best['name']}', not selected, each "
                "next to its goal; green from the step at which it reaches the goal, red if it never does.",
                "the predictions of the planner.",
            ),
        ]
    )


def format_settings(run: Run) -> str:
    packages = ("vjepa2-hf", "torch", "transformers", "accelerate", "datasets", "numpy")
    rows = [["Python", platform.python_version()], ["machine", f"{platform.system()} {platform.machine()}"]]
    for package in packages:
        try:
            rows.append([package, metadata.version(package)])
        except metadata.PackageNotFoundError:
            rows.append([package, "from a checkout"])
    parts = ["<h2>4. Settings, versions and times</h2>"]
    for name, config in run.configs.items():
        text = html.escape(yaml.safe_dump(config, sort_keys=False))
        parts.append(f"<details><summary>{name}/config.yaml</summary><pre>{text}</pre></details>")
    parts.append(f"<details><summary>versions</summary>{format_table(['', 'version'], rows)}</details>")
    if run.timings:
        times = [[step, f"{seconds:.0f}"] for step, seconds in run.timings.items()]
        parts.append(f"<details open><summary>times</summary>{format_table(['step', 'seconds'], times)}</details>")
    return "\n".join(parts)


def write_report(folder: Path) -> Path:
    """Writes `report.html` and `demo.gif` into a run folder; returns the path of the report."""
    run = read_run(folder)
    sections = (format_head, format_pretraining, format_world_model, format_planning, format_settings)
    with matplotlib.rc_context(STYLE):
        page = PAGE.substitute(body="\n".join(section(run) for section in sections))
    with write_aside(folder / "demo.gif") as partial:
        partial.write_bytes(animate_planner(run, count=GIF_EPISODES))
    write_text(folder / "report.html", page)
    return folder / "report.html"


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, help="output of examples/demo.py, for example runs/demo"
    )
    print(f"The report is {write_report(parser.parse_args(arguments).run_dir).resolve()}")


if __name__ == "__main__":
    main()
