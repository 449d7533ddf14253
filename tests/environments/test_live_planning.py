"""A planner that is watched acts as one that is not, shows what it imagined, and an episode counts its steps."""

import threading

import numpy as np
import pytest
import torch
from builders import build_planner
from tqdm import tqdm

from vjepa2_hf.environments import PUSHING, TWO_ROOMS, make_plain
from vjepa2_hf.environments.closed_loop import policy_plan
from vjepa2_hf.environments.known_frames import make_imagery, sample_frames
from vjepa2_hf.environments.live_planning import (
    SHOWN,
    SQUARED,
    Episode,
    PlanSettings,
    WatchedPlanner,
    list_costs,
    list_solvers,
    make_task,
)
from vjepa2_hf.environments.planner_policy import PlannerPolicy
from vjepa2_hf.visualization.rollout_windows import encode_frames


FIELDS = {"action_dim": 4, "actions_per_step": 2, "frame_skip": 2, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}
SETTINGS = PlanSettings(num_candidates=12, num_iterations=2, horizon=3, cost=SQUARED)


@pytest.fixture(scope="module")
def planner():
    return build_planner(options={"device": "cpu", "num_candidates": 12}, **FIELDS)


@pytest.fixture(scope="module")
def imagery(planner):
    return make_imagery(planner, *sample_frames(make_plain(PUSHING), 40), make_plain(PUSHING).render_state)


def pushing_task():
    start, goal = make_plain(PUSHING).sample_task(0)
    return make_task(PUSHING, start, goal)


def test_a_watched_planner_takes_the_actions_of_an_unwatched_one(planner, imagery):
    episode = Episode("world model", pushing_task(), WatchedPlanner(planner, SETTINGS, imagery=imagery), 2)
    while episode.steps < 6:
        episode.advance()
    plain = build_planner(SETTINGS.build_solver(), options={"device": "cpu"}, **FIELDS)
    policy, tasks = PlannerPolicy(plain, 0, tqdm(disable=True), executed_actions=2), pushing_task()
    for _ in range(3):
        for action in policy(tasks)[0, :2]:
            tasks.step(action[None])
    np.testing.assert_array_equal(episode.tasks.states, tasks.states)


def test_the_view_holds_what_the_model_predicts(planner, imagery):
    watched = WatchedPlanner(planner, SETTINGS, imagery=imagery)
    tasks = pushing_task()
    watched(tasks)
    view = watched.view
    assert view.candidates.shape == (SHOWN, 3, 4) and view.images.shape == (3, 64, 64, 3)
    assert view.ends.shape == (SHOWN, 64, 64, 3) and view.path.shape == (4, 4) and view.paths.shape == (SHOWN, 4, 4)
    with torch.no_grad():
        latents = encode_frames(planner.model, planner.video_processor, tasks.render(), targets=False)[None]
        future = planner.model.rollout(latents, torch.from_numpy(view.candidates[None, 2:3]))
    assert view.paths[2, 1:] == pytest.approx(imagery.states(future[0, 0]), abs=1e-4)
    np.testing.assert_array_equal(imagery.images(future[0, 0, -1]), view.ends[2])
    found = watched.landscape(tasks.render()[0], tasks.goal_images[0], points=3)
    assert found["costs"].shape == (3, 3) and np.isfinite(found["costs"]).all()


def test_a_goal_is_encoded_once_until_it_changes(planner, monkeypatch):
    encode, counts = type(planner.model).encode_targets, []

    def counted(self, pixels, *views):
        counts.append(len(pixels))
        return encode(self, pixels, *views)

    monkeypatch.setattr(type(planner.model), "encode_targets", counted)
    watched, tasks = WatchedPlanner(planner, SETTINGS), pushing_task()
    image, goal = tasks.render()[0], tasks.goal_images[0].copy()
    for _ in range(2):
        watched.look(image, goal)
    watched.landscape(image, goal, points=3)
    assert counts == [1]
    expected = watched.view.plan["actions"]
    goal[:] = 0  # in place
    watched.plans -= 1  # the same seed
    assert (watched.look(image, goal).plan["actions"] != expected).any() and counts == [1, 1]


def test_without_imagery_there_are_only_plans(planner):
    view = WatchedPlanner(planner, SETTINGS).look(*pushing_task().render().repeat(2, axis=0))
    assert view.images is None and view.paths is None and len(view.candidates) == SHOWN


def test_proprio_states_reach_planner_imagination_and_landscape():
    planner = build_planner(proprio_dim=2, options={"device": "cpu"}, **FIELDS)
    watched = WatchedPlanner(planner, SETTINGS, imagery=make_imagery(planner, *sample_frames(make_plain(PUSHING), 20)))
    tasks = pushing_task()
    assert watched(tasks).shape == (1, 6, 2) and watched.view.images is not None
    given = watched.arguments(tasks)
    assert watched.landscape(tasks.render()[0], tasks.goal_images[0], 2, **given)["costs"].shape == (2, 2)


def test_the_lock_is_held_while_the_model_computes_and_free_after(planner):
    lock = threading.Lock()
    watched = WatchedPlanner(planner, SETTINGS, lock)
    plain, held = watched.solver.solver, []

    def observed(*arguments, **given):
        held.append(lock.locked())
        return plain(*arguments, **given)

    watched.solver.solver = observed
    watched(pushing_task())
    assert held == [True] and not lock.locked()
    watched.solver.solver = lambda *arguments, **given: 1 / 0
    with pytest.raises(ZeroDivisionError):
        watched(pushing_task())
    assert not lock.locked()


def test_an_episode_stops_at_its_goal_and_says_so():
    tasks = make_task(TWO_ROOMS, [0.2, 0.3], [0.2, 0.5])
    episode = Episode("south", tasks, lambda _: np.float32([[[0.0, 1.0]]]))
    assert "0 steps" in episode.outcome and "13 pixels" in episode.outcome
    episode.advance()
    assert episode.planning and episode.steps == 0
    episode.advance_step()
    assert (episode.steps, episode.planning, episode.ended) == (1, False, False)
    for _ in range(5):
        episode.advance_step()
    assert episode.reached and episode.steps == 2 and episode.outcome == "Reached the goal after 2 steps."


def test_an_episode_ends_with_its_last_step_or_before_its_first():
    away = Episode("north", make_task(TWO_ROOMS, [0.2, 0.3], [0.8, 0.9]), lambda _: np.float32([[[0.0, -1.0]]]))
    while not away.ended:
        away.advance_step()
    assert away.steps == 25 and "Did not reach the goal in 25 steps" in away.outcome
    there = Episode("uniform", make_task(TWO_ROOMS, [0.2, 0.3], [0.2, 0.3]), policy_plan("uniform"))
    assert there.ended and "already solves" in there.outcome


def test_choices_follow_the_model(planner):
    config = planner.model.config
    assert list_costs(config) == [SQUARED, "latent distance, absolute"] and "categorical_cem" not in list_solvers(
        config
    )
    learned = build_planner(distance_head=True, distance_embedding_size=4, distance_hidden_size=8, **FIELDS)
    assert len(list_costs(learned.model.config)) == 4
    for cost in list_costs(learned.model.config):
        watched = WatchedPlanner(learned, PlanSettings(num_candidates=4, num_iterations=1, horizon=1, cost=cost))
        assert np.isfinite(watched.look(*pushing_task().render().repeat(2, axis=0)).plan["cost"])
