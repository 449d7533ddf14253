"""Many videos without actions and few episodes with: does learning to see from video help to plan?

    python examples/studies/few_actions.py [--output runs/few_actions] [--seeds 3] [--jobs 2]

Pushing with varied appearance. The network of a learned state (docs/states.md) is trained on `--videos` videos whose
actions nobody reads, or on the few episodes with actions alone, with as many steps. The dynamics are always trained on
the few episodes. The rows:

* "episodes alone": the network is trained on the episodes and their actions;
* "videos": on the videos, without actions;
* "videos, then episodes": the same network, trained further on the episodes and their actions;
* "videos with actions": on the videos and their actions, which the other rows do not see: what actions would add
  (with the fewest episodes alone).

"videos" is also measured after fewer steps, a curve over the compute of pretraining. Each training seed has its own
episodes and plans on its own tasks. Positions are read out of the states in other appearances (`read_states.py`).
Results go to `results/few_actions.json` and docs/states.md.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import study


ALONE, VIDEOS, BOTH, LABELED = "episodes alone", "videos", "videos, then episodes", "videos with actions"
ROWS = (ALONE, VIDEOS, BOTH, LABELED)
PAIRS = ((VIDEOS, ALONE), (BOTH, ALONE), (BOTH, VIDEOS), (LABELED, VIDEOS))
COUNTS = (60, 140, 300)  # episodes with actions
FRACTIONS = (16, 4)  # of the steps on videos, in the curve: a sixteenth and a quarter
CONFIG, PLAN = "demo/world_model_learned.yaml", "demo/plan_learned.yaml"
RECORD = f"{study.ENVIRONMENTS['pushing']} --varied_appearance --num_proc 2"
FIRST_TASK = 970_000  # of no other study; each seed has 1000
EPISODE_SEED = 10_000  # of the first seed's episodes; the videos have seed 0
BLIND = {"state.use_actions": False}


def run(options: argparse.Namespace) -> None:
    shared, seeds = study.RunFolder(options.output), range(options.seeds)
    shared.record(options.output / "videos", f"{RECORD} --episodes {options.videos}")
    for seed in seeds:
        command = f"{RECORD} --episodes {max(COUNTS)} --seed {EPISODE_SEED * (seed + 1)}"
        shared.record(options.output / f"episodes-{seed}", command)
    first, then = [], []
    for seed in seeds:
        part = partial(partial, run_row, options, seed)
        first += [part(row, COUNTS[0], options.steps) for row in (VIDEOS, LABELED)]
        first += [part(ALONE, count, options.steps) for count in COUNTS]
        then += [part(VIDEOS, count, options.steps) for count in COUNTS[1:]]
        then += [part(BOTH, count, options.steps) for count in COUNTS]
        then += [part(VIDEOS, COUNTS[0], options.steps // fraction) for fraction in FRACTIONS]
    study.run_side_by_side(first, options.jobs)
    study.run_side_by_side(then, options.jobs)  # on the networks of the first ones


def run_row(options: argparse.Namespace, seed: int, row: str, count: int, steps: int) -> None:
    """A world model on `count` episodes with actions, planning, and the read-out of its states."""
    folder = options.output / f"seed-{seed}"
    runs, name = study.RunFolder(folder), name_of(row, count, steps)
    settings = {"data": options.output / f"episodes-{seed}", "max_episodes": count, "seed": seed, **study.SHORT_RUN}
    settings |= {"cache_dir": options.output / "cache", "max_steps": options.dynamics_steps}
    settings |= network_of(options, folder, row, count, steps)
    model = runs.configured(name, "train_world_model.py", CONFIG, settings)
    planning = {"models": {row: str(model)}, "seed": seed, "first_task": FIRST_TASK + 1000 * seed, "videos": 0}
    planning |= {"episodes": options.tasks, "success_levels": study.PUSHING_LEVELS}
    planning |= {} if (row, count) == (ALONE, COUNTS[0]) else {"baselines": []}
    runs.configured(f"plan {name}", "plan.py", PLAN, planning, result="results.json")
    result = folder / f"read_{study.slug(name)}.json"
    arguments = [str(model), str(result), "--episodes", str(options.read_episodes)]
    runs.run(f"read {name}", result, "studies/read_states.py", *arguments)


def network_of(options: argparse.Namespace, folder: Path, row: str, count: int, steps: int) -> dict[str, Any]:
    """Settings of the network: trained in the first stage of the run, or taken from the row's run on the fewest
    episodes, which has trained it on videos."""
    trained = {"state.max_steps": steps}
    if row == ALONE:
        return trained
    if row == BOTH:
        return {
            "state.start_from": stage(folder, VIDEOS, options.steps),
            "state.max_steps": options.further_steps,
            "state.learning_rate": options.further_rate,
        }
    if count != COUNTS[0]:  # neither the videos nor the network depend on the episodes
        return {"state_of": stage(folder, row, steps), "state": {}}
    return trained | {"state.data": str(options.output / "videos"), **(BLIND if row == VIDEOS else {})}


def stage(folder: Path, row: str, steps: int) -> str:
    """The network that a row's run on the fewest episodes has trained."""
    return str(folder / study.slug(name_of(row, COUNTS[0], steps)) / "state" / "final")


