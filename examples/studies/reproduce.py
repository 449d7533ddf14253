"""The table of README and of the model card: success of every encoder, cost and baseline in both environments.

    python examples/studies/reproduce.py [--output runs/reproduce] [--seeds 3] [--paired_seeds 10]

Hours on two cores. For each environment and training seed: pretraining; three world models (pretrained encoder, random
encoder, raw pixels) with the same dynamics and number of steps; a distance head for each encoder; cloning, and an
actor that improves it in imagination on the first world model; planning on 100 tasks of the seed's own. In two rooms
the dynamics see three frames. In pushing, one run measures success of the block alone, and of block and pusher.
Further seeds of pushing compare the pretrained with the random encoder. Results go to `results/reproduce.json`,
README and the model card, and the tasks to `results/manifests/`. Seeds of an earlier results file that a folder of
runs does not have stay in the table, so that seeds may be added: `--first_seed 4` runs the others only.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import study


POLICIES = (
    "goal-conditioned behavior cloning",
    "behavior cloning, goals sampled uniformly",
    "actor: cloning, improved in imagination",
)
ENCODERS = {"pretrained": "CEM, pretrained encoder", "random": "CEM, random encoder", "pixels": "CEM, raw pixels"}
PAIR = ("pretrained", "random")  # compared over more seeds
LEARNED = {name: f"{ENCODERS[name]}, learned distance" for name in PAIR}
PAIRS = (  # of rows whose difference is in the results
    (ENCODERS["pretrained"], ENCODERS["random"]),
    (LEARNED["pretrained"], LEARNED["random"]),
    (LEARNED["pretrained"], ENCODERS["pretrained"]),
)
PROPOSED = "CEM, pretrained encoder, from cloning's proposals"
LEVELS = study.PUSHING_LEVELS
COLUMNS = {  # of the table: environment and level of success
    "Pushing": ("pushing", "block"),
    "Pushing, block and pusher": ("pushing", "block and pusher"),
    "Two rooms": ("two_rooms", None),
}
EPISODES = 100  # of the demo's planning config
FIRST_TASK = 700_000  # tasks of the demo and the ablations have smaller numbers: choices were made on those


def run(options: argparse.Namespace) -> None:
    for environment in study.ENVIRONMENTS:
        study.record_episodes(options.output / environment)
    runs = [
        partial(run_seed, options.output, environment, seed, complete=True)
        for seed in range(options.first_seed, options.seeds)
        for environment in study.ENVIRONMENTS
    ]
    further = range(max(options.first_seed, options.seeds), options.paired_seeds)
    runs += [partial(run_seed, options.output, "pushing", seed, complete=False) for seed in further]
    study.run_side_by_side(runs, options.jobs)


def run_seed(output: Path, environment: str, seed: int, complete: bool) -> None:
    """Everything of one environment and seed; if it is not complete, only what compares the encoders."""
    runs = study.RunFolder(output / environment / f"seed-{seed}")
    data = {"data": output / environment / "episodes", "seed": seed}
    planning = {
        "models": train_models(runs, environment, data, list(ENCODERS) if complete else list(PAIR)),
        "seed": seed,
        "videos": 10 if complete else 0,
        "first_task": FIRST_TASK + 1000 * seed,  # other tasks for every seed: the spread contains that of the tasks
        "success_levels": LEVELS if environment == "pushing" else {},
        "rows": {LEARNED[name]: {"model": ENCODERS[name], "planner": {"cost": "closest"}} for name in PAIR},
    }
    if complete:
        policies = train_policies(runs, data | {"world_model": planning["models"][ENCODERS["pretrained"]]})
        planning["policies"] = policies
        planning["proposals"] = {PROPOSED: policies[POLICIES[0]]}
        planning["rows"] = {PROPOSED: {"model": ENCODERS["pretrained"]}} | planning["rows"]
    else:
        planning["baselines"] = []
    runs.configured("plan", "plan.py", study.demo_config("plan", environment), planning, result="results.json")


def train_models(runs: study.RunFolder, environment: str, data: dict[str, Any], encoders: list[str]) -> dict[str, str]:
    """World models with distance heads, by the names of their rows; raw pixels have no head."""
    training = data | {"resume": "latest"}
    encoder = {"encoder": runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", training)}
    models, config = {}, study.demo_config("world_model", environment)
    for name in encoders:
        source = encoder if name == "pretrained" else study.ablation("demo/world_model.yaml", name)
        settings = (
            source | training | {"world_model.distance_head": False}
        )  # so that the dynamics are trained as before
        model = runs.configured(f"world_model_{name}", "train_world_model.py", config, settings)
        models[ENCODERS[name]] = str(
            runs.train_distance_head(f"distance_{name}", model, data) if name in PAIR else model
        )
    return models


def train_policies(runs: study.RunFolder, on_model: dict[str, Any]) -> dict[str, str]:
    """Policies on the latents of a world model, by the names of their rows."""
    on_model = on_model | {"resume": "latest"}
    cloning = runs.configured("cloning", "train_cloning.py", "demo/cloning.yaml", on_model)
    one_goal = on_model | {"goal_candidates": 1}
    even = runs.configured("cloning_even", "train_cloning.py", "demo/cloning.yaml", one_goal)
    actor = runs.configured("actor", "train_actor.py", "demo/actor.yaml", on_model | {"start": cloning})
    return dict(zip(POLICIES, map(str, (cloning, even, actor)), strict=True))


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Success by column of the table and rollout errors by environment, means over seeds."""
    seeds = max(options.seeds, options.paired_seeds)
    found = {name: collect_environment(options.output / name, seeds) for name in study.ENVIRONMENTS}
    for name in found:  # the rows of a seed share their tasks
        study.copy_manifests(options.output / name, options.results, name=name)
    found = {name: result for name, result in found.items() if result["rows"]}
    if not found:
        return None
    earlier = known_results(options.results)
    columns = dict(earlier["columns"])
    for title, (environment, level) in COLUMNS.items():
        if environment in found:
            known = columns.get(title, {})
            columns[title] = known | column_of(found[environment]["rows"], level, known)
    differences = {title: study.differences(list(column.values()), PAIRS) for title, column in columns.items()}
    errors = {name: result["rollout_error_over_copy"] for name, result in found.items()}
    errors |= earlier["rollout_error_over_copy"] if options.first_seed else {}
    return {"episodes": EPISODES, "columns": columns, "differences": differences, "rollout_error_over_copy": errors}


