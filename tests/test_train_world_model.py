import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_world_model
from published import TINY_ENCODER
from record_episodes import episode_features
from train_world_model import Episodes, WorldModelTrainingConfig, build_processor

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.shards import write_shards
from vjepa2_hf.training import read_metrics
from vjepa2_hf.video_io import encode_video


ENCODER = (
    "encoder_config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, crop_size: 32, patch_size: 16}"
)
TINY = [
    "encoder=random",
    ENCODER,
    "max_steps=6",
    "batch_size=4",
    "num_threads=1",
    "log_every=1",
    "save_every=3",
    "validation_episodes=2",
    "frames_per_window=3",
    "rollout_start=0.5",
    "horizons=[1, 2]",
    "world_model={frame_skip: 2, context_frames: 1, residual: true, rollout_steps: 2, predictor_hidden_size: 16, "
    "predictor_num_hidden_layers: 1, predictor_num_attention_heads: 2}",
    "learning_rate={peak: 1e-3, warmup_steps: 2}",
]


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    """Six episodes in which a square moves by the action, in two shards."""
    rng = np.random.default_rng(0)

    def rows():
        for number in range(6):
            actions = rng.uniform(-1, 1, (8, 2)).astype(np.float32)
            places = np.clip(16 + 4 * np.concatenate([np.zeros((1, 2)), actions.cumsum(0)]), 4, 27).astype(int)
            frames = np.full((9, 32, 32, 3), 40, np.uint8)
            for frame, (x, y) in zip(frames, places, strict=True):
                frame[y - 4 : y + 4, x - 4 : x + 4] = 220
            video = {"bytes": encode_video(frames, fps=10), "path": None}
            states = (places / 32).astype(np.float32)
            yield {
                "video": video,
                "actions": actions,
                "proprio_states": states,
                "fps": 10.0,
                "episode_id": f"{number:03d}",
            }

    folder = tmp_path_factory.mktemp("episodes") / "train"
    write_shards(rows(), folder, episode_features({"proprio_state": None}), num_shards=2)
    return folder


@pytest.fixture(scope="module")
def finished(episodes, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        run_script(patch, episodes, output_dir)
    return output_dir


def run_script(monkeypatch, episodes: Path, output_dir: Path, *overrides: str) -> list[dict]:
    """Runs the script in this process; the metrics without what the clock measured."""
    arguments = [f"data={episodes}", f"output_dir={output_dir}", *TINY, *overrides]
    monkeypatch.setattr(sys, "argv", ["train_world_model.py", *arguments])
    train_world_model.main()
    rows = read_metrics(output_dir)
    return [{name: value for name, value in row.items() if name != "windows_per_second"} for row in rows]


def test_run_leaves_a_planner_and_its_rollout_errors(monkeypatch, episodes, tmp_path):
    metrics = run_script(monkeypatch, episodes, tmp_path / "run", "use_proprio=true")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    # one-step loss for the first half, then the model's own weights of both losses
    assert [row["rollout_loss"] is None for row in metrics] == [True] * 3 + [False] * 3
    rows = json.loads((tmp_path / "run" / "rollout_error.json").read_text())
    assert [row["horizon"] for row in rows] == [1, 2]
    assert all(row["error"] > 0 and row["copy_error"] > 0 for row in rows)

    model = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final")
    config = model.config
    assert (config.action_dim, config.actions_per_step, config.proprio_dim, config.fps) == (4, 2, 2, 10.0)
    assert config.state_fitted and len(config.action_low) == 4
    planner = VJepa2Planner.from_pretrained(tmp_path / "run" / "final", horizon=2, num_candidates=4, num_elites=2)
    image = np.full((32, 32, 3), 40, np.uint8)
    plan = planner(image, image, proprio_state=np.array([0.5, 0.5]))
    assert plan["actions"].shape == (2, 4)
    assert (plan["actions"] >= np.array(config.action_low) - 1e-6).all()


def test_stopped_run_resumes_to_the_same_losses(monkeypatch, episodes, tmp_path):
    whole = run_script(monkeypatch, episodes, tmp_path / "whole")
    # stopped in step 4: the checkpoint of step 3 is there, and metrics of a step that will be done again
    original = train_world_model.check_finite_loss

    def stop(loss, step):
        if step == 5:
            raise KeyboardInterrupt
        return original(loss, step)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_world_model, "check_finite_loss", stop)
        run_script(monkeypatch, episodes, tmp_path / "stopped")
    assert len(read_metrics(tmp_path / "stopped")) == 4
    assert run_script(monkeypatch, episodes, tmp_path / "stopped", "resume=latest") == whole


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps=12", "max_steps=12 (was 6)"),
        ("rollout_start=0.2", "rollout_start=0.2 (was 0.5)"),
        ("world_model.predictor_hidden_size=32", "world_model.predictor_hidden_size=32 (was 16)"),
        ("fit_state=false", "fit_state=False (was True)"),
    ],
)
def test_finished_run_does_not_go_on_with_other_settings(finished, episodes, monkeypatch, capsys, override, message):
    with pytest.raises(SystemExit):
        run_script(monkeypatch, episodes, finished, override, "resume=latest")
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_finished_run_is_evaluated_at_other_horizons(finished, episodes, monkeypatch):
    run_script(monkeypatch, episodes, finished, "horizons=[1]", "resume=latest")
    assert [row["horizon"] for row in json.loads((finished / "rollout_error.json").read_text())] == [1]


