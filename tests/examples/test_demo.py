import json
import sys

import demo
import pytest
import reproduce
from demo import Road
from plan import PlanConfig
from tqdm import tqdm
from train_actor import ActorConfig

from vjepa2_hf.environments.policy_training import PolicyTrainingConfig
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.visualization.tables import write_between_markers


def writes(path, seconds: float = 0.0) -> list[str]:
    return ["-c", f"import time, pathlib; time.sleep({seconds}); pathlib.Path({str(path)!r}).write_text('x')"]


def test_road_runs_steps_side_by_side_and_skips_what_is_done(tmp_path, capfd):
    road = Road(tmp_path, threads=2)
    steps = [(name, tmp_path / name, writes(tmp_path / name)) for name in ("a", "b")]
    road.run("two steps", *steps)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
    assert list(json.loads((tmp_path / "timings.json").read_text())) == ["two steps"]
    (tmp_path / "b").unlink()
    assert "done already" not in capfd.readouterr().out
    road.run("two steps", steps[0])
    assert "done already" in capfd.readouterr().out
    assert not (tmp_path / "b").exists()


def test_road_stops_at_a_step_that_fails_and_names_its_log(tmp_path):
    road = Road(tmp_path, threads=1, quiet=True)
    with pytest.raises(SystemExit, match="broken.*broken.log"):
        road.run("broken", ("broken", tmp_path / "never", ["-c", "raise SystemExit('no such thing')"]))
    assert "no such thing" in (tmp_path / "logs" / "broken.log").read_text()


def test_demo_runs_every_script_in_order(tmp_path, monkeypatch):
    """The commands themselves are tested with their scripts; here: which run, on what, and in which order."""
    commands = []

    def run(self, title, *steps):
        commands.extend(command for _, _, command in steps)

    monkeypatch.setattr(Road, "run", run)
    demo.demo(tmp_path, demo.EXAMPLES / "configs" / "demo", threads=2)
    names = [command[0].rsplit("/", 1)[-1] for command in commands]
    assert names == [
        "record_episodes.py",
        "pretrain.py",
        "train_world_model.py",
        "train_world_model.py",
        "plan.py",
        "report.py",
    ]
    assert f"encoder={tmp_path / 'pretrain' / 'final'}" in commands[2] and "encoder=random" in commands[3]
    assert sys.executable not in commands[0]  # the road adds the interpreter


def test_tables_are_written_between_the_markers_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- reproduce:begin -->\nold\n<!-- reproduce:end -->\nafter\n")
    row = {"name": "CEM", "success": 0.5, "low": 0.4, "high": 0.6, "by_seed": [0.4, 0.6], "episodes": 10}
    errors = {encoder: {"1": 0.5} for encoder in reproduce.ENCODERS}
    results = {"environments": {"pushing": {"rows": [row], "rollout_error_over_copy": errors}}}
    write_between_markers(reproduce.format_tables(results), readme, "reproduce")
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| CEM | 0.50 | 0.40–0.60 | 0.40, 0.60 |" in text


def test_reproduce_trains_every_row_of_its_tables_and_plans_with_it(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(Road, "run", lambda self, title, *steps: commands.extend(step[2] for step in steps))
    reproduce.run_chain(tmp_path, "two_rooms", 1, tqdm(disable=True))
    scripts = [command[0].rsplit("/", 1)[-1] for command in commands]
    models = ["train_world_model.py"] * 3
    assert scripts == ["pretrain.py", *models, "train_cloning.py", "train_cloning.py", "train_actor.py", "plan.py"]
    configs = [load_config(PlanConfig, commands[-1][2], commands[-1][3:])]
    folder = tmp_path / "two_rooms" / "seed-1"
    policies = ("cloning", "cloning_even", "actor")
    assert set(configs[0].policies.values()) == {str(folder / name / "final") for name in policies}
    assert set(configs[0].models) == {*reproduce.ENCODERS.values(), reproduce.PROPOSED}
    assert configs[0].proposals == {reproduce.PROPOSED: str(folder / "cloning" / "final")}
    world_model = f"world_model={folder / 'world_model_pretrained' / 'final'}"
    assert all(world_model in command for command in commands[4:7])
    assert f"start={folder / 'cloning' / 'final'}" in commands[6]
    for command in commands[4:7]:
        load_config(PolicyTrainingConfig if "cloning" in command[0] else ActorConfig, command[2], command[3:])


def test_a_stopped_reproduction_publishes_the_rows_that_it_has(tmp_path):
    for seed, names in ((0, ["data policy"]), (1, ["data policy", "CEM, pretrained encoder"])):
        folder = tmp_path / "pushing" / f"seed-{seed}"
        (folder / "plan").mkdir(parents=True)
        rows = [{"name": name, "success": 0.25 + 0.5 * seed, "episodes": 4} for name in names]
        (folder / "plan" / "results.json").write_text(json.dumps({"rows": rows}))
    (folder / "world_model_pretrained").mkdir()
    errors = [{"horizon": 1, "error": 1.0, "copy_error": 2.0}]
    (folder / "world_model_pretrained" / "rollout_error.json").write_text(json.dumps(errors))
    found = reproduce.collect(tmp_path, "pushing", seeds=2)
    assert {row["name"]: row["by_seed"] for row in found["rows"]} == {
        "data policy": [0.25, 0.75],
        "CEM, pretrained encoder": [0.75],
    }
    assert found["rollout_error_over_copy"] == {"pretrained": {"1": 0.5}}
    text = reproduce.format_tables({"environments": {"pushing": found}})
    assert "| CEM, pretrained encoder | 0.75 | one seed | 0.75 |" in text
