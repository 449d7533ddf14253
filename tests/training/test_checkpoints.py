import pytest
import torch
from accelerate import Accelerator
from builders import tiny_run, train_tiny_run
from safetensors import SafetensorError
from torch import nn

from vjepa2_hf.training.checkpoints import checkpoints, load_checkpoint


def two_checkpoints(folder) -> None:
    run, model, optimizer = tiny_run(folder)
    run.resume(None)
    for step in (1, 2):
        train_tiny_run(run, model, optimizer, [step])
        run.save_checkpoint(step, {"position": step})


FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "rank_state_0.pt", "progress.json")


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_with_the_one_before_it(tmp_path, name, damage):
    two_checkpoints(tmp_path)
    path = tmp_path / "checkpoint-2" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    if damage == "missing":
        path.unlink()
    wrong = "is not a checkpoint" if (name, damage) == ("progress.json", "missing") else "is damaged and does not load"
    with pytest.raises((ValueError, FileNotFoundError), match=wrong) as caught:
        tiny_run(tmp_path)[0].resume("latest")
    message = str(caught.value)
    assert f"{tmp_path / 'checkpoint-2'}" in message
    assert wrong == "is not a checkpoint" or f"continue with resume={tmp_path / 'checkpoint-1'}" in message


def test_a_damaged_checkpoint_that_is_the_only_one_says_so(tmp_path):
    run, *_ = tiny_run(tmp_path)
    whole = run.save_checkpoint(1)
    (whole / "progress.json").write_text("")
    with pytest.raises(ValueError, match="damaged .*there is no earlier one"):
        run.resume("latest")


def test_an_optimizer_of_other_groups_does_not_fit(tmp_path):
    run, *_ = tiny_run(tmp_path)
    whole = run.save_checkpoint(1)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 1)
    groups = [{"params": [model.weight]}, {"params": [model.bias]}]
    accelerator.prepare(model, torch.optim.AdamW(groups))
    with pytest.raises(ValueError, match="does not fit the configured model or its optimizer's groups"):
        load_checkpoint(accelerator, whole)


@pytest.mark.parametrize("error", [RuntimeError("PytorchStreamWriter failed"), SafetensorError("No space left")])
def test_a_full_disk_ends_in_one_sentence_and_leaves_what_stood(tmp_path, monkeypatch, error):
    two_checkpoints(tmp_path)
    run, *_ = tiny_run(tmp_path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=f"checkpoint-3' could not be written .{error}.; see whether the disk is full"):
        run.save_checkpoint(3)
    assert list(checkpoints(tmp_path)) == [1, 2]


def test_micro_batches_are_counted_from_the_checkpoint_on(tmp_path):
    """A run with one micro-batch a step went 3 steps; the next has two, so its first is no update."""
    run, model, _ = tiny_run(tmp_path)
    for _ in range(3):
        with run.accelerator.accumulate(model):
            assert run.accelerator.sync_gradients
    whole = run.save_checkpoint(3)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(3, 1)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    load_checkpoint(accelerator, whole)
    updates = []
    for _ in range(4):
        with accelerator.accumulate(model):
            updates.append(accelerator.sync_gradients)
    assert updates == [False, True, False, True]
