"""The table of README: every row is trained and planned with, and a stopped study shows the rows that it has."""

import json

import ablate_planning
import ablate_world_model
import pytest
import reproduce
from plan import PlanConfig
from train_actor import ActorConfig

from vjepa2_hf.environments.policy_training import PolicyTrainingConfig
from vjepa2_hf.training.settings import load_config


def test_every_row_is_trained_and_planned_with(commands, tmp_path):
    reproduce.run_seed(tmp_path, "two_rooms", 1, complete=True)
    scripts = [command[0] for command in commands]
    models = ["train_world_model.py", "train_distance_head.py"] * 2 + ["train_world_model.py"]
    assert scripts == ["pretrain.py", *models, "train_cloning.py", "train_cloning.py", "train_actor.py", "plan.py"]
    config = load_config(PlanConfig, commands[-1][2], commands[-1][3:])
    folder = tmp_path / "two_rooms" / "seed-1"
    policies = ("cloning", "cloning_even", "actor")
    assert set(config.policies.values()) == {str(folder / name / "final") for name in policies}
    assert set(config.models) == set(reproduce.ENCODERS.values()) and config.success_levels == {}
    assert config.proposals == {reproduce.PROPOSED: str(folder / "cloning" / "final")}
    learned = {name: row for name, row in config.rows.items() if name != reproduce.PROPOSED}
    assert {row["model"] for row in learned.values()} == {reproduce.ENCODERS[name] for name in reproduce.PAIR}
    assert all(row["planner"] == {"cost": "closest"} for row in learned.values())
    world_model = f"world_model={folder / 'distance_pretrained' / 'final'}"
    assert all(world_model in command for command in commands[6:9])
    assert f"start={folder / 'cloning' / 'final'}" in commands[8]
    for command in commands[6:9]:
        load_config(PolicyTrainingConfig if "cloning" in command[0] else ActorConfig, command[2], command[3:])


def test_further_seeds_compare_the_encoders_alone(commands, tmp_path):
    reproduce.run_seed(tmp_path, "pushing", 7, complete=False)
    config = load_config(PlanConfig, commands[-1][2], commands[-1][3:])
    assert set(config.models) == {reproduce.ENCODERS[name] for name in reproduce.PAIR}
    assert set(config.rows) == set(reproduce.LEARNED.values())
    assert not (config.policies or config.baselines) and config.first_task == 707_000
    assert list(config.success_levels) == ["block", "block and pusher"]


def test_a_stopped_study_publishes_the_rows_that_it_has(run_study, tmp_path):
    names = ["data policy", *(reproduce.ENCODERS[name] for name in reproduce.PAIR)]
    for seed, found in ((0, names), (1, names), (4, names[1:])):
        folder = tmp_path / "runs" / "pushing" / f"seed-{seed}"
        (folder / "plan").mkdir(parents=True)
        rows = []
        for number, name in enumerate(found):
            levels = {"block": {"success": 0.9 - 0.1 * number}, "block and pusher": {"success": 0.5 - 0.01 * seed}}
            rows.append({"name": name, "success": 0.9, "levels": levels})
        (folder / "plan" / "results.json").write_text(json.dumps({"rows": rows}))
    (folder / "world_model_pretrained").mkdir()
    errors = [{"horizon": 1, "error": 1.0, "copy_error": 2.0}]
    (folder / "world_model_pretrained" / "rollout_error.json").write_text(json.dumps(errors))
    text = run_study(reproduce.STUDY, "--collect", "--seeds", "2", "--paired_seeds", "5")
    assert "over 2 to 3 training seeds × 100 tasks" in text
    assert "| data policy | 0.90 (0.90–0.90) | 0.49 (0.43–0.56) |" in text
    found = json.loads((tmp_path / "results.json").read_text())
    column = found["columns"]["Pushing, block and pusher"]["CEM, random encoder"]
    assert (column["seeds"], column["success"]["by_seed"]) == ([0, 1, 4], [0.5, 0.49, 0.46])
    (difference,) = found["differences"]["Pushing"]
    assert difference["mean"] == pytest.approx(0.1) and len(difference["by_seed"]) == 3
    assert "| CEM, pretrained encoder − CEM, random encoder | +0.10 (–), 3 | " in text
    assert found["rollout_error_over_copy"]["pushing"] == {"pretrained": {"1": 0.5}}


def test_seeds_are_added_to_those_of_the_earlier_results_file(run_study, commands, tmp_path):
    def write(seed: int, success: float) -> None:
        levels = {"block": {"success": success}, "block and pusher": {"success": success - 0.1}}
        rows = [{"name": name, "levels": levels} for name in (reproduce.ENCODERS[one] for one in reproduce.PAIR)]
        (tmp_path / "runs" / "pushing" / f"seed-{seed}" / "plan").mkdir(parents=True)
        result = tmp_path / "runs" / "pushing" / f"seed-{seed}" / "plan" / "results.json"
        result.write_text(json.dumps({"rows": rows}))

    write(0, 0.9)
    run_study(reproduce.STUDY, "--collect", "--seeds", "1", "--paired_seeds", "1")
    (tmp_path / "runs" / "pushing" / "seed-0").rename(tmp_path / "gone")
    write(2, 0.7)
    run_study(reproduce.STUDY, "--collect", "--seeds", "1", "--paired_seeds", "3", "--first_seed", "2")
    column = json.loads((tmp_path / "results.json").read_text())["columns"]["Pushing"]["CEM, random encoder"]
    assert (column["seeds"], column["success"]["by_seed"]) == ([0, 2], [0.9, 0.7])

    arguments = ["--output", str(tmp_path / "new"), "--seeds", "1", "--paired_seeds", "4", "--first_seed", "2"]
    reproduce.run(reproduce.STUDY.parse([*arguments, "--jobs", "1"]))
    trained = [command for command in commands if command[0] == "pretrain.py"]
    assert [next(part for part in one if part.startswith("seed=")) for one in trained] == ["seed=2", "seed=3"]


@pytest.mark.slow
def test_the_reproduction_and_the_ablations_on_its_models_run_at_tiny_size(tiny_runs, run_study, tmp_path):
    size = ["--jobs", "1", "--seeds", "1"]
    text = run_study(reproduce.STUDY, *size, "--paired_seeds", "2")
    (row,) = (line for line in text.splitlines() if line.startswith("| CEM, pretrained encoder, from cloning's"))
    assert row.count(" | ") == 3 and "| actor: cloning, improved in imagination | " in text
    assert "), 2 | " in text and len(tiny_runs) == 28

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
    size = ["--jobs", "1", "--seeds", "1", "--episodes", "3", "--environments", "pushing"]
    text = run_study(ablate_planning.STUDY, *size, "--rows", *rows)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in found["environments"]["pushing"]["rows"]] == rows and tiny_runs == ["plan"] * 2
    assert "| solver icem instead of cem | " in text and found["model"] == "world_model_pretrained/final"
