"""World models of several cameras and robots: what training reads, what it saves, exact resume, and a robot that is
added to a finished model."""

import json
from pathlib import Path

import evaluate_world_model
import numpy as np
import PIL.Image
import pytest
import torch
import train_decoder
import train_world_model
from builders import FIXTURES
from datasets import Features, List, Value
from script_runs import TINY_WORLD_MODEL, run_processes, run_script, run_train_world_model

from vjepa2_hf import VJepa2VideoProcessor, VJepa2WorldModel
from vjepa2_hf.data.cameras import video_features, video_row
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.feature_cache import FeatureCache
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.modeling_embodiments import STATE_STATISTICS
from vjepa2_hf.training.run import Run, read_metrics
from vjepa2_hf.visualization.rollout_windows import cut_windows


NUMBERS = List(List(Value("float32")))
VIEWS = ["front", "wrist"]


def write_robot(folder: Path, action_dim: int, state_dim: int = 0, lacking: int | None = None) -> Path:
    """Six episodes of 9 frames of noise from two cameras of different sizes. The actions are uniform within ±1, those
    of the second dimension within 9 and 11. The episode `lacking` has no wrist camera."""
    rng = np.random.default_rng(action_dim)

    def rows():
        for number in range(6):
            sizes = {"front": (32, 32), "wrist": (48, 64)}
            frames = {name: rng.integers(0, 256, (9, *size, 3), dtype=np.uint8) for name, size in sizes.items()}
            videos = {name: {"bytes": encode_video(each, fps=10), "path": None} for name, each in frames.items()}
            row = {**video_row(videos), "actions": rng.uniform(-1, 1, (8, action_dim)).astype(np.float32)}
            row["actions"][:, 1] += 10
            if number == lacking:
                row["video_wrist"] = None
            if state_dim:
                row["proprio_states"] = rng.uniform(0, 1, (9, state_dim)).astype(np.float32)
            yield {**row, "fps": 10.0, "episode_id": f"{number:03d}"}

    columns = {"actions": NUMBERS, **({"proprio_states": NUMBERS} if state_dim else {})}
    columns |= {"fps": Value("float32"), "episode_id": Value("string")}
    write_shards(rows(), folder, Features({**video_features(next(rows())), **columns}), num_shards=2)
    return folder


@pytest.fixture(scope="module")
def robots(tmp_path_factory) -> list[Path]:
    """With actions and states of 2 and 2, 3 and none, and 4 and 1 numbers."""
    folder = tmp_path_factory.mktemp("robots")
    return [write_robot(folder / f"robot{size}", size, states) for size, states in ((2, 2), (3, 0), (4, 1))]


def sources(*robots: Path, camera: str = "[front, wrist]", first: int = 0) -> str:
    """The setting `data`, each robot with an id."""
    each = (f"{{path: {path}, camera: {camera}, embodiment: {number}}}" for number, path in enumerate(robots, first))
    return f"data=[{', '.join(each)}]"


