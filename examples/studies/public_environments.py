"""Planning in environments that others wrote, by the field's protocol: goals 25 steps ahead in new episodes.

    python examples/studies/public_environments.py [--output runs/public_environments] [--seeds 3] [--jobs 2]

Records episodes with a data policy. For each training seed it pretrains an encoder, trains a world model with a
distance head, measures latent and learned distances on new episodes, and plans between frames of new episodes.
Needs the packages of the environments: `pip install -c constraints.txt -e ".[demo,swm]"`. Results go to
`results/public_environments.json` and docs/planning_evaluation.md. The core minutes of every step are measured.
"""

import argparse
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import study
import yaml


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        title, data: what the tables say of it and of its episodes.
        package, extra: module that must be importable, and the extra of setup.cfg that installs it.
        record: arguments of record_episodes.py, without `--output`, by name of the folder of episodes.
        tested: the folder that starts and goals are from.
        pretrain: settings that replace those of demo/pretrain.yaml.
        world_model, plan: configs.
        model: the name of the world model in the plan's config.
        unit: of the states' distances.
    """

    title: str
    data: str
    package: str
    extra: str
    record: dict[str, str]
    tested: str
    pretrain: dict[str, Any]
    world_model: str
    plan: str
    model: str
    unit: str
    held_out: dict[str, Any] = field(default_factory=dict)  # settings that name the held-out episodes


TWO_ROOM = (
    "--env stable_worldmodel:swm/TwoRoom-v1 --policy vjepa2_hf.environments.swm_policies:TwoRoomWaypoints "
    "--ignore_termination --length 100 --num_proc 1"
)
ENVIRONMENTS = {
    "two_room": Environment(
        "stable-worldmodel's TwoRoom",
        "300 episodes of 100 steps for training and 100 others for tasks, of stable-worldmodel's expert between "
        "random positions with noisy actions",
        "stable_worldmodel",
        "swm",
        {"episodes": f"{TWO_ROOM} --episodes 300 --seed 0", "test": f"{TWO_ROOM} --episodes 100 --seed 1000"},
        "test",
        {"max_steps": 300, "encoder.patch_size": 8, "num_workers": 0},
        "swm/world_model.yaml",
        "swm/plan.yaml",
        "CEM, learned distance",
        "pixels of 224",
        {"validation_fraction": 1.0},
    ),
}
LEARNING = ("pretrain", "world model")  # runs whose core time counts as learning
FIRST_TASK = 700_000  # no choice was made on these tasks
SEED_TASKS = 1000
MEASURED_EPISODES = 40  # of distances
PROBE_EPISODES = 10  # the positions that it reads from predictions are not published


def run(options: argparse.Namespace) -> None:
    chosen = {name: ENVIRONMENTS[name] for name in options.environments}
    for one in chosen.values():
        check_installed(one)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # of pygame, without a screen
    for name, one in chosen.items():
        runs = study.RunFolder(options.output / name)
        for folder, command in one.record.items():
            runs.record(runs.path / folder, f"record_episodes.py {command}")
    pairs = [(name, seed) for seed in range(options.seeds) for name in chosen]
    study.run_side_by_side([partial(run_seed, options.output, *pair) for pair in pairs], options.jobs)


def check_installed(one: Environment) -> None:
    if importlib.util.find_spec(one.package) is None:
        raise ValueError(
            f"{one.title} needs the package {one.package}, which is not installed: pip install -c constraints.txt -e "
            f'".[demo,{one.extra}]", or choose others with --environments.'
        )


def run_seed(output: Path, name: str, seed: int) -> None:
    """All of one environment and training seed."""
    one, folder = ENVIRONMENTS[name], output / name
    runs, given = study.RunFolder(folder / f"seed-{seed}"), {"seed": seed, "resume": "latest"}
    given["data"] = folder / next(iter(one.record))
    encoder = runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", given | one.pretrain)
    model = runs.configured("world model", "train_world_model.py", one.world_model, given | {"encoder": encoder})
    new = {"data": folder / one.tested, "validation_fraction": one.held_out.get("validation_fraction")}
    settings = {**new, "model": model, "output": runs.path / "distances.json", "num_threads": 1}
    settings |= {"windows_per_episode": 1, "probe_data": given["data"], "probe_episodes": PROBE_EPISODES}
    settings |= {"max_episodes": MEASURED_EPISODES}
    settings = {key: value for key, value in settings.items() if value is not None}
    runs.run("distances", runs.path / "distances.json", "evaluate_world_model.py", *study.key_values(settings))
    planning = {"models": {one.model: str(model)}, "seed": seed, "videos": 0, "gym.data": folder / one.tested}
    planning |= {f"gym.{key}": value for key, value in one.held_out.items()}
    planning["first_task"] = FIRST_TASK + SEED_TASKS * seed
    runs.configured("plan", "plan.py", one.plan, planning, result="results.json")


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """By environment: its protocol, success of every method and level, distance curves and core minutes."""
    found = {}
    for name in ENVIRONMENTS:
        folder = options.output / name
        seeds = [seed for seed in study.seeds_of(folder) if (folder / f"seed-{seed}/plan/results.json").exists()]
        if seeds:
            found[name] = collect_environment(ENVIRONMENTS[name], folder, seeds)
    return {"environments": found} if found else None


def collect_environment(one: Environment, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    runs = [study.RunFolder(folder / f"seed-{seed}") for seed in seeds]
    plan = yaml.safe_load((study.CONFIGS / one.plan).read_text(encoding="utf-8"))
    tables = [rows["rows"] for rows in study.read_results(one.path / "plan/results.json" for one in runs)]
    methods = {}
    for number, row in enumerate(tables[0]):
        levels = {
            level: study.over_seeds([table[number]["levels"][level]["success"] for table in tables])
            for level in row["levels"]
        }
        tasks = [table[number]["episodes"] for table in tables]
        methods[row["name"]] = {"levels": levels, "tasks": tasks}
    distances = study.read_results(one.path / "distances.json" for one in runs)
    minutes = {
        kind: [sum(one.core_times.get(name, 0.0) for name in names) / 60 for one in runs]
        for kind, names in {"learning": LEARNING, "planning": ("plan",)}.items()
    }
    return {
        "seeds": list(seeds),
        "data": one.data,
        "offset": plan["gym"]["goal_offset"],
        "budget": plan["gym"]["budget"],
        "levels": plan["success_levels"],
        "methods": methods,
        "curves": {
            group: {
                kind: mean_curve([one["distances"]["groups"][group][kind] for one in distances])
                for kind in distances[0]["distances"]["groups"][group]
            }
            for group in distances[0]["distances"]["groups"]
        },
        "core_minutes": {
            "recording": sum(study.RunFolder(folder).core_times.values()) / 60,
            **{kind: {"mean": float(np.mean(values)), "by_seed": values} for kind, values in minutes.items()},
        },
    }


def mean_curve(curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of a distance's curve; pairs of frames and bins are the same for all seeds."""
    bins = [
        {"from": parts[0]["from"], "to": parts[0]["to"], "mean": float(np.mean([part["mean"] for part in parts]))}
        for parts in zip(*(curve["bins"] for curve in curves), strict=True)
    ]
    return {"rank_correlation": float(np.mean([curve["rank_correlation"] for curve in curves])), "bins": bins}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """Per environment its protocol, its methods, and its distances before and after learning them."""
    for name, found in results["environments"].items():
        one, minutes = ENVIRONMENTS[name], found["core_minutes"]
        levels = "; ".join(f"{level}: {describe_level(rule, one.unit)}" for level, rule in found["levels"].items())
        yield (
            f"**{one.title}.** Data: {found['data']}. Goals {found['offset']} steps ahead in new episodes; budget "
            f"{budget(found)} steps; tasks that their start solves are dropped. {levels[0].upper()}{levels[1:]}. "
            f"{len(found['seeds'])} training seeds with other tasks each; means (95 % interval over seeds) and values "
            f"by seed. Learning (encoder, world model, distance head) takes {minutes['learning']['mean']:.1f} core "
            f"minutes per seed, planning of all rows {minutes['planning']['mean']:.1f}, recording "
            f"{minutes['recording']:.1f} once."
        )
        titles = ["method", *(part for level in found["levels"] for part in (level, f"{level}, by seed")), "tasks"]
        rows = []
        for method, row in found["methods"].items():
            values = [part for level in row["levels"].values() for part in (level, level["by_seed"])]
            rows.append([method, *values, ", ".join(map(str, row["tasks"]))])
        yield titles, rows
        for group, curves in found["curves"].items():
            yield f"Distances between frames of new episodes, by the true distance of `{group}` ({one.unit}):"
            bins = {kind: curve["bins"] for kind, curve in curves.items()}
            first = next(iter(bins.values()))
            titles = ["", *(f"{part['from']:.0f}–{part['to']:.0f}" for part in first), "rank correlation"]
            yield (
                titles,
                [
                    [NAMES[kind], *(part["mean"] for part in bins[kind]), curves[kind]["rank_correlation"]]
                    for kind in curves
                ],
            )


NAMES = {"latent": "latent distance (before)", "learned": "learned distance in frames (after)"}


def budget(found: dict[str, Any]) -> int:
    return 2 * found["offset"] if found["budget"] == "2x" else found["budget"]


def describe_level(rule: dict[str, Any], unit: str) -> str:
    """A level of success in words."""
    parts = [f"within {rule['distance']} {unit}"]
    parts += [f"{rule['degrees']} degrees"] * ("degrees" in rule)
    parts += [f"for {rule['hold']} steps"] * ("hold" in rule)
    return ", ".join(parts)


STUDY = study.Study(
    "public_environments",
    __doc__,
    run,
    collect,
    format_tables,
    ["docs/planning_evaluation.md"],
    choices={"environments": (list(ENVIRONMENTS), list(ENVIRONMENTS))},
)


if __name__ == "__main__":
    STUDY.main()
