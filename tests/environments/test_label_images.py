"""Label images of the environments: they agree with the rendered image and with the states of recorded episodes."""

import numpy as np
import pytest
import record_episodes
from script_runs import write_noise_episodes

from vjepa2_hf.environments import FOUR_ROOMS, PUSHING, TWO_ROOMS, make_plain
from vjepa2_hf.environments.label_images import LabeledEpisodes, label_names, render_distances, render_labels


NAMES = {
    PUSHING: ("floor", "pusher", "block"),
    TWO_ROOMS: ("floor", "wall", "agent"),
    FOUR_ROOMS: ("floor", "wall", "agent", "distractor"),
}


@pytest.mark.parametrize("env_id", NAMES)
def test_every_label_has_the_color_of_its_part(env_id):
    env = make_plain(env_id)
    env.reset(seed=3)
    labels, image = render_labels(env, env.state), env.render().astype(int)
    assert label_names(env) == NAMES[env_id] and labels.dtype == np.uint8
    colors = {"floor": (225, 225, 225), "wall": (70, 70, 70), **dict(zip(env.discs, env.plain_colors, strict=True))}
    apart = np.abs(image[..., None, :] - np.array([colors[name] for name in NAMES[env_id]])).max(axis=-1)
    assert set(np.unique(labels)) == set(range(len(NAMES[env_id])))
    assert ((apart.min(axis=-1) > 1) | (apart.argmin(axis=-1) == labels)).all()  # but for soft edges


def test_the_upper_disc_hides_the_lower_one():
    env = make_plain(FOUR_ROOMS)
    state = np.array([0.2, 0.2, 0.2, 0.2, 0, 0])
    assert not (render_labels(env, state) == 3).any()  # the distractor is under the agent, of the same size


def test_distances_are_those_to_the_nearest_part():
    env = make_plain(TWO_ROOMS)
    state = np.array([0.25, 0.5])
    distances, labels = render_distances(env, state), render_labels(env, state)
    assert distances[labels > 0].max() <= 0.5 and distances[labels == 0].min() > 0
    assert distances[5, 63] == pytest.approx(29.5, abs=1e-4)  # to the wall, whose edge is at 34
    x, y = 0.5 - 16, 63.5 - 32
    assert distances[63, 0] == pytest.approx(min(np.hypot(x, y) - 6, 29.5), abs=1e-4)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "episodes"
    recorder = ["--env", TWO_ROOMS, "--policy", "wander", "--episodes", "3", "--length", "9", "--num_proc", "1"]
    record_episodes.main([*recorder, "--varied_appearance", "--output", str(folder)])
    return folder


def test_recorded_episodes_have_labels_of_every_frame(episodes):
    clips = list(LabeledEpisodes(str(episodes), 4, clips_per_episode=2))
    assert len(clips) == 6 and len({clip.name for clip in clips}) == 6 and len({clip.group for clip in clips}) == 3
    assert clips[0].frames.shape == (4, 64, 64, 3) and clips[0].labels.shape == (4, 64, 64)
    # Inside the agent, the frame has one color, which the floor around it has not
    frame, labels = clips[1].frames[2].astype(float), clips[1].labels[2]
    assert frame[labels == 2].std(axis=0).max() < frame.reshape(-1, 3).std(axis=0).max()
    (first, *_) = LabeledEpisodes(str(episodes), 4, target="distance")
    assert first.labels.dtype == np.float32 and (first.labels == 0).any()


def test_labels_are_those_of_the_view_from_above(episodes, tmp_path):
    recorder = ["--env", TWO_ROOMS, "--policy", "wander", "--episodes", "3", "--length", "9", "--num_proc", "1"]
    for views in (["agent", "top"], ["agent"]):
        output = ["--varied_appearance", "--output", str(tmp_path / views[-1]), "--views", *views]
        record_episodes.main([*recorder, *output])
    for one, other in zip(LabeledEpisodes(str(episodes), 4), LabeledEpisodes(str(tmp_path / "top"), 4), strict=True):
        assert np.array_equal(one.frames, other.frames) and np.array_equal(one.labels, other.labels)
    with pytest.raises(ValueError, match="labels are those of 'top'"):
        next(iter(LabeledEpisodes(str(tmp_path / "agent"), 4)))


def test_episodes_without_states_are_refused(tmp_path, episodes):
    with pytest.raises(ValueError, match="record episodes with examples/record_episodes.py"):
        next(iter(LabeledEpisodes(str(write_noise_episodes(tmp_path / "noise")), 4)))
    clips = LabeledEpisodes(str(episodes), 40)
    assert not list(clips) and "frames_per_clip=40" in next(iter(clips.skipped.values()))
