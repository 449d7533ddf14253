"""Trains the models of planning.py in a folder of runs: those that its variants need and the folder lacks.

`python benchmarks/planning.py --train` runs this. Every command is printed, so that it can be run alone; a stopped
training continues.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RECORDINGS = {"pushing": ("vjepa2_hf/Pushing-v0", "drawn_to_block"), "two_rooms": ("vjepa2_hf/TwoRooms-v0", "wander")}
WORLD_MODELS = {"pushing": "world_model.yaml", "two_rooms": "world_model_two_rooms.yaml"}
EPISODES = 560  # of the demo
WORLD_MODEL = {"max_steps": 2400, "world_model.distance_head": "true"}  # as the demo trains it
DISTILLED = {
    "policy": "{}",  # the sizes of cloning's
    "max_steps": 300,
    "batch_size": 64,
    "planner": "{name: cem, horizon: 3, num_candidates: 32, num_iterations: 2, cost: closest}",
}
NEEDS = {
    "pretrain": ["episodes"],
    "world_model": ["episodes", "pretrain"],
    "world_model_merged": ["episodes", "pretrain"],
    "world_model_pooled": ["episodes", "pretrain"],
    "cloning": ["episodes", "world_model"],
    "cloning_steps": ["episodes", "world_model"],
    "actor": ["episodes", "world_model", "cloning"],
    "distilled": ["episodes", "world_model", "cloning"],
}


@dataclass(frozen=True)
class Command:
    """One call of a script of examples/, and the folder that it writes."""

    script: str
    arguments: list[str]
    result: Path

    def __str__(self) -> str:
        return shlex.join(["python", f"examples/{self.script}", *self.arguments])

    def run(self) -> None:
        print(self, flush=True)
        ended = subprocess.run([sys.executable, str(EXAMPLES / self.script), *self.arguments])
        if ended.returncode:
            raise SystemExit(f"{self.script} failed; see above.")


def find_episodes(runs: Path) -> Path:
    """The recorded episodes of a folder of runs; those of `studies/reproduce.py` lie beside the folders of seeds."""
    return next((one for one in (runs / "episodes", runs.parent / "episodes") if one.exists()), runs / "episodes")


def list_commands(environment: str, runs: Path, folders: Iterable[str], world_model: Path | None) -> list[Command]:
    """The commands that make what is missing, in order.

    Args:
        folders: of the variants, such as "cloning/final".
        world_model: the one that the folder has; `None`: it is trained.
    """
    model = runs / "world_model" / "final" if world_model is None else world_model
    commands, wanted = make_commands(environment, runs, model), []

    def want(name: str) -> None:
        if not commands[name].result.exists() and name not in wanted:
            for needed in NEEDS.get(name, []):
                want(needed)
            wanted.append(name)

    for name in ["world_model", *(Path(folder).parent.name for folder in folders)]:
        want(name)
    return [commands[name] for name in wanted]


def make_commands(environment: str, runs: Path, model: Path) -> dict[str, Command]:
    """Every command by the name of its folder."""
    episodes, (env, policy) = find_episodes(runs), RECORDINGS[environment]
    recording = ["--env", env, "--policy", policy, "--episodes", str(EPISODES), "--output", str(episodes)]

    def training(name: str, script: str, config: str, result: Path | None = None, **settings: object) -> Command:
        given = {"data": episodes, **settings, "output_dir": runs / name, "resume": "latest"}
        arguments = ["--config", str(EXAMPLES / "configs" / "demo" / config)]
        arguments += [f"{key}={value}" for key, value in given.items()]
        return Command(script, arguments, result or runs / name / "final")

    world = ("train_world_model.py", WORLD_MODELS[environment])
    on_encoder = {"encoder": runs / "pretrain" / "final", **WORLD_MODEL}
    merged = {"world_model.state_type": "merged", "world_model.state_dim": 96}
    on_model, start = {"world_model": model}, {"start": runs / "cloning" / "final"}
    cloning = ("train_cloning.py", "cloning.yaml")
    return {
        "episodes": Command("record_episodes.py", recording, episodes),
        "pretrain": training("pretrain", "pretrain.py", "pretrain.yaml"),
        "world_model": training("world_model", *world, model, **on_encoder),
        "world_model_merged": training("world_model_merged", *world, **on_encoder, **merged),
        "world_model_pooled": training(
            "world_model_pooled", *world, **on_encoder, **{"world_model.state_type": "pooled"}
        ),
        "cloning": training("cloning", *cloning, **on_model),
        "cloning_steps": training("cloning_steps", *cloning, **on_model, **{"policy.steps_left": 10}),
        "actor": training("actor", "train_actor.py", "actor.yaml", **on_model, **start),
        "distilled": training("distilled", *cloning, **on_model, **start, **DISTILLED),
    }
