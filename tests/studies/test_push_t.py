"""The study of Push-T: its networks on states of known dynamics, plans from them, and its table; without gym-pusht."""

import json

import numpy as np
import push_t
import pytest
import study
import torch


@pytest.fixture(scope="module")
def recorded() -> push_t.Recorded:
    """Episodes in which the agent moves by 20 pixels times the action and the T never does."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(64, 30, 2, generator=generator) * 2 - 1
    states = torch.rand(64, 1, 5, generator=generator).mul(100).add(200).repeat(1, 31, 1)
    states[..., 4] = torch.rand(64, 1, generator=generator) * 6
    states[:, 1:, :2] += 20 * actions.cumsum(dim=1)
    return push_t.Recorded(states, actions, [])


@pytest.fixture(scope="module")
def dynamics(recorded) -> push_t.StateDynamics:
    return push_t.learn_dynamics(recorded.states, recorded.actions, steps=120, seed=0)


def test_dynamics_predict_what_actions_do(dynamics, recorded):
    found = push_t.measure_dynamics(dynamics, recorded)
    for frames in (5, 25):
        moved = found[f"the present state, {frames} frames later"]["agent, pixels"]
        assert found[f"dynamics of the true state, {frames} frames ahead"]["agent, pixels"] < moved / 3


def test_the_agent_seen_from_the_t_does_not_change_when_both_turn():
    state, angle = torch.tensor([[300.0, 220.0, 250.0, 200.0, 0.5]]), torch.tensor(1.1)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    turned = state.clone()
    turned[:, :2] = (state[:, :2] - state[:, 2:4]) @ turn.T + state[:, 2:4]
    turned[:, 4] += angle
    assert torch.allclose(push_t.features(state)[:, -2:], push_t.features(turned)[:, -2:], atol=1e-5)


def test_angles_are_read_and_compared_the_short_way_around():
    states = torch.tensor([[200.0, 210.0, 220.0, 230.0, angle] for angle in (3.1, -3.1, 0.0)])
    reader = push_t.StateReader(states, states)
    exact = (reader.targets(states) - reader.bias) / reader.scale
    reader.read = torch.nn.Identity()
    reader.mean, reader.std = 0.0, 1.0  # the inputs are what a network would give
    assert torch.allclose(reader(exact), states, atol=1e-3)
    found = push_t.accuracy(states[:1], states[1:2])
    assert found["angle, degrees"] == pytest.approx(np.degrees(2 * np.pi - 6.2), abs=1e-3)


class OneTask:
    """One task as a plan sees it; the T is where it should be."""

    active, sources = np.array([True]), [{"seed": 7}]

    def __init__(self, agent: list[float], goal: list[float], steps_taken: int = 0):
        self.states, self.goal_states = (np.float32([[*position, 250, 250, 0.3]]) for position in (agent, goal))
        self.steps_taken = steps_taken

    def __len__(self) -> int:
        return 1


def test_plans_move_the_agent_to_its_goal(dynamics):
    tasks = OneTask([230, 230], [290, 260])
    actions = push_t.state_plan(dynamics, push_t.observe_true, seed=0)(tasks)[0]
    assert actions.shape == (25, 2) and np.abs(actions).max() <= 1
    path = 20 * actions.cumsum(axis=0)
    assert np.linalg.norm(path - [60, 30], axis=1).min() < 15  # it starts 67 pixels away


def test_errors_of_a_goal_are_those_of_its_task_and_the_present_has_new_ones():
    seen = [push_t.observe_true(OneTask([230, 230], [290, 260], steps), np.array([0]), 10.0) for steps in (0, 5)]
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[0][0], seen[1][0])
    exact, _ = push_t.observe_true(OneTask([230, 230], [290, 260]), np.array([0]))
    assert exact.tolist() == [[230, 230, 250, 250, pytest.approx(0.3)]]
    assert 0 < (seen[0][0] - exact).abs()[0, 4] < np.deg2rad(50)  # degrees, not pixels


def test_rows_and_accuracies_are_published_by_success(run_study, tmp_path):
    output = tmp_path / "runs"
    (output / "rows").mkdir(parents=True)
    (output / "readings").mkdir()
    for name, success in (("uniform random", 0.1), (push_t.TRUE, 0.7)):
        level = {"success": success, "low": success - 0.1, "high": success + 0.1}
        row = {"name": name, "episodes": 38, "levels": {"moderate": level, "strict": level | {"success": 0.05}}}
        study.write_json(output / "rows" / f"{study.slug(name)}.json", row)
    error = {"agent, pixels": 50.0, "T, pixels": 30.0, "angle, degrees": 44.0}
    reading = {"name": push_t.RAW, "episodes": {"240": error, "480": {**error, "T, pixels": 27.0}}}
    study.write_json(output / "readings" / "raw.json", reading)
    study.write_json(output / "dynamics.json", {"dynamics of the true state": error})
    study.write_json(output / "about.json", {"weights": "1", "data": "2", "training_episodes": 480})
    study.write_json(output / "manifest.json", {"tasks": {"": []}})
    text = run_study(push_t.STUDY, "--collect")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    first = f"| {push_t.TRUE} | 0.70 (0.60–0.80) | 0.05 (0.60–0.80) |"
    assert lines[1] == first and lines[2].startswith("| uniform random | 0.10")
    assert f"| {push_t.RAW} | 240 | 50.0 | 30.0 | 44.0 |" in lines and "480 training episodes, 38 tasks" in text
    assert json.loads((tmp_path / "manifests" / "results.json").read_text()) == {"tasks": {"": []}}
