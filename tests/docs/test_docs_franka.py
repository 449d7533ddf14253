"""The commands and the snippet of docs/franka.md run, one after the other, at tiny size; the pieces of that road."""

import json
from pathlib import Path

import numpy as np
import plan_arm
import pytest
import torch
import yaml
from builders import GOLDEN_SETTINGS, ROOT, golden_content, write_checkpoint
from script_runs import blocks, commands, run_command

from vjepa2_hf import VJepa2Planner, VJepa2WorldModelConfig, convert_checkpoints


CONFIGS = ROOT / "examples" / "configs"
PLANNER = ["planner.num_candidates=12", "planner.num_iterations=2", "planner.num_elites=3"]
DYNAMICS = ["hidden_size=24", "num_hidden_layers=1", "num_attention_heads=2"]
TINY = {
    "make_arm_dataset.py": ["--length", "9", "--size", "32"],
    "pretrain.py": [
        "max_steps=2", "batch_size=2", "crop_size=32", "num_workers=0", "encoder.hidden_size=24",
        "encoder.num_hidden_layers=1", "predictor.hidden_size=24", "predictor.num_hidden_layers=1",
    ],
    "train_world_model.py": [
        "max_steps=2", "batch_size=4", "validation_fraction=0.3",
        *(f"world_model.predictor_{setting}" for setting in DYNAMICS),
    ],
    "plan_arm.py": [*PLANNER, "smallest_distance=0.001"],
}  # fmt: skip


def shrunk(command: list[str]) -> list[str]:
    """A command of the page with fewer episodes, steps, layers and candidates."""
    command = [str(ROOT / part) if part.startswith("examples/configs") else part for part in command]
    if "--episodes" in command:
        command[command.index("--episodes") + 1] = "4"
    script = next((Path(part).name for part in command if part.endswith(".py")), None)
    return command + TINY.get(script, [])


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which the page's commands have run."""
    folder = tmp_path_factory.mktemp("franka")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_checkpoint(folder, golden_content("action-conditioned"), "vjepa2-ac-vitg.pt")
        ran = []
        for command in commands("franka.md"):
            if any("droid" in part.lower() for part in command):
                continue  # data that is not here; tests/data/test_resampling.py runs the script
            program = command[2] if command[1] == "-m" else command[1]
            ran.append(Path(program).name)
            if program == "vjepa2_hf.convert_checkpoints":  # sizes that tensors cannot tell
                told = [f"{name}={value}" for name, value in GOLDEN_SETTINGS["action-conditioned"].items()]
                convert_checkpoints.main([*command[3:], "--set", *told])
            else:
                run_command(shrunk(command))
    make, plan = "make_arm_dataset.py", "plan_arm.py"
    expected = [make, make, "pretrain.py", "train_world_model.py", plan, "vjepa2_hf.convert_checkpoints", plan]
    assert ran == expected
    return folder


def test_the_commands_of_the_page_lead_to_plans_within_the_published_limits(walked):
    for path in ("runs/franka/plan/results.json", "runs/ac/plan/results.json"):
        results = json.loads((walked / path).read_text())
        actions = np.array([one["action"] for one in results["each"]])
        assert results["pairs"] == len(actions) == 4 and np.abs(actions[:, :3]).max() <= 0.05 + 1e-6
        assert (actions[:, 3:6] == 0).all()
        assert ((np.abs(actions[:, 6]) >= 0.25) | (actions[:, 6] == 0)).all()
        assert actions[:, :3].any(axis=1).all()


def test_the_snippet_of_the_page_plans(walked, monkeypatch):
    monkeypatch.chdir(walked)
    (snippet,) = blocks("franka.md", "python")
    snippet = snippet.replace("examples/configs", str(CONFIGS))
    names = {}
    exec(compile(snippet.replace("**settings", "**{**settings, 'num_candidates': 12}"), "a snippet", "exec"), names)
    assert names["plan"]["action"].shape == (7,) and names["plan"]["actions"][1, 6] == 1
    torch.testing.assert_close(names["reached"][:3], torch.from_numpy(names["pose"] + names["plan"]["action"])[:3])


def test_the_table_is_that_of_the_last_measurement():
    results = json.loads((ROOT / "results" / "franka.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "franka.md").read_text(encoding="utf-8")
    written = page.split("<!-- franka:begin -->")[1].split("<!-- franka:end -->")[0]
    assert written.strip() == plan_arm.tabulate(results).strip()


def test_the_config_is_the_published_planner():
    settings = yaml.safe_load((CONFIGS / "franka" / "plan.yaml").read_text(encoding="utf-8"))["planner"]
    published = VJepa2WorldModelConfig.published
    bounds = {name: published[name] for name in ("action_low", "action_high")}
    assert settings == {**published["planner"], **bounds}


def test_the_trained_model_goes_on_by_pose_arithmetic(walked):
    config = VJepa2Planner.from_pretrained(walked / "runs/franka/world_model/final", **bounds()).model.config
    assert (config.proprio_transition, config.proprio_dim, config.action_dim) == ("pose_delta", 7, 7)
    assert config.fps == 4 and config.action_mean is None and config.proprio_mean is None


def bounds() -> dict:
    return {name: VJepa2WorldModelConfig.published[name] for name in ("action_low", "action_high")}


class TestMeasures:
    def test_angles_and_distances_of_known_moves(self):
        ways = np.array([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]])
        moves = np.array([[[0.05, 0.0, 0.0], [0.05, 0.05, 0.0]]])
        found = plan_arm.measure(moves, ways)
        assert plan_arm.angles(moves[0], ways) == pytest.approx([0, 45])
        assert found["median_degrees"] == pytest.approx(22.5)
        assert found["remaining"] == pytest.approx((0.05 + np.hypot(0.05, 0.15)) / 0.3)
        assert found["right_sign"] == [0.5, 1.0, 1.0]

    def test_a_move_of_nothing_points_nowhere(self):
        assert plan_arm.angles(np.zeros(3), np.array([0.1, 0, 0])) == pytest.approx(90)

    def test_random_moves_are_as_likely_away_as_towards(self):
        rng = np.random.default_rng(0)
        moves = rng.normal(size=(20_000, 1, 3))
        found = plan_arm.measure(moves, np.array([[0.0, 0.1, 0.0]]))
        assert found["median_degrees"] == pytest.approx(90, abs=2)
        assert found["directed"] == pytest.approx((1 - np.cos(np.pi / 4)) / 2, abs=0.01)


class TestRefusals:
    def test_episodes_without_an_arms_states(self):
        data = str(ROOT / "tests" / "fixtures" / "lerobot_v3")
        with pytest.raises(ValueError, match="states of .* are 2 numbers, but 7 are expected"):
            plan_arm.sample_pairs(plan_arm.PlanArmConfig("out", "model", data, camera="front"))

    def test_goals_that_are_nowhere_far_enough(self, walked):
        config = plan_arm.PlanArmConfig("out", "model", str(walked / "runs/franka/held_out"), smallest_distance=9)
        with pytest.raises(ValueError, match="No episode of .* has states 9 m apart within steps_ahead=4 steps"):
            plan_arm.sample_pairs(config)

    def test_a_number_of_pairs_that_is_none(self):
        with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
            plan_arm.PlanArmConfig("out", "model", "data", pairs=0)
