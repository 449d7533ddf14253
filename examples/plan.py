# /// script
# requires-python = ">=3.11"
# dependencies = ["vjepa2-hf[demo]"]
# ///
"""Evaluates planners, policies and baselines in closed loop, and reports their success rates.

    python examples/plan.py --config examples/configs/demo/plan.yaml [key=value ...]

Small, with your own world model: `episodes=10 "models={mine: runs/my_world_model/final}"`.

Any gymnasium environment works that renders and takes a bounded Box action; `gym` then defines goals and success, see
examples/configs/pusht/plan.yaml and docs/planning_evaluation.md.

Writes `OUTPUT_DIR/results.json` (one row per method), `manifest.json` (the tasks, with checksums of their images),
`by_episode.json` (success, steps and goal distance of every episode), `episodes.npz` (states) and
`videos/METHOD/episode-000.mp4` (an episode next to its goal). The same command continues a stopped evaluation;
finished rows of other settings or weights are not reused.
"""

import dataclasses
import itertools
import json
import logging
import os
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from vjepa2_hf import VJepa2Planner
from vjepa2_hf.data import files
from vjepa2_hf.environments import DATA_POLICY, closed_loop, true_dynamics
from vjepa2_hf.environments.animation import write_videos
from vjepa2_hf.environments.dataset_goals import RecordedPair, find_fraction, read_pairs
from vjepa2_hf.environments.goal_policies import PolicyPlan, load_policy
from vjepa2_hf.environments.gym_tasks import GymTasks, GymTasksConfig
from vjepa2_hf.environments.manifest import (
    describe_folder,
    describe_tasks,
    describe_training,
    find_hardware,
    find_versions,
    settle_manifest,
)
from vjepa2_hf.environments.planner_policy import PlannerPolicy
from vjepa2_hf.environments.planning_rows import FinishedRow, compare_rows, finish_row, join_models
from vjepa2_hf.environments.success import SuccessLevel
from vjepa2_hf.environments.tasks import TaskBatch, Tasks
from vjepa2_hf.planning.search import check_budget
from vjepa2_hf.specs import check_at_least, check_known
from vjepa2_hf.training.settings import exit_on_user_error, parse_arguments, replace_values
from vjepa2_hf.visualization.rollout_costs import measure_world_model
from vjepa2_hf.visualization.success_table import format_table


logger = logging.getLogger("plan")

BASELINES = {
    "uniform": "uniform random",
    "data_policy": "data policy",
    "oracle": "CEM on the true state and dynamics (oracle)",
}
ROW_SETTINGS = (
    "solver",
    "distance",
    "planner",
    "executed_actions",
    "warm_start",
    "budget_ms",
    "subgoals",
    "true_dynamics",
    "views",
)


