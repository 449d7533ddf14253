"""Writes a demo's report: one self-contained HTML file with curves, pictures, a table and an animation.

    python examples/report.py RUN_DIR

RUN_DIR is what `examples/demo.py` leaves: `episodes`, `pretrain`, `world_model`, `world_model_random` and `plan`. The
result is `RUN_DIR/report.html`. It draws and compares what the other scripts measured, and measures nothing itself but
the shares of variance under the picture of the features.
"""

import argparse
import base64
import functools
import html
import io
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from vjepa2_hf import VJepa2Encoder
from vjepa2_hf.data.files import write_text
from vjepa2_hf.environments import SUCCESS_PIXELS
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.curves import STYLE, read_curves, require, smooth
from vjepa2_hf.visualization.feature_variance import FRACTIONS, compare_with_random, list_fractions
from vjepa2_hf.visualization.video_clips import load_processor, read_clips


PRETRAINED, RANDOM = "pretrained encoder", "random encoder"
WORLD_MODELS = {PRETRAINED: "world_model", RANDOM: "world_model_random"}
COLORS = {PRETRAINED: "#2563eb", RANDOM: "#d97706", "copy": "#94a3b8", "other": "#64748b"}
PICTURE_CLIPS, PICTURE_FRAMES = 32, 16
GREEN, RED, INK = (22, 163, 74), (220, 38, 38), (71, 85, 105)


# ---------------------------------------------------------------------------------------------------------------------
# What a run left
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """The parts of a run folder that the report shows."""

    folder: Path
    pretraining: dict[str, np.ndarray]
    world_models: dict[str, dict[str, np.ndarray]]
    """Training curves by encoder."""
    rollout_errors: dict[str, list[dict[str, float]]]
    env: str
    rows: list[dict[str, Any]]
    """Of the success table."""
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
        raise ValueError(f"{str(path)!r} is not whole JSON ({error}); run examples/{script} again.") from error


def read_run(folder: Path) -> Run:
    """Everything the report needs.

    Raises:
        FileNotFoundError, ValueError: a part is missing or broken, in one sentence.
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
    """By encoder, the step at which each episode first reached its goal (E,), -1 where it did not.

    Raises:
        ValueError: the episodes are not those of the table.
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
                f"The episodes and the table in {run.folder / 'plan'} disagree about {row['name']!r}: they are of "
                "different runs; run examples/plan.py again."
            )
    return reached


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of a difference as large as this, were both equally good (exact, ties left out)."""
    decided = wins + losses
    tail = sum(math.comb(decided, k) for k in range(min(wins, losses) + 1)) / 2**decided
    return min(1.0, 2 * tail)


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def draw_pretraining_loss(run: Run) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    steps, loss = run.pretraining["step"], run.pretraining["loss"]
    axis.plot(steps, loss, color=COLORS[PRETRAINED], alpha=0.25, lw=1)
    axis.plot(steps, smooth(loss), color=COLORS[PRETRAINED], lw=2)
    axis.set(xlabel="training step", ylabel="loss")
    return figure


def draw_collapse(run: Run) -> Figure:
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    titles = {
        "target_std": "deviation of the targets",
        "effective_rank": "effective rank of the targets",
        "prediction_variation": "variation of predictions over time",
    }
    for axis, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = run.pretraining.get(name)
        if values is None:
            path = run.folder / "pretrain" / "metrics.jsonl"
            raise ValueError(f"{str(path)!r} has no {name}; run examples/pretrain.py of this version.")
        axis.plot(run.pretraining["step"], values, color=COLORS[PRETRAINED], alpha=0.25, lw=1)
        axis.plot(run.pretraining["step"], smooth(values), color=COLORS[PRETRAINED], lw=2)
        axis.set(xlabel="training step", title=title)
        axis.set_ylim(bottom=0)
    return figure


def draw_world_model_loss(run: Run) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    for encoder, metrics in run.world_models.items():
        axis.plot(metrics["step"], metrics["loss"], color=COLORS[encoder], lw=1.6, label=encoder)
    training = run.configs["world_model"]
    switch = training["rollout_start"] * training["max_steps"]
    if 0 < switch < training["max_steps"]:
        axis.axvline(switch, color=COLORS["copy"], ls="--", lw=1)
        axis.annotate(
            " from here on: loss of rollouts",
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


def draw_rollout_error(run: Run) -> Figure:
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
    ratio.set(title="error, as a part of that of copying", ylabel="ratio (lower is better)")
    absolute.set(title="error of a standardised latent", ylabel="mean squared error")
    ratio.set_ylim(0, max(1.15, ratio.get_ylim()[1]))
    absolute.set_ylim(bottom=0)
    for axis in (ratio, absolute):
        axis.set(xlabel="model steps ahead", xticks=horizons)
        axis.legend(fontsize=8.5)
    return figure


def draw_success(run: Run) -> Figure:
    figure = Figure(figsize=(8, 0.45 * len(run.rows) + 0.8), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(run.rows):
        color = next((COLORS[name] for name in WORLD_MODELS if row["name"].endswith(name)), COLORS["copy"])
        span = [[row["success"] - row["low"]], [row["high"] - row["success"]]]
        axis.barh(place, row["success"], color=color, height=0.62)
        axis.errorbar(row["success"], place, xerr=np.maximum(span, 0), color="#0f172a", capsize=4, lw=1.3)
        axis.annotate(f"{row['success']:.2f}", (1.03, place), va="center", annotation_clip=False)
    axis.set(xlim=(0, 1), xlabel="share of episodes that reach the goal, with 95 % interval")
    axis.set_yticks(range(len(run.rows)), [row["name"] for row in run.rows])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure


def draw_features(run: Run) -> tuple[Figure, dict[str, Any]]:
    """The encoder's features over the first clip, and the shares of variance."""
    model = str(run.folder / "pretrain" / "final")
    encoder = VJepa2Encoder.from_pretrained(model).eval()
    clips = read_clips(run.folder / "episodes", PICTURE_FRAMES, count=PICTURE_CLIPS)
    return compare_with_random(encoder, load_processor(model, encoder), clips)


