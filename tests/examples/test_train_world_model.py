import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import evaluate_world_model
import numpy as np
import pytest
import torch
import train_world_model
from builders import TINY_ENCODER
from record_episodes import episode_features
from script_runs import TINY_WORLD_MODEL, run_processes, run_script, run_train_world_model

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2Planner, VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.episodes import EpisodeSource, read_episodes
from vjepa2_hf.data.feature_cache import CacheWriter
from vjepa2_hf.data.parts import read_tensors
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training import episode_latents, world_model_building
from vjepa2_hf.training.cached_windows import as_shards, window_statistics
from vjepa2_hf.training.run import Run, read_metrics
from vjepa2_hf.training.world_model_building import build_processor
from vjepa2_hf.training.world_model_settings import WorldModelTrainingConfig


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
    write_shards(rows(), folder, episode_features(["proprio_states"]), num_shards=2)
    return folder


@pytest.fixture(scope="module")
def finished(episodes, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        run_train_world_model(patch, episodes, output_dir)
    return output_dir


def test_run_leaves_a_planner_and_its_rollout_errors(monkeypatch, episodes, tmp_path):
    metrics = run_train_world_model(monkeypatch, episodes, tmp_path / "run", "use_proprio=true")
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
    whole = run_train_world_model(monkeypatch, episodes, tmp_path / "whole")
    # stopped in step 4: the checkpoint of step 3 is there, and metrics of a step that will be done again
    original = Run.check_finite

    def stop(run, step, *numbers):
        if step == 5:
            raise KeyboardInterrupt
        return original(run, step, *numbers)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "check_finite", stop)
        run_train_world_model(monkeypatch, episodes, tmp_path / "stopped")
    assert len(read_metrics(tmp_path / "stopped")) == 4
    assert run_train_world_model(monkeypatch, episodes, tmp_path / "stopped", "resume=latest") == whole


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
        run_train_world_model(monkeypatch, episodes, finished, override, "resume=latest")
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_finished_run_is_evaluated_at_other_horizons(finished, episodes, monkeypatch):
    run_train_world_model(monkeypatch, episodes, finished, "horizons=[1]", "resume=latest")
    assert [row["horizon"] for row in json.loads((finished / "rollout_error.json").read_text())] == [1]


def processor_for(encoder: str, **settings) -> VJepa2VideoProcessor:
    config = WorldModelTrainingConfig(output_dir="out", data="data", encoder=encoder, **settings)
    return build_processor(config, VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)))


@pytest.mark.parametrize("name", ["video_preprocessor_config.json", "preprocessor_config.json"])
def test_an_encoder_of_the_hub_brings_its_processor(monkeypatch, name):
    """The old file name is that of transformers 4."""
    asked, own = [], VJepa2VideoProcessor(size=36, crop_size=32)
    monkeypatch.setattr(world_model_building, "has_file", lambda repo, file: asked.append(repo) or file == name)
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
    monkeypatch.setattr(world_model_building, "has_file", lambda repo, file: pytest.fail(f"{repo} was asked for"))
    assert processor_for(baseline).crop_size["height"] == 32 and not caplog.text


