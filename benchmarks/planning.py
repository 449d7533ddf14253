"""CPU time of a plan at matched success: today's default, smaller searches, and searches with help of a policy.

    python benchmarks/planning.py --environments pushing             # after `make demo`
    python benchmarks/planning.py --train                            # all models of both folders; measures nothing
    python benchmarks/planning.py --two_rooms runs/two_rooms --publish
    python benchmarks/planning.py --pushing runs/reproduce/pushing/seed-0 --two_rooms runs/reproduce/two_rooms/seed-0
    python benchmarks/planning.py --table --publish                  # measures nothing: the tables of the JSON again

A folder of runs needs a world model with a distance head, `world_model/final` (or `distance_pretrained/final`, of
`studies/reproduce.py`). Variants of policies and of other states are measured if the folder has them:
`cloning/final`, `cloning_steps/final`, `distilled/final`, `actor/final`, `world_model_merged/final`,
`world_model_pooled/final`. `--train` makes what the chosen `--variants` need and the folders lack, from the episodes
on (planning_models.py); then measure on an idle machine.

Every variant plans the tasks of `examples/plan.py` one at a time, on one thread. All variants finish a task before the
next one begins, in an order that rotates, so that their times are of the same minute. A variant matches if its success
rate on the choice tasks is at least that of the default less 0.02. Then up to four are measured on other tasks: the
default, the cheapest that matches and needs no other model, the cheapest of all that match, and the most successful.
Writes `planning.json` and, with `--publish`, the tables of docs/planning.md.
"""

import argparse
import dataclasses
import json
import sys
import time
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import describe_machine, restart_with_fixed_allocator, run_with_errors, write_json
from planning_models import list_commands


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "planning.md"
CONFIGS = {"pushing": "plan.yaml", "two_rooms": "plan_two_rooms.yaml"}
MODELS = ("world_model/final", "distance_pretrained/final")  # of the demo's folder, of the reproduction's
FIRST_CHOICE_TASK, FIRST_TASK = 300_000, 970_000  # no choice was made on the second ones
MARGIN = 0.02  # of success
DEFAULT = "default"
TRAIN = "train one with `make demo`, or with --train; see docs/planning.md"


