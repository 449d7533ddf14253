"""Clips read from files and shards for figures."""

import numpy as np
import pytest
import torch
from builders import square_over_noise
from datasets import Features, Value, Video

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.visualization.video_clips import load_processor, read_clips


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "encoder"
    torch.manual_seed(1)
    VJepa2Encoder(VJepa2EncoderConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(square_over_noise(12))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    rows = [
        {"video": {"bytes": square_over_noise(length, length), "path": None}, "n": length} for length in (12, 3, 10)
    ]
    write_shards(rows, folder, Features({"video": Video(decode=False), "n": Value("int32")}), num_shards=1)
    return folder


def test_clips_from_a_file_at_a_frame_rate(video):
    (own,) = read_clips(video, 12)
    (slow,) = read_clips(video, 4, fps=5)
    assert own.shape == (12, 16, 24, 3)
    np.testing.assert_array_equal(slow, own[[0, 2, 4, 6]])


def test_clips_from_a_file_lie_over_all_of_it_without_overlap(video):
    (own,) = read_clips(video, 12)
    clips = read_clips(video, 4, count=2)
    np.testing.assert_array_equal(np.stack(clips), [own[:4], own[8:]])
    assert len(read_clips(video, 4, count=9)) == 3
    np.testing.assert_array_equal(read_clips(video, 2, fps=5, count=2)[1], own[[8, 10]])


def test_clips_from_shards_pass_over_rows_that_are_too_short(shards):
    assert [len(clip) for clip in read_clips(shards, 8, count=5)] == [8, 8]
    assert len(read_clips(shards, 8)) == 1
    with pytest.raises(ValueError, match="no readable row .*has 12 frames, but the clip needs 20"):
        read_clips(shards, 20)


def test_the_frames_are_resized_as_the_model_or_the_user_says(model):
    encoder = VJepa2Encoder.from_pretrained(model)
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    for size, expected in ((None, 16), (24, 24)):
        processor = load_processor(model, encoder, size)
        assert processor(frames, return_tensors="pt")["pixel_values_videos"].shape[-2:] == (expected, expected)


def test_unreadable_rows_are_left_out_wherever_they_stand(tmp_path, caplog):
    missing = {"bytes": None, "path": str(tmp_path / "nowhere.mp4")}
    damaged = {"bytes": square_over_noise(12)[:-600], "path": "damaged.mp4"}
    rows = [{"video": video, "n": 0} for video in (missing, damaged, {"bytes": square_over_noise(12), "path": None})]
    write_shards(
        rows, tmp_path / "shards", Features({"video": Video(decode=False), "n": Value("int32")}), num_shards=1
    )
    assert [len(clip) for clip in read_clips(tmp_path / "shards", 8, count=5)] == [8]
    assert "left out: damaged.mp4" in caplog.text
