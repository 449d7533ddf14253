"""Tasks of any gymnasium environment: starts, goals and successes as the config says, and refusals in one sentence."""

import dataclasses

import gymnasium
import numpy as np
import pytest

from vjepa2_hf import environments
from vjepa2_hf.environments import PUSHING, TWO_ROOMS
from vjepa2_hf.environments.closed_loop import drop_solved, policy_plan, run_closed_loop
from vjepa2_hf.environments.gym_env import make_env
from vjepa2_hf.environments.gym_tasks import GymTasks, GymTasksConfig
from vjepa2_hf.environments.tasks import Tasks


OURS = {"env_kwargs": {"terminate_on_success": False}, "state": ["state"]}  # our environments as if they were foreign


class Counter(gymnasium.Env):
    """A number that its action moves, drawn as brightness; the episode ends at 1, and the picture of that is told."""

    metadata = {"render_modes": ["rgb_array"]}
    action_space = gymnasium.spaces.Box(-0.5, 0.5, (1, 1), np.float32)  # a shape that is no vector
    observation_space = gymnasium.spaces.Box(-1, 2, (1,), np.float32)
    resets = 0
    goal_image = np.full((16, 16, 3), 255, np.uint8)

    def __init__(self, render_mode=None, steady=True, tells_success=True):
        self.render_mode, self.steady, self.tells_success, self.value = render_mode, steady, tells_success, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        drawn = 0.2 * self.np_random.random()
        self.resets += 1
        self.value = float((options or {}).get("value", drawn if self.steady else self.resets / 10))
        return np.float32([self.value]), {"value": self.value}

    def step(self, action):
        assert action.shape == (1, 1) and np.abs(action).max() <= 0.5
        self.value += float(action.sum())
        info = {"value": self.value, "reading": 2 * self.value}
        done = self.value >= 1
        return np.float32([self.value]), 0.0, done, False, info | ({"is_success": done} if self.tells_success else {})

    def close(self):
        self.value = None

    def render(self):
        return np.full((16, 16, 3), np.clip(255 * self.value, 0, 255), np.uint8)


@pytest.fixture(autouse=True, scope="module")
def counter():
    gymnasium.register("test/Counter-v0", entry_point=Counter, max_episode_steps=6)
    yield
    del gymnasium.registry["test/Counter-v0"]


def upwards(tasks) -> np.ndarray:
    return np.full((len(tasks), 1, 1), 9.0)  # beyond the bounds, into which actions are brought


def test_goals_of_a_policy_lie_ahead_of_the_same_start():
    config = GymTasksConfig(**OURS, goal="policy", goal_steps=5, success_distance=0.05, min_goal_distance=0.1)
    tasks = GymTasks(TWO_ROOMS, config, range(3))
    assert tasks.goal_images.shape == (3, 64, 64, 3) and tasks.max_steps == 25 and tasks.action_dim == 2
    assert (tasks.distances >= 0.1).all()
    again = GymTasks(TWO_ROOMS, config, range(3))
    np.testing.assert_array_equal(tasks.goal_images, again.goal_images)
    np.testing.assert_array_equal(tasks.render(), again.render())  # the start, not the goal
    assert not np.array_equal(tasks.render(), tasks.goal_images)


def test_physics_is_that_of_the_environment():
    """Our own environment step by step as gymnasium runs it, beside the vectorised tasks."""
    config = GymTasksConfig(**OURS, success_distance=0.05)
    tasks, plain = GymTasks(PUSHING, config, range(2)), Tasks(PUSHING, range(2))
    plain.states = tasks.states
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 2, 2))
    for action in actions:
        tasks.step(action)
        plain.step(action)
    np.testing.assert_array_equal(tasks.states, plain.states)
    np.testing.assert_array_equal(tasks.render(np.array([1])), plain.render(np.array([1])))