def collect_environment(folder: Path, seeds: int) -> dict[str, Any]:
    """Rows of all seeds, by name and seed, and rollout errors."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in range(seeds):
        for table in study.read_results([folder / f"seed-{seed}" / "plan" / "results.json"]):
            for row in table["rows"]:
                rows.setdefault(row["name"], {})[seed] = row
    errors = {}
    for encoder in ENCODERS:
        if measured := study.read_seeds(folder, f"world_model_{encoder}/rollout_error.json", seeds):
            errors[encoder] = {
                str(row["horizon"]): float(np.mean([one[i]["error"] / one[i]["copy_error"] for one in measured]))
                for i, row in enumerate(measured[0])
            }
    return {"rows": rows, "rollout_error_over_copy": errors}


def known_results(results: Path) -> dict[str, dict[str, Any]]:
    """The earlier results file, whose seeds count where this folder has none."""
    known = study.read_results([results])
    return known[0] if known and known[0]["episodes"] == EPISODES else {"columns": {}, "rollout_error_over_copy": {}}


def column_of(
    rows: dict[str, dict[int, dict[str, Any]]], level: str | None, known: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Name, seeds and success of each row, by name, at a level of success; `known` has those of earlier runs."""
    column = {}
    for name, by_seed in rows.items():
        values = {}
        if name in known:
            values = dict(zip(known[name]["seeds"], known[name]["success"]["by_seed"], strict=True))
        values |= {seed: (row if level is None else row["levels"][level])["success"] for seed, row in by_seed.items()}
        values = dict(sorted(values.items()))
        column[name] = {"name": name, "seeds": list(values), "success": study.over_seeds(list(values.values()))}
    return column


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """Success and its differences, with one column per environment and level of success."""
    columns = results["columns"]
    counts = sorted({len(row["seeds"]) for column in columns.values() for row in column.values()})
    seeds = f"{counts[0]} training seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} training seeds"
    yield f"Success rate over {seeds} × {results['episodes']} tasks: mean (95 % interval over seeds)."
    methods = dict.fromkeys(method for column in columns.values() for method in column)
    success = [[method, *(column.get(method, {}).get("success") for column in columns.values())] for method in methods]
    yield ["method", *columns], success
    yield "Differences, paired by training seed, with 95 % intervals and the number of seeds:"
    pairs = {f"{row} − {minus}": (row, minus) for row, minus in PAIRS}
    cells = {
        title: {(one["row"], one["minus"]): difference_cell(one) for one in differences}
        for title, differences in results["differences"].items()
    }
    rows = [[name, *(cell.get(pair) for cell in cells.values())] for name, pair in pairs.items()]
    yield ["difference", *cells], rows


def difference_cell(one: dict[str, Any]) -> str:
    return f"{study.difference_cell(one)}, {len(one['by_seed'])}"


SEEDS = {
    "first_seed": (0, "seeds below it come from the earlier results file"),
    "seeds": (3, "training seeds of all rows"),
    "paired_seeds": (10, "training seeds of the pretrained and the random encoder in pushing"),
}
STUDY = study.Study(
    "reproduce", __doc__, run, collect, format_tables, ["README.md", "model_cards/demo.md"], options=SEEDS
)


if __name__ == "__main__":
    STUDY.main()
