"""examples/plan.py with world models of several cameras and robots: each sees its views, all rows have equal tasks."""

import json
from pathlib import Path

import plan
import pytest
import record_episodes
import torch
import train_cloning
from plan import PlanConfig, evaluate
from script_runs import run_script

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.environments import PUSHING


SOLVER = {"name": "cem", "horizon": 2, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}
BOUNDS = {"action_dim": 2, "action_low": [-1.0] * 2, "action_high": [1.0] * 2}


def save_model(folder: Path, **fields) -> str:
    """A world model with random weights, as the training script saves one."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    torch.manual_seed(0)
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
    VJepa2WorldModel.from_encoder(encoder, **{**BOUNDS, **dynamics, **fields}).save_pretrained(folder)
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    both = {"num_views": 2, "view_names": ["top", "agent"]}
    return {
        "both": save_model(folder / "both", **both),
        "agent": save_model(folder / "agent", view_names=["agent"]),
        "top": save_model(folder / "top"),
    }


def test_models_of_both_views_and_of_each_alone_plan_for_the_same_tasks(models, tmp_path):
    rows = {"both, top alone": {"model": "both", "views": ["top"]}}
    common = {"episodes": 2, "solver": SOLVER, "videos": 1, "baselines": ["uniform"], "executed_actions": 5}
    config = PlanConfig(str(tmp_path / "out"), models, rows=rows, views=["top", "agent"], **common)
    found = {row["name"]: row for row in evaluate(config)}
    assert list(found) == ["uniform random", "both", "agent", "top", "both, top alone"]
    by_episode = json.loads((tmp_path / "out/by_episode.json").read_text())
    assert len({tuple(one["distances"]) for one in by_episode.values()}) == 1
    plain = evaluate(PlanConfig(str(tmp_path / "plain"), {"top": models["top"]}, **common))
    assert plain[1]["success"] == found["top"]["success"]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text())["tasks"] for name in ("out", "plain")]
    assert manifests[0] == manifests[1]


def test_a_policy_on_both_views_is_trained_and_plans(models, tmp_path, monkeypatch):
    recorded = ["--env", PUSHING, "--policy", "uniform", "--episodes", "4", "--length", "6", "--num_proc", "1"]
    record_episodes.main([*recorded, "--views", "top", "agent", "--output", str(tmp_path / "episodes")])
    given = [f"data={tmp_path / 'episodes'}", f"world_model={models['both']}", f"output_dir={tmp_path / 'cloning'}"]
    steps = ["max_steps=2", "batch_size=4", "num_threads=1", "validation_fraction=0.4", "policy={hidden_size: 8}"]
    run_script(monkeypatch, train_cloning, [*given, *steps])
    policy = str(tmp_path / "cloning/final")
    common = {"episodes": 2, "solver": SOLVER, "videos": 0, "baselines": [], "views": ["agent", "top"]}
    common |= {"policies": {"cloned": policy}, "proposals": {"both": policy}}
    rows = evaluate(PlanConfig(str(tmp_path / "out"), {"both": models["both"]}, **common))
    assert [row["name"] for row in rows] == ["cloned", "both"]


def test_a_robot_of_a_model_of_several_plans(tmp_path):
    sizes = {"num_embodiments": 2, "action_dim": 7, "embodiment_action_dims": [7, 2]}
    own = {"action_low": [[-1.0] * 7, [-1.0] * 2], "action_high": [[1.0] * 7, [1.0] * 2]}
    model = save_model(tmp_path / "model", **sizes, **own, embodiment_names=["arm", "pusher"])
    common = {"episodes": 2, "solver": SOLVER, "videos": 0, "baselines": [], "executed_actions": 5}
    config = PlanConfig(str(tmp_path / "out"), {"pusher": model}, planner={"embodiment": "pusher"}, **common)
    (row,) = evaluate(config)
    assert 0 <= row["success"] <= 1 and row["rollout_flops"] > 0
    wrong = PlanConfig(str(tmp_path / "wrong"), {"arm": model}, planner={"embodiment": "arm"}, **common)
    with pytest.raises(ValueError, match="has actions of 7 numbers, 1 environment actions each"):
        evaluate(wrong)


def test_views_are_of_the_packages_environments():
    gym = plan.GymTasksConfig(success="terminated", goal="info")
    with pytest.raises(ValueError, match="no views and no env_kwargs"):
        PlanConfig("x", {}, env="CartPole-v1", gym=gym, views=["top"])
