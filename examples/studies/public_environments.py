"""Planning in environments that others wrote, by the field's protocol: goals 25 steps ahead in new episodes.

    python examples/studies/public_environments.py [--output runs/public_environments] [--seeds 3] [--jobs 2]

Records episodes with a data policy. For each training seed and row it trains a world model with a distance head on an
encoder, measures latent and learned distances on new episodes, and plans between frames of new episodes. The first row
of all seeds comes first. A stopped study resumes; `--collect` publishes the rows and seeds that are finished.
Needs the packages of the environments: `pip install -c constraints.txt -e ".[demo,swm]"`. Results go to
`results/public_environments.json` and docs/planning_evaluation.md. The core minutes of every step are measured.
"""

import argparse
import importlib.util
import os
import vjepa2_cli  # noqa: F401 (a quick --help)
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
ROWS = {  # encoder and cost of a row
    "learned distance, random encoder": ("random", None),
    "latent distance, random encoder": ("random", "l2"),
    "learned distance, pretrained encoder": ("pretrained", None),
}
PAIRS = (
    ("learned distance, random encoder", "latent distance, random encoder"),
    ("learned distance, pretrained encoder", "learned distance, random encoder"),
)  # of rows whose difference is in the results
FIRST = next(iter(ROWS))  # also runs the methods without a world model
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
    for row in options.rows:  # later rows use the world models of the first
        parts = [(name, row, seed) for seed in range(options.seeds) for name in chosen]
        study.run_side_by_side([partial(run_row, options.output, *part) for part in parts], options.jobs)


def check_installed(one: Environment) -> None:
    if importlib.util.find_spec(one.package) is None:
        raise ValueError(
            f"{one.title} needs the package {one.package}, which is not installed: pip install -c constraints.txt -e "
            f'".[demo,{one.extra}]", or choose others with --environments.'
        )


def row_folder(output: Path, name: str, row: str, seed: int) -> Path:
    return output / name / f"seed-{seed}" / study.slug(row)


def run_row(output: Path, name: str, row: str, seed: int) -> None:
    """One row of one environment and training seed; rows share the world models of their encoders."""
    one, folder, (encoder, cost) = ENVIRONMENTS[name], output / name, ROWS[row]
    new = {"data": folder / one.tested, **one.held_out}
    # the first row with this encoder trains its world model
    owner = next(other for other, (its, _) in ROWS.items() if its == encoder)
    model = train_model(study.RunFolder(row_folder(output, name, owner, seed)), one, folder, encoder, seed)
    runs = study.RunFolder(row_folder(output, name, row, seed))
    if row == owner:
        settings = {**new, "model": model, "output": runs.path / "distances.json", "num_threads": 1}
        settings |= {"max_episodes": MEASURED_EPISODES, "windows_per_episode": 1}
        settings |= {"probe_data": folder / next(iter(one.record)), "probe_episodes": PROBE_EPISODES}
        runs.run("distances", settings["output"], "evaluate_world_model.py", *study.key_values(settings))
    planning = {"models": {row: str(model)}, "rows": {}, "seed": seed, "videos": 0}
    planning |= {f"gym.{key}": value for key, value in new.items()}
    planning |= {} if cost is None else {"planner": {"cost": cost}}
    planning |= {} if row == FIRST else {"baselines": []}
    planning["first_task"] = FIRST_TASK + SEED_TASKS * seed
    runs.configured("plan", "plan.py", one.plan, planning, result="results.json")


def train_model(runs: study.RunFolder, one: Environment, folder: Path, encoder: str, seed: int) -> Path:
    """The world model of an encoder, which is pretrained first, or random with the sizes of the pretrained one."""
    given = {"seed": seed, "resume": "latest", "data": folder / next(iter(one.record))}
    if encoder == "pretrained":
        settings = given | one.pretrain
        encoder = {"encoder": runs.configured("pretrain", "pretrain.py", "demo/pretrain.yaml", settings)}
    else:
        encoder = study.ablation("demo/world_model.yaml", "random")
        sizes = {key.removeprefix("encoder."): value for key, value in one.pretrain.items() if "encoder." in key}
        encoder["encoder_config"] = encoder["encoder_config"] | sizes
    return runs.configured("world model", "train_world_model.py", one.world_model, given | encoder)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """By environment: its protocol, success of every method and level, distance curves and core minutes."""
    found = {name: collect_environment(options.output, name) for name in ENVIRONMENTS}
    for name in found:  # the rows of a seed share their tasks
        study.copy_manifests(options.output / name, options.results, f"{study.slug(FIRST)}/plan")
    found = {name: one for name, one in found.items() if one["methods"]}
    return {"environments": found} if found else None


