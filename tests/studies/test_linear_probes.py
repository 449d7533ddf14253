"""Linear probes measure what a known feature holds."""

import json

import linear_probes
import numpy as np
import pytest
import record_episodes
import record_moving_digits
from datasets import load_dataset

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor


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

    def test_pixels_keep_place_and_color(self):
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
        assert scores[2]["tokens"]["motion"] > 0.2  # the center's path is linear in the pixels; chance is 0.125

    def test_recorded_episodes_have_the_states_to_probe(self, encoder, tmp_path):
        for split, seed in (("train", 1), ("test", 2)):
            arguments = (
                "--env vjepa2_hf/Pushing-v0 --policy uniform --episodes 6 --length 7 --num_proc 1 --num_shards 1"
            )
            record_episodes.main([*arguments.split(), "--seed", str(seed), "--output", str(tmp_path / split)])
        _, labels = linear_probes.read_labeled_clips(str(tmp_path / "test"))
        assert labels["content"].shape == (6, 4) and labels["motion"].shape == (6, 2)
        row = load_dataset(str(tmp_path / "test"), split="train")[0]
        assert np.allclose(np.array(row["states"])[:, :2], row["proprio_states"])
        scores = linear_probes.measure(str(encoder), str(tmp_path / "train"), str(tmp_path / "test"))
        assert set(scores["average"]) == {"content", "motion"}

    def test_rows_without_labels_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="`digit` and `direction`, or `states`"):
            linear_probes.clip_labels({"video": None}, "somewhere")
