"""Isolates what holds planning in Push-T back: the state that the latents hold, or the dynamics and the search.

    python examples/studies/push_t.py [--model runs/pusht/world_model/final] [--data runs/pusht/episodes] [--tasks 40]

Run it after the commands of "gym-pusht" in docs/planning_evaluation.md, and with their `SDL_VIDEODRIVER=dummy`. From
the true states of the training episodes it learns the dynamics of the state, with which CEM plans from

* the true state, and the true state with errors of known size;
* the state as a network reads it from the image of present and goal, from the world model's latents, from all tokens
  of its encoder, or from the raw image.

The planner's own row imagines latents with the world model. All rows have the same tasks: those of
configs/pusht/plan_offset_25.yaml, on episodes that no training saw. Also reported: how accurately each source of the
state is read in new episodes, also from an encoder with random weights.
"""

import argparse
import json
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import study
import torch
import yaml
from torch import nn
from tqdm import tqdm

from vjepa2_hf import VJepa2Encoder, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import episode_ids, held_out_of, read_episodes
from vjepa2_hf.data.files import weights_fingerprint, write_json
from vjepa2_hf.environments.closed_loop import Plan, join_results, policy_plan, run_closed_loop
from vjepa2_hf.environments.dataset_goals import find_fraction, read_pairs
from vjepa2_hf.environments.gym_tasks import GymTasks, GymTasksConfig
from vjepa2_hf.environments.manifest import describe_folder, describe_tasks, find_versions, settle_manifest
from vjepa2_hf.environments.planner_policy import PlannerPolicy
from vjepa2_hf.environments.planning_rows import finish_row
from vjepa2_hf.environments.success import SuccessLevel
from vjepa2_hf.environments.tasks import TaskBatch
from vjepa2_hf.planning import CEM
from vjepa2_hf.training.episode_latents import NO_DYNAMICS
from vjepa2_hf.visualization.rollout_windows import encode_frames


PLAN = yaml.safe_load((study.CONFIGS / "pusht" / "plan_offset_25.yaml").read_text(encoding="utf-8"))
FIRST_TASK = 800_000  # of no other study, and of no choice
SKIP = 5  # frames and actions of a step of the dynamics, as of the world model
READ_EVERY = 6  # frames between those from which states are read
IMAGE = 48  # pixels of the raw image that is read
SCALE = torch.tensor([30.0, 30.0, 15.0, 15.0, 0.25])  # of the change in a step: agent x, y; T x, y, angle
TRUE, PLANNER = "true state", "the planner: world model and latents"
ERRORS = (10.0, 25.0)  # pixels of each coordinate, and degrees
LATENTS, TOKENS, RAW = "the planner's latents", "all tokens of its encoder", f"raw image, {IMAGE} pixels"
PLANNED = (LATENTS, TOKENS, RAW)  # sources of the state in closed loop


# --- States


def features(states: torch.Tensor) -> torch.Tensor:
    """States (..., 5) -> (..., 10): positions, angle, and the agent seen from the T."""
    agent, block, angle = states[..., :2], states[..., 2:4], states[..., 4:]
    cos, sin = angle.cos(), angle.sin()
    x, y = (agent - block).split(1, dim=-1)
    seen = torch.cat([cos * x + sin * y, cos * y - sin * x], dim=-1) / 64
    return torch.cat([(states[..., :4] - 256) / 128, cos, sin, (block - agent) / 64, seen], dim=-1)


def wrapped(angle: torch.Tensor) -> torch.Tensor:
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def perceptron(inputs: int, outputs: int, layers: int) -> nn.Sequential:
    sizes = [inputs] + [256] * layers
    hidden = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(256, outputs))


class StateDynamics(nn.Module):
    """The state after `SKIP` actions: (..., 5), (..., 2 · SKIP) -> (..., 5)."""

    def __init__(self):
        super().__init__()
        self.change = perceptron(10 + 2 * SKIP, 5, 3)
        nn.init.zeros_(self.change[-1].weight)
        nn.init.zeros_(self.change[-1].bias)

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return states + SCALE * self.change(torch.cat([features(states), actions], dim=-1))


