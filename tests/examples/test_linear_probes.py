"""Moving Digits show what their labels say, and linear probes measure what a known feature holds."""

import argparse
import json

import ablate_pretraining
import linear_probes
import numpy as np
import pytest
import record_episodes
import record_moving_digits
from datasets import load_dataset

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor
from vjepa2_hf.video_io import VideoReader


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for split, videos in (("train", 60), ("test", 30)):
        arguments = f"--split {split} --videos {videos} --frames 8 --num_shards 2 --output {folder / split}"
        record_moving_digits.main(arguments.split())
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "crop_size": 64,
        "frames_per_clip": 8,
    }
    VJepa2Encoder(VJepa2EncoderConfig(**sizes, initializer_range=0.1)).save_pretrained(folder)
    VJepa2VideoProcessor(crop_size=64, size=64).save_pretrained(folder)
    return folder


def centre(frames: np.ndarray) -> np.ndarray:
    """Centre of brightness (T, 2), x and y."""
    weight = frames.astype(float).mean(axis=-1)
    along = [(weight.sum(axis=axis) @ np.arange(weight.shape[-1])) / weight.sum(axis=(1, 2)) for axis in (1, 2)]
    return np.stack(along, axis=-1)


class TestMovingDigits:
    def test_a_digit_moves_where_its_label_says(self, digits):
        for row in load_dataset(str(digits / "test"), split="train"):
            with VideoReader(row["video"]["bytes"]) as reader:
                moved = np.diff(centre(reader.frames()), axis=0)
            angle = np.rad2deg(np.arctan2(moved[:, 1], moved[:, 0]))
            off = (angle - 45 * row["direction"] + 180) % 360 - 180
            assert np.abs(off).max() < 15
            speed = np.linalg.norm(moved, axis=1)
            assert speed.min() > 1.3 and speed.max() < 3.2

    def test_the_place_tells_nothing_of_the_direction(self):
        rng = np.random.default_rng(0)
        middles = np.array(
            [[record_moving_digits.draw_path(rng, 8, d).mean(axis=0) for _ in range(400)] for d in range(8)]
        )
        deviation = middles.std(axis=1).mean() / np.sqrt(400)
        assert np.abs(middles.mean(axis=1) - middles.mean(axis=(0, 1))).max() < 4 * deviation

    def test_a_long_video_bounces_and_stays_inside(self):
        for direction in range(8):
            path = record_moving_digits.draw_path(np.random.default_rng(direction), 200, direction)
            assert path.min() >= 0 and path.max() <= record_moving_digits.IMAGE_SIZE - record_moving_digits.DIGIT_SIZE
            assert np.abs(np.diff(path, axis=0)).max() < 3.1

    def test_two_motions_follow_each_other_as_the_label_says(self):
        for frames in (8, 15, 60):
            for first_motion in (0, 1):
                path = record_moving_digits.draw_turn(np.random.default_rng(frames), frames, first_motion)
                assert path.min() >= 0 and path.max() <= 64 - record_moving_digits.DIGIT_SIZE
                moved = np.abs(np.diff(path, axis=0)) > 1e-9
                assert (moved.sum(axis=1) == 1).all()  # along one axis at a time
                along = moved.argmax(axis=1)
                assert along[0] == first_motion and along[-1] == 1 - first_motion
                assert np.abs(np.diff(along)).sum() == 1  # one turn

    def test_the_frames_without_their_order_tell_nothing_of_which_motion_was_first(self):
        paths = [record_moving_digits.draw_turn(np.random.default_rng(3), 8, first) for first in (0, 1)]
        assert np.array_equal(paths[0], paths[1][::-1])
        rng = np.random.default_rng(0)
        middles, corners = (
            np.array([[place(record_moving_digits.draw_turn(rng, 9, k)) for _ in range(400)] for k in (0, 1)])
            for place in (lambda path: path.mean(axis=0), lambda path: path[4] - (path[0] + path[-1]) / 2)
        )
        for values in (middles, corners):
            assert np.abs(values.mean(axis=1) - values.mean(axis=(0, 1))).max() < 4 * values.std() / 20

    def test_two_motions_are_recorded_with_their_label(self, tmp_path):
        arguments = f"--split train --videos 6 --frames 8 --two_motions --num_shards 1 --output {tmp_path / 'turns'}"
        record_moving_digits.main(arguments.split())
        for row in load_dataset(str(tmp_path / "turns"), split="train"):
            assert "direction" not in row
            with VideoReader(row["video"]["bytes"]) as reader:
                moved = np.abs(np.diff(centre(reader.frames()), axis=0))
            assert moved[0].argmax() == row["first_motion"] and moved[-1].argmax() == 1 - row["first_motion"]

    def test_another_speed_moves_the_same_digit_in_the_same_direction(self):
        for direction in range(8):
            steps = {}
            for speed in (0.5, 1.0, 2.0):
                path = record_moving_digits.draw_path(np.random.default_rng(direction), 8, direction, speed)
                steps[speed] = np.diff(path, axis=0)
                assert path.min() >= 0 and path.max() <= 40
            np.testing.assert_allclose(steps[0.5], steps[1.0] / 2, atol=1e-9)
            np.testing.assert_allclose(steps[2.0][1:-1], steps[1.0][1:-1] * 2, atol=1e-9)  # ends may be reflected

    def test_no_digit_is_in_both_splits(self):
        firsts = {}
        for split in ("train", "test"):
            rows = record_moving_digits.record_videos(split, videos=1, frames=1, seed=0)
            firsts[split] = next(rows)["video"]["bytes"]
        assert firsts["train"] != firsts["test"]

    def test_the_same_seed_records_the_same_bytes(self):
        first, again = (
            [row["video"]["bytes"] for row in record_moving_digits.record_videos("train", 3, 4, 7)] for _ in "ab"
        )
        assert first == again

    def test_a_wrong_number_is_refused(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            record_moving_digits.main(f"--split train --videos 0 --output {tmp_path / 'x'}".split())
        assert "--videos is 0" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            record_moving_digits.main(f"--split train --videos 1 --speed 3 --output {tmp_path / 'x'}".split())
        assert "--speed is 3" in capsys.readouterr().err


class TestProbe:
    def test_it_finds_what_is_linear_and_nothing_else(self):
        rng = np.random.default_rng(0)
        features, noise = rng.normal(size=(300, 20)), rng.normal(size=(300, 20))
        classes = (features @ rng.normal(size=(20, 3))).argmax(axis=1)
        numbers = features @ rng.normal(size=(20, 2))
        for labels, chance in ((classes, 1 / 3), (numbers, 0.0)):
            good = linear_probes.probe(features[:200], labels[:200], features[200:], labels[200:])
            bad = linear_probes.probe(noise[:200], labels[:200], noise[200:], labels[200:])
            assert good > 0.8 and bad < chance + 0.15

    def test_shares_between_clips(self):
        rng = np.random.default_rng(0)
        within = rng.normal(size=(50, 30, 8))
        constant = np.repeat(rng.normal(size=(50, 1, 8)), 30, axis=1)
        assert linear_probes.between_clips(constant) == pytest.approx(1)
        assert linear_probes.between_clips(within) < 0.1

    def test_pixels_keep_place_and_colour(self):
        frames = np.zeros((1, 4, 64, 64, 3), np.uint8)
        frames[0, 1, 8:12, 20:24] = (255, 0, 51)
        read = linear_probes.pixel_readouts(frames)
        assert read["tokens"].shape == (1, 4 * 16 * 16 * 3) and read["average"].shape == (1, 2 * 16 * 16 * 3)
        cells = read["tokens"].reshape(4, 16, 16, 3)
        assert np.argwhere(cells.sum(-1)).tolist() == [[1, 2, 5]] and np.allclose(cells[1, 2, 5], (1, 0, 0.2))


class TestCommand:
    def test_a_saved_a_random_encoder_and_pixels(self, digits, encoder, tmp_path):
        common = f"--train {digits / 'train'} --test {digits / 'test'} --output {tmp_path / 'scores.json'}"
        scores = []
        for source in (f"--encoder {encoder}", f"--encoder {encoder} --weights random --seed 1", "--encoder pixels"):
            linear_probes.main(f"{source} {common}".split())
            scores.append(json.loads((tmp_path / "scores.json").read_text()))
        assert scores[0] != scores[1]
        assert scores[2]["between_clips"] is None and 0 < scores[0]["between_clips"] < 1
        assert scores[2]["tokens"]["motion"] > 0.2  # the centre's path is linear in the pixels; chance is 0.125

    def test_recorded_episodes_have_the_states_to_probe(self, encoder, tmp_path):
        for split, seed in (("train", 1), ("test", 2)):
            arguments = (
                "--env vjepa2_hf/Pushing-v0 --policy uniform --episodes 6 --length 7 --num_proc 1 --num_shards 1"
            )
            record_episodes.main([*arguments.split(), "--seed", str(seed), "--output", str(tmp_path / split)])
        _, labels = linear_probes.read_labelled_clips(str(tmp_path / "test"))
        assert labels["content"].shape == (6, 4) and labels["motion"].shape == (6, 2)
        row = load_dataset(str(tmp_path / "test"), split="train")[0]
        assert np.allclose(np.array(row["states"])[:, :2], row["proprio_states"])
        scores = linear_probes.measure(str(encoder), str(tmp_path / "train"), str(tmp_path / "test"))
        assert set(scores["average"]) == {"content", "motion"}

    def test_rows_without_labels_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="`digit` and `direction`, or `states`"):
            linear_probes.clip_labels({"video": None}, "somewhere")


