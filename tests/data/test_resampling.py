"""Episodes at a lower rate: the frames of the right times, and actions that lead from each to the next."""

from pathlib import Path

import numpy as np
import pytest
import resample_episodes
import torch
from builders import numbered_frames, numbers_of
from datasets import Features, List, Value, Video

from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.resampling import kept_frames
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.pose import move_pose


NUMBERS = List(List(Value("float32")))
COLUMNS = {"video": Video(decode=False), "actions": NUMBERS, "proprio_states": NUMBERS, "states": NUMBERS}
FEATURES = Features(
    {**COLUMNS, "rewards": List(Value("float32")), "fps": Value("float32"), "episode_id": Value("string")}
)


def poses(count: int) -> np.ndarray:
    """An arm that moves and turns, far over the wrap of its angles; its gripper opens and closes."""
    t = np.arange(count)[:, None] / 15
    angles = (np.array([[0.4, 0.2, 2.5]]) * t + np.pi) % (2 * np.pi) - np.pi
    return np.concatenate([0.1 * t, 0.2 - t, 0 * t, angles, 0.5 + 0.5 * np.sin(3 * t)], axis=1).astype(np.float32)


def row(number: int, count: int, fps: float = 15.0, **changes) -> dict:
    steps = np.arange(count - 1, dtype=np.float32)
    return {
        "video": {"bytes": encode_video(numbered_frames(count), fps), "path": None},
        "actions": np.stack([steps, np.ones_like(steps)], axis=1),
        "proprio_states": poses(count),
        "states": np.arange(count, dtype=np.float32)[:, None],
        "rewards": steps,
        "fps": fps,
        "episode_id": f"e{number}",
        **changes,
    }


def resample(tmp_path, rows: list[dict], *options: str) -> list[dict]:
    write_shards(rows, tmp_path / "source", FEATURES, num_shards=1)
    resample_episodes.main([str(tmp_path / "source"), str(tmp_path / "out"), "--fps", "4", *options])
    return sorted(read_episodes(tmp_path / "out"), key=lambda episode: episode["episode_id"])


def test_kept_frames_are_those_nearest_to_the_times():
    assert kept_frames(20, 15, 4).tolist() == [0, 4, 8, 11, 15, 19]  # 0, 3.75, 7.5, 11.25, 15, 18.75
    assert kept_frames(19, 15, 4).tolist() == [0, 4, 8, 11, 15]  # 1.25 s were not shown
    assert kept_frames(9, 8, 4).tolist() == [0, 2, 4, 6, 8]
    assert kept_frames(4, 4.0001, 4).tolist() == [0, 1, 2, 3]
    assert kept_frames(10, 29.97, 29.97).tolist() == list(range(10))
    for source, fps in ((30, 4), (29.97, 4), (50, 12.5), (15, 7)):
        kept = kept_frames(300, source, fps)
        assert np.abs(kept / source - np.arange(len(kept)) / fps).max() <= 0.5 / source + 1e-9
        assert (299 - kept[-1]) / source < 1 / fps + 0.5 / source
    with pytest.raises(ValueError, match="it has 3 frames per second, but 4 were asked for: frames would repeat"):
        kept_frames(10, 3, 4)


def test_sums_means_and_last_actions(tmp_path):
    for how, first, second in (
        ("sum", [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9 + 10, 11 + 12 + 13 + 14], [4, 4, 3, 4]),
        ("mean", [1.5, 5.5, 9, 12.5], [1, 1, 1, 1]),
        ("last", [3, 7, 10, 14], [1, 1, 1, 1]),
    ):
        (found,) = resample(tmp_path / how, [row(0, 18)], "--actions", how)
        assert numbers_of(found["frames"]) == [0, 4, 8, 11, 15] and found["fps"] == 4
        assert found["states"][:, 0].tolist() == [0, 4, 8, 11, 15]
        assert found["actions"].T.tolist() == [first, second]
        assert found["rewards"].tolist() == [6, 22, 27, 50]


