"""The table of public environments: what is run in each, and what is published of it."""

import json

import pytest
import study
from evaluate_world_model import EvaluationConfig
from plan import PlanConfig
from public_environments import ENVIRONMENTS, FIRST, ROWS, STUDY, check_installed, row_folder, run_row
from train_world_model import WorldModelTrainingConfig

from vjepa2_hf.training.pretraining import PretrainConfig
from vjepa2_hf.training.settings import load_config


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_rows_learn_from_one_folder_and_plan_in_another_on_the_same_tasks(name, commands, tmp_path):
    for row in ROWS:
        run_row(tmp_path, name, row, 1)
    of = {}
    for script, *arguments in commands:
        of.setdefault(script, []).append(arguments[1:] if arguments[0] == "--config" else arguments)
    assert set(of) == {"pretrain.py", "train_world_model.py", "evaluate_world_model.py", "plan.py"}
    ((config, *given),) = of["pretrain.py"]
    pretrained = load_config(PretrainConfig, config, given)
    random, other = (
        load_config(WorldModelTrainingConfig, config, given) for config, *given in of["train_world_model.py"]
    )
    assert random.distance_head and other.encoder == f"{pretrained.output_dir}/final" and random.encoder == "random"
    sizes = random.encoder_config
    assert {key: pretrained.encoder[key] for key in sizes if key in pretrained.encoder} == {
        key: value for key, value in sizes.items() if key in pretrained.encoder
    }
    plans = [load_config(PlanConfig, config, given) for config, *given in of["plan.py"]]
    assert [list(plan.models) for plan in plans] == [[row] for row in ROWS]
    assert [next(iter(plan.models.values())) for plan in plans] == [
        f"{model.output_dir}/final" for model in (random, random, other)
    ]
    assert len({plan.first_task for plan in plans}) == 1 and not any(plan.rows for plan in plans)
    assert all(plan.gym == plans[0].gym and plan.success_levels == plans[0].success_levels for plan in plans)
    assert [bool(plan.baselines) for plan in plans] == [row == FIRST for row in ROWS]
    assert plans[0].gym.data != random.data and plans[0].gym.validation_fraction == 1.0
    measured = [load_config(EvaluationConfig, None, given) for given in of["evaluate_world_model.py"]]
    assert [one.model for one in measured] == [f"{model.output_dir}/final" for model in (random, other)]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"stable_worldmodel, which is not installed.*\[demo,swm\]"):
        check_installed(ENVIRONMENTS["two_room"])


def test_success_curves_and_core_minutes_are_published_over_seeds(run_study, tmp_path):
    for seed in (0, 1):
        folder = row_folder(tmp_path / "runs", "two_room", FIRST, seed)
        (folder / "plan").mkdir(parents=True)
        levels = {name: {"success": 0.5 + 0.25 * seed} for name in ("moderate", "strict")}
        rows = [{"name": name, "episodes": 90 + seed, "levels": levels} for name in ("uniform random", "CEM")]
        study.write_json(folder / "plan" / "results.json", {"rows": rows})
        curve = {"rank_correlation": 0.2, "bins": [{"from": 0.0, "to": 8.0, "mean": 1.0 + seed}]}
        groups = {"state": {"latent": curve, "learned": curve | {"rank_correlation": 0.9}}}
        study.write_json(folder / "distances.json", {"distances": {"groups": groups}})
        study.write_json(folder / "core_times.json", {"world model": 60 + 120 * seed, "plan": 30})
    text = run_study(STUDY, "--collect")
    assert text.count("| 0.62 (0.00–1.00) | 0.50, 0.75 | 90, 91 |") == 2  # of both methods
    (row,) = (line for line in text.splitlines() if line.startswith("| CEM |"))
    assert row.endswith("| 90, 91 | 2.00 |")
    assert "within 8 pixels of 224, for 3 steps" in text and "budget 50 steps" in text
    assert "| latent distance (before) | 1.50 | 0.20 |" in text
    assert "| learned distance in frames (after) | 1.50 | 0.90 |" in text
    found = json.loads((tmp_path / "results.json").read_text())["environments"]["two_room"]
    assert found["methods"]["CEM"]["seeds"] == [0, 1] and found["methods"]["CEM"]["planning_core_minutes"] == 0.5
