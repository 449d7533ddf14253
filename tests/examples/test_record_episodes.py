"""Recording episodes into shards: what a row holds, that seeds decide it, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import record_episodes
from datasets import Features, Video, load_dataset

from vjepa2_hf import environments
from vjepa2_hf.data.episodes import read_episodes
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.video_io import read_video


class CountingEnv(gymnasium.Env):
    """Somebody else's environment: vector observations, three joints, ends after five steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(self, render_mode=None, discrete=False, told=(), quirk=None):
        self.render_mode, self.told, self.quirk = render_mode, told, quirk
        self.observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.discrete = discrete
        joints = gymnasium.spaces.Box(np.float32([-2, 0, 5]), np.float32([2, 1, 6]))
        self.action_space = gymnasium.spaces.Discrete(2) if discrete else joints

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {"joints": np.arange(3.0), "hand": 0, **dict.fromkeys(self.told, 1.0)}

    def step(self, action):
        self.count += 1
        info = {"joints": np.arange(3.0) + self.count, "hand": self.count}
        return np.zeros(1, np.float32), self.count / 2, self.count == 5, False, info

    def render(self):
        if self.discrete is None:
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed")
        return np.full((48, 32, 3), 40 * self.count, np.uint8)


class TwoCamerasEnv(CountingEnv):
    """Observes two images of different sizes beside its joints."""

    def _observe(self):
        return {"front": self.render(), "hand": np.full((24, 32, 3), 255 - 40 * self.count, np.uint8), "joints": 1.0}

    def reset(self, **settings):
        _, info = super().reset(**settings)
        return self._observe(), info

    def step(self, action):
        return self._observe(), *super().step(action)[1:]


class StrictEnv(CountingEnv):
    """Takes no step after its end."""

    def step(self, action):
        if self.count >= 5:
            raise RuntimeError("reset me first")
        return super().step(action)


