"""The synthetic arm episodes: a LeRobot dataset whose actions lead from state to state, with pictures of them."""

import make_arm_dataset
import numpy as np
import pytest
import torch
from datasets import load_dataset

from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.lerobot import open_lerobot
from vjepa2_hf.pose import move_pose


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm") / "dataset"
    make_arm_dataset.main([str(folder), "--episodes", "3", "--length", "12", "--size", "48"])
    return folder


def test_it_reads_as_a_lerobot_dataset(folder):
    dataset = open_lerobot(folder)
    assert dataset.cameras == ["observation.images.above"] and dataset.fps == 4
    episodes = list(read_episodes(folder))
    assert [episode["frames"].shape for episode in episodes] == [(12, 48, 48, 3)] * 3
    assert all(episode["actions"].shape == (11, 7) and episode["task"] for episode in episodes)


def test_its_frames_stream_with_datasets(folder):
    rows = load_dataset(str(folder), split="train", streaming=True)
    assert rows.features["action"].length == 7
    rows = list(rows)
    assert len(rows) == 3 * 12 and [row["frame_index"] for row in rows[:13]] == [*range(12), 0]


def test_frames_are_of_the_states_beside_them(folder):
    for episode in read_episodes(folder):
        for frame, state in zip(episode["frames"], episode["proprio_states"], strict=True):
            drawn = make_arm_dataset.render_frame(state, 48).astype(int)
            assert np.abs(drawn - frame).mean() < 3  # what the video codec changes


def test_actions_lead_from_state_to_state_within_the_limits(folder):
    for episode in read_episodes(folder):
        states, actions = (torch.from_numpy(episode[name]) for name in ("proprio_states", "actions"))
        torch.testing.assert_close(move_pose(states[:-1], actions), states[1:], atol=1e-6, rtol=0)
        assert actions[:, :3].abs().max() <= make_arm_dataset.MAX_STEP + 1e-6
        assert ((states[:, 6] >= 0) & (states[:, 6] <= 1)).all() and actions[:, 3:6].abs().max() > 0


@pytest.mark.parametrize("dim", range(7))
def test_every_number_of_a_state_shows_in_the_picture(dim):
    state = np.array([0.5, 0.0, 0.25, 0.1, 0.1, 0.3, 0.5], np.float32)
    changed = state.copy()
    changed[dim] += 0.3 if dim > 2 else 0.05
    pictures = [make_arm_dataset.render_frame(one, 64).astype(int) for one in (state, changed)]
    assert np.abs(pictures[0] - pictures[1]).max() > 20


def test_same_seed_same_episodes_and_another_seed_others(folder, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        arguments = [str(tmp_path / name), "--episodes", "3", "--length", "12", "--size", "48", "--seed", str(seed)]
        make_arm_dataset.main(arguments)
    first, same, other = (next(read_episodes(one)) for one in (folder, tmp_path / "same", tmp_path / "other"))
    assert (first["frames"] == same["frames"]).all() and (first["actions"] == same["actions"]).all()
    assert (first["actions"] != other["actions"]).any()


def test_a_folder_with_something_in_it_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        make_arm_dataset.main([str(folder), "--episodes", "1"])
    assert "exists and is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make_arm_dataset.main([str(folder.parent / "new"), "--length", "1"])
    assert "--length must be at least 2, got 1" in capsys.readouterr().err
