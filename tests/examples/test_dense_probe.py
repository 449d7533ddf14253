"""`examples/dense_probe.py` and `examples/propagate_labels.py` at tiny size."""

import json

import dense_probe
import numpy as np
import PIL.Image
import propagate_labels
import pytest
import record_episodes
import torch
from builders import TINY_ENCODER
from script_runs import run_script

from vjepa2_hf import VJepa2Encoder, VJepa2EncoderConfig, VJepa2VideoProcessor
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.probing.dense_heads import DenseHead


TINY = ["training.steps=4", "training.batch_size=2", "num_threads=1", "size=32"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """An encoder, and episodes of pushing."""
    folder = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER)).save_pretrained(folder / "encoder")
    VJepa2VideoProcessor(size=32, crop_size=32, image_mean=[0.5] * 3).save_pretrained(folder / "encoder")
    recorder = ["--env", PUSHING, "--policy", "drawn_to_block", "--episodes", "8", "--length", "6", "--num_proc", "1"]
    record_episodes.main([*recorder, "--output", str(folder / "episodes")])
    return folder


def run(monkeypatch, work, output, *settings):
    run_script(monkeypatch, dense_probe, [f"encoder={work / 'encoder'}", f"output_dir={output}", *TINY, *settings])
    assert (output / "predictions.png").stat().st_size > 1000
    return json.loads((output / "results.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


def test_episodes_of_an_environment(work, tmp_path, monkeypatch, capsys):
    episodes = [f"data={work / 'episodes'}", "source=episodes", "validation_fraction=0.2", "selection_fraction=0.3"]
    results = run(monkeypatch, work, tmp_path / "one", *episodes)
    assert results["labels"] == ["floor", "pusher", "block"] and 0 < results["validation"]["mean_iou"] < 1
    assert sum(results["clips"].values()) == 8 and len(results["heads"]) == 2
    assert f"mean_iou {results['validation']['mean_iou']:.4f}" in capsys.readouterr().out
    head = DenseHead.from_pretrained(tmp_path / "one" / "head")
    assert head.predict(torch.randn(1, 2, 4, 4, 24), (64, 64)).shape == (1, 2, 64, 64)
    assert run(monkeypatch, work, tmp_path / "again", *episodes) == results  # from the cached features
    more = ["task=regression", "random_weights=true", "frames_per_clip=1", "label_size=64"]
    results = run(monkeypatch, work, tmp_path / "two", *episodes, *more)
    assert results["validation"]["rmse_of_the_mean"] > 5 and results["labels"] is None  # pixels of 64


def test_images_with_masks(work, tmp_path, monkeypatch):
    for name in ("images", "masks", "later", "later_masks"):
        (tmp_path / name).mkdir()
    for number in range(8):
        mask = np.zeros((24, 40), np.uint8)
        mask[:, 5 * number :] = 2
        mask[:3] = 255
        folder = "later" if number > 5 else "images"
        PIL.Image.fromarray(np.repeat(mask[..., None], 3, -1)).save(tmp_path / folder / f"{number}.png")
        masks = tmp_path / ("later_masks" if number > 5 else "masks")
        PIL.Image.fromarray(mask).save(masks / f"{number}.png")
    data = [f"data={tmp_path / 'images'}", f"masks={tmp_path / 'masks'}", "size=[24, 40]", "selection_fraction=0.3"]
    later = [f"validation_data={tmp_path / 'later'}", f"validation_masks={tmp_path / 'later_masks'}"]
    results = run(monkeypatch, work, tmp_path / "segments", *data, *later)
    assert len(results["labels"]) == 3 and results["clips"]["validation"] == 2
    assert results["validation"]["per_category_accuracy"][1] is None  # no pixel has the label 1
    depth = ["task=regression", "label_scale=0.01", "unknown_label=255", "validation_fraction=0.3"]
    table = tmp_path / "dataset"  # the same images as a folder of `datasets`
    table.mkdir()
    for name in ("images", "masks"):
        (tmp_path / name).rename(table / name)
    lines = [f'{{"file_name": "images/{n}.png", "mask_file_name": "masks/{n}.png"}}\n' for n in range(6)]
    (table / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    results = run(monkeypatch, work, tmp_path / "depths", f"data={table}", *data[2:], *depth)
    assert 0 < results["validation"]["rmse_of_the_mean"] < 0.02 and sum(results["clips"].values()) == 6


def test_images_that_are_all_skipped_end_in_a_sentence(work, tmp_path, monkeypatch, capsys):
    for name, size in (("images", (24, 40)), ("masks", (24, 24))):
        (tmp_path / name).mkdir()
        for number in range(3):
            PIL.Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(SystemExit):
        run(monkeypatch, work, tmp_path / "none", f"data={tmp_path / 'images'}", f"masks={tmp_path / 'masks'}")
    said = capsys.readouterr().err
    assert (
        "All 3 episodes, clips or images of" in said
        and "the first of them 0 (0 has frames of shape (1, 24, 40)" in said
    )
    assert "repair them, or change the setting that refuses them" in said and not (tmp_path / "none").exists()


def test_wrong_settings_end_in_a_sentence(work, tmp_path, monkeypatch, capsys):
    for settings, message in (
        ([f"data={work / 'episodes'}", "source=episodes", "masks=x"], "use source=images"),
        ([f"data={work / 'episodes'}", "source=episodes", "size=30"], "multiples of 8"),
        ([f"data={work / 'episodes'}", "source=episodes", "levels=all"], "output_levels are None"),
        ([f"data={work / 'episodes'}", "learning_rates=[0.1, -0.1]"], "a number in learning_rates is -0.1; expected"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, work, tmp_path / "none", *settings)
        assert message in capsys.readouterr().err


def test_a_mask_is_propagated(work, tmp_path, capsys):
    frames = np.full((6, 32, 48, 3), 40, np.uint8)
    masks = np.zeros((6, 32, 48), np.uint8)
    for t in range(6):
        masks[t, 8:24, 4 * t : 4 * t + 16] = 1
    frames[masks == 1] = (220, 30, 30)
    (tmp_path / "video.mp4").write_bytes(encode_video(frames, fps=10))
    (tmp_path / "masks").mkdir()
    for t in (0, 2, 4):
        PIL.Image.fromarray(masks[t]).save(tmp_path / "masks" / f"{t}.png")
    inputs = [str(work / "encoder"), str(tmp_path / "video.mp4"), str(tmp_path / "masks")]
    size = ["--size", "32", "48", "--radius", "-1"]
    propagate_labels.main([*inputs, str(tmp_path / "out.png"), "--frames", "3", "--every", "2", *size])
    results = json.loads((tmp_path / "out.json").read_text())
    assert set(results["scores"]["by_frame"]) == {"2", "4"} and results["radius"] is None
    assert f"J mean {results['scores']['mean']:.3f} over 2 frames" in capsys.readouterr().out
    found = np.load(tmp_path / "out.npz")
    assert found["labels"].shape == (3, 32, 48) and found["frames"].tolist() == [0, 2, 4]
    propagate_labels.main([*inputs, str(tmp_path / "out.gif"), "--frames", "6", "--by", "clip", *size])
    assert np.load(tmp_path / "out.npz")["frames"].tolist() == [1, 3, 5]
    with pytest.raises(SystemExit):
        propagate_labels.main([*inputs, str(tmp_path / "x.png"), "--frames", "9"])
    assert "within the video" in capsys.readouterr().err
