"""examples/train_decoder.py at its tiny size: what a run leaves, resuming, and settings that do not fit."""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import train_decoder
from builders import TINY_ENCODER
from record_episodes import episode_features

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2PixelDecoder,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
)
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.training.run import Run, read_metrics


TINY = [
    "max_steps=4",
    "batch_size=4",
    "num_threads=1",
    "log_every=1",
    "save_every=2",
    "validation_fraction=0.5",
    "frames_per_episode=3",
    "decoder={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
    "learning_rate={peak: 1e-3, warmup_steps: 2}",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """Eight episodes of a moving square, and the folder of a world model that was never trained."""
    folder = tmp_path_factory.mktemp("decoder")
    rng = np.random.default_rng(0)

    def rows():
        for number in range(8):
            frames = np.full((5, 32, 32, 3), 40, np.uint8)
            for frame, (x, y) in zip(frames, rng.integers(4, 28, (5, 2)), strict=True):
                frame[y - 4 : y + 4, x - 4 : x + 4] = 220
            video = {"bytes": encode_video(frames, fps=10), "path": None}
            actions = np.zeros((4, 2), np.float32)
            yield {"video": video, "actions": actions, "fps": 10.0, "episode_id": f"{number:03d}"}

    write_shards(rows(), folder / "data", episode_features([]), num_shards=1)
    torch.manual_seed(0)
    sizes = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))
    VJepa2WorldModel.from_encoder(encoder, action_dim=2, **sizes).save_pretrained(folder / "world_model")
    processor = VJepa2VideoProcessor(size=32, crop_size=32, image_mean=[0.4] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(folder / "world_model")
    return folder / "data", folder / "world_model"


def run_script(monkeypatch, inputs, output_dir: Path, *overrides: str) -> list[dict]:
    data, world_model = inputs
    arguments = [f"data={data}", f"world_model={world_model}", f"output_dir={output_dir}", *TINY, *overrides]
    monkeypatch.setattr(sys, "argv", ["train_decoder.py", *arguments])
    train_decoder.main()
    return read_metrics(output_dir)


def test_a_small_share_of_few_episodes_holds_out_one(monkeypatch, inputs, tmp_path):
    run_script(monkeypatch, inputs, tmp_path / "run", "validation_fraction=0.001", "max_steps=1")
    assert json.loads((tmp_path / "run" / "reconstruction_error.json").read_text())["frames"] == 3


def test_run_leaves_a_decoder_its_errors_and_a_picture(monkeypatch, inputs, tmp_path):
    metrics = run_script(monkeypatch, inputs, tmp_path / "run")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    decoder = VJepa2PixelDecoder.from_pretrained(tmp_path / "run" / "final").eval()
    assert (decoder.config.num_latents, decoder.config.latent_size, decoder.config.image_std) == (16, 24, [0.2] * 3)
    world_model = VJepa2WorldModel.from_pretrained(inputs[1]).eval()
    future = world_model.rollout(world_model.encode(torch.zeros(1, 1, 3, 32, 32)), torch.zeros(1, 2, 3, 2))
    assert decoder.decode(future).shape == (1, 2, 3, 3, 32, 32)
    numbers = json.loads((tmp_path / "run" / "reconstruction_error.json").read_text())
    assert numbers["frames"] % 3 == 0 and numbers["error"] > 0 and numbers["mean_picture_error"] > 0
    assert numbers["psnr"] == pytest.approx(-10 * np.log10(numbers["error"]))
    with PIL.Image.open(tmp_path / "run" / "reconstruction.png") as picture:
        assert picture.height > 2 * 32 and picture.width > 6 * 32
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_the_decoder_sees_the_frames_that_the_encoder_sees(inputs):
    """Frames kept as bytes and normalised later are those that the processor gives at once, to the bit."""
    processor = VJepa2VideoProcessor.from_pretrained(inputs[1])
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 40, 3), dtype=np.uint8)
    at_once = processor(frames, return_tensors="pt")["pixel_values_videos"]
    as_bytes = processor(frames, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values_videos"]
    assert as_bytes.dtype == torch.uint8
    assert torch.equal(processor.normalize_cropped(as_bytes[0]).unsqueeze(0), at_once)


def test_training_leaves_the_world_model_as_it_is(monkeypatch, inputs, tmp_path):
    before = VJepa2WorldModel.from_pretrained(inputs[1]).state_dict()
    held = []
    original = VJepa2WorldModel.from_pretrained
    monkeypatch.setattr(VJepa2WorldModel, "from_pretrained", lambda path: held.append(original(path)) or held[-1])
    run_script(monkeypatch, inputs, tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in held[0].state_dict().items())


def test_stopped_run_resumes_to_the_same_losses(monkeypatch, inputs, tmp_path):
    whole = run_script(monkeypatch, inputs, tmp_path / "whole")
    original = Run.check_finite

    def stop(run, step, *numbers):
        if step == 4:
            raise KeyboardInterrupt
        return original(run, step, *numbers)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "check_finite", stop)
        run_script(patch, inputs, tmp_path / "stopped")
    assert len(read_metrics(tmp_path / "stopped")) == 3
    assert run_script(monkeypatch, inputs, tmp_path / "stopped", "resume=latest") == whole


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validation_fraction=0.0", "0 held-out ones"),
        ("validation_fraction=1.0", "gave 0 training episodes"),
        ("decoder.patch_size=5", "patch_size=5 must divide crop_size=32"),
        ("world_model=runs/nothing/final", "There is no folder 'runs/nothing/final'"),
        ("batch_size=0", "batch_size must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(monkeypatch, capsys, inputs, tmp_path, override, message):
    with pytest.raises(SystemExit) as exit_:
        run_script(monkeypatch, inputs, tmp_path / "run", override)
    assert exit_.value.code == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
