"""`examples/look.py`: its four figures from files and shards, and what it refuses in one sentence."""

import json
from pathlib import Path

import look
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from builders import TINY_ENCODER, TINY_PREDICTOR
from datasets import Features, Value, Video

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2VideoProcessor,
)
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.video_io import VideoReader


def make_video(num_frames: int, seed: int = 0) -> bytes:
    frames = np.random.default_rng(seed).integers(0, 60, (num_frames, 32, 40, 3), np.uint8)
    for i in range(num_frames):
        frames[i, 4:12, i % 16 : i % 16 + 8] = 250
    return encode_video(frames, fps=10)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A masked-latent model with its run's masks, an attentive and a linear probe, a video, and shards."""
    folder = tmp_path_factory.mktemp("look")
    torch.manual_seed(0)
    model = folder / "run" / "final"
    VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)).save_pretrained(model)
    settings = {"masks": [{"type": "future", "context_ratio": 0.5}], "mask_token_index": 0, "max_steps": 3}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for kind in ("attentive", "linear"):
        fields = {"num_labels": 3, "num_pooler_layers": 1, "pooler_num_attention_heads": 2, "pooler_type": kind}
        VJepa2ForVideoClassification.from_encoder(str(model), **fields).save_pretrained(folder / kind)
    for path in (model, folder / "attentive", folder / "linear"):
        VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(path)
    VJepa2Encoder.from_pretrained(model).save_pretrained(folder / "encoder")
    (folder / "clip.mp4").write_bytes(make_video(12))
    rows = [{"video": {"bytes": make_video(9, seed), "path": None}, "n": seed} for seed in range(5)]
    write_shards(rows, folder / "shards", Features({"video": Video(decode=False), "n": Value("int32")}), num_shards=1)
    return folder


def test_encoders_are_compared_on_an_image_of_any_size(work, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "image.png")
    size = ["--size", "24", "64"]
    arguments = [str(work / "encoder"), str(tmp_path / "image.png"), str(tmp_path / "one.png")]
    look.main(["pca", *arguments, *size, "--compare", str(work / "run" / "final"), str(work / "attentive")])
    look.main(["pca", *arguments[:2], str(tmp_path / "alone.png"), *size])
    with PIL.Image.open(tmp_path / "one.png") as one, PIL.Image.open(tmp_path / "alone.png") as alone:
        assert one.width > 1.5 * alone.width  # a column for the image and for each encoder
    with pytest.raises(SystemExit):
        look.main(["pca", *arguments, "--size", "24", "60"])
    with pytest.raises(SystemExit):
        look.main(["pca", *arguments, *size, "--levels", "all"])


def test_features_of_several_videos_play_side_by_side(work, tmp_path):
    output = tmp_path / "new" / "features.gif"
    videos = [str(work / "clip.mp4"), str(work / "shards")]
    look.main(["pca", str(work / "encoder"), *videos, str(output), "--clips", "2", "--frames", "8", "--play_fps", "5"])
    with PIL.Image.open(output) as animation:
        assert animation.n_frames == 8 and animation.info["duration"] == 200
        assert animation.width > animation.height
    assert [path.name for path in output.parent.iterdir()] == ["features.gif"]


def test_videos_of_one_name_are_told_apart(work, tmp_path):
    other = tmp_path / "clip.mp4"
    other.write_bytes(make_video(4))
    encoder = VJepa2Encoder.from_pretrained(work / "encoder")
    for videos, names in (
        ([str(work / "clip.mp4"), str(other)], [str(work / "clip.mp4"), str(other)]),
        ([str(work / "clip.mp4"), str(work / "shards")], ["clip", "shards"]),
    ):
        arguments = ["pca", str(work / "encoder"), *videos, "o.png"]
        assert look.read(look.make_parser().parse_args(arguments), encoder, count=2)[2] == names


