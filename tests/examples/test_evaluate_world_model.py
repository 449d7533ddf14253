"""The evaluation of a world model, against numbers worked out by hand in a world of two-number frames."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import evaluate_world_model
import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, raw_pixels
from datasets import Features, List, Value, Video
from evaluate_world_model import Evaluation, EvaluationConfig
from PIL import Image

from vjepa2_hf import (
    VJepa2PixelDecoder,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.settings import load_config


class TwoNumbers:
    """A world model of frames that are their latents: an action moves them by `gain` times itself, plus noise."""

    tokens_per_frame, latent_size, device = 1, 2, torch.device("cpu")

    def __init__(self, gain: float, noise: float = 0.0, **config):
        self.gain, self.noise = gain, noise
        fields = {"frame_skip": 1, "freeze_encoder": True, "context_frames": 1, "proprio_dim": 0, "reward_mean": None}
        optional = {"reward_head": False, "distance_head": False, "stochastic_dim": int(noise > 0)}
        self.config = SimpleNamespace(**{**fields, **optional, **config})

    def encode_targets(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(2).unsqueeze(2)

    def rollout(self, latents, actions, context_actions=None, proprio_states=None, generator=None):
        assert latents.shape[1] == self.config.context_frames
        if context_actions is not None:  # they belong to the frames that are seen
            torch.testing.assert_close(latents[:, 1:, 0] - latents[:, :-1, 0], context_actions)
        present = latents[:, -1, 0].view(len(latents), *[1] * (actions.ndim - 2), 2)
        future = present + self.gain * actions.cumsum(-2)
        if generator is not None:
            future = future + self.noise * torch.randn(future.shape, generator=generator)
        return future.unsqueeze(-2)

    def predict_rewards(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        assert latents.shape[1] == actions.shape[1] + 1
        return self.gain * actions.sum(-1)


def make_episode(start: np.ndarray, actions: np.ndarray, name: str, with_states: bool = True) -> dict:
    """States are the frames' two numbers in tenths."""
    places = start + np.concatenate([np.zeros((1, 2)), actions.cumsum(0)])
    states = (places / 10).astype(np.float32)
    return {
        "frames": places.astype(np.uint8).reshape(-1, 1, 1, 2),
        "actions": actions.astype(np.float32),
        "proprio_states": None,
        "states": states if with_states else None,
        "rewards": actions.sum(1).astype(np.float32),
        "episode_id": name,
    }


@pytest.fixture
def world(monkeypatch):
    """Training episodes that wander, and held-out ones that move by (2, 0) a step."""
    rng = np.random.default_rng(0)
    wander = [make_episode(np.array([100, 100]), rng.integers(-9, 10, (8, 2)), f"t{n}") for n in range(6)]
    moving = [make_episode(np.array([10 * n, 50]), np.tile([2, 0], (9, 1)), f"h{n}") for n in (1, 2, 3)]
    episodes = {"train": wander, "held_out": moving}

    def read_episodes(data, frame_skip, max_episodes, camera, wanted=None):
        yield from (one for one in episodes[data] if wanted is None or wanted(one["episode_id"]))

    def episode_ids(data, camera):
        return (one["episode_id"] for one in episodes[data])

    monkeypatch.setattr(evaluate_world_model, "read_episodes", read_episodes)
    monkeypatch.setattr(evaluate_world_model, "episode_ids", episode_ids)
    return episodes


def settings(**changes) -> EvaluationConfig:
    fields = {"data": "held_out", "probe_data": "train", "validation_fraction": 1.0, "horizons": [1, 4]}
    return EvaluationConfig(model="none", output="none", **{**fields, **changes})


def evaluate_model(config: EvaluationConfig, model: TwoNumbers, processor) -> dict:
    return Evaluation(config, model, processor).run()


@pytest.mark.parametrize("context_frames", [1, 2])
def test_perfect_model_scores_zero(world, context_frames):
    result = evaluate_model(settings(), TwoNumbers(gain=1.0, context_frames=context_frames), raw_pixels)
    assert (result["episodes"], result["windows"]) == (3, 15)  # 10 frames, 2 known and 4 to come
    for row in result["horizons"]:
        assert row["error"] == 0 and row["cosine"] == pytest.approx(1, abs=1e-6)
        assert row["state_error"] == row["state_probe_error"] < 0.01


