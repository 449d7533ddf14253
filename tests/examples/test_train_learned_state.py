"""train_world_model.py with a learned state: both stages, resuming in each, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import train_world_model
from builders import same_weights
from datasets import Features, Video
from script_runs import TINY_WORLD_MODEL, metrics, run_processes, run_train_world_model, write_noise_episodes

from vjepa2_hf import VJepa2Planner, VJepa2WorldModel
from vjepa2_hf.data.feature_cache import FeatureCache
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.run import Run


LEARNED = [
    "encoder=pixels",
    "encoder_config={crop_size: 32, patch_size: 8}",
    "save_every=2",
    "world_model={state_type: learned, state_dim: 6, frame_skip: 2, context_frames: 1, residual: true, "
    "rollout_steps: 2, dynamics_type: mlp, predictor_hidden_size: 16, predictor_num_hidden_layers: 1}",
    "state={max_steps: 4, episodes: 2, frames: 3, augment: true, symmetries: vjepa2_hf/Pushing-v0, "
    "inverse_dynamics_weight: 0.1, inverse_dynamics_steps: 2, sigreg_weight: 0.1}",
]


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    return write_noise_episodes(tmp_path_factory.mktemp("episodes") / "train")


def run(monkeypatch, episodes: Path, output_dir: Path, *overrides: str) -> tuple[list[dict], list[dict]]:
    """The metrics of both stages."""
    second = run_train_world_model(monkeypatch, episodes, output_dir, *LEARNED, *overrides)
    return metrics(output_dir / "state"), second


@pytest.fixture(scope="module")
def finished(episodes, tmp_path_factory) -> tuple[Path, tuple]:
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        return output_dir, run(patch, episodes, output_dir)


def test_one_command_trains_the_state_and_then_the_dynamics(finished):
    folder, (first, second) = finished
    assert [row["step"] for row in first] == [1, 2, 3, 4] and [row["step"] for row in second] == [1, 2, 3, 4, 5, 6]
    names = {"loss", "episode_contrast_loss", "found_frames", "inverse_dynamics_loss", "sigreg_loss", "learning_rate"}
    assert names <= first[0].keys()
    model = VJepa2WorldModel.from_pretrained(folder / "final")
    config = model.config
    assert (config.state_type, config.state_dim, config.action_dim) == ("learned", 6, 4)
    assert config.state_fitted and config.state_whitened and model.state_whitening.shape == (6, 6)
    trained = VJepa2WorldModel.from_pretrained(folder / "state" / "final")
    assert same_weights(trained.state_network, model.state_network) and not trained.config.state_fitted
    rows = json.loads((folder / "rollout_error.json").read_text())
    assert [row["horizon"] for row in rows] == [1, 2] and all(row["copy_error"] > 0 for row in rows)
    planner = VJepa2Planner.from_pretrained(
        folder / "final", distance="whitened", horizon=2, num_candidates=4, num_elites=2
    )
    image = np.full((32, 32, 3), 40, np.uint8)
    assert planner(image, image)["actions"].shape == (2, 4)


@pytest.mark.parametrize(("stage", "step"), [("state", 4), ("stopped", 5)])
def test_a_run_stopped_in_either_stage_resumes_to_the_same_losses(
    finished, episodes, monkeypatch, tmp_path, stage, step
):
    original = Run.check_finite

    def stop(self, reached, *numbers):
        if self.output_dir.name == stage and reached == step:
            raise KeyboardInterrupt
        return original(self, reached, *numbers)

    folder, whole = finished
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "check_finite", stop)
        run(patch, episodes, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "state" / "final").exists() == (stage == "stopped")
    assert run(monkeypatch, episodes, tmp_path / "stopped", "resume=latest") == whole
    models = [VJepa2WorldModel.from_pretrained(each / "final") for each in (folder, tmp_path / "stopped")]
    assert same_weights(*models) and torch.equal(models[0].state_whitening, models[1].state_whitening)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("state.episode_contrast_temperature=2.0", "state.episode_contrast_temperature=2.0 (was 1.0)"),
        ("world_model.predictor_hidden_size=8", "world_model.predictor_hidden_size=8 (was 16)"),
    ],
)
def test_a_finished_run_does_not_continue_with_other_settings(
    finished, episodes, monkeypatch, capsys, override, message
):
    with pytest.raises(SystemExit):
        run(monkeypatch, episodes, finished[0], override, "resume=latest")
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_second_model_takes_over_the_learned_state(finished, episodes, monkeypatch, tmp_path):
    overrides = [f"state_of={finished[0] / 'final'}", "world_model.frame_skip=1", "frames_per_window=4"]
    run_train_world_model(monkeypatch, episodes, tmp_path / "second", *LEARNED[:-1], *overrides)
    assert not (tmp_path / "second" / "state").exists()
    models = [VJepa2WorldModel.from_pretrained(each / "final") for each in (finished[0], tmp_path / "second")]
    frames = torch.randn(1, 2, 3, 32, 32)
    assert torch.equal(*(model.encode(frames) for model in models))
    assert torch.equal(*(model.state_whitening for model in models))


def test_a_checkpoint_continues_in_another_folder_with_its_own_state(finished, episodes, monkeypatch, tmp_path):
    folder, (_, before) = finished
    checkpoint = sorted(folder.glob("checkpoint-*"))[-1]
    overrides = [f"resume={checkpoint}", "max_steps=8", "rollout_start=0.25"]
    after = run_train_world_model(monkeypatch, episodes, tmp_path / "other", *LEARNED, *overrides)
    assert [row["step"] for row in after] == [7, 8] and len(before) == 6
    assert not (tmp_path / "other" / "state").exists()
    models = [VJepa2WorldModel.from_pretrained(each / "final") for each in (folder, tmp_path / "other")]
    assert same_weights(*(model.state_network for model in models)) and not same_weights(*models)


@pytest.mark.parametrize("checkpoint", ["checkpoint-6", "state/checkpoint-4"])
def test_a_checkpoint_that_was_copied_alone_is_refused_before_any_training(
    finished, episodes, monkeypatch, capsys, tmp_path, checkpoint
):
    alone = tmp_path / "backup" / "mine"
    shutil.copytree(finished[0] / checkpoint, alone)
    with pytest.raises(SystemExit):
        run(monkeypatch, episodes, tmp_path / "other", f"resume={alone}")
    assert f"resume={alone} was copied without the folder of its run" in capsys.readouterr().err
    assert [path.name for path in alone.parent.iterdir()] == ["mine"]
    assert not (tmp_path / "other" / "metrics.jsonl").exists()


def test_the_first_stage_continues_in_another_folder_as_the_error_advises(
    finished, episodes, monkeypatch, capsys, tmp_path
):
    """The last part of the error is the setting, which gives both stages in the other folder."""
    changed = "state.learning_rate=0.001"
    with pytest.raises(SystemExit):
        run(monkeypatch, episodes, finished[0], changed, "resume=latest")
    advice = capsys.readouterr().err.strip().splitlines()[-1].partition("continue in another folder with ")[2]
    assert advice == f"resume={finished[0] / 'state' / 'checkpoint-4'}."
    onward = [changed, "state.max_steps=6", advice.removesuffix(".")]
    first, second = run(monkeypatch, episodes, tmp_path / "other", *onward)
    assert [row["step"] for row in first] == [5, 6] and [row["step"] for row in second] == [1, 2, 3, 4, 5, 6]
    folders = [finished[0] / "state", tmp_path / "other" / "state", tmp_path / "other"]
    before, *after = (VJepa2WorldModel.from_pretrained(folder / "final").state_network for folder in folders)
    assert same_weights(*after) and not same_weights(before, after[0])
    with pytest.raises(SystemExit):  # the dynamics would be on another network
        run(monkeypatch, episodes, tmp_path / "other", *onward)
    assert "already holds a run" in capsys.readouterr().err
    assert run(monkeypatch, episodes, tmp_path / "other", *onward[:-1], "resume=latest") == (first, second)


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_whole_batch(episodes, monkeypatch, tmp_path):
    alike = ["state.augment=false", "state.symmetries=null", "state.sigreg_weight=0"]
    one = run(monkeypatch, episodes, tmp_path / "one" / "run", *alike)
    settings = [f"data={episodes}", f"output_dir={tmp_path / 'two' / 'run'}", *TINY_WORLD_MODEL, *LEARNED, *alike]
    run_processes(Path(train_world_model.__file__), [*settings, "state.episodes=1", "batch_size=2"])
    two = [metrics(tmp_path / "two" / "run" / "state"), metrics(tmp_path / "two" / "run")]
    for mine, theirs in zip(one, two, strict=True):
        assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in mine], rel=1e-4)


@pytest.mark.parametrize("augment", ["true", "false"])
def test_a_state_may_read_the_tokens_of_an_encoder(monkeypatch, tmp_path, augment):
    """Also with rewards, which only the second stage reads."""
    episodes = write_noise_episodes(tmp_path / "episodes", with_rewards=True)
    sizes = "encoder_config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, crop_size: 32}"
    overrides = ["encoder=random", sizes, "world_model.state_input=tokens", "max_steps=2", "state.max_steps=2"]
    overrides += ["world_model.reward_head=true"]
    overrides += ["state.symmetries=null", f"state.augment={augment}"]
    run(monkeypatch, episodes, tmp_path / "run", *overrides)
    model = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final")
    assert model.encode(torch.randn(1, 2, 3, 32, 32)).shape == (1, 2, 1, 6) and model.encoder is not None
    assert model.config.reward_mean is not None
    assert VJepa2WorldModel.from_pretrained(tmp_path / "run" / "state" / "final").config.reward_mean is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world_model.state_type=pooled", "state is for world_model.state_type=learned, not pooled"),
        ("encoder=random", "encoder=random with world_model.state_input=pixels: a state that reads pixels needs"),
        ("state.frames=9", "No episode has the 17 frames of a window"),
        ("state.symmetries={transpose: [[1]]}", "expected a square matrix of 2 rows that turns an action"),
        ("data=[{path: DATA}, {path: DATA, embodiment: 1}]", "learns from the actions of one robot"),
        ("data=[{path: DATA, camera: [front, wrist]}]", "state_type='learned' reads one camera; camera is ['front'"),
        ("encoder_config={crop_size: 36, patch_size: 8}", "crop_size=36 to be a multiple of patch_size=8"),
        ("state_of=DATA", "brings the network: leave it out"),
        ("state.use_actions=false", "state.use_actions=false reads none"),
        ("state.train_encoder=true", "state.train_encoder=true needs world_model.state_input=tokens"),
        ("state.data=nowhere", "nowhere"),
        ("state.start_from=nowhere", "nowhere"),
        ("state.data=[]", "data is [], without a source of episodes"),
        # of the second stage
        ("world_model.predictor_hiden_size=8", "predictor_hiden_size"),
        ("world_model.freeze_encoder=false", "freeze_encoder=False with state_type='learned'"),
        ("world_model.num_views=2", "num_views=2 needs 'transformer'"),
        ("world_model.macro_action_dim=-1", "macro_action_dim"),
        ("world_model.reward_head=true", "The episodes have no 'rewards'"),
        ("use_proprio=true", "The episodes have no 'proprio_states'"),
        ("frames_per_window=2", "frames_per_window=2 holds 1 steps; rollout_steps=2 needs 3 frames"),
        ("frames_per_window=9", "No episode has the 17 frames of a window"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(episodes, monkeypatch, capsys, tmp_path, override, message):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, episodes, tmp_path / "run", override.replace("DATA", str(episodes)))
    assert exit_.value.code == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "run").glob("**/checkpoint-*")) and not (tmp_path / "run" / "state" / "final").exists()


TOKENS = [
    "encoder=random",
    "encoder_config={crop_size: 32, patch_size: 8, num_frames: 1, tubelet_size: 1, "
    "hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1}",
    "world_model.state_input=tokens",
]


def test_the_network_learns_from_videos_without_actions(episodes, monkeypatch, tmp_path):
    videos = tmp_path / "videos"
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8) for _ in range(3)]
    rows = ({"video": {"bytes": encode_video(each, fps=10), "path": None}} for each in frames)
    write_shards(rows, videos, Features({"video": Video(decode=False)}), num_shards=1)
    overrides = [f"state.data={videos}", "state.use_actions=false", "state.inverse_dynamics_weight=0"]
    first, second = run(monkeypatch, episodes, tmp_path / "run", *overrides)
    assert [row["step"] for row in first] == [1, 2, 3, 4] and len(second) == 6
    model = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final")
    assert model.config.action_dim == 4  # of the episodes
    of_videos = next(path for path in (tmp_path / "latents").glob("videos-*") if path.is_dir())
    assert "actions" not in FeatureCache(of_videos, ["frames"])._part(0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=nowhere", "There is no data at 'nowhere'"),
        ("world_model.predictor_hiden_size=8", "predictor_hiden_size"),
        ("world_model.reward_head=true", "have no 'rewards'"),
        ("frames_per_window=2", "frames_per_window=2 holds 1 steps"),
        ("data=[{path: DATA, camera: wrist}]", "has one camera without a name"),
    ],
)
def test_with_other_data_the_second_stage_is_checked_before_the_first(
    episodes, monkeypatch, capsys, tmp_path, override, message
):
    others = [f"state.data={episodes}", override.replace("DATA", str(episodes))]
    with pytest.raises(SystemExit):
        run(monkeypatch, episodes, tmp_path / "run", *others)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "state" / "final").exists()


def test_a_network_is_trained_further(finished, episodes, monkeypatch, tmp_path):
    start = finished[0] / "final"
    overrides = [f"state.start_from={start}", "state.max_steps=1", "state.learning_rate=1e-12", "state.weight_decay=0"]
    run(monkeypatch, episodes, tmp_path / "further", *overrides)
    networks = [VJepa2WorldModel.from_pretrained(each).state_network for each in (start, tmp_path / "further/final")]
    for mine, others in zip(*(network.state_dict().values() for network in networks)):
        torch.testing.assert_close(mine, others, atol=1e-6, rtol=0)


@pytest.mark.parametrize("setting", ["state_of", "state.start_from"])
def test_a_network_of_another_frame_size_is_refused(finished, episodes, monkeypatch, tmp_path, capsys, setting):
    sizes = ["encoder_config={crop_size: 48, patch_size: 8}", f"{setting}={finished[0] / 'final'}"]
    with pytest.raises(SystemExit):
        given = LEARNED[:-1] if setting == "state_of" else LEARNED
        run_train_world_model(monkeypatch, episodes, tmp_path / "run", *given, *sizes)
    assert "trained for an encoder of crop_size=32" in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_encoder_learns_along_and_the_dynamics_are_on_it(episodes, monkeypatch, tmp_path, capsys):
    overrides = [*TOKENS, "state.train_encoder=true"]
    first, _ = run(monkeypatch, episodes, tmp_path / "along", *overrides)
    run(monkeypatch, episodes, tmp_path / "frozen", *TOKENS)
    along, stage, frozen = (
        VJepa2WorldModel.from_pretrained(tmp_path / each)
        for each in ("along/final", "along/state/final", "frozen/final")
    )
    assert same_weights(along.encoder, stage.encoder) and not same_weights(along.encoder, frozen.encoder)
    frames = torch.randn(1, 2, 3, 32, 32)
    assert not torch.equal(along.encode(frames), frozen.encode(frames))
    checkpoint = sorted((tmp_path / "along").glob("checkpoint-*"))[-1]
    given = [*LEARNED, *TOKENS, f"resume={checkpoint}", "max_steps=8"]
    with pytest.raises(SystemExit):  # the data would be encoded by the encoder before its training
        run_train_world_model(monkeypatch, episodes, tmp_path / "other", *given)
    assert "has another encoder than this run" in capsys.readouterr().err
    run_train_world_model(monkeypatch, episodes, tmp_path / "other", *given, "state.train_encoder=true")
