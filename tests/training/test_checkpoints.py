import json
import os

import pytest
import torch
from accelerate import Accelerator
from builders import tiny_run, train_tiny_run
from safetensors import SafetensorError
from torch import nn

from vjepa2_hf.data import files
from vjepa2_hf.training import run as training_run
from vjepa2_hf.training.checkpoints import checkpoints, find_damage, load_checkpoint


def two_checkpoints(folder) -> None:
    run, model, optimizer = tiny_run(folder)
    run.resume(None)
    for step in (1, 2):
        train_tiny_run(run, model, optimizer, [step])
        run.save_checkpoint(step, {"position": step})


FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "rank_state_0.pt", "progress.json")


def damage(path, kind) -> None:
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "bit":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        path.write_bytes(whole[: len(whole) // 2] if kind == "cut" else b"")


@pytest.mark.parametrize("kind", ["cut", "missing", "bit", "older"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_setting_that_goes_on_with_the_one_before(tmp_path, name, kind):
    """Each of these files, also where an older version has written no digests."""
    two_checkpoints(tmp_path)
    newest = tmp_path / "checkpoint-2"
    if kind == "older":
        (newest / "digests.json").unlink()
    damage(newest / name, "cut" if kind == "older" else kind)
    onward = (
        "continue with resume=latest_undamaged, which resumes checkpoint-1 and renames checkpoint-2 to checkpoint-2.d"
    )
    with pytest.raises(ValueError, match=f"checkpoint-2' is damaged and does not load .*{onward}"):
        tiny_run(tmp_path)[0].resume("latest")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]

    run, model, optimizer = tiny_run(tmp_path)
    assert run.resume("latest_undamaged") == (1, {"position": 1})
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2.damaged"]
    train_tiny_run(run, model, optimizer, [2])
    assert run.save_checkpoint(2, {"position": 2}) == newest
    assert (newest / "model.safetensors").read_bytes() == undamaged_weights(tmp_path / "again")


def undamaged_weights(folder) -> bytes:
    two_checkpoints(folder)
    return (folder / "checkpoint-2" / "model.safetensors").read_bytes()


def test_every_file_of_a_checkpoint_has_a_digest_and_any_flipped_bit_is_found(tmp_path):
    run, *_ = tiny_run(tmp_path)
    whole = run.save_checkpoint(1)
    files = {path.name for path in whole.iterdir()}
    assert set(json.loads((whole / "digests.json").read_text())) == files - {"digests.json"} >= set(FILES)
    assert find_damage(whole) is None
    for name in sorted(files):
        bytes_before = (whole / name).read_bytes()
        for position in range(0, len(bytes_before), 1 + len(bytes_before) // 7):
            changed = bytearray(bytes_before)
            changed[position] ^= 4
            (whole / name).write_bytes(changed)
            assert name == "digests.json" or name in find_damage(whole), (name, position)
        (whole / name).write_bytes(bytes_before)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"progress.json": 3}', '{"progress.json": {"size": "a"}}', "\xff"])
def test_a_damaged_list_of_digests_is_damage(tmp_path, text):
    run, *_ = tiny_run(tmp_path)
    whole = run.save_checkpoint(1)
    (whole / "digests.json").write_bytes(text.encode("latin-1"))
    assert "digests.json" in find_damage(whole)


def test_a_checkpoint_of_an_older_version_loads_with_a_note(tmp_path, caplog):
    two_checkpoints(tmp_path)
    (tmp_path / "checkpoint-2" / "digests.json").unlink()
    assert find_damage(tmp_path / "checkpoint-2") == "digests.json is missing"  # of a version that writes it
    progress = tmp_path / "checkpoint-2" / "progress.json"
    written = json.loads(progress.read_text())
    assert written.pop("digests") == "digests.json"
    progress.write_text(json.dumps(written))
    assert tiny_run(tmp_path)[0].resume("latest")[0] == 2
    assert "checkpoint-2 has no digests.json, which older versions did not write" in caplog.text


def test_files_that_were_added_to_a_checkpoint_do_not_damage_it(tmp_path):
    two_checkpoints(tmp_path)
    (tmp_path / "checkpoint-2" / "notes.txt").write_text("the good one")
    assert tiny_run(tmp_path)[0].resume("latest_undamaged")[0] == 2


def test_a_damaged_checkpoint_that_is_the_only_one_says_so(tmp_path):
    run, *_ = tiny_run(tmp_path)
    whole = run.save_checkpoint(1)
    (whole / "progress.json").write_text("")
    with pytest.raises(ValueError, match="damaged .*there is no earlier one that is undamaged"):
        run.resume("latest")
    with pytest.raises(ValueError, match="All checkpoints in .* are damaged .checkpoint-1.; move them to another"):
        tiny_run(tmp_path)[0].resume("latest_undamaged")
    assert whole.is_dir()


def test_the_message_names_no_earlier_checkpoint_that_is_damaged_too(tmp_path):
    two_checkpoints(tmp_path)
    run, *_ = tiny_run(tmp_path)
    run.save_checkpoint(3)
    for step in (2, 3):
        damage(tmp_path / f"checkpoint-{step}" / "optimizer.bin", "bit")
    with pytest.raises(ValueError, match="which resumes checkpoint-1 and renames checkpoint-3"):
        tiny_run(tmp_path)[0].check("latest")
    assert tiny_run(tmp_path)[0].resume("latest_undamaged")[0] == 1
    assert len(list(tmp_path.glob("checkpoint-*.damaged"))) == 2


def test_a_damaged_checkpoint_of_another_run_names_the_one_before_it(tmp_path):
    two_checkpoints(tmp_path / "a")
    damage(tmp_path / "a" / "checkpoint-2" / "optimizer.bin", "bit")
    run, *_ = tiny_run(tmp_path / "b")
    with pytest.raises(ValueError, match=f"continue with resume={tmp_path}/a/checkpoint-1"):
        run.resume(str(tmp_path / "a" / "checkpoint-2"))


def test_folders_and_files_of_a_user_are_no_checkpoints(tmp_path):
    two_checkpoints(tmp_path)
    (tmp_path / "checkpoint-9").write_text("not a folder")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")  # of transformers' Trainer
    (tmp_path / "checkpoint-007").mkdir()
    assert list(checkpoints(tmp_path)) == [1, 2]
    run, *_ = tiny_run(tmp_path, config={"keep_last": 1})
    assert run.resume("latest")[0] == 2
    for step in (3, 9):
        run.save_checkpoint(step)
    assert (tmp_path / "checkpoint-3.moved" / "trainer_state.json").read_text() == "{}"
    assert (tmp_path / "checkpoint-9.moved").read_text() == "not a folder"
    assert list(checkpoints(tmp_path)) == [9]


def test_the_logs_are_on_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    run, model, optimizer = tiny_run(tmp_path)
    run.resume(None)
    train_tiny_run(run, model, optimizer, [1])
    (tmp_path / "skipped-1.jsonl").write_text("{}\n")
    synced, replace = [], os.replace
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.name))
    monkeypatch.setattr(training_run, "sync", lambda path: synced.append(path.name))
    monkeypatch.setattr(os, "replace", lambda one, other: (synced.append("renamed"), replace(one, other)))
    run.save_checkpoint(1)
    assert {"metrics.jsonl", "skipped-1.jsonl", "digests.json"} <= set(synced[: synced.index("renamed")])


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
