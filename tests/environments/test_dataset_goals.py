"""Goals from recorded episodes: held-out pairs, starts by option and by repeated actions, and refusals."""

import dataclasses

import numpy as np
import pytest
from datasets import Features
from record_episodes import REPLAY_COLUMNS, EpisodeRecorder, episode_features, record_episodes

from vjepa2_hf.data.episodes import episode_ids, held_out_of, read_episodes
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.closed_loop import policy_plan, run_closed_loop
from vjepa2_hf.environments.dataset_goals import find_fraction, read_pairs
from vjepa2_hf.environments.gym_tasks import GymTasks, GymTasksConfig


BY_OPTION = {"state": "states"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "episodes"
    recorder = EpisodeRecorder(PUSHING, "drawn_to_block", length=12)
    features = Features(episode_features(["states", "proprio_states"]) | REPLAY_COLUMNS)
    write_shards(record_episodes(recorder, 12), folder, features=features, num_shards=1)
    return str(folder)


def config(data, **settings) -> GymTasksConfig:
    ours = {"env_kwargs": {"terminate_on_success": False}, "state": ["state"], "success_distance": 0.01}
    return GymTasksConfig(**{**ours, "goal": "dataset", "data": data, "goal_offset": 6, **settings})


def tasks_of(data, count=4, **settings) -> GymTasks:
    pairs = read_pairs(data, 6, 0.5, count, 7)
    return GymTasks(PUSHING, config(data, **settings), range(count), pairs)


def test_pairs_are_frames_of_held_out_episodes_one_each(data):
    pairs = read_pairs(data, 6, 0.5, 4, 7)
    held_out = set(filter(held_out_of(episode_ids(data), 0.5), episode_ids(data)))
    assert len({pair.episode_id for pair in pairs}) == 4 and {pair.episode_id for pair in pairs} <= held_out
    episodes = {episode["episode_id"]: episode for episode in read_episodes(data)}
    for pair in pairs:
        states = episodes[pair.episode_id]["states"]
        np.testing.assert_array_equal(pair.columns["states"], states[[pair.frame, pair.frame + 6]])
        assert pair.source == {"episode": pair.episode_id, "frame": pair.frame, "goal_frame": pair.frame + 6}
    assert len({pair.frame for pair in pairs}) > 1
    longer = read_pairs(data, 9, 0.5, 4, 7)
    assert [pair.episode_id for pair in longer] == [pair.episode_id for pair in pairs]  # of all offsets
    assert read_pairs(data, 6, 0.5, 4, 8) != pairs


@pytest.mark.parametrize("reset_option", [BY_OPTION, {}], ids=["option", "repeated actions"])
def test_tasks_start_at_a_frame_and_aim_at_a_later_one(data, reset_option):
    tasks = tasks_of(data, reset_option=reset_option)
    for number, pair in enumerate(tasks.pairs):
        np.testing.assert_allclose(tasks.states[number], pair.columns["states"][0], atol=1e-6)
        np.testing.assert_allclose(tasks.goal_states[number], pair.columns["states"][1], atol=1e-6)
        for image, recorded in ((tasks.render()[number], pair.images[0]), (tasks.goal_images[number], pair.images[1])):
            assert np.abs(image.astype(int) - recorded).max() < 32  # of video encoding
        rendered = tasks.episodes[number].env.unwrapped.render_state(tasks.goal_states[number])
        np.testing.assert_array_equal(tasks.goal_images[number], rendered)  # not the decoded frame


def test_recorded_actions_reach_the_goal_within_the_budget(data):
    tasks = tasks_of(data)
    assert tasks.max_steps == 12 and tasks_of(data, budget=8).max_steps == 8
    actions = np.stack([pair.actions[pair.frame :] for pair in tasks.pairs])
    result = run_closed_loop(tasks, lambda _: actions, executed_actions=6)
    counted = ~result.solved
    assert counted.any() and result.success[counted].all() and (result.steps[counted] <= 6).all()


def test_a_start_within_the_distance_of_its_goal_is_no_task(data):
    tasks = tasks_of(data, distance_columns=[2, 3], success_distance=0.05)
    moved = np.array([np.ptp(pair.columns["states"][:, 2:], axis=0) for pair in tasks.pairs])
    assert tasks.solved.tolist() == (np.linalg.norm(moved, axis=1) <= 0.05).tolist() and tasks.solved.any()
    start = tasks.states.copy()
    result = run_closed_loop(tasks, policy_plan("uniform"))
    assert not result.success[tasks.solved].any()
    np.testing.assert_array_equal(tasks.states[tasks.solved], start[tasks.solved])


def test_images_of_another_height_than_recorded_are_resized(tmp_path):
    recorder = EpisodeRecorder(PUSHING, "drawn_to_block", length=8, height=32)
    features = Features(episode_features(["states", "proprio_states"]) | REPLAY_COLUMNS)
    write_shards(record_episodes(recorder, 4), tmp_path / "low", features=features, num_shards=1)
    pairs = read_pairs(str(tmp_path / "low"), 6, 1.0, 2, 7)
    tasks = GymTasks(PUSHING, config(str(tmp_path / "low")), range(2), pairs)
    assert tasks.goal_images.shape == tasks.render().shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {"replay": {}}, "has no env_seed, from which its actions could be repeated: set gym.reset_option"),
        ({}, {"replay": {"env_seed": 3}}, "shows another image than the recorded one: .* % of its pixels differ"),
        ({"env_kwargs": {"varied_appearance": True, "terminate_on_success": False}}, {}, "shows another image"),
        ({"reset_option": {"goal": "states"}}, {}, "shows another image"),
        ({"reset_option": BY_OPTION}, {"columns": {}}, "the column 'states', but .* have neither states nor"),
        ({}, {"images": np.zeros((2, 64, 32, 3), np.uint8)}, r"shows \(64, 64\) pixels, but \(64, 32\) were recorded"),
    ],
)
def test_another_environment_than_the_recorded_one_is_refused(data, settings, change, message):
    pairs = [dataclasses.replace(pair, **change) for pair in read_pairs(data, 6, 0.5, 1, 7)]
    with pytest.raises(ValueError, match=message):
        GymTasks(PUSHING, config(data, **settings), [0], pairs)


