"""Planning with two cameras against each alone, in pushing with a second view that follows the agent.

    python examples/studies/two_views.py [--output runs/two_views] [--seeds 3] [--steps 1500] [--tasks 60]

All training seeds share the recorded episodes, of the whole field (`top`) and a close-up that follows the agent
(`agent`). For each seed: an encoder, pretrained on the whole field; three world models on its latents, of both views
and of each alone, with the same dynamics and number of steps; planning on tasks of the seed's own, where the model of
both views also plans from one of them. Success is of the block alone, and of block and pusher. Results go to
`results/two_views.json` and docs/world_model.md.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from typing import Any

import study


VIEWS = {"both views": ["top", "agent"], "whole field": ["top"], "close-up": ["agent"]}
BOTH, *SINGLE = VIEWS
REDUCED = "both views in training, whole field in planning"
LEVELS = {  # of success
    "block": {"distance": 5, "columns": [2, 3]},
    "block and pusher": {"distance": 5, "columns": [[0, 1], [2, 3]]},
}
FIRST_TASK = 960_000  # of no other study
SOLVER = {"solver.num_candidates": 64, "solver.num_iterations": 3, "solver.num_elites": 8}


def run(options: argparse.Namespace) -> None:
    command = f"{study.ENVIRONMENTS['pushing']} --episodes {options.episodes} --num_proc 2 --views top agent"
    study.RunFolder(options.output).record(options.output / "episodes", command)
    seeds = [partial(run_seed, options, seed) for seed in range(options.seeds)]
    study.run_side_by_side(seeds, options.jobs)


def run_seed(options: argparse.Namespace, seed: int) -> None:
    runs, data = study.RunFolder(options.output / f"seed-{seed}"), options.output / "episodes"
    settings = {"data": data, "seed": seed, "max_steps": options.pretrain_steps, **study.SHORT_RUN}
    encoder = runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", settings)
    models = {}
    for name, cameras in VIEWS.items():
        settings = {"data": [{"path": str(data), "camera": cameras}], "encoder": encoder, "seed": seed}
        settings |= {"max_steps": options.steps, "save_every": 1_000_000, "resume": "latest"}
        models[name] = str(runs.configured(name, "train_world_model.py", "demo/world_model.yaml", settings))
    planning = {"models": models, "rows": {REDUCED: {"model": BOTH, "views": ["top"]}}, "views": VIEWS[BOTH]}
    planning |= {"seed": seed, "videos": 0, "episodes": options.tasks, "success_levels": LEVELS, **SOLVER}
    planning |= {"first_task": FIRST_TASK + 1000 * seed, "baselines": ["uniform", "data_policy"]}
    runs.configured("plan", "plan.py", "demo/plan.yaml", planning, result="results.json")


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Success by row and level, its differences paired by seed, and milliseconds of a plan."""
    found = study.read_seeds(options.output, "plan/results.json", options.seeds)
    if not found:
        return None
    tables = [{row["name"]: row for row in one["rows"]} for one in found]
    success = {
        name: {
            level: study.over_seeds([rows[name]["levels"][level]["success"] for rows in tables]) for level in LEVELS
        }
        for name in tables[0]
    }
    pairs = [(BOTH, other) for other in (*SINGLE, REDUCED)]
    differences = {level: study.paired(success, level, pairs) for level in LEVELS}
    return {"seeds": len(found), "success": success, "differences": differences}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    yield (
        f"Success rate in pushing over {results['seeds']} training seeds × {results['tasks']} tasks: mean (95 % "
        "interval over seeds)."
    )
    yield study.table("cameras", results["success"])
    yield "Both views minus the others, paired by training seed, with 95 % intervals:"
    rows: dict[str, dict[str, str]] = {}
    for level, differences in results["differences"].items():
        for one in differences:
            rows.setdefault(f"{one['row']} − {one['minus']}", {})[level] = study.difference_cell(one)
    yield study.table("difference", rows)


SETTINGS = {
    "episodes": (400, "recorded episodes"),
    "pretrain_steps": (400, "steps of pretraining"),
    "steps": (1500, "steps of every world model"),
    "tasks": (60, "tasks of planning per seed"),
}
STUDY = study.Study("two_views", __doc__, run, collect, format_tables, ["docs/world_model.md"], SETTINGS)


if __name__ == "__main__":
    STUDY.main()