def test_all_cameras_are_resampled(tmp_path):
    source, out = Path(__file__).parents[1] / "fixtures/lerobot_v3_cameras", tmp_path / "out"
    options = ["--fps", "10", "--actions", "sum", "--camera", "front", "wrist", "--height", "32"]
    resample_episodes.main([str(source), str(out), *options])
    episodes = {episode["episode_id"]: episode for episode in read_episodes(out, camera=["front", "wrist"])}
    assert list(episodes) == ["episode_000000", "episode_000002", "episode_000003"]
    frames = episodes["episode_000002"]["frames"]
    assert frames["front"].shape == (4, 32, 32, 3) and frames["wrist"].shape == (4, 32, 40, 3)
    expected = 28 + 16 * np.array([0, 3, 6, 9])
    for view in frames.values():
        assert np.abs(view[..., 1].mean((1, 2)) - expected).max() < 5
    assert "episode_000001" in (out / "skipped.txt").read_text()


def test_pose_deltas_lead_from_each_pose_to_the_next(tmp_path):
    (found,) = resample(tmp_path, [row(0, 61)], "--actions", "pose_delta")
    states, actions = torch.from_numpy(found["proprio_states"]), torch.from_numpy(found["actions"])
    assert states.shape == (17, 7) and actions.shape == (16, 7)
    assert np.array_equal(found["proprio_states"], poses(61)[kept_frames(61, 15, 4)])
    reached = move_pose(states[:-1], actions)
    assert (reached[:, [0, 1, 2, 6]] - states[1:][:, [0, 1, 2, 6]]).abs().max() < 1e-6
    assert torch.sin((reached[:, 3:6] - states[1:, 3:6]) / 2).abs().max() < 1e-5
    assert actions[:, 3:6].abs().max() < 1  # across the wrap of an angle, too


def test_bad_episodes_are_listed_and_workers_change_nothing(tmp_path):
    bad = [
        row(1, 18, fps=2.0),
        row(2, 3),
        row(3, 18, proprio_states=np.zeros((17, 7))),
        row(4, 18, actions=np.full((17, 2), np.nan)),
        row(5, 18, rewards=None),
    ]
    rows = [row(0, 18), *bad, row(6, 18)]
    found = resample(tmp_path, rows, "--actions", "pose_delta", "--height", "8", "--num_proc", "2")
    assert [episode["episode_id"] for episode in found] == ["e0", "e6"] and found[0]["frames"].shape == (5, 8, 8, 3)
    listed = (tmp_path / "out" / "skipped.txt").read_text()
    for name, reason in (
        ("e1", "it has 2 frames per second, but 4"), ("e2", "it lasts 0.133 s, less than one step"),
        ("e3", "it has proprio_states of shape"), ("e4", "actions that are not finite"), ("e5", "it has the columns"),
    ):  # fmt: skip
        assert f"{name}\t{reason}" in listed or (name in listed and reason in listed)
    assert len(listed.splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actions", "pose_delta"], "its proprio states have 1 numbers, but a pose has 7"),
        (["--actions", "sum", "--fps", "nan"], "fps is nan, but a positive number"),
        (["--actions", "sum", "--num_shards", "0"], "--num_shards must be at least 1"),
        (["--actions", "sum", "--camera", "x"], "camera='x', but episode e0 has one camera without a name"),
        (["--actions", "sum", "--states_key", "x"], "columns={'proprio_states': ['x']} is for LeRobot datasets"),
    ],
)
def test_wrong_calls_are_one_sentence(tmp_path, capfd, options, message):
    with pytest.raises(SystemExit):
        resample(tmp_path, [row(0, 18, proprio_states=np.zeros((18, 1)))], *options)
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_lerobot_datasets_are_resampled_with_named_features(tmp_path):
    source = resample_episodes.__file__.replace("examples/resample_episodes.py", "tests/fixtures/lerobot_v3")
    features = ["--states_key", "observation.state", "frame_index", "--actions_key", "action"]
    resample_episodes.main(
        [source, str(tmp_path / "out"), "--fps", "15", "--actions", "sum", "--camera", "front", *features]
    )
    found = {episode["episode_id"]: episode for episode in read_episodes(tmp_path / "out")}
    assert len(found) == 4 and found["episode_000001"]["task"] == "push the block"
    assert found["episode_000002"]["proprio_states"].tolist() == [[2, t, t] for t in (0, 2, 4, 6, 8, 10)]
    assert found["episode_000002"]["actions"].tolist() == [[400 + 2 * t + 1, -2 * t - 1] for t in (0, 2, 4, 6, 8)]
