"""Far goals in four rooms: success of flat planning, of subgoals from a graph, and of two time scales.

    python examples/studies/four_rooms.py [--output runs/four_rooms] [--seeds 3] [--episodes 24] [--jobs 2]

About 15 minutes on one CPU core. All training seeds share the recorded episodes. For each: pretraining; a world
model with a distance head; a graph of its latents; a second world model with steps of 8 frames and macro-actions of 2
numbers on the same latents; planning with all of them for goals 25, 50 and 75 steps ahead in other episodes, in twice
as many steps. The tasks of a seed are other ones than those of the next. Results go to `results/four_rooms.json` and
docs/planning_evaluation.md.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import study


RECORD = "record_episodes.py --env vjepa2_hf/FourRooms-v0 --policy waypoints --length 120"
TEST_SEED = 5_000_000  # of the environment: no choice was made on these episodes
FIRST_TASK = 700_000
STEPS = {"pretrain": 300, "world_model": 1200, "macro": 600}
MODELS = {"world_model": "planner's model, steps of 2 frames", "world_model_macro": "second scale, steps of 8 frames"}
HORIZON = 3  # model steps of the planner
BASE = "flat, learned distance"


def run(options: argparse.Namespace) -> None:
    shared = study.RunFolder(options.output)
    shared.record(options.output / "episodes", f"{RECORD} --episodes 200")
    shared.record(options.output / "test_episodes", f"{RECORD} --episodes 60 --seed {TEST_SEED}")
    seeds = [partial(run_seed, options.output, seed, options.episodes) for seed in range(options.seeds)]
    study.run_side_by_side(seeds, options.jobs)


def run_seed(output: Path, seed: int, episodes: int) -> None:
    """All models of a training seed, and planning with them."""
    runs = study.RunFolder(output / f"seed-{seed}")
    data = {"data": output / "episodes", "seed": seed, **study.SHORT_RUN}

    given = data | {"max_steps": STEPS["pretrain"]}
    encoder = {"encoder": runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", given)}
    given = data | encoder | {"max_steps": STEPS["world_model"], "world_model.distance_head": True}
    model = runs.configured("world_model", "train_world_model.py", "demo/world_model.yaml", given)
    given = data | encoder | {"max_steps": STEPS["macro"], "state_of": model}
    config = "four_rooms/world_model_macro.yaml"
    macro = runs.configured("world_model_macro", "train_world_model.py", config, given)
    graph = runs.path / "graph"
    given = {"model": model, "data": output / "episodes", "output_dir": graph, "num_threads": 1, "seed": seed}
    given["planner.horizon"] = HORIZON
    runs.run("graph", graph / "subgoals", "build_subgoal_graph.py", *study.key_values(given))

    planning = {
        "models": {BASE: str(model)},
        "rows": {
            "flat, latent distance": {"model": BASE, "planner": {"cost": "l2"}},
            "subgoals of a graph": {"model": BASE, "subgoals": str(graph / "subgoals")},
            "two time scales": {"model": BASE, "subgoals": str(macro)},
        },
        "solver.horizon": HORIZON,
        "gym.data": output / "test_episodes",
        "episodes": episodes,
        "seed": seed,
        "videos": 0,
        "first_task": FIRST_TASK + 1000 * seed,  # the spread over seeds contains that of the tasks
    }
    runs.configured("plan", "plan.py", "four_rooms/plan.yaml", planning, result="results.json")


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Success over the seeds by method and offset; the tasks' manifests are copied beside the results."""
    found = study.read_seeds(options.output, "plan/results.json", options.seeds)
    study.copy_manifests(options.output, options.results)
    tables, rows = [one["rows"] for one in found], {}
    for row in tables[0] if tables else ():
        method, _, offset = row["name"].rpartition(", offset ")
        values = [other["success"] for table in tables for other in table if other["name"] == row["name"]]
        rows.setdefault(method, {})[offset] = study.over_seeds(values)
    errors = {title: rollout_errors(options, folder) for folder, title in MODELS.items()}
    manifests = [one["manifest"] for one in found]
    return {"rows": rows, "rollout_error_over_copy": errors, "manifests": manifests} if rows else None


def rollout_errors(options: argparse.Namespace, folder: str) -> dict[str, float]:
    """Mean over seeds of the error of rollouts on held-out episodes over that of copying, by frames ahead."""
    measured = study.read_seeds(options.output, f"{folder}/rollout_error.json", options.seeds)
    skips = study.read_seeds(options.output, f"{folder}/final/config.json", options.seeds)
    errors: dict[str, list[float]] = {}
    for rows, config in zip(measured, skips, strict=True):
        for row in rows:
            frames = str(row["horizon"] * config["frame_skip"])
            errors.setdefault(frames, []).append(row["error"] / row["copy_error"])
    return {frames: float(np.mean(values)) for frames, values in errors.items()}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """One row per method with one column per offset, and its values by seed at the largest one."""
    rows = results["rows"]
    by_offset = next(iter(rows.values()))
    last = list(by_offset)[-1]
    seeds = len(by_offset[last]["by_seed"])
    yield (
        f"**Four rooms**: success rate over {seeds} training seeds × up to {results['episodes']} tasks per offset, "
        "without those that their start solves: mean (95 % interval over seeds). An offset is the number of recorded "
        "steps from start to goal; a task has twice as many."
    )
    titles = ["method", *(f"offset {offset}" for offset in by_offset), f"offset {last} by seed"]
    yield titles, [[name, *row.values(), row[last]["by_seed"]] for name, row in rows.items()]
    errors = results["rollout_error_over_copy"]
    frames = sorted({int(name) for row in errors.values() for name in row})
    yield "Rollout error on held-out episodes divided by the error of copying the last state, by frames ahead:"
    yield (
        ["world model", *map(str, frames)],
        [[name, *(row.get(str(number)) for number in frames)] for name, row in errors.items()],
    )


SETTINGS = {"episodes": (24, "tasks per offset and seed")}
PAGES = ["docs/planning_evaluation.md"]
STUDY = study.Study("four_rooms", __doc__, run, collect, format_tables, PAGES, SETTINGS)


if __name__ == "__main__":
    STUDY.main()
