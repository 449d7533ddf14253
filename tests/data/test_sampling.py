"""Which frames a clip takes: rates, speed, jitter, motion; and how many, by step or epoch."""

import numpy as np
import pytest
import torch
from builders import numbered_video
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa2_hf.data import sampling
from vjepa2_hf.data.sampling import FrameSampler, FramesCurriculum
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import VideoReader


@pytest.fixture(scope="module")
def reader() -> VideoReader:
    """60 frames at 12 a second: 4.92 seconds from the first to the last."""
    with VideoReader(numbered_video(60, fps=12)) as reader:
        yield reader


def samples(sampler: FrameSampler, reader: VideoReader, num_frames: int, count: int = 200) -> np.ndarray:
    """(count, T) frame numbers."""
    generator = torch.Generator().manual_seed(0)
    return np.stack([sampler(reader, num_frames, generator) for _ in range(count)])


def half_moving_video(noise: float = 0.0, crf: int = 20) -> bytes:
    """120 frames at 12 a second: a textured picture, in whose second half a square moves; sensor noise on all."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 255, (1, 64, 64, 3)), 120, axis=0).astype(float)
    for t in range(120):
        x = 3 * max(t - 60, 0) % 48
        frames[t, 20:36, x : x + 16] = 255
    frames += noise * rng.normal(size=frames.shape)
    return encode_video(frames.clip(0, 255).astype(np.uint8), fps=12, crf=crf, pixel_format="yuv420p")


class TestRates:
    def test_a_rate_above_the_videos_own_warns_once(self, reader, caplog):
        for fps in (12, 12.1, None):
            samples(FrameSampler(fps=fps), reader, 4, 2)
        assert not caplog.records
        sampler = FrameSampler(fps=(1000.0, 2000.0))
        assert (np.diff(samples(sampler, reader, 4, 20)) == 0).all()  # every clip stands still

        def messages():  # the reader warns of the first such video of a process, whichever test reads it
            return [record.getMessage() for record in caplog.records if record.name == sampling.__name__]

        assert len(messages()) == 2 and all("above the 12 frames per second" in message for message in messages())
        samples(FrameSampler(fps=1000.0), reader, 4, 2)
        assert len(messages()) == 2

    def test_each_of_several_rates_is_drawn_as_often(self, reader):
        steps = np.diff(samples(FrameSampler(fps=(2, 4, 6)), reader, 4, 600))
        assert all(len(set(row)) == 1 for row in steps.tolist())
        share = {step: np.mean(steps[:, 0] == step) for step in (6, 3, 2)}
        assert sum(share.values()) == 1 and all(abs(value - 1 / 3) < 0.08 for value in share.values())

    def test_a_rate_at_which_the_video_is_too_short_is_not_drawn(self, reader):
        steps = np.diff(samples(FrameSampler(fps=(1, 4)), reader, 8))
        assert set(steps.ravel().tolist()) == {3}  # at 1 a second 8 frames take 7 seconds

    def test_too_short_at_every_rate_the_fastest_is_repeated(self, reader):
        (indices,) = samples(FrameSampler(fps=(1, 2)), reader, 16, 1)
        assert indices.tolist() == [0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 0, 6, 12, 18, 24, 30]

    def test_a_place_fixes_where_the_clip_begins(self, reader):
        last = len(reader) - 8
        for place, first in ((0.0, 0), (0.5, round(last / 2)), (1.0, last)):
            assert FrameSampler(position=place)(reader, 8, None).tolist() == list(range(first, first + 8))
        with pytest.raises(ValueError, match="position is 1.5"):
            FrameSampler(position=1.5)

    def test_short_videos_are_refused_where_they_are_not_wanted(self, reader):
        with pytest.raises(ValueError, match="10 frames at 2 fps, fewer than the 16 of a clip"):
            samples(FrameSampler(fps=2, short_videos="skip"), reader, 16)


class TestSpeed:
    def test_speeds_cover_the_range_evenly_on_a_logarithmic_scale(self, reader):
        sampler, intervals = FrameSampler(fps=6, speed=(0.5, 2.0)), []
        generator = torch.Generator().manual_seed(0)
        for _ in range(2000):
            intervals.append(sampler._sample_interval(reader, 4, generator) * 6)
        assert 0.5 <= min(intervals) < 0.51 and 1.95 < max(intervals) <= 2.0
        assert abs(np.mean(np.array(intervals) < 1) - 0.5) < 0.05

    def test_a_speed_at_which_the_video_is_too_short_is_not_drawn(self, reader):
        indices = samples(FrameSampler(fps=4, speed=(1.0, 8.0)), reader, 8)
        assert (np.diff(indices) > 0).all()  # no repetition
        assert indices[:, -1].max() >= 57

    def test_double_speed_takes_every_second_frame(self, reader):
        assert set(np.diff(samples(FrameSampler(speed=(2.0, 2.0)), reader, 5)).ravel().tolist()) == {2}


class TestJitter:
    def test_frames_move_within_half_an_interval_in_order_and_inside_the_video(self, reader):
        plain, moved = (samples(FrameSampler(fps=2, frame_jitter=jitter), reader, 8, 300) for jitter in (0, 0.5))
        steps = np.diff(moved)
        assert set(np.diff(plain).ravel().tolist()) == {6}
        assert (steps >= 0).all() and steps.max() <= 12 and steps.min() <= 2 and steps.max() >= 10
        assert moved.min() >= 0 and moved.max() <= 59
        assert abs(steps.mean() - 6) < 0.2

    def test_clips_begin_between_the_frames_of_the_rate(self, reader):
        starts = samples(FrameSampler(fps=2), reader, 4)[:, 0]
        assert {start % 6 for start in starts} == set(range(6))


class TestMotion:
    @pytest.mark.parametrize(("noise", "least"), [(0, 0.75), (2, 0.7)])
    def test_clips_are_drawn_where_things_move(self, noise, least):
        with VideoReader(half_moving_video(noise)) as reader:
            moving = {
                weight: np.mean(samples(FrameSampler(motion_weight=weight), reader, 8, 400)[:, 0] >= 57)
                for weight in (0.0, 0.5, 1.0)
            }
            assert abs(moving[0.0] - 56 / 113) < 0.1
            assert moving[1.0] > least
            assert moving[0.0] + 0.05 < moving[0.5] < moving[1.0] - 0.05  # half of each

    def test_strong_sensor_noise_counts_as_motion(self):
        with VideoReader(half_moving_video(noise=5)) as reader:
            motion = reader.motion()
        assert motion[57:].sum() / motion.sum() < 0.6

    def test_chances_are_in_proportion_to_the_motion_that_a_clip_holds(self):
        class Reader:
            times, fps = np.arange(6) / 10, 10.0

            def __len__(self):
                return 6

            def motion(self):
                return np.array([9.0, 1, 1, 2, 0, 4])

        starts = samples(FrameSampler(motion_weight=1.0), Reader(), 3, 4000)[:, 0]
        # what changes after the first frame: 1+1, 1+2, 2+0, 0+4
        assert np.abs(np.bincount(starts, minlength=4) / 4000 - np.array([2, 3, 2, 4]) / 11).max() < 0.03

    def test_a_video_of_key_frames_only_is_drawn_uniformly(self):
        rng = np.random.default_rng(0)
        video = encode_video(rng.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8), fps=10, gop_size=1)
        with VideoReader(video) as reader:
            assert reader.motion() is None
            assert set(samples(FrameSampler(motion_weight=1.0), reader, 4)[:, 0].tolist()) == set(range(17))


@settings(max_examples=60, deadline=None)
@given(
    num_frames=st.integers(1, 20),
    fps=st.sampled_from([None, 1.0, 5.0, (1.0, 2.0, 4.0), 30.0]),
    speed=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (3.0, 3.0)]),
    frame_jitter=st.floats(0, 0.5),
    motion_weight=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_any_settings_give_frames_of_the_video_in_order_and_the_same_again(
    reader, num_frames, fps, speed, frame_jitter, motion_weight, seed
):
    sampler = FrameSampler(fps, speed, frame_jitter, motion_weight, min_frames=1)
    indices, again = (sampler(reader, num_frames, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert indices.shape == (num_frames,) and indices.min() >= 0 and indices.max() < 60
    assert (indices == again).all()
    ends = np.flatnonzero(np.diff(indices) < 0)
    assert all(indices[end + 1] == indices[0] == 0 for end in ends)  # in order, but where it starts over


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fps": -1}, "fps is -1"),
        ({"fps": []}, r"fps is \[\]"),
        ({"fps": [2, 0]}, r"fps is \[2, 0\]"),
        ({"speed": (2.0, 1.0)}, "speed is"),
        ({"frame_jitter": 0.6}, "frame_jitter is 0.6"),
        ({"motion_weight": 2}, "motion_weight is 2"),
        ({"short_videos": "drop"}, "expected one of 'repeat', 'skip'"),
        ({"min_frames": 0}, "min_frames is 0"),
    ],
)
def test_bad_sampler_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        FrameSampler(**setting)


@pytest.mark.parametrize("num_frames", [0, -1, 2.0, None])
def test_a_clip_of_no_frames_is_refused(reader, num_frames):
    with pytest.raises(ValueError, match="num_frames is"):
        FrameSampler()(reader, num_frames, torch.Generator())


@pytest.mark.parametrize("position", [-1, 0.5, "a", None])
def test_a_position_before_the_first_stage_is_refused(position):
    with pytest.raises(ValueError, match="position is"):
        FramesCurriculum(((0, 8),), 1).frames_at(position)


def test_stages_begin_after_so_many_steps():
    curriculum = FramesCurriculum(((0, 8), (500, 12), (1000, 16)), batch_size=2)
    assert [curriculum.frames_at(done) for done in (0, 499, 500, 999, 1000, 10**9)] == [8, 8, 12, 12, 16, 16]


@given(workers=st.integers(1, 5), accumulation=st.integers(1, 4), steps=st.integers(1, 30))
def test_batches_taken_from_the_workers_in_turn_have_the_frames_of_their_step(workers, accumulation, steps):
    curriculum = FramesCurriculum(((0, 2), (4, 4), (9, 6)), 1, accumulation)
    drawn = [
        curriculum.frames_of_batch(batch // workers, batch % workers, workers, epoch=0)
        for batch in range(steps * accumulation)
    ]
    assert drawn == [curriculum.frames_at(step) for step in range(steps) for _ in range(accumulation)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "with steps"),
        (((1, 8),), "begin at 0"),
        (((0, 8), (0, 16)), "begin at 0"),
        (((0, 0),), "at least 1 frame"),
    ],
)
def test_bad_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        FramesCurriculum(stages, 1)