def draw_cell(picture: np.ndarray, goal: np.ndarray, title: str, color: tuple[int, int, int]) -> Image.Image:
    """An episode's picture beside its goal, each (H, W, 3), framed, with a line of text above."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (2 * width + 14, height + 26), (255, 255, 255))
    draw = ImageDraw.Draw(cell)
    draw.text((4, 2), title, fill=color, font=ImageFont.load_default(size=12))
    draw.rectangle((2, 18, 2 * width + 11, height + 23), fill=color)
    cell.paste(Image.fromarray(picture), (5, 21))
    cell.paste(Image.fromarray(goal), (width + 9, 21))
    return cell


def animate_episodes(
    tasks: Tasks, states: np.ndarray, reached: np.ndarray, count: int = 12, columns: int = 3, scale: int = 2
) -> bytes:
    """The first episodes as an animated GIF, each beside its goal; one that has reached it stands still.

    Args:
        states: (E, T + 1, S).
        reached: (E,) steps, -1 for never.
    """
    count = min(count, len(states))
    last = states.shape[1] - 1
    goals = tasks.goal_images[:count].repeat(scale, axis=1).repeat(scale, axis=2)
    frames = []
    for step in range(last + 1):
        cells = []
        for episode in range(count):
            done = 0 < reached[episode] <= step
            shown = reached[episode] if done else step
            picture = tasks.env.render_state(states[episode, shown], tasks.appearances[episode])
            picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            title, color = f"step {step}   |   goal", INK
            if done:
                title, color = f"reached at step {shown}   |   goal", GREEN
            elif step == last:
                title, color = "not reached   |   goal", RED
            cells.append(draw_cell(picture, goals[episode], title, color))
        width, height = cells[0].size
        sheet = Image.new("RGB", (width * min(columns, count), height * -(-count // columns)), (255, 255, 255))
        for place, cell in enumerate(cells):
            sheet.paste(cell, (place % columns * width, place // columns * height))
        frames.append(sheet)
    # One palette for all frames: without it colours would flicker, and every frame would be stored whole
    samples = np.concatenate([np.asarray(frames[place]) for place in (0, len(frames) // 2, -1)])
    palette = Image.fromarray(samples).quantize(192, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [800] + [160] * (len(frames) - 2) + [2500]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vjepa2_hf: from pixels to plans</title>
<style>
body {{ margin: 0; background: #f1f5f9; color: #1e293b; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }}
main {{ max-width: 960px; margin: 0 auto; padding: 2.5rem 1.2rem 4rem; }}
h1 {{ font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }}
h2 {{ font-size: 1.35rem; margin: 2.8rem 0 .3rem; letter-spacing: -.01em; }}
p {{ margin: .5rem 0; max-width: 46rem; }}
.lead {{ color: #475569; font-size: 1.08rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.6rem 0; }}
.tile {{ background: #fff; border-radius: 12px; padding: .9rem 1.1rem; box-shadow: 0 1px 3px #0f172a1a; }}
.tile b {{ display: block; font-size: 1.75rem; letter-spacing: -.02em; line-height: 1.25; }}
.tile span {{ color: #64748b; font-size: .86rem; }}
.note {{ background: #fffbeb; border-left: 4px solid #f59e0b; border-radius: 6px; padding: .7rem 1.1rem;
  max-width: none; }}
figure {{ background: #fff; border-radius: 12px; margin: 1rem 0; padding: 1.1rem; box-shadow: 0 1px 3px #0f172a1a; }}
figure img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; }}
figcaption {{ color: #475569; font-size: .92rem; margin-top: .8rem; }}
figcaption b {{ color: #1e293b; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }}
th, td {{ text-align: right; padding: .45rem .7rem; border-bottom: 1px solid #e2e8f0; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ color: #64748b; font-weight: 600; font-size: .85rem; }}
tr.marked td {{ background: #eff6ff; font-weight: 600; }}
details {{ background: #fff; border-radius: 12px; padding: .7rem 1.1rem; margin: .6rem 0;
  box-shadow: 0 1px 3px #0f172a1a; }}
summary {{ cursor: pointer; font-weight: 600; }}
pre {{ overflow-x: auto; font-size: .84rem; line-height: 1.4; }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def encode_figure(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def format_figure(content: str, shows: str, limits: str) -> str:
    """A figure (an image's data, or a table) with what it shows and what it does not."""
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
        "reach the goal, planning with the pretrained encoder": run.find_row(PRETRAINED)["success"],
        "with a random encoder instead": run.find_row(RANDOM)["success"],
    }
    tiles = [(f"{100 * rate:.0f} %", text) for text, rate in rates.items()]
    if run.timings:
        tiles.append((f"{sum(run.timings.values()) / 60:.1f} min", "from the first recorded episode to the table"))
    boxes = "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(text)}</span></div>' for value, text in tiles)
    return f"""<h1>From pixels to plans</h1>
<p class="lead">A video encoder learned to see from recorded videos alone; a world model learned, on its features, what
actions change; and a planner used both to reach goals given as pictures in {html.escape(run.env)}. No label and no
reward was used. This page shows what came of this one run.</p>
<div class="tiles">{boxes}</div>
<p class="note">{html.escape(compare_encoders(run))}</p>"""


