"""The commands and the snippet of docs/states.md run, at tiny size."""

import json
import shutil
from pathlib import Path

import infer_actions
import pytest
import record_episodes
from builders import ROOT
from script_runs import TINY_DYNAMICS, TINY_RECORDING, TINY_SOLVER, blocks, commands, run_script

from vjepa2_hf import VJepa2WorldModel


TINY = {
    "record_episodes": TINY_RECORDING,
    "train_world_model": [
        "max_steps=2",
        "batch_size=2",
        "validation_fraction=0.3",
        "horizons=[1, 2]",
        "num_threads=1",
        *(f"world_model.{setting}" for setting in TINY_DYNAMICS),
    ],
    "infer_actions": ["--steps", "2"],
    "train_distance_head": ["distance.max_steps=2", "num_threads=1"],
    "plan": ["episodes=2", "videos=0", "baselines=[]", *(f"solver.{setting}" for setting in TINY_SOLVER)],
}
TINY_STATE = ["state.max_steps=2", "state.episodes=2", "state.frames=3"]


def run(monkeypatch, command: list[str]) -> None:
    """A command of the page, smaller."""
    script = next(part for part in command if part.endswith(".py"))
    name, arguments = Path(script).stem, command[command.index(script) + 1 :]
    learned = any("world_model_learned" in part for part in arguments)
    arguments = [str(ROOT / part) if part.startswith("examples/configs/") else part for part in arguments]
    arguments = [part.replace("num_candidates: 32", ", ".join(TINY_SOLVER).replace("=", ": ")) for part in arguments]
    arguments += TINY[name] + (TINY_STATE if learned else [])
    if name in ("record_episodes", "infer_actions"):
        {"record_episodes": record_episodes, "infer_actions": infer_actions}[name].main(arguments)
    else:
        run_script(monkeypatch, __import__(name), arguments)


@pytest.fixture
def work(demo_runs):
    """A folder with what the page names."""
    for name in ("my_episodes", "my_videos"):
        shutil.copytree("runs/demo/episodes", name)
    return demo_runs


def test_the_commands_train_states_and_plan_with_them(work, monkeypatch):
    found = [command for command in commands("states.md") if not any("examples/studies/" in part for part in command)]
    assert [Path(next(part for part in command if part.endswith(".py"))).stem for command in found] == [
        "train_world_model", "record_episodes", "train_world_model", "plan", "train_world_model", "infer_actions",
        "train_world_model", "train_world_model", "train_world_model", "plan", "plan", "record_episodes",
        "train_world_model", "train_distance_head", "plan",
    ]  # fmt: skip
    for command in found:
        run(monkeypatch, command)
    config = VJepa2WorldModel.from_pretrained("runs/learned/mine/final").config
    assert (config.state_type, config.state_dim, config.state_whitened) == ("learned", 64, True)
    rows = [row["name"] for row in json.loads(Path("runs/learned/plan_true/results.json").read_text())["rows"]]
    assert "true dynamics" in rows
    card = Path("runs/learned/mine/final/README.md").read_text()
    assert "a network of the pixels, 64 wide" in card
    (snippet,) = blocks("states.md", "python")
    names: dict = {}
    exec(compile(snippet, "a snippet", "exec"), names)
    assert names["cost"].shape == (1, 8) and names["states"].shape == (1, 2, 1, 64)
