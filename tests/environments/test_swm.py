"""Stable-worldmodel's TwoRoom through the scripts: recorded past its own end by a policy around its expert."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import record_episodes

from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.environments.gym_tasks import make_env


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
TWO_ROOM, POLICY = "stable_worldmodel:swm/TwoRoom-v1", "vjepa2_hf.environments.swm_policies:TwoRoomWaypoints"


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    pytest.importorskip("stable_worldmodel", reason="stable-worldmodel is not installed (the extra `swm`)")
    folder = tmp_path_factory.mktemp("swm") / "episodes"
    arguments = ["--env", TWO_ROOM, "--policy", POLICY, "--episodes", "4", "--length", "60", "--height", "64"]
    record_episodes.main([*arguments, "--ignore_termination", "--num_proc", "1", "--output", str(folder)])
    return folder


def test_waypoints_cross_the_door_and_go_far(episodes):
    states = [row["states"] for row in read_episodes(episodes)]
    assert all(one.shape == (61, 2) for one in states)  # none ends at the environment's own target
    assert any(len(np.unique(one[:, 0] > 112)) == 2 for one in states)  # both rooms, within an episode
    assert np.mean([np.linalg.norm(one[25:] - one[:-25], axis=1).mean() for one in states]) > 40


def test_an_episode_repeats_from_its_row(episodes):
    row = parquet.read_table(sorted(episodes.glob("*.parquet"))[0]).to_pylist()[0]
    env = make_env(TWO_ROOM)
    env.reset(seed=row["env_seed"], options=json.loads(row["reset_options"]) or None)
    for action, state in zip(row["actions"], row["states"][1:], strict=True):
        info = env.step(np.float32(action))[-1]
        np.testing.assert_array_equal(info["state"], np.float32(state))