class StateReader(nn.Module):
    """Reads the state from what a source makes of an image: (B, D) -> (B, 5)."""

    def __init__(self, inputs: torch.Tensor, states: torch.Tensor):
        super().__init__()
        self.mean, self.std = inputs.float().mean(dim=0), inputs.float().std()
        targets = self.targets(states)
        self.bias, self.scale = targets.mean(dim=0), targets.std(dim=0).clamp(min=1e-6)
        self.read = perceptron(inputs.shape[1], 6, 2)

    @staticmethod
    def targets(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states[:, :4], 100 * states[:, 4:].sin(), 100 * states[:, 4:].cos()], dim=1)

    def loss(self, inputs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        wanted = (self.targets(states) - self.bias) / self.scale
        return (self.read((inputs.float() - self.mean) / self.std) - wanted).square().mean()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = self.read((inputs.float() - self.mean) / self.std) * self.scale + self.bias
        return torch.cat([found[:, :4], torch.atan2(found[:, 4], found[:, 5]).unsqueeze(1)], dim=1)


def train(module: nn.Module, loss_at: Callable[[int], torch.Tensor], steps: int, rate: float, decay: float) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_at(step).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def learn_dynamics(states: torch.Tensor, actions: torch.Tensor, steps: int, seed: int) -> StateDynamics:
    """From episodes (E, T, 5) and (E, T - 1, 2); the last 30 % of the steps minimize errors of three steps ahead."""
    torch.manual_seed(seed)
    dynamics, rows = StateDynamics(), torch.arange(SKIP)

    def loss_at(step: int) -> torch.Tensor:
        ahead = 3 if step > 0.7 * steps else 1
        episode = torch.randint(len(states), (256,))
        first = torch.randint(states.shape[1] - ahead * SKIP, (256,))
        found, loss = states[episode, first], torch.zeros(())
        for _ in range(ahead):
            found = dynamics(found, actions[episode[:, None], first[:, None] + rows].flatten(1))
            first = first + SKIP
            loss = loss + ((found - states[episode, first]) / SCALE).square().mean()
        return loss

    train(dynamics, loss_at, steps, 3e-3, 1e-3)
    return dynamics.eval()


def learn_reader(inputs: torch.Tensor, states: torch.Tensor, steps: int, seed: int) -> StateReader:
    torch.manual_seed(seed)
    reader = StateReader(inputs, states)

    def loss_at(step: int) -> torch.Tensor:
        chosen = torch.randint(len(inputs), (128,))
        return reader.loss(inputs[chosen], states[chosen])

    train(reader, loss_at, steps, 2e-3, 0.05)
    return reader.eval()


def accuracy(found: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """Median errors of states (B, 5)."""
    agent, block = ((found - true)[:, part].norm(dim=1) for part in (slice(0, 2), slice(2, 4)))
    turned = torch.rad2deg(wrapped(found[:, 4] - true[:, 4]).abs())
    names = "agent, pixels", "T, pixels", "angle, degrees"
    return {name: error.median().item() for name, error in zip(names, (agent, block, turned), strict=True)}


# --- What is read from images

Source = Callable[[np.ndarray], torch.Tensor]  # uint8 (B, H, W, 3) -> (B, D)


def sources(model: VJepa2WorldModel, processor: VJepa2VideoProcessor, seed: int) -> dict[str, Source]:
    """All sources by name; the last has random weights."""

    def tokens_of(encoder: VJepa2Encoder) -> Source:
        tokens = VJepa2WorldModel.from_encoder(encoder, state_type="tokens", **NO_DYNAMICS).eval()
        return lambda images: encode_frames(tokens, processor, images).flatten(1).half()

    def raw(images: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        smaller = nn.functional.interpolate(pixels, size=(IMAGE, IMAGE), mode="bilinear", antialias=True)
        return smaller.flatten(1).half()

    torch.manual_seed(seed)
    untrained = VJepa2Encoder(model.config.encoder_config)
    return {
        LATENTS: lambda images: encode_frames(model, processor, images).flatten(1).half(),
        TOKENS: tokens_of(model.encoder),
        RAW: raw,
        "all tokens of the encoder with random weights": tokens_of(untrained),
    }


@dataclass
class Recorded:
    """Episodes: states (E, T, 5), actions (E, T - 1, 2) and, of every `READ_EVERY`-th frame, images by episode."""

    states: torch.Tensor
    actions: torch.Tensor
    images: list[np.ndarray]

    def seen(self, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
        """What a source makes of the images (B, D), and their states (B, 5)."""
        inputs = torch.cat([source(images) for images in tqdm(self.images, desc="read images")])
        return inputs, self.states[:, ::READ_EVERY].flatten(0, 1)


def read_recorded(data: str, wanted: Callable[[str], bool]) -> Recorded:
    found = [
        (torch.from_numpy(one["states"]), torch.from_numpy(one["actions"]), one["frames"][::READ_EVERY].copy())
        for one in read_episodes(data, wanted=wanted)
    ]
    states, actions, images = zip(*found, strict=True)
    return Recorded(torch.stack(states), torch.stack(actions), list(images))


# --- Planning

Observe = Callable[[TaskBatch, np.ndarray], tuple[torch.Tensor, torch.Tensor]]  # present and goals of tasks, (n, 5)


def state_plan(dynamics: StateDynamics, observe: Observe, seed: int) -> Plan:
    """CEM with the settings of the config. Its cost is the smallest over the steps of squared errors in units of the
    moderate level; the agent's position has a tenth of the weight, because the level does not judge it."""
    settings = {name: value for name, value in PLAN["solver"].items() if name != "name"}
    solver, generator = CEM(**settings), torch.Generator().manual_seed(seed)
    level = PLAN["success_levels"]["moderate"]

    def cost_of(actions: torch.Tensor, states: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        found, costs = states.unsqueeze(1).expand(-1, actions.shape[1], -1), []
        for step in range(actions.shape[2]):
            found = dynamics(found, actions[:, :, step])
            apart = (found[..., :4] - goals[:, None, :4]).square() / level["distance"] ** 2
            turned = torch.rad2deg(wrapped(found[..., 4] - goals[:, None, 4])) / level["degrees"]
            costs.append(apart[..., 2:].sum(-1) + turned.square() + 0.1 * apart[..., :2].sum(-1))
        return torch.stack(costs).amin(dim=0)

    @torch.no_grad()
    def plan(tasks: TaskBatch) -> np.ndarray:
        active = np.flatnonzero(tasks.active)
        plans = np.zeros((len(tasks), solver.horizon * SKIP, 2), np.float32)
        if len(active):
            states, goals = observe(tasks, active)
            cost = partial(cost_of, states=states, goals=goals)
            found = solver(cost, batch_size=len(active), action_dim=2 * SKIP, generator=generator)
            plans[active] = found.actions.unflatten(-1, (SKIP, 2)).flatten(1, 2).numpy()
        return plans

    return plan


def observe_true(tasks: TaskBatch, active: np.ndarray, error: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """True states with Gaussian errors: `error` pixels and degrees. A goal's error is that of its task."""
    unit = np.float32([1, 1, 1, 1, np.deg2rad(1)]) * error
    found = []
    for kind, states in enumerate((tasks.states, tasks.goal_states)):
        moment = 0 if kind else int(tasks.steps_taken) + 1
        keys = [[tasks.sources[task]["seed"], moment] for task in active]
        noise = np.float32([np.random.default_rng(key).normal(size=5) for key in keys])
        found.append(torch.from_numpy(states[active] + unit * noise).float())
    return found[0], found[1]


def observe_images(
    tasks: TaskBatch, active: np.ndarray, source: Source, reader: StateReader
) -> tuple[torch.Tensor, torch.Tensor]:
    return reader(source(tasks.render(active))), reader(source(tasks.goal_images[active]))


def task_batches(options: argparse.Namespace, fraction: float) -> Iterator[GymTasks]:
    gym = GymTasksConfig(**{**PLAN["gym"], "data": options.data, "validation_fraction": fraction})
    levels = {name: SuccessLevel(**rule) for name, rule in PLAN["success_levels"].items()}
    pairs = read_pairs(options.data, gym.goal_offset, fraction, options.tasks, FIRST_TASK)
    for first in range(0, options.tasks, PLAN["parallel"]):
        part = pairs[first : first + PLAN["parallel"]]
        seeds = range(FIRST_TASK + first, FIRST_TASK + first + len(part))
        tasks = GymTasks(PLAN["env"], gym, seeds, part, levels)
        yield tasks
        tasks.close()


# --- The study


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    fraction = find_fraction([options.model])
    tasks = {"": describe_tasks(task_batches(options, fraction))}
    settings = {"plan": PLAN, "tasks": options.tasks, "first_task": FIRST_TASK}
    manifest = {"settings": settings, "tasks": tasks, "versions": find_versions(PLAN["env"])}
    settle_manifest(options.output / "manifest.json", manifest, None)

    model = VJepa2WorldModel.from_pretrained(options.model).eval()
    processor = VJepa2VideoProcessor.from_pretrained(options.model)
    held_out = held_out_of(episode_ids(options.data), fraction)
    training, new = (read_recorded(options.data, wanted) for wanted in (lambda name: not held_out(name), held_out))
    about = {"weights": weights_fingerprint(model), "data": describe_folder(options.data)["digest"]}
    write_json(options.output / "about.json", about | {"training_episodes": len(training.images)})

    plans: dict[str, Callable[[], Plan]] = {}
    dynamics = learn_dynamics(training.states, training.actions, options.dynamics_steps, options.seed)
    write_json(options.output / "dynamics.json", measure_dynamics(dynamics, new))
    plans[TRUE] = partial(state_plan, dynamics, observe_true, options.seed)
    for name, source in sources(model, processor, options.seed).items():
        reader = read_source(options, name, source, training, new)
        if name in PLANNED:
            observe = partial(observe_images, source=source, reader=reader)
            plans[f"state read from {name}"] = partial(state_plan, dynamics, observe, options.seed)
    for error in ERRORS:
        observe = partial(observe_true, error=error)
        plans[f"{TRUE} with errors of {error:g} pixels and degrees"] = partial(
            state_plan, dynamics, observe, options.seed
        )
    plans[PLANNER] = partial(latent_plan, options)
    plans["data policy"] = partial(policy_plan, PLAN["gym"]["policy"], options.seed)
    plans["uniform random"] = partial(policy_plan, "uniform", options.seed)
    for name, make_plan in plans.items():
        run_row(options, fraction, name, make_plan)


def measure_dynamics(dynamics: StateDynamics, new: Recorded) -> dict[str, dict[str, float]]:
    """Median errors in new episodes by number of frames ahead, and those of the present state."""
    found = {}
    states = start = new.states[:, 0]
    for step in range(5):
        with torch.no_grad():
            states = dynamics(states, new.actions[:, SKIP * step : SKIP * (step + 1)].flatten(1))
        frames = SKIP * (step + 1)
        if step in (0, 4):
            found[f"dynamics of the true state, {frames} frames ahead"] = accuracy(states, new.states[:, frames])
            found[f"the present state, {frames} frames later"] = accuracy(start, new.states[:, frames])
    return found


def read_source(
    options: argparse.Namespace, name: str, source: Source, training: Recorded, new: Recorded
) -> StateReader:
    """A reader of all training episodes; measures it, and for raw images one of half of them."""
    (inputs, states), known, found = training.seen(source), new.seen(source), {}
    frames = len(states) // len(training.images)
    for part in (2, 1) if name == RAW else (1,):
        episodes = len(training.images) // part
        rows = episodes * frames
        reader = learn_reader(inputs[:rows], states[:rows], options.reader_steps, options.seed)
        with torch.no_grad():
            read = torch.cat([reader(part) for part in known[0].split(1000)])
        found[str(episodes)] = accuracy(read, known[1])
    write_json(options.output / "readings" / f"{study.slug(name)}.json", {"name": name, "episodes": found})
    return reader


def latent_plan(options: argparse.Namespace) -> Plan:
    settings = {**PLAN["solver"], **PLAN["planner"]}
    planner = VJepa2Planner.from_pretrained(options.model, solver=settings.pop("name"), device="cpu", **settings)
    policy = PlannerPolicy(planner, options.seed, tqdm(disable=True), PLAN["executed_actions"])
    return policy.begin(0)


def run_row(options: argparse.Namespace, fraction: float, name: str, make_plan: Callable[[], Plan]) -> None:
    path = options.output / "rows" / f"{study.slug(name)}.json"
    if path.exists():
        return
    plan, results = make_plan(), []
    for tasks in tqdm(task_batches(options, fraction), desc=name):
        results.append(run_closed_loop(tasks, plan, PLAN["executed_actions"]))
    write_json(path, finish_row(name, join_results(results), {}).row)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    rows = study.read_results(sorted((options.output / "rows").glob("*.json")))
    readings = study.read_results(sorted((options.output / "readings").glob("*.json")))
    if not rows:
        return None
    (about, dynamics) = study.read_results(options.output / name for name in ("about.json", "dynamics.json"))
    manifest = json.loads((options.output / "manifest.json").read_text(encoding="utf-8"))
    write_json(options.results.parent / "manifests" / f"{options.results.stem}.json", manifest)
    success = {
        row["name"]: {"episodes": row["episodes"], "levels": row["levels"]}
        for row in sorted(rows, key=lambda row: -row["levels"]["moderate"]["success"])
    }
    accuracies = {
        one["name"]: one["episodes"] for one in sorted(readings, key=lambda one: last(one["episodes"])["T, pixels"])
    }
    return {**about, "rows": success, "readings": accuracies, "dynamics": dynamics}


def last(by_episodes: dict[str, Any]) -> Any:
    return by_episodes[max(by_episodes, key=int)]


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    rows = results["rows"]
    count = next(iter(rows.values()))["episodes"]
    yield (
        f"**Push-T.** {results['training_episodes']} training episodes, {count} tasks on new ones (goals 25 steps "
        f"ahead, 50 steps), one seed ({results['seed']}); 95 % intervals over tasks."
    )
    levels = list(next(iter(rows.values()))["levels"])
    yield (
        ["plans from", *levels],
        [[name, *(interval(row["levels"][level]) for level in levels)] for name, row in rows.items()],
    )
    yield "Median errors of the state in new episodes, by number of training episodes:"
    errors = list(next(iter(results["dynamics"].values())))
    yield (
        ["state", "training episodes", *errors],
        [
            [name, count, *(f"{found[error]:.1f}" for error in errors)]
            for name, one in results["readings"].items()
            for count, found in one.items()
        ]
        + [[name, None, *(f"{found[error]:.1f}" for error in errors)] for name, found in results["dynamics"].items()],
    )


def interval(level: dict[str, Any]) -> str:
    return f"{level['success']:.2f} ({level['low']:.2f}–{level['high']:.2f})"


SETTINGS = {
    "model": ("runs/pusht/world_model/final", "folder of the world model"),
    "data": ("runs/pusht/episodes", "its episodes"),
    "tasks": (40, "tasks of planning"),
    "reader_steps": (600, "steps of learning to read a state"),
    "dynamics_steps": (2500, "steps of learning the dynamics of the state"),
    "seed": (0, "of networks and plans"),
}
STUDY = study.Study(
    "push_t", __doc__, run, collect, format_tables, ["docs/planning_evaluation.md"], SETTINGS, {}, model="model"
)


if __name__ == "__main__":
    STUDY.main()
