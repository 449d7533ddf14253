"""Far goals in four rooms: every method plans for the same tasks, and the table is written."""

import json

import four_rooms
from build_subgoal_graph import SubgoalGraphConfig
from plan import PlanConfig

from vjepa2_hf.training.settings import load_config
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


def test_all_methods_plan_with_the_models_of_one_seed(commands, tmp_path):
    four_rooms.run_seed(tmp_path, 1, episodes=7)
    scripts = [command[0] for command in commands]
    models = ["train_world_model.py"] * 2
    assert scripts == ["pretrain.py", *models, "build_subgoal_graph.py", "plan.py"]
    first, second = (load_config(WorldModelTrainingConfig, command[2], command[3:]) for command in commands[1:3])
    model = str(tmp_path / "seed-1" / "world_model" / "final")
    assert first.world_model["distance_head"] and first.state_of is None
    assert second.state_of == model and second.encoder == first.encoder and second.frame_skip > first.frame_skip
    graph = load_config(SubgoalGraphConfig, None, commands[3][1:])
    assert graph.model == model and graph.planner["horizon"] == four_rooms.HORIZON
    config = load_config(PlanConfig, commands[4][2], commands[4][3:])
    assert config.models == {four_rooms.BASE: model} and config.episodes == 7
    assert config.solver["horizon"] == four_rooms.HORIZON
    subgoals = {config.of_row(name).subgoals for name in config.rows}
    macro = str(tmp_path / "seed-1" / "world_model_macro" / "final")
    assert subgoals == {None, macro, str(tmp_path / "seed-1" / "graph" / "subgoals")}
    assert config.gym.data == str(tmp_path / "test_episodes") and first.data == str(tmp_path / "episodes")


def test_the_table_has_a_column_for_each_offset(run_study, tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"seed-{seed}" / "plan"
        folder.mkdir(parents=True)
        rows = [
            {"name": f"{name}, offset {offset}", "success": success}
            for name, success in ((four_rooms.BASE, 0.25 + 0.5 * seed), ("two time scales", 1.0))
            for offset in (25, 75)
        ]
        (folder / "results.json").write_text(json.dumps({"rows": rows, "manifest": f"digest {seed}"}))
        (folder / "manifest.json").write_text(f"tasks {seed}")
    text = run_study(four_rooms.STUDY, "--collect", "--seeds", "2")
    assert "| method | offset 25 | offset 75 | offset 75 by seed |" in text
    assert "| flat, learned distance | 0.50 (0.00–1.00) | 0.50 (0.00–1.00) | 0.25, 0.75 |" in text
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["rows"]["two time scales"]["75"]["mean"] == 1.0 and found["manifests"] == ["digest 0", "digest 1"]
    assert (tmp_path / "manifests" / "results-seed-1.json").read_text() == "tasks 1"
