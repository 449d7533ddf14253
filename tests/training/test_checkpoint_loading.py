"""`from_pretrained` of a training checkpoint: the model, its encoder, its processor; pipelines and the converter."""

import functools
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import FIXTURES, build_classifier, build_encoder, build_masked_latent, build_planner, clips, noise_image
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
from vjepa2_hf.probing.sweep import FineTuning, ProbeSweep
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


def probe_run(folder, sweep, inputs, labels, encoder="encoder"):
    """A checkpoint of a sweep after a few steps, in a run of `train_probe.py`."""
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([{**group, "lr": group["peak"]} for group in sweep.optimizer_groups()])
    sweep, optimizer = accelerator.prepare(sweep.train(), optimizer)
    for _ in range(3):
        sweep(inputs, labels).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    sweep(inputs, labels)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(f"encoder: {folder.parent / encoder}\n")
    write_more = functools.partial(write_model_files, model=sweep, processors=[PROCESSOR])
    return save_checkpoint(accelerator, folder, 3, write_more=write_more)


def test_a_probes_checkpoint_loads_with_its_encoder_and_best_head(tmp_path):
    model = build_classifier()
    model.config.problem_type = "single_label_classification"
    model.encoder.save_pretrained(tmp_path / "encoder")
    tokens = model.encode_tokens(clips(batch_size=3))[0].detach()
    sweep = ProbeSweep(model, [(1e-6, 0.0), (1e-2, 0.0), (1e-5, 0.0)])
    checkpoint = probe_run(tmp_path / "run", sweep, tokens, torch.tensor([0, 1, 2]))
    loaded = VJepa2ForVideoClassification.from_pretrained(checkpoint)
    assert loaded.config.id2label == model.config.id2label
    expected = sweep.eval().logits(tokens)[1]
    torch.testing.assert_close(loaded(clips(batch_size=3)).logits, expected, rtol=1e-4, atol=1e-5)
    model.encoder.layernorm.bias.data += 1
    model.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="were trained on other weights than those of the encoder"):
        VJepa2ForVideoClassification.from_pretrained(checkpoint)


def test_a_linear_probes_checkpoint_folds_what_is_standardized(tmp_path):
    torch.manual_seed(0)
    fields = {"pooler_type": "linear", "num_labels": 2, "problem_type": "regression"}
    model = VJepa2ForVideoClassification.from_encoder(build_encoder(), **fields)
    model.encoder.save_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        inputs = model.pool(*model.encode_tokens(clips(batch_size=6)))
    labels = 7 + 3 * torch.randn(6, 2)
    statistics = [(values.mean(0), values.std(0)) for values in (inputs, labels)]
    sweep = ProbeSweep(model, [(1e-2, 0.0)], *statistics)
    checkpoint = probe_run(tmp_path / "run", sweep, inputs, labels)
    expected = sweep.predictions(sweep.logits(inputs))[0]
    loaded = VJepa2ForVideoClassification.from_pretrained(checkpoint)
    torch.testing.assert_close(loaded(clips(batch_size=6)).logits, expected, rtol=1e-3, atol=1e-4)


def test_a_fine_tuned_classifiers_checkpoint_loads(tmp_path):
    model = build_classifier()
    model.config.problem_type = "single_label_classification"
    sweep = FineTuning(model, (1e-2, 0.0))
    checkpoint = probe_run(tmp_path / "run", sweep, clips(batch_size=3), torch.tensor([0, 1, 2]), "gone")
    loaded = VJepa2ForVideoClassification.from_pretrained(checkpoint)
    assert_same(loaded, model.state_dict())
    assert not torch.equal(loaded.encoder.layernorm.bias, build_classifier().encoder.layernorm.bias)
