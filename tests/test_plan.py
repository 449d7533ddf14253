import json
import sys

import numpy as np
import plan
import pytest
from environments import PUSHING, Tasks
from plan import PlanConfig, PlannerPolicy, evaluate, format_table, wilson_interval
from tqdm import tqdm

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.video_io import VideoReader


SOLVER = {"name": "cem", "horizon": 2, "num_candidates": 4, "num_iterations": 1, "num_elites": 2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A world model with random weights, as the training script saves one."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 64}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    model = VJepa2WorldModel.from_encoder(encoder, action_dim=4, actions_per_step=2, frame_skip=2, **dynamics)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained(folder)
    return folder


def test_evaluation_writes_table_episodes_and_videos(model_dir, tmp_path):
    config = PlanConfig(str(tmp_path), {"CEM": str(model_dir)}, episodes=3, solver=SOLVER, videos=2)
    rows = evaluate(config)
    assert [row["name"] for row in rows] == [
        "uniform random",
        "data policy",
        "CEM",
        "CEM on the true state and dynamics (oracle)",
    ]
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert all(row["low"] <= row["success"] <= row["high"] for row in rows)
    assert rows[2]["plan_milliseconds"] > 0 and rows[0]["plan_milliseconds"] is None
    assert format_table(rows).count("\n") == 1 + len(rows)
    episodes = np.load(tmp_path / "episodes.npz")
    assert episodes["CEM"].shape == (3, 26, 4)
    videos = sorted((tmp_path / "videos" / "CEM").iterdir())
    assert len(videos) == 2
    with VideoReader(str(videos[0])) as reader:
        assert reader.frames([0]).shape == (1, 192, 384, 3)


def test_episodes_that_reached_their_goal_are_not_planned_any_more(model_dir):
    settings = {name: value for name, value in SOLVER.items() if name != "name"}
    planner = VJepa2Planner.from_pretrained(model_dir, solver="cem", **settings)
    tasks = Tasks(PUSHING, range(4))
    tasks.reached[:] = [True, False, True, False]
    policy = PlannerPolicy(planner, seed=0, progress=tqdm(disable=True))
    actions = policy(tasks)
    assert actions.shape == (4, 4, 2)  # 2 model steps of 2 environment actions
    assert policy.plans == 2
    assert not actions[[0, 2]].any() and actions[[1, 3]].any()


def test_wilson_interval_holds_the_rate_and_stays_within_0_and_1():
    assert wilson_interval(0, 100) == (0.0, pytest.approx(0.037, abs=1e-3))
    low, high = wilson_interval(50, 100)
    assert (low, high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


def test_unknown_baseline_names_the_nearest():
    with pytest.raises(ValueError, match="oracle"):
        PlanConfig("out", {}, baselines=["oracel"])


def test_missing_model_is_a_sentence(monkeypatch, capsys, tmp_path):
    arguments = ["plan.py", f"output_dir={tmp_path}", f"models={{CEM: {tmp_path / 'absent'}}}", "episodes=1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "baselines=[]"])
    with pytest.raises(SystemExit) as exit_:
        plan.main()
    assert exit_.value.code == 1
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
