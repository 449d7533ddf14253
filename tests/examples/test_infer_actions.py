"""infer_actions.py: actions of videos from few episodes, and what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import infer_actions
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import ROOT
from datasets import Features, List, Value, Video
from record_episodes import episode_features
from script_runs import run_train_world_model, write_noise_episodes

from vjepa2_hf.data.episodes import EpisodeSource, read_episodes
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training import inverse_dynamics
from vjepa2_hf.training.inverse_dynamics import InverseModel, InverseSettings, train_inverse_model
from vjepa2_hf.video_io import VideoReader


VIDEO = Features({"video": Video(decode=False)})


def moving_square(number: int) -> tuple[np.ndarray, np.ndarray]:
    """12 frames in which a square moves by the action, in pixels, on a background of its own; a third number says
    nothing."""
    rng = np.random.default_rng(number)
    actions = rng.integers(-3, 4, (11, 2)).astype(np.float32)
    places = np.clip(np.concatenate([[[12, 12]], 12 + actions.cumsum(0)]), 0, 24)
    frames = np.repeat(rng.integers(0, 120, (1, 32, 32, 3), dtype=np.uint8), 12, axis=0)
    for frame, (x, y) in zip(frames, places.astype(int)):
        frame[y : y + 8, x : x + 8] = 250
    return frames, np.diff(places, axis=0).astype(np.float32)


def write_squares(folder: Path, count: int, first: int = 0) -> Path:
    def rows():
        for number in range(first, first + count):
            frames, actions = moving_square(number)
            video = {"bytes": encode_video(frames, fps=10), "path": None}
            yield {"video": video, "actions": actions, "fps": 10.0, "episode_id": f"{number:03d}"}

    write_shards(rows(), folder, episode_features([]), num_shards=1)
    return folder


def test_actions_are_inferred_from_a_few_episodes_and_videos_stay_as_they_are(tmp_path, capsys):
    episodes, videos = write_squares(tmp_path / "episodes", 30), write_squares(tmp_path / "videos", 5, first=500)
    given = [episodes, videos, tmp_path / "out", "--size", "32", "--steps", "150", "--validation_fraction", "0.2"]
    infer_actions.main([*map(str, given), "--learning_rate", "5e-3"])
    known = json.loads((tmp_path / "out" / "inferred_actions.json").read_text())
    assert known["episodes"] + known["held_out"] == 30 and known["r_squared"] > 0.5
    assert f"{known['r_squared']:.2f}" in capsys.readouterr().out
    true, labeled = (list(read_episodes(folder)) for folder in (videos, tmp_path / "out"))
    assert [one["episode_id"] for one in labeled] == [one["episode_id"] for one in true]
    for one, other in zip(true, labeled, strict=True):
        assert np.array_equal(one["frames"], other["frames"]) and one["fps"] == other["fps"]
        assert one["actions"].shape == other["actions"].shape
    errors = np.concatenate([one["actions"] - other["actions"] for one, other in zip(true, labeled)])
    assert np.square(errors).mean() < 0.6 * np.square(np.concatenate([one["actions"] for one in true])).mean()


def test_labeled_videos_train_a_world_model(tmp_path, monkeypatch):
    episodes = write_noise_episodes(tmp_path / "episodes")
    frames = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    rows = [{"video": {"bytes": encode_video(frames, fps=10), "path": None}}] * 3
    rows += [{"video": {"bytes": encode_video(frames[:1], fps=10), "path": None}}]
    write_shards(rows, tmp_path / "videos", VIDEO, num_shards=1)
    infer_actions.main([str(tmp_path / name) for name in ("episodes", "videos", "out")] + ["--size=32", "--steps=2"])
    assert "one frame" in (tmp_path / "out" / "skipped.txt").read_text()
    actions = np.concatenate([one["actions"] for one in read_episodes(tmp_path / "out")])
    known = np.concatenate([one["actions"] for one in read_episodes(episodes)])
    assert (actions >= known.min(0)).all() and (actions <= known.max(0)).all()
    assert run_train_world_model(monkeypatch, tmp_path / "out", tmp_path / "run")


def test_the_same_seed_gives_the_same_model_and_what_is_at_rest_matters_little(tmp_path):
    settings = InverseSettings(steps=3, size=32)
    source = EpisodeSource(str(write_squares(tmp_path / "episodes", 4)))
    first, second = (train_inverse_model(source, settings, Accelerator())[0] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values()))
    pairs = torch.randint(0, 100, (2, 2, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(first(pairs), first(2 * pairs + 7), atol=1e-4)


def test_long_videos_are_labeled_in_parts_alike(monkeypatch):
    torch.manual_seed(0)
    model, frames = InverseModel(torch.randn(9, 2), 16), torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    whole = model.infer(frames)
    monkeypatch.setattr(inverse_dynamics, "LABELED_AT_ONCE", 3)
    assert whole.shape == (7, 2) and torch.allclose(model.infer(frames), whole, atol=1e-6)


def test_a_video_is_decoded_in_parts_to_the_same_actions(tmp_path, monkeypatch):
    """No more frames are in memory at once than a part has."""
    torch.manual_seed(0)
    model, processor = InverseModel(torch.randn(9, 2), 16), inverse_dynamics._processor_of(16)
    video, sizes, process = encode_video(moving_square(0)[0], fps=10), [], inverse_dynamics.process_frames
    with VideoReader(video) as reader:
        whole = model.infer(process(processor, reader.frames(), normalize=False))

    def watched(processor, frames, **how):
        sizes.append(len(frames))
        return process(processor, frames, **how)

    monkeypatch.setattr(inverse_dynamics, "process_frames", watched)
    monkeypatch.setattr(inverse_dynamics, "DECODED_AT_ONCE", 5)
    monkeypatch.setattr(VideoReader, "frames", lambda *given: pytest.fail("the video is decoded whole"))
    source, column = SimpleNamespace(limits=None), {"bytes": video, "path": None}
    row = inverse_dynamics._labeled("a", column, None, source, model, processor)
    assert sizes == [5, 5, 2] and np.array_equal(row["actions"], whole.numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--size", "40"], "size=40 is not a multiple of 16"),
        (["--seed", str(2**64)], "seed is 18446744073709551616; expected an integer from 0 to"),
        (["--max_episodes", "0"], "max_episodes must be at least 1"),
        (["--validation_fraction", "1"], "validation_fraction=1.0 holds out every episode (2 in all)"),
        (["--symmetries", "CartPole-v1"], "declares no symmetries"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(tmp_path, capsys, change, message):
    folder = write_squares(tmp_path / "episodes", 2)
    with pytest.raises(SystemExit):
        infer_actions.main([str(folder), str(folder), str(tmp_path / "out"), "--size", "32", *change])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_data_that_does_not_fit_ends_in_a_sentence_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inverse_dynamics, "_fit", lambda *given: pytest.fail("it trains"))
    folder = str(write_squares(tmp_path / "episodes", 2))
    one_hot = np.eye(3, dtype=np.float32)[np.arange(11) % 3]
    row = {
        "video": {"bytes": encode_video(moving_square(0)[0], fps=10), "path": None},
        "actions": one_hot,
        "fps": 10.0,
    }
    write_shards([row | {"episode_id": "a"}], tmp_path / "one_hot", episode_features([]))
    for given, message in (
        ([folder, folder, folder], "exists and is not empty"),
        ([folder, str(tmp_path), str(tmp_path / "out")], f"lies inside {str(tmp_path)!r}"),
        ([folder, str(tmp_path / "one_hot"), f"{folder}/more/out"], f"lies inside {folder!r}"),
        ([folder, str(tmp_path / "nowhere"), str(tmp_path / "out")], "nowhere"),
        ([str(tmp_path / "nowhere"), folder, str(tmp_path / "out")], "nowhere"),
        ([str(tmp_path / "one_hot"), folder, str(tmp_path / "out")], "one-hot categories"),
        ([folder, str(ROOT / "tests/fixtures/lerobot_v3"), str(tmp_path / "out")], "is a LeRobot dataset"),
    ):
        with pytest.raises(SystemExit):
            infer_actions.main([*given, "--size", "32"])
        assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"episodes", "one_hot"} and not Path(folder, "more").exists()


def one_video(number: int = 0, **columns) -> dict:
    return {"video": {"bytes": encode_video(moving_square(number)[0], fps=10), "path": None}, **columns}


def infer(tmp_path: Path, episodes: Path, *options: str) -> Path:
    """From the folder `videos` into `out`, which is returned; two steps."""
    given = [episodes, tmp_path / "videos", tmp_path / "out"]
    infer_actions.main([*map(str, given), "--size=16", "--steps=2", *options])
    return tmp_path / "out"


def test_unreadable_files_of_videos_are_listed_and_nothing_is_written_without_a_video(tmp_path, capsys):
    episodes, videos = write_squares(tmp_path / "episodes", 2), tmp_path / "videos"
    write_shards([one_video(), one_video()], videos, VIDEO)
    damaged, other = sorted(videos.glob("*.parquet"))
    damaged.write_bytes(b"PAR1")
    assert damaged.name in (infer(tmp_path, episodes) / "skipped.txt").read_text()
    shutil.rmtree(tmp_path / "out")
    other.write_bytes(b"PAR1")
    with pytest.raises(SystemExit):
        infer(tmp_path, episodes)
    assert "None of the 2 inputs is valid" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_two_videos_of_one_name_are_refused(tmp_path, capsys):
    episodes, features = write_squares(tmp_path / "episodes", 2), Features({**VIDEO, "episode_id": Value("string")})
    write_shards([one_video(episode_id="a"), one_video(episode_id="a")], tmp_path / "videos", features)
    with pytest.raises(SystemExit):
        infer(tmp_path, episodes)
    assert "Two episodes are called 'a'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_frame_rates_warn_and_impossible_ones_are_skipped(tmp_path, caplog):
    episodes, features = write_squares(tmp_path / "episodes", 2), Features({**VIDEO, "fps": Value("float32")})
    write_shards([one_video(fps=fps) for fps in (float("nan"), 10.0, 30.0)], tmp_path / "videos", features, 1)
    assert "row 0\tfps is nan" in (infer(tmp_path, episodes) / "skipped.txt").read_text()
    assert "the episodes have 10 frames per second, but videos have 30 to 30" in caplog.text


def test_of_several_cameras_the_named_one_is_labeled(tmp_path):
    features = (
        episode_features([]) | VIDEO | Features({"video_wrist": VIDEO["video"], "cameras": List(Value("string"))})
    )
    rows = []
    for number in range(2):
        frames, actions = moving_square(number)
        columns = {"video_wrist": one_video(7)["video"], "cameras": ["front", "wrist"], "actions": actions}
        rows.append(one_video(number, **columns, fps=10.0, episode_id=str(number)))
    write_shards(rows, tmp_path / "videos", Features(features))
    for options, number in (((), 0), (("--camera=wrist",), 7)):
        first = next(read_episodes(infer(tmp_path, tmp_path / "videos", *options)))
        expected = next(read_episodes(write_squares(tmp_path / f"squares-{number}", 1, first=number)))
        assert np.array_equal(first["frames"], expected["frames"])
        shutil.rmtree(tmp_path / "out")


def test_actions_that_never_change_have_no_score_and_say_why(tmp_path, capsys):
    rows = [one_video(each, actions=np.ones((11, 2)) / 2, fps=10.0, episode_id=str(each)) for each in range(3)]
    write_shards(rows, tmp_path / "videos", episode_features([]))
    infer(tmp_path, tmp_path / "videos")
    assert "The actions of the held-out episodes never change" in capsys.readouterr().out
