"""The commands of docs/world_model.md on several cameras and several robots run, at tiny size."""

import json
import shutil
from pathlib import Path

import make_arm_dataset
import plan_arm
import pytest
import record_episodes
from builders import ROOT
from script_runs import TINY_DYNAMICS, TINY_RECORDING, TINY_SOLVER, commands, run_script

from vjepa2_hf import VJepa2WorldModel


TINY = {
    "record_episodes": TINY_RECORDING,
    "train_world_model": [
        "max_steps=2",
        "batch_size=2",
        "validation_fraction=0.3",
        "horizons=[1, 2]",
        "num_threads=1",
    ],
    "evaluate_world_model": ["horizons=[1, 2]"],
    "plan": ["episodes=2", "videos=0", *(f"solver.{setting}" for setting in TINY_SOLVER)],
    "plan_arm": ["pairs=2", "smallest_distance=0.001", *(f"planner.{setting}" for setting in TINY_SOLVER)],
}


def run(monkeypatch, command: list[str]) -> None:
    """A command of the page, smaller."""
    script = next(part for part in command if part.endswith(".py"))
    name, arguments = Path(script).stem, command[command.index(script) + 1 :]
    arguments = [str(ROOT / part) if part.startswith("examples/configs/") else part for part in arguments]
    new = name == "train_world_model" and not any(part.startswith("from_model=") for part in arguments)
    arguments += TINY[name] + ([f"world_model.{setting}" for setting in TINY_DYNAMICS] if new else [])
    if name == "record_episodes":
        record_episodes.main(arguments)
    elif name == "plan_arm":
        plan_arm.main(arguments)
    else:
        run_script(monkeypatch, __import__(name), arguments)


@pytest.fixture
def work(demo_runs):
    """A folder with what the page names."""
    make_arm_dataset.main(["runs/franka/train", "--episodes", "5", "--length", "9", "--size", "64"])
    shutil.copytree("runs/franka/train", "runs/franka/held_out")
    shutil.copytree("runs/demo/episodes", "my_robot")
    return demo_runs


def section(name: str) -> list[list[str]]:
    """The commands of a section of the page."""
    return [command for command in commands("world_model.md") if any(f"runs/{name}" in part for part in command)]


def test_several_cameras(work, monkeypatch):
    found = section("views")
    assert [Path(command[1]).stem for command in found] == [
        "record_episodes", "train_world_model", "evaluate_world_model", "plan"
    ]  # fmt: skip
    for command in found:
        run(monkeypatch, command)
    assert VJepa2WorldModel.from_pretrained("runs/views/both/final").config.view_names == ["top", "agent"]
    rows = [row["name"] for row in json.loads(Path("runs/views/plan/results.json").read_text())["rows"]]
    assert "both" in rows and "both without the close-up" in rows


def test_several_robots(work, monkeypatch):
    found = section("robots")
    assert [Path(command[1]).stem for command in found] == [
        "train_world_model", "plan", "plan_arm", "train_world_model"
    ]  # fmt: skip
    for command in found:
        run(monkeypatch, command)
    config = VJepa2WorldModel.from_pretrained("runs/robots_3/final").config
    assert config.embodiment_names == ["pusher", "arm", "mine"]
    assert config.embodiment_action_dims == [2, 7, 2] and config.embodiment_proprio_dims == [0, 7, 2]
    assert json.loads(Path("runs/robots/plan_arm/results.json").read_text())["pairs"] == 2
