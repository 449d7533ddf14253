"""What matters in planning: candidates, horizon, iterations, solvers, cost, on trained world models of several seeds.

    python examples/ablate_planning.py [--output runs/reproduce] [--model world_model_pretrained/final]
        [--environments pushing two_rooms] [--lanes 2] [--episodes 50] [--rows recipe horizon_5 ...] [--collect]

World models are those that `reproduce.py` trained (or, with `--model ablations-2400-steps/recipe/world_model/final`,
`ablate_world_model.py`) in the folders `OUTPUT/ENVIRONMENT/seed-*`; nothing is trained here. The recipe is the demo's
config of plan.py; a row lays a few settings over it. All rows of a seed plan on the same tasks, which no choice was
made on. Rows run in the order of the table, each with all its seeds, side by side on one thread each; a stopped
command goes on where it was. Seeds of a row that `results/planning.json` has already, measured with the same settings,
stay. Results go there and into docs/planning_evaluation.md between its markers.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from demo import Road, script
from plan import PlanConfig
from reproduce import CONFIGS, ENVIRONMENTS, ROOT
from seed_tables import interval_cell, joined, known_rows, over_seeds, paired, run_lanes, success_cells

from vjepa2_hf.planning import SOLVERS
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.visualization.tables import publish_tables


FIRST_TASK = 200_000  # of seed 0; a seed has 1000 of its own. Recipes and figures have others
RECIPE = "recipe"
MODEL = "world model"  # its name among the rows of plan.py
SHARED_SETTINGS = ("horizon", "num_candidates", "num_iterations", "num_elites")  # that solvers have from the recipe
OTHER_SOLVERS = [name for name in SOLVERS if name not in ("cem", "categorical_cem")]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: what the table calls it.
        settings: of plan.py, laid over the recipe's; keys with dots.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)


def solver_row(name: str) -> Row:
    """Another solver with the recipe's settings, as far as it has them; descent counts iterations in its own way."""
    recipe = load_config(PlanConfig, CONFIGS / "plan.yaml").solver
    known = {entry.name for entry in dataclasses.fields(SOLVERS[name])}
    taken = ("horizon",) if name == "gradient" else SHARED_SETTINGS
    settings = {key: recipe[key] for key in taken if key in known and key in recipe}
    return Row(f"solver {name} instead of cem", {"solver": {"name": name, **settings}})


def make_rows() -> dict[str, Row]:
    """All rows by name, in the order in which they run; elites stay about a tenth of the candidates."""
    rows = {RECIPE: Row("the recipe: 128 candidates, 3 iterations, 3 model steps ahead")}
    for count, elites in ((32, 3), (64, 6), (256, 24)):
        settings = {"solver.num_candidates": count, "solver.num_elites": elites}
        rows[f"candidates_{count}"] = Row(f"K = {count} candidates", settings)
    for horizon in (1, 2, 5):
        rows[f"horizon_{horizon}"] = Row(f"H = {horizon} model steps ahead", {"solver.horizon": horizon})
    for iterations in (1, 2, 6):
        rows[f"iterations_{iterations}"] = Row(f"I = {iterations} iterations", {"solver.num_iterations": iterations})
    rows |= {f"solver_{name}": solver_row(name) for name in OTHER_SOLVERS}
    rows["l1"] = Row("absolute instead of squared distance", {"distance": "l1"})
    summed = {"cost": "latent", "distance": "l2", "summed": True}
    rows["summed"] = Row("distance of all imagined steps instead of the last", {"planner.cost": summed})
    rows["warm_start"] = Row("starts from the last plan", {"warm_start": True})
    return rows


ROWS = make_rows()


@dataclass(frozen=True)
class Chain:
    """The runs of one environment and seed.

    Attributes:
        arguments: of the command line.
        environment: a name of `reproduce.ENVIRONMENTS`.
        seed: of the world model; of planning and tasks here, too.
    """

    arguments: argparse.Namespace
    environment: str
    seed: int

    @property
    def folder(self) -> Path:
        return self.arguments.output / self.environment / f"seed-{self.seed}"

    @property
    def model(self) -> Path:
        return self.folder / self.arguments.model

    def results(self, row: str) -> Path:
        """Of a row; those of another model or number of tasks are not taken for it."""
        name = f"planning-{self.arguments.model.replace('/', '-')}-{self.arguments.episodes}"
        return self.folder / name / row / "results.json"

    def run(self, row: str) -> None:
        """Plans with a row's settings; with the recipe's the methods without a world model run, too."""
        output = self.results(row).parent
        config = CONFIGS / ENVIRONMENTS[self.environment]["plan"]
        command = script("plan.py", "--config", str(config), f"output_dir={output}", "videos=0", "num_threads=1")
        command += [f"models={json.dumps({MODEL: str(self.model)})}", f"seed={self.seed}"]
        command += [f"first_task={FIRST_TASK + 1000 * self.seed}", f"episodes={self.arguments.episodes}"]
        command += [f"{key}={json.dumps(value)}" for key, value in ROWS[row].settings.items()]
        command += [] if row == RECIPE else ["baselines=[]"]
        Road(output, threads=1, quiet=True).run("plan", ("plan", self.results(row), command))

    def measured(self, row: str) -> dict[str, Any]:
        """What a finished row left: numbers of the table, and success of `baselines` by name."""
        planned = {found["name"]: found for found in json.loads(self.results(row).read_text())["rows"]}
        own = planned.pop(MODEL)
        return {
            "success": own["success"],
            "plan_milliseconds": own["plan_milliseconds"],
            "by_distance": [part["success"] for part in own["by_distance"]],
            "baselines": {name: found["success"] for name, found in planned.items()},
        }


