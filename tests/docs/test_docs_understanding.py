"""The commands and snippets of docs/long_video.md, anomalies.md, looking.md and dense.md run, at tiny size."""

import json
from pathlib import Path

import detect_anomalies
import numpy as np
import PIL.Image
import pytest
import record_episodes
import torch
from builders import ROOT, TINY_ENCODER, TINY_PREDICTOR, moving_square
from script_runs import blocks, commands, run_command

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
)
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig
from vjepa2_hf.video_io import VideoReader


WORLD_MODEL = "runs/two_rooms/world_model_distance/final"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with what the pages name."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR))
    model.save_pretrained("runs/mine/final")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained("runs/mine/final")
    Path("my_videos").mkdir()
    for path in ("lecture.mp4", "my_videos/a.mp4", "vtest.avi"):
        Path(path).write_bytes(moving_square(240 if path == "vtest.avi" else 60))
    return tmp_path


def test_long_video(work):
    (command,) = commands("long_video.md")
    run_command(command)
    for block in blocks("long_video.md", "python"):
        names = {}
        exec(block, names)
        if "features" in names:
            assert names["features"].shape[1:] == (16, 24) and names["step"] == pytest.approx(40)
        if "rows" in names:
            assert len(names["rows"]["embedding"][0]) == 24


def test_anomalies(work):
    config = str(ROOT / "examples" / "configs" / "demo" / "pretrain_future.yaml")
    tiny = ["max_steps=2", "batch_size=2", "crop_size=32", "encoder.hidden_size=24", "predictor.hidden_size=24"]
    tiny += ["encoder.num_hidden_layers=1", "predictor.num_hidden_layers=1", "num_workers=0"]
    for command in commands("anomalies.md"):
        if any(part.startswith("seed=") for part in command):
            continue  # the other models are trained as the first one; test_detect_anomalies.py measures several
        if any(part.endswith("pretrain.py") for part in command):
            command = [config if part.endswith(".yaml") else part for part in command] + tiny
        if any(part.endswith("detect_anomalies.py") for part in command) and "--cut" not in command:
            command = command[: command.index("--more_models")]  # and the repository's own page and results stay
            command += ["--placements", "2", "--segment", "40", "--length", "8"]
        run_command(command)
    results = Path("runs/anomalies")
    assert {path.name for path in results.glob("*.png")} == {
        "object_that_jumps.png", "frames_reversed.png", "frozen.png",
    }  # fmt: skip
    teacher = VJepa2EncoderConfig(**{**TINY_ENCODER, "hidden_size": 36, "num_attention_heads": 3})
    VJepa2Encoder(teacher).save_pretrained("runs/teacher/final")
    distilled = MaskedConfig(
        encoder_config=TINY_ENCODER, target_type="teacher", teacher_hidden_size=36, **TINY_PREDICTOR
    )
    VJepa2ForMaskedLatentPrediction(distilled).save_pretrained("runs/distilled/final")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained("runs/distilled/final")
    names = {}
    for block in blocks("anomalies.md", "python"):
        exec(block, names)
    assert names["result"]["is_anomaly"].shape == (240,) and Path("new.png").is_file()


def test_looking(work):
    fields = {"num_labels": 3, "num_pooler_layers": 1, "pooler_num_attention_heads": 2}
    VJepa2ForVideoClassification.from_encoder("runs/mine/final", **fields).save_pretrained("runs/probes/mine/final")
    VJepa2WorldModel.from_encoder("runs/mine/final", action_dim=2, **TINY_PREDICTOR).save_pretrained(WORLD_MODEL)
    for folder in ("runs/probes/mine/final", WORLD_MODEL):
        VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained(folder)
    Path("my_videos/b.mp4").write_bytes(moving_square(12))
    for command in commands("looking.md"):
        run_command(command)
    names = {"features.gif", "attention.png", "nearest.png", "loss.png"}
    assert {path.name for path in Path("runs/looks").iterdir()} == names
    for block in blocks("looking.md", "python"):
        exec(block, {})
    with VideoReader("features.mp4") as reader:
        assert len(reader) == 16
    assert Path("features.png").is_file() and Path("distances.png").is_file()


def test_dense_features(work):
    VJepa2Encoder.from_pretrained("runs/mine/final").save_pretrained("runs/other/final")
    VJepa2VideoProcessor(size=32, crop_size=32).save_pretrained("runs/other/final")
    recorder = ["--env", "vjepa2_hf/Pushing-v0", "--policy", "drawn_to_block", "--length", "6", "--num_proc", "1"]
    record_episodes.main([*recorder, "--episodes", "8", "--output", "runs/demo/episodes"])
    with VideoReader("lecture.mp4") as reader:
        height, width = reader.frames([0]).shape[1:3]
    for folder in ("photos", "photo_masks"):
        Path(folder).mkdir()
    for number in range(8):
        mask = np.zeros((height, width), np.uint8)
        mask[:8, :8] = 1
        PIL.Image.fromarray(np.repeat(mask[..., None], 3, -1)).save(f"photos/{number}.png")
        PIL.Image.fromarray(mask).save(f"photo_masks/{number}.png")
    PIL.Image.fromarray(mask).save("first_frame.png")
    for command in commands("dense.md"):
        tiny = ["training.steps=2", "selection_fraction=0.3"]
        run_command(command + (tiny if "examples/dense_probe.py" in command else []))
    for path in ("pushing/predictions.png", "photos/head/model.safetensors", "followed.gif", "compared.png"):
        assert (Path("runs/dense") / path).is_file()
    for block in blocks("dense.md", "python"):
        exec(block, {})


def test_the_table_is_that_of_the_last_measurement():
    results = json.loads((ROOT / "results" / "anomalies.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "anomalies.md").read_text(encoding="utf-8")
    written = page.split("<!-- anomalies:begin -->")[1].split("<!-- anomalies:end -->")[0]
    assert written.strip() == detect_anomalies.format_tables(results).strip()