@pytest.fixture(scope="module")
def finished(robots, tmp_path_factory) -> Path:
    """A model of two views and two robots."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run_train_world_model(patch, robots[0], output_dir, sources(*robots[:2]), "use_proprio=true")
    return output_dir


class TestViews:
    def test_latents_of_all_views_are_cached_and_the_model_names_them(self, monkeypatch, robots, tmp_path):
        run_train_world_model(monkeypatch, robots[0], tmp_path / "run", sources(robots[0]))
        model = VJepa2WorldModel.from_pretrained(tmp_path / "run/final").eval()
        assert (model.config.num_views, model.config.view_names, model.config.num_embodiments) == (2, VIEWS, 1)
        assert model.config.state_fitted
        folder = next((tmp_path / "latents").glob("robot2-*/index.json")).parent
        cache = FeatureCache(folder)
        windows = cache.windows(torch.tensor([3]), torch.tensor([0]), 9)
        processor = VJepa2VideoProcessor.from_pretrained(tmp_path / "run/final")
        (episode,) = read_episodes(robots[0], camera=VIEWS, wanted=lambda name: name == cache.ids[3])
        views = [processor(view, return_tensors="pt")["pixel_values_videos"] for view in episode["frames"].values()]
        expected = model.encode(torch.stack(views, dim=2))  # (1, T, V, C, H, W)
        torch.testing.assert_close(model.standardize(windows["latents"]), expected, atol=1e-5, rtol=1e-5)
        assert expected.shape[2] == 2 * model.tokens_per_view
        rows = json.loads((tmp_path / "run/rollout_error.json").read_text())
        assert all(row["error"] > 0 for row in rows)

    def test_one_camera_of_several_is_named_too(self, monkeypatch, robots, tmp_path):
        run_train_world_model(monkeypatch, robots[0], tmp_path / "run", sources(robots[0], camera="wrist"))
        config = VJepa2WorldModel.from_pretrained(tmp_path / "run/final").config
        assert (config.num_views, config.view_names) == (1, ["wrist"])

    def test_an_encoder_is_trained_on_all_views(self, monkeypatch, robots, tmp_path):
        more = ["world_model.freeze_encoder=false", "max_steps=2", "fit_state=false"]
        metrics = run_train_world_model(monkeypatch, robots[0], tmp_path / "run", sources(robots[0]), *more)
        assert len(metrics) == 2 and np.isfinite(metrics[-1]["loss"])

    def test_an_episode_without_a_camera_is_in_the_list_of_the_run(self, monkeypatch, tmp_path):
        folder = write_robot(tmp_path / "robot", 2, lacking=3)
        run_train_world_model(monkeypatch, folder, tmp_path / "run", sources(folder), "max_steps=1")
        (entry,) = map(json.loads, (tmp_path / "run/skipped.jsonl").read_text().splitlines())
        reason = "it has no video of the camera 'wrist'"
        assert entry == {"step": 0, "source": str(folder), "name": "003", "reason": reason}

    def test_a_lerobot_dataset_of_two_cameras_is_read_without_conversion(self, monkeypatch, tmp_path):
        """Its cameras differ in size and rate, and one episode lacks the second one."""
        data = f"data=[{{path: {FIXTURES / 'lerobot_v3_cameras'}, camera: [front, wrist]}}]"
        run_train_world_model(monkeypatch, FIXTURES, tmp_path / "run", data, "horizons=[1]")
        assert VJepa2WorldModel.from_pretrained(tmp_path / "run/final").config.view_names == VIEWS
        entry = json.loads((tmp_path / "run/skipped.jsonl").read_text())
        assert entry["name"] == "episode_000001" and "no video of the camera" in entry["reason"]

    def test_sources_of_different_numbers_of_cameras_are_refused(self, monkeypatch, robots, tmp_path, capsys):
        data = f"data=[{{path: {robots[0]}, camera: [front, wrist]}}, {{path: {robots[1]}, camera: front}}]"
        with pytest.raises(SystemExit):
            run_train_world_model(monkeypatch, robots[0], tmp_path / "run", data)
        assert "different numbers of cameras (2 of" in capsys.readouterr().err


def test_all_levels_of_an_encoder_are_cached(monkeypatch, robots, tmp_path):
    levels = ["encoder_config.num_hidden_layers=2", "encoder_config.output_levels=[0, 1]"]
    data = f"data={robots[0]}"
    run_train_world_model(monkeypatch, robots[0], tmp_path / "last", data, *levels, "max_steps=1")
    levels.append("world_model.state_levels=all")
    run_train_world_model(monkeypatch, robots[0], tmp_path / "all", data, *levels, "max_steps=1")
    widths = [VJepa2WorldModel.from_pretrained(tmp_path / name / "final").latent_size for name in ("last", "all")]
    assert widths == [16, 32]
    folders = [index.parent for index in (tmp_path / "latents").glob("robot2-*/index.json")]
    found = [FeatureCache(folder).windows(torch.tensor([0]), torch.tensor([0]), 1)["latents"] for folder in folders]
    assert sorted(latents.shape[-1] for latents in found) == [16, 32]


class TestEmbodiments:
    def test_states_of_a_source_may_be_left_out(self, robots, monkeypatch, tmp_path, capsys):
        data = f"data=[{{path: {robots[0]}, proprio: false}}, {{path: {robots[2]}, embodiment: 1}}]"
        run_train_world_model(monkeypatch, robots[0], tmp_path / "run", data, "use_proprio=true")
        config = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final").config
        assert (config.embodiment_proprio_dims, config.proprio_mean[0], len(config.proprio_mean[1])) == (
            [0, 1],
            None,
            1,
        )
        model = VJepa2WorldModel.from_pretrained(tmp_path / "run" / "final").eval()
        processor = VJepa2VideoProcessor.from_pretrained(tmp_path / "run" / "final")
        episodes = [next(read_episodes(robot, 2)) for robot in (robots[0], robots[2])]
        cut = [cut_windows(model, processor, one, 2, 1, 1, number) for number, one in enumerate(episodes)]
        assert cut[0].proprio_states is None and cut[1].proprio_states.shape[-1] == 1
        assert all(windows.rollout(model).shape[:2] == (1, 1) for windows in cut)
        data = f"data=[{{path: {robots[0]}, proprio: false}}]"
        with pytest.raises(SystemExit):
            run_train_world_model(monkeypatch, robots[0], tmp_path / "alone", data, "use_proprio=true")
        assert "the only robot: leave out use_proprio" in capsys.readouterr().err

    def test_each_robot_has_its_sizes_and_statistics(self, finished, robots):
        config = VJepa2WorldModel.from_pretrained(finished / "final").config
        assert (config.num_embodiments, config.action_dim, config.proprio_dim) == (2, 6, 2)  # frame_skip 2
        assert (config.embodiment_action_dims, config.embodiment_proprio_dims) == ([4, 6], [2, 0])
        assert [len(mean) for mean in config.action_mean] == [4, 6]
        statistics = json.loads((finished / "statistics.json").read_text())
        for number, robot in enumerate(robots[:2]):
            actions = [one["actions"] for one in read_episodes(robot) if one["episode_id"] not in ("000", "005")]
            mean, std = np.concatenate(actions).mean(0), np.concatenate(actions).std(0)
            assert config.action_mean[number] == pytest.approx([*mean, *mean], abs=1e-6)
            assert config.action_std[number] == pytest.approx([*std, *std], abs=1e-6)
            assert config.action_low[number][1] > 8.9 and statistics["actions"][number]["mean"][1] > 9
        assert statistics["proprio_states"][1] is None and config.proprio_mean[1] is None

    def test_the_dynamics_sees_the_states_of_each_robot_in_its_own_units(self, finished, robots):
        model = VJepa2WorldModel.from_pretrained(finished / "final").eval()
        folders = [next((finished.parent / "latents").glob(f"robot{size}-*/index.json")).parent for size in (2, 3)]
        for number, cache in enumerate(map(FeatureCache, folders)):
            kept = [row for row, name in enumerate(cache.ids) if name not in ("000", "005")]  # training episodes
            windows = cache.windows(torch.tensor(kept), torch.zeros(len(kept), dtype=torch.long), 9)
            latents = model.standardize(windows["latents"].float())
            moved = (latents[:, 2:] - latents[:, :-2]).square().mean().sqrt()  # frame_skip 2
            latents = latents.flatten(0, 1)
            mean, scale, change = (getattr(model.predictor.embodiments, name)[number] for name in STATE_STATISTICS)
            torch.testing.assert_close(change, moved, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(mean, latents.mean(dim=0), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(scale, (latents - mean).square().mean().sqrt(), atol=1e-4, rtol=1e-4)

    def test_stopped_run_resumes_to_the_same_losses(self, monkeypatch, finished, robots, tmp_path):
        original, given = Run.check_finite, [sources(*robots[:2]), "use_proprio=true"]

        def stop(run, step, *numbers):
            if step == 5:
                raise KeyboardInterrupt
            return original(run, step, *numbers)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Run, "check_finite", stop)
            run_train_world_model(monkeypatch, robots[0], tmp_path / "run", *given)
        assert len(read_metrics(tmp_path / "run")) == 4
        run_train_world_model(monkeypatch, robots[0], tmp_path / "run", *given, "resume=latest")
        losses = [[row["loss"] for row in read_metrics(folder)] for folder in (finished, tmp_path / "run")]
        assert losses[0] == losses[1] and len(losses[0]) == 6

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("data=[{{path: {0}}}, {{path: {1}}}]", "sizes [2, 3]; one model needs one size, or an embodiment id"),
            ("data=[{{path: {0}}}, {{path: {1}, embodiment: 2}}]", "[0, 2], without 1; expected ids from 0 without"),
        ],
    )
    def test_wrong_ids_are_one_sentence(self, monkeypatch, robots, tmp_path, capsys, data, message):
        with pytest.raises(SystemExit):
            run_train_world_model(monkeypatch, robots[0], tmp_path / "run", data.format(*robots))
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def rollout(model: VJepa2WorldModel, embodiment: int, sizes: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(embodiment)
    latents = torch.randn(2, 1, model.tokens_per_frame, model.latent_size, generator=generator)
    actions, states = (torch.randn(2, count, size, generator=generator) for count, size in zip((3, 1), sizes))
    given = {"proprio_states": states if sizes[1] else None, "embodiment_ids": embodiment}
    return model.rollout(latents, actions, **given)


class TestFromModel:
    def test_a_robot_is_added_and_all_else_stays(self, monkeypatch, finished, robots, tmp_path):
        run_further(monkeypatch, finished, sources(robots[2], first=2), tmp_path / "run", "train_only=embodiment")
        before = VJepa2WorldModel.from_pretrained(finished / "final").eval()
        after = VJepa2WorldModel.from_pretrained(tmp_path / "run/final").eval()
        assert after.config.num_embodiments == 3 and after.config.embodiment_action_dims == [4, 6, 8]
        scales = [model.predictor.embodiments.state_scale for model in (before, after)]
        assert torch.equal(scales[1][:2], scales[0]) and scales[1][2] not in (1, *scales[0])
        with torch.no_grad():
            for number, sizes in enumerate(((4, 2), (6, 0))):
                assert torch.equal(rollout(before, number, sizes), rollout(after, number, sizes))
            assert torch.isfinite(rollout(after, 2, (8, 1))).all()
        losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
        assert losses[-1] != losses[0]  # its projections are trained
        again = tmp_path / "again"  # resumes exactly
        original = Run.check_finite

        def stop(run, step, *numbers):
            if step == 5:
                raise KeyboardInterrupt
            return original(run, step, *numbers)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Run, "check_finite", stop)
            run_further(monkeypatch, finished, sources(robots[2], first=2), again, "train_only=embodiment")
        more = ["train_only=embodiment", "resume=latest"]
        run_further(monkeypatch, finished, sources(robots[2], first=2), again, *more)
        assert [row["loss"] for row in read_metrics(again)] == losses

    def test_a_known_robot_is_trained_further(self, monkeypatch, finished, robots, tmp_path):
        run_further(monkeypatch, finished, sources(robots[1], first=1), tmp_path / "run")
        before = VJepa2WorldModel.from_pretrained(finished / "final")
        after = VJepa2WorldModel.from_pretrained(tmp_path / "run/final")
        assert after.config.action_mean == before.config.action_mean
        encoders = (model.encoder.state_dict() for model in (before, after))
        assert all(torch.equal(one, other) for one, other in zip(*(each.values() for each in encoders), strict=True))

    @pytest.mark.parametrize(
        ("first", "more", "message"),
        [
            (
                0,
                ["train_only=embodiment"],
                "The actions of embodiment 0 have 8 numbers in a model step, but the model's",
            ),
            (
                3,
                [],
                "embodiments of data are [3], without 2; expected ids from 0 without gaps, or of the 2 known ones",
            ),
            (2, ["world_model.context_frames=2"], "world_model.context_frames is set, but from_model="),
            (0, ["new_embodiment.name=x"], "give the new robot's source embodiment: 2"),
            (2, ["new_embodiment.nam=x"], "did you mean 'new_embodiment.name'?"),
            (2, ["encoder=random"], "either encoder, for a new world model, or from_model"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(
        self, monkeypatch, finished, robots, tmp_path, capsys, first, more, message
    ):
        with pytest.raises(SystemExit):
            run_further(monkeypatch, finished, sources(robots[2], first=first), tmp_path / "run", *more)
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_two_processes_train_as_one(monkeypatch, finished, robots, tmp_path):
    given = [*TINY_WORLD_MODEL, sources(*robots[:2]), "use_proprio=true", "batch_size=2"]
    run_processes(Path(train_world_model.__file__), [f"output_dir={tmp_path / 'two/run'}", *given])
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (finished, tmp_path / "two/run")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    run_further(monkeypatch, finished, sources(robots[2], first=2), tmp_path / "one/further", "train_only=embodiment")
    arguments = further(finished, sources(robots[2], first=2), tmp_path / "two/further")
    run_processes(Path(train_world_model.__file__), [*arguments, "train_only=embodiment", "batch_size=2"])
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "further")] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def run_further(monkeypatch, finished: Path, data: str, output_dir: Path, *more: str) -> None:
    run_script(monkeypatch, train_world_model, [*further(finished, data, output_dir), *more])


def further(finished: Path, data: str, output_dir: Path) -> list[str]:
    """Settings of a short run on a finished model."""
    steps = ["max_steps=6", "batch_size=4", "log_every=1", "save_every=3", "frames_per_window=3", "horizons=[1, 2]"]
    settings = [f"from_model={finished / 'final'}", data, f"output_dir={output_dir}"]
    return [*settings, *steps, "num_threads=1", "validation_fraction=0.4"]


def image_size(path: Path) -> tuple[int, int]:
    with PIL.Image.open(path) as image:
        return image.size


class TestEvaluation:
    def test_images_of_all_views_are_side_by_side(self, monkeypatch, finished, robots, tmp_path):
        sizes = "decoder={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
        given = [f"world_model={finished / 'final'}", f"data={robots[0]}", f"output_dir={tmp_path / 'decoder'}", sizes]
        steps = ["max_steps=2", "batch_size=4", "num_threads=1", "validation_fraction=0.4", "frames_per_episode=3"]
        run_script(monkeypatch, train_decoder, [*given, *steps])
        # 6 frames of two views: true, decoded
        assert image_size(tmp_path / "decoder/reconstruction.png") == (6 * (2 * 32 + 2) + 2, 2 * (32 + 2) + 2)
        output = tmp_path / "evaluation.json"
        given = [f"model={finished / 'final'}", f"data={robots[0]}", f"output={output}", "horizons=[1, 2]"]
        given += ["embodiment=0", f"decoder={tmp_path / 'decoder/final'}", "object_colors={square: [200, 0, 0]}"]
        run_script(monkeypatch, evaluate_world_model, given)
        # The present and two horizons, of two episodes
        assert image_size(output.with_suffix(".png")) == (3 * (2 * 32 + 2) + 2, 2 * 3 * (32 + 2) + 2)
        assert "square_not_seen" in json.loads(output.read_text())["horizons"][0]

    def test_two_views_of_two_robots_are_measured(self, monkeypatch, finished, robots, tmp_path):
        output = tmp_path / "evaluation.json"
        given = [f"model={finished / 'final'}", f"data={robots[1]}", f"output={output}", "horizons=[1, 2]"]
        run_script(monkeypatch, evaluate_world_model, [*given, "embodiment=1"])
        rows = json.loads(output.read_text())["horizons"]
        assert [row["horizon"] for row in rows] == [1, 2] and all(row["error"] > 0 for row in rows)
        again = tmp_path / "again.json"  # the same cameras by name
        named = [given[0], given[1], f"output={again}", given[3], "camera=[front, wrist]", "embodiment=1"]
        run_script(monkeypatch, evaluate_world_model, named)
        assert json.loads(again.read_text())["horizons"] == rows

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["embodiment=1", "camera=front"], "The world model sees 2 views, but camera names 1 (front)"),
            ([], "embodiment is missing; expected one of 0, 1"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(self, monkeypatch, finished, robots, tmp_path, capsys, more, message):
        given = [f"model={finished / 'final'}", f"data={robots[1]}", f"output={tmp_path / 'evaluation.json'}"]
        with pytest.raises(SystemExit):
            run_script(monkeypatch, evaluate_world_model, [*given, *more])
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