@dataclass
class PlanConfig:
    """Settings of one evaluation."""

    output_dir: str
    models: dict[str, str | list[str]]
    """Folder or Hub id of a world model, by the name of its row; or a list of them, of several training seeds, whose
    row has their mean with an interval over seeds and tasks."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further rows on models of `models`, by name, such as {short: {model: CEM, distance: l1}}. `model` names one of
    them; solver, distance, planner, executed_actions, warm_start, budget_ms, subgoals, true_dynamics, views replace
    the settings below."""
    policies: dict[str, str] = field(default_factory=dict)
    """Folder of a policy of train_cloning.py or train_actor.py, by the name of its row."""
    proposals: dict[str, str] = field(default_factory=dict)
    """Folder of a policy whose rollout initializes the planner, by the name of a row of `models` or `rows`."""
    env: str = "vjepa2_hf/Pushing-v0"
    gym: GymTasksConfig | None = None
    """Goals and success criterion; null: the frozen tasks of the package's environments."""
    success_levels: dict[str, SuccessLevel] = field(default_factory=dict)
    """Levels of success by name, all from one run; the first one is the success of a row. {}: the environment's, or
    gym.success. An episode goes on until it has reached all of them."""
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    """Rows without a world model: uniform, data_policy, and for the package's environments oracle."""
    episodes: int = 100
    parallel: int | None = None
    """Episodes planned in one call; null: all."""
    compare_with: str | None = None
    """Name of a row; the others get their difference from it, paired by task, with an interval."""
    manifest: str | None = None
    """A manifest.json of an earlier run, whose tasks these must be: same starts and goals, pixel by pixel."""
    first_task: int = 100_000
    """Seed of the first task; the next ones follow. Tune settings on other tasks than you report."""
    seed: int = 0
    """Seed of the planner's samples and of the policies."""
    solver: dict[str, Any] = field(default_factory=dict)
    """`name` and settings of the solver; empty: as saved with the model."""
    distance: str | None = None
    """Distance of the cost: l2, l1, cosine or whitened; null: as saved with the model."""
    planner: dict[str, Any] = field(default_factory=dict)
    """Other settings of VJepa2Planner, such as candidate_chunk_size, or the embodiment that acts; a `cost` replaces
    `distance`."""
    varied_appearance: bool = False
    """Appearance randomization: each task has its own floor, colors, distractors and light."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the package's environments, such as {agent_radius: 3}; of others see gym.env_kwargs."""
    views: list[str] = field(default_factory=list)
    """Cameras of the package's environments: top, agent; []: top. Each model sees those that it was trained on. A
    model of several can do with fewer, as in a row {only_top: {model: both, views: [top]}}."""
    executed_actions: int = 2
    """Environment actions of a plan that are executed before planning again."""
    warm_start: bool = False
    """Initialize a plan with the last one, shifted by the executed actions."""
    true_dynamics: bool = False
    """Imagine with the package's environment: true states, rendered and encoded, instead of the model's dynamics. What
    still fails is due to the cost or the encoder. Slow: in a row of `rows` take few candidates."""
    budget_ms: float | None = None
    """Milliseconds of a planning call after which no iteration starts; per episode with parallel=1."""
    subgoals: str | bool | None = None
    """Folder of subgoals for far goals; false: none; null: as saved with the model."""
    videos: int = 100
    """Episodes per method to write as video."""
    num_threads: int | None = None
    device: str | None = None
    """Device of the world models; null: an accelerator if there is one."""

    def __post_init__(self):
        if not (self.models or self.baselines or self.policies):
            raise ValueError("models, policies and baselines are all empty: there is nothing to evaluate.")
        names = [*self.models, *self.rows, *self.policies, *(BASELINES.get(name, name) for name in self.baselines)]
        for name in names:
            if name in ("seeds", "file") or not name.strip(". ") or names.count(name) > 1:
                raise ValueError(f"The row name {name!r} is reserved or used twice; choose another name.")
        check_at_least(self, episodes=1, executed_actions=1, parallel=1, first_task=0, seed=0, videos=0)
        if self.budget_ms is not None:
            check_budget(self.budget_ms)
        if [] in self.models.values():
            raise ValueError("A row of models has an empty list; give one folder or several.")
        for name in self.baselines:
            check_known(name, BASELINES, "baseline")
        for name in self.proposals:
            check_known(name, [*self.models, *self.rows], "row of models or rows in proposals")
        for name in self.rows:
            self.of_row(name)
        self._check_comparison(names)
        for name in ("solver", "distance", "device", "subgoals"):
            if name in self.planner:
                raise ValueError(f"planner.{name} is set, but {name} is a setting of its own: set {name} instead.")
        if "solver" in self.solver:
            raise ValueError(f"solver.solver is {self.solver['solver']!r}: give the solver's name as solver.name.")
        if self.warm_start and self.proposals:
            raise ValueError(
                "Both warm_start and proposals are set, but a plan has one initialization: leave out one of the two."
            )
        if self.gym is None and self.env not in DATA_POLICY:
            raise ValueError(f"env is {self.env!r}: define its goals and success criterion in `gym` (gym.success, …).")
        for name in self.success_levels:
            if name in ("method", "episodes", "steps"):
                raise ValueError(f"The level of success {name!r} is a column of the table already: rename it.")
        if self.gym is not None:
            self.gym.make_levels(self.success_levels)
        frozen = "oracle" in self.baselines or self.varied_appearance or self.env_kwargs or self.true_dynamics
        frozen = frozen or self.views
        if self.gym is not None and frozen:
            raise ValueError(
                "gym tasks have no oracle, no true_dynamics, no varied_appearance, no views and no env_kwargs: set "
                "baselines=[uniform, data_policy], leave out the others, and use gym.env_kwargs."
            )

    def _check_comparison(self, names: list[str]) -> None:
        if self.compare_with is None:
            return
        check_known(self.reference, names, "row in compare_with")
        counts = {name: len(self.of_row(name).members(name)) for name in names}
        count = counts[self.reference]
        for name, other in counts.items():
            if other != count and 1 not in (other, count):
                raise ValueError(
                    f"compare_with pairs {name!r} with {self.reference!r} by training seed, but they have {other} and "
                    f"{count} models: give equally many, or one."
                )

    @property
    def reference(self) -> str | None:
        """The row that the others are compared with."""
        return BASELINES.get(self.compare_with, self.compare_with)

    @property
    def by_offset(self) -> list["PlanConfig"]:
        """With goals from recorded episodes the settings for each offset."""
        if self.gym is None or self.gym.goal != "dataset":
            return [self]
        gyms = [dataclasses.replace(self.gym, goal_offset=offset) for offset in self.gym.offsets]
        return [dataclasses.replace(self, gym=gym) for gym in gyms]

    @property
    def suffix(self) -> str:
        """What the name of a row says of its tasks."""
        return "" if self.gym is None or self.gym.goal != "dataset" else f", offset {self.gym.goal_offset}"

    def of_row(self, name: str) -> "PlanConfig":
        """The settings of a row alone, in which those of `rows` replace the common ones."""
        own = self.rows.get(name, {"model": name})
        if not isinstance(own, dict) or "model" not in own:
            raise ValueError(
                f"rows.{name} is {own!r}; expected settings with the name of a model: {{model: NAME, …}}."
            )
        own = dict(own)
        model = own.pop("model", None)
        if name in self.rows:
            check_known(str(model), self.models, f"model in rows.{name}")
        for setting in own:
            check_known(setting, ROW_SETTINGS, "setting of a row", f"rows.{name}.")
        models = {name: self.models[model]} if model in self.models else {}
        proposals = {row: path for row, path in self.proposals.items() if row in models}
        alone = dataclasses.replace(self, models=models, rows={}, proposals=proposals, compare_with=None)
        if own.get("distance") is not None and "planner" not in own:  # a cost that all rows have in common would win
            own["planner"] = {key: value for key, value in self.planner.items() if key != "cost"}
        return replace_values(alone, own, f"rows.{name}.")

    def members(self, name: str) -> list["PlanConfig"]:
        """The settings of a row, once for each of its models; videos are of the first one."""
        paths = self.models.get(name)
        if not isinstance(paths, list):
            return [self]
        videos = [self.videos] + [0] * (len(paths) - 1)
        pairs = zip(paths, videos, strict=True)
        return [dataclasses.replace(self, models={name: path}, videos=count) for path, count in pairs]

    def with_fraction(self) -> "PlanConfig":
        """The settings with the fraction of recorded episodes that training held out."""
        if self.gym is None or self.gym.data is None or self.gym.validation_fraction is not None:
            return self
        models = [path for paths in self.models.values() for path in (paths if isinstance(paths, list) else [paths])]
        fraction = find_fraction([*models, *self.policies.values()])
        return dataclasses.replace(self, gym=dataclasses.replace(self.gym, validation_fraction=fraction))