def test_attention_of_the_clip_that_was_asked_for(work, tmp_path, monkeypatch):
    drawn = []

    def draw(pictures, attention, tubelet, **options):
        drawn.append((pictures, attention, options))
        return plot(pictures, attention, tubelet, **options)

    plot = look.figures.plot_probe_attention
    monkeypatch.setattr(look.figures, "plot_probe_attention", draw)
    output = tmp_path / "attention.mp4"
    look.main(["attention", str(work / "attentive"), str(work / "clip.mp4"), str(output), "--clip", "2", "--heads"])
    with VideoReader(output) as reader, VideoReader(work / "clip.mp4") as source:
        assert len(reader) == 4  # the model's clip
        expected = source.frames(range(8, 12))
    pictures, attention, options = drawn[0]
    processor = VJepa2VideoProcessor.from_pretrained(work / "attentive")
    pixels = processor(expected, return_tensors="pt")["pixel_values_videos"]
    np.testing.assert_array_equal(pictures, processor.to_images(pixels[0]))
    model = VJepa2ForVideoClassification.from_pretrained(work / "attentive").eval()
    torch.testing.assert_close(attention, model.pooler_attention(pixels)[0])
    logits = model(pixels).logits[0].softmax(-1)
    assert options["by_head"] and options["title"].endswith(f"LABEL_{logits.argmax()} ({logits.max():.2f})")


@pytest.mark.parametrize("video", ["clip.mp4", "shards"])
def test_each_number_is_another_clip(work, tmp_path, monkeypatch, video):
    drawn = []
    monkeypatch.setattr(
        look.figures, "plot_probe_attention", lambda pictures, *more, **options: drawn.append(pictures)
    )
    monkeypatch.setattr(look.figures, "write_figure", lambda path, draw, count, fps: draw(None))
    for number in range(3):
        arguments = [str(work / "attentive"), str(work / video), str(tmp_path / "o.png"), "--clip", str(number)]
        look.main(["attention", *arguments])
    assert len({pictures.tobytes() for pictures in drawn}) == 3


def test_attention_to_predicted_frames_is_told_and_not_drawn(work, tmp_path, monkeypatch):
    masked = VJepa2ForMaskedLatentPrediction.from_pretrained(work / "run" / "final")
    fields = {"num_labels": 3, "num_pooler_layers": 1, "pooler_num_attention_heads": 2}
    fields |= {"predicted_frames": 4, "skipped_frames": 2}  # as many as are seen
    model = VJepa2ForVideoClassification.from_encoder(masked.encoder, masked.predictor, **fields).eval()
    model.save_pretrained(tmp_path / "probe")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path / "probe")
    plot, drawn = look.figures.plot_probe_attention, []

    def draw(*given, **options):
        drawn.append((*given, options))
        return plot(*given, **options)

    monkeypatch.setattr(look.figures, "plot_probe_attention", draw)
    look.main(["attention", str(tmp_path / "probe"), str(work / "clip.mp4"), str(tmp_path / "look.png")])
    pictures, attention, tubelet, options = drawn[0]
    pixels = VJepa2VideoProcessor(size=32, crop_size=32)(
        VideoReader(work / "clip.mp4").frames(range(4)), return_tensors="pt"
    )["pixel_values_videos"]
    whole = model.pooler_attention(pixels)[0]
    assert whole.shape[1] == 4 and len(pictures) == 4 and tubelet == 2
    torch.testing.assert_close(attention, whole[:, :2])
    share = (1 - attention.sum() / whole.sum()).item()
    assert 0 < share < 1 and f"{share:.0%} of the attention is on 4 predicted frames" in options["title"]


def test_nearest_frames_are_of_other_clips_one_of_each(work, tmp_path, monkeypatch):
    drawn = []

    def draw(*given, **options):
        drawn.append(given)
        return plot(*given, **options)

    plot = look.figures.plot_nearest_frames
    monkeypatch.setattr(look.figures, "plot_nearest_frames", draw)
    arguments = [str(work / "encoder"), str(work / "shards"), str(tmp_path / "near.png"), "--neighbors", "4"]
    for pool in ("tokens", "frame"):
        look.main(["nearest", *arguments, "--pool", pool, "--metric", "l2"])
        queries, neighbors, distances, names, found = drawn[-1]
        assert queries.shape == (2, 32, 32, 3) and neighbors.shape == (2, 4, 32, 32, 3)
        assert names == ["frame 0", "frame 2"] and (distances.diff(dim=1) >= 0).all()
        for row in found:
            assert sorted(name.split(",")[0] for name in row) == ["clip 2", "clip 3", "clip 4", "clip 5"]
    assert (tmp_path / "near.png").is_file()


