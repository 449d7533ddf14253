"""Pretraining of V-JEPA 2.1: levels, the loss of context tokens and its warm-up, spikes of the loss, distillation."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pretrain
import pytest
import torch
from accelerate import Accelerator
from builders import EXAMPLES, TINY_ENCODER, TinyRunConfig, run_group
from pretrain import PretrainConfig, build_model_config
from safetensors.torch import load_file
from script_runs import metrics, pretrain_in_group, run_pretrain, write_square_shards

from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2MaskedLatentPredictionConfig,
)
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.monitor import SpikeGuard
from vjepa2_hf.training.run import Run
from vjepa2_hf.training.settings import load_config


DENSE = [
    "encoder={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, patch_size: 8, drop_path_rate: 0.2, "
    "image_tubelet_size: 1, modality_embeddings: true, rope_interleave: true, rope_grid_size: 16, "
    "output_levels: [0, 1]}",
    "predictor={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_mask_tokens: 8, levels: true, "
    "modality_embeddings: true, predict_context: true}",
    "context_loss_weight=0.5",
]
WARMUP = "context_loss_warmup=[2, 5]"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_square_shards(tmp_path_factory.mktemp("shards") / "train")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"images.data={folder}"


def test_the_loss_falls_on_videos_and_images(monkeypatch, shards, images, tmp_path):
    settings = ["max_steps=40", "learning_rate.peak=5e-3", "save_every=40", "ema.start=0.99"]
    lines = run_pretrain(monkeypatch, shards, tmp_path, *DENSE, images, *settings)
    for name in ("loss", "prediction_loss", "context_loss", "image_loss", "video_loss"):
        first, last = (np.mean([line[name] for line in part]) for part in (lines[:5], lines[-5:]))
        assert last < 0.97 * first, name
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final")
    assert model.config.context_loss_weight == 0.5 and model.config.num_levels == 2


def test_a_process_of_images_and_one_of_videos_learn_what_one_process_learns(monkeypatch, shards, images, tmp_path):
    """Weights of one modality alone have no gradient in the other's process, and the norm of a level that the loss
    does not read has none anywhere."""
    dense = [setting.replace("drop_path_rate: 0.2", "drop_path_rate: 0.0") for setting in DENSE]
    settings = [*dense, images, "max_steps=3", "predictor.levels=false"]
    one = run_pretrain(monkeypatch, shards, tmp_path / "one", *settings)
    run_group(pretrain_in_group, shards, tmp_path / "two", *settings)
    for line, other in zip(one, metrics(tmp_path / "two"), strict=True):
        for name in ("loss", "prediction_loss", "context_loss", "image_loss", "video_loss", "gradient_norm"):
            assert other[name] == pytest.approx(line[name], rel=1e-4), name
    one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=name)


def test_the_weight_rises_between_two_steps(monkeypatch, shards, tmp_path):
    lines = run_pretrain(monkeypatch, shards, tmp_path, *DENSE, WARMUP)
    weights = [line["context_loss_weight"] for line in lines]
    assert weights == pytest.approx([0, 0, 0.5 / 3, 1 / 3, 0.5, 0.5])
    for line, weight in zip(lines, weights, strict=True):
        assert line["loss"] == pytest.approx(line["prediction_loss"] + weight * line["context_loss"], rel=1e-5)


def test_without_a_warmup_it_is_constant():
    config = PretrainConfig(output_dir="a", data="b", context_loss_weight=0.5)
    assert [config.scheduled(step)["context_loss_weight"] for step in (1, 2, 1000)] == [0.5, 0.5, 0.5]
    assert "context_loss_weight" not in PretrainConfig(output_dir="a", data="b").scheduled(1)


def stop_at_the_first_checkpoint(monkeypatch, *arguments) -> None:
    class Stop(Exception):
        pass

    def stop(self, step, *arguments, save=Run.save_checkpoint):
        save(self, step, *arguments)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "save_checkpoint", stop)
        run_pretrain(monkeypatch, *arguments)


def test_a_resumed_run_repeats_warmup_and_skipped_steps_to_the_bit(monkeypatch, shards, images, tmp_path):
    guard = SpikeGuard.__init__
    monkeypatch.setattr(SpikeGuard, "__init__", lambda self, deviations: guard(self, deviations, window=2))
    settings = [*DENSE, WARMUP, images, "skip_loss_spikes=0.1", "max_steps=8", "save_every=4"]
    whole = run_pretrain(monkeypatch, shards, tmp_path / "whole", *settings)
    assert 0 < whole[3]["skipped_steps"] <= whole[-1]["skipped_steps"] < 6

    stop_at_the_first_checkpoint(monkeypatch, shards, tmp_path / "parts", *settings)
    assert metrics(tmp_path / "parts") == whole[:4]
    assert run_pretrain(monkeypatch, shards, tmp_path / "parts", *settings, "resume=latest") == whole
    one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


class TestSpikes:
    def test_only_losses_far_above_a_full_window_are_spikes(self):
        guard = SpikeGuard(deviations=2.0, window=4)
        assert [guard.is_spike(loss) for loss in (1.0, 9.0, 1.0, 1.0)] == [False] * 4
        # mean 3 and standard deviation 3.46 of the last four
        assert not guard.is_spike(9.9)
        assert SpikeGuard(2.0, 4).state_dict() == {"losses": [], "skipped": 0}
        for loss in (1.0, 1.1, 0.9, 1.0):
            guard.is_spike(loss)
        assert guard.is_spike(1.2) and not guard.is_spike(1.05) and guard.skipped == 1

    def test_a_lasting_rise_is_accepted(self):
        guard = SpikeGuard(deviations=1.5, window=4)
        found = [guard.is_spike(loss) for loss in [1.0, 1.1, 1.0, 1.1] + [5.0, 5.1] * 4]
        assert found[4] and not any(found[-4:])

    def test_its_state_continues(self):
        one, two = SpikeGuard(2.0, 3), SpikeGuard(2.0, 3)
        for loss in (1.0, 1.2, 0.9, 7.0):
            one.is_spike(loss)
        two.load_state_dict(json.loads(json.dumps(one.state_dict())))
        losses = (1.0, 9.0, 30.0, 1.0)
        assert [one.is_spike(loss) for loss in losses] == [two.is_spike(loss) for loss in losses]
        assert one.state_dict() == two.state_dict()

    @pytest.mark.parametrize("fused", [True, False])
    def test_a_skipped_step_changes_nothing(self, tmp_path, fused):
        layer = torch.nn.Linear(2, 1)
        loop = TrainingLoop(TinyRunConfig(output_dir=str(tmp_path), max_steps=4), "test", Accelerator(cpu=True))
        loop.prepare(layer, torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5, fused=fused))
        loop.guard = SpikeGuard(deviations=1.0, window=2)
        seen, found = [], []

        def objective(value):
            loss = loop.model(torch.ones(1, 2)).sum() * 0 + value + loop.model.weight.sum() * 0.1
            loop.accelerator.backward(loss)
            return {"loss": torch.tensor(value)}

        batches = iter([([], value) for value in (1.0, 1.5, 8.0, 1.0)])
        for _ in loop.steps():
            before = layer.weight.detach().clone()
            seen.append(loop.update(batches, objective)["skipped_steps"])
            found.append(torch.equal(before, layer.weight))
            assert loop.is_skipped == found[-1]
        assert found == [False, False, True, False] and seen == [0, 0, 1, 1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    VJepa2Encoder(VJepa2EncoderConfig(**{**TINY_ENCODER, "hidden_size": 32})).save_pretrained(folder)
    return folder


class TestTeacher:
    STUDENT = [
        DENSE[0],
        "predictor={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, predict_context: true, "
        "modality_embeddings: true, teacher_hidden_size: 32}",
        "context_loss_weight=0.5",
        "target_type=teacher",
    ]

    def test_a_student_learns_from_it_and_does_not_hold_it(self, monkeypatch, shards, teacher, tmp_path):
        settings = [*self.STUDENT, f"teacher={teacher}", "max_steps=30", "learning_rate.peak=5e-3", "save_every=30"]
        lines = run_pretrain(monkeypatch, shards, tmp_path, *settings)
        first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:5], lines[-5:]))
        assert last < 0.9 * first
        names = set(load_file(tmp_path / "final" / "model.safetensors"))
        assert {name.split(".")[0] for name in names} == {"encoder", "target_encoder", "predictor"}
        assert VJepa2Encoder.from_pretrained(tmp_path / "final").config.hidden_size == 16

    def test_a_resumed_student_repeats_the_uninterrupted_one(self, monkeypatch, shards, images, teacher, tmp_path):
        settings = [*self.STUDENT, f"teacher={teacher}", images, "max_steps=4", "save_every=2"]
        whole = run_pretrain(monkeypatch, shards, tmp_path / "whole", *settings)
        stop_at_the_first_checkpoint(monkeypatch, shards, tmp_path / "parts", *settings)
        assert run_pretrain(monkeypatch, shards, tmp_path / "parts", *settings, "resume=latest") == whole
        one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items())

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["target_type=teacher"], "target_type is teacher and teacher None; set both, or neither"),
            (["skip_loss_spikes=0"], "skip_loss_spikes is 0.*, expected a number above 0"),
            (["context_loss_weight=-1"], "context_loss_weight is -1.*, expected a number of at least 0"),
            (["context_loss_warmup=[1, 2]"], "context_loss_warmup is .* and context_loss_weight None"),
            (["context_loss_weight=1", "context_loss_warmup=[3, 2]"], "expected two rising steps"),
        ],
    )
    def test_refused(self, overrides, message):
        with pytest.raises(ValueError, match=message):
            load_config(PretrainConfig, None, ["output_dir=a", "data=b", *overrides])


@pytest.mark.parametrize(
    ("name", "preset"), [("pretrain_2_1_vitG", "2.1-gigantic"), ("distill_2_1_vitl", "2.1-large")]
)
def test_a_published_config_is_the_released_model(name, preset):
    config = load_config(PretrainConfig, EXAMPLES / f"configs/published/{name}.yaml")
    clip = {"crop_size": 256, "frames_per_clip": 16}
    expected = VJepa2MaskedLatentPredictionConfig.from_preset(preset, encoder_config=clip)
    assert build_model_config(config).to_dict() == expected.to_dict()
    assert config.scheduled(15_000)["context_loss_weight"] == 0
    assert config.scheduled(22_500)["context_loss_weight"] == pytest.approx(0.25)
    assert config.scheduled(30_000)["context_loss_weight"] == config.scheduled(300_000)["context_loss_weight"] == 0.5


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ([], {"encoder.image_patch_embeddings.proj", "encoder.image", "predictor.image"}),
        (["images.data=c", "predictor.levels=false"], {"encoder.level_norms.0"}),
        (["images.data=c"], set()),
    ],
)
def test_what_no_batch_reads_is_frozen(settings, idle):
    """FSDP could not resume a run whose optimizer has no state for some weights."""
    config = load_config(PretrainConfig, None, ["output_dir=a", "data=b", "frames_per_clip=4", *DENSE, *settings])
    model = pretrain.build_model(config).train()
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    frozen = {name for name in frozen if not name.startswith("target_encoder.")}
    ends = (".weight", ".bias", "_modality_embedding")
    for end in ends:
        frozen = {name.removesuffix(end) for name in frozen}
    assert frozen == idle