@dataclass(frozen=True)
class Variant:
    """A way to plan: settings of a row of plan.py, and folders that it needs within the folder of runs.

    Attributes:
        settings: they replace those of the demo's planning config.
        model: of the world model; `None`: the default's.
        proposal: of a policy whose imagined actions the search starts from.
        policy: of a policy that acts without a search.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    proposal: str | None = None
    policy: str | None = None

    @property
    def folders(self) -> list[str]:
        return [folder for folder in (self.model, self.proposal, self.policy) if folder is not None]


def learned(candidates: int, iterations: int, solver: str = "cem", horizon: int = 3, **more: Any) -> dict[str, Any]:
    """A search with the learned distance; `more` are settings of the row, or `stop_std`."""
    settings = {"name": solver, "horizon": horizon, "num_candidates": candidates, "num_iterations": iterations}
    settings |= {name: more.pop(name) for name in ("stop_std",) if name in more}
    return {"solver": settings, "planner": {"cost": "closest"}, **more}


VARIANTS = {
    DEFAULT: Variant("the default: 128 × 3, latent distance"),
    "learned_128x3": Variant("128 × 3", learned(128, 3)),
    "latent_32x2": Variant("32 × 2, latent distance", {"solver": learned(32, 2)["solver"]}),
    "learned_32x3": Variant("32 × 3", learned(32, 3)),
    "learned_32x2": Variant("32 × 2", learned(32, 2)),
    "learned_32x1": Variant("32 × 1", learned(32, 1)),
    "learned_16x2": Variant("16 × 2", learned(16, 2)),
    "short": Variant("32 × 2, 2 steps ahead", learned(32, 2, horizon=2)),
    "stopping": Variant("32 × at most 6, until elites agree (`stop_std: 0.25`)", learned(32, 6, stop_std=0.25)),
    "carried": Variant("32 × 1, plans carried over", learned(32, 1, warm_start=True)),
    "icem": Variant("iCEM, 32 × 2, elites carried over", learned(32, 2, "icem", warm_start=True)),
    "icem_16x1": Variant("iCEM, 16 × 1, elites carried over", learned(16, 1, "icem", warm_start=True)),
    "proposals": Variant("16 × 1, from cloning's proposals", learned(16, 1), proposal="cloning/final"),
    "cloning": Variant("behavior cloning, no search", policy="cloning/final"),
    "proposals_steps": Variant(
        "16 × 1, from proposals of cloning with steps left", learned(16, 1), proposal="cloning_steps/final"
    ),
    "cloning_steps": Variant("behavior cloning with steps left, no search", policy="cloning_steps/final"),
    "distilled": Variant("policy distilled from 32 × 2, no search", policy="distilled/final"),
    "actor": Variant("actor, no search", policy="actor/final"),
    "merged": Variant("32 × 2, merged tokens", learned(32, 2), model="world_model_merged/final"),
    "pooled": Variant("32 × 2, pooled tokens", learned(32, 2), model="world_model_pooled/final"),
}


def find_model(runs: Path) -> Path:
    """The world model of a folder of runs."""
    found = next((runs / name for name in MODELS if (runs / name / "config.json").exists()), None)
    if found is None:
        raise FileNotFoundError(f"there is no world model in {runs / MODELS[0]}: {TRAIN}.")
    if not json.loads((found / "config.json").read_text(encoding="utf-8")).get("distance_head"):
        raise ValueError(f"the world model {found} has no distance head, which most variants need: {TRAIN}.")
    return found


def train(environment: str, runs: Path, variants: Iterable[str]) -> None:
    """Trains what the variants need and the folder lacks."""
    has_model = any((runs / name / "config.json").exists() for name in MODELS)
    folders = [folder for name in variants for folder in VARIANTS[name].folders]
    for command in list_commands(environment, runs, folders, find_model(runs) if has_model else None):
        command.run()


def build_config(environment: str, runs: Path, names: Iterable[str]) -> Any:
    """The `PlanConfig` of all variants, one row each."""
    import plan

    from vjepa2_hf.training.settings import load_config

    chosen = {name: VARIANTS[name] for name in names}
    rows = {name: {"model": one.model or MODELS[0], **one.settings} for name, one in chosen.items() if not one.policy}
    given = {
        "models": {MODELS[0]: str(find_model(runs))}
        | {one.model: str(runs / one.model) for one in chosen.values() if one.model},
        "rows": rows,
        "policies": {name: str(runs / one.policy) for name, one in chosen.items() if one.policy},
        "proposals": {name: str(runs / one.proposal) for name, one in chosen.items() if one.proposal},
        "baselines": [],
        "output_dir": "unused",
        "episodes": 1,
        "videos": 0,
        "device": "cpu",
    }
    config = load_config(plan.PlanConfig, EXAMPLES / "configs" / "demo" / CONFIGS[environment])
    return dataclasses.replace(config, **given)


class Runner:
    """Plans tasks with one variant, and sums the CPU time of its plans."""

    def __init__(self, config: Any, name: str):
        import plan
        from tqdm import tqdm

        self.config, self.results = config.of_row(name), []
        if name in config.policies:
            planner = plan.model_policy(config.of_row(DEFAULT), DEFAULT, tqdm(disable=True)).planner
            self.policy = plan.PolicyPlan(config.policies[name], planner=planner)
        else:
            self.policy = plan.model_policy(self.config, name, tqdm(disable=True))

    def run(self, seed: int) -> None:
        import plan

        (tasks,) = plan.make_tasks(dataclasses.replace(self.config, first_task=seed))
        policy = self.policy.begin(0) if hasattr(self.policy, "begin") else self.policy
        result = plan.closed_loop.run_closed_loop(tasks, policy, self.config.executed_actions)
        self.results.append(result)

    def finish(self, title: str) -> Any:
        """The row of plan.py's table."""
        import plan

        milliseconds = 1000 * self.policy.cpu_seconds / max(1, self.policy.plans)
        result = plan.closed_loop.join_results(self.results)
        return plan.finish_row(title, result, {"cpu_milliseconds": milliseconds, "plans": self.policy.plans})


def measure(config: Any, names: list[str], first: int, count: int) -> dict[str, Any]:
    """Success and CPU time of variants on the same tasks; the default is one of them."""
    import plan
    from tqdm import tqdm

    runners = {name: Runner(config, name) for name in names}
    for number in tqdm(range(count), desc=f"tasks from {first}"):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            runners[name].run(first + number)
    finished = {name: runner.finish(VARIANTS[name].title) for name, runner in runners.items()}
    plan.compare_rows(finished, DEFAULT)
    rows, base = {}, finished[DEFAULT].row
    kept = ("success", "low", "high", "episodes", "steps_to_success", "cpu_milliseconds", "plans", "minus")
    for name, one in finished.items():
        row = {"title": VARIANTS[name].title} | {key: one.row[key] for key in kept if key in one.row}
        row["cpu_ratio"] = row["cpu_milliseconds"] / base["cpu_milliseconds"]
        row["matches"] = row["success"] >= base["success"] - MARGIN - 1e-9
        rows[name] = row
    return {"first_task": first, "tasks": count, "rows": rows}


