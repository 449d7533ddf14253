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
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import study
import yaml
from safetensors import safe_open
from study import RECIPE

from vjepa2_hf.training.run_files import read_metrics


PRETRAINING, DYNAMICS = "demo/pretrain.yaml", "demo/world_model.yaml"
HORIZONS = (1, 2, 5)  # model steps; the cosine is that of the longest measured one
FIRST_TASK = 100_000  # other tasks than those of `reproduce.py`, whose figures no choice may depend on
ROWS = {  # titles, in the order in which the rows run
    RECIPE: "the recipe: concatenation, width 64, rollouts of 3 steps",
    "random": "no pretraining: random encoder",
    "pixels": "no encoder: raw pixels",
    "addition": "addition instead of concatenation",
    "wide": "width 128 instead of 64",
    "one_step": "one-step loss alone",
    "five_steps": "rollouts of 5 steps (H = 5)",
    "online_target": "no EMA in pretraining",
    "pixel_target": "pixels as target of pretraining",
    "pooled": "pooled state: the mean token",
    "merged": "merged state: 4 tokens",
    "mlp_slow": "MLP on 64 slow features",
    "mlp_pca": "MLP on 64 principal components",
    "cross_attention": "cross-attention instead of concatenation",
    "history": "history of 3 frames, block-causal",
    "linear_actions": "linear action encoder",
    "learning_encoder": "encoder trained with the world model",
}
# Rows with an encoder of their own: config of its pretraining, with its row of `ablations.yaml`; the others have the
# recipe's encoder and are the rows of `ablations.yaml` that have their names
PRETRAINED = {"online_target": f"{PRETRAINING}#online_target", "pixel_target": f"{PRETRAINING}#pixels"}
NOT_PRETRAINED = ("random", "pixels")
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
    runs = study.RunFolder(folder if name in PRETRAINED else folder.parents[1])
    config = PRETRAINED.get(name, PRETRAINING)
    return runs.configured("pretrain", "pretrain.py", config, common(options, environment, seed))


def run_row(options: argparse.Namespace, environment: str, seed: int, name: str) -> None:
    """Trains a row and plans with it."""
    results, config = results_of(options, environment, seed, name), f"{DYNAMICS}#{name}"
    if results.exists():
        return
    runs = study.RunFolder(row_folder(options, environment, seed, name))
    settings = common(options, environment, seed) | {"max_steps": options.steps}
    settings |= {"cache_dir": options.output / environment / "latents"}  # encoded once for all rows
    if name not in NOT_PRETRAINED:
        settings |= {"encoder": pretrain(options, environment, seed, name)}
        config = DYNAMICS if name == RECIPE or name in PRETRAINED else config
    model = runs.configured("world_model", "train_world_model.py", config, settings)
    planning = {"episodes": options.episodes, "first_task": FIRST_TASK + 1000 * seed}
    study.plan_row(runs, results, environment, seed, model, name, planning)


def run(options: argparse.Namespace) -> None:
    """Episodes, encoders, then every row with all its seeds: a stopped study has complete rows."""
    for environment in options.environments:
        study.record_episodes(options.output / environment)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cells = [(environment, seed) for environment in options.environments for seed in seeds]
    # first: two rows of a seed that run side by side would both make its encoder
    study.run_side_by_side([partial(pretrain, options, *one) for one in cells], options.jobs)
    rows = [partial(run_row, options, *one, row) for row in options.rows for one in cells]
    study.run_side_by_side(rows, options.jobs)


def columns(options: argparse.Namespace, environment: str, seed: int, name: str) -> dict[str, Any]:
    model = row_folder(options, environment, seed, name) / "world_model"
    errors = {row["horizon"]: row for row in json.loads((model / "rollout_error.json").read_text())}
    last = errors[max(errors)]
    return {
        "parameters": dynamics_parameters(model / "final"),
        **study.planned_row(results_of(options, environment, seed, name))[1],
        "minutes": training_minutes(model),
        "error_over_copy": {str(k): errors[k]["error"] / errors[k]["copy_error"] for k in HORIZONS},
        **{"cosine": last["cosine"], "copy_cosine": last["copy_cosine"], "cosine_horizon": last["horizon"]},
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
    found = study.collect_rows(options, ["steps", "episodes"], ROWS, results_of, columns, TWO_PHASE)
    for table in found["environments"].values() if found else ():
        for difference in table["differences"]:
            difference["two_phase"] = TWO_PHASE.get((difference["row"], difference["minus"]))
    return found


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """The rows, below them the methods without a world model, and differences of success."""
    for environment, result in results["environments"].items():
        rows = result["rows"]
        yield (
            f"**{study.capitalized(environment)}**: {results['steps']} steps of training in every row, up to "
            f"{max(len(row['seeds']) for row in rows)} training seeds, {results['episodes']} tasks per seed. Means "
            "over seeds; success with its 95 % interval over seeds. Minutes of training and milliseconds per plan are "
            "wall time with two runs side by side."
        )
        horizons = list(rows[0]["error_over_copy"])
        titles = ["row", "parameters", "minutes", *(f"error {horizon}" for horizon in horizons)]
        titles += [f"cosine {rows[0]['cosine_horizon']:.0f}", "success", "by seed", "ms per plan"]
        yield titles, [*map(row_cells, rows), *study.baseline_rows(rows, 3 + len(horizons), 1)]
        yield (
            "Error is the error of rollouts on held-out episodes divided by the error of copying the last state, by "
            "model steps ahead (two frames each); the cosine of copying is in parentheses. Both are computed in each "
            "row's own state space, so they do not compare rows with different encoders or states. Success does."
        )
        if result["differences"]:
            yield "**Differences of success**, paired by seed (the same tasks), next to those of the two-phase recipe:"
            titles = ["row", "minus", "two-phase recipe", "here", "95 % interval", "by seed"]
            yield titles, map(difference_cells, result["differences"])


def row_cells(row: dict[str, Any]) -> list[Any]:
    errors = [error["mean"] for error in row["error_over_copy"].values()]
    cells = [row["title"], f"{row['parameters']:,}", f"{row['minutes']:.1f}", *errors]
    cells += [f"{row['cosine']:.2f} ({row['copy_cosine']:.2f})", row["success"], row["success"]["by_seed"]]
    return [*cells, f"{row['plan_milliseconds']:.0f}"]


def difference_cells(one: dict[str, Any]) -> list[str]:
    published = "" if one["two_phase"] is None else f"{one['two_phase']:+.2f}"
    minus = "the recipe" if one["minus"] == RECIPE else ROWS[one["minus"]]
    by_seed = ", ".join(f"{value:+.2f}" for value in one["by_seed"])
    return [ROWS[one["row"]], minus, published, f"{one['mean']:+.2f}", study.interval_cell(one), by_seed]


SETTINGS = {"steps": (2400, "training steps of every row"), "episodes": (50, "tasks per row and seed")}
SEEDS = {"seeds": (3, "training seeds"), "first_seed": (0, "the first of them")}
CHOICES = {
    "environments": (study.ENVIRONMENTS, ["pushing"]),
    "rows": (ROWS, [name for name in ROWS if name != "learning_encoder"]),
}
PAGES = ["docs/world_model.md"]
STUDY = study.Study(
    "world_model", __doc__, run, collect, format_tables, PAGES, SETTINGS, SEEDS, CHOICES, output="runs/reproduce"
)


if __name__ == "__main__":
    STUDY.main()
