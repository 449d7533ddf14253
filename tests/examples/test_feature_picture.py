"""The picture of an encoder's features: its numbers on features made by hand, its files, and what is refused."""

import json

import feature_picture
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Features, Value, Video
from feature_picture import (
    load_processor,
    random_encoder,
    read_clips,
    variance_shares,
)

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 16, "patch_size": 8}


def make_video(num_frames: int, seed: int = 0) -> bytes:
    """A bright square that moves over noise, at 10 frames a second."""
    frames = np.random.default_rng(seed).integers(0, 60, (num_frames, 16, 24, 3), np.uint8)
    for i in range(num_frames):
        frames[i, 4:12, i % 16 : i % 16 + 8] = 250
    return encode_video(frames, fps=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "encoder"
    torch.manual_seed(1)
    VJepa2Encoder(VJepa2EncoderConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video(12))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    rows = [{"video": {"bytes": make_video(length, length), "path": None}, "n": length} for length in (12, 3, 10)]
    write_shards(rows, folder, Features({"video": Video(decode=False), "n": Value("int32")}), num_shards=1)
    return folder


def test_shares_of_features_that_place_or_time_alone_explain():
    place, time = torch.randn(1, 3, 4, 8), torch.randn(6, 1, 1, 8)
    assert variance_shares(place.expand(6, 3, 4, 8)) == pytest.approx({"position": 1, "time": 0, "rest": 0})
    assert variance_shares(time.expand(6, 3, 4, 8)) == pytest.approx({"position": 0, "time": 1, "rest": 0})
    both = variance_shares(place + time)
    assert both["rest"] == pytest.approx(0, abs=1e-6) and min(both["position"], both["time"]) > 0.1


def test_shares_of_noise_are_those_of_chance():
    torch.manual_seed(0)
    shares = variance_shares(torch.randn(10, 20, 20, 8))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["position"] == pytest.approx(1 / 10, abs=0.01)
    assert shares["time"] == pytest.approx(1 / 400, abs=0.002)


def test_features_without_variance_have_no_shares():
    with pytest.raises(ValueError, match="All tokens of the clip are equal"):
        variance_shares(torch.ones(2, 3, 3, 4))


def test_the_random_encoder_is_the_same_each_time_and_leaves_the_random_state_alone(model):
    encoder = VJepa2Encoder.from_pretrained(model)
    state = torch.get_rng_state()
    first, second = random_encoder(encoder), random_encoder(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.layer[0].mlp.fc1.weight, encoder.layer[0].mlp.fc1.weight)


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
    with pytest.raises(ValueError, match="has 12 frames, but the clip needs 20"):
        read_clips(shards, 20)


def test_the_frames_are_resized_as_the_model_or_the_user_says(model):
    encoder = VJepa2Encoder.from_pretrained(model)
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    for size, expected in ((None, 16), (24, 24)):
        processor = load_processor(model, encoder, size)
        assert processor(frames, return_tensors="pt")["pixel_values_videos"].shape[-2:] == (expected, expected)


def test_picture_and_numbers_of_shards(model, shards, tmp_path, capsys):
    output = tmp_path / "new" / "features.png"
    feature_picture.main([str(model), str(shards), str(output), "--frames", "8", "--clips", "2"])
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert numbers["grid"] == [4, 2, 2] and numbers["frames"] == 8
    assert numbers["over_clips"]["clips"] == 2
    for shares in (numbers["trained"], numbers["random"], numbers["over_clips"]["trained"]):
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > -1e-9
    with PIL.Image.open(output) as picture:
        assert picture.size[0] > 400
    printed = capsys.readouterr().out
    assert f"{numbers['trained']['position']:.3f}" in printed and str(output) in printed
    assert sorted(path.name for path in output.parent.iterdir()) == ["features.json", "features.png"]


def test_numbers_of_a_video_file_are_over_its_clips(model, video, tmp_path):
    output = tmp_path / "features.png"
    feature_picture.main([str(model), str(video), str(output), "--frames", "4", "--size", "32"])
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert numbers["grid"] == [2, 4, 4] and numbers["over_clips"]["clips"] == 3
    feature_picture.main([str(model), str(video), str(output), "--frames", "12"])
    assert "over_clips" not in json.loads(output.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{tmp}/none.mp4", "{tmp}/o.png"], "There is no data at"),
        (["{tmp}/none/model", "{video}", "{tmp}/o.png"], "There is no model at"),
        (["{model}", "{video}", "{tmp}/o.jpg"], "ends in .png"),
        (["{model}", "{video}", "{tmp}/o.png"], "has 12 frames, but the clip needs 16"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "8", "--fps", "5"], "has 6 frames at 5 a second"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "2"], "at least 4 are needed"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "5"], "frames=5"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "0"], "frames=0"),
        (["{model}", "{tmp}/broken.mp4", "{tmp}/o.png"], "does not decode"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(model, video, tmp_path, capsys, arguments, message):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = [argument.format(model=model, video=video, tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        feature_picture.main(arguments)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
    assert not (tmp_path / "o.png").exists()