def compare_encoders(run: Run) -> str:
    """The honest sentence: whether this run shows that pretraining helps."""
    solved = {encoder: steps > 0 for encoder, steps in find_reached(run).items()}
    wins = int((solved[PRETRAINED] & ~solved[RANDOM]).sum())
    losses = int((solved[RANDOM] & ~solved[PRETRAINED]).sum())
    p = sign_test(wins, losses)
    rates = f"{run.find_row(PRETRAINED)['success']:.2f} and {run.find_row(RANDOM)['success']:.2f}"
    counts = (
        f"With the pretrained and with the random encoder {rates} of the episodes reach their goal; tasks solved with "
        f"the pretrained one alone: {wins}, with the random one alone: {losses} (sign test, p = {p:.2g})."
    )
    if p >= 0.05:
        verdict = (
            "A random encoder's row standing so close means that pretraining's gain is not shown at this scale: "
            "features of random weights keep enough of such plain pictures to plan with."
        )
    elif wins > losses:
        verdict = (
            "In this run pretraining helped the planner; it is one training run and one small environment, and says "
            "nothing about others."
        )
    else:
        verdict = (
            "In this run the planner did better on random weights than on the pretrained ones: no gain of pretraining "
            "is shown at this scale, and here it did harm."
        )
    return f"{counts} {verdict}"


