"""The table of public environments: what is run in each, and what is published of it."""

import json

import pytest
import study
from evaluate_world_model import EvaluationConfig
from plan import PlanConfig
from public_environments import ENVIRONMENTS, FIRST, ROWS, STUDY, check_installed, row_folder, run_row

from vjepa2_hf.training.pretraining import PretrainConfig
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


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
        study.write_json(folder / "plan" / "manifest.json", {"tasks": [seed]})
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
    tasks = [json.loads((tmp_path / f"manifests/results-seed-{seed}.json").read_text())["tasks"] for seed in (0, 1)]
    assert tasks == [[0], [1]]
    assert found["methods"]["CEM"]["seeds"] == [0, 1] and found["methods"]["CEM"]["planning_core_minutes"] == 0.5


def test_rows_are_compared_on_the_seeds_that_they_share(run_study, tmp_path):
    for seed in (0, 1):
        for row, success in zip(ROWS, (0.9, 0.2 + 0.1 * seed, 0.95)):
            folder = row_folder(tmp_path / "runs", "two_room", row, seed)
            levels = {name: {"success": success} for name in ("moderate", "strict")}
            rows = [{"name": f"{row}, offset 25", "episodes": 90, "levels": levels}]
            study.write_json(folder / "plan" / "results.json", {"rows": rows})
            study.write_json(folder / "core_times.json", {"world model": 60, "plan": 30})
    text = run_study(STUDY, "--collect")
    lines = [line for line in text.splitlines() if " − " in line]
    assert lines[0].startswith("| learned distance, random encoder, offset 25 − latent distance, random encoder")
    assert "| +0.65 (" in lines[0] and lines[1].endswith("| +0.05 (–) | +0.05 (–) |")