def test_a_state_that_the_image_does_not_show_is_refused(data):
    (pair,) = read_pairs(data, 6, 0.5, 1, 7)
    wrong = dataclasses.replace(pair, columns={"states": pair.columns["states"] + 0.1})
    with pytest.raises(ValueError, match="has the state .*, but .* was recorded"):
        GymTasks(PUSHING, config(data), [0], [wrong])


def test_too_few_held_out_episodes_are_counted(data):
    with pytest.raises(ValueError, match=r"has 10 held-out episodes .* 0 of more than gym.goal_offset=13 frames"):
        read_pairs(data, 13, 0.5, 1, 7)


def test_the_held_out_fraction_is_that_of_the_models_runs(tmp_path):
    for name, text in (("a", "validation_fraction: 0.2\n"), ("b", "validation_fraction: 0.1\n"), ("c", "seed: 0\n")):
        (tmp_path / name / "final").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(text)
    a, b, c = (str(tmp_path / name / "final") for name in "abc")
    assert find_fraction([a, c]) == 0.2
    with pytest.raises(ValueError, match=r"validation_fraction \[0.1, 0.2\]"):
        find_fraction([a, b])
    with pytest.raises(ValueError, match="set gym.validation_fraction"):
        find_fraction([c])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goal": "info", "success": "info"}, "'dataset' and data go together"),
        ({"goal": "policy"}, "'dataset' and data go together"),
        ({"goal_offset": [25, 0]}, "gym.goal_offset is 0; expected an integer from 1"),
        ({"goal_offset": []}, "empty list"),
        ({"budget": "3x"}, "gym.budget .* is '3x'"),
        ({"max_steps": 50}, "set gym.budget instead"),
        ({"reset_option": {"state": "state"}}, "Unknown column in gym.reset_option 'state'; did you mean 'states'"),
        ({"success": "info"}, "gym.goal is 'dataset', a goal that the environment does not know"),
    ],
)
def test_settings_that_do_not_fit_are_a_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        config("data", **settings)