class Counter:
    """A policy with a memory: the number of its call, beyond the bounds from the second call on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, env, rng):
        self.calls += 1
        return [self.calls, rng.random(), 5 + env.count / 10]


counter, no_policy = Counter(), 3


def broken(env, rng):
    return [0.0, np.nan, 5.0]


def short(env, rng):
    return np.zeros(2)


@pytest.fixture(scope="module", autouse=True)
def registered():
    variants = {"Counting-v0": {}, "CountingDiscrete-v0": {"discrete": True}, "CountingUndrawn-v0": {"discrete": None}}
    for name, settings in variants.items():
        gymnasium.register(name, CountingEnv, kwargs=settings)
    others = {"Strict-v0": StrictEnv, "TwoCameras-v0": TwoCamerasEnv}
    for name, env in others.items():
        gymnasium.register(name, env)
    yield
    for name in (*variants, *others):
        del gymnasium.registry[name]


def record(output: Path, env: str = environments.PUSHING, policy: str = "drawn_to_block", *more: str) -> list[dict]:
    arguments = ["--env", env, "--policy", policy, "--output", str(output), "--num_proc", "1", "--num_shards", "2"]
    record_episodes.main([*arguments, *more])
    return list(load_dataset("parquet", data_files=str(output / "*.parquet"), split="train", streaming=True))


def test_rows_hold_video_actions_and_proprio_states(tmp_path):
    rows = record(tmp_path / "out", environments.PUSHING, "drawn_to_block", "--episodes", "3", "--length", "12")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "data-00000-of-00002.parquet",
        "data-00001-of-00002.parquet",
    ]
    assert len({row["episode_id"] for row in rows}) == len(rows) == 3
    for row in rows:
        actions, states = np.array(row["actions"]), np.array(row["proprio_states"])
        assert actions.shape == (12, 2) and states.shape == (13, 2) and row["fps"] == 10
        assert np.abs(actions).max() <= 1
        moved = np.diff(states, axis=0)
        assert (np.abs(moved) <= environments.STEP_SIZE * np.abs(actions) + 0.1).all()


def test_video_shows_the_recorded_states(tmp_path):
    row = record(tmp_path / "out", environments.TWO_ROOMS, "wander", "--episodes", "1", "--length", "10")[0]
    frames = read_video(row["video"])
    env = environments.make_plain(environments.TWO_ROOMS)
    expected = np.stack([env.render_state(np.array(state)) for state in row["proprio_states"]])
    assert np.abs(np.asarray(frames).astype(int) - expected).mean() < 3  # lossy, but in step


class TestViews:
    def test_every_view_shows_the_recorded_states(self, tmp_path):
        more = ["--episodes", "1", "--length", "6"]
        (plain,) = record(tmp_path / "plain", environments.PUSHING, "drawn_to_block", *more)
        (row,) = record(tmp_path / "out", environments.PUSHING, "drawn_to_block", *more, "--views", "top", "agent")
        assert row["cameras"] == ["top", "agent"] and row["actions"] == plain["actions"]
        env = environments.make_plain(environments.PUSHING)
        (episode,) = read_episodes(tmp_path / "out", camera=["top", "agent"])
        for view, frames in episode["frames"].items():
            expected = np.stack([env.render_state(np.array(state), view=view) for state in row["states"]])
            assert np.abs(frames.astype(int) - expected).mean() < 3, view
        assert json.loads(row["recording"])["env_kwargs"]["views"] == ["top", "agent"]

    def test_a_single_view_keeps_its_name(self, tmp_path):
        more = ["--episodes", "1", "--length", "3", "--views", "agent"]
        (row,) = record(tmp_path / "out", environments.PUSHING, "drawn_to_block", *more)
        assert row["cameras"] == ["agent"]
        (episode,) = read_episodes(tmp_path / "out", camera="agent")
        env = environments.make_plain(environments.PUSHING, views=["agent"])
        expected = np.stack([env.render_state(np.array(state)) for state in row["states"]])
        assert np.abs(episode["frames"].astype(int) - expected).mean() < 3

    def test_images_of_a_dict_observation_are_views(self, tmp_path, capfd):
        more = ["--episodes", "1", "--views", "hand", "front"]
        record(tmp_path / "out", "TwoCameras-v0", "uniform", *more)
        (episode,) = read_episodes(tmp_path / "out", camera=["front", "hand"])
        assert episode["frames"]["hand"].shape == (6, 24, 32, 3) and episode["frames"]["front"].shape == (6, 48, 32, 3)
        for views, message in (
            (["front", "wrist"], "observes no image 'wrist', but front, hand"),
            (["joints"], "observes no image 'joints', but front, hand"),
        ):
            with pytest.raises(SystemExit):
                record(tmp_path / "two", "TwoCameras-v0", "uniform", "--episodes", "1", "--views", *views)
            assert message in capfd.readouterr().err
        with pytest.raises(SystemExit):
            record(tmp_path / "two", "Counting-v0", "uniform", "--episodes", "1", "--views", "a", "b")
        assert "'Counting-v0' has one image, but --views names 2" in capfd.readouterr().err


def test_shards_load_with_a_video_column(tmp_path):
    record(tmp_path / "out", environments.PUSHING, "uniform", "--episodes", "1", "--length", "3")
    dataset = load_dataset("parquet", data_files=str(tmp_path / "out/*.parquet"), split="train", streaming=True)
    assert isinstance(dataset.features["video"], Video)


def test_the_seed_decides_the_episodes_and_processes_do_not(tmp_path):
    settings = {"env_id": environments.PUSHING, "policy": "drawn_to_block", "length": 25, "varied_appearance": True}
    recorder = record_episodes.EpisodeRecorder(**settings)
    alone = list(record_episodes.record_episodes(recorder, 3))
    for one, other in zip(alone, record_episodes.record_episodes(recorder, 3, num_proc=2), strict=True):
        assert one["video"]["bytes"] == other["video"]["bytes"]
        np.testing.assert_equal(one["actions"], other["actions"])
    other_seed = record_episodes.EpisodeRecorder(**settings, seed=1)
    assert not np.array_equal(other_seed.record(0)["actions"], alone[0]["actions"])
    # an episode does not depend on those before it
    np.testing.assert_equal(recorder.record(2)["actions"], alone[2]["actions"])


def test_every_process_makes_its_own_environment(monkeypatch):
    """A rendering context does not survive a fork."""
    recorder = record_episodes.EpisodeRecorder(environments.PUSHING, "uniform")
    first = recorder.env
    assert recorder.env is first
    monkeypatch.setattr(record_episodes.os, "getpid", lambda: -1)
    assert recorder.env is not first


def test_env_kwargs_may_hold_the_number_of_steps():
    recorder = record_episodes.EpisodeRecorder(
        environments.PUSHING, "uniform", length=8, env_kwargs={"max_episode_steps": 3}
    )
    assert len(recorder.record(0)["actions"]) == 3


def test_any_environment_with_pictures_and_box_actions_works(tmp_path):
    rows = record(tmp_path / "out", "Counting-v0", "uniform", "--episodes", "2", "--length", "8")
    for row in rows:
        actions = np.array(row["actions"])
        assert actions.shape == (5, 3) and "proprio_states" not in row and row["fps"] == 25
        assert (actions >= [-2, 0, 5]).all() and (actions <= [2, 1, 6]).all()
        assert np.asarray(read_video(row["video"])).shape == (6, 48, 32, 3)


def test_what_the_environment_tells_becomes_columns_by_name(tmp_path):
    named = ["--state", "hand", "joints", "--proprio_state", "joints"]
    (row,) = record(tmp_path / "out", "Counting-v0", "held", "--episodes", "1", *named)
    assert row["states"][2] == [2, 2, 3, 4] and row["proprio_states"][2] == [2, 3, 4] and len(row["states"]) == 6


def test_a_state_that_is_told_only_at_the_start_is_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        record(tmp_path, "Counting-v0", "uniform", "--episodes", "1", "--env_kwargs", '{"told": ["state"]}')
    assert "The environment reports no 'state'; it reports hand, joints" in capsys.readouterr().err


class OddEnv(CountingEnv):
    """The counting environment with one of the oddities that people report."""

    resets, buffer = 0, np.zeros((48, 32, 3), np.uint8)

    def __init__(self, render_mode=None, quirk=None):
        super().__init__(render_mode, quirk=quirk)
        if quirk == "scalar":
            self.action_space = gymnasium.spaces.Box(-1, 1, (), np.float32)

    def reset(self, *, seed=None, options=None):
        if self.quirk == "no seed":
            raise TypeError("OddEnv.reset() got an unexpected keyword argument 'seed'")
        observation, info = super().reset(seed=seed)
        OddEnv.resets += 1
        info = {**info, "state": {"position": observation}} if self.quirk == "dict" else info
        return observation if self.quirk == "old reset" else (observation, info)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        action = np.asarray(action)
        if self.quirk == "reuse":
            action *= 0  # in place
        if self.quirk == "old step":
            return observation, reward, terminated, info
        if self.quirk == "nan" and OddEnv.resets == 3 and self.count == 2:
            info["joints"] = np.full(3, np.nan)
        return observation, None if self.quirk == "dict" else np.float32([reward]), terminated, truncated, info

    def render(self):
        self.buffer[:] = super().render()
        return self.buffer if self.quirk != "grows" else np.zeros((48 + 2 * self.count, 32, 3), np.uint8)


@pytest.fixture
def odd():
    gymnasium.register("Odd-v0", OddEnv)
    OddEnv.resets = 0
    yield
    del gymnasium.registry["Odd-v0"]


def record_odd(output: Path, quirk: str, *more: str) -> list[dict]:
    kwargs = ["--env_kwargs", f'{{"quirk": "{quirk}"}}', "--length", "5"]
    return record(output, "Odd-v0", "held", "--episodes", "4", *kwargs, *more)


@pytest.mark.parametrize("quirk", ["reuse", "scalar", "dict"])
def test_odd_environments_are_recorded_right(odd, tmp_path, quirk):
    for row in record_odd(tmp_path / "out", quirk, *(["--rewards"] if quirk != "dict" else [])):
        brightness = read_video(row["video"]).mean((1, 2, 3))
        assert np.abs(brightness - 40 * np.arange(6)).max() < 3
        actions = np.array(row["actions"])
        assert actions.shape == (5, 1 if quirk == "scalar" else 3) and (actions[:, -1] != 0).all()
        assert "states" not in row and row.get("rewards") in (None, [0.5, 1.0, 1.5, 2.0, 2.5])


@pytest.mark.parametrize(
    ("quirk", "more", "message"),
    [
        ("no seed", [], "reset takes no seed: the environment 'Odd-v0' has the old gym interface"),
        ("old reset", [], "reset returned ndarray: the environment 'Odd-v0'"),
        ("old step", [], "step returned other than 5 values"),
        ("dict", ["--state", "state"], "reports 'state' as {'position'"),
        ("dict", ["--rewards"], "reports 'reward' as None; expected finite numbers"),
        ("grows", [], "The image changed from (48, 32, 3) to (50, 32, 3)"),
    ],
)
def test_interfaces_that_do_not_fit_are_one_sentence(odd, tmp_path, capsys, quirk, more, message):
    with pytest.raises(SystemExit):
        record_odd(tmp_path / "out", quirk, *more)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_an_episode_with_a_state_that_is_not_finite_costs_only_itself(odd, tmp_path):
    rows = record_odd(tmp_path / "out", "nan", "--state", "joints")  # the first reset is that of the check
    assert sorted(row["episode_id"] for row in rows) == ["0-000000", "0-000002", "0-000003"]
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("0-000001\tThe environment reports 'joints'")


def test_settings_of_the_environment_reach_it(tmp_path):
    settings = ["--episodes", "1", "--length", "6"]
    plain = record(tmp_path / "plain", environments.PUSHING, "uniform", *settings)[0]
    same = record(
        tmp_path / "same", environments.PUSHING, "uniform", *settings, "--env_kwargs", '{"random_force": 0}'
    )[0]
    pushed = record(
        tmp_path / "pushed", environments.PUSHING, "uniform", *settings, "--env_kwargs", '{"random_force": 0.5}'
    )[0]
    for row in (same, plain):
        del row["recording"]  # which names the settings
    assert same == plain
    assert pushed["actions"] == plain["actions"] and pushed["states"][0] == plain["states"][0]
    assert np.abs(np.subtract(pushed["states"], plain["states"])[:, :2]).max() > 0.02


@pytest.mark.parametrize("name", ["Counter", "counter"])
def test_a_policy_of_ones_own_starts_anew_in_every_episode(name):
    recorder = record_episodes.EpisodeRecorder("Counting-v0", f"{__name__}:{name}")
    rows = list(record_episodes.record_episodes(recorder, 2))
    for row in rows:
        actions = np.array(row["actions"])
        assert actions[:, 0].tolist() == [1, 2, 2, 2, 2]  # clipped
        np.testing.assert_allclose(actions[:, 2], [5.0, 5.1, 5.2, 5.3, 5.4], rtol=1e-6)
    assert not np.array_equal(*(np.array(row["actions"])[:, 1] for row in rows))
    for one, other in zip(rows, record_episodes.record_episodes(recorder, 2, num_proc=2), strict=True):
        np.testing.assert_equal(one, other)


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "nan, 5.0]; expected finite numbers"), ("short", "an action of shape (3,)")]
)
def test_an_action_that_is_none_is_told(name, message):
    recorder = record_episodes.EpisodeRecorder("Counting-v0", f"{__name__}:{name}")
    with pytest.raises(ValueError, match=re.escape(message)):
        list(record_episodes.record_episodes(recorder, 1))


def test_frames_are_resized_to_the_height(tmp_path):
    for height, width in ((24, 16), (21, 14), (60, 40)):
        more = ["--episodes", "1", "--height", str(height)]
        (row,) = record(tmp_path / str(height), "Counting-v0", "uniform", *more)
        frames = np.asarray(read_video(row["video"]))
        assert frames.shape == (6, height, width, 3)
        assert np.abs(frames.mean((1, 2, 3)) - 40 * np.arange(6)).max() < 3


def test_the_end_of_the_environments_own_task_may_be_ignored(tmp_path, capsys):
    going_on = ["--episodes", "1", "--length", "6", "--ignore_termination"]
    (row,) = record(tmp_path / "out", "Counting-v0", "uniform", *going_on)
    assert len(row["actions"]) == 6 and json.loads(row["recording"])["ignore_termination"]
    with pytest.raises(SystemExit):
        record(tmp_path / "strict", "Strict-v0", "uniform", *going_on)
    told = "takes no steps after its own termination (RuntimeError: reset me first); record it without"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env_id", "policy", "settings"),
    [
        (environments.PUSHING, "drawn_to_block", {"varied_appearance": True}),
        (environments.TWO_ROOMS, "wander", {"rewards": True, "env_kwargs": {"random_force": 0.3}}),
    ],
)
def test_a_row_repeats_its_episode(tmp_path, env_id, policy, settings):
    recorder = record_episodes.EpisodeRecorder(env_id, policy, length=30, **settings)
    features = record_episodes.episode_features(["states"], recorder.rewards)
    write_shards([recorder.record(3)], tmp_path / "out", Features(features | record_episodes.REPLAY_COLUMNS), 1)
    (row,) = load_dataset("parquet", data_files=str(tmp_path / "out/*.parquet"), split="train", streaming=True)
    told = json.loads(row["recording"])
    assert told["policy"] == policy and told["env"] == env_id
    env = gymnasium.make(told["env"], max_episode_steps=told["length"], **told["env_kwargs"])
    image, info = env.reset(seed=row["env_seed"], options=json.loads(row["reset_options"]) or None)
    states, rewards = [info["state"]], []
    for action in row["actions"]:
        image, reward, *_, info = env.step(np.float32(action))
        states, rewards = [*states, info["state"]], [*rewards, reward]
    np.testing.assert_array_equal(np.float32(states), np.float32(row["states"]))
    np.testing.assert_array_equal(np.float32(rewards), np.float32(row.get("rewards", rewards)))
    assert np.abs(image - np.float32(read_video(row["video"])[-1])).mean() < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Counting-v0", "--policy", "no_such_module:act"], "cannot be imported (No module named 'no_such"),
        (
            ["--env", "Counting-v0", "--policy", f"{__name__}:no_policy"],
            "is int; expected a function policy(env, rng)",
        ),
        (["--env", "Counting-v0", "--policy", f"{__name__}:acts"], "is NoneType; expected a function"),
        (["--env", "Counting-v0", "--policy", "uniform", "--height", "1"], "--height must be at least 2"),
        (["--env", "vjepa2_hf/Pushin-v0", "--policy", "uniform"], "cannot be made"),
        (["--env", environments.PUSHING, "--policy", "unifrom"], "did you mean 'uniform'"),
        (["--env", environments.PUSHING, "--policy", "uniform", "--state", "stat"], "reports no 'stat'"),
        (["--env", environments.TWO_ROOMS, "--policy", "drawn_to_block"], "needs PushingEnv"),
        (["--env", "Counting-v0", "--policy", "wander"], "needs PlaneEnv"),
        (["--env", "CountingDiscrete-v0", "--policy", "uniform", "--num_proc", "1"], "bounded Box"),
        (["--env", "CountingUndrawn-v0", "--policy", "uniform", "--num_proc", "1"], "pygame is not installed"),
        (["--env", environments.PUSHING, "--policy", "uniform", "--length", "0"], "at least 1"),
        (
            ["--env", environments.PUSHING, "--policy", "uniform", "--num_shards", "0"],
            "--num_shards must be",
        ),
        (["--env", environments.PUSHING, "--policy", "uniform", "--seed", "-1"], "--seed must be at least 0"),
        (["--env", "Counting-v0", "--policy", "uniform", "--varied_appearance"], "--varied_appearance is for"),
        (
            ["--env", environments.PUSHING, "--policy", "uniform", "--env_kwargs", "{'a': 1}"],
            "JSON object is expected",
        ),
        (["--env", environments.PUSHING, "--policy", "uniform", "--env_kwargs", "[1]"], "JSON object is expected"),
        (["--env", environments.PUSHING, "--policy", "uniform", "--env_kwargs", '{"forse": 1}'], "argument 'forse'"),
    ],
)
def test_user_errors_are_one_sentence(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        record_episodes.main([*arguments, "--episodes", "1", "--output", str(tmp_path / "out")])
    assert stopped.value.code not in (0, None)
    error = capsys.readouterr().err.strip()
    assert message in error and "Traceback" not in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_an_output_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit):
        record(tmp_path, environments.PUSHING, "uniform", "--episodes", "1")
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_command_of_the_docstring_runs(tmp_path):
    script = Path(record_episodes.__file__)
    command = [sys.executable, str(script), "--env", environments.TWO_ROOMS, "--policy", "wander", "--episodes", "2"]
    source = script.parent.parent / "src"
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "tiny")],
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "tiny").glob("*.parquet"))) == 2


def test_rewards_are_of_one_goal_for_all_episodes(tmp_path):
    """In two rooms the reward is minus the agent's distance to the goal, and its place is the proprio state."""
    rows = record(tmp_path / "data", environments.TWO_ROOMS, "wander", "--episodes", "3", "--length", "4", "--rewards")
    goal = gymnasium.make(environments.TWO_ROOMS).unwrapped.sample_starts(np.random.default_rng(0), 1)[0]
    for row in rows:
        places = np.asarray(row["proprio_states"])[1:]
        np.testing.assert_allclose(row["rewards"], -np.linalg.norm(places - goal[:2], axis=1), atol=1e-5)
    assert len({tuple(row["proprio_states"][0]) for row in rows}) == 3


