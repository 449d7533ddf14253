"""A run goes on with other processes: what it has learned is exact, and a step of the same samples learns the same."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from builders import TinyRunConfig, run_group, tiny_run
from torch import nn

from vjepa2_hf.training.checkpoints import latest_checkpoint, load_checkpoint, read_progress
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.pretraining import PretrainConfig
from vjepa2_hf.training.resuming import allow_other_split, check_sharding_of, describe_other_processes
from vjepa2_hf.training.run import changed_settings


class Model(nn.Linear):
    def save_pretrained(self, folder, state_dict):
        torch.save(state_dict, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")


def train(rank: int, folder, last: int, settings: dict) -> None:
    """Trains one layer up to a step on eight samples a step, which processes and micro-batches share."""
    config = TinyRunConfig(output_dir=str(folder), max_steps=6, resume="latest", save_every=last, **settings)
    micro_batches = config.gradient_accumulation_steps
    loop = TrainingLoop(config, "tiny", Accelerator(cpu=True, gradient_accumulation_steps=micro_batches))
    torch.manual_seed(0)
    model, optimizer = Model(3, 1), None
    model, optimizer = loop.prepare(model, torch.optim.AdamW(model.parameters()))

    def batches():
        for number in range(loop.first_micro_batch, 100):
            step, micro_batch = divmod(number, micro_batches)
            samples = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            first = (micro_batch * loop.accelerator.num_processes + rank) * config.batch_size
            yield [], samples[first : first + config.batch_size]

    def forward_backward(batch):
        loss = model(batch).square().mean()
        loop.accelerator.backward(loss)
        return {"loss": loss}

    taken = batches()
    for step in loop.steps():
        loop.update(taken, forward_backward)
        loop.save_checkpoint(lambda: {"of": rank})
        if step == last:
            break
    loop.signals.restore()
    loop.accelerator.end_training()


ONE, TWO = {"batch_size": 8}, {"batch_size": 4}
HALVES = {"batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs stopped after step 3, by number of processes; and one that was not stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    run_group(train, folder / "1", 3, ONE, count=1)
    run_group(train, folder / "2", 3, TWO)
    run_group(train, folder / "whole", 6, ONE, count=1)
    return folder


@pytest.mark.parametrize(("before", "after", "settings"), [(2, 1, ONE), (1, 2, TWO), (2, 1, HALVES)])
def test_a_step_of_the_same_samples_learns_the_same_with_other_processes(stopped, tmp_path, before, after, settings):
    shutil.copytree(stopped / str(before), tmp_path / "run")
    run_group(train, tmp_path / "run", 6, settings, count=after)
    folders = [folder / "checkpoint-6" for folder in (stopped / "whole", tmp_path / "run")]
    weights = [torch.load(folder / "optimizer.bin")["state"] for folder in folders]
    for state, other in zip(*(weight.values() for weight in weights), strict=True):
        assert state["step"] == other["step"] == 6
        torch.testing.assert_close(state["exp_avg_sq"], other["exp_avg_sq"], rtol=1e-5, atol=0)
    progress = {"step": 6, "num_processes": after, "global_batch_size": 8}
    assert read_progress(folders[1]) == progress


def load(rank: int, folder) -> None:
    """One of three processes restores the checkpoint of two."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    step, state = load_checkpoint(accelerator, latest_checkpoint(folder))
    assert step == 3 and state == {"processes": [{"of": 0}, {"of": 1}]}
    draws = accelerator.gather(torch.rand(1)).tolist()
    assert draws[2] not in draws[:2], "the new process repeats the random numbers of another"
    accelerator.end_training()


def test_every_process_gets_the_states_of_all_and_random_numbers_of_its_own(stopped):
    run_group(load, stopped / "2", count=3)


@pytest.mark.parametrize(
    ("settings", "processes", "refused"),
    [
        ({"batch_size": 8}, 1, set()),
        ({"batch_size": 2, "gradient_accumulation_steps": 4}, 1, set()),
        ({"batch_size": 2, "gradient_accumulation_steps": 2}, 2, set()),
        ({}, 3, set()),
        ({"batch_size": 2}, 2, {"batch_size"}),
        ({"batch_size": 4, "gradient_accumulation_steps": 3, "seed": 1}, 1, {"gradient_accumulation_steps", "seed"}),
    ],
)
def test_batch_and_micro_batches_may_change_if_the_global_batch_stays(settings, processes, refused):
    before, now = TinyRunConfig(output_dir="a"), TinyRunConfig(output_dir="a", **settings)
    progress = {"step": 3, "num_processes": 2}
    allowed = allow_other_split(changed_settings(before, now), before, now, progress, processes)
    assert allowed.keys() == refused


def test_a_frames_curriculum_counts_micro_batches_which_do_not_change():
    settings = {"output_dir": "a", "data": "b", "frames_curriculum": [(0, 8), (4, 16)]}
    before, now = PretrainConfig(batch_size=4, **settings), PretrainConfig(batch_size=8, **settings)
    changed = changed_settings(before, now)
    assert changed == {"batch_size": (4, 8)}
    assert allow_other_split(changed, before, now, {"step": 3, "num_processes": 2}, 1) == changed


def test_the_global_batch_is_that_of_the_checkpoint_and_not_of_a_later_config():
    now = TinyRunConfig(output_dir="a", batch_size=8)
    progress = {"step": 3, "num_processes": 2, "global_batch_size": 8}
    assert "stays 8 samples" in describe_other_processes("c", now, now, progress, 1)
    sentence = describe_other_processes("c", now, now, progress, 4)
    assert sentence.startswith("c was written by 2 processes and continues with 4")
    assert "is now 32 samples instead of 8" in sentence
    assert describe_other_processes("c", now, now, progress, 2) is None


def test_a_checkpoint_in_shards_is_not_called_damaged_where_the_run_is_whole(tmp_path):
    run, *_ = tiny_run(tmp_path)
    checkpoint = run.save_checkpoint(3)
    (checkpoint / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(ValueError, match="was written with FSDP and this run is without it; launch it with FSDP"):
        run.resume("latest")
    (checkpoint / "pytorch_model_fsdp_0").rmdir()
    with pytest.raises(ValueError, match="was written without FSDP and this run is with it"):
        check_sharding_of(SimpleNamespace(distributed_type=DistributedType.FSDP), checkpoint)
