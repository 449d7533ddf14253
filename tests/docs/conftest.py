"""What several pages start from: the demo's encoder and episodes, at tiny size."""

from pathlib import Path

import pytest
import record_episodes
import torch
from builders import TINY_ENCODER, TINY_PREDICTOR
from script_runs import TINY_RECORDING

from vjepa2_hf import VJepa2ForMaskedLatentPrediction, VJepa2VideoProcessor
from vjepa2_hf import VJepa2MaskedLatentPredictionConfig as MaskedConfig


@pytest.fixture
def demo_runs(tmp_path, monkeypatch) -> Path:
    """A working directory with runs/demo/pretrain/final and runs/demo/episodes."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder = {**TINY_ENCODER, "crop_size": 64}
    model = VJepa2ForMaskedLatentPrediction(MaskedConfig(encoder_config=encoder, **TINY_PREDICTOR))
    model.save_pretrained("runs/demo/pretrain/final")
    VJepa2VideoProcessor(size=64, crop_size=64).save_pretrained("runs/demo/pretrain/final")
    pushing = ["--env", "vjepa2_hf/Pushing-v0", "--policy", "uniform", *TINY_RECORDING]
    record_episodes.main([*pushing, "--output", "runs/demo/episodes"])
    return tmp_path
