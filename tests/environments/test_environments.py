"""The demo's environments: physics, images, the frozen tasks, and success rates of policies and the oracle."""

import importlib
import sys
import time

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa2_hf import environments
from vjepa2_hf.environments import (
    FOUR_ROOMS,
    IMAGE_SIZE,
    PUSHING,
    TWO_ROOMS,
    FourRoomsEnv,
    PushingEnv,
    TwoRoomsEnv,
    make_plain,
)
from vjepa2_hf.environments.tasks import Tasks


ENVIRONMENTS = (PUSHING, TWO_ROOMS, FOUR_ROOMS)


def random_rollout(env: environments.PlaneEnv, seed: int, episodes: int = 64, steps: int = 30) -> np.ndarray:
    """States (steps + 1, episodes, S) under bold random actions."""
    rng = np.random.default_rng(seed)
    states = np.stack([env.sample_task(seed * 1000 + i)[0] for i in range(8)]).repeat(episodes // 8, axis=0)
    history = [states]
    for _ in range(steps):
        history.append(env.dynamics(history[-1], rng.choice([-1.0, 0.0, 1.0], (len(states), 2))))
    return np.stack(history)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_gymnasium_api(env_id):
    env = gymnasium.make(env_id)
    image, info = env.reset(seed=3)
    assert env.observation_space.contains(image)
    assert info["state"].dtype == np.float32 and info["proprio_state"].shape == (2,)
    last = {PUSHING: 25, TWO_ROOMS: 25, FOUR_ROOMS: 150}[env_id]
    for step in range(1, last + 1):
        image, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert truncated == (step == last) and not terminated
    assert reward == pytest.approx(-info["distance_px"] / IMAGE_SIZE)


class TestViews:
    @pytest.mark.parametrize("env_id", ENVIRONMENTS)
    def test_several_views_are_a_dict_and_the_first_is_rendered(self, env_id):
        env = gymnasium.make(env_id, views=["agent", "top"], render_mode="rgb_array")
        observation, info = env.reset(seed=3)
        assert env.observation_space.contains(observation) and list(observation) == ["agent", "top"]
        np.testing.assert_array_equal(env.render(), observation["agent"])
        alone, _ = gymnasium.make(env_id).reset(seed=3)
        np.testing.assert_array_equal(observation["top"], alone)
        tasks = Tasks(env_id, [3, 4], env_kwargs={"views": ["agent", "top"]})
        views = tasks.observe(np.array([1]), goals=True)
        np.testing.assert_array_equal(views["agent"], tasks.goal_images[1:])
        np.testing.assert_array_equal(views["top"], Tasks(env_id, [4]).goal_images)

    def test_the_close_up_shows_the_surroundings_twice_as_large(self):
        env = make_plain(PUSHING, views=["agent"])
        image = env.render_state(np.float32([0.15, 0.5, 0.5, 0.5])).astype(int)
        pusher, block = (np.abs(image - color).max(-1) < 60 for color in env.plain_colors)
        assert np.argwhere(pusher).mean(0) == pytest.approx([31.5, 31.5])
        assert pusher.sum() == pytest.approx(np.pi * 12**2, rel=0.03)
        assert np.flatnonzero(block.any(0))[0] == 53  # the edge of the block, 10.4 pixels away in the field
        assert (image[:, :12] == 40).all() and (image[:, 13] == 225).all()  # the field begins 9.6 pixels left of it

    def test_wrong_views_are_refused(self):
        with pytest.raises(ValueError, match="side"):
            make_plain(PUSHING, views=["top", "side"])
        for views in ([], ["top", "top"], "top"):
            with pytest.raises(ValueError, match="views is .*; expected a list of top and agent, each once"):
                make_plain(PUSHING, views=views)
        env = make_plain(PUSHING)
        with pytest.raises(ValueError, match="Unknown view 'view_0'; known ones are agent, top"):
            env.render_state(env.state, view="view_0")


@pytest.mark.filterwarnings("ignore")  # the checker's advice on spaces, not errors
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_gymnasium_checker_accepts(env_id):
    from gymnasium.utils.env_checker import check_env

    check_env(environments.make_plain(env_id, render_mode="rgb_array"), skip_render_check=True)


def play(env, seed: int, steps: int = 30) -> np.ndarray:
    """States (steps + 1, S) of an episode in which the agent never acts."""
    _, info = env.reset(seed=seed)
    return np.stack([info["state"], *(env.step(np.zeros(2))[-1]["state"] for _ in range(steps))])


def test_random_force_moves_an_agent_that_does_nothing_as_much_as_it_says():
    env = environments.make_plain(environments.PUSHING, random_force=0.3, terminate_on_success=False)
    moved = np.concatenate([np.diff(play(env, seed)[:, :2], axis=0) for seed in range(20)])
    # 0.3 actions of 0.1 of the field; a block or the edge that stops it makes it a little less
    assert 0.025 < moved.std() < 0.0305 and abs(moved.mean()) < 0.003
    np.testing.assert_array_equal(play(env, 3), play(env, 3))  # the episode's seed decides
    env.reset(seed=0)
    for _ in range(50):
        state = env.step(np.ones(2))[-1]["state"]
        assert env.is_free(state)


def test_without_random_force_nothing_is_left_to_chance():
    env = environments.make_plain(environments.TWO_ROOMS, terminate_on_success=False)
    assert (np.diff(play(env, 0), axis=0) == 0).all()
    before = env.np_random.bit_generator.state
    env.step(np.ones(2))
    assert env.np_random.bit_generator.state == before


@pytest.mark.parametrize("force", [-0.1, 1.5, float("nan"), "much"])
def test_a_wrong_random_force_is_refused(force):
    with pytest.raises(ValueError, match="random_force is"):
        environments.make_plain(environments.PUSHING, random_force=force)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("varied", [False, True])
def test_same_seed_same_episode(env_id, varied):
    first, second = (gymnasium.make(env_id, varied_appearance=varied) for _ in range(2))
    for a, b in zip(first.reset(seed=5), second.reset(seed=5), strict=True):
        np.testing.assert_equal(a, b)
    np.testing.assert_array_equal(first.unwrapped.goal_image, second.unwrapped.goal_image)
    assert not np.array_equal(first.reset(seed=6)[1]["state"], second.unwrapped.state)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_goal_in_another_appearance_changes_nothing_but_its_image(env_id):
    settings = [{}, {"goal_appearance": "other"}]
    same, other, again = (
        environments.make_plain(env_id, varied_appearance=True, **settings[number]) for number in (0, 1, 1)
    )
    seen = [env.reset(seed=5) for env in (same, other, again)]
    np.testing.assert_equal(seen[0], seen[1])
    np.testing.assert_array_equal(same.goal_image, same.render_state(same.goal_state))
    np.testing.assert_array_equal(other.goal_image, again.goal_image)  # the seed decides
    assert (np.abs(other.goal_image.astype(int) - same.goal_image) > 10).mean() > 0.5
    tasks = [Tasks(env_id, [3, 4], varied_appearance=True, env_kwargs=one) for one in settings]
    np.testing.assert_array_equal(tasks[0].goals, tasks[1].goals)
    np.testing.assert_array_equal(tasks[0].render(), tasks[1].render())
    assert (np.abs(tasks[0].goal_images.astype(int) - tasks[1].goal_images) > 10).mean() > 0.5
    for one in tasks:
        np.testing.assert_array_equal(one.observe(np.arange(2), goals=True)["top"], one.goal_images)


def test_wrong_goal_appearances_are_refused():
    with pytest.raises(ValueError, match="goal_appearance is 'another'; expected one of 'same', 'other'"):
        environments.make_plain(PUSHING, goal_appearance="another")
    with pytest.raises(ValueError, match="goal_appearance is 'other', but every appearance is the plain one"):
        Tasks(PUSHING, [3], env_kwargs={"goal_appearance": "other"})


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_state_can_be_read_and_set(env_id):
    env = gymnasium.make(env_id)
    start, goal = env.unwrapped.sample_task(11)
    _, info = env.reset(options={"state": start, "goal": goal})
    np.testing.assert_array_equal(info["state"], start)
    np.testing.assert_array_equal(info["goal_state"], goal)
    action = np.array([0.3, -0.8], np.float32)
    _, _, _, _, after = env.step(action)
    env.unwrapped.set_state(start)
    _, _, _, _, again = env.step(action)
    np.testing.assert_array_equal(after["state"], again["state"])
    np.testing.assert_array_equal(after["state"], env.unwrapped.dynamics(start, action))
    env.unwrapped.set_state(goal)
    np.testing.assert_array_equal(env.unwrapped.render(), env.unwrapped.goal_image)


@pytest.mark.parametrize(
    ("env_id", "state", "message"),
    [
        (PUSHING, [0.5, 0.5], "shape"),
        (PUSHING, [0.5, 0.5, 0.55, 0.5], "impossible"),
        (PUSHING, [0.5, 0.01, 0.5, 0.5], "impossible"),
        (TWO_ROOMS, [np.nan, 0.5], "impossible"),
        (TWO_ROOMS, [0.5, 0.1], "impossible"),
        (FOUR_ROOMS, [0.2, 0.2], "shape"),
        (FOUR_ROOMS, [0.5, 0.2, 0.5, 0.5, 0.0, 0.0], "impossible"),
        (FOUR_ROOMS, [0.2, 0.2, 0.01, 0.5, 0.0, 0.0], "impossible"),
        (FOUR_ROOMS, [0.2, 0.2, 0.5, 0.5, 0.3, 0.0], "impossible"),
    ],
)
def test_impossible_states_are_refused(env_id, state, message):
    with pytest.raises(ValueError, match=message):
        environments.make_plain(env_id).set_state(state)


def test_wrong_actions_options_and_names_are_refused():
    env = environments.make_plain(PUSHING)
    env.reset(seed=0)
    for action in ([0.1], [np.nan, 0.0], np.zeros((1, 2))):
        with pytest.raises(ValueError, match="two finite numbers"):
            env.step(action)
    with pytest.raises(ValueError, match="'gaol'"):
        env.reset(options={"gaol": None})
    with pytest.raises(ValueError, match="did you mean 'vjepa2_hf/Pushing-v0'"):
        environments.make_plain("Pushing")
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        environments.find_policy("unifrom", env)
    with pytest.raises(ValueError, match="PushingEnv"):
        environments.find_policy("drawn_to_block", environments.make_plain(TWO_ROOMS))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_discs_never_overlap_nor_leave_the_field(seed):
    for env in (PushingEnv(), TwoRoomsEnv(), FourRoomsEnv()):
        assert env.is_free(random_rollout(env, seed)).all()


def test_pusher_pushes_the_block_along_the_line_of_centres():
    env = PushingEnv()
    state = np.array([0.2, 0.5, 0.2 + env.contact, 0.5], np.float32)
    after = env.dynamics(state, np.array([1.0, 0.0]))
    np.testing.assert_allclose(after, state + [0.1, 0, 0.1, 0], atol=1e-6)
    away = env.dynamics(state, np.array([-1.0, 0.0]))
    np.testing.assert_allclose(away, state - [0.1, 0, 0, 0], atol=1e-6)


def test_block_stops_at_the_edge_and_stops_the_pusher():
    env = PushingEnv()
    state = np.array([0.3, 0.5, 0.3 + env.contact, 0.5], np.float32)
    for _ in range(10):
        state = env.dynamics(state, np.array([1.0, 0.0]))
    assert state[2] == pytest.approx(1 - env.block_radius)
    assert state[0] == pytest.approx(1 - env.block_radius - env.contact, abs=1e-4)


def test_the_wall_stops_and_the_door_lets_through():
    env = TwoRoomsEnv()
    east = np.array([1.0, 0.0])
    blocked, through = np.array([0.2, 0.2], np.float32), np.array([0.2, 0.5], np.float32)
    for _ in range(8):
        blocked, through = env.dynamics(blocked, east), env.dynamics(through, east)
    assert blocked[0] == pytest.approx(env.WALL[0] - env.radius, abs=1e-4)
    assert through[0] > env.WALL[1] + env.radius
    sliding = env.dynamics(blocked, np.array([1.0, -0.5]))
    np.testing.assert_allclose(sliding, blocked + [0, -0.05], atol=1e-4)


def test_one_state_moves_as_in_a_batch():
    for env in (PushingEnv(), TwoRoomsEnv(), FourRoomsEnv()):
        states = random_rollout(env, 0)[-1]
        actions = np.random.default_rng(0).uniform(-1, 1, (len(states), 2))
        batched = env.dynamics(states, actions)
        single = np.stack([env.dynamics(s, a) for s, a in zip(states, actions, strict=True)])
        np.testing.assert_array_equal(batched, single)


def test_pushing_goals_move_the_block():
    tasks = Tasks(PUSHING, range(50))
    moved = np.linalg.norm(tasks.states[:, 2:] - tasks.goals[:, 2:], axis=1)
    assert moved.min() >= 0.2
    assert tasks.env.is_free(tasks.goals).all()


def test_half_of_the_goals_lie_in_the_other_room():
    tasks = Tasks(TWO_ROOMS, range(100))
    other = (tasks.states[:, 0] < 0.5) != (tasks.goals[:, 0] < 0.5)
    assert other[::2].all() and not other[1::2].all()
    assert tasks.env.is_free(tasks.states).all() and tasks.env.is_free(tasks.goals).all()


def test_four_rooms_distractor_moves_by_its_state_alone_and_bounces():
    env = environments.make_plain(FOUR_ROOMS, terminate_on_success=False, random_force=0.5)
    start = np.array([0.2, 0.2, 0.9, 0.5, 0.03, -0.02], np.float32)
    paths = []
    for seed in (0, 1):
        env.reset(seed=seed, options={"state": start})
        moved = np.stack([env.step(env.np_random.uniform(-1, 1, 2))[-1]["state"] for _ in range(40)])
        assert env.is_free(moved).all()
        paths.append(moved)
    assert not np.array_equal(paths[0][:, :2], paths[1][:, :2])
    np.testing.assert_array_equal(paths[0][:, 2:], paths[1][:, 2:])
    np.testing.assert_allclose(paths[0][0, 2:], [0.93, 0.48, 0.03, -0.02], atol=1e-6)
    np.testing.assert_allclose(paths[0][1, 2:], [2 * 0.9375 - 0.96, 0.46, -0.03, -0.02], atol=1e-6)


def test_four_rooms_shows_the_agent_above_the_distractor():
    picture = FourRoomsEnv().render_state(np.array([0.2, 0.2, 0.2, 0.2, 0.0, 0.0])).astype(int)
    red, green = (((picture[..., a] > 120) & (picture[..., b] < 90)).sum() for a, b in ((0, 1), (1, 0)))
    assert red == pytest.approx(np.pi * 4**2, rel=0.25) and green == 0


def test_four_rooms_goals_are_one_to_three_doors_away():
    tasks = Tasks(FOUR_ROOMS, range(60))
    rooms = [tasks.env.room_of(states[:, :2]) for states in (tasks.states, tasks.goals)]
    np.testing.assert_array_equal(np.abs(rooms[0] - rooms[1]), [1, 2, 3] * 20)
    assert tasks.env.is_free(tasks.states).all() and tasks.env.is_free(tasks.goals).all() and tasks.max_steps == 150


def test_waypoints_cross_rooms_in_one_environment_and_in_a_batch():
    """Both visit most rooms, and their actions stay noisy enough to learn from."""
    tasks, rng = Tasks(FOUR_ROOMS, [2, 5]), np.random.default_rng(0)
    env = environments.make_plain(FOUR_ROOMS, terminate_on_success=False)
    policy = environments.find_policy("waypoints", env)
    env.reset(seed=0)
    rooms, actions = [], []
    for _ in range(tasks.max_steps):
        tasks.step(tasks.policy_actions("waypoints", rng))
        actions.append(policy(env, rng))
        states = [*tasks.states, env.step(actions[-1])[-1]["state"]]
        rooms.append([int(tasks.env.room_of(state[:2])) for state in states])
    assert all(len(set(visited)) >= 3 for visited in zip(*rooms, strict=True))
    assert np.abs(actions).max() <= 1 and np.std(actions, axis=0).min() > 0.5


@pytest.mark.parametrize(
    ("env_id", "name", "largest"),
    [(PUSHING, "agent_radius", 16), (PUSHING, "block_radius", 16), (TWO_ROOMS, "agent_radius", 9)],
)
def test_disc_radii_are_set_in_pixels(env_id, name, largest):
    env = environments.make_plain(env_id, **{name: 2.5})
    index = 1 if name == "block_radius" else 0
    state = env.sample_starts(np.random.default_rng(0), 1)[0]
    color = env.appearance.colors[index]
    near = np.abs(env.render_state(state).astype(int) - color).max(-1) < 60
    assert near.sum() == pytest.approx(np.pi * 2.5**2, rel=0.4)
    assert env.is_free(random_rollout(env, 0)).all()
    for wrong in (0.5, largest + 1, "small", float("nan")):
        with pytest.raises(ValueError, match=f"{name} is .*expected pixels from 1 to {largest}"):
            environments.make_plain(env_id, **{name: wrong})
    with pytest.raises(ValueError, match="cannot be made.*'agent_raduis'"):
        environments.make_plain(env_id, agent_raduis=2)


def test_pictures_show_sub_pixel_motion():
    env = TwoRoomsEnv()
    pictures = [env.render_state(np.array([x, 0.5])).astype(int) for x in (0.2, 0.2 + 0.25 / IMAGE_SIZE)]
    changed = np.abs(pictures[0] - pictures[1]).max(axis=2)
    assert changed.max() > 10
    assert (changed > 0).sum() < 60  # only the edge, not the 113 pixels of the disc


def test_pictures_show_each_disc_where_it_is():
    picture = PushingEnv().render_state(np.array([0.25, 0.25, 0.6, 0.7])).astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90)
    blue = (picture[..., 2] > 150) & (picture[..., 0] < 90)
    for mask, radius, center in ((red, 6, (0.25, 0.25)), (blue, 12, (0.6, 0.7))):
        assert mask.sum() == pytest.approx(np.pi * radius**2, rel=0.15)
        rows, columns = np.nonzero(mask)
        np.testing.assert_allclose(
            ((columns.mean() + 0.5) / IMAGE_SIZE, (rows.mean() + 0.5) / IMAGE_SIZE), center, atol=0.01
        )


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_varied_appearance_changes_between_episodes_and_not_within(env_id):
    env = environments.make_plain(env_id, varied_appearance=True, terminate_on_success=False)
    first, _ = env.reset(seed=0)
    state = env.state
    np.testing.assert_array_equal(env.render_state(state), first)
    env.step(np.ones(2))
    np.testing.assert_array_equal(env.render_state(state), first)
    env.reset(seed=1)
    assert np.abs(env.render_state(state).astype(int) - first).mean() > 5


