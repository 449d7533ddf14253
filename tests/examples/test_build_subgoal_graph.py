"""A subgoal graph from the script: the planner's folder loads with it, and plan.py uses it in a row."""

import json
from pathlib import Path
from types import SimpleNamespace

import build_subgoal_graph
import plan
import pytest
from builders import noise_image
from script_runs import run_script, run_train_world_model, write_noise_episodes

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner
from vjepa2_hf.training import episode_latents


SOLVER = {"name": "cem", "horizon": 2, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with `episodes` and the run of a `world_model` with a distance head."""
    folder = tmp_path_factory.mktemp("runs")
    write_noise_episodes(folder / "episodes")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32, "patch_size": 16}
    VJepa2Encoder(VJepa2EncoderConfig(**sizes)).save_pretrained(folder / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        head = ["world_model.distance_head=true", "distance={max_steps: 5, batch_size: 4}", "max_steps=2"]
        head += [f"encoder={folder / 'encoder'}", "encoder_config={}"]
        run_train_world_model(patch, folder / "episodes", folder / "world_model", *head)
    return folder


def build(monkeypatch, runs: Path, output_dir: Path, *more: str) -> Path:
    arguments = [f"model={runs / 'world_model' / 'final'}", f"data={runs / 'episodes'}", f"output_dir={output_dir}"]
    run_script(monkeypatch, build_subgoal_graph, [*arguments, f"cache_dir={runs / 'latents'}", *more])
    return output_dir


def test_the_planner_has_subgoals_of_training_episodes(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(episode_latents, "build_encode", lambda *_: pytest.fail("encoded again"))
    settings = ["num_nodes=10", "reach=1", "planner={horizon: 2, num_candidates: 8, cost: temporal}"]
    folder = build(monkeypatch, runs, tmp_path / "planner", *settings)
    planner = VJepa2Planner.from_pretrained(folder, device="cpu")
    assert len(planner.subgoals) == 10 and planner.cost.to_dict()["cost"] == "temporal"
    facts = json.loads((folder / "graph.json").read_text())
    assert facts["nodes"] == 10 and facts["reach"] == 1 and facts["connected"] >= 0.9
    chosen = planner(noise_image(0), noise_image(1))["subgoal"]
    assert chosen.keys() == {"node", "reason", "distance", "goal_distance"}


def test_a_row_of_an_evaluation_plans_with_the_graph(runs, tmp_path, monkeypatch):
    folder = build(monkeypatch, runs, tmp_path / "planner", "num_nodes=10")
    model = str(runs / "world_model" / "final")
    config = plan.PlanConfig(
        str(tmp_path / "plan"),
        {"flat": model},
        rows={"graph": {"model": "flat", "subgoals": str(folder)}},
        solver=SOLVER,
    )
    policies = {name: plan.model_policy(config.of_row(name), name, None) for name in ("flat", "graph")}
    assert policies["flat"].planner.subgoals is None and len(policies["graph"].planner.subgoals) == 10
    weights = plan.check_models(config)
    build(monkeypatch, runs, tmp_path / "other", "num_nodes=10", "seed=1")
    (folder / "subgoals").rename(folder / "old")
    (tmp_path / "other" / "subgoals").rename(folder / "subgoals")
    again = plan.check_models(config)
    assert again["flat"] == weights["flat"] and again["graph"] != weights["graph"]  # a kept row would not be taken


def test_a_model_without_a_distance_head_is_one_sentence(runs, tmp_path, monkeypatch, capsys):
    planner = VJepa2Planner.from_pretrained(runs / "world_model" / "final", device="cpu")
    planner.model.config.distance_head = False
    planner.save_pretrained(tmp_path / "headless")
    with pytest.raises(SystemExit) as exit_:
        build(monkeypatch, runs, tmp_path / "out", f"model={tmp_path / 'headless'}", "validation_fraction=0.4")
    assert exit_.value.code == 1 and "train_distance_head.py" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused_before_anything_is_written(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_subgoal_graph, "build_accelerator", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(SystemExit):
        build(monkeypatch, runs, tmp_path / "out")
    assert "built by one process, got 2" in capsys.readouterr().err and not (tmp_path / "out").exists()