def recorded_pairs(config: PlanConfig) -> Sequence[RecordedPair]:
    """The starts and goals of `gym.goal: dataset`."""
    gym = config.gym
    return read_pairs(gym.data, gym.goal_offset, gym.validation_fraction, config.episodes, config.first_task)


def find_data_policy(config: PlanConfig) -> str:
    """The policy of the row "data policy"."""
    if config.gym is None:
        return DATA_POLICY[config.env]
    policy = config.gym.policy or recorded_pairs(config)[0].policy
    if policy is None:
        raise ValueError(
            f"The episodes of {config.gym.data!r} do not name the policy that recorded them: set gym.policy, or leave "
            "data_policy out of baselines."
        )
    return policy


def make_tasks(config: PlanConfig) -> Iterator[TaskBatch]:
    """The tasks of every method, `parallel` at a time."""
    size, gym = config.parallel or config.episodes, config.gym
    for first in range(0, config.episodes, size):
        seeds = range(config.first_task + first, config.first_task + min(first + size, config.episodes))
        if gym is None:
            env_kwargs = config.env_kwargs | ({"views": config.views} if config.views else {})
            yield Tasks(config.env, seeds, config.varied_appearance, env_kwargs, config.success_levels)
            continue
        pairs = None
        if gym.data is not None:
            pairs = recorded_pairs(config)[first : first + size]
        tasks = GymTasks(config.env, gym, seeds, pairs, config.success_levels)
        yield tasks
        tasks.close()


