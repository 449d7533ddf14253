"""Shortest paths around walls: against a fine grid, and known lengths."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from vjepa2_hf import environments
from vjepa2_hf.environments import FOUR_ROOMS, PUSHING, TWO_ROOMS


def grid_distance(env: environments.PlaneEnv, starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Shortest paths on a grid of half a pixel with moves in 32 directions, which are up to 1 % too long."""
    size = 128
    x, y = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    cells = np.stack([x, y], axis=-1).reshape(-1, 2)
    free = env.is_clear(cells).reshape(size, size)
    moves = {(a, b) for a in range(-4, 5) for b in range(-4, 5) if np.gcd(a, b) == 1}
    number, edges = np.arange(size * size).reshape(size, size), []
    for right, down in moves:
        rows, columns = np.indices((size, size))
        there = (rows + down, columns + right)
        ok = free & (np.minimum(*there) >= 0) & (np.maximum(*there) < size)
        for part in range(1, 5):  # no move passes through a wall
            between = (
                rows[ok] + np.round(down * part / 4).astype(int),
                columns[ok] + np.round(right * part / 4).astype(int),
            )
            ok[ok] &= free[between]
        edges.append((number[ok], number[ok] + down * size + right, np.full(ok.sum(), np.hypot(right, down) / 2)))
    origin, target, lengths = map(np.concatenate, zip(*edges, strict=True))
    graph = csr_array((lengths, (origin, target)), shape=(size * size,) * 2)

    def cell(points: np.ndarray) -> np.ndarray:
        return np.argmin(np.where(free.ravel(), np.linalg.norm(points[:, None] - cells, axis=-1), np.inf), axis=1)

    return dijkstra(graph, indices=cell(starts))[np.arange(len(starts)), cell(goals)]


@pytest.mark.parametrize(("env_id", "radius"), [(TWO_ROOMS, 6.0), (TWO_ROOMS, 2.0), (FOUR_ROOMS, 4.0)])
def test_path_distances_are_those_of_a_fine_grid(env_id, radius):
    env, rng = environments.make_plain(env_id, agent_radius=radius), np.random.default_rng(0)
    starts, goals = env.sample_starts(rng, 40), env.sample_starts(rng, 40)
    found = env.path_distance(starts, goals)
    expected = grid_distance(env, starts[:, :2], goals[:, :2])
    straight = np.linalg.norm((starts - goals)[:, :2], axis=-1) * environments.IMAGE_SIZE
    assert (found >= straight - 1e-4).all() and (found > straight + 3).any()
    np.testing.assert_allclose(found, expected, rtol=0.03, atol=1.0)
    np.testing.assert_allclose(found, env.path_distance(goals, starts), atol=1e-6)
    moved = env.dynamics(starts, rng.uniform(-1, 1, (40, 2)))  # no step shortens a path by more than its length
    assert (found - env.path_distance(moved, goals) <= np.sqrt(2) * env.step_size * 64 + 0.5).all()


def test_path_distances_broadcast_over_candidates():
    env, rng = environments.make_plain(FOUR_ROOMS), np.random.default_rng(0)
    states = env.sample_starts(rng, 24).reshape(2, 3, 4, 6)
    goals = env.sample_starts(rng, 2)[:, None, None]
    found = env.path_distance(states, goals)
    assert found.shape == (2, 3, 4)
    assert found[1, 2, 3] == pytest.approx(env.path_distance(states[1, 2, 3], goals[1, 0, 0]))


def test_path_distance_of_pushing_is_the_blocks_or_the_whole_states():
    env = environments.make_plain(PUSHING)
    start, goal = np.float32([[0.2, 0.2, 0.5, 0.5], [0.2, 0.3, 0.5, 0.6]])
    assert env.path_distance(start, goal) == pytest.approx(6.4, rel=1e-4)
    assert env.path_distance(start, goal) == pytest.approx(env.distance_px(start, goal))
    assert env.path_distance(start, goal, whole_state=True) == pytest.approx(6.4 * np.sqrt(2), rel=1e-4)


def test_the_agent_follows_the_next_points_to_its_goal():
    env = environments.make_plain(FOUR_ROOMS)
    start, goal = env.sample_task(2)  # three doors
    state, steps = start, 0
    while env.path_distance(state, goal) > 1 and steps < 80:
        offset = env.paths.next_points(state[:2], goal[:2]) - state[:2]
        state, steps = env.dynamics(state, offset / max(np.linalg.norm(offset), env.step_size)), steps + 1
    assert steps <= 1.1 * env.path_distance(start, goal) / (64 * env.step_size) + 2