def choose(rows: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """The cheapest variant that matches and needs nothing but the default's model; and the rows to report: the
    default, this one, the cheapest of all that match, and the most successful one (of equal ones the cheapest)."""
    matching = sorted(
        (name for name in rows if rows[name]["matches"]), key=lambda name: rows[name]["cpu_milliseconds"]
    )
    best = next(name for name in matching if not VARIANTS[name].folders)  # the default itself matches
    highest = max(matching, key=lambda name: rows[name]["success"])
    return best, list(dict.fromkeys([DEFAULT, best, matching[0], highest]))


def measure_environment(environment: str, runs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Chooses on some tasks and reports on others."""
    wanted = list(dict.fromkeys([DEFAULT, *options.variants]))
    missing = {name: [each for each in VARIANTS[name].folders if not (runs / each).exists()] for name in wanted}
    names = [name for name in wanted if not missing[name]]
    config, started = build_config(environment, runs, names), time.process_time()
    shown = runs.resolve()
    shown = shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else runs
    section: dict[str, Any] = {"machine": describe_machine(), "runs": str(shown)}
    section["left_out"] = {name: folders for name, folders in missing.items() if folders}
    section["choice"] = measure(config, names, FIRST_CHOICE_TASK, options.choice_tasks)
    section["chosen"], reported = choose(section["choice"]["rows"])
    section["report"] = measure(config, reported, FIRST_TASK, options.tasks)
    section["core_minutes"] = (time.process_time() - started) / 60
    return section


def format_tables(results: dict[str, Any]) -> str:
    """Markdown of all environments."""
    from vjepa2_hf.visualization.tables import format_table

    titles = ["search", "success", "95 %", "minus the default", "95 %", "steps", "CPU ms per plan", "of the default's"]
    blocks = []
    for environment, section in results["environments"].items():
        for part in ("report", "choice"):
            one = section[part]
            text = {
                "report": f"chosen on the tasks below: {VARIANTS[section['chosen']].title}",
                "choice": "on which the choice was made",
            }[part]
            name = environment.replace("_", " ").capitalize()
            blocks.append(f"**{name}**, {one['tasks']} tasks from {one['first_task']}, {text}:")
            blocks.append("\n".join(format_table([*titles, "matches"], map(format_row, one["rows"].values()))))
        if section["left_out"]:
            names = "; ".join(VARIANTS[name].title for name in section["left_out"])
            blocks.append(f"Not measured, because their models were not trained: {names}.")
    return "\n\n".join(blocks)


def format_row(row: dict[str, Any]) -> list[str]:
    minus, steps = row.get("minus"), row.get("steps_to_success")
    compared = [f"{minus['difference']:+.3f}", f"{minus['low']:+.3f} to {minus['high']:+.3f}"] if minus else ["", ""]
    return [
        row["title"],
        f"{row['success']:.3f}",
        f"{row['low']:.3f}–{row['high']:.3f}",
        *compared,
        "" if steps is None else f"{steps:.1f}",
        f"{row['cpu_milliseconds']:.1f}",
        f"{row['cpu_ratio']:.2f}",
        "yes" if row["matches"] else "no",
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, writes the JSON after each environment, and prints the tables; returns what it wrote."""
    options = parse_arguments(arguments)
    sys.path.insert(0, str(EXAMPLES))
    from vjepa2_hf.visualization.tables import publish_tables

    results, folders = read_results(options.output), {name: getattr(options, name) for name in options.environments}
    if options.train:
        for name, folder in folders.items():
            train(name, folder, options.variants)
        return results
    if not options.table:
        import torch

        torch.set_num_threads(1)
        for folder in folders.values():  # before anything is measured
            find_model(folder)
        for name, folder in folders.items():
            section = measure_environment(name, folder, options)
            results = read_results(options.output)  # another process may have written its environment
            results["environments"][name] = section
            write_json(results, options.output)
    if not results["environments"]:
        raise FileNotFoundError(f"{options.output} has no results: measure first, without --table.")
    publish_tables(results, format_tables(results), None, options.pages if options.publish else [], "planning_time")
    return results


def read_results(path: Path) -> dict[str, Any]:
    """What earlier runs wrote."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"environments": {}}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="default: both")
    parser.add_argument("--pushing", type=Path, default=ROOT / "runs" / "demo", help="folder of runs")
    parser.add_argument("--two_rooms", type=Path, default=ROOT / "runs" / "two_rooms", help="folder of runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="beside the default")
    parser.add_argument("--choice_tasks", type=int, default=200, help="tasks of all variants (default 200)")
    parser.add_argument("--tasks", type=int, default=300, help="other tasks of those that are reported (default 300)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="JSON file")
    parser.add_argument("--table", action="store_true", help="print the results of --output, and measure nothing")
    parser.add_argument("--train", action="store_true", help="train what the variants need, and measure nothing")
    parser.add_argument("--publish", action="store_true", help="write the tables between the markers of --pages")
    parser.add_argument("--pages", nargs="+", type=Path, default=[PAGE], help="default: docs/planning.md")
    options = parser.parse_args(arguments)
    if min(options.choice_tasks, options.tasks) < 1:
        parser.error("--choice_tasks and --tasks must be at least 1")
    return options


if __name__ == "__main__":
    parse_arguments()  # wrong arguments are reported before the restart
    restart_with_fixed_allocator()
    run_with_errors(main)
