"""Bad input gets one clear sentence that names the value, and scripts end with an exit code instead of a traceback."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR

import vjepa2_hf
from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2Planner,
    VJepa2VideoClassificationConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.data.video_writing import encode_video


EXAMPLES = Path(vjepa2_hf.__file__).parents[2] / "examples"
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Things:
    """One of everything, small."""

    def __init__(self, folder: Path):
        self.folder = folder
        wm = {"encoder_config": TINY_ENCODER, "action_dim": 2, "context_frames": 2, **TINY_PREDICTOR}
        self.encoder = VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))
        self.masked = VJepa2ForMaskedLatentPrediction(
            VJepa2MaskedLatentPredictionConfig(encoder_config=TINY_ENCODER, **TINY_PREDICTOR)
        )
        self.classifier = VJepa2ForVideoClassification(
            VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, pooler_type="linear")
        )
        self.world_model = VJepa2WorldModel(VJepa2WorldModelConfig(**wm, fps=10))
        self.pixels = VJepa2WorldModel(VJepa2WorldModelConfig(**wm, state_type="pixels"))
        self.processor = VJepa2VideoProcessor(size=32, crop_size=32)
        self.planner = VJepa2Planner(
            self.world_model, self.processor, horizon=2, num_candidates=4, num_iterations=1, num_elites=2
        )
        (folder / "broken.mp4").write_bytes(b"this is no video")
        (folder / "broken.png").write_bytes(b"this is no image")
        (folder / "fast.mp4").write_bytes(encode_video(np.stack([PICTURE, PICTURE]), fps=30))

    def path(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    torch.manual_seed(0)
    return Things(tmp_path_factory.mktemp("things"))


def clip(frames=4, channels=3, height=32, width=32):
    return torch.zeros(2, frames, channels, height, width)


def nan_clip():
    frames = np.zeros((2, 32, 32, 3), dtype=np.float32)
    frames[1, 3, 4, 0] = np.nan
    return frames


MASK = torch.tensor([[0, 1], [2, 3]])
LATENTS = torch.zeros(2, 3, 16, 24)

CASES = {
    "missing video": (lambda t: t.processor(t.path("missing.mp4")), "missing.mp4"),
    "missing image": (lambda t: t.processor(t.path("missing.png")), "missing.png"),
    "missing observation": (lambda t: t.planner(t.path("missing.png"), PICTURE), "missing.png"),
    "missing goal": (lambda t: t.planner(PICTURE, t.path("missing.png")), "missing.png"),
    "missing model": (lambda t: VJepa2Encoder.from_pretrained(t.path("nowhere")), "nowhere"),
    "missing planner": (lambda t: VJepa2Planner.from_pretrained(t.path("nowhere")), "nowhere"),
    "undecodable video": (lambda t: t.processor(t.path("broken.mp4")), "broken.mp4"),
    "undecodable image": (lambda t: t.planner(PICTURE, t.path("broken.png")), "broken.png"),
    "undecodable bytes": (lambda t: t.processor(b"no video at all"), "decode"),
    "channels, encoder": (lambda t: t.encoder(clip(channels=4)), "4 channels .*expected 3"),
    "channels, masked latent": (lambda t: t.masked(clip(channels=1), MASK, MASK), "1 channels .*expected 3"),
    "channels, classifier": (lambda t: t.classifier(clip(channels=2)), "2 channels .*expected 3"),
    "channels, world model": (lambda t: t.world_model.encode(clip(channels=4)), "4 channels .*expected 3"),
    "channels, pixel state": (lambda t: t.pixels.encode(clip(channels=4)), "4 channels .*expected 3"),
    "channels, processor": (lambda t: t.processor(np.zeros((4, 32, 32, 2), np.uint8)), r"\(4, 32, 32, 2\).*channels"),
    "channels last": (lambda t: t.encoder(clip().movedim(2, -1)), "32 channels .*Channels come third"),
    "target in the context": (
        lambda t: t.masked(clip(), [MASK, MASK], [MASK + 4, torch.tensor([[4, 5], [3, 6]])]),
        "mask set 1 both hold token 3 of clip 1",
    ),
    "dimensions": (lambda t: t.encoder(clip()[0]), r"shape \(4, 3, 32, 32\); expected"),
    "T not divisible": (lambda t: t.encoder(clip(frames=5)), "frames=5 .*multiple of 2"),
    "H not divisible": (lambda t: t.encoder(clip(height=30)), "height=30 .*multiple of 8"),
    "W not divisible": (lambda t: t.masked(clip(width=33), MASK, MASK), "width=33 .*multiple of 8"),
    "H not divisible, world model": (lambda t: t.world_model.encode(clip(height=30)), "height=30 .*multiple of 8"),
    "H not divisible, pixel state": (lambda t: t.pixels.encode(clip(height=30)), "height=30 .*multiple of 8"),
    "no frames": (lambda t: t.encoder(clip(frames=0)), "frames=0"),
    "actions, training": (
        lambda t: t.world_model(latents=LATENTS, actions=torch.zeros(2, 2, 3)),
        r"actions have shape \(2, 2, 3\); expected \(2, 2, 2\)",
    ),
    "actions, rollout": (
        lambda t: t.world_model.rollout(LATENTS[:, :1], torch.zeros(2, 4, 5)),
        r"actions have shape .*5\); expected",
    ),
    "actions, score": (
        lambda t: t.world_model.score(LATENTS[:, :1], LATENTS[:, :1], torch.zeros(2, 6, 4, 1)),
        r"actions have shape \(2, 6, 4, 1\)",
    ),
    "actions, warm start": (
        lambda t: t.planner(PICTURE, PICTURE, warm_start=np.zeros((2, 3))),
        r"warm_start has shape \(1, 2, 3\)",
    ),
    "processed goal on another grid": (
        lambda t: t.planner(clip(frames=1), clip(frames=1, height=64, width=64)),
        r"goal is \(64, 64\) pixels, the observation \(32, 32\)",
    ),
    "goal latents on another grid": (
        lambda t: t.world_model.score(LATENTS[:, :1], LATENTS[:, :1, :4], torch.zeros(2, 6, 4, 2)),
        "goal's latents have 4 tokens of size 24, the observation's 16",
    ),
    "pixels not finite": (lambda t: t.processor(nan_clip()), "not finite"),
    "observation not finite": (lambda t: t.planner(nan_clip()[1:], PICTURE), "not finite"),
    "processed observation not finite": (
        lambda t: t.planner(clip(frames=1) / 0, clip(frames=1)),
        "the observation has pixels that are not finite",
    ),
    "misspelt key": (lambda t: VJepa2EncoderConfig(hiden_size=8), "hiden_size.*hidden_size"),
    "misspelt nested key": (
        lambda t: VJepa2WorldModelConfig(encoder_config={"pach_size": 8}),
        "pach_size.*patch_size",
    ),
    "misspelt solver setting": (
        lambda t: VJepa2Planner(t.world_model, t.processor, num_elits=2),
        "num_elits.*num_elites",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_sentence(things, name):
    call, message = CASES[name]
    with pytest.raises((ValueError, OSError), match=message) as error:
        call(things)
    text = str(error.value)
    assert "\n" not in text.strip() and len(text) < 400


WARNINGS = {
    "aspect ratio": (
        lambda t: t.planner(PICTURE, np.concatenate([PICTURE, PICTURE], axis=1)),
        "aspect ratios 1.00 and 2.00",
    ),
    "frame rate": (
        lambda t: t.planner(t.path("fast.mp4"), PICTURE, context_actions=np.zeros((1, 2))),
        "30 frames per second, the model's steps are 10",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_doubtful_input_warns_and_goes_on(things, name):
    call, message = WARNINGS[name]
    with pytest.warns(UserWarning, match=message):
        assert call(things)["actions"].shape == (2, 2)


SCRIPTS = {
    "pretrain.py": (
        ["--config", str(EXAMPLES / "configs/demo/pretrain.yaml"), "encoder.hiden_size=8", "data=here"],
        "hiden_size.*hidden_size",
    ),
    "train_world_model.py": (
        ["--config", str(EXAMPLES / "configs/demo/world_model.yaml"), "data=nowhere", "encoder=pixels"],
        "nowhere",
    ),
    "plan.py": (
        [
            "--config",
            str(EXAMPLES / "configs/demo/plan.yaml"),
            "models={mine: runs/nowhere/final}",
            "baselines=[]",
            "episodes=1",
        ],
        "nowhere",
    ),
}


def ends_in_one_sentence(stderr: str, code: int | None, message: str) -> None:
    assert code not in (0, None) and "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_end_in_one_sentence_and_an_exit_code(monkeypatch, capfd, tmp_path, script):
    arguments, message = SCRIPTS[script]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments, f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    ends_in_one_sentence(capfd.readouterr().err, ended.value.code, message)


def test_the_exit_code_and_the_sentence_reach_the_shell(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent / "src")}
    command = [sys.executable, str(EXAMPLES / "make_video_shards.py"), "nowhere", "shards"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    ends_in_one_sentence(done.stderr, done.returncode, "nowhere")