def name_of(row: str, count: int, steps: int) -> str:
    return f"{row} {count} {steps}"


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------
def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """By number of episodes with actions: rows over the seeds that have them, and their paired differences; the curve
    over steps on videos; core minutes of the networks."""
    found: dict[str, Any] = {"success": {}, "differences": {}, "curve": {}, "baselines": {}}
    for count in COUNTS:
        rows = {row: measured(options, name_of(row, count, options.steps)) for row in ROWS}
        rows = {row: columns for row, columns in rows.items() if columns}
        if rows:
            found["success"][str(count)] = rows
            found["differences"][str(count)] = study.paired(rows, "success", PAIRS)
    if not found["success"]:
        return None
    for steps in (*(options.steps // fraction for fraction in FRACTIONS), options.steps):
        columns = measured(options, name_of(VIDEOS, COUNTS[0], steps))
        found["curve"] |= {str(steps): columns} if columns else {}
    baselines = [table["rows"] for table in _plans(options, name_of(ALONE, COUNTS[0], options.steps))]
    names = [row["name"] for row in baselines[0] if row["name"] != ALONE] if baselines else []
    for name in names:
        success = [row["success"] for rows in baselines for row in rows if row["name"] == name]
        found["baselines"][name] = study.over_seeds(success)
    plan = study.slug(f"plan {name_of(ALONE, COUNTS[0], options.steps)}")
    study.copy_manifests(options.output, options.results, plan)
    times = study.read_seeds(options.output, "core_times.json", options.seeds)
    names = {row: name_of(row, COUNTS[0], options.steps) for row in ROWS}
    minutes = {row: [one[name] / 60 for one in times if name in one] for row, name in names.items()}
    return found | {"core_minutes": minutes}


def _plans(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    return study.read_seeds(options.output, f"{study.slug(f'plan {name}')}/results.json", options.seeds)


def measured(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Columns of a run over the seeds that have it; empty if none has."""
    tables = _plans(options, name)
    read = study.read_seeds(options.output, f"read_{study.slug(name)}.json", options.seeds)
    if not tables or len(read) < len(tables):
        return {}
    rows = [next(row for row in table["rows"] if row["name"] == name.rsplit(" ", 2)[0]) for table in tables]
    columns = {"success": [row["success"] for row in rows]}
    columns |= {level: [row["levels"][level]["success"] for row in rows] for level in list(study.PUSHING_LEVELS)[1:]}
    columns |= {f"R² {disc}": [one["r_squared"][disc] for one in read] for disc in read[0]["r_squared"]}
    return {title: study.over_seeds(values) for title, values in columns.items()}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    fewest = next(iter(results["success"].values()))
    seeds = max(len(columns["success"]["by_seed"]) for columns in fewest.values())
    yield (
        f"Pushing with varied appearance, {results['videos']} videos, {seeds} training seed(s) × {results['tasks']} "
        f'tasks: mean (95 % interval over seeds). Every network has {results["steps"]} steps, "{BOTH}" '
        f"{results['further_steps']} more; all dynamics {results['dynamics_steps']}. R² is of positions that a linear "
        "regression reads from the states in appearances that it was not fitted on."
    )
    titles = list(next(iter(fewest.values())))
    success = results["success"].items()
    rows = [[count, row, *columns.values()] for count, found in success for row, columns in found.items()]
    blank = [None] * (len(titles) - 1)
    rows += [["", name, success, *blank] for name, success in results["baselines"].items()]
    yield ["episodes with actions", "network trained on", *titles], rows
    yield "Differences of success, paired by training seed, with 95 % intervals:"
    pairs = {f"{row} − {minus}": {} for row, minus in PAIRS}
    for count, differences in results["differences"].items():
        for one in differences:
            pairs[f"{one['row']} − {one['minus']}"][count] = study.difference_cell(one)
    counts = list(results["differences"])
    cells = [[name, *(found.get(count) for count in counts)] for name, found in pairs.items() if found]
    yield ["difference", *(f"{count} episodes" for count in counts)], cells
    yield f'The network of "{VIDEOS}" after fewer steps, with {COUNTS[0]} episodes with actions:'
    yield ["steps on videos", *titles], [[steps, *columns.values()] for steps, columns in results["curve"].items()]


SETTINGS = {
    "videos": (3000, "recorded videos"),
    "steps": (2400, "steps of the network"),
    "further_steps": (600, "further steps on the episodes"),
    "further_rate": (5e-4, "learning rate of the further steps"),
    "dynamics_steps": (1000, "steps of the dynamics"),
    "tasks": (100, "tasks per seed"),
    "read_episodes": (100, "episodes that positions are read out of"),
}
STUDY = study.Study("few_actions", __doc__, run, collect, format_tables, ["docs/states.md"], SETTINGS)


if __name__ == "__main__":
    STUDY.main()