def run_method(
    config: PlanConfig, plan_of: Callable[[int], closed_loop.Plan]
) -> tuple[closed_loop.ClosedLoopResult, np.ndarray]:
    """Runs all episodes of a method, and keeps goal images (n, H, W, 3) of those on video.

    `plan_of` returns the plan for a group of episodes, by the number of the group.
    """
    results, goals, first = [], [], 0
    for group, tasks in enumerate(make_tasks(config)):
        shown = max(0, config.videos - first)
        results.append(closed_loop.run_closed_loop(tasks, plan_of(group), config.executed_actions, shown))
        goals.append(tasks.goal_images[:shown])
        first += len(tasks)
    result = closed_loop.join_results(results)
    if result.solved.all():
        raise ValueError("The start of every task solves it already: lower the distance of success.")
    return result, np.concatenate(goals)


def model_policy(config: PlanConfig, name: str, progress: tqdm) -> PlannerPolicy:
    settings = {**config.solver, "device": config.device, "subgoals": config.subgoals, **config.planner}
    settings |= {} if "cost" in config.planner else {"distance": config.distance}  # None: as saved
    planner = VJepa2Planner.from_pretrained(config.models[name], solver=settings.pop("name", None), **settings)
    start = {"warm_start": config.warm_start, "proposal": config.proposals.get(name)}
    policy = true_dynamics.TrueDynamicsPolicy if config.true_dynamics else PlannerPolicy
    return policy(planner, config.seed, progress, config.executed_actions, budget_ms=config.budget_ms, **start)


def check_models(config: PlanConfig) -> dict[str, list[dict[str, Any]]]:
    """For each row that has weights, path and fingerprints of its models and what they were trained on.

    All are loaded, so that errors show before any row runs.
    """
    found = {}
    for name in (*config.models, *config.rows):
        found[name] = []
        for own in config.of_row(name).members(name):
            policy, path = model_policy(own, name, tqdm(disable=True)), own.models[name]
            model, proposal = policy.planner.model, policy.proposal
            one = {"path": path, "config": files.config_fingerprint(model.config)}
            one |= {"weights": files.weights_fingerprint(model), "training": describe_training(path)}
            one |= {} if proposal is None else {"proposal": files.weights_fingerprint(proposal)}
            if policy.planner.subgoals is not None:
                one["subgoals"] = describe_folder(own.subgoals or os.path.join(path, "subgoals"))
            found[name].append(one)
    for name, path in config.policies.items():
        weights = files.weights_fingerprint(load_policy(path))
        found[name] = [{"path": path, "weights": weights, "training": describe_training(path)}]
    return found


def measure_row(config: PlanConfig, name: str) -> FinishedRow:
    """Runs the method of a row, with one model, and writes its videos."""
    extra: dict[str, Any] = {"plan_milliseconds": None}
    if name in config.models:
        with tqdm(desc=name) as progress:
            policy = model_policy(config, name, progress)
            result, goals = run_method(config, policy.begin)
        extra = {**policy.timings(), **measure_world_model(policy.planner, config.models[name])}
    elif name in config.policies:
        plan = PolicyPlan(config.policies[name], config.device)
        result, goals = run_method(config, lambda group: plan)
        seconds = {"plan_milliseconds": plan.seconds, "plan_cpu_milliseconds": plan.cpu_seconds}
        extra = {name: 1000 * value / plan.plans for name, value in seconds.items()}
    else:
        policies = {BASELINES["uniform"]: "uniform"}
        if name == BASELINES["data_policy"]:
            policies[name] = find_data_policy(config)
        make_plan = partial(closed_loop.policy_plan, policies[name]) if name in policies else true_dynamics.oracle_plan
        result, goals = run_method(config, lambda group: make_plan(seed=config.seed + group))
    title, early = name + config.suffix, int(result.ended_early.sum())
    if early:
        logger.warning(
            "%s: %d of %d episodes ended without success before their last step, which counts as failure; set "
            "gym.ignore_termination=true if the environment ends them for a goal of its own",
            *(title, early, len(result.success)),
        )
    goals, shown = goals[~result.solved[: len(goals)]], closed_loop.drop_solved(result)
    write_videos(Path(config.output_dir) / "videos" / title.replace(" ", "_").replace("/", "_"), shown, goals)
    return finish_row(title, result, extra)


