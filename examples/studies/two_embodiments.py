"""One world model of two robots against a model of each: the demo's pusher and the drawn arm.

    python examples/studies/two_embodiments.py [--output runs/two_embodiments] [--seeds 3] [--steps 1000] [--tasks 40]

The pusher has actions of 2 numbers, the arm of 7 and a state of 7. (The pusher's own state is left out: its actions do
not give the next one, so that a rollout would hold it.) All training seeds share the recorded episodes. For
each seed: an encoder, pretrained on the pushing episodes; a world model of both robots, one of each alone with as many
windows of that robot, and the arm's model to which the pusher is added afterwards with all other weights frozen;
planning with each. The pusher's success is that of its tasks; the arm's the fraction of first planned moves within 45
degrees of the way to the goal. Results go to `results/two_embodiments.json` and docs/world_model.md.
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import study


BOTH, ADDED = "both in one model", "the arm's model, pusher added afterwards"
ALONE = "a model of its own"
COLUMNS = {"pusher": "pusher: success", "arm": "arm: moves toward the goal"}
TRANSITIONS = {"pusher": "hold", "arm": "pose_delta"}
ARM_EPISODES, HELD_OUT = 400, 120
FIRST_TASK = 980_000  # of no other study
DYNAMICS = {  # one for all; a model step is one frame, as the arm's
    "world_model.frame_skip": 1,
    "world_model.context_frames": 2,
    "frames_per_window": 5,
}
PUSHING = {"solver.horizon": 6, "solver.num_candidates": 64, "solver.num_iterations": 3, "solver.num_elites": 8}


def run(options: argparse.Namespace) -> None:
    shared = study.RunFolder(options.output)
    shared.record(episodes_of(options, "pusher"), f"{study.ENVIRONMENTS['pushing']} --episodes 400 --num_proc 2")
    for name, count, seed in (("arm", ARM_EPISODES, 0), ("arm_held_out", HELD_OUT, 1)):
        target = options.output / name
        arguments = [str(target), "--episodes", str(count), "--seed", str(seed)]
        shared.run(f"record {name}", target, "make_arm_dataset.py", *arguments)
    seeds = [partial(run_seed, options, seed) for seed in range(options.seeds)]
    study.run_side_by_side(seeds, options.jobs)


def episodes_of(options: argparse.Namespace, robot: str) -> Path:
    return options.output / robot


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """All models of a training seed, and planning with them."""
    runs = study.RunFolder(options.output / f"seed-{seed}")
    settings = {"data": episodes_of(options, "pusher"), "seed": seed, "max_steps": options.pretrain_steps}
    settings |= study.SHORT_RUN
    encoder = runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", settings)

    def train(name: str, robots: dict[str, int], steps: int, **given: Any) -> Path:
        """A world model of these robots, by id."""
        sources = [
            {"path": str(episodes_of(options, robot)), "embodiment": id, "proprio": robot == "arm"}
            for robot, id in robots.items()
        ]
        settings = {"data": sources, "seed": seed, "max_steps": steps, "save_every": 1_000_000, "resume": "latest"}
        settings |= {"encoder": encoder, **DYNAMICS, **given}
        return runs.configured(name, "train_world_model.py", "demo/world_model.yaml", settings)

    pusher = train("pusher", {"pusher": 0}, options.steps)
    arm = {"use_proprio": True, "world_model.proprio_transition": TRANSITIONS["arm"]}
    arm = train("arm", {"arm": 0}, options.steps, **arm)
    # half of the windows are of each robot: as many as the single models see
    names = {"embodiment_names": list(TRANSITIONS), "embodiment_proprio_transitions": list(TRANSITIONS.values())}
    names = {f"world_model.{name}": value for name, value in names.items()}
    both = train("both", {"pusher": 0, "arm": 1}, 2 * options.steps, use_proprio=True, **names)
    added = add_pusher(options, runs, arm, seed)

    planning = {"seed": seed, "videos": 0, "episodes": options.tasks, "baselines": [], **PUSHING}
    planning |= {"first_task": FIRST_TASK + 1000 * seed}
    for name, model, robot in ((ALONE, pusher, 0), (BOTH, both, 0), (ADDED, added, 1)):
        given = planning | {"models": {name: str(model)}, "planner.embodiment": robot}
        folder = folder_of(runs.path, "pusher", name)
        runs.configured(f"plan pusher {name}", "plan.py", "demo/plan.yaml", given, folder, "results.json")
    for name, model, robot in ((ALONE, arm, None), (BOTH, both, 1)):
        settings = {"model": model, "data": options.output / "arm_held_out", "pairs": HELD_OUT, "seed": seed}
        settings |= {} if robot is None else {"planner.embodiment": robot}
        folder = folder_of(runs.path, "arm", name)
        runs.configured(f"plan arm {name}", "plan_arm.py", "franka/plan.yaml", settings, folder, "results.json")


def add_pusher(options: argparse.Namespace, runs: study.RunFolder, arm: Path, seed: int) -> Path:
    """The arm's model with the pusher as a second embodiment, whose projections alone are trained."""
    settings = {"from_model": arm, "train_only": "embodiment", "output_dir": runs.path / "added"}
    settings |= {"data": [{"path": str(episodes_of(options, "pusher")), "embodiment": 1, "proprio": False}]}
    settings |= {"max_steps": options.steps, "seed": seed, "num_threads": 1, "resume": "latest"}
    settings |= {"frames_per_window": DYNAMICS["frames_per_window"], "batch_size": 64}
    settings |= {"learning_rate.schedule": "warmup_cosine", "learning_rate.peak": 3e-3}
    settings |= {"learning_rate.warmup_steps": 50}  # as in the configuration of the others
    arguments = study.key_values(settings)
    return runs.run("added", runs.path / "added" / "final", "train_world_model.py", *arguments)


