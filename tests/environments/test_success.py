"""Levels of success: distances, angles, steps held, the end of the episode, and both kinds of tasks."""

import numpy as np
import pytest

from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.closed_loop import drop_solved, join_results, policy_plan, run_closed_loop
from vjepa2_hf.environments.gym_tasks import GymTasks, GymTasksConfig
from vjepa2_hf.environments.success import SuccessLevel, SuccessTracker
from vjepa2_hf.environments.tasks import Tasks


def met(states, goals, **level) -> list[bool]:
    return SuccessLevel(**level).is_met(np.float32(states), np.float32(goals)).tolist()


def test_several_distances_must_all_be_small():
    states, goal = [[3, 4, 0, 0], [3, 0, 4, 0], [6, 0, 0, 0]], [[0, 0, 0, 0]]
    assert met(states, goal, distance=4, columns=[[0, 1], [2, 3]]) == [False, True, False]
    assert met(states, goal, distance=4) == [False, False, False]  # 5, 5 and 6 from all columns
    assert met(states, goal, distance=4, columns=[2, 3]) == [True, True, True]


def test_angles_are_compared_the_short_way_around():
    """20 degrees are 0.349 radians; 3.1 and -3.1 are 0.083 apart."""
    states, goals = [[0, 3.1], [0, 0.4], [0, 6.6]], [[0, -3.1], [0, 0], [0, 0.1]]
    assert met(states, goals, distance=1, angles=[1], degrees=20) == [True, False, True]
    assert met([[2, 0]], [[0, 0]], distance=1, angles=[-1], degrees=20) == [False]  # the position, without the angle


def reached(level: SuccessLevel, positions: list[float], **given) -> list[bool]:
    """Of one task that moves over these positions, start first, with its goal at 0."""
    tracker = SuccessTracker({"one": level}, np.float32([positions[:1]]), np.zeros((1, 1)))
    found = []
    for number, position in enumerate(positions[1:], 2):
        last = np.array([number == len(positions)])
        tracker.update(np.float32([[position]]), np.zeros((1, 1)), np.array([given.get("stepped", True)]), last)
        found.append(bool(tracker.first[0]))
    return found


def test_success_is_held_for_consecutive_steps_and_stays():
    assert reached(SuccessLevel(1), [9, 1, 9]) == [True, True]
    assert reached(SuccessLevel(1, hold=2), [9, 1, 9, 1, 1, 9]) == [False, False, False, True, True]
    assert reached(SuccessLevel(1, hold=2), [9, 1, 1], stepped=False) == [
        False,
        False,
    ]  # an environment that has ended
    assert reached(SuccessLevel(1, at_end=True), [9, 1, 9]) == [False, False]
    assert reached(SuccessLevel(1, at_end=True), [9, 9, 1]) == [False, True]
    assert reached(SuccessLevel(1), [0, 0, 0]) == [False, False]  # solved at its start


LEVELS = {
    "block": SuccessLevel(5),
    "whole": SuccessLevel(5, columns=[[0, 1], [2, 3]]),
    "end": SuccessLevel(5, at_end=True),
}


def test_block_only_is_todays_success_and_the_whole_state_is_harder():
    plan, seeds = policy_plan, range(20)
    plain = run_closed_loop(Tasks(PUSHING, seeds), plan("drawn_to_block"))
    tasks = Tasks(PUSHING, seeds, levels={"block": LEVELS["block"]})
    result = run_closed_loop(tasks, plan("drawn_to_block"))
    np.testing.assert_array_equal(result.success, plain.success)
    np.testing.assert_array_equal(result.steps, plain.steps)
    both = run_closed_loop(Tasks(PUSHING, seeds, levels=LEVELS), plan("drawn_to_block"))
    block, whole, end = (both.levels[name][0] for name in LEVELS)
    assert block.sum() > whole.sum() and (block | ~whole).all() and (block | ~end).all() and block.sum() > end.sum()
    np.testing.assert_array_equal(end, both.distances[:, -1] <= 5)


def test_acting_stops_when_every_level_is_reached():
    """Two levels: the first at 10 pixels, the second at 5; a jump to the goal stops the task there."""
    tasks = Tasks(PUSHING, [1, 2], levels={"near": SuccessLevel(10), "at": SuccessLevel(5)})
    tasks.goals = tasks.states.copy()
    tasks.goals[0, 2] += 8 / 64
    tasks.tracker.solved[:] = False
    still = np.zeros((2, 25, 2), np.float32)
    tasks.step(still[:, 0])
    assert tasks.levels["near"].tolist() == [True, True] and tasks.levels["at"].tolist() == [False, True]
    assert tasks.active.tolist() == [True, False] and tasks.reached.tolist() == [True, True]
    before = tasks.states.copy()
    tasks.step(np.ones((2, 2)))
    assert not np.array_equal(tasks.states[0], before[0]) and np.array_equal(tasks.states[1], before[1])


def test_foreign_environments_have_the_same_levels():
    """Our environment through the general road, in field units; results of groups are joined by level."""
    config = GymTasksConfig(
        env_kwargs={"terminate_on_success": False}, state=["state"], policy="drawn_to_block", distance_columns=[0, 1]
    )
    levels = {"near": SuccessLevel(0.3), "held": SuccessLevel(0.3, hold=3)}
    groups = [
        run_closed_loop(GymTasks(PUSHING, config, seeds, levels=levels), policy_plan("uniform"))
        for seeds in (range(6), range(6, 16))
    ]
    result = drop_solved(join_results(groups))
    near, held = result.levels["near"], result.levels["held"]
    np.testing.assert_array_equal(near[0], result.success)
    close = result.distances[:, 1:] <= 0.3
    np.testing.assert_array_equal(near[0], close.any(1))
    three = close[:, 2:] & close[:, 1:-1] & close[:, :-2]
    np.testing.assert_array_equal(held[0], three.any(1))
    assert 0 < held[0].sum() < near[0].sum()
    assert (held[1][held[0]] == three[held[0]].argmax(1) + 3).all() and (held[1][~held[0]] == -1).all()


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({"distance": 0}, "distance of a level of success is 0; expected"),
        ({"distance": 1, "hold": 0}, "hold of a level of success is 0"),
        ({"distance": 1, "angles": [2]}, r"angles \[2\] and degrees None: give both or none"),
        ({"distance": 1, "degrees": 20}, "give both or none"),
        ({"distance": 1, "columns": [[0], []]}, "expected at least one"),
        ({"distance": 1, "columns": []}, "expected at least one"),
        ({"distance": 1, "columns": [0, [1]]}, r"columns is \[0, \[1\]\]; expected a list"),
        ({"distance": 1, "columns": 3}, "columns is 3; expected a list"),
        ({"distance": 1, "angles": ["a"], "degrees": 3}, r"angles is \['a'\]; expected a list"),
        ({"distance": 1, "hold": 26}, "'one' must hold 26 steps, but tasks have 25"),
        ({"distance": 1, "columns": [4]}, r"judged by the columns \[4\], but the state has 4 numbers"),
    ],
)
def test_levels_that_do_not_fit_are_a_sentence(level, message):
    with pytest.raises(ValueError, match=message):
        Tasks(PUSHING, [0], levels={"one": SuccessLevel(**level)})


def test_levels_need_a_success_by_distance():
    config = GymTasksConfig(goal="info", success="info", state=["state"])
    with pytest.raises(ValueError, match="judge by distance, not by 'info'"):
        config.make_levels(LEVELS)
