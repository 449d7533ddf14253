"""Many videos without actions and few episodes with: does learning to see from video help to plan?

    python examples/studies/few_actions.py [--output runs/few_actions] [--seeds 3] [--paired_seeds 5] [--jobs 2]

Pushing with varied appearance: `--videos` videos whose actions nobody reads, and few episodes with actions. Every row
trains a learned state and dynamics (docs/states.md) with as many steps:

* "episodes alone": on the few episodes;
* "videos, inferred actions": on the videos, with the actions that an inverse model of the few episodes infers
  (`infer_actions.py`);
* "state from videos": the state on the videos without actions, the dynamics on the few episodes;
* "state from videos, then episodes": the same state, trained further on the few episodes;
* "videos, true actions": on the videos and their actions, which no other row sees: the most that labels can give.

"videos, inferred actions" is also measured after fewer steps, a curve over the compute spent on videos. Seeds beyond
`--seeds` have only the first two rows, with the fewest episodes. Each training seed has its own episodes and plans on
its own tasks. Positions are read out of the states in other appearances (`read_states.py`). Results go to
`results/few_actions.json` and docs/states.md.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from typing import Any

import study

from vjepa2_hf.environments import PUSHING
from vjepa2_hf.metrics.planning_success.planning_success import t_interval


ALONE, INFERRED, TRUE = "episodes alone", "videos, inferred actions", "videos, true actions"
BLIND, FURTHER = "state from videos", "state from videos, then episodes"
ROWS = (ALONE, INFERRED, BLIND, FURTHER, TRUE)
PAIRS = ((INFERRED, ALONE), (BLIND, ALONE), (FURTHER, ALONE), (INFERRED, TRUE))
COUNTS = (60, 140, 300)  # episodes with actions; the last three rows are measured with the fewest
FRACTIONS = (16, 4)  # of the steps, in the curve: a sixteenth and a quarter
CONFIG, PLAN = "demo/world_model_learned.yaml", "demo/plan_learned.yaml"
RECORD = f"{study.ENVIRONMENTS['pushing']} --varied_appearance --num_proc 2"
FIRST_TASK = 970_000  # of no other study; each seed has 1000
EPISODE_SEED = 10_000  # of the first seed's episodes; the videos have seed 0


def run(options: argparse.Namespace) -> None:
    shared, seeds = study.RunFolder(options.output), range(options.seeds)
    further = range(options.seeds, options.paired_seeds)
    shared.record(options.output / "videos", f"{RECORD} --episodes {options.videos}")
    for seed in [*seeds, *further]:
        command = f"{RECORD} --episodes {max(COUNTS)} --seed {EPISODE_SEED * (seed + 1)}"
        shared.record(options.output / f"episodes-{seed}", command)
    first, then = [], []
    for seed in seeds:
        part = partial(partial, run_row, options, seed)
        first += [part(row, COUNTS[0], options.steps) for row in (TRUE, BLIND)]
        first += [part(row, count, options.steps) for count in COUNTS for row in (INFERRED, ALONE)]
        then += [part(FURTHER, COUNTS[0], options.steps)]
        then += [part(INFERRED, COUNTS[0], options.steps // fraction) for fraction in FRACTIONS]
    for seed in further:
        first += [partial(run_row, options, seed, row, COUNTS[0], options.steps) for row in (INFERRED, ALONE)]
    study.run_side_by_side(first, options.jobs)
    study.run_side_by_side(then, options.jobs)  # on what the first ones have left


def run_row(options: argparse.Namespace, seed: int, row: str, count: int, steps: int) -> None:
    """A world model with `count` episodes with actions, planning, and the read-out of its states."""
    folder = options.output / f"seed-{seed}"
    runs, name = study.RunFolder(folder), name_of(row, count, steps)
    settings = {"seed": seed, **study.SHORT_RUN, "max_steps": options.dynamics_steps, "state.max_steps": steps}
    settings |= {"cache_dir": options.output / "cache"} | data_of(options, seed, row, count)
    model = runs.configured(name, "train_world_model.py", CONFIG, settings)
    planning = {"models": {row: str(model)}, "seed": seed, "first_task": FIRST_TASK + 1000 * seed, "videos": 0}
    planning |= {"episodes": options.tasks, "success_levels": study.PUSHING_LEVELS}
    planning |= {} if (row, count) == (ALONE, COUNTS[0]) else {"baselines": []}
    runs.configured(f"plan {name}", "plan.py", PLAN, planning, result="results.json")
    result = folder / f"read_{study.slug(name)}.json"
    arguments = [str(model), str(result), "--episodes", str(options.read_episodes)]
    runs.run(f"read {name}", result, "studies/read_states.py", *arguments)


def data_of(options: argparse.Namespace, seed: int, row: str, count: int) -> dict[str, Any]:
    """Settings of what a row learns from; `INFERRED` has the actions inferred first."""
    videos, episodes = options.output / "videos", options.output / f"episodes-{seed}"
    if row == TRUE:
        return {"data": videos}
    if row == INFERRED:
        folder = options.output / f"seed-{seed}"
        target = folder / f"videos_{count}"
        given = [episodes, videos, target, "--max_episodes", count, "--symmetries", PUSHING, "--seed", seed]
        given += ["--steps", options.inverse_steps]
        runs = study.RunFolder(folder)
        return {"data": runs.run(f"infer {count}", target, "infer_actions.py", *map(str, given))}
    few = {"data": episodes, "max_episodes": count}
    if row == BLIND:
        return few | {"state.data": videos, "state.use_actions": False}
    if row == FURTHER:
        start = options.output / f"seed-{seed}" / study.slug(name_of(BLIND, count, options.steps)) / "final"
        few |= {"state.start_from": start, "state.learning_rate": options.further_rate}
        return few | {"state.max_steps": options.further_steps}
    return few


def name_of(row: str, count: int, steps: int) -> str:
    return f"{row} {count} {steps}"


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------
def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """By number of episodes with actions: rows over the seeds that have them, and their paired differences; the curve
    over steps; R² of the inferred actions."""
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
        columns = measured(options, name_of(INFERRED, COUNTS[0], steps), options.seeds)
        found["curve"] |= {str(steps): columns} if columns else {}
    seeds = all_seeds(options)
    baselines = [table["rows"] for table in _plans(options, name_of(ALONE, COUNTS[0], options.steps), seeds)]
    names = [row["name"] for row in baselines[0] if row["name"] != ALONE] if baselines else []
    for name in names:
        success = [row["success"] for rows in baselines for row in rows if row["name"] == name]
        found["baselines"][name] = study.over_seeds(success)
    plan = study.slug(f"plan {name_of(ALONE, COUNTS[0], options.steps)}")
    study.copy_manifests(options.output, options.results, plan)
    return found | {"inferred": inferred_scores(options)}


def inferred_scores(options: argparse.Namespace) -> dict[str, Any]:
    """R² of the inferred actions by number of episodes."""
    found = {}
    for count in COUNTS:
        known = study.read_seeds(options.output, f"videos_{count}/inferred_actions.json", all_seeds(options))
        scores = [one["r_squared"] for one in known if one["r_squared"] is not None]
        found |= {str(count): study.over_seeds(scores, at_most_one)} if scores else {}
    return found


def at_most_one(values: list[float]) -> tuple[float | None, float | None]:
    """The t-interval of a mean of R², which may be negative."""
    low, high = t_interval(values)
    return low, None if high is None else min(1.0, high)


def all_seeds(options: argparse.Namespace) -> int:
    return max(options.seeds, options.paired_seeds)


def _plans(options: argparse.Namespace, name: str, seeds: int) -> list[dict[str, Any]]:
    return study.read_seeds(options.output, f"{study.slug(f'plan {name}')}/results.json", seeds)


def measured(options: argparse.Namespace, name: str, seeds: int | None = None) -> dict[str, Any]:
    """Columns of a run over those of the first seeds, by default of all, that have it; empty if none has."""
    seeds = all_seeds(options) if seeds is None else seeds
    tables = _plans(options, name, seeds)
    read = study.read_seeds(options.output, f"read_{study.slug(name)}.json", seeds)
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
    seeds = sorted({len(columns["success"]["by_seed"]) for columns in fewest.values()})
    described = study.counted(seeds[0], "training seed")
    described += f" ({seeds[-1]} in the first two rows)" if len(seeds) > 1 else ""
    yield (
        f"Pushing with varied appearance, {results['videos']} videos, {described}, "
        f"{results['tasks']} tasks for each: mean (95 % interval over seeds). Every state has {results['steps']} "
        f'steps, "{FURTHER}" {results["further_steps"]} more; all dynamics {results["dynamics_steps"]}. R² is of '
        "positions that a linear regression reads from the states in appearances that it was not fitted on."
    )
    titles = list(next(iter(fewest.values())))
    success = results["success"].items()
    rows = [[count, row, *columns.values()] for count, found in success for row, columns in found.items()]
    blank = [None] * (len(titles) - 1)
    rows += [["", name, success, *blank] for name, success in results["baselines"].items()]
    yield ["episodes with actions", "trained on", *titles], rows
    scores = ", ".join(f"{study.cell(score)} with {count}" for count, score in results["inferred"].items())
    yield f"R² of the inferred actions, on held-out episodes: {scores} episodes."
    yield "Differences of success, paired by training seed, with 95 % intervals:"
    pairs = {f"{row} − {minus}": {} for row, minus in PAIRS}
    for count, differences in results["differences"].items():
        for one in differences:
            pairs[f"{one['row']} − {one['minus']}"][count] = study.difference_cell(one)
    counts = list(results["differences"])
    cells = [[name, *(found.get(count) for count in counts)] for name, found in pairs.items() if found]
    yield ["difference", *(f"{count} episodes" for count in counts)], cells
    yield f'"{INFERRED}" with {COUNTS[0]} episodes, after fewer steps of the state:'
    yield ["steps", *titles], [[steps, *columns.values()] for steps, columns in results["curve"].items()]


SETTINGS = {
    "videos": (3000, "recorded videos"),
    "steps": (1600, "steps of a state"),
    "inverse_steps": (2000, "steps of an inverse model"),
    "further_steps": (600, "further steps on the episodes"),
    "further_rate": (5e-4, "learning rate of the further steps"),
    "dynamics_steps": (1000, "steps of the dynamics"),
    "tasks": (100, "tasks per seed"),
    "read_episodes": (100, "episodes that positions are read out of"),
}
SEEDS = {
    "seeds": (3, "training seeds of all rows"),
    "paired_seeds": (5, "training seeds of the first two rows with the fewest episodes"),
}
STUDY = study.Study("few_actions", __doc__, run, collect, format_tables, ["docs/states.md"], SETTINGS, SEEDS)


if __name__ == "__main__":
    STUDY.main()
