"""Plans in closed loop with world models, beside baselines, and reports success over episodes.

    python examples/plan.py --config examples/configs/demo/plan.yaml [key=value ...]

Small, with a world model of your own:

    python examples/plan.py --config examples/configs/demo/plan.yaml episodes=10 \
        "models={mine: runs/my_world_model/final}"

Writes `OUTPUT_DIR/results.json` (a row a method: success with a 95 % interval, steps, plan time), `episodes.npz` (what
happened) and `videos/METHOD/episode-000.mp4` (an episode beside its goal).
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from environments import DATA_POLICY, MAX_STEPS, SUCCESS_PIXELS, ClosedLoopResult, Oracle, Tasks, policy_plan
from environments import run_closed_loop as run_episodes
from tqdm import tqdm

from vjepa2_hf import VJepa2Planner
from vjepa2_hf.settings import check_known, exit_on_user_error, parse_arguments
from vjepa2_hf.video_io import encode_video


BASELINES = {
    "uniform": "uniform random",
    "data_policy": "data policy",
    "oracle": "CEM on the true state and dynamics (oracle)",
}


@dataclass
class PlanConfig:
    """Settings of one evaluation."""

    output_dir: str
    models: dict[str, str]
    """Name of the row: folder or Hub id of a world model."""
    env: str = "vjepa2_hf/Pushing-v0"
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    """Rows without a world model: uniform, data_policy, oracle."""
    episodes: int = 100
    first_task: int = 100_000
    """Seed of the first task; tasks are numbered upwards. Choices are made on other tasks than figures."""
    seed: int = 0
    """Of the planner's noise and of the policies."""
    solver: dict[str, Any] = field(default_factory=dict)
    """`name` and settings of the solver; empty: what the model was saved with."""
    distance: str = "l2"
    varied_appearance: bool = False
    """Each task has its own floor, colours, distractors and light."""
    executed_actions: int = 2
    """Environment actions of a plan that are carried out before planning again."""
    videos: int = 100
    """Episodes of a method to write as video."""
    num_threads: int | None = None
    device: str | None = None
    """Of the world models; null: an accelerator where there is one."""

    def __post_init__(self):
        if not self.models and not self.baselines:
            raise ValueError("models and baselines are both empty: there is nothing to evaluate.")
        if {"seeds", "file"} & set(self.models):
            raise ValueError("a row cannot be called 'seeds' or 'file'; choose another name in `models`.")
        for name in ("episodes", "executed_actions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in self.baselines:
            check_known(name, BASELINES, "baseline")


class PlannerPolicy:
    """A planner as a plan for `run_closed_loop`; episodes that have reached their goal are not planned any more."""

    def __init__(self, planner: VJepa2Planner, seed: int, progress: tqdm):
        self.planner, self.seed, self.progress = planner, seed, progress
        self.calls, self.plans, self.seconds = 0, 0, 0.0

    def __call__(self, tasks: Tasks) -> np.ndarray:
        config = self.planner.model.config
        active = np.flatnonzero(~tasks.reached)
        actions = np.zeros((len(tasks), self.planner.solver.horizon * config.actions_per_step, 2), np.float32)
        if len(active):
            proprio = list(tasks.proprio_states[active]) if config.proprio_dim else None
            started = time.perf_counter()
            plans = self.planner(
                list(tasks.render()[active]),
                list(tasks.goal_images[active]),
                proprio_state=proprio,
                seed=self.seed * 1000 + self.calls,
            )
            self.seconds += time.perf_counter() - started
            self.plans += len(active)
            chunks = np.stack([plan["actions"] for plan in plans])  # (n, P, A): k environment actions a model step
            actions[active] = chunks.reshape(len(active), -1, 2)
        self.calls += 1
        self.progress.set_postfix(reached=int(tasks.reached.sum()))
        self.progress.update()
        return actions


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson's score interval): of the episodes, not of another training run."""
    z, rate = 1.96, successes / episodes
    centre = (rate + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    half = z / (1 + z**2 / episodes) * np.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarize(name: str, result: ClosedLoopResult, plan_seconds: float | None) -> dict[str, Any]:
    """A row of the table."""
    episodes, reached = len(result.success), result.distances[:, 1:] <= SUCCESS_PIXELS
    steps = reached.argmax(axis=1)[result.success] + 1
    low, high = wilson_interval(int(result.success.sum()), episodes)
    return {
        "name": name,
        "success": float(result.success.mean()),
        "low": low,
        "high": high,
        "episodes": episodes,
        "steps_to_success": float(steps.mean()) if len(steps) else None,
        "plan_milliseconds": None if plan_seconds is None else 1000 * plan_seconds,
    }


def run_baseline(name: str, config: PlanConfig, tasks: Tasks) -> ClosedLoopResult:
    if name == "oracle":
        return run_episodes(tasks, Oracle(seed=config.seed), executed_actions=config.executed_actions)
    policy = "uniform" if name == "uniform" else DATA_POLICY[config.env]
    return run_episodes(tasks, policy_plan(policy, config.seed), executed_actions=config.executed_actions)


def run_model(name: str, path: str, config: PlanConfig, tasks: Tasks) -> tuple[ClosedLoopResult, float]:
    """Episodes under a planner, and seconds a plan."""
    settings = dict(config.solver)
    solver = settings.pop("name", None)
    settings = {**settings, "distance": config.distance, "device": config.device}
    planner = VJepa2Planner.from_pretrained(path, solver=solver, **settings)
    calls = -(-MAX_STEPS // config.executed_actions)
    with tqdm(total=calls, desc=name) as progress:
        policy = PlannerPolicy(planner, config.seed, progress)
        result = run_episodes(tasks, policy, executed_actions=config.executed_actions)
    return result, policy.seconds / policy.plans


def write_videos(folder: Path, tasks: Tasks, result: ClosedLoopResult, count: int) -> None:
    """Episodes beside their goals, enlarged, up to their success."""
    folder.mkdir(parents=True, exist_ok=True)
    for episode in range(min(count, len(tasks))):
        reached = result.distances[episode] <= SUCCESS_PIXELS
        length = int(reached[1:].argmax()) + 2 if result.success[episode] else len(reached)
        states, appearance = result.states[episode, :length], tasks.appearances[episode]
        frames = np.stack([tasks.env.render_state(state, appearance) for state in states])
        goal = np.broadcast_to(tasks.goal_images[episode], frames.shape)
        picture = np.concatenate([frames, goal], axis=2).repeat(3, axis=1).repeat(3, axis=2)
        (folder / f"episode-{episode:03d}.mp4").write_bytes(encode_video(picture, fps=10))


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| method | success | 95 % interval | episodes | steps | ms a plan |", "|---|---|---|---|---|---|"]
    for row in rows:
        steps = "–" if row["steps_to_success"] is None else f"{row['steps_to_success']:.1f}"
        plan = "–" if row["plan_milliseconds"] is None else f"{row['plan_milliseconds']:.0f}"
        interval = f"{row['low']:.2f}–{row['high']:.2f}"
        lines.append(f"| {row['name']} | {row['success']:.2f} | {interval} | {row['episodes']} | {steps} | {plan} |")
    return "\n".join(lines)


def evaluate(config: PlanConfig) -> list[dict[str, Any]]:
    """Runs every method on the same tasks and writes what came of it."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    seeds = range(config.first_task, config.first_task + config.episodes)
    rows, states = [], {}
    methods = [(name, None) for name in config.baselines if name != "oracle"]
    methods += list(config.models.items()) + [("oracle", None)] * ("oracle" in config.baselines)
    for name, path in methods:
        tasks = Tasks(config.env, seeds, config.varied_appearance)
        if path is None:
            result, seconds = run_baseline(name, config, tasks), None
            name = BASELINES[name]
        else:
            result, seconds = run_model(name, path, config, tasks)
        rows.append(summarize(name, result, seconds))
        states[name] = result.states
        write_videos(output / "videos" / name.replace(" ", "_").replace("/", "_"), tasks, result, config.videos)

    (output / "config.yaml").write_text(yaml.safe_dump(vars(config), sort_keys=False), encoding="utf-8")
    partial = output / "partial.npz"
    np.savez_compressed(partial, seeds=np.array(seeds), **states)
    partial.replace(output / "episodes.npz")
    partial = output / "results.json.tmp"
    partial.write_text(json.dumps({"env": config.env, "rows": rows}, indent=1), encoding="utf-8")
    partial.replace(output / "results.json")  # last: who finds it finds the rest
    return rows


@exit_on_user_error
def main() -> None:
    rows = evaluate(parse_arguments(PlanConfig, __doc__))
    print(format_table(rows))


if __name__ == "__main__":
    main()