def test_masks_are_those_of_the_run_or_the_published_or_the_ones_given(work, tmp_path, capsys):
    output = str(tmp_path / "loss.png")
    arguments = [str(work / "shards"), output, "--mask_samples", "2", "--clips", "3", "--frames", "8"]
    look.main(["loss", str(work / "run" / "final"), *arguments])
    printed = capsys.readouterr().out
    assert f"3 clips, 2 samples of the masks of {work / 'run' / 'config.yaml'}" in printed
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(work / "run" / "final")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path / "alone")
    model.save_pretrained(tmp_path / "alone")
    look.main(["loss", str(tmp_path / "alone"), *arguments])
    assert "samples of the published masks" in capsys.readouterr().out
    masks = tmp_path / "masks.yaml"
    masks.write_text(json.dumps({"masks": [{"type": "periodic"}]}), encoding="utf-8")
    look.main(["loss", str(tmp_path / "alone"), *arguments, "--masks", str(masks)])
    assert f"the masks of {masks}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pca {work}/encoder {work}/clip.mp4 {tmp}/o.jpg", "expected a name that ends in .png, .gif or .mp4"),
        ("pca {work}/none/final {work}/clip.mp4 {tmp}/o.png", "There is no model at"),
        ("pca {work}/encoder {work}/none.mp4 {tmp}/o.png", "There is no data at"),
        ("pca {work}/encoder {work}/clip.mp4 {tmp}/o.png --frames 20", "has 12 frames, but the clip needs 20"),
        ("pca {work}/encoder {work}/clip.mp4 {tmp}/o.png --clips 0", "clips=0"),
        ("pca {work}/encoder {work}/clip.mp4 {tmp}/o.gif --play_fps 0", "frame rate of the animation is 0.0"),
        ("attention {work}/run/final {work}/clip.mp4 {tmp}/o.png", "loads 'vjepa2_hf_video_classification'"),
        ("attention {work}/linear {work}/clip.mp4 {tmp}/o.png", "pooler_type is 'linear'"),
        (
            "attention {work}/attentive {work}/clip.mp4 {tmp}/o.png --clip 3",
            "which is 3 clips of 4, counted from 0",
        ),
        ("attention {work}/attentive {work}/shards {tmp}/o.png --clip 5", "shards has 5 rows, counted from 0"),
        ("attention {work}/attentive {work}/clip.mp4 {tmp}/o.png --clip -1", "clips are counted from 0"),
        ("nearest {work}/encoder {work}/clip.mp4 {tmp}/o.png --clips 1", "nearest frames come from other clips"),
        ("nearest {work}/encoder {work}/clip.mp4 {tmp}/o.png", "4 neighbors were requested; expected 1 to 2"),
        ("loss {work}/encoder {work}/clip.mp4 {tmp}/o.png", "loads 'vjepa2_hf_masked_latent_prediction'"),
        ("loss {work}/run/final {work}/clip.mp4 {tmp}/o.png --masks {tmp}/none.yaml", "none.yaml' does not exist"),
        ("loss {work}/run/final {work}/clip.mp4 {tmp}/o.png --mask_samples 0", "num_samples is 0"),
        ("loss {work}/run/final {work}/clip.mp4 {tmp}/o.png --teacher {work}/none", "There is no model at"),
        ("loss {work}/run/final {work}/clip.mp4 {tmp}/o.png --teacher {work}/encoder", "target_type is 'ema'"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(work, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        look.main([part.format(work=work, tmp=tmp_path) for part in arguments.split()])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
    assert not list(Path(tmp_path).iterdir())


def test_a_distilled_model_is_given_its_teacher(work, tmp_path, capsys):
    fields = {"target_type": "teacher", "teacher_hidden_size": TINY_ENCODER["hidden_size"], **TINY_PREDICTOR}
    VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=TINY_ENCODER, **fields)).save_pretrained(tmp_path)
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(tmp_path)
    arguments = ["loss", str(tmp_path), str(work / "clip.mp4"), str(tmp_path / "loss.png"), "--clips", "1"]
    with pytest.raises(SystemExit):
        look.main([*arguments, "--mask_samples", "2"])
    error = capsys.readouterr().err
    assert "needs its teacher" in error and "--teacher FOLDER" in error
    look.main([*arguments, "--mask_samples", "2", "--teacher", str(work / "encoder")])
    assert (tmp_path / "loss.png").is_file()


def test_weights_without_the_part_that_is_looked_at_are_refused(work, tmp_path):
    """Else the figure would show random numbers."""
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(work / "run" / "final")
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("predictor.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match="has no weights of a predictor"):
        look.load(VJepa2ForMaskedLatentPrediction, str(tmp_path), "predictor", "give another")
