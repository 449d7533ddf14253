"""The scripted pusher on a T that lies still, without gym-pusht: `test_pusht.py` has it push."""

from types import SimpleNamespace

import numpy as np
import pytest

from vjepa2_hf.environments import pusht_policy
from vjepa2_hf.environments.pusht_policy import RelativePusher, ScriptedPusher


def play(seed: int, steps: int = 80, kind: type = ScriptedPusher) -> tuple[np.ndarray, np.ndarray, SimpleNamespace]:
    """Positions of the agent (steps, 2), the pusher's actions (steps, 2), and the environment."""
    rng = np.random.default_rng(seed)
    block = SimpleNamespace(position=rng.uniform(150, 350, 2), angle=rng.uniform(-3, 3))
    env, policy, positions, actions = SimpleNamespace(agent=None, block=block), kind(), [], []
    env.agent = SimpleNamespace(position=rng.uniform(50, 450, 2))
    for _ in range(steps):
        positions.append(np.array(env.agent.position))
        actions.append(policy(env, rng))
        offset = actions[-1] - positions[-1] if kind is ScriptedPusher else 100 * actions[-1]
        env.agent.position = positions[-1] + 0.4 * offset
    return np.array(positions), np.array(actions), env


def test_distances_are_to_the_outline_of_the_t():
    """Of points above the bar, beside the stem, in the notch and beyond the stem's end."""
    for point, expected in (((0, -20), 20), ((40, 100), 25), ((30, 50), 15), ((0, 150), 30), ((-75, 15), 15)):
        assert pusht_policy._outline_distance(np.array(point, float)) == pytest.approx(expected)


def test_normals_point_outward():
    middles = pusht_policy.CORNERS + pusht_policy.SIDES / 2
    solid = [(-60, 60, 0, 30), (-15, 15, 30, 120)]  # the bar and the stem
    for x, y in middles + pusht_policy.NORMALS:
        assert not any(left < x < right and top < y < bottom for left, right, top, bottom in solid)


@pytest.mark.parametrize("seed", range(4))
def test_the_pusher_pushes_at_many_points_within_the_field(seed):
    positions, actions, env = play(seed)
    assert actions.dtype == np.float32 and (actions >= 20).all() and (actions <= 492).all()
    distances = [pusht_policy._outline_distance(pusht_policy._to_local(env.block, point)) for point in positions]
    touched = positions[np.array(distances) < 15 + 5]
    assert len(touched) > 10
    angles = np.arctan2(*(touched - np.array(env.block.position)).T)
    assert np.abs(np.exp(1j * angles).mean()) < 0.9  # not on one side alone


def test_strokes_depend_on_the_generator_alone():
    np.testing.assert_array_equal(play(1)[1], play(1)[1])
    assert not np.array_equal(play(1)[1], play(2)[1])


def test_relative_actions_lead_to_the_same_targets():
    positions, actions, _ = play(1, 20)
    relative_positions, relative, _ = play(1, 20, RelativePusher)
    far = np.abs(actions - positions).max(axis=1) > 100  # clipped: other targets from then on
    count = int(np.argmax(far)) if far.any() else len(far)
    assert count > 5
    np.testing.assert_allclose(relative_positions[:count] + 100 * relative[:count], actions[:count], atol=1e-3)
    assert np.abs(relative).max() <= 1
