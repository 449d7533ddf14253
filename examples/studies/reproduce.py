"""The table of README and of the model card: success of every encoder and baseline in both environments.

    python examples/studies/reproduce.py [--output runs/reproduce] [--seeds 3] [--jobs 2]

Hours on two cores. For each environment and training seed: pretraining; three world models (pretrained encoder, random
encoder, raw pixels) with the same dynamics and number of steps; cloning, and an actor that improves it in imagination
on the first world model; planning on 100 tasks of the seed's own, on the first model also from cloning's proposals.
In two rooms the dynamics see three frames. Results go to `results/reproduce.json`, README and the model card.
"""

import argparse
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
PROPOSED = "CEM, pretrained encoder, from cloning's proposals"
FIRST_TASK = 700_000  # tasks of the demo and the ablations have smaller numbers: choices were made on those


def run(options: argparse.Namespace) -> None:
    for environment in study.ENVIRONMENTS:
        study.record_episodes(options.output / environment)
    seeds = [(environment, seed) for seed in range(options.seeds) for environment in study.ENVIRONMENTS]
    study.run_side_by_side([partial(run_seed, options.output, *one) for one in seeds], options.jobs)


def run_seed(output: Path, environment: str, seed: int) -> None:
    """Pretraining, world models, policies and planning of one environment and seed."""
    runs = study.RunFolder(output / environment / f"seed-{seed}")
    data = {"data": output / environment / "episodes", "seed": seed, "resume": "latest"}

    encoder = {"encoder": runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", data)}
    models, config = {}, study.demo_config("world_model", environment)
    for name, title in ENCODERS.items():
        source = encoder if name == "pretrained" else study.ablation("demo/world_model.yaml", name)
        models[title] = runs.configured(f"world_model_{name}", "train_world_model.py", config, source | data)
    on_model = data | {"world_model": models[ENCODERS["pretrained"]]}
    cloning = runs.configured("cloning", "train_cloning.py", "demo/cloning.yaml", on_model)
    one_goal = on_model | {"goal_candidates": 1}
    even = runs.configured("cloning_even", "train_cloning.py", "demo/cloning.yaml", one_goal)
    actor = runs.configured("actor", "train_actor.py", "demo/actor.yaml", on_model | {"start": cloning})

    models[PROPOSED] = models[ENCODERS["pretrained"]]
    planning = {
        "models": {name: str(path) for name, path in models.items()},
        "policies": dict(zip(POLICIES, map(str, (cloning, even, actor)), strict=True)),
        "proposals": {PROPOSED: str(cloning)},
        "seed": seed,
        "videos": 10,
        "first_task": FIRST_TASK + 1000 * seed,  # other tasks for every seed: the spread contains that of the tasks
    }
    runs.configured("plan", "plan.py", study.demo_config("plan", environment), planning, result="results.json")


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Means over seeds of success and of rollout errors, by environment."""
    found = {name: collect_environment(options.output / name, options.seeds) for name in study.ENVIRONMENTS}
    found = {name: result for name, result in found.items() if result["rows"]}
    return {"environments": found} if found else None


def collect_environment(folder: Path, seeds: int) -> dict[str, Any]:
    tables = [table["rows"] for table in study.read_seeds(folder, "plan/results.json", seeds)]
    rows = []
    for row in max(tables, key=len, default=[]):  # seeds of a stopped study may have different rows
        values = [other["success"] for table in tables for other in table if other["name"] == row["name"]]
        success = study.over_seeds(values)
        success["success"] = success.pop("mean")
        rows.append({"name": row["name"], **success, "episodes": row["episodes"]})
    errors = {}
    for encoder in ENCODERS:
        if measured := study.read_seeds(folder, f"world_model_{encoder}/rollout_error.json", seeds):
            errors[encoder] = {
                str(row["horizon"]): float(np.mean([one[i]["error"] / one[i]["copy_error"] for one in measured]))
                for i, row in enumerate(measured[0])
            }
    return {"rows": rows, "rollout_error_over_copy": errors}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """Success and rollout errors, with one column or row per environment."""
    found = results["environments"]
    seeds = {len(row["by_seed"]) for result in found.values() for row in result["rows"]}
    count = f"{min(seeds)} or {max(seeds)}" if len(seeds) > 1 else max(seeds)
    episodes = next(iter(found.values()))["rows"][0]["episodes"]
    yield f"Success rate over {count} training seeds × {episodes} episodes: mean (95 % interval over seeds), by seed."
    columns = [{row["name"]: cell(row) for row in result["rows"]} for result in found.values()]
    methods = dict.fromkeys(method for column in columns for method in column)
    rows = [[method, *(column.get(method) for column in columns)] for method in methods]
    yield ["method", *map(study.capitalized, found)], rows
    yield "Rollout error on held-out episodes divided by the error of copying the last state, by model steps ahead:"
    errors = {
        f"{study.capitalized(name)}, {encoder}": row
        for name, result in found.items()
        for encoder, row in result["rollout_error_over_copy"].items()
    }
    horizons = next(iter(errors.values()), {})
    yield ["environment, encoder", *horizons], [[name, *row.values()] for name, row in errors.items()]


def cell(row: dict[str, Any]) -> str:
    """Mean, interval and seeds of a row."""
    interval = f"{row['low']:.2f}–{row['high']:.2f}" if len(row["by_seed"]) > 1 else "one seed"
    return f"{row['success']:.2f} ({interval}): {study.cell(row['by_seed'])}"


STUDY = study.Study("reproduce", __doc__, run, collect, format_tables, ["README.md", "model_cards/demo.md"])


if __name__ == "__main__":
    STUDY.main()