def test_steps_and_pictures_are_fast():
    """Not a benchmark: 0.2 ms a step and picture on an idle core, and a wide margin for a busy one."""
    env = environments.make_plain(PUSHING, terminate_on_success=False)
    env.reset(seed=0)
    durations = []
    for _ in range(200):
        start = time.perf_counter()
        env.step(np.array([0.5, 0.1], np.float32))
        durations.append(time.perf_counter() - start)
    assert np.median(durations) < 2e-3


def test_a_missing_gymnasium_is_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("vjepa2_hf.environments")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"needs gymnasium: pip install .vjepa2-hf\[demo\]."):
        importlib.import_module("vjepa2_hf.environments")


def test_a_disc_is_placed_where_it_fits():
    rooms, pushing = make_plain(TWO_ROOMS), make_plain(PUSHING)
    assert rooms.place(np.float32([0.2, 0.3]), 0, np.array([0.7, 0.6])) == pytest.approx([0.7, 0.6])
    corner = rooms.place(np.float32([0.2, 0.3]), 0, np.array([0.0, 1.0]))
    assert rooms.is_free(corner) and np.abs(corner - [6 / 64, 58 / 64]).max() < 0.02
    state = np.float32([0.2, 0.2, 0.7, 0.7])
    moved = pushing.place(state, 1, np.array([0.22, 0.2]))  # onto the pusher
    assert (moved[:2] == state[:2]).all() and pushing.is_free(moved)
    assert np.linalg.norm(moved[2:] - moved[:2]) == pytest.approx(pushing.contact, abs=0.02)
    four = make_plain(FOUR_ROOMS)
    start = four.sample_starts(np.random.default_rng(0), 1)[0]
    moved = four.place(start, 1, np.array([0.5, 0.5]))
    assert (moved[[0, 1, 4, 5]] == start[[0, 1, 4, 5]]).all() and moved[2:4] == pytest.approx([0.5, 0.5])