def collect_environment(output: Path, name: str) -> dict[str, Any]:
    one, methods, curves = ENVIRONMENTS[name], {}, {}
    plan = yaml.safe_load((study.CONFIGS / one.plan).read_text(encoding="utf-8"))
    for row in ROWS:
        folders = {seed: row_folder(output, name, row, seed) for seed in study.seeds_of(output / name)}
        folders = {seed: path for seed, path in folders.items() if (path / "plan/results.json").exists()}
        if not folders:
            continue
        runs = [study.RunFolder(path) for path in folders.values()]
        results = study.read_results(path / "plan/results.json" for path in folders.values())
        tables = [found["rows"] for found in results]
        for number, method in enumerate(tables[0]):
            methods[method["name"]] = join_method([table[number] for table in tables], list(folders))
        own = methods[tables[0][-1]["name"]]
        if distances := study.read_results(path / "distances.json" for path in folders.values()):
            curves[row] = join_curves([measured["distances"]["groups"] for measured in distances])
            learning = [sum(run.core_times.get(part, 0.0) for part in LEARNING) / 60 for run in runs]
            own["learning_core_minutes"] = float(np.mean(learning))
        own["planning_core_minutes"] = float(np.mean([run.core_times["plan"] / 60 for run in runs]))
    return {
        "data": one.data,
        "offset": plan["gym"]["goal_offset"],
        "budget": plan["gym"]["budget"],
        "levels": plan["success_levels"],
        "methods": methods,
        "differences": {level: differences(methods, plan, level) for level in plan["success_levels"]},
        "curves": curves,
        "recording_core_minutes": sum(study.RunFolder(output / name).core_times.values()) / 60,
    }


def join_method(rows: Sequence[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """A method's levels over its seeds, and its tasks by seed."""
    levels = {
        level: study.over_seeds([row["levels"][level]["success"] for row in rows]) for level in rows[0]["levels"]
    }
    return {"seeds": seeds, "levels": levels, "tasks": [row["episodes"] for row in rows]}


def differences(methods: dict[str, dict[str, Any]], plan: dict[str, Any], level: str) -> list[dict[str, Any]]:
    """Differences of success of the rows, paired by seed, at a level."""
    offset = f", offset {plan['gym']['goal_offset']}"
    rows = [{"name": name, "seeds": row["seeds"], "success": row["levels"][level]} for name, row in methods.items()]
    return study.differences(rows, [(row + offset, minus + offset) for row, minus in PAIRS])


def join_curves(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Distance curves by group of states and kind of distance: means over seeds, which have the same bins."""
    return {
        group: {kind: mean_curve([one[group][kind] for one in found]) for kind in found[0][group]}
        for group in found[0]
    }


def mean_curve(curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    bins = [
        {"from": parts[0]["from"], "to": parts[0]["to"], "mean": float(np.mean([part["mean"] for part in parts]))}
        for parts in zip(*(curve["bins"] for curve in curves), strict=True)
    ]
    return {"rank_correlation": float(np.mean([curve["rank_correlation"] for curve in curves])), "bins": bins}


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    """Per environment its protocol, its methods, and its distances before and after learning them."""
    for name, found in results["environments"].items():
        one = ENVIRONMENTS[name]
        levels = "; ".join(f"{level}: {describe_level(rule, one.unit)}" for level, rule in found["levels"].items())
        yield (
            f"**{one.title}.** Data: {found['data']} ({found['recording_core_minutes']:.1f} core minutes). Goals "
            f"{found['offset']} steps ahead in new episodes; budget {budget(found)} steps; tasks that their start "
            f"solves are dropped. {levels[0].upper()}{levels[1:]}. Each seed has its own tasks; means with a 95 % "
            "interval over seeds, and values by seed. Learning: core minutes per seed for encoder, world model and "
            "distance head."
        )
        titles = ["method", *(part for level in found["levels"] for part in (level, f"{level}, by seed"))]
        rows = []
        for method, row in found["methods"].items():
            values = [part for level in row["levels"].values() for part in (level, level["by_seed"])]
            rows.append([method, *values, ", ".join(map(str, row["tasks"])), row.get("learning_core_minutes")])
        yield [*titles, "tasks", "learning"], rows
        compared: dict[str, dict[str, str]] = {}
        for level, pairs in found["differences"].items():
            for pair in pairs:
                name = f"{pair['row']} − {pair['minus']}"
                compared.setdefault(name, {})[level] = study.difference_cell(pair)
        if compared:
            yield "Differences, paired by training seed, with 95 % intervals:"
            yield study.table("difference", compared)
        for row, groups in found["curves"].items():
            for group, curves in groups.items():
                yield f"Distances between frames of new episodes by the distance of `{group}` ({one.unit}), {row}:"
                bins = next(iter(curves.values()))["bins"]
                titles = ["", *(f"{part['from']:.0f}–{part['to']:.0f}" for part in bins), "rank correlation"]
                yield (
                    titles,
                    [
                        [NAMES[kind], *(part["mean"] for part in curve["bins"]), curve["rank_correlation"]]
                        for kind, curve in curves.items()
                    ],
                )


NAMES = {"latent": "latent distance (before)", "learned": "learned distance in frames (after)"}


def budget(found: dict[str, Any]) -> int:
    return 2 * found["offset"] if found["budget"] == "2x" else found["budget"]


def describe_level(rule: dict[str, Any], unit: str) -> str:
    """A level of success in words."""
    parts = [f"within {rule['distance']} {unit}"]
    parts += [f"{rule['degrees']} degrees"] if "degrees" in rule else []
    parts += [f"for {rule['hold']} steps"] if "hold" in rule else []
    return ", ".join(parts)


STUDY = study.Study(
    "public_environments",
    __doc__,
    run,
    collect,
    format_tables,
    ["docs/planning_evaluation.md"],
    choices={"environments": (list(ENVIRONMENTS), list(ENVIRONMENTS)), "rows": (list(ROWS), list(ROWS))},
)


if __name__ == "__main__":
    STUDY.main()
