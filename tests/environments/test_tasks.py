"""Closed loops over many episodes: what counts, and how often policies and the oracle succeed in the frozen tasks."""

import numpy as np
import pytest

from vjepa2_hf import environments
from vjepa2_hf.environments import FOUR_ROOMS, PUSHING, TWO_ROOMS
from vjepa2_hf.environments.closed_loop import join_results, policy_plan, run_closed_loop, step_closed_loop
from vjepa2_hf.environments.success import SuccessLevel
from vjepa2_hf.environments.tasks import Tasks
from vjepa2_hf.environments.true_dynamics import oracle_plan


ENVIRONMENTS = (PUSHING, TWO_ROOMS, FOUR_ROOMS)


def test_closed_loop_counts_success_at_any_step():
    tasks = Tasks(TWO_ROOMS, [1, 3])
    tasks.states = np.array([[0.2, 0.3], [0.2, 0.3]], np.float32)
    tasks.goals = np.array([[0.2, 0.5], [0.8, 0.5]], np.float32)
    south = np.tile(np.array([0.0, 1.0], np.float32), (2, 3, 1))
    result = run_closed_loop(tasks, lambda _: south)
    assert result.success.tolist() == [True, False]
    assert result.states.shape == (2, 26, 2) and result.actions.shape == (2, 25, 2)
    assert result.distances[0, -1] > environments.SUCCESS_PIXELS  # it went past, and that counts


@pytest.mark.parametrize(
    ("env_id", "uniform", "data", "oracle"),
    [(PUSHING, 0.08, (0.25, 0.55), 0.98), (TWO_ROOMS, 0.18, (0.05, 0.28), 1.0)],
)
def test_policies_and_oracle_succeed_as_often_as_quoted(env_id, uniform, data, oracle):
    pytest.importorskip("torch")
    seeds = range(10_000, 10_050)  # not those of any evaluation

    def success(plan) -> float:
        return run_closed_loop(Tasks(env_id, seeds), plan).success.mean()

    assert success(policy_plan("uniform")) <= uniform
    assert data[0] <= success(policy_plan(environments.DATA_POLICY[env_id])) <= data[1]
    assert success(oracle_plan()) >= oracle


def test_the_oracle_reaches_goals_three_doors_away_and_whole_states():
    """The second needs the cost of the whole state: the block's alone leaves the pusher where it is."""
    rooms = Tasks(FOUR_ROOMS, [10_001, 10_004])
    assert run_closed_loop(rooms, oracle_plan(), executed_actions=4).success.all()
    levels = {"block": SuccessLevel(5.0), "whole": SuccessLevel(5.0, columns=[0, 1, 2, 3])}
    strict = run_closed_loop(Tasks(PUSHING, range(10_000, 10_012), levels=levels), oracle_plan())
    assert strict.levels["whole"][0].mean() >= 0.9
    states = run_closed_loop(Tasks(PUSHING, range(10_000, 10_012)), oracle_plan()).states
    goals = Tasks(PUSHING, range(10_000, 10_012)).goals
    assert (np.linalg.norm(states - goals[:, None], axis=-1).min(axis=1) * 64 <= 5.0).mean() <= 0.8


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_oracle_repeats_itself(env_id):
    tasks = Tasks(env_id, range(4))
    np.testing.assert_array_equal(oracle_plan(seed=1)(tasks), oracle_plan(seed=1)(tasks))


def test_steps_to_success_are_counted_from_the_first_action():
    tasks = Tasks(TWO_ROOMS, [1, 3])
    tasks.states = np.array([[0.2, 0.3], [0.2, 0.3]], np.float32)
    tasks.goals = np.array([[0.2, 0.5], [0.8, 0.5]], np.float32)
    result = run_closed_loop(tasks, lambda _: np.tile(np.float32([0.0, 1.0]), (2, 1, 1)))
    # 0.2 of the field less 5 pixels at 0.1 a step: the second action gets there
    assert result.steps.tolist() == [2, -1]
    assert result.frames is None


def test_pictures_are_kept_of_as_many_episodes_as_asked():
    tasks = Tasks(TWO_ROOMS, range(3))
    result = run_closed_loop(tasks, policy_plan("uniform"), kept_frames=2)
    assert result.frames.shape == (2, 26, 64, 64, 3)
    np.testing.assert_array_equal(result.frames[1, -1], tasks.render(np.array([1]))[0])


def test_results_of_groups_are_joined_in_order():
    groups = [run_closed_loop(Tasks(PUSHING, seeds), policy_plan("uniform")) for seeds in (range(2), range(2, 5))]
    joined = join_results(groups)
    assert joined.states.shape == (5, 26, 4) and joined.frames is None
    np.testing.assert_array_equal(joined.states[2:], groups[1].states)
    np.testing.assert_array_equal(joined.steps[:2], groups[0].steps)


def test_unknown_policy_of_the_frozen_tasks_is_a_sentence():
    with pytest.raises(ValueError, match="'unifrom'.*did you mean 'uniform'"):
        policy_plan("unifrom")(Tasks(PUSHING, range(1)))


def test_chosen_starts_and_goals_replace_those_of_the_seeds():
    starts, goals = np.float32([[0.2, 0.3], [0.8, 0.8]]), np.float32([[0.8, 0.5], [0.8, 0.2]])
    tasks = Tasks(TWO_ROOMS, [0, 1], chosen=(starts, goals))
    assert (tasks.states == starts).all() and (tasks.goals == goals).all()
    np.testing.assert_array_equal(tasks.goal_images[1], tasks.env.render_state(goals[1]))
    with pytest.raises(ValueError, match="impossible"):
        Tasks(TWO_ROOMS, [0], chosen=(np.float32([[0.5, 0.1]]), goals[:1]))  # in the wall


def test_a_watched_loop_tells_plans_from_steps():
    planned, tasks = np.arange(6, dtype=np.float32).reshape(1, 3, 2) / 10, Tasks(TWO_ROOMS, [1])
    events = step_closed_loop(tasks, lambda _: planned, executed_actions=2)
    seen = [next(events) for _ in range(4)]
    assert seen[0] is None and seen[3] is None
    assert seen[1].tolist() == planned[:, 0].tolist() and seen[2].tolist() == planned[:, 1].tolist()
    assert sum(event is not None for event in events) == tasks.max_steps - 2