def test_an_episode_that_comes_near_enough_succeeds_and_is_not_active_any_more():
    tasks = GymTasks(TWO_ROOMS, GymTasksConfig(**OURS, success_distance=0.05), range(2))
    tasks.goal_states[0] = tasks.states[0] + np.float32([0.0, 0.1])
    tasks.goal_states[1] = 5.0  # nowhere
    south = np.tile(np.float32([0.0, 1.0]), (2, 1, 1))
    result = run_closed_loop(tasks, lambda _: south)
    assert result.success.tolist() == [True, False] and result.steps.tolist() == [1, -1]
    assert result.distances.shape == (2, 26) and result.states.shape == (2, 26, 2)
    assert tasks.active.tolist() == [False, False]  # the second has used up its steps
    np.testing.assert_array_equal(result.states[0, 1], result.states[0, -1])  # it stands still


def test_success_is_what_the_environment_says_with_its_scores():
    config = GymTasksConfig(goal="info", success="info", scores=["reading"], state=["value"])
    result = run_closed_loop(GymTasks("test/Counter-v0", config, range(3)), upwards, executed_actions=1)
    assert result.success.all() and set(result.steps) <= {2}
    assert result.distances is None and result.states.shape == (3, 7, 1)
    assert np.isnan(result.scores["reading"][:, 0]).all() and (result.scores["reading"][:, -1] >= 2).all()


def test_an_end_counts_only_if_it_is_asked_for():
    ended = GymTasksConfig(goal="info", success="terminated", max_steps=3, env_kwargs={"tells_success": False})
    tasks = GymTasks("test/Counter-v0", ended, range(2))
    assert tasks.max_steps == 3
    assert run_closed_loop(tasks, upwards).success.all()
    silent = GymTasksConfig(goal="info", success="info", env_kwargs={"tells_success": False})
    with pytest.raises(ValueError, match="neither success nor is_success"):
        run_closed_loop(GymTasks("test/Counter-v0", silent, range(1)), upwards)


def test_a_goal_may_be_another_reset():
    config = GymTasksConfig(goal="reset", goal_options={"value": 1.0}, state=["value"], success_distance=0.25)
    tasks = GymTasks("test/Counter-v0", config, range(2))
    assert (tasks.goal_images == 255).all() and (tasks.distances > 0.7).all()


def test_each_task_may_have_its_own_goal_options():
    goals = [{"value": 0.5}, {"value": 1.0}]
    config = GymTasksConfig(goal="reset", goal_options=goals, state=["value"], success_distance=0.1)
    tasks = GymTasks("test/Counter-v0", config, range(3, 6))
    np.testing.assert_allclose(tasks.goal_states[:, 0], [1.0, 0.5, 1.0])  # item seed modulo 2


def test_a_goal_is_found_by_the_name_of_an_attribute(monkeypatch):
    monkeypatch.setattr(Counter, "_target_img", np.full((16, 16, 3), 7, np.uint8), raising=False)
    monkeypatch.setattr(Counter, "target", 0.9, raising=False)
    named = {"goal": "info", "goal_image": "_target_img", "goal_state": ["target"], "state": ["value"]}
    tasks = GymTasks("test/Counter-v0", GymTasksConfig(**named, success_distance=0.1), range(2))
    assert (tasks.goal_images == 7).all() and np.allclose(tasks.goal_states, 0.9)
    with pytest.raises(ValueError, match="has no image target_img"):
        GymTasks("test/Counter-v0", GymTasksConfig(goal="info", goal_image="target_img", success="info"), range(1))


def test_the_end_of_the_environments_own_task_counts_as_early_or_is_ignored():
    """The goal lies at 3, but the environment ends at 1."""
    config = GymTasksConfig(goal="reset", goal_options={"value": 3.0}, state=["value"], success_distance=0.3)
    cut = run_closed_loop(GymTasks("test/Counter-v0", config, range(2)), upwards)
    assert cut.ended_early.all() and not cut.success.any()
    config = dataclasses.replace(config, ignore_termination=True)
    whole = run_closed_loop(GymTasks("test/Counter-v0", config, range(2)), upwards)
    assert whole.success.all() and not whole.ended_early.any()
    with pytest.raises(ValueError, match="leaves out what gym.success 'terminated' judges"):
        GymTasksConfig(goal="info", success="terminated", ignore_termination=True)