def kept_row(config: PlanConfig, name: str, weights: Any) -> FinishedRow:
    """Reads the row if an earlier run with the same settings and weights finished it; else runs and keeps it."""
    others = ("models", "rows", "policies", "proposals", "baselines", "compare_with")  # which other rows exist
    others += ("output_dir", "manifest")
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in others}
    path = Path(config.output_dir) / "rows" / f"{files.cache_key({**settings, 'row': name, 'weights': weights})}.json"
    if path.exists():
        finished = FinishedRow(**json.loads(path.read_text(encoding="utf-8")))
        finished.states = np.load(path.with_suffix(".npy")) if finished.states else None
        return finished
    finished = measure_row(config, name)
    path.parent.mkdir(exist_ok=True)
    if finished.states is not None:
        np.save(path.with_suffix(".npy"), finished.states)
    # written last: a row implies complete states
    files.write_json(path, {**vars(finished), "states": finished.states is not None}, indent=None)
    return finished


def evaluate(config: PlanConfig) -> list[dict[str, Any]]:
    """Runs every method on the same tasks and writes the results."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    output = Path(config.output_dir)
    names = [BASELINES[name] for name in config.baselines if name != "oracle"]
    names += [*config.policies, *config.models, *config.rows]
    names += [BASELINES["oracle"]] * ("oracle" in config.baselines)
    with files.locked(output):
        models, config = check_models(config), config.with_fraction()

        # What all rows have in common
        of_tasks = ("env", "env_kwargs", "varied_appearance", "gym", "episodes", "first_task")
        about = {name: value for name, value in dataclasses.asdict(config).items() if name in of_tasks}
        tasks = {one.suffix: describe_tasks(make_tasks(one)) for one in config.by_offset}
        manifest = {"settings": about, "tasks": tasks, "versions": find_versions(config.env)}
        results = {"env": config.env, "manifest": settle_manifest(output / "manifest.json", manifest, config.manifest)}
        results |= {"versions": manifest["versions"], "hardware": find_hardware(config.device)}
        if config.gym is not None and config.gym.data is not None:
            results["data"] = describe_folder(config.gym.data)

        # Rows, of one model or of several
        finished, states = {}, {}
        for name, one in itertools.product(names, config.by_offset):
            title, members = name + one.suffix, one.of_row(name).members(name)
            rows = [kept_row(own, name, model) for own, model in zip(members, models.get(name, [None]), strict=True)]
            finished[title] = join_models(rows)
            finished[title].row |= {"models": models[name]} if name in models else {}
            titles = [f"{title}, model {number}" for number in range(len(rows))] if len(rows) > 1 else [title]
            states |= {each: row.states for each, row in zip(titles, rows, strict=True) if row.states is not None}
        for one in config.by_offset if config.compare_with else ():
            compare_rows({name: finished[name + one.suffix] for name in names}, config.reference)
        results["rows"] = [one.row for one in finished.values()]

        # `results.json` is written last: it implies the other files
        files.write_text(output / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
        for suffix, group in tasks.items():
            seeds = np.array([task["seed"] for task in group if not task["solved_at_start"]])
            states["seeds" + suffix * (len(tasks) > 1)] = seeds
        with files.write_aside(output / "episodes.npz") as unfinished, open(unfinished, "wb") as file:
            np.savez_compressed(file, **states)
        by_episode = {name: entry for one in finished.values() for name, entry in one.by_episode.items()}
        files.write_json(output / "by_episode.json", by_episode, indent=None)
        files.write_json(output / "results.json", results)
        files.remove_folder(output / "rows")
    return results["rows"]


@exit_on_user_error
def main() -> None:
    print(format_table(evaluate(parse_arguments(PlanConfig, __doc__))))


if __name__ == "__main__":
    main()