def test_state_is_standardised_on_the_training_episodes(monkeypatch, episodes, tmp_path):
    captured = {}
    original = train_world_model.prepare_data

    def capture(*arguments):
        captured["data"] = original(*arguments)
        return captured["data"]

    monkeypatch.setattr(train_world_model, "prepare_data", capture)
    run_train_world_model(monkeypatch, episodes, tmp_path / "run", "max_steps=1")
    model, processor, training, held_out, _ = captured["data"]
    assert (training.caches[0].ids, len(training), held_out.episodes[0].tolist()) == (
        [f"{number:03d}" for number in range(6)], 4, [0, 5],
    )  # fmt: skip
    raw = training.read(training.tile(9, 1, 9, 100), 9, 1)
    latents = train_world_model.model_inputs(raw, model, processor)["latents"].flatten(0, 1)
    torch.testing.assert_close(latents.mean(0), torch.zeros_like(latents[0]), atol=1e-5, rtol=0)
    assert latents.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validation_fraction=1.0", "holds out every episode of a source (6 in all)"),
        ("validation_fraction=1.5", "validation_fraction is 1.5, expected a fraction"),
        ("world_model.rollout_steps=5", "rollout_steps=5 needs 6 frames"),
        ("world_model.rolout_steps=2", "rolout_steps"),
        ("horizons=[9]", "no held-out episode has 19 frames (the longest has 9)"),
        ("frames_per_window=30", "No episode has the 59 frames"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(monkeypatch, capsys, episodes, tmp_path, override, message):
    with pytest.raises(SystemExit) as exit_:
        run_train_world_model(monkeypatch, episodes, tmp_path / "run", override, "rollout_start=0.0")
    assert exit_.value.code == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_missing_encoder_is_no_matter_of_the_hub(monkeypatch, capsys, episodes, tmp_path):
    with pytest.raises(SystemExit):
        run_train_world_model(
            monkeypatch, episodes, tmp_path / "run", "encoder=runs/nothing/final", "encoder_config={}"
        )
    assert "There is no folder 'runs/nothing/final'" in capsys.readouterr().err.strip().splitlines()[-1]


def test_frames_are_normalized_as_the_processor_does():
    processor = VJepa2VideoProcessor(size=40, crop_size=32)
    frames = np.random.default_rng(0).integers(0, 255, (3, 48, 60, 3), np.uint8)
    cropped = processor(frames, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values_videos"]
    assert cropped.dtype == torch.uint8 and cropped.shape[-2:] == (32, 32)
    whole = processor(frames, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(processor.normalize_cropped(cropped), whole, rtol=0, atol=0)


def cache_files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_runs_on_one_encoder_share_its_latents(monkeypatch, episodes, tmp_path):
    run_train_world_model(monkeypatch, episodes, tmp_path / "a", "max_steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(episode_latents, "build_encode", lambda *arguments: pytest.fail("encoded again"))
        run_train_world_model(monkeypatch, episodes, tmp_path / "b", "max_steps=1", "world_model.residual=false")
    assert len(cache_files(tmp_path / "latents")) == 1
    run_train_world_model(monkeypatch, episodes, tmp_path / "c", "max_steps=1", "seed=1")  # another random encoder
    assert len(cache_files(tmp_path / "latents")) == 2


def test_an_encoding_that_was_stopped_goes_on_to_the_same_run(monkeypatch, episodes, tmp_path):
    whole = run_train_world_model(monkeypatch, episodes, tmp_path / "one" / "run")
    original, encoded = CacheWriter.add, []

    def add(self, name, fps, columns):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(name)
        self._parts.max_bytes = 1  # every episode is a part of its own
        original(self, name, fps, columns)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(CacheWriter, "add", add)
        run_train_world_model(monkeypatch, episodes, tmp_path / "two" / "run")
    before = cache_files(tmp_path / "two" / "latents")
    assert len(before) == 2
    assert run_train_world_model(monkeypatch, episodes, tmp_path / "two" / "run") == whole
    after = cache_files(tmp_path / "two" / "latents")
    assert len(after) == 3 and before.items() <= after.items()


def test_what_did_not_read_is_named_in_every_run_on_the_cache(monkeypatch, caplog, episodes, tmp_path):
    shard, data = sorted(episodes.glob("*.parquet"))[1], tmp_path / "data"
    shutil.copytree(episodes, data)
    (data / shard.name).write_bytes(shard.read_bytes()[:-100])  # a cut file
    for run in ("first", "second"):
        caplog.clear()
        run_train_world_model(monkeypatch, data, tmp_path / run, "validation_fraction=0")
        assert "lacks 1 rows or shards that were unreadable when it was filled" in caplog.text
        assert shard.name in caplog.text


def test_workers_change_nothing(monkeypatch, episodes, tmp_path):
    plain = run_train_world_model(monkeypatch, episodes, tmp_path / "one" / "run", "gradient_accumulation_steps=2")
    workers = ["gradient_accumulation_steps=2", "num_workers=1"]
    assert run_train_world_model(monkeypatch, episodes, tmp_path / "two" / "run", *workers) == plain


def test_two_sources_are_mixed_and_their_statistics_kept(monkeypatch, episodes, tmp_path):
    files = sorted(episodes.glob("*.parquet"))
    sources = json.dumps([{"path": str(file), "weight": weight} for file, weight in zip(files, (3, 1), strict=True)])
    run_train_world_model(
        monkeypatch, episodes, tmp_path / "run", f"data={sources}", "max_steps=1", "use_proprio=true"
    )
    found = json.loads((tmp_path / "run" / "statistics.json").read_text())
    one, two = found["actions"]["sources"]
    mean = [0.75 * a + 0.25 * b for a, b in zip(one["mean"], two["mean"], strict=True)]
    assert found["actions"]["mean"] == pytest.approx(mean) and one["mean"] != two["mean"]
    config = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final").config
    assert config.action_mean == pytest.approx(mean * 2) and config.action_std == found["actions"]["std"] * 2
    assert config.action_low == [min(pair) for pair in zip(one["low"], two["low"], strict=True)] * 2
    assert config.proprio_mean == found["proprio_states"]["mean"]


def test_lerobot_dataset_trains_as_it_is(monkeypatch, tmp_path):
    dataset = Path(__file__).parents[1] / "fixtures" / "lerobot_v3"
    data = f"data=[{{path: {dataset}, camera: front}}]"
    # the fixture's pictures are grey, its episodes 5 to 11 frames long; state and action have two numbers
    metrics = run_train_world_model(
        monkeypatch, dataset, tmp_path / "run", data, "use_proprio=true", "validation_fraction=0.3"
    )
    assert len(metrics) == 6
    index = json.loads(next((tmp_path / "latents").glob("*/index.json")).read_text())
    assert sorted(index["episodes"]["length"]) == [5, 6, 7, 11]
    config = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final").config
    assert (config.action_dim, config.proprio_dim, config.fps) == (4, 2, 30.0)


def test_hdf5_episodes_train_with_one_command(monkeypatch, capsys, tmp_path):
    h5py = pytest.importorskip("h5py")
    rng, source = np.random.default_rng(0), tmp_path / "robomimic"
    source.mkdir()
    with h5py.File(source / "demos.hdf5", "w") as file:
        for number in range(6):
            group = file.create_group(f"data/demo_{number}")
            for camera in ("agentview_image", "wrist_image"):
                group[f"obs/{camera}"] = rng.integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
            group["actions"] = rng.uniform(-1, 1, (9, 2))
    data = f"data=[{{path: {source}, fps: 5, camera: obs/wrist_image}}]"
    metrics = run_train_world_model(monkeypatch, source, tmp_path / "run", data, "validation_fraction=0.3")
    shards = next((tmp_path / "latents").glob("robomimic-*-shards"))
    written = shards.stat().st_mtime_ns
    assert VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final").config.fps == 5.0
    assert run_train_world_model(monkeypatch, source, tmp_path / "again", data, "validation_fraction=0.3") == metrics
    assert shards.stat().st_mtime_ns == written  # imported once
    evaluation = [f"model={tmp_path / 'run' / 'final'}", f"data={source}", "fps=5", "camera=obs/wrist_image"]
    output = tmp_path / "evaluation.json"
    run_script(monkeypatch, evaluate_world_model, [*evaluation, f"output={output}", "horizons=[1]"])
    assert json.loads(output.read_text())["data"] == str(source)
    assert shards.stat().st_mtime_ns == written  # shared with training
    with pytest.raises(SystemExit):  # two cameras, none named: no shards are left
        run_train_world_model(monkeypatch, source, tmp_path / "third", f"data=[{{path: {source}, fps: 5}}]")
    assert "obs/agentview_image, obs/wrist_image; name one with camera" in capsys.readouterr().err
    assert list((tmp_path / "latents").glob("robomimic-*-shards")) == [shards]


def test_damaged_imports_are_imported_again(tmp_path, caplog):
    source = tmp_path / "episode.npz"
    np.savez(source, images=np.zeros((4, 16, 16, 3), np.uint8), actions=np.zeros((4, 1), np.float32))
    described = EpisodeSource(str(source), fps=5)
    folder = Path(as_shards(described, tmp_path / "cache").path)
    (shard,) = folder.glob("*.parquet")
    for damage in (b"", shard.read_bytes()[:-9], None):
        shard.unlink() if damage is None else shard.write_bytes(damage)
        assert as_shards(described, tmp_path / "cache").path == str(folder)
        assert len(list(read_episodes(folder))) == 1 and "is incomplete or damaged" in caplog.text
        caplog.clear()
    as_shards(described, tmp_path / "cache")
    assert caplog.text == ""
    with pytest.raises(ValueError, match="fps is nan, but a positive number"):
        EpisodeSource(str(source), fps=float("nan"))
    with pytest.raises(ValueError, match="holds HDF5 or npz files: give their frames per second as fps, or import"):
        as_shards(EpisodeSource(str(source)), tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "flipped", "index"])
def test_damaged_latents_are_computed_again_to_the_same_run(monkeypatch, episodes, tmp_path, damage, caplog):
    before = run_train_world_model(monkeypatch, episodes, tmp_path / "one", "max_steps=1")
    (part,) = (tmp_path / "latents").glob("*/part*")
    content, tensors = part.read_bytes(), {name: value.clone() for name, value in read_tensors(part).items()}
    if damage == "index":
        (part.parent / "index.json").write_text("{")
    else:
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        part.write_bytes({"cut": content[:half], "flipped": flipped}[damage])
    assert run_train_world_model(monkeypatch, episodes, tmp_path / "two", "max_steps=1") == before
    assert "is damaged" in caplog.text
    (part,) = (tmp_path / "latents").glob("*/part*")
    assert all(torch.equal(value, tensors[name]) for name, value in read_tensors(part).items())


def test_windows_of_a_loss_that_is_not_finite_are_named(monkeypatch, capsys, episodes, tmp_path):
    forward = VJepa2WorldModel.forward

    def spoilt(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(VJepa2WorldModel, "forward", spoilt)
    with pytest.raises(SystemExit):
        run_train_world_model(monkeypatch, episodes, tmp_path / "run")
    assert "loss of step 1 is nan" in capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "offending_batch.json").read_text())
    windows = found["batches"][0]["clips"]
    assert len(windows) == 4 and all(re.fullmatch(r"00[0-5], frame [0-9]", window) for window in windows)


def test_a_refused_run_encodes_nothing_and_leaves_the_folder_as_it_was(finished, episodes, monkeypatch, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    monkeypatch.setattr(episode_latents, "build_encode", lambda *arguments: pytest.fail("encoded"))
    for overrides in (["resume=null"], ["resume=latest", "fit_state=false"]):
        with pytest.raises(SystemExit):
            run_train_world_model(monkeypatch, episodes, finished, f"cache_dir={tmp_path}", *overrides)
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_categories_that_are_not_one_hot_are_refused(monkeypatch, capsys, episodes, tmp_path):
    with pytest.raises(SystemExit):
        run_train_world_model(monkeypatch, episodes, tmp_path / "run", "world_model.action_type=discrete")
    assert "store them one-hot" in capsys.readouterr().err


def test_a_dimension_that_never_varies_keeps_its_unit():
    class Constant:
        def statistics(self, column, chosen):
            return {"mean": [5.0, 1.0], "std": [0.0, 0.5], "low": [5.0, 0.0], "high": [5.0, 2.0]}

    mixture = SimpleNamespace(caches=[Constant()], episodes=[None], weights=np.ones(1))
    assert window_statistics(mixture, "actions")["std"] == [1.0, 0.5]


def test_held_out_error_is_logged_at_intervals(monkeypatch, episodes, tmp_path):
    metrics = run_train_world_model(monkeypatch, episodes, tmp_path / "run", "eval_every=3", "log_every=2")
    assert [row["step"] for row in metrics] == [2, 3, 4, 6]
    assert ["validation_error_2" in row for row in metrics] == [False, True, False, True]
    final = json.loads((tmp_path / "run" / "rollout_error.json").read_text())
    assert metrics[-1]["validation_error_2"] == final[1]["error"]


def test_without_held_out_episodes_nothing_is_measured_and_that_is_said(monkeypatch, caplog, episodes, tmp_path):
    run_train_world_model(monkeypatch, episodes, tmp_path / "run", "validation_fraction=0.0", "max_steps=1")
    assert "validation_fraction=0.0 holds out none of the 6 episodes" in caplog.text
    assert not (tmp_path / "run" / "rollout_error.json").exists() and (tmp_path / "run" / "final").is_dir()


def test_horizons_longer_than_every_held_out_episode_are_left_out_and_named(monkeypatch, caplog, episodes, tmp_path):
    run_train_world_model(monkeypatch, episodes, tmp_path / "run", "horizons=[9, 1, 4, 5]", "max_steps=1")
    assert "long enough for horizons [9, 5]: the longest has 4 model steps; only [1, 4] are measured" in caplog.text
    assert [row["horizon"] for row in json.loads((tmp_path / "run" / "rollout_error.json").read_text())] == [1, 4]


def test_a_small_share_of_few_episodes_holds_out_one(monkeypatch, episodes, tmp_path):
    run_train_world_model(monkeypatch, episodes, tmp_path / "run", "validation_fraction=0.001", "max_steps=1")
    assert (tmp_path / "run" / "rollout_error.json").exists()


@pytest.mark.parametrize(
    "state",
    [
        "world_model={state_type: projected, state_dim: 4, state_projection: slow, dynamics_type: mlp, "
        "predictor_hidden_size: 16, predictor_num_hidden_layers: 1, rollout_steps: 2, context_frames: 1}",
        "world_model={state_type: merged, state_dim: 6, predictor_hidden_size: 16, predictor_num_hidden_layers: 1, "
        "predictor_num_attention_heads: 2, rollout_steps: 2, context_frames: 2}",
        "world_model={state_type: pooled, dynamics_type: mlp, predictor_hidden_size: 16, "
        "predictor_num_hidden_layers: 1, rollout_steps: 2, context_frames: 2}",
    ],
)
def test_every_kind_of_state_trains_and_loads(monkeypatch, episodes, tmp_path, state):
    metrics = run_train_world_model(monkeypatch, episodes, tmp_path / "run", state, "cache_dtype=bfloat16")
    assert metrics[-1]["rollout_loss"] > 0
    model = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final")
    assert model.config.state_fitted
    latents = model.encode(torch.zeros(1, 1, 3, 32, 32))
    assert latents.shape == (1, 1, model.tokens_per_frame, model.latent_size)


def test_an_encoder_that_learns_along_moves_slowly_and_its_target_behind_it(monkeypatch, episodes, tmp_path):
    settings = ["world_model.freeze_encoder=false", "ema.start=0.9", "encoder_learning_rate=0.5"]
    whole = run_train_world_model(monkeypatch, episodes, tmp_path / "whole", *settings)
    assert all(row["ema_momentum"] == 0.9 for row in whole)
    model = VJepa2WorldModel.from_pretrained(tmp_path / "whole" / "final")
    torch.manual_seed(0)
    start = VJepa2Encoder(model.config.encoder_config).state_dict()
    moved = {name: (value - start[name]).abs().max().item() for name, value in model.encoder.state_dict().items()}
    behind = {
        name: (value - start[name]).abs().max().item() for name, value in model.target_encoder.state_dict().items()
    }
    assert 0 < max(moved.values()) < 6 * 0.5 * 1.5e-3  # six steps of Adam, at half of at most 1e-3
    assert 0 < max(behind.values()) < max(moved.values())
    names = {path.name for path in next((tmp_path / "latents").glob("*/index.json")).parent.iterdir()}
    assert names == {"index.json", "part-000-00000.safetensors"}


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_whole_batch(monkeypatch, episodes, tmp_path):
    """They also share the encoding."""
    one = run_train_world_model(monkeypatch, episodes, tmp_path / "one" / "run", "batch_size=4")
    settings = [f"data={episodes}", f"output_dir={tmp_path / 'two' / 'run'}", *TINY_WORLD_MODEL, "batch_size=2"]
    run_processes(Path(train_world_model.__file__), settings)
    two = read_metrics(tmp_path / "two" / "run")
    assert len(cache_files(tmp_path / "two" / "latents")) == 2
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    weights = [
        VJepa2WorldModel.from_pretrained(tmp_path / name / "run" / "final").state_dict() for name in ("one", "two")
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-5, msg=name)


def test_a_second_time_scale_trains_on_the_latents_of_the_first(finished, episodes, monkeypatch, tmp_path):
    """Its steps are longer, its state is that of the first model, and its config has the range of macro-actions."""
    longer = ["world_model.frame_skip=4", "world_model.macro_action_dim=2", "frames_per_window=2", "horizons=[1]"]
    longer += ["world_model.rollout_steps=1", f"cache_dir={finished.parent / 'latents'}"]
    run_train_world_model(monkeypatch, episodes, tmp_path, f"state_of={finished / 'final'}", *longer)
    first, second = (VJepa2WorldModel.from_pretrained(folder / "final") for folder in (finished, tmp_path))
    assert torch.equal(first.state_mean, second.state_mean) and torch.equal(first.state_scale, second.state_scale)
    assert second.config.action_dim == 8 and second.macro_model().config.action_dim == 2
    low, high = map(torch.tensor, (second.config.macro_action_low, second.config.macro_action_high))
    assert (low >= -1).all() and (low < high).all() and (high <= 1).all()