def test_tasks_that_their_start_solves_are_left_out():
    config = GymTasksConfig(goal="reset", goal_options={"value": 0.1}, state=["value"], success_distance=0.05)
    tasks = GymTasks("test/Counter-v0", config, range(6))
    expected = (np.abs(tasks.states[:, 0] - 0.1) <= 0.05).tolist()
    assert 0 < sum(expected) < 6 and tasks.solved.tolist() == expected
    result = drop_solved(run_closed_loop(tasks, upwards, kept_frames=3))
    kept = [seed for seed, solved in enumerate(expected) if not solved]
    assert [source["seed"] for source in result.sources] == kept and len(result.states) == len(kept)
    assert len(result.frames) == sum(seed < 3 for seed in kept) and not result.solved.any()


def test_policies_act_in_any_environment_and_held_ones_keep_their_action():
    tasks = GymTasks("test/Counter-v0", GymTasksConfig(goal="info", success="info"), range(2))
    rng = np.random.default_rng(0)
    drawn = np.stack([tasks.policy_actions("held", rng) for _ in range(50)])
    kept = (drawn[1:] == drawn[:-1]).mean()
    assert drawn.shape == (50, 2, 1) and 0.65 < kept < 0.95
    assert len(np.unique([policy_plan("uniform", 0)(tasks) for _ in range(3)])) == 2  # the same seed, the same actions
    with pytest.raises(ValueError, match="'uniform' or 'held'"):
        tasks.policy_actions("drawn_to_block", rng)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ("test/Counter-v0", {"state": ["valve"], "success_distance": 1.0}, "reports no 'valve'; it reports value"),
        (
            "test/Counter-v0",
            {"goal": "info", "success": "info", "env_kwargs": {"x": 1}},
            "cannot be made",
        ),
        (
            "test/Counter-v0",
            {"state": ["value"], "success_distance": 1.0, "env_kwargs": {"steady": False}, "goal_steps": 1},
            "starts differently from the same seed",
        ),
        (
            "test/Counter-v0",
            {"state": ["value"], "success_distance": 0.1, "min_goal_distance": 50.0},
            "No goal is gym.min_goal_distance=50.0 away",
        ),
        (
            "test/Counter-v0",
            {"state": ["value"], "success_distance": 1.0, "distance_columns": [1]},
            r"judged by the columns \[1\], but the state has 1 numbers",
        ),
        (TWO_ROOMS, {**OURS, "success_distance": 1.0, "distance_columns": []}, "every distance would be 0"),
        (TWO_ROOMS, {**OURS, "success_distance": -1.0}, "gym.success_distance above 0"),
        ("CartPole-v1", {"goal": "info", "success": "info"}, "a bounded Box is expected"),
        (
            TWO_ROOMS,
            {"goal": "info", "success": "distance", "state": ["state"], "success_distance": 1.0},
            "goal_state",
        ),
        (TWO_ROOMS, {}, "needs gym.state"),
        (TWO_ROOMS, {"success": "info"}, "a goal that the environment does not know"),
        (TWO_ROOMS, {"success": "info", "goal": "reset"}, "goal_options is empty"),
        (TWO_ROOMS, {"success": "info", "goal": "info", "max_steps": 0}, "max_steps must be at least 1"),
        (TWO_ROOMS, {"success": "info", "goal": "info", "min_goal_distance": 1.0}, "needs gym.goal 'policy'"),
        (TWO_ROOMS, {"success": "info", "goal": "info", "goal_state": ["state"]}, "and gym.state"),
    ],
)
def test_what_does_not_fit_is_a_sentence(env, settings, message):
    with pytest.raises(ValueError, match=message):
        GymTasks(env, GymTasksConfig(**settings), range(8))


@pytest.mark.parametrize(
    ("told", "settings", "message"),
    [
        ({"extra": np.zeros(2)}, {"scores": ["extra"]}, "The score 'extra' of .* is 2 numbers, not one"),
        ({"extra": None}, {"scores": ["extra"]}, "reports 'extra' as None; expected finite numbers"),
        ({"extra": np.zeros(2)}, {"goal_state": ["extra"]}, "goal_state has 2 numbers, but gym.state has 1"),
    ],
)
def test_what_the_environment_tells_is_checked(monkeypatch, told, settings, message):
    reset, step = Counter.reset, Counter.step
    told = {"value": 0.0, "away": 9.0, **told}
    monkeypatch.setattr(Counter, "reset", lambda self, **given: (*reset(self, **given)[:1], told))
    monkeypatch.setattr(Counter, "step", lambda self, action: (*step(self, action)[:4], told))
    config = GymTasksConfig(goal="info", state=["value"], success_distance=1.0, **{"goal_state": ["away"], **settings})
    with pytest.raises(ValueError, match=message):
        run_closed_loop(GymTasks("test/Counter-v0", config, range(2)), upwards)


