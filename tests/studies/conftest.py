"""Studies whose runs take place in the test's process, at tiny size."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import study


ENCODER = ["encoder.hidden_size=24", "encoder.num_hidden_layers=1", "encoder.num_attention_heads=2"]
TINY = {
    "pretrain": ["max_steps=2", "batch_size=2", "num_workers=0"],
    "train_world_model": ["max_steps=2", "batch_size=2", "validation_fraction=0.25", "distance.max_steps=2"],
    "train_distance_head": ["distance.max_steps=2"],
    "train_cloning": ["max_steps=2", "batch_size=2", "validation_fraction=0.25", "policy.hidden_size=8"],
    "train_actor": ["max_steps=2", "batch_size=2", "validation_fraction=0.25"],
    "train_decoder": ["max_steps=2", "batch_size=2", "validation_fraction=0.25"],
    "train_probe": ["max_steps=2", "batch_size=2", "selection_fraction=0.3"],
    "plan": ["episodes=3", "solver.num_candidates=4", "solver.num_elites=2", "solver.num_iterations=1"],
    "evaluate_world_model": ["windows_per_episode=1", "num_samples=19"],
    "record_episodes": ["--num_proc", "1", "--num_shards", "1", "--episodes", "8"],
    "record_moving_digits": ["--num_shards", "1", "--videos", "24"],
    "measure_future": ["--clips", "6"],
    "linear_probes": [],
    "make_arm_dataset": ["--episodes", "6", "--length", "12"],
    "plan_arm": ["pairs=2", "planner.num_candidates=4", "planner.num_elites=2", "planner.num_iterations=1"],
    "measure_dense_features": ["--steps", "2", "--frames", "8", "--videos", "1", "--size", "32", "--video_size", "16"],
    "look": [],
    "infer_actions": ["--steps", "2", "--num_shards", "1"],
    "read_states": ["--episodes", "3"],
}


def run_script(command: list[str]) -> None:
    """A script of the examples in this process, where everything is imported already."""
    name = Path(command[0]).stem
    sizes = ENCODER if name == "pretrain" and not any(part.startswith("init_from=") for part in command) else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, *TINY[name], *sizes])
        importlib.import_module(name).main()


@pytest.fixture
def tiny_runs(monkeypatch) -> list[str]:
    """Runs of studies take place here, at tiny size; the list holds the names of the scripts that ran."""
    ran = []

    def execute(command: list[str], log: Path) -> float:
        ran.append(Path(command[0]).stem)
        run_script(command)
        return 0.0

    monkeypatch.setattr(study, "execute", execute)
    return ran


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that a study would have run, script first, in order; each leaves an empty result."""
    found = []

    def run(self, name: str, result: Path, script: str, *arguments: str) -> Path:
        if not result.exists():
            found.append([script, *arguments])
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text("{}")
        return result

    monkeypatch.setattr(study.RunFolder, "run", run)
    return found


@pytest.fixture
def run_study(tmp_path) -> Callable[..., str]:
    """Runs a study's command on a page of its own, and returns the page; results are in `tmp_path`/results.json."""

    def run(command: study.Study, *arguments: str) -> str:
        page = tmp_path / "page.md"
        page.write_text(f"before\n<!-- {command.name}:begin -->\nold\n<!-- {command.name}:end -->\nafter\n")
        given = ["--output", tmp_path / "runs", "--results", tmp_path / "results.json", "--documents", page]
        try:
            command.main([*map(str, given), *arguments])
        finally:
            text = page.read_text()
            assert text.startswith("before\n") and text.endswith("after\n")
        assert "old" not in text
        return text

    return run


@pytest.fixture
def run_only(tmp_path) -> Callable[..., None]:
    """The runs of a study's command, without its table."""

    def run(command: study.Study, *arguments: str) -> None:
        command.run(command.parse(["--output", str(tmp_path / "runs"), "--jobs", "1", *arguments]))

    return run
