"""Compares a small agent with the demo's large one in two rooms, by patch size and planning distance.

    python examples/studies/small_agent.py [--seeds 1] [--pretrain_steps 150] [--world_model_steps 800] [--tasks 40]

The large disc with patches of 16 pixels, the small one with patches of 16 and 8, and two costs of CEM: the latent
distance of the last step, and the learned distance at the closest step. With patches of 8 pixels the state merges
2 x 2 tokens into one, so that all world models have 16 tokens. Each is evaluated by planning and by the rank
correlation of its distances with the length of the shortest path, on held-out frames.
"""

import argparse
import json
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import study


WORLD_MODELS = (6.0, 16), (2.5, 16), (2.5, 8)  # radius of the agent and side of a patch, in pixels
LATENT, LEARNED = "latent distance, last step", "learned distance, closest step"
SOLVER = {"solver.num_candidates": 32, "solver.num_iterations": 2, "solver.num_elites": 4}
STATE = {16: {}, 8: {"world_model.state_type": "merged", "world_model.state_dim": 96}}
EPISODES = "record_episodes.py --env vjepa2_hf/TwoRooms-v0 --policy wander --num_proc 1 --num_shards 1"
FIRST_TASK = 320_000  # of no other study


def run(options: argparse.Namespace) -> None:
    for radius in sorted({radius for radius, _ in WORLD_MODELS}):
        kwargs = json.dumps({"agent_radius": radius}, separators=(",", ":"))
        command = f"{EPISODES} --episodes {options.episodes} --env_kwargs {kwargs}"
        study.RunFolder(options.output).record(episodes_of(options, radius), command)
    models = [(seed, *sizes) for seed in range(options.seeds) for sizes in WORLD_MODELS]
    study.run_side_by_side([partial(run_model, options, *model) for model in models], options.jobs)


def episodes_of(options: argparse.Namespace, radius: float) -> Path:
    return options.output / f"episodes_{study.slug(str(radius))}"


def folder_of(options: argparse.Namespace, seed: int, radius: float, patch: int) -> Path:
    return options.output / f"seed-{seed}" / f"radius_{study.slug(str(radius))}_patch_{patch}"


def run_model(options: argparse.Namespace, seed: int, radius: float, patch: int) -> None:
    """Encoder, world model with a distance head, its distances by true distance, and planning."""
    runs, env_kwargs = study.RunFolder(folder_of(options, seed, radius, patch)), {"agent_radius": radius}
    common = {"data": episodes_of(options, radius), "seed": seed, **study.SHORT_RUN}
    settings = {"max_steps": options.pretrain_steps, "encoder.patch_size": patch}
    encoder = runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", common | settings)
    common.pop("num_workers")
    settings = {"max_steps": options.world_model_steps, "encoder": encoder, "world_model.distance_head": True}
    config = "demo/world_model.yaml"  # Markov: in two rooms an image shows the whole state
    model = runs.configured("world_model", "train_world_model.py", config, common | settings | STATE[patch])
    output, env = runs.path / "distances.json", "distance_env=vjepa2_hf/TwoRooms-v0"
    arguments = [f"model={model}", f"data={common['data']}", f"output={output}", env, "num_threads=1"]
    arguments += study.key_values({"distance_env_kwargs": env_kwargs})
    runs.run("distances", output, "evaluate_world_model.py", *arguments)
    rows = {LEARNED: {"model": LATENT, "planner": {"cost": "closest"}}}
    settings = {"models": {LATENT: str(model)}, "rows": rows, "seed": seed, "env_kwargs": env_kwargs, "videos": 0}
    settings |= {"episodes": options.tasks, "first_task": FIRST_TASK, **SOLVER}
    settings |= {"baselines": []} if patch == 8 else {}
    runs.configured("plan", "plan.py", "demo/plan_two_rooms.yaml", settings, result="results.json")


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Success by disc, patch and cost, and rank correlations by disc and patch, over seeds."""
    success, distances = {}, {}
    for radius, patch in WORLD_MODELS:
        folders = [folder_of(options, seed, radius, patch) for seed in range(options.seeds)]
        planned = study.read_results(folder / "plan" / "results.json" for folder in folders)
        measured = study.read_results(folder / "distances.json" for folder in folders)
        if planned and len(planned) == len(measured):
            success |= success_rows(planned, radius, patch)
            distances[f"{radius} px, patches of {patch}"] = distance_columns(measured)
    return {"seeds": options.seeds, "success": success, "distances": distances} if success else None


def success_rows(planned: list[dict], radius: float, patch: int) -> dict[str, dict[str, Any]]:
    """The rows of one world model, and of the methods without one."""
    found = {}
    for name in (row["name"] for row in planned[0]["rows"]):
        rows = [next(row for row in one["rows"] if row["name"] == name) for one in planned]
        is_planned = name in (LATENT, LEARNED)
        title = f"{radius} px, {f'patches of {patch}, ' * is_planned}{name}"
        found[title] = {"success": study.over_seeds([row["success"] for row in rows])}
        interval = f"{rows[0]['low']:.2f}–{rows[0]['high']:.2f}"
        found[title]["95 % interval over tasks"] = interval if len(rows) == 1 else None
        steps = [row["steps_to_success"] for row in rows]
        found[title]["steps"] = None if None in steps else sum(steps) / len(steps)
    return found


def distance_columns(measured: list[dict]) -> dict[str, Any]:
    """Rank correlations with the path: of all pairs of frames, and of those at least a quarter of the largest path
    apart."""
    columns = {}
    for kind in ("latent", "learned"):
        curves = [one["distances"]["groups"]["path"][kind] for one in measured]
        far = [next(part for part in curve["bins"] if part["from"] >= curve["bins"][-1]["to"] / 4) for curve in curves]
        columns[f"{kind}, all pairs"] = [curve["rank_correlation"] for curve in curves]
        columns[f"{kind}, far pairs"] = [part["rank_correlation_beyond"] for part in far]
    return columns


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    seeds, tasks = study.counted(results["seeds"], "training seed"), results["tasks"]
    yield f"Two rooms, {seeds}, {tasks} tasks; CEM with 32 candidates and 2 iterations."
    yield study.table("agent's radius, encoder, cost", results["success"])
    yield "Rank correlation of a distance with the length of the shortest path, on held-out frames."
    yield study.table("agent's radius, encoder", results["distances"])


SETTINGS = {
    "episodes": (240, "recorded episodes"),
    "pretrain_steps": (150, "steps of pretraining"),
    "world_model_steps": (800, "steps of the world model"),
    "tasks": (40, "tasks of planning"),
}
PAGES, SEEDS = ["docs/planning_evaluation.md"], {"seeds": (1, "training seeds")}
STUDY = study.Study("small_agent", __doc__, run, collect, format_tables, PAGES, SETTINGS, SEEDS)


if __name__ == "__main__":
    STUDY.main()