def test_wrong_model_and_guesses_are_off_by_what_they_miss(world):
    """Half a step of (2, 0) is missed each step, copying misses all of it, the straight line nothing."""
    groups = {"across": [0], "down": [1]}
    result = evaluate_model(settings(state_groups=groups), TwoNumbers(gain=0.5), raw_pixels)
    for row, horizon in zip(result["horizons"], (1, 4), strict=True):
        assert (row["horizon"], row["error"]) == (horizon, pytest.approx(horizon**2 / 2))
        assert (row["copy_error"], row["extrapolation_error"]) == (pytest.approx(2 * horizon**2), 0)
        assert row["across_error"] == pytest.approx(0.1 * horizon, abs=0.01)
        assert row["across_copy_error"] == pytest.approx(0.2 * horizon, abs=0.01)
        assert row["across_extrapolation_error"] < 0.01 and row["down_error"] < 0.01


def test_reward_errors_are_those_of_each_step(world):
    model = TwoNumbers(gain=0.5, reward_head=True, reward_mean=-1.0)
    columns = [f"reward_{name}error" for name in ("", "head_", "mean_", "copy_")]
    rows = evaluate_model(settings(), model, raw_pixels)["horizons"]
    assert [[row[name] for name in columns] for row in rows] == [[1.0, 1.0, 3.0, 0.0]] * 2  # every step gives 2


def test_guess_of_the_last_reward_is_the_one_before_the_first_imagined_step(world):
    for episode in world["held_out"]:
        episode["rewards"] = 2 * np.arange(9, dtype=np.float32)  # grow by 2 a step
    rows = evaluate_model(settings(), TwoNumbers(gain=1.0, reward_head=True), raw_pixels)["horizons"]
    assert [row["reward_copy_error"] for row in rows] == [2, 8]


def test_samples_around_the_truth_cover_it_and_samples_beside_it_do_not(world):
    right = evaluate_model(settings(), TwoNumbers(gain=1.0, noise=1.0), raw_pixels)["horizons"]
    assert all(row["coverage_50"] == row["coverage_90"] == row["state_coverage_90"] == 1 for row in right)
    wrong = evaluate_model(settings(), TwoNumbers(gain=0.0, noise=0.01), raw_pixels)["horizons"]
    assert all(row["coverage_90"] == 0.5 for row in wrong)  # the second number does not move
    assert all(row["state_coverage_90"] == 0.5 < row["state_calibrated_coverage_90"] for row in wrong)
    assert "coverage_90" not in evaluate_model(settings(), TwoNumbers(1.0), raw_pixels)["horizons"][0]


