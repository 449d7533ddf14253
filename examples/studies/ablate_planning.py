"""Ablations of planning: candidates, horizon, iterations, solvers and cost.

    python examples/studies/ablate_planning.py [--output runs/reproduce] [--model world_model_pretrained/final]
        [--environments pushing two_rooms] [--jobs 2] [--episodes 50] [--rows recipe horizon_5 ...]

Plans with the world models that `reproduce.py` trained in the folders `OUTPUT/ENVIRONMENT/seed-*` (or, with
`--model ablations-2400-steps/recipe/world_model/final`, `ablate_world_model.py`); nothing is trained. The recipe is
the demo's config of plan.py; a row overrides some of its settings. All rows of a seed plan on the same tasks. Seeds
that the results file already has, measured with the same settings, stay in the table.
"""

import argparse
import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import study
import yaml
from study import ENVIRONMENTS

from vjepa2_hf.planning import SOLVERS
from vjepa2_hf.visualization.tables import format_table


FIRST_TASK = 200_000  # of seed 0; every seed has 1000 of its own, on which no choice was made
RECIPE = "recipe"
MODEL = "world model"  # its name among the rows of plan.py
SHARED_SETTINGS = ("horizon", "num_candidates", "num_iterations", "num_elites")  # other solvers use the recipe's
OTHER_SOLVERS = [name for name in SOLVERS if name not in ("cem", "categorical_cem")]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: its name in the table.
        settings: of plan.py; they override the recipe's; keys with dots.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)


def solver_row(name: str) -> Row:
    """Another solver with the recipe's settings, as far as it has them; gradient descent keeps its own iterations."""
    recipe = yaml.safe_load((study.CONFIGS / "demo/plan.yaml").read_text(encoding="utf-8"))["solver"]
    known = {entry.name for entry in dataclasses.fields(SOLVERS[name])}
    taken = ("horizon",) if name == "gradient" else SHARED_SETTINGS
    settings = {key: recipe[key] for key in taken if key in known and key in recipe}
    return Row(f"solver {name} instead of cem", {"solver": {"name": name, **settings}})


SUMMED = {"cost": "latent", "distance": "l2", "summed": True}
ROWS = {
    RECIPE: Row("the recipe: 128 candidates, 3 iterations, 3 model steps ahead"),
    **{  # elites stay at about a tenth of the candidates
        f"candidates_{k}": Row(f"K = {k} candidates", {"solver.num_candidates": k, "solver.num_elites": elites})
        for k, elites in ((32, 3), (64, 6), (256, 24))
    },
    **{f"horizon_{h}": Row(f"H = {h} model steps ahead", {"solver.horizon": h}) for h in (1, 2, 5)},
    **{f"iterations_{i}": Row(f"I = {i} iterations", {"solver.num_iterations": i}) for i in (1, 2, 6)},
    **{f"solver_{name}": solver_row(name) for name in OTHER_SOLVERS},
    "l1": Row("absolute instead of squared distance", {"distance": "l1"}),
    "summed": Row("distance of all imagined steps instead of the last", {"planner.cost": SUMMED}),
    "warm_start": Row("starts from the last plan", {"warm_start": True}),
}


def results_of(options: argparse.Namespace, environment: str, seed: int, row: str) -> Path:
    """Of a row; another model or number of tasks has another folder."""
    name = f"planning-{options.model.replace('/', '-')}-{options.episodes}"
    return options.output / environment / f"seed-{seed}" / name / row / "results.json"


def run_row(options: argparse.Namespace, environment: str, seed: int, row: str) -> None:
    """Plans with a row's settings; the recipe's row also runs the methods without a world model."""
    output = results_of(options, environment, seed, row).parent
    model = options.output / environment / f"seed-{seed}" / options.model
    settings = {"models": {MODEL: str(model)}, "seed": seed, "videos": 0, "episodes": options.episodes}
    settings |= {"first_task": FIRST_TASK + 1000 * seed, **ROWS[row].settings}
    settings |= {} if row == RECIPE else {"baselines": []}
    config = ENVIRONMENTS[environment].plan
    study.RunFolder(output).configured("plan", "plan.py", config, settings, output=output, result="results.json")


def run(options: argparse.Namespace) -> None:
    """Every row with all its seeds: a stopped study has complete rows."""
    folders = {environment: options.output / environment for environment in options.environments}
    cells = [(name, seed) for name, folder in folders.items() for seed in study.seeds_of(folder)]
    cells = [(name, seed) for name, seed in cells if (folders[name] / f"seed-{seed}" / options.model).exists()]
    if not cells:
        raise SystemExit(
            f"error: there is no {options.model} in {options.output}/ENVIRONMENT/seed-*: train world models with "
            "examples/studies/reproduce.py, or name others with --model."
        )
    study.run_side_by_side(
        [partial(run_row, options, *one, row) for row in options.rows for one in cells], options.jobs
    )


def columns(options: argparse.Namespace, environment: str, seed: int, row: str) -> dict[str, Any]:
    own, baselines = study.planned_row(results_of(options, environment, seed, row), MODEL)
    return {
        "success": own["success"],
        "plan_milliseconds": own["plan_milliseconds"],
        "by_distance": {str(number): part["success"] for number, part in enumerate(own["by_distance"])},
        "baselines": baselines,
    }


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    titles, pairs = (
        {name: row.title for name, row in ROWS.items()},
        [(name, RECIPE) for name in ROWS if name != RECIPE],
    )
    return study.collect_rows(options, ["episodes", "model"], titles, pairs, results_of, columns)


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for environment, result in results["environments"].items():
        seeds = max(len(row["seeds"]) for row in result["rows"])
        lines += [
            f"**{study.capitalized(environment)}**: up to {seeds} training seeds, {results['episodes']} tasks per "
            "seed. Means over seeds; success with its 95 % interval over seeds. Near, middle, far: thirds of the "
            "tasks by the goal's distance. Milliseconds per plan: wall time of a plan in a batch, with two runs side "
            "by side.",
            "",
            *format_rows(result["rows"], {one["row"]: one for one in result["differences"]}),
            "",
        ]
    return "\n".join(lines).rstrip("\n")


def format_rows(rows: list[dict[str, Any]], compared: dict[str, dict[str, Any]]) -> list[str]:
    """The rows with their differences from the recipe, and below them the methods without a world model."""
    titles = ["row", "success", "by seed", "minus the recipe", "95 % interval", "near, middle, far", "ms per plan"]
    lines = []
    for row in rows:
        difference = compared.get(row["name"])
        cells = [row["title"], *study.success_cells(row["success"])]
        cells += [f"{difference['mean']:+.2f}", study.interval_cell(difference)] if difference else ["", ""]
        cells.append(", ".join(f"{part['mean']:.2f}" for part in row["by_distance"].values()))
        lines.append([*cells, f"{row['plan_milliseconds']:.0f}"])
    baselines = [one for row in rows for one in row["baselines"].items()]
    lines += [[name, *study.success_cells(success), "", "", "", ""] for name, success in baselines]
    return format_table(titles, lines)


STUDY = study.Study(
    "planning",
    __doc__,
    run,
    collect,
    format_tables,
    ["docs/planning_evaluation.md"],
    settings={
        "model": ("world_model_pretrained/final", "world model within OUTPUT/ENVIRONMENT/seed-*"),
        "episodes": (50, "tasks per row and seed"),
    },
    options={},
    choices={"environments": (ENVIRONMENTS, ENVIRONMENTS), "rows": (ROWS, ROWS)},
    output="runs/reproduce",
)


if __name__ == "__main__":
    STUDY.main()