def find_chains(arguments: argparse.Namespace, environment: str) -> list[Chain]:
    """Those of the seeds that have a world model, or have had one."""
    folders = (arguments.output / environment).glob("seed-*")
    chains = [Chain(arguments, environment, seed) for seed in sorted(int(path.name[5:]) for path in folders)]
    return [chain for chain in chains if chain.model.exists() or any(chain.results(row).exists() for row in ROWS)]


def run_all(arguments: argparse.Namespace) -> None:
    """Every row with all its seeds, `lanes` runs at a time."""
    chains = [chain for environment in arguments.environments for chain in find_chains(arguments, environment)]
    if not chains:
        raise SystemExit(
            f"there is no {arguments.model} in {arguments.output}/ENVIRONMENT/seed-*: train world models with "
            "examples/reproduce.py, or name others with --model."
        )
    run_lanes(chains, arguments.rows, arguments.lanes)


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Means over seeds, and the values by seed, of every row that is finished in every environment, with those that
    are in the results already."""
    results: dict[str, Any] = {"model": arguments.model, "episodes": arguments.episodes, "environments": {}}
    known = known_rows(arguments.results, results)
    for environment in ENVIRONMENTS:
        chains = find_chains(arguments, environment)
        rows = [joined(known.get((environment, name)), summarise(name, chains)) for name in ROWS]
        rows = [row for row in rows if row["seeds"]]
        if rows:
            results["environments"][environment] = {"rows": rows, "differences": list(differences(rows))}
    if not results["environments"]:
        raise SystemExit(f"no row with {arguments.model} is finished in {arguments.output}: nothing to publish.")
    return results


def summarise(name: str, chains: list[Chain]) -> dict[str, Any]:
    """One row over the seeds that have finished it."""
    chains = [chain for chain in chains if chain.results(name).exists()]
    row: dict[str, Any] = {"name": name, "title": ROWS[name].title, "seeds": [chain.seed for chain in chains]}
    if not chains:
        return row
    found = [chain.measured(name) for chain in chains]
    row["success"] = over_seeds([one["success"] for one in found])
    row["plan_milliseconds"] = float(np.mean([one["plan_milliseconds"] for one in found]))
    distances = zip(*(one["by_distance"] for one in found), strict=True)
    row["by_distance"] = {str(number): over_seeds(list(values)) for number, values in enumerate(distances)}
    row["baselines"] = {key: over_seeds([one["baselines"][key] for one in found]) for key in found[0]["baselines"]}
    return row


def differences(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Success of every row minus the recipe's, on the same seeds and tasks."""
    found = {row["name"]: dict(zip(row["seeds"], row["success"]["by_seed"], strict=True)) for row in rows}
    for name in found:
        difference = {} if name == RECIPE else paired(found[name], found.get(RECIPE, {}))
        if difference:
            yield {"row": name, **difference}


def format_tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = []
    for environment, result in results["environments"].items():
        seeds = max(len(row["seeds"]) for row in result["rows"])
        lines += [
            f"**{environment.replace('_', ' ').capitalize()}**: up to {seeds} training seeds, {results['episodes']} "
            "tasks a seed. Means over seeds; success with its 95 % interval over seeds. Near, middle, far: the thirds "
            "of the tasks by the goal's distance. Milliseconds a plan: wall time of a plan in a batch, as runs went "
            "side by side.",
            "",
            *format_rows(result["rows"], {one["row"]: one for one in result["differences"]}),
            "",
        ]
    return "\n".join(lines).rstrip("\n")


def format_rows(rows: list[dict[str, Any]], compared: dict[str, dict[str, Any]]) -> list[str]:
    """The rows with their differences from the recipe, and the methods without a world model below them."""
    titles = ["row", "success", "by seed", "minus the recipe", "95 % interval", "near, middle, far", "ms a plan"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        difference = compared.get(row["name"])
        cells = [row["title"], *success_cells(row["success"])]
        cells += [f"{difference['mean']:+.2f}", interval_cell(difference)] if difference else ["", ""]
        cells.append(", ".join(f"{part['mean']:.2f}" for part in row["by_distance"].values()))
        cells.append(f"{row['plan_milliseconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        for name, success in row["baselines"].items():
            lines.append(f"| {' | '.join([name, *success_cells(success), '', '', '', ''])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"), help="the folder of reproduce.py")
    parser.add_argument("--model", default="world_model_pretrained/final", help="within OUTPUT/ENVIRONMENT/seed-*")
    parser.add_argument("--environments", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS))
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--episodes", type=int, default=50, help="tasks a row and seed")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows to run")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "planning.json")
    document = ROOT / "docs" / "planning_evaluation.md"
    parser.add_argument("--document", type=Path, default=document, help="file with markers")
    parser.add_argument("--collect", action="store_true", help="run nothing: publish what the runs so far measured")
    arguments = parser.parse_args()
    if not arguments.collect:
        run_all(arguments)
    results = collect(arguments)
    publish_tables(results, format_tables(results), arguments.results, [arguments.document], "planning")


if __name__ == "__main__":
    main()