def format_seeing(run: Run) -> str:
    figure, numbers = draw_features(run)
    width = run.configs["pretrain"].get("encoder", {}).get("hidden_size")
    shares = [[title, *(f"{values[name]:.3f}" for name in FRACTIONS)] for title, values in list_fractions(numbers)]
    return "\n".join(
        [
            "<h2>1. Learning to see</h2>",
            "<p>Parts of each video clip are hidden; the encoder sees the rest, and a predictor has to tell the "
            "features (not the pixels) of what is hidden. The features to be told come from a slowly moving average "
            "of the encoder itself.</p>",
            format_figure(
                encode_figure(draw_pretraining_loss(run)),
                "the error of the predicted features during pretraining (thin: as measured, thick: moving mean).",
                "how good the features are: the targets move with the encoder, so a lower loss may also mean easier "
                "targets.",
            ),
            format_figure(
                encode_figure(draw_collapse(run)),
                "whether the features collapse. A deviation or a variation of 0, or a rank of 1, would mean that all "
                f"clips look the same to the encoder; the highest possible rank is {width or 'the width'}.",
                "what the features are about: they may differ and still miss what a task needs.",
            ),
            format_figure(
                encode_figure(figure),
                "the first three principal components of the features of one clip as red, green and blue, before and "
                "after the mean of each place is taken away (grey: as always), and the same with random weights.",
                "the other components, and whether a colour means the same in two rows: each row has its own.",
            ),
            format_figure(
                format_table(["share of the features' variance", *FRACTIONS], shares),
                "how much of the features is explained by the place in the picture alone, by the frame alone, and by "
                "neither. In one clip what stands still counts as place; over many clips only what is always the "
                "same does.",
                "which of the two encoders is the more useful: more variance beyond position is not more information.",
            ),
        ]
    )


def format_predicting(run: Run) -> str:
    skip = run.configs["world_model"]["world_model"].get("frame_skip", 1)
    windows = run.rollout_errors[PRETRAINED][0]["windows"]
    return "\n".join(
        [
            "<h2>2. Learning to predict</h2>",
            "<p>The encoder is frozen. The world model learns from recorded episodes which features follow when an "
            "action is taken; one model on the pretrained encoder, and one with the same settings on an encoder with "
            "random weights.</p>",
            format_figure(
                encode_figure(draw_world_model_loss(run)),
                "the training error of both world models. Where the loss changes from one step ahead to rollouts over "
                "several steps it jumps, since that is harder.",
                "which of the two is better: each is measured in its own encoder's features.",
            ),
            format_figure(
                encode_figure(draw_rollout_error(run)),
                f"errors of rollouts on held-out episodes ({windows} starts), by the number of model steps ahead "
                f"({skip} actions each), beside the guess that nothing changes. Left, below 1 is better than that "
                "guess.",
                "how well one can plan: the error counts everything in the features, and absolute errors of two "
                "encoders do not compare.",
            ),
        ]
    )


def format_number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def format_planning(run: Run) -> str:
    best, num_steps = run.find_row(PRETRAINED), next(iter(run.states.values())).shape[1] - 1
    animation = animate_episodes(run.tasks, run.states[best["name"]], find_reached(run)[PRETRAINED])
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
    header = ["method", "success", "95 % interval", "episodes", "steps to success", "ms a plan"]
    return "\n".join(
        [
            "<h2>3. Planning</h2>",
            "<p>The planner sees the picture of now and the picture of the goal. It tries sequences of actions in the "
            "world model, keeps those that come closest to the goal's features (cross-entropy method, CEM), carries "
            "out the first actions and plans again. Every method has the same tasks; an episode succeeds when it is "
            f"within {SUCCESS_PIXELS:g} pixels of the goal at any of its {num_steps} steps.</p>",
            format_figure(
                format_table(header, rows, marked=run.rows.index(best)),
                "the share of the tasks that each method solves. The oracle plans with the true state and physics: "
                "the same search on the truth, as short-sighted: no upper bound.",
                "how other training runs would do: the interval is that of these episodes, with one trained model.",
            ),
            format_figure(
                encode_figure(draw_success(run)),
                "the same shares with their 95 % intervals. The random encoder's row is what pretraining is measured "
                "by: where it stands as high, pretraining's gain is not shown at this scale.",
                "a test between two rows: the tasks are shared, so rows are compared task by task (see the top).",
            ),
            format_figure(
                "data:image/gif;base64," + base64.b64encode(animation).decode(),
                f"the first {min(12, len(run.seeds))} episodes of '{best['name']}', not selected: left what happens, "
                "right the goal; green from the step on at which the goal is reached, red where it never is.",
                "what the planner imagined: only what was carried out is drawn.",
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


SECTIONS: list[Callable[[Run], str]] = [
    format_head,
    format_seeing,
    format_predicting,
    format_planning,
    format_settings,
]


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder, aside first, and returns its path."""
    run = read_run(folder)
    with matplotlib.rc_context(STYLE):
        page = PAGE.format(body="\n".join(section(run) for section in SECTIONS))
    write_text(folder / "report.html", page)
    return folder / "report.html"


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="what examples/demo.py leaves, like runs/demo")
    print(f"The report is {write_report(parser.parse_args(arguments).run_dir).resolve()}")


if __name__ == "__main__":
    main()
