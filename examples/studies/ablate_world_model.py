"""Ablations of the world model, by planning success.

    python examples/studies/ablate_world_model.py [--output runs/reproduce] [--seeds 3] [--first_seed 0] [--jobs 2]
        [--steps 2400] [--episodes 50] [--rows recipe addition ...]

Episodes and encoders are those of `reproduce.py`, in its folder; missing ones are made there. The recipe is
`configs/demo/world_model.yaml`. A row changes one thing: the dynamics, by a row of `configs/ablations.yaml`, or the
encoder. All rows train for the same number of steps and plan on the same tasks. Seeds that the results file already
has, measured with the same settings, stay in the table. The encoder that is trained along with the world model runs
only by name (`--rows learning_encoder`), because it encodes every frame at every step.
"""

import argparse
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import study
import yaml
from safetensors import safe_open

from vjepa2_hf.training.run import read_metrics
from vjepa2_hf.visualization.tables import format_table


PRETRAINING, DYNAMICS = "demo/pretrain.yaml", "demo/world_model.yaml"
MODEL = "world model"  # its name among the rows of plan.py
HORIZONS = (1, 2, 5)  # model steps; the cosine is that of the longest measured one
FIRST_TASK = 100_000  # other tasks than those of `reproduce.py`, whose figures no choice may depend on


@dataclass(frozen=True)
class Row:
    """One line of the table. With the recipe's encoder, it is the row of `ablations.yaml` that has its name.

    Attributes:
        title: its name in the table.
        encoder: config of its pretraining, with `#ROW` for a row of `ablations.yaml`; "random" or "pixels".
    """

    title: str
    encoder: str = PRETRAINING


RECIPE = "recipe"
ROWS = {  # in the order in which they run
    RECIPE: Row("the recipe: concatenation, width 64, rollouts of 3 steps"),
    "random": Row("no pretraining: random encoder", encoder="random"),
    "pixels": Row("no encoder: raw pixels", encoder="pixels"),
    "addition": Row("addition instead of concatenation"),
    "wide": Row("width 128 instead of 64"),
    "one_step": Row("one-step loss alone"),
    "five_steps": Row("rollouts of 5 steps (H = 5)"),
    "online_target": Row("no EMA in pretraining", encoder=f"{PRETRAINING}#online_target"),
    "pixel_target": Row("pixels as target of pretraining", encoder=f"{PRETRAINING}#pixels"),
    "pooled": Row("pooled state: the mean token"),
    "merged": Row("merged state: 4 tokens"),
    "mlp_slow": Row("MLP on 64 slow features"),
    "mlp_pca": Row("MLP on 64 principal components"),
    "cross_attention": Row("cross-attention instead of concatenation"),
    "history": Row("history of 3 frames, block-causal"),
    "linear_actions": Row("linear action encoder"),
    "learning_encoder": Row("encoder trained with the world model"),
}
# Pairs that the two-phase recipe compares, with its differences of success (sec. 9.4)
TWO_PHASE = {
    ("addition", RECIPE): -0.03,
    ("wide", RECIPE): -0.06,
    ("five_steps", "one_step"): 0.04,
    ("random", RECIPE): -0.30,
    ("pixel_target", RECIPE): -0.19,
    ("online_target", RECIPE): -0.43,
}


def row_folder(options: argparse.Namespace, environment: str, seed: int, name: str) -> Path:
    """Folder of a row's runs; another number of steps has another folder."""
    return options.output / environment / f"seed-{seed}" / f"ablations-{options.steps}-steps" / name


def results_of(options: argparse.Namespace, environment: str, seed: int, name: str) -> Path:
    return row_folder(options, environment, seed, name) / f"plan-{options.episodes}" / "results.json"


def common(options: argparse.Namespace, environment: str, seed: int) -> dict[str, Any]:
    return {"data": options.output / environment / "episodes", "seed": seed, "resume": "latest"}


def pretrain(options: argparse.Namespace, environment: str, seed: int, name: str = RECIPE) -> Path:
    """The encoder of a row; that of the recipe is shared with `reproduce.py`."""
    folder = row_folder(options, environment, seed, name)
    folder = folder.parents[1] if ROWS[name].encoder == PRETRAINING else folder
    settings = common(options, environment, seed)
    return study.RunFolder(folder).configured("pretrain", "pretrain.py", ROWS[name].encoder, settings)


def run_row(options: argparse.Namespace, environment: str, seed: int, name: str) -> None:
    """Trains a row and plans with it; the recipe's row also runs the methods without a world model."""
    results, row = results_of(options, environment, seed, name), ROWS[name]
    if results.exists():
        return
    runs = study.RunFolder(row_folder(options, environment, seed, name))
    if row.encoder in ("random", "pixels"):
        settings = study.ablation(DYNAMICS, row.encoder)
    else:
        settings = {"encoder": pretrain(options, environment, seed, name)}
    settings |= common(options, environment, seed) | {"max_steps": options.steps}
    settings |= {"cache_dir": options.output / environment / "latents"}  # encoded once for all rows
    config = DYNAMICS if name == RECIPE or row.encoder != PRETRAINING else f"{DYNAMICS}#{name}"
    model = runs.configured("world_model", "train_world_model.py", config, settings)

    planning = {"models": {MODEL: str(model)}, "seed": seed, "videos": 0, "episodes": options.episodes}
    planning |= {"first_task": FIRST_TASK + 1000 * seed} | ({} if name == RECIPE else {"baselines": []})
    config = study.ENVIRONMENTS[environment].plan
    runs.configured("plan", "plan.py", config, planning, output=results.parent, result="results.json")