class ReusingCounter(Counter):
    """Draws into one buffer, changes the action that it gets, and has an action of shape ()."""

    action_space = gymnasium.spaces.Box(-0.5, 0.5, (), np.float32)
    buffer = np.zeros((16, 16, 3), np.uint8)

    def step(self, action):
        self.value += float(action)
        action *= 0  # in place
        return np.float32([self.value]), 0.0, False, False, {"value": self.value}

    def render(self):
        self.buffer[:] = super().render()
        return self.buffer


@pytest.fixture
def reusing():
    gymnasium.register("test/Reusing-v0", entry_point=ReusingCounter, max_episode_steps=6)
    yield "test/Reusing-v0"
    del gymnasium.registry["test/Reusing-v0"]


def test_environments_may_reuse_their_buffers(reusing):
    config = GymTasksConfig(state=["value"], success_distance=0.01, goal_steps=3, env_kwargs={"steady": False})
    with pytest.raises(ValueError, match="starts differently from the same seed"):  # not compared with itself
        GymTasks(reusing, config, range(1))
    tasks = GymTasks(reusing, GymTasksConfig(state=["value"], success_distance=0.01, goal_steps=1), range(2))
    assert tasks.action_dim == 1 and not np.array_equal(tasks.goal_images[0], tasks.goal_images[1])
    plan = np.full((2, 1, 1), 0.25, np.float32)
    result = run_closed_loop(tasks, lambda _: plan.__iadd__(0.05), kept_frames=1)
    assert np.allclose(result.actions[0, :3, 0], [0.3, 0.35, 0.4])
    assert len(np.unique(result.frames[0].mean((1, 2, 3)))) > 2


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("reset", np.zeros(2), "reset returned ndarray: the environment 'test/Counter-v0' has the old gym interface"),
        ("reset", (np.zeros(2), 1.0), r"reset returned \(ndarray, float\)"),
        (
            "step",
            (np.zeros(2), 0.0, False, {}),
            r"step returned other than 5 values .*and step \(observation",
        ),
        ("step", (np.zeros(2), 0.0, False, False, None), r"step returned \(ndarray, float, bool, bool, NoneType\)"),
    ],
)
def test_the_old_interface_is_named(monkeypatch, method, returned, message):
    monkeypatch.setattr(Counter, method, lambda self, *_, **__: returned)
    with pytest.raises(ValueError, match=message):
        run_closed_loop(GymTasks("test/Counter-v0", GymTasksConfig(goal="info", success="info"), range(1)), upwards)


def test_actions_of_a_wrong_shape_are_refused():
    tasks = GymTasks("test/Counter-v0", GymTasksConfig(goal="info", success="info"), range(2))
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        tasks.step(np.zeros((2, 2)))


def test_closing_reaches_the_environments():
    tasks = GymTasks("test/Counter-v0", GymTasksConfig(goal="info", success="info"), range(2))
    tasks.close()
    assert all(episode.env.unwrapped.value is None for episode in tasks.episodes)


def test_our_environments_tell_their_goal():
    config = GymTasksConfig(goal="info", success="info", state=["state"], goal_state=["goal_state"])
    tasks = GymTasks(PUSHING, config, range(1))
    tasks.close()
    np.testing.assert_array_equal(tasks.goal_images[0], tasks.episodes[0].env.unwrapped.goal_image)
    assert tasks.distances[0] > 0 and tasks.max_steps == environments.MAX_STEPS


def test_an_unknown_namespace_names_the_form_that_imports_it():
    with pytest.raises(ValueError, match="Namespace swm not found.*module:id.*stable_worldmodel:swm/TwoRoom-v1"):
        make_env("swm/TwoRoom-v1")
