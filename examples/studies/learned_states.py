"""Planning with learned states under varied appearance, with goal images in the same and in another appearance.

    python examples/studies/learned_states.py [--output runs/learned_states] [--seeds 3] [--jobs 2]

For pushing and two rooms: recorded episodes, each in its own appearance, which all training seeds share. For each
seed: a learned state and dynamics on it (examples/configs/demo/world_model_learned.yaml); in two rooms a distance
head; planning as in examples/configs/demo/plan_learned.yaml, on tasks of the seed's own. Goal images are in the
appearance of the observations, then in another one, for the same tasks. In pushing, one run measures success of the
block alone, and of block and pusher. A row with the true dynamics and few candidates, next to one with the learned
dynamics and as few, shows what the dynamics cost. `read_states.py` reads positions out of the first seed's states.
Results go to `results/learned_states.json`, docs/states.md and its figure, and the tasks to `results/manifests/`.
"""

import argparse
import shutil
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import study
import yaml

from vjepa2_hf.environments import PUSHING, TWO_ROOMS


ENVIRONMENTS = {"pushing": PUSHING, "two_rooms": TWO_ROOMS}
CONFIG = "demo/world_model_learned.yaml"
FIRST_TASK = 950_000  # of no other study
FEW_CANDIDATES = 32  # true dynamics are slow: every candidate's images are rendered and encoded
WHITENED, L2, LEARNED = "whitened distance", "l2 distance", "learned distance"
FEW, TRUE = f"whitened distance, {FEW_CANDIDATES} candidates", f"true dynamics, {FEW_CANDIDATES} candidates"
SAME, OTHER = "same appearance", "other appearance"
PLANS = {SAME: "plan", OTHER: "plan_other"}
STRICT = "block and pusher"
COLUMNS = {  # of the tables: appearance of the goal and level of success
    "pushing": {
        SAME: (SAME, "block"),
        f"{SAME}, {STRICT}": (SAME, STRICT),
        OTHER: (OTHER, "block"),
        f"{OTHER}, {STRICT}": (OTHER, STRICT),
    },
    "two_rooms": {SAME: (SAME, None), OTHER: (OTHER, None)},
}
APPEARANCES = ((OTHER, SAME), (f"{OTHER}, {STRICT}", f"{SAME}, {STRICT}"))  # columns that are compared
PAIRS = ((WHITENED, L2), (TRUE, FEW), (LEARNED, WHITENED))  # rows that are compared
PIECES = {  # of the core time, by name of a run
    "world_model": "state and dynamics",
    "distance": "distance head",
    "plan": "planning",
    "plan_other": "planning, other appearance",
}
READ_OUT = "seed-0/read_states.json"


def run(options: argparse.Namespace) -> None:
    for environment, record in study.ENVIRONMENTS.items():
        folder = options.output / environment
        command = f"{record} --varied_appearance --episodes {options.episodes} --num_proc 2"
        study.RunFolder(folder).record(folder / "episodes", command)
    runs = [
        partial(run_seed, options, environment, seed) for environment in ENVIRONMENTS for seed in range(options.seeds)
    ]
    study.run_side_by_side(runs, options.jobs)


def run_seed(options: argparse.Namespace, environment: str, seed: int) -> None:
    """The model of one environment and training seed, and planning with it."""
    folder = options.output / environment
    runs, pushing = study.RunFolder(folder / f"seed-{seed}"), environment == "pushing"
    data = {"data": folder / "episodes", "seed": seed}
    training = data | study.SHORT_RUN | {"max_steps": options.dynamics_steps}
    training |= {"state.max_steps": options.steps if pushing else options.room_steps}
    training |= {"state.symmetries": ENVIRONMENTS[environment]}
    model = runs.configured("world_model", "train_world_model.py", CONFIG, training)
    model = model if pushing else runs.train_distance_head("distance", model, data)

    config = study.demo_config("plan_learned", environment)
    few = {"model": WHITENED, "solver": few_candidates(config)}
    rows = {L2: {"model": WHITENED, "distance": "l2"}}
    rows |= {FEW: few, TRUE: few | {"true_dynamics": True}} if pushing else {}
    rows |= {} if pushing else {LEARNED: {"model": WHITENED, "planner": {"cost": "closest"}}}
    planning = {
        "models": {WHITENED: str(model)},
        "rows": rows,
        "seed": seed,
        "videos": 0,
        "episodes": options.tasks if pushing else options.room_tasks,
        "first_task": FIRST_TASK + 1000 * seed,  # other tasks for every seed: the spread contains that of the tasks
        "success_levels": study.PUSHING_LEVELS if pushing else {},
    }
    runs.configured("plan", "plan.py", config, planning, result="results.json")
    kept = {name: row for name, row in rows.items() if name not in (FEW, TRUE)}
    other = {"env_kwargs": {"goal_appearance": "other"}, "baselines": [], "rows": kept}  # baselines see no goal image
    runs.configured("plan_other", "plan.py", config, planning | other, result="results.json")
    if pushing and seed == 0:
        result = folder / READ_OUT
        runs.run("read_states", result, "studies/read_states.py", str(model), str(result))


