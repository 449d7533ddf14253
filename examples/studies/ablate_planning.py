"""Ablations of planning: candidates, horizon, iterations, solvers and cost.

    python examples/studies/ablate_planning.py [--output runs/reproduce] [--model world_model_pretrained/final]
        [--environments pushing two_rooms] [--seeds 3] [--jobs 2] [--episodes 50] [--rows recipe horizon_5 ...]

Plans with the world models that `reproduce.py` trained in the folders `OUTPUT/ENVIRONMENT/seed-*` (or, with
`--model ablations-2400-steps/recipe/world_model/final`, `ablate_world_model.py`); nothing is trained. The recipe is
the demo's config of plan.py; a row overrides some of its settings. All rows of a seed plan on the same tasks. Seeds
that the results file already has, measured with the same settings, stay in the table.
"""

import argparse
import dataclasses
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import study
import yaml
from study import RECIPE

from vjepa2_hf.planning import SOLVERS


FIRST_TASK = 200_000  # of seed 0; every seed has 1000 of its own, on which no choice was made


def solver_settings(name: str) -> dict[str, Any]:
    """Another solver with the recipe's settings, as far as it has them; gradient descent keeps its own iterations."""
    recipe = yaml.safe_load((study.CONFIGS / "demo/plan.yaml").read_text(encoding="utf-8"))["solver"]
    taken = ("horizon",) if name == "gradient" else ("horizon", "num_candidates", "num_iterations", "num_elites")
    known = {entry.name for entry in dataclasses.fields(SOLVERS[name])} & recipe.keys()
    return {"solver": {"name": name, **{key: recipe[key] for key in taken if key in known}}}


# Title, and the settings of plan.py that override the recipe's
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    RECIPE: ("the recipe: 128 candidates, 3 iterations, 3 model steps ahead", {}),
    **{  # elites stay at about a tenth of the candidates
        f"candidates_{k}": (f"K = {k} candidates", {"solver.num_candidates": k, "solver.num_elites": elites})
        for k, elites in ((32, 3), (64, 6), (256, 24))
    },
    **{f"horizon_{h}": (f"H = {h} model steps ahead", {"solver.horizon": h}) for h in (1, 2, 5)},
    **{f"iterations_{i}": (f"I = {i} iterations", {"solver.num_iterations": i}) for i in (1, 2, 6)},
    **{
        f"solver_{name}": (f"solver {name} instead of cem", solver_settings(name))
        for name in SOLVERS
        if name not in ("cem", "categorical_cem")
    },
    "l1": ("absolute instead of squared distance", {"distance": "l1"}),
    "summed": (
        "distance of all imagined steps instead of the last",
        {"planner.cost": {"cost": "latent", "distance": "l2", "summed": True}},
    ),
    "warm_start": ("starts from the last plan", {"warm_start": True}),
}


def model_of(options: argparse.Namespace, environment: str, seed: int) -> Path:
    return options.output / environment / f"seed-{seed}" / options.model


def results_of(options: argparse.Namespace, environment: str, seed: int, row: str) -> Path:
    """Of a row; another model or number of tasks has another folder."""
    name = f"planning-{options.model.replace('/', '-')}-{options.episodes}"
    return options.output / environment / f"seed-{seed}" / name / row / "results.json"


def run_row(options: argparse.Namespace, environment: str, seed: int, row: str) -> None:
    results = results_of(options, environment, seed, row)
    settings = {"episodes": options.episodes, "first_task": FIRST_TASK + 1000 * seed, **ROWS[row][1]}
    runs, model = study.RunFolder(results.parent), model_of(options, environment, seed)
    study.plan_row(runs, results, environment, seed, model, row, settings)


def run(options: argparse.Namespace) -> None:
    """Every row with all its seeds: a stopped study has complete rows."""
    cells = [(name, seed) for name in options.environments for seed in range(options.seeds)]
    cells = [one for one in cells if model_of(options, *one).exists()]
    if not cells:
        raise SystemExit(
            f"error: there is no {options.model} in {options.output}/ENVIRONMENT/seed-*: train world models with "
            "examples/studies/reproduce.py, or name others with --model."
        )
    rows = [partial(run_row, options, *one, row) for row in options.rows for one in cells]
    study.run_side_by_side(rows, options.jobs)


def columns(options: argparse.Namespace, environment: str, seed: int, row: str) -> dict[str, Any]:
    own, more = study.planned_row(results_of(options, environment, seed, row))
    return {**more, "by_distance": {str(number): part["success"] for number, part in enumerate(own["by_distance"])}}


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    titles = {name: title for name, (title, _) in ROWS.items()}
    return study.collect_rows(options, ["episodes", "model"], titles, results_of, columns)


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """The rows with their differences from the recipe, and below them the methods without a world model."""
    titles = ["row", "success", "by seed", "minus the recipe", "95 % interval", "near, middle, far", "ms per plan"]
    for environment, result in results["environments"].items():
        seeds = max(len(row["seeds"]) for row in result["rows"])
        yield (
            f"**{study.capitalized(environment)}**: up to {seeds} training seeds, {results['episodes']} tasks per "
            "seed. Means over seeds; success with its 95 % interval over seeds. Near, middle, far: thirds of the "
            "tasks by the goal's distance. Milliseconds per plan: wall time of a plan in a batch, with two runs side "
            "by side."
        )
        differences = {one["row"]: one for one in result["differences"]}
        rows = []
        for row in result["rows"]:
            one, parts = differences.get(row["name"]), [part["mean"] for part in row["by_distance"].values()]
            compared = [f"{one['mean']:+.2f}", study.interval_cell(one)] if one else ["", ""]
            cells = [row["title"], row["success"], row["success"]["by_seed"], *compared, parts]
            rows.append([*cells, f"{row['plan_milliseconds']:.0f}"])
        yield titles, rows + study.baseline_rows(result["rows"], 0, 4)


SETTINGS = {
    "model": ("world_model_pretrained/final", "world model within OUTPUT/ENVIRONMENT/seed-*"),
    "episodes": (50, "tasks per row and seed"),
}
CHOICES = {"environments": (study.ENVIRONMENTS, study.ENVIRONMENTS), "rows": (ROWS, ROWS)}
PAGES = ["docs/planning_evaluation.md"]
STUDY = study.Study(
    "planning", __doc__, run, collect, format_tables, PAGES, SETTINGS, choices=CHOICES, output="runs/reproduce"
)


if __name__ == "__main__":
    STUDY.main()
