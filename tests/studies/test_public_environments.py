"""The table of public environments: what is run in each, and what is published of it."""

import json

import pytest
from evaluate_world_model import EvaluationConfig
from plan import PlanConfig
from public_environments import ENVIRONMENTS, STUDY, check_installed, run_seed
from train_world_model import WorldModelTrainingConfig

from vjepa2_hf.training.pretraining import PretrainConfig
from vjepa2_hf.training.settings import load_config


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_seed_learns_from_its_episodes_and_plans_on_others(name, commands, tmp_path):
    run_seed(tmp_path, name, 1)
    assert [command[0] for command in commands] == [
        "pretrain.py",
        "train_world_model.py",
        "evaluate_world_model.py",
        "plan.py",
    ]
    learned = load_config(PretrainConfig, commands[0][2], commands[0][3:])
    model = load_config(WorldModelTrainingConfig, commands[1][2], commands[1][3:])
    measured = load_config(EvaluationConfig, None, commands[2][1:])
    planned = load_config(PlanConfig, commands[3][2], commands[3][3:])
    assert model.distance_head and model.encoder == f"{learned.output_dir}/final"
    assert {one.seed for one in (learned, model, planned)} == {1} and learned.data == model.data
    assert set(planned.models.values()) == {measured.model} == {f"{model.output_dir}/final"}
    new = planned.gym.data != model.data and planned.gym.validation_fraction == 1.0
    assert new or planned.gym.validation_fraction in (None, model.validation_fraction)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"stable_worldmodel, which is not installed.*\[demo,swm\]"):
        check_installed(ENVIRONMENTS["two_room"])


def test_success_curves_and_core_minutes_are_published_over_seeds(run_study, tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "runs" / "two_room" / f"seed-{seed}"
        (folder / "plan").mkdir(parents=True)
        levels = {name: {"success": 0.5 + 0.25 * seed} for name in ("moderate", "strict")}
        rows = [{"name": "CEM, offset 25", "episodes": 90 + seed, "levels": levels}]
        (folder / "plan" / "results.json").write_text(json.dumps({"rows": rows}))
        curve = {"rank_correlation": 0.2, "bins": [{"from": 0.0, "to": 8.0, "mean": 1.0 + seed}]}
        groups = {"state": {"latent": curve, "learned": curve | {"rank_correlation": 0.9}}}
        (folder / "distances.json").write_text(json.dumps({"distances": {"groups": groups}}))
        times = {"pretrain": 120, "world model": 60 + 120 * seed, "plan": 30}
        (folder / "core_times.json").write_text(json.dumps(times))
    text = run_study(STUDY, "--collect")
    assert "| CEM, offset 25 | 0.62 (" in text and "| 0.50, 0.75 | 90, 91 |" in text
    assert "within 8 pixels of 224, for 3 steps" in text and "budget 50 steps" in text
    assert "| latent distance (before) | 1.50 | 0.20 |" in text
    assert "| learned distance in frames (after) | 1.50 | 0.90 |" in text
    assert "takes 4.0 core minutes per seed" in text
