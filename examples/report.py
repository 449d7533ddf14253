# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Writes the demo's report: one self-contained HTML file with figures, tables and an animation.

    python examples/report.py RUN_DIR

RUN_DIR is the output of `examples/demo.py`: `episodes`, `pretrain`, `world_model`, `world_model_random` and `plan`.
Writes `RUN_DIR/report.html`, and `RUN_DIR/demo.gif` with the planner's first episodes. The report shows what the other
scripts measured; only the variance fractions of the features and the distances to a goal are measured here.
"""

import argparse
import base64
import io
import json
import platform
import vjepa2_cli  # noqa: F401 (a quick --help)
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from vjepa2_hf import VJepa2Encoder, VJepa2VideoProcessor, VJepa2WorldModel, __version__
from vjepa2_hf.data.files import write_aside, write_text
from vjepa2_hf.environments import SUCCESS_PIXELS
from vjepa2_hf.environments.animation import animate_episodes
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.visualization.curves import STYLE, read_curves, require, smooth
from vjepa2_hf.visualization.distance_maps import measure_maps, plot_maps
from vjepa2_hf.visualization.feature_variance import FRACTIONS, compare_with_random, list_fractions
from vjepa2_hf.visualization.video_clips import load_processor, read_clips


PRETRAINED, RANDOM = "pretrained encoder", "random encoder"
WORLD_MODELS = {PRETRAINED: "world_model", RANDOM: "world_model_random"}
COLORS = {PRETRAINED: "#2563eb", RANDOM: "#d97706", "copy": "#94a3b8", "other": "#64748b"}
FEATURE_CLIPS, FEATURE_FRAMES = 32, 16
ANIMATED_EPISODES, GIF_EPISODES = 12, 3
DISCS = ("agent", "block")  # in the order of a state
TEMPLATE = Path(__file__).with_name("report_template.html")


class Run:
    """Contents of a run folder: curves, rollout errors, the success table, states of episodes (E, T + 1, S) by row."""

    def __init__(self, folder: Path):
        require(folder, "demo.py")
        require(folder / "episodes", "record_episodes.py")
        require(folder / "pretrain" / "final", "pretrain.py")
        require(folder / WORLD_MODELS[PRETRAINED] / "final", "train_world_model.py")
        train, plan = "train_world_model.py", folder / "plan"
        results = read_json(plan / "results.json", "plan.py")
        self.folder, self.env, self.rows = folder, results["env"], results["rows"]
        with np.load(require(plan / "episodes.npz", "plan.py")) as episodes:
            self.states = dict(episodes)
        self.tasks = Tasks(self.env, self.states.pop("seeds"))
        scripts = {"pretrain": "pretrain.py", **dict.fromkeys(WORLD_MODELS.values(), train), "plan": "plan.py"}
        self.configs = {
            name: yaml.safe_load(require(folder / name / "config.yaml", script).read_text(encoding="utf-8"))
            for name, script in scripts.items()
        }
        self.pretraining = read_curves(folder / "pretrain", "pretrain.py")
        self.world_models = {name: read_curves(folder / part, train) for name, part in WORLD_MODELS.items()}
        self.rollout_errors = {
            name: read_json(folder / part / "rollout_error.json", train) for name, part in WORLD_MODELS.items()
        }
        timings = folder / "timings.json"
        self.timings = read_json(timings, "demo.py") if timings.exists() else {}

    def find_row(self, encoder: str) -> dict[str, Any]:
        """The row of the planner on this encoder."""
        for row in self.rows:
            if row["name"].endswith(encoder):
                return row
        path = self.folder / "plan" / "results.json"
        raise ValueError(f"{path} has no row 'CEM, {encoder}'; plan with both encoders.")


def read_json(path: Path, script: str) -> Any:
    try:
        return json.loads(require(path, script).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error}); run examples/{script} again.") from error


def find_reached(run: Run) -> dict[str, np.ndarray]:
    """The step at which each episode reached its goal (E,), -1 if it did not, by encoder."""
    reached = {}
    for encoder in WORLD_MODELS:
        row = run.find_row(encoder)
        name, success = row["name"], None
        if name in run.states:
            distances = run.tasks.env.distance_px(run.states[name], run.tasks.goals[:, None])
            hits = distances[:, 1:] <= SUCCESS_PIXELS
            reached[encoder] = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, -1)
            success = hits.any(axis=1).mean()
        if success is None or abs(success - row["success"]) > 1e-6:
            raise ValueError(
                f"The episodes and the table in {run.folder / 'plan'} disagree about {name!r}, so they are of "
                "different runs; run examples/plan.py again."
            )
    return reached


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of the sign test; ties are left out."""
    return binomtest(wins, wins + losses).pvalue if wins + losses else 1.0


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure in inches and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def plot_smoothed(axis: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """A pretraining curve: raw values (thin) and their moving mean (thick)."""
    axis.plot(steps, values, color=COLORS[PRETRAINED], alpha=0.25, lw=1)
    axis.plot(steps, smooth(values), color=COLORS[PRETRAINED], lw=2)
    axis.set(xlabel="training step")


def plot_pretraining_loss(run: Run) -> Figure:
    figure, axis = new_figure(8, 3)
    plot_smoothed(axis, run.pretraining["step"], run.pretraining["loss"])
    axis.set(ylabel="loss")
    return figure


def plot_collapse(run: Run) -> Figure:
    titles = {
        "target_std": "standard deviation of the targets",
        "effective_rank": "effective rank of the targets",
        "prediction_variation": "variation of predictions over time",
    }
    figure, axes = new_figure(10, 2.8, columns=3)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        if name not in run.pretraining:
            path = run.folder / "pretrain" / "metrics.jsonl"
            raise ValueError(f"{str(path)!r} has no {name}; run examples/pretrain.py of this version.")
        plot_smoothed(axis, run.pretraining["step"], run.pretraining[name])
        axis.set(title=title)
        axis.set_ylim(bottom=0)
    return figure


def plot_world_model_loss(run: Run) -> Figure:
    figure, axis = new_figure(8, 3)
    for encoder, metrics in run.world_models.items():
        axis.plot(metrics["step"], metrics["loss"], color=COLORS[encoder], lw=1.6, label=encoder)
    training = run.configs["world_model"]
    switch = training["rollout_start"] * training["max_steps"]
    if 0 < switch < training["max_steps"]:
        axis.axvline(switch, color=COLORS["copy"], ls="--", lw=1)
        style = {"va": "top", "fontsize": 9, "color": COLORS["other"]}
        axis.annotate(" loss of rollouts from here on", (switch, 1), xycoords=("data", "axes fraction"), **style)
    axis.set(xlabel="training step", ylabel="loss")
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def plot_rollout_error(run: Run) -> Figure:
    figure, (ratio, absolute) = new_figure(10, 3.3, columns=2)
    for encoder, rows in run.rollout_errors.items():
        columns = ("horizon", "error", "copy_error")
        horizons, errors, copies = (np.array([row[name] for row in rows]) for name in columns)
        style = {"color": COLORS[encoder], "label": encoder}
        ratio.plot(horizons, errors / copies, "o-", **style)
        absolute.plot(horizons, errors, "o-", **style)
        style["label"] = "  copy the last state"
        absolute.plot(horizons, copies, "o--", alpha=0.5, lw=1, ms=3, **style)
    ratio.axhline(1, color=COLORS["other"], ls="--", lw=1)
    ratio.annotate("copy the last state", (horizons[-1], 1.02), ha="right", fontsize=9, color=COLORS["other"])
    ratio.set(title="error relative to copying", ylabel="ratio (lower is better)")
    absolute.set(title="error of standardized latents", ylabel="mean squared error")
    ratio.set_ylim(0, max(1.15, ratio.get_ylim()[1]))
    absolute.set_ylim(bottom=0)
    for axis in (ratio, absolute):
        axis.set(xlabel="model steps ahead", xticks=horizons)
    figure.legend(*absolute.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def plot_success(run: Run) -> Figure:
    figure, axis = new_figure(8, 0.45 * len(run.rows) + 0.8)
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


def plot_distance_map(run: Run) -> Figure:
    """Distances to the first task's goal image from a grid of positions of each disc."""
    folder = run.folder / WORLD_MODELS[PRETRAINED] / "final"
    model, processor = VJepa2WorldModel.from_pretrained(folder).eval(), VJepa2VideoProcessor.from_pretrained(folder)
    task = (run.tasks.env, run.tasks.states[0], run.tasks.goals[0])
    maps = measure_maps(model, processor, *task)
    return plot_maps(maps, *task, DISCS[: len(maps)])


def write_report(folder: Path) -> Path:
    """Writes `report.html` and `demo.gif` into a run folder; returns the path of the report."""
    run = Run(folder)
    with matplotlib.rc_context(STYLE):
        features, numbers = plot_features(run)
        figures = {
            "pretraining_loss": plot_pretraining_loss(run),
            "collapse": plot_collapse(run),
            "features": features,
            "world_model_loss": plot_world_model_loss(run),
            "rollout_error": plot_rollout_error(run),
            "success": plot_success(run),
            "distance_map": plot_distance_map(run),
        }
        figures = {name: encode_figure(figure) for name, figure in figures.items()}
    planner, reached = run.find_row(PRETRAINED), find_reached(run)
    episodes = (run.tasks, run.states[planner["name"]], reached[PRETRAINED])
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        figures,
        env=run.env,
        verdict=compare_encoders(run, reached),
        highest_rank=run.configs["pretrain"].get("encoder", {}).get("hidden_size") or "the width",
        fraction_names=list(FRACTIONS),
        fractions=[[name, *(f"{values[kind]:.3f}" for kind in FRACTIONS)] for name, values in list_fractions(numbers)],
        windows=run.rollout_errors[PRETRAINED][0]["windows"],
        skip=run.configs["world_model"]["world_model"].get("frame_skip", 1),
        rows=run.rows,
        planner=planner,
        baseline=run.find_row(RANDOM),
        success_pixels=f"{SUCCESS_PIXELS:g}",
        num_steps=next(iter(run.states.values())).shape[1] - 1,
        animation=data_url("gif", animate_episodes(*episodes, ANIMATED_EPISODES)),
        num_shown=min(ANIMATED_EPISODES, len(run.tasks)),
        configs={name: yaml.safe_dump(config, sort_keys=False) for name, config in run.configs.items()},
        versions=list_versions(),
        timings=run.timings,
    )
    with write_aside(folder / "demo.gif") as partial:
        partial.write_bytes(animate_episodes(*episodes, GIF_EPISODES))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def encode_figure(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return data_url("png", buffer.getvalue())


def data_url(kind: str, image: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def compare_encoders(run: Run, reached: dict[str, np.ndarray]) -> str:
    """Whether this run shows a gain of pretraining."""
    solved = {encoder: steps > 0 for encoder, steps in reached.items()}
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


def list_versions() -> list[list[str]]:
    """Versions of Python, the machine and the main packages."""
    rows = [["Python", platform.python_version()], ["machine", f"{platform.system()} {platform.machine()}"]]
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy")
    return [*rows, ["vjepa2-hf", __version__], *([package, metadata.version(package)] for package in packages)]


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="output of examples/demo.py, such as runs/demo")
    print(f"The report is {write_report(parser.parse_args(arguments).run_dir).resolve()}")


if __name__ == "__main__":
    main()