class TestTable:
    def test_rows_of_one_seed_keep_their_own_times(self, tmp_path):
        options = argparse.Namespace(output=tmp_path, steps=1)
        roads = [
            ablate_pretraining.Chain(options, "pushing", 0).road(row) for row in ("pretrained", "pixels as target")
        ]
        for road in roads:
            road.run(road.output.name, ("nothing", tmp_path / "never", ["-c", ""]))
        found = [json.loads(road.timings_path.read_text()) for road in roads]
        assert [list(timings) for timings in found] == [["pretrained"], ["pixels_as_target"]]

    def test_every_ablation_is_a_row(self):
        files = {
            f"ablations/{path.name}" for path in (ablate_pretraining.CONFIGS / "ablations").glob("pretrain_*.yaml")
        }
        assert files == {*ablate_pretraining.ABLATIONS.values(), "ablations/pretrain_variance.yaml"}

    def test_it_holds_what_the_probes_measured(self, tmp_path, monkeypatch):
        score = {
            "between_clips": 0.25,
            "average": {"content": 0.5, "motion": 0.75},
            "tokens": {"content": 1, "motion": 0},
        }
        for seed, content in enumerate((0.4, 0.6)):
            folder = tmp_path / "runs" / "moving_digits" / f"seed-{seed}"
            (folder / "logs" / "pretrained").mkdir(parents=True)
            row = {**score, "average": {"content": content, "motion": 0.75}}
            (folder / "pretrained.json").write_text(json.dumps(row))
            (folder / "logs" / "pretrained" / "timings.json").write_text(json.dumps({"pretrained": 90 + 30 * seed}))
        document = tmp_path / "page.md"
        document.write_text("before\n<!-- pretraining:begin -->\nold\n<!-- pretraining:end -->\nafter\n")
        monkeypatch.setattr(ablate_pretraining, "DATASETS", {"moving_digits": None})
        command = [
            "x",
            "--collect",
            "--output",
            tmp_path / "runs",
            "--results",
            tmp_path / "r.json",
            "--document",
            document,
        ]
        monkeypatch.setattr("sys.argv", [str(part) for part in command])
        ablate_pretraining.main()
        text = document.read_text()
        assert "| pretrained | 0.50 (0.00–1.00) | 0.75 (0.75–0.75) |" in text and "| 0.25 |" in text
        assert "1.5 to 2.0 minutes" in text and "old" not in text and text.endswith("after\n")
        assert json.loads((tmp_path / "r.json").read_text())["datasets"]["moving_digits"][0]["runs"] == 2
