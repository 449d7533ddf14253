"""Several processes, shards and micro-batches learn what one process learns from the whole batch."""

from pathlib import Path
from types import SimpleNamespace

import equal_training
import pretrain
import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from script_runs import run_processes

from vjepa2_hf import VJepa2ForMaskedLatentPrediction
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.run import Run, check_sharding


ACCELERATE_CONFIGS = Path(pretrain.__file__).parent / "configs" / "accelerate"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict:
    return equal_training.train(tmp_path_factory.mktemp("one"), Accelerator(cpu=True))


def assert_same_training(one: dict, other: dict) -> None:
    assert len(one["loss"]) == equal_training.STEPS
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
    assert min(one["gradient_norm"]) < 0.5 < max(one["gradient_norm"]), "clipping is part of what is compared"
    assert one["weights"].keys() == other["weights"].keys()
    assert any(name.startswith("target_encoder.") for name in one["weights"])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, rtol=0, atol=1e-5, msg=name)


def test_the_training_compared_moves_every_weight_far_more_than_the_tolerance(one_process, tmp_path):
    model = equal_training.prepare(tmp_path, Accelerator(cpu=True), 1).model
    for name, weight in model.state_dict().items():
        assert (one_process["weights"][name] - weight).abs().max() > 1e-3, name


def test_two_micro_batches_of_half_the_clips_learn_as_one_batch(one_process, tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert_same_training(one_process, equal_training.train(tmp_path, accelerator, micro_batches=2))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_with_half_the_clips_each_learn_as_one(one_process, tmp_path, way):
    run_processes(Path(equal_training.__file__), [str(tmp_path), way])
    found = torch.load(tmp_path / "result.pt")
    assert_same_training(one_process, found)
    model = VJepa2ForMaskedLatentPrediction.from_pretrained(tmp_path / "final")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, found["weights"][name], rtol=0, atol=0, msg=name)
    if way == "fsdp":  # in shards, by both
        assert len(list((tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2


def test_sharding_on_a_cpu_is_refused_because_accelerate_would_leave_it_out(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    with pytest.raises(ValueError, match="FSDP does not work on a CPU: Accelerate would shard nothing"):
        Run(TrainingConfig(output_dir=str(tmp_path)), accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    Run(TrainingConfig(output_dir=str(tmp_path)), Accelerator(cpu=True))


def test_the_first_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=1))
    with pytest.raises(ValueError, match="fsdp_version is 1, .* set fsdp_version: 2"):
        check_sharding(SimpleNamespace(state=state, device=torch.device("cuda")))


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configs(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16" and config.num_processes == 8
    assert str(config.distributed_type.value) == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[path.stem]
