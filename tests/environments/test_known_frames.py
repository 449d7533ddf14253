"""Known frames: from an environment, from episodes, and as many as the time allows."""

import numpy as np
import pytest
from builders import build_planner
from record_episodes import episode_features

from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.environments import TWO_ROOMS, make_plain
from vjepa2_hf.environments.known_frames import ENCODED_AT_ONCE, make_imagery, read_frames, sample_frames


@pytest.fixture(scope="module")
def planner():
    return build_planner(options={"device": "cpu"})


def test_sampled_frames_show_their_states():
    env = make_plain(TWO_ROOMS)
    frames, states = sample_frames(env, 5, seed=1)
    np.testing.assert_array_equal(frames[3], env.render_state(states[3]))
    assert frames.shape == (5, 64, 64, 3) and len(np.unique(states, axis=0)) == 5


def test_frames_of_episodes_keep_their_states(tmp_path):
    env, rng = make_plain(TWO_ROOMS), np.random.default_rng(0)
    rows = []
    for number in range(3):
        states = env.sample_starts(rng, 4)
        frames = np.stack([env.render_state(state) for state in states])
        video = {"bytes": encode_video(frames, fps=10, crf=0), "path": None}
        columns = {"states": states.tolist(), "proprio_states": states.tolist()}
        rows.append({"video": video, "actions": [[0.0, 0.0]] * 3, "fps": 10.0, "episode_id": f"{number}", **columns})
    write_shards(rows, tmp_path / "data", episode_features(["proprio_states", "states"]), num_shards=1)
    frames, states = read_frames(str(tmp_path / "data"), count=80)
    assert len(frames) == len(states) == 6  # the first and the last of each episode
    difference = np.stack([env.render_state(state) for state in states]).astype(int) - frames
    assert np.abs(difference).mean() < 3  # lossless but for colors at half resolution


def test_one_batch_is_encoded_whatever_the_time(planner):
    frames, states = sample_frames(make_plain(TWO_ROOMS), 2 * ENCODED_AT_ONCE)
    imagery = make_imagery(planner, frames, states, seconds=0.0)
    assert len(imagery.latents) == len(imagery.frames) == ENCODED_AT_ONCE
    assert len(make_imagery(planner, frames, states, seconds=60.0).latents) == 2 * ENCODED_AT_ONCE