def test_model_without_chance_has_intervals_of_its_one_step_errors(world):
    """It misses half of every action; actions of training episodes are -9 to 9, each as likely."""
    groups = {"across": [0]}
    config = settings(residual_intervals=True, state_groups=groups, levels=[0.5])
    rows = evaluate_model(config, TwoNumbers(gain=0.5), raw_pixels)["horizons"]
    for row, horizon in zip(rows, (1, 4), strict=True):
        # so the middle half of what it misses is about -2.4 to 2.4
        assert row["residual_width_50"] == pytest.approx(4.75 * horizon**0.5, rel=0.35)
        assert row["across_residual_width_50"] == pytest.approx(0.475 * horizon**0.5, rel=0.35)
        # moving by 2 a step it is off by 1 a step across and by nothing down, which the intervals hold
        assert row["residual_coverage_50"] == row["across_residual_coverage_50"] == 1
        # without them it has but one future, right down and wrong across
        assert (row["coverage_50"], row["width_50"], row["across_coverage_50"]) == (0.5, 0, 0)
        assert row["score_50"] == pytest.approx(horizon / 2 * 4, abs=1e-4)
    assert "coverage_50" not in evaluate_model(settings(levels=[0.5]), TwoNumbers(0.5), raw_pixels)["horizons"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"horizons": [9]},
            r"no held-out episode of 'held_out' has the 11 frames of a window, 1 apart \(of 3 the longest has 10\)",
        ),
        ({"probe_data": None}, "Episode h1 has states of 2 numbers, but the probe's training episodes of None"),
        (
            {"validation_fraction": 0.0},
            r"validation_fraction=0.0 holds out no episode of 'held_out': give validation_fraction=1.0",
        ),
        ({"validation_fraction": None}, "validation_fraction is not given"),
        ({"state_groups": {"block": [2, 3]}}, r"state_groups.block is \[2, 3\], but the columns are 0 to 1"),
        (
            {"residual_intervals": True, "levels": [0.98], "num_samples": 99},
            "have 42 windows of one step, but residual_intervals",
        ),
    ],
)
def test_what_can_not_be_measured_is_said(world, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_model(settings(**changes), TwoNumbers(gain=1.0), raw_pixels)


def test_horizons_longer_than_every_held_out_episode_are_left_out_and_named(world, caplog):
    model = TwoNumbers(gain=0.5)
    result = evaluate_model(settings(horizons=[1, 8, 9, 4]), model, raw_pixels)
    assert "long enough for horizons [9]: the longest has 10 frames" in caplog.text
    assert result["horizons"] == evaluate_model(settings(horizons=[1, 8, 4]), model, raw_pixels)["horizons"]
    assert (result["episodes"], result["episodes_too_short"]) == (3, 0)


def test_a_small_share_of_few_episodes_measures_one(world):
    config = settings(validation_fraction=0.001, probe_data=None)
    result = evaluate_model(config, TwoNumbers(gain=1.0), raw_pixels)
    assert (result["episodes"], result["probe"]["episodes"]) == (1, 2)


def test_one_episode_is_held_out_by_nothing_but_its_hash(world):
    del world["held_out"][1:]
    with pytest.raises(ValueError, match="validation_fraction=0.001 holds out no episode"):
        evaluate_model(settings(validation_fraction=0.001), TwoNumbers(gain=1.0), raw_pixels)


def test_states_of_another_size_than_the_probes_are_refused(world):
    for episode in world["held_out"]:
        episode["states"] = episode["states"][:, :1]
    with pytest.raises(ValueError, match="h1 has states of 1 numbers, but the probe's training episodes of 2"):
        evaluate_model(settings(), TwoNumbers(gain=1.0), raw_pixels)


def test_latent_distance_follows_true_distance_of_each_group(world):
    """Held-out frames lie on a line: states are tenths of the latents, and their second number does not change."""
    groups = {"across": [0], "down": [1]}
    evaluation = Evaluation(settings(state_groups=groups), TwoNumbers(1.0), raw_pixels)
    result = evaluation.measure_distances()
    assert (result["episodes"], result["frames"], result["pairs"]) == (3, 30, 435)
    assert result["groups"]["across"]["latent"]["rank_correlation"] > 0.99  # rounding parts ties
    assert result["groups"]["across"]["latent"]["bins"][-1]["to"] == pytest.approx(3.8)  # 38 in the latents
    assert result["groups"]["down"]["latent"]["rank_correlation"] is None
    assert "calibration" not in result


def test_without_matplotlib_nothing_is_drawn_and_a_warning_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "vjepa2_hf.visualization.distance_figures", None)
    evaluate_world_model.draw_distances({}, tmp_path / "evaluation.json")
    assert "distances are not drawn" in caplog.text and not list(tmp_path.iterdir())


