"""New videos of environments."""

import numpy as np
import pytest

from vjepa2_hf.environments import FOUR_ROOMS, PUSHING, TWO_ROOMS
from vjepa2_hf.environments.clips import record_clip


@pytest.mark.parametrize("env", [PUSHING, TWO_ROOMS, FOUR_ROOMS])
def test_clips_move_and_equal_seeds_give_equal_frames(env):
    frames = record_clip(env, 12, seed=3)
    assert frames.shape == (12, 64, 64, 3) and frames.dtype == np.uint8
    assert (np.abs(np.diff(frames.astype(int), axis=0)).max(axis=(1, 2, 3)) > 30).sum() >= 9
    assert np.array_equal(frames, record_clip(env, 12, seed=3))
    assert not np.array_equal(frames, record_clip(env, 12, seed=4))


def test_settings_of_the_recording_are_those_of_the_environment():
    settings = {"varied_appearance": True, "terminate_on_success": False}
    assert not np.array_equal(record_clip(PUSHING, 2, seed=1, **settings)[0], record_clip(PUSHING, 2, seed=1)[0])
