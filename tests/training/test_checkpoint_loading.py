"""`from_pretrained` of a training checkpoint: the model, its encoder, its processor; pipelines and the converter."""

import functools
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import FIXTURES, build_classifier, build_masked_latent, build_planner, clips, noise_image
from safetensors.torch import load_file
from transformers import AutoModel, AutoVideoProcessor, pipeline

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2Planner,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
)
from vjepa2_hf.hub.conversion import convert
from vjepa2_hf.training.checkpoints import save_checkpoint, write_model_files


OLD_RUNS = FIXTURES / "v0_1" / "runs"
PROCESSOR = VJepa2VideoProcessor(size=32, crop_size=32, image_mean=[0.4, 0.5, 0.6])


def checkpoint_of(model, folder, processor=PROCESSOR):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    write_more = functools.partial(write_model_files, model=model, processors=[processor])
    return save_checkpoint(accelerator, folder, 3, write_more=write_more)


def assert_same(loaded, state) -> None:
    own = loaded.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], value) for name, value in state.items())


def test_a_pretraining_checkpoint_loads(tmp_path):
    model = build_masked_latent(normalize_targets="clip")
    model.update_target_encoder(0.5)
    checkpoint = checkpoint_of(model, tmp_path)
    loaded = VJepa2ForMaskedLatentPrediction.from_pretrained(checkpoint)
    assert loaded.config.normalize_targets == "clip"
    assert_same(loaded, model.state_dict())
    assert_same(VJepa2Encoder.from_pretrained(checkpoint), model.target_encoder.state_dict())
    assert_same(VJepa2Encoder.from_pretrained(str(checkpoint), component="encoder"), model.encoder.state_dict())
    assert isinstance(AutoModel.from_pretrained(checkpoint), VJepa2ForMaskedLatentPrediction)
    assert AutoVideoProcessor.from_pretrained(checkpoint).image_mean == PROCESSOR.image_mean
    extract = pipeline("video-feature-extraction", model=str(checkpoint), device="cpu")
    assert len(extract(np.stack([noise_image(i) for i in range(4)]))) > 0


def test_a_world_model_checkpoint_loads_and_plans(tmp_path):
    planner = build_planner()
    checkpoint = checkpoint_of(planner.model, tmp_path, planner.video_processor)
    assert_same(VJepa2WorldModel.from_pretrained(checkpoint), planner.model.state_dict())
    again = VJepa2Planner.from_pretrained(
        checkpoint, device="cpu", horizon=3, num_candidates=8, num_iterations=1, num_elites=2
    )
    assert again(noise_image(0), noise_image(1), seed=0)["actions"].shape == (3, 2)


def test_a_classifiers_checkpoint_loads(tmp_path):
    model = build_classifier()
    checkpoint = checkpoint_of(model, tmp_path)
    loaded = VJepa2ForVideoClassification.from_pretrained(checkpoint)
    assert loaded.config.id2label == model.config.id2label
    torch.testing.assert_close(loaded(clips()).logits, model(clips()).logits, rtol=0, atol=0)


def test_a_checkpoint_of_an_older_pretraining_run_takes_the_runs_config(tmp_path):
    checkpoint = OLD_RUNS / "pretrain" / "checkpoint-3"
    state = load_file(checkpoint / "model.safetensors")
    assert_same(VJepa2ForMaskedLatentPrediction.from_pretrained(checkpoint), state)
    own = {name.removeprefix("target_encoder."): value for name, value in state.items() if name.startswith("target_")}
    assert_same(VJepa2Encoder.from_pretrained(checkpoint), own)
    alone = shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    assert_same(VJepa2Encoder.from_pretrained(convert(checkpoint, tmp_path / "converted")), own)
    with pytest.raises(ValueError, match="checkpoint-3 is a checkpoint without config.json, from an older version"):
        VJepa2Encoder.from_pretrained(alone)


def test_a_checkpoint_of_an_older_world_model_says_where_its_config_is():
    with pytest.raises(ValueError, match="is a checkpoint without config.json, .* load the run's final/, or copy"):
        VJepa2WorldModel.from_pretrained(next((OLD_RUNS / "world_model").glob("checkpoint-*")))


def test_a_checkpoint_in_shards_says_so(tmp_path):
    checkpoint = checkpoint_of(build_masked_latent(), tmp_path)
    (checkpoint / "model.safetensors").rename(checkpoint / "model.distcp")
    with pytest.raises(ValueError, match="without model.safetensors, as FSDP writes it in shards: resume the run"):
        VJepa2Encoder.from_pretrained(checkpoint)


def test_a_checkpoint_that_does_not_exist_is_not_looked_for_on_the_hub():
    with pytest.raises(FileNotFoundError, match="There is no folder 'mine/checkpoint-7'"):
        VJepa2Encoder.from_pretrained("mine/checkpoint-7")