def folder_of(path: Path, robot: str, name: str) -> Path:
    return path / f"plan_{robot}_{study.slug(name)}"


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Success of the pusher and direction of the arm by model, and differences paired by seed."""
    success: dict[str, dict[str, Any]] = {}
    for robot, column in COLUMNS.items():
        for name in (ALONE, BOTH, ADDED):
            results = folder_of(Path(), robot, name) / "results.json"
            found = study.read_seeds(options.output, str(results), options.seeds)
            if found:
                values = [
                    one["rows"][0]["success"] if robot == "pusher" else one["planned"]["directed"] for one in found
                ]
                success.setdefault(name, {})[column] = study.over_seeds(values)
    if not success:
        return None
    pairs = [(name, ALONE) for name in (BOTH, ADDED)]
    differences = {column: study.paired(success, column, pairs) for column in COLUMNS.values()}
    return {"seeds": options.seeds, "success": success, "differences": differences}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    yield (
        f"{results['seeds']} training seeds; {results['tasks']} tasks of the pusher and {HELD_OUT} held-out episodes "
        "of the arm per seed: mean (95 % interval over seeds)."
    )
    rows = {name: {column: row.get(column) for column in COLUMNS.values()} for name, row in results["success"].items()}
    yield study.table("model", rows)
    yield "Minus a model of its own, paired by training seed, with 95 % intervals:"
    cells: dict[str, dict[str, Any]] = {}
    for column, differences in results["differences"].items():
        for one in differences:
            row = cells.setdefault(one["row"], dict.fromkeys(COLUMNS.values()))
            row[column] = study.difference_cell(one)
    yield study.table("model", cells)


SETTINGS = {
    "pretrain_steps": (400, "steps of pretraining"),
    "steps": (1000, "steps of a model of one robot; that of both has twice as many"),
    "tasks": (40, "tasks of the pusher per seed"),
}
STUDY = study.Study("two_embodiments", __doc__, run, collect, format_tables, ["docs/world_model.md"], SETTINGS)


if __name__ == "__main__":
    STUDY.main()
