"""`examples/plot_features.py`: its files, and the wrong calls that it refuses."""

import json

import PIL.Image
import plot_features
import pytest
import torch
from builders import square_over_noise
from datasets import Features, Value, Video

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig
from vjepa2_hf.data.shards import write_shards


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


def test_figure_and_numbers_of_shards(model, shards, tmp_path, capsys):
    output = tmp_path / "new" / "features.png"
    plot_features.main([str(model), str(shards), str(output), "--frames", "8", "--clips", "2"])
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert numbers["grid"] == [4, 2, 2] and numbers["frames"] == 8
    assert numbers["over_clips"]["clips"] == 2
    for fractions in (numbers["trained"], numbers["random"], numbers["over_clips"]["trained"]):
        assert sum(fractions.values()) == pytest.approx(1) and min(fractions.values()) > -1e-9
    with PIL.Image.open(output) as image:
        assert image.size[0] > 400
    printed = capsys.readouterr().out
    assert f"{numbers['trained']['position']:.3f}" in printed and str(output) in printed
    assert sorted(path.name for path in output.parent.iterdir()) == ["features.json", "features.png"]


def test_numbers_of_a_video_file_are_over_its_clips(model, video, tmp_path):
    output = tmp_path / "features.png"
    plot_features.main([str(model), str(video), str(output), "--frames", "4", "--size", "32"])
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert numbers["grid"] == [2, 4, 4] and numbers["over_clips"]["clips"] == 3
    plot_features.main([str(model), str(video), str(output), "--frames", "12"])
    assert "over_clips" not in json.loads(output.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{tmp}/none.mp4", "{tmp}/o.png"], "There is no data at"),
        (["{tmp}/none/model", "{video}", "{tmp}/o.png"], "There is no model at"),
        (["{model}", "{video}", "{tmp}/o.jpg"], "ends in .png"),
        (["{model}", "{video}", "{tmp}/o.png"], "has 12 frames, but the clip needs 16"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "8", "--fps", "5"], "has 6 frames at 5 per second"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "2"], "at least 4 are needed"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "5"], "frames=5"),
        (["{model}", "{video}", "{tmp}/o.png", "--frames", "0"], "frames=0"),
        (["{model}", "{tmp}/broken.mp4", "{tmp}/o.png"], "cannot be decoded"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(model, video, tmp_path, capsys, arguments, message):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    arguments = [argument.format(model=model, video=video, tmp=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        plot_features.main(arguments)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
    assert not (tmp_path / "o.png").exists()
