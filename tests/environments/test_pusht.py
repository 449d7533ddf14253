"""gym-pusht end to end at its tiny size: recorded, learned from, planned with, success and coverage reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import record_episodes
import torch
import yaml
from datasets import load_dataset
from plan import PlanConfig, evaluate, format_table

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.environments.gym_tasks import GymTasks, make_env
from vjepa2_hf.training.settings import load_config
from vjepa2_hf.video_io import read_video


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of pygame and pymunk
CONFIG = Path(__file__).parents[2] / "examples" / "configs" / "pusht" / "plan.yaml"


@pytest.fixture(scope="module", autouse=True)
def pusht():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDL_VIDEODRIVER", "dummy")
        pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (the extra `pusht`)")
        yield


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pusht") / "episodes"
    settings = yaml.safe_load(CONFIG.read_text())
    arguments = ["--env", settings["env"], "--policy", "held", "--episodes", "2", "--length", "6", "--num_proc", "1"]
    arguments += ["--env_kwargs", json.dumps(settings["gym"]["env_kwargs"]), "--state", "block_pose"]
    record_episodes.main([*arguments, "--proprio_state", "pos_agent", "--output", str(folder)])
    return folder


def test_episodes_hold_what_the_environment_tells(episodes):
    rows = list(read_episodes(episodes, frame_skip=2))
    assert len(rows) == 2
    assert rows[0]["frames"].shape == (4, 96, 96, 3) and rows[0]["actions"].shape == (3, 4)
    assert rows[0]["states"].shape == (4, 3) and rows[0]["proprio_states"].shape == (4, 2)
    assert rows[0]["fps"] == 5.0


@pytest.mark.parametrize(
    ("env_id", "policy"),
    [
        ("gym_pusht:gym_pusht/PushT-v0", "ScriptedPusher"),
        ("vjepa2_hf.environments.pusht_policy:vjepa2_hf/RelativePushT-v0", "RelativePusher"),
    ],
)
def test_the_scripted_pusher_moves_and_turns_the_t_and_rows_repeat_it(tmp_path, env_id, policy):
    settings = yaml.safe_load(CONFIG.read_text())
    arguments = ["--env", env_id, "--episodes", "3", "--length", "40", "--num_proc", "1"]
    arguments += ["--policy", f"vjepa2_hf.environments.pusht_policy:{policy}", "--ignore_termination"]
    arguments += ["--env_kwargs", json.dumps(settings["gym"]["env_kwargs"]), "--state", "pos_agent", "block_pose"]
    record_episodes.main([*arguments, "--output", str(tmp_path / "out")])
    moved = []
    for row in load_dataset("parquet", data_files=str(tmp_path / "out/*.parquet"), split="train", streaming=True):
        env = make_env(env_id, **json.loads(row["recording"])["env_kwargs"])
        image, info = env.reset(seed=row["env_seed"], options=json.loads(row["reset_options"]) or None)
        states = [np.append(info["pos_agent"], info["block_pose"])]
        for action in row["actions"]:
            image, *_, info = env.step(np.float32(action))
            states.append(np.append(info["pos_agent"], info["block_pose"]))
        np.testing.assert_array_equal(np.float32(states), np.float32(row["states"]))
        assert np.abs(image - np.float32(read_video(row["video"])[-1])).mean() < 3
        moved.append(np.ptp(states, axis=0)[2:])
    assert (np.mean(moved, axis=0) > [20, 20, 0.2]).all()  # x, y, angle


def test_the_goal_is_the_t_on_its_mark():
    config = load_config(PlanConfig, CONFIG)
    tasks = GymTasks(config.env, config.gym, range(2))
    episode = tasks.episodes[0]
    episode.reset(0, config.gym.goal_options)
    episode.step(np.float32([100, 400]))
    assert episode.info["coverage"] > 0.99 and episode.info["is_success"]
    np.testing.assert_allclose(tasks.goal_states[0], [256, 256, np.pi / 4], atol=1e-3)
    assert tasks.goal_images.shape == (2, 96, 96, 3) and (tasks.goal_images[0] == tasks.goal_images[1]).all()
    assert not (tasks.render()[0] == tasks.render()[1]).all()


def save_tiny_model(folder: Path, low: float, high: float) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 32}
    dynamics = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    actions = {"action_dim": 4, "actions_per_step": 2, "action_low": [low] * 4, "action_high": [high] * 4}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**sizes))
    VJepa2WorldModel.from_encoder(encoder, frame_skip=2, **actions, **dynamics).save_pretrained(folder)
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder)


def test_planning_reports_success_and_coverage(episodes, tmp_path):
    save_tiny_model(tmp_path / "model", 0.0, 512.0)
    overrides = [f"output_dir={tmp_path / 'plan'}", f"models={{CEM: {tmp_path / 'model'}}}", "episodes=2"]
    overrides += ["gym.max_steps=4", "videos=1", "solver={name: cem, horizon: 1, num_candidates: 4, num_elites: 2}"]
    rows = evaluate(load_config(PlanConfig, CONFIG, overrides))
    assert [row["name"] for row in rows] == ["uniform random", "data policy", "CEM"]
    for row in rows:
        assert 0 <= row["scores"]["coverage"]["last"] <= row["scores"]["coverage"]["max"] <= 1
        assert len(row["by_distance"]) and row["episodes"] == 2
    assert "| coverage, largest | coverage, last |" in format_table(rows)


def test_goals_of_held_out_episodes_have_three_levels_of_success(tmp_path):
    settings = yaml.safe_load((CONFIG.parent / "plan_offset_25.yaml").read_text())
    arguments = ["--env", settings["env"], "--policy", settings["gym"]["policy"], "--episodes", "4", "--length", "16"]
    arguments += ["--env_kwargs", json.dumps(settings["gym"]["env_kwargs"]), "--ignore_termination", "--num_proc", "1"]
    arguments += ["--state", *settings["gym"]["state"], "--seed", "3"]
    record_episodes.main([*arguments, "--output", str(tmp_path / "data")])
    save_tiny_model(tmp_path / "model", -1.0, 1.0)
    overrides = [f"output_dir={tmp_path / 'plan'}", f"models={{CEM: {tmp_path / 'model'}}}", "episodes=2"]
    overrides += [f"gym.data={tmp_path / 'data'}", "gym.validation_fraction=0.8", "gym.goal_offset=15"]
    overrides += ["gym.budget=4", "videos=1", "executed_actions=2", "planner={cost: {cost: latent}}"]
    overrides += ["solver={name: cem, horizon: 1, num_candidates: 4, num_elites: 2}"]
    rows = evaluate(load_config(PlanConfig, CONFIG.parent / "plan_offset_25.yaml", overrides))
    assert [row["name"] for row in rows] == [f"{name}, offset 15" for name in ("uniform random", "data policy", "CEM")]
    assert "moderate" in format_table(rows) and "whole state" in format_table(rows) and "strict" in format_table(rows)