def run(options: argparse.Namespace) -> None:
    """Episodes, encoders, then every row with all its seeds: a stopped study has complete rows."""
    for environment in options.environments:
        study.record_episodes(options.output, environment)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cells = [(environment, seed) for environment in options.environments for seed in seeds]
    # first: two rows of a seed that run side by side would both make its encoder
    study.run_side_by_side([partial(pretrain, options, *one) for one in cells], options.jobs)
    study.run_side_by_side(
        [partial(run_row, options, *one, row) for row in options.rows for one in cells], options.jobs
    )


def columns(options: argparse.Namespace, environment: str, seed: int, name: str) -> dict[str, Any]:
    model = row_folder(options, environment, seed, name) / "world_model"
    own, baselines = study.planned_row(results_of(options, environment, seed, name), MODEL)
    errors = {row["horizon"]: row for row in json.loads((model / "rollout_error.json").read_text())}
    last = errors[max(errors)]
    return {
        "parameters": dynamics_parameters(model / "final"),
        "success": own["success"],
        "plan_milliseconds": own["plan_milliseconds"],
        "minutes": training_minutes(model),
        "error_over_copy": {str(k): errors[k]["error"] / errors[k]["copy_error"] for k in HORIZONS},
        "cosine": last["cosine"],
        "copy_cosine": last["copy_cosine"],
        "cosine_horizon": last["horizon"],
        "baselines": baselines,
    }


def training_minutes(model: Path) -> float:
    """Wall time of a run's steps, without encoding the data; a step that was repeated after a stop counts once."""
    windows = yaml.safe_load((model / "config.yaml").read_text())["batch_size"]
    seconds, before = 0.0, 0
    for row in read_metrics(model):
        seconds += (row["step"] - before) * windows / row["windows_per_second"]
        before = row["step"]
    return seconds / 60


def dynamics_parameters(folder: Path) -> int:
    """Number of weights in the dynamics of a saved world model."""
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if name.startswith("predictor.")]  # noqa: SIM118, no dict
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Compares the pairs of the two-phase recipe, then the other rows with the recipe."""
    pairs = dict.fromkeys([*TWO_PHASE, *((name, RECIPE) for name in ROWS if name != RECIPE)])
    titles = {name: row.title for name, row in ROWS.items()}
    found = study.collect_rows(options, ["steps", "episodes"], titles, list(pairs), results_of, columns)
    for table in found["environments"].values() if found else ():
        for difference in table["differences"]:
            difference["two_phase"] = TWO_PHASE.get((difference["row"], difference["minus"]))
    return found


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for environment, result in results["environments"].items():
        rows = result["rows"]
        lines += [
            f"**{study.capitalized(environment)}**: {results['steps']} steps of training in every row, up to "
            f"{max(len(row['seeds']) for row in rows)} training seeds, {results['episodes']} tasks per seed. Means "
            "over seeds; success with its 95 % interval over seeds. Minutes of training and milliseconds per plan are "
            "wall time with two runs side by side.",
            "",
            *format_rows(rows),
            "",
            "Error is the error of rollouts on held-out episodes divided by the error of copying the last state, by "
            "model steps ahead (two frames each); the cosine of copying is in parentheses. Both are computed in each "
            "row's own state space, so they do not compare rows with different encoders or states. Success does.",
            "",
            *format_differences(result["differences"]),
        ]
    return "\n".join(lines).rstrip("\n")


def format_rows(rows: list[dict[str, Any]]) -> list[str]:
    """The rows, and below them the methods without a world model."""
    horizons = list(rows[0]["error_over_copy"])
    titles = ["row", "parameters", "minutes", *(f"error {horizon}" for horizon in horizons)]
    titles += [f"cosine {rows[0]['cosine_horizon']:.0f}", "success", "by seed", "ms per plan"]
    lines = []
    for row in rows:
        cells = [row["title"], f"{row['parameters']:,}", f"{row['minutes']:.1f}"]
        cells += [f"{row['error_over_copy'][horizon]['mean']:.2f}" for horizon in horizons]
        cells += [f"{row['cosine']:.2f} ({row['copy_cosine']:.2f})", *study.success_cells(row["success"])]
        lines.append([*cells, f"{row['plan_milliseconds']:.0f}"])
    empty = [""] * (3 + len(horizons))
    baselines = [one for row in rows for one in row["baselines"].items()]
    lines += [[name, *empty, *study.success_cells(success), ""] for name, success in baselines]
    return format_table(titles, lines)


def format_differences(compared: list[dict[str, Any]]) -> list[str]:
    if not compared:
        return []
    rows = []
    for one in compared:
        published = "" if one["two_phase"] is None else f"{one['two_phase']:+.2f}"
        minus = "the recipe" if one["minus"] == RECIPE else ROWS[one["minus"]].title
        cells = [ROWS[one["row"]].title, minus, published, f"{one['mean']:+.2f}", study.interval_cell(one)]
        rows.append([*cells, study.by_seed(one["by_seed"], "+.2f")])
    titles = ["row", "minus", "two-phase recipe", "here", "95 % interval", "by seed"]
    head = "**Differences of success**, paired by seed (the same tasks), next to those of the two-phase recipe:"
    return [head, "", *format_table(titles, rows), ""]


STUDY = study.Study(
    "world_model",
    __doc__,
    run,
    collect,
    format_tables,
    ["docs/world_model.md"],
    settings={"steps": (2400, "training steps of every row"), "episodes": (50, "tasks per row and seed")},
    options={"seeds": (3, "training seeds"), "first_seed": (0, "the first of them")},
    choices={
        "environments": (study.ENVIRONMENTS, ["pushing"]),
        "rows": (ROWS, [name for name in ROWS if name != "learning_encoder"]),
    },
    output="runs/reproduce",
)


if __name__ == "__main__":
    STUDY.main()
