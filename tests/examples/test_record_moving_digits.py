"""Moving Digits show what their labels say."""

import numpy as np
import pytest
import record_moving_digits
from datasets import load_dataset

from vjepa2_hf.video_io import VideoReader


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for split, videos in (("train", 60), ("test", 30)):
        arguments = f"--split {split} --videos {videos} --frames 8 --num_shards 2 --output {folder / split}"
        record_moving_digits.main(arguments.split())
    return folder


def center(frames: np.ndarray) -> np.ndarray:
    """Center of brightness (T, 2), x and y."""
    weight = frames.astype(float).mean(axis=-1)
    along = [(weight.sum(axis=axis) @ np.arange(weight.shape[-1])) / weight.sum(axis=(1, 2)) for axis in (1, 2)]
    return np.stack(along, axis=-1)


def test_a_digit_moves_where_its_label_says(digits):
    for row in load_dataset(str(digits / "test"), split="train"):
        with VideoReader(row["video"]["bytes"]) as reader:
            moved = np.diff(center(reader.frames()), axis=0)
        angle = np.rad2deg(np.arctan2(moved[:, 1], moved[:, 0]))
        off = (angle - 45 * row["direction"] + 180) % 360 - 180
        assert np.abs(off).max() < 15
        speed = np.linalg.norm(moved, axis=1)
        assert speed.min() > 1.3 and speed.max() < 3.2


def test_the_place_tells_nothing_of_the_direction():
    rng = np.random.default_rng(0)
    middles = np.array(
        [[record_moving_digits.sample_path(rng, 8, d).mean(axis=0) for _ in range(400)] for d in range(8)]
    )
    deviation = middles.std(axis=1).mean() / np.sqrt(400)
    assert np.abs(middles.mean(axis=1) - middles.mean(axis=(0, 1))).max() < 4 * deviation


def test_a_long_video_bounces_and_stays_inside():
    for direction in range(8):
        path = record_moving_digits.sample_path(np.random.default_rng(direction), 200, direction)
        assert path.min() >= 0 and path.max() <= record_moving_digits.IMAGE_SIZE - record_moving_digits.DIGIT_SIZE
        assert np.abs(np.diff(path, axis=0)).max() < 3.1


def test_two_motions_follow_each_other_as_the_label_says():
    for frames in (8, 15, 60):
        for first_motion in (0, 1):
            path = record_moving_digits.sample_turn(np.random.default_rng(frames), frames, first_motion)
            assert path.min() >= 0 and path.max() <= 64 - record_moving_digits.DIGIT_SIZE
            moved = np.abs(np.diff(path, axis=0)) > 1e-9
            assert (moved.sum(axis=1) == 1).all()  # along one axis at a time
            along = moved.argmax(axis=1)
            assert along[0] == first_motion and along[-1] == 1 - first_motion
            assert np.abs(np.diff(along)).sum() == 1  # one turn


def test_the_frames_without_their_order_tell_nothing_of_which_motion_was_first():
    paths = [record_moving_digits.sample_turn(np.random.default_rng(3), 8, first) for first in (0, 1)]
    assert np.array_equal(paths[0], paths[1][::-1])
    rng = np.random.default_rng(0)
    middles, corners = (
        np.array([[place(record_moving_digits.sample_turn(rng, 9, k)) for _ in range(400)] for k in (0, 1)])
        for place in (lambda path: path.mean(axis=0), lambda path: path[4] - (path[0] + path[-1]) / 2)
    )
    for values in (middles, corners):
        assert np.abs(values.mean(axis=1) - values.mean(axis=(0, 1))).max() < 4 * values.std() / 20


def test_two_motions_are_recorded_with_their_label(tmp_path):
    arguments = f"--split train --videos 6 --frames 8 --two_motions --num_shards 1 --output {tmp_path / 'turns'}"
    record_moving_digits.main(arguments.split())
    for row in load_dataset(str(tmp_path / "turns"), split="train"):
        assert "direction" not in row
        with VideoReader(row["video"]["bytes"]) as reader:
            moved = np.abs(np.diff(center(reader.frames()), axis=0))
        assert moved[0].argmax() == row["first_motion"] and moved[-1].argmax() == 1 - row["first_motion"]


def test_another_speed_moves_the_same_digit_in_the_same_direction():
    for direction in range(8):
        steps = {}
        for speed in (0.5, 1.0, 2.0):
            path = record_moving_digits.sample_path(np.random.default_rng(direction), 8, direction, speed)
            steps[speed] = np.diff(path, axis=0)
            assert path.min() >= 0 and path.max() <= 40
        np.testing.assert_allclose(steps[0.5], steps[1.0] / 2, atol=1e-9)
        np.testing.assert_allclose(steps[2.0][1:-1], steps[1.0][1:-1] * 2, atol=1e-9)  # ends may be reflected


def test_no_digit_is_in_both_splits():
    firsts = {}
    for split in ("train", "test"):
        rows = record_moving_digits.record_videos(split, videos=1, frames=1, seed=0)
        firsts[split] = next(rows)["video"]["bytes"]
    assert firsts["train"] != firsts["test"]


def test_the_same_seed_records_the_same_bytes():
    first, again = (
        [row["video"]["bytes"] for row in record_moving_digits.record_videos("train", 3, 4, 7)] for _ in "ab"
    )
    assert first == again


def test_a_wrong_number_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        record_moving_digits.main(f"--split train --videos 0 --output {tmp_path / 'x'}".split())
    assert "--videos must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        record_moving_digits.main(f"--split train --videos 1 --speed 3 --output {tmp_path / 'x'}".split())
    assert "--speed is 3" in capsys.readouterr().err