def few_candidates(config: str) -> dict[str, Any]:
    """The solver of a planning config with `FEW_CANDIDATES`, and as large a fraction of elites."""
    solver = yaml.safe_load((study.CONFIGS / config).read_text(encoding="utf-8"))["solver"]
    elites = {"num_elites": max(2, solver["num_elites"] * FEW_CANDIDATES // solver["num_candidates"])}
    return solver | {"num_candidates": FEW_CANDIDATES} | (elites if "num_elites" in solver else {})


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------
def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """By environment: success by row and column, differences paired by seed, and core minutes."""
    found = {name: collect_environment(options, name) for name in ENVIRONMENTS}
    found = {name: result for name, result in found.items() if result["success"]}
    if not found:
        return None
    read_out = study.read_results([options.output / "pushing" / READ_OUT])
    if read_out and options.documents:
        figure = (options.output / "pushing" / READ_OUT).with_suffix(".png")
        shutil.copyfile(figure, options.documents[0].with_name("states.png"))
    return {"environments": found, "read_out": read_out[0] if read_out else None}


def collect_environment(options: argparse.Namespace, environment: str) -> dict[str, Any]:
    folder = options.output / environment
    success: dict[str, dict[str, Any]] = {}
    milliseconds: dict[str, list[float]] = {}
    manifests = {}
    for appearance, plan in PLANS.items():
        tables = study.read_seeds(folder, f"{plan}/results.json", options.seeds)
        manifests[appearance] = [table["manifest"] for table in tables]
        name = environment if appearance == SAME else f"{environment}-other"
        study.copy_manifests(folder, options.results, plan, name)
        columns = {title: level for title, (own, level) in COLUMNS[environment].items() if own == appearance}
        for row in (row for table in tables for row in table["rows"]):
            if appearance == SAME and row["plan_milliseconds"] is not None:
                milliseconds.setdefault(row["name"], []).append(row["plan_milliseconds"])
            for title, level in columns.items():
                judged = row if level is None else row["levels"][level]
                success.setdefault(row["name"], {}).setdefault(title, []).append(judged["success"])
    rows = {name: {title: study.over_seeds(values) for title, values in row.items()} for name, row in success.items()}
    by_column = {
        title: {name: row[title] for name, row in rows.items() if title in row} for title in COLUMNS[environment]
    }
    return {
        "tasks": options.tasks if environment == "pushing" else options.room_tasks,
        "success": rows,
        "plan_milliseconds": {name: float(np.mean(values)) for name, values in milliseconds.items()},
        "row_differences": {title: study.paired(rows, title, PAIRS) for title in COLUMNS[environment]},
        "appearance_differences": {name: study.paired(by_column, name, APPEARANCES) for name in rows},
        "core_minutes": core_minutes(folder, options.seeds),
        "manifests": manifests,
    }


def core_minutes(folder: Path, seeds: int) -> dict[str, list[float]]:
    """Core minutes by piece, for each seed; of the recording, which all seeds share, there is one number."""
    shared = study.RunFolder(folder).core_times
    found = {"recording, once": [shared["record episodes"] / 60]} if "record episodes" in shared else {}
    times = study.read_seeds(folder, "core_times.json", seeds)
    for name, title in PIECES.items():
        values = [one[name] / 60 for one in times if name in one]
        found |= {title: values} if values else {}
    return found


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    for environment, found in results["environments"].items():
        columns = COLUMNS[environment]
        seeds = max(len(value["by_seed"]) for row in found["success"].values() for value in row.values())
        judged = "the block, or both block and pusher," if environment == "pushing" else "the agent"
        yield (
            f"**{study.capitalized(environment)}**: success over {seeds} training seeds × {found['tasks']} tasks, by "
            f"appearance of the goal image: {judged} within 5 pixels of the goal. Mean (95 % interval over seeds)."
        )
        milliseconds = found["plan_milliseconds"]
        yield (
            ["row", *columns, "ms per plan"],
            [
                [name, *(row.get(title) for title in columns), _one_decimal(milliseconds.get(name))]
                for name, row in found["success"].items()
            ],
        )
        yield "Differences, paired by training seed, with 95 % intervals:"
        yield ["difference", *columns], list(_difference_rows(found, list(columns)))
        yield "Core minutes for each training seed:"
        pieces = found["core_minutes"]
        yield [*pieces], [[", ".join(map(_one_decimal, values)) for values in pieces.values()]] if pieces else []
    read_out = results["read_out"]
    if read_out:
        scores = ", ".join(f"{name} {value:.2f}" for name, value in read_out["r_squared"].items())
        yield (
            "Positions that a linear regression reads out of the first seed's states, fitted on "
            f"{read_out['episodes']} episodes; R² on {read_out['held_out']} held-out episodes in other appearances: "
            f"{scores}."
        )
        yield "![One motion in five appearances: true positions, and those read out of the learned state](states.png)"


def _difference_rows(found: dict[str, Any], columns: list[str]) -> Iterator[list[str | None]]:
    """Rows minus rows in each column, and for each row the columns of the other appearance minus those of the same."""
    cells: dict[str, dict[str, str]] = {}
    for title, differences in found["row_differences"].items():
        for one in differences:
            cells.setdefault(f"{one['row']} − {one['minus']}", {})[title] = study.difference_cell(one)
    for name, differences in found["appearance_differences"].items():
        for one in differences:
            row = cells.setdefault(f"{name}: {OTHER} − {SAME}", {})
            row[one["row"]] = study.difference_cell(one)
    for name, row in cells.items():
        yield [name, *(row.get(title) for title in columns)]


def _one_decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


SETTINGS = {
    "episodes": (3000, "recorded episodes of each environment"),
    "steps": (6400, "steps of the state's network in pushing"),
    "room_steps": (2500, "the same in two rooms"),
    "dynamics_steps": (3000, "steps of the dynamics"),
    "tasks": (200, "tasks of pushing per seed"),
    "room_tasks": (100, "tasks of two rooms per seed"),
}
STUDY = study.Study("learned_states", __doc__, run, collect, format_tables, ["docs/states.md"], SETTINGS)


if __name__ == "__main__":
    STUDY.main()
