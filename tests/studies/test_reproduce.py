"""The table of README: every row is trained and planned with, and a stopped study shows the rows that it has."""

import json

import ablate_planning
import ablate_world_model
import reproduce
from plan import PlanConfig
from train_actor import ActorConfig

from vjepa2_hf.environments.policy_training import PolicyTrainingConfig
from vjepa2_hf.training.settings import load_config


def test_every_row_is_trained_and_planned_with(commands, tmp_path):
    reproduce.run_seed(tmp_path, "two_rooms", 1)
    scripts = [command[0] for command in commands]
    models = ["train_world_model.py"] * 3
    assert scripts == ["pretrain.py", *models, "train_cloning.py", "train_cloning.py", "train_actor.py", "plan.py"]
    config = load_config(PlanConfig, commands[-1][2], commands[-1][3:])
    folder = tmp_path / "two_rooms" / "seed-1"
    policies = ("cloning", "cloning_even", "actor")
    assert set(config.policies.values()) == {str(folder / name / "final") for name in policies}
    assert set(config.models) == {*reproduce.ENCODERS.values(), reproduce.PROPOSED}
    assert config.proposals == {reproduce.PROPOSED: str(folder / "cloning" / "final")}
    world_model = f"world_model={folder / 'world_model_pretrained' / 'final'}"
    assert all(world_model in command for command in commands[4:7])
    assert f"start={folder / 'cloning' / 'final'}" in commands[6]
    for command in commands[4:7]:
        load_config(PolicyTrainingConfig if "cloning" in command[0] else ActorConfig, command[2], command[3:])


def test_a_stopped_study_publishes_the_rows_that_it_has(run_study, tmp_path):
    for seed, names in ((0, ["data policy"]), (1, ["data policy", "CEM, pretrained encoder"])):
        folder = tmp_path / "runs" / "pushing" / f"seed-{seed}"
        (folder / "plan").mkdir(parents=True)
        rows = [{"name": name, "success": 0.25 + 0.5 * seed, "episodes": 4} for name in names]
        (folder / "plan" / "results.json").write_text(json.dumps({"rows": rows}))
    (folder / "world_model_pretrained").mkdir()
    errors = [{"horizon": 1, "error": 1.0, "copy_error": 2.0}]
    (folder / "world_model_pretrained" / "rollout_error.json").write_text(json.dumps(errors))
    text = run_study(reproduce.STUDY, "--collect", "--seeds", "2")
    assert "| data policy | 0.50 (0.00–1.00): 0.25, 0.75 |" in text
    assert "| CEM, pretrained encoder | 0.75 (one seed): 0.75 |" in text
    found = json.loads((tmp_path / "results.json").read_text())["environments"]
    assert {row["name"]: row["by_seed"] for row in found["pushing"]["rows"]} == {
        "data policy": [0.25, 0.75],
        "CEM, pretrained encoder": [0.75],
    }
    assert found["pushing"]["rollout_error_over_copy"] == {"pretrained": {"1": 0.5}}


def test_the_reproduction_and_the_ablations_on_its_models_run_at_tiny_size(tiny_runs, run_study, tmp_path):
    size = ["--jobs", "1", "--seeds", "1"]
    text = run_study(reproduce.STUDY, *size)
    (row,) = (line for line in text.splitlines() if line.startswith("| CEM, pretrained encoder, from cloning's"))
    assert row.count("(one seed)") == 2 and "| actor: cloning, improved in imagination | " in text
    assert text.count(", pixels | ") == 2 and len(tiny_runs) == 18

    (tmp_path / "results.json").unlink()
    tiny_runs.clear()
    size += ["--episodes", "3"]
    rows = ["recipe", "random", "mlp_slow", "pixel_target"]
    text = run_study(ablate_world_model.STUDY, *size, "--steps", "2", "--rows", *rows)
    found = json.loads((tmp_path / "results.json").read_text())["environments"]["pushing"]
    assert [row["name"] for row in found["rows"]] == ["recipe", "random", "pixel_target", "mlp_slow"]
    assert found["differences"][0]["two_phase"] == -0.30 and "| uniform random |  |" in text
    assert tiny_runs == ["train_world_model", "plan"] * 3 + ["pretrain", "train_world_model", "plan"]

    (tmp_path / "results.json").unlink()
    tiny_runs.clear()
    rows = ["recipe", "solver_icem"]
    size = ["--jobs", "1", "--episodes", "3", "--environments", "pushing"]
    text = run_study(ablate_planning.STUDY, *size, "--rows", *rows)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in found["environments"]["pushing"]["rows"]] == rows and tiny_runs == ["plan"] * 2
    assert "| solver icem instead of cem | " in text and found["model"] == "world_model_pretrained/final"