def test_rewards_of_somebody_elses_environment_are_kept(tmp_path):
    rows = record(tmp_path / "data", "Counting-v0", "uniform", "--episodes", "1", "--rewards")
    assert rows[0]["rewards"] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert "rewards" not in record(tmp_path / "without", "Counting-v0", "uniform", "--episodes", "1")[0]


def test_labels_say_where_the_agent_is_and_how_it_moved(tmp_path):
    arguments = "--env vjepa2_hf/Pushing-v0 --policy uniform --episodes 12 --length 7 --num_proc 1 --labels"
    record_episodes.main([*arguments.split(), "--output", str(tmp_path / "data")])
    rows = list(load_dataset(str(tmp_path / "data"), split="train"))
    assert len({row["first_motion"] for row in rows}) == 2 and len({row["direction"] for row in rows}) > 2
    for row in rows:
        states = np.array(row["states"])
        assert {name: row[name] for name in record_episodes.LABELS} == record_episodes.motion_labels(states)


def test_labels_of_a_known_path():
    sideways, down = np.array([0.1, 0.0]), np.array([0.0, 0.1])
    path = np.cumsum([[0.2, 0.2], sideways, sideways, sideways, sideways, down, down], axis=0)
    labels = record_episodes.motion_labels(path)
    assert labels == {"place": 3 * 1 + 1, "direction": 1, "first_motion": 0}  # (0.6, 0.4); 27 degrees
    assert record_episodes.motion_labels(path[::-1])["first_motion"] == 1
    assert record_episodes.motion_labels(path[::-1])["direction"] == 5


def test_labels_of_another_environment_are_refused(tmp_path, capsys):
    gymnasium.register("vjepa2_hf_tests/Labels-v0", CountingEnv)
    arguments = "--env vjepa2_hf_tests/Labels-v0 --policy uniform --episodes 1 --labels"
    with pytest.raises(SystemExit):
        record_episodes.main([*arguments.split(), "--output", str(tmp_path / "data")])
    assert "--labels is for vjepa2_hf/Pushing-v0 and vjepa2_hf/TwoRooms-v0 and" in capsys.readouterr().err