def processor_for(encoder: str, **settings) -> VJepa2VideoProcessor:
    config = WorldModelTrainingConfig(output_dir="out", data="data", encoder=encoder, **settings)
    return build_processor(config, VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))


@pytest.mark.parametrize("name", ["video_preprocessor_config.json", "preprocessor_config.json"])
def test_an_encoder_of_the_hub_brings_its_processor(monkeypatch, name):
    """The old file name is that of transformers 4."""
    asked, own = [], VJepa2VideoProcessor(size=36, crop_size=32)
    monkeypatch.setattr(train_world_model, "has_file", lambda repo, file: asked.append(repo) or file == name)
    monkeypatch.setattr(VJepa2VideoProcessor, "from_pretrained", lambda repo: own if repo == "owner/encoder" else None)
    assert processor_for("owner/encoder") is own and set(asked) == {"owner/encoder"}


def test_an_encoder_in_a_folder_brings_its_processor(tmp_path):
    VJepa2VideoProcessor(size=36, crop_size=32, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    assert list(processor_for(str(tmp_path)).image_mean) == [0.1, 0.2, 0.3]
    assert processor_for(str(tmp_path), crop_size=16).crop_size["height"] == 16


def test_an_encoder_without_a_processor_is_warned_of(tmp_path, caplog):
    assert processor_for(str(tmp_path)).crop_size["height"] == TINY_ENCODER["crop_size"]
    assert f"{tmp_path} has no video processor: whole frames are resized to 32 x 32 pixels" in caplog.text


@pytest.mark.parametrize("baseline", ["random", "pixels"])
def test_a_baseline_asks_nobody_for_a_processor(monkeypatch, caplog, baseline):
    monkeypatch.setattr(train_world_model, "has_file", lambda repo, file: pytest.fail(f"{repo} was asked for"))
    assert processor_for(baseline).crop_size["height"] == 32 and not caplog.text


def test_state_is_standardised_on_the_training_episodes(monkeypatch, episodes, tmp_path):
    captured = {}
    original = train_world_model.prepare_data

    def capture(*arguments):
        captured["data"] = original(*arguments)
        return captured["data"]

    monkeypatch.setattr(train_world_model, "prepare_data", capture)
    run_script(monkeypatch, episodes, tmp_path / "run", "max_steps=1")
    latents = torch.cat(captured["data"][2].latents)
    torch.testing.assert_close(latents.mean(0), torch.zeros_like(latents[0]), atol=1e-5, rtol=0)
    assert latents.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validation_episodes=6", "holds 6 episodes"),
        ("world_model.rollout_steps=5", "rollout_steps=5 needs 6 frames"),
        ("world_model.rolout_steps=2", "rolout_steps"),
        ("horizons=[9]", "no held-out episode has 19 frames"),
        ("frames_per_window=30", "No episode has the 59 frames"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(monkeypatch, capsys, episodes, tmp_path, override, message):
    with pytest.raises(SystemExit) as exit_:
        run_script(monkeypatch, episodes, tmp_path / "run", override, "rollout_start=0.0")
    assert exit_.value.code == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_missing_encoder_is_no_matter_of_the_hub(monkeypatch, capsys, episodes, tmp_path):
    with pytest.raises(SystemExit):
        run_script(monkeypatch, episodes, tmp_path / "run", "encoder=runs/nothing/final", "encoder_config={}")
    assert "There is no folder 'runs/nothing/final'" in capsys.readouterr().err.strip().splitlines()[-1]


def test_windows_hold_the_actions_between_their_frames():
    """Frame t of the cache is the number t, action t leads from t to t + 1: a window must keep them together."""
    frames = torch.arange(10.0).view(10, 1, 1)
    episodes = Episodes([frames], [torch.arange(9.0).view(9, 1)], None, fps=10.0)
    batch = episodes.windows([(0, 1), (0, 3)], frames=3, skip=2)
    assert batch["latents"].flatten(1).tolist() == [[1, 3, 5], [3, 5, 7]]
    assert batch["actions"].tolist() == [[[1, 2], [3, 4]], [[3, 4], [5, 6]]]
    starts = {episodes.draw(1, 3, 2, torch.Generator().manual_seed(i))["latents"][0, 0].item() for i in range(200)}
    assert starts == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