def test_distances_around_walls_are_those_of_the_environment(world):
    config = settings(distance_env="vjepa2_hf/TwoRooms-v0")
    for number, episode in enumerate(world["held_out"]):  # three positions of one room, and three of the other
        episode["states"] = np.repeat(np.float32([[0.2, 0.1 + 0.1 * number], [0.8, 0.1 + 0.1 * number]]), 5, axis=0)
    result = Evaluation(config, TwoNumbers(1.0), raw_pixels).measure_distances()
    assert list(result["groups"]) == ["state", "path"]
    euclidean, path = (result["groups"][name]["latent"]["bins"][-1]["to"] for name in ("state", "path"))
    assert euclidean == pytest.approx(np.hypot(0.6, 0.2)) and 64 * euclidean + 10 < path < 100  # through the door
    config.distance_env_kwargs = {"agent_radius": 2}  # which takes a shorter way
    result = Evaluation(config, TwoNumbers(1.0), raw_pixels).measure_distances()
    assert 64 * euclidean < result["groups"]["path"]["latent"]["bins"][-1]["to"] < path - 2
    world["train"] = world["held_out"] = [{**one, "states": None} for one in world["held_out"]]
    with pytest.raises(ValueError, match="'vjepa2_hf/TwoRooms-v0' with states of 2 numbers, but the episodes' have 0"):
        Evaluation(config, TwoNumbers(1.0), raw_pixels).measure_distances()
    with pytest.raises(ValueError, match="'CartPole-v1' has no path_distance"):
        evaluate_world_model.path_distance("CartPole-v1", 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 18}, "levels contain 0.9, but 18 samples have no such interval"),
        ({"past_frames": 1}, "past_frames must be at least 2"),
        ({"horizons": [0]}, r"horizons are \[0\]"),
        ({"object_colors": {"block": [0, 0, 0]}}, "set `decoder`, too"),
        ({"object_colors": {"block": [0, 0]}, "decoder": "folder"}, r"object_colors.block is \[0, 0\]"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def write_episodes(folder: Path) -> None:
    """Six episodes of 13 frames, of noise, with all that can be measured by."""
    rng = np.random.default_rng(0)
    numbers = List(List(Value("float32")))
    columns = {"video": Video(decode=False), "actions": numbers, "proprio_states": numbers, "states": numbers}
    columns |= {"rewards": List(Value("float32")), "fps": Value("float32"), "episode_id": Value("string")}
    rows = (
        {
            "video": {"bytes": encode_video(rng.integers(0, 256, (13, 32, 32, 3), np.uint8), fps=10), "path": None},
            "actions": rng.uniform(-1, 1, (12, 2)),
            "proprio_states": rng.uniform(size=(13, 2)),
            "states": rng.uniform(size=(13, 4)),
            "rewards": rng.uniform(size=12),
            "fps": 10.0,
            "episode_id": f"{number:03d}",
        }
        for number in range(6)
    )
    write_shards(rows, folder, Features(columns), num_shards=1)


def test_the_old_name_of_a_setting_is_read(caplog):
    arguments = ["model=a", "data=b", "output=c", "picture_windows=2"]
    assert load_config(EvaluationConfig, overrides=arguments).image_windows == 2
    assert "image_windows" in caplog.text


def test_script_measures_a_saved_model_on_the_episodes_its_run_held_out(monkeypatch, tmp_path, capsys):
    write_episodes(tmp_path / "data")
    torch.manual_seed(0)
    dynamics = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    sizes = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "proprio_dim": 2, "context_frames": 2}
    config = VJepa2WorldModelConfig(
        encoder_config=TINY_ENCODER,
        **sizes,
        **dynamics,
        reward_head=True,
        stochastic_dim=2,
        distance_head=True,
        fps=10.0,
    )
    model = VJepa2WorldModel(config)
    model.save_pretrained(tmp_path / "run" / "final")
    decoder = {"patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    VJepa2PixelDecoder.from_world_model(model, **decoder).save_pretrained(tmp_path / "decoder")
    size = TINY_ENCODER["crop_size"]
    VJepa2VideoProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "run" / "final")
    (tmp_path / "run" / "config.yaml").write_text("validation_fraction: 0.4\nseed: 0\n")  # 000 and 005
    output = tmp_path / "results" / "evaluation.json"
    arguments = [f"model={tmp_path / 'run' / 'final'}", f"data={tmp_path / 'data'}", f"output={output}"]
    arguments += ["horizons=[1, 2]", "num_samples=19", "levels=[0.9]", "windows_per_episode=2", "num_threads=1"]
    arguments += ["residual_intervals=true", f"decoder={tmp_path / 'decoder'}", "image_windows=2"]
    arguments += ["object_colors={grey: [128, 128, 128]}"]
    monkeypatch.setattr(sys, "argv", ["evaluate_world_model.py", *arguments])
    evaluate_world_model.main()

    result = json.loads(output.read_text())
    written = ["evaluation.json", "evaluation.png", "evaluation_distances.png"]
    assert sorted(path.name for path in output.parent.iterdir()) == written
    with Image.open(output.with_suffix(".png")) as picture:  # present and two horizons, three rows for two episodes
        assert picture.size == (3 * (size + 2) + 2, 6 * (size + 2) + 2)
    assert (result["episodes"], result["windows"], result["probe"]["episodes"]) == (2, 4, 4)
    assert [row["horizon"] for row in result["horizons"]] == [1, 2]
    for row in result["horizons"]:
        assert row["error"] > 0 and row["copy_error"] > 0 and row["state_error"] > 0 and row["reward_error"] > 0
        assert 0 <= row["coverage_90"] <= 1 and 0 <= row["state_coverage_90"] <= 1
        assert 0 <= row["state_calibrated_coverage_90"] <= 1 and row["state_factor_90"] > 0
        assert row["residual_width_90"] > 0 and row["grey_not_painted"] in (0, 0.5, 1)
    printed = capsys.readouterr().out
    assert f"| error | {result['horizons'][0]['error']:.3g} | {result['horizons'][1]['error']:.3g} |" in printed
    latent = result["distances"]["groups"]["state"]["latent"]  # frames are noise
    assert abs(latent["rank_correlation"]) < 0.5 and latent["low"] < latent["high"]
    assert result["distances"]["calibration"]["bins"][-1]["from"] == 10  # frames; an untrained head
    assert "Distances by true distance of `state`, 91 pairs of held-out frames" in printed
