import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from builders import TinyRunConfig, tiny_run, train_tiny_run
from torch import nn

from vjepa2_hf.training import run as training
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.run import (
    Run,
    check_tracker,
    latest_checkpoint,
    read_metrics,
    save_checkpoint,
)
from vjepa2_hf.training.schedules import LearningRateSchedule
from vjepa2_hf.training.settings import load_config


@dataclass(kw_only=True)
class DecayedConfig(TinyRunConfig):
    weight_decay: float = 0.04


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_threads": -1}, "num_threads must be at least 1, got -1"),
        ({"seed": -1}, "seed must lie in 0 to"),
        ({"keep_last": 0}, "keep_last"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping is nan; expected a number or None"),
        ({"weight_decay": -0.1}, "A weight decay is a number of at least 0, but weight_decay is -0.1"),
    ],
)
def test_settings_that_no_run_can_follow_are_refused(settings, message):
    DecayedConfig(output_dir="run")
    with pytest.raises(ValueError, match=message):
        DecayedConfig(output_dir="run", **settings)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("trackio", "trackio")])
def test_a_tracker_that_is_not_installed_is_refused(monkeypatch, name, package):
    monkeypatch.setattr(training, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=f"log_with={name} needs the package '{package}', .* or set log_with=null"):
        check_tracker(name)
    check_tracker("tensorboard")
    check_tracker(None)


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(tmp_path):
    run, model, optimizer = tiny_run(tmp_path / "a")
    assert run.resume(None) == (0, {})
    train_tiny_run(run, model, optimizer, range(1, 4))
    run.save_checkpoint(3, {"position": 12})
    train_tiny_run(run, model, optimizer, range(4, 7))
    uninterrupted = read_metrics(tmp_path / "a")

    run, model, optimizer = tiny_run(tmp_path / "a", seed=1)
    assert run.resume("latest") == (3, {"position": 12})
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1, 2, 3]
    train_tiny_run(run, model, optimizer, range(4, 7))
    assert read_metrics(tmp_path / "a") == uninterrupted


@pytest.mark.parametrize("crash_in", ["save_accelerator_state", "fsync", "replace"])
def test_a_crash_while_saving_leaves_no_partial_checkpoint(tmp_path, monkeypatch, crash_in):
    run, model, optimizer = tiny_run(tmp_path)
    run.resume(None)
    run.save_checkpoint(1)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    if crash_in == "save_accelerator_state":
        write_nothing = torch.save
        # the weights are on disk already when the optimizer's file is written
        monkeypatch.setattr(torch, "save", lambda *args, **kwargs: (write_nothing(*args, **kwargs), crash()))
    else:
        monkeypatch.setattr(training.os, crash_in, crash)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-2.tmp").is_dir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"

    run, *_ = tiny_run(tmp_path)
    assert run.resume("latest")[0] == 1
    assert not (tmp_path / "checkpoint-2.tmp").exists()


USERS = ("work.tmp", "notes.txt.tmp", "my-final.tmp", "checkpoint-best.tmp", "config.yaml.tmp", "skipped_by_me.jsonl")
PARTIAL_FOLDERS = ("checkpoint-5.tmp", "checkpoint-1.old.tmp", "final.tmp", "final.old.tmp")
PARTIAL_FILES = (".config.yaml.tmp", ".metrics.jsonl.tmp", ".offending_batch.json.tmp", ".skipped-1.jsonl.tmp")


def folder_of_a_project(folder) -> None:
    for name in ("work.tmp", *PARTIAL_FOLDERS):
        (folder / name).mkdir()
        (folder / name / "a.txt").touch()
    for name in (*USERS[1:], *PARTIAL_FILES):
        (folder / name).touch()


def test_a_run_removes_its_own_partial_files_and_keeps_those_of_the_user(tmp_path):
    folder_of_a_project(tmp_path)
    (tmp_path / "checkpoint-7.tmp").symlink_to(tmp_path / "work.tmp", target_is_directory=True)
    tiny_run(tmp_path)[0].resume("latest")
    kept = {".lock", "config.yaml", "checkpoint-7.tmp", *USERS}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (tmp_path / "work.tmp" / "a.txt").exists()


def test_a_run_that_is_refused_removes_nothing(tmp_path):
    run_of(tmp_path, {})
    folder_of_a_project(tmp_path)
    before = sorted(tmp_path.iterdir())
    again, *_ = tiny_run(tmp_path, config={"batch_size": 8})
    for refused in (again.check, again.resume):
        with pytest.raises(ValueError, match="cannot resume: these settings differ"):
            refused("latest")
    assert sorted(tmp_path.iterdir()) == before


def test_only_the_last_checkpoints_are_kept(tmp_path):
    run, *_ = tiny_run(tmp_path, config={"keep_last": 2})
    for step in (5, 10, 20, 100):
        run.save_checkpoint(step)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-100", "checkpoint-20"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-100"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_files_of_a_user_in_a_checkpoint_stay_when_it_is_removed(tmp_path):
    run, *_ = tiny_run(tmp_path, config={"keep_last": 1})
    old = run.save_checkpoint(5)
    (old / "plots").mkdir()
    (old / "plots" / "loss.png").write_bytes(b"mine")
    (old / "notes.txt").write_text("mine")
    run.save_checkpoint(10)
    assert sorted(path.relative_to(old).as_posix() for path in old.rglob("*")) == [
        "notes.txt", "plots", "plots/loss.png",
    ]  # fmt: skip
    run.save_checkpoint(15)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-5"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-15"


def test_latest_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.resume(None)
    run.log({"step": 1, "loss": 1.0})
    assert run.resume("latest") == (0, {})
    assert read_metrics(tmp_path) == []
    assert load_config(TinyRunConfig, tmp_path / "config.yaml") == run.config


LOCK = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('locked')"


def test_two_processes_do_not_run_in_one_folder(tmp_path):
    (tmp_path / "checkpoint-1.tmp").mkdir()  # which the other may be writing
    command = [sys.executable, "-c", f"{LOCK}; sys.stdout.flush(); sys.stdin.read()", str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OSError, match=f"Another process writes to '{tmp_path}'"):
            tiny_run(tmp_path)
        assert (tmp_path / "checkpoint-1.tmp").exists()
        other.kill()
    run, *_ = tiny_run(tmp_path)
    refused = subprocess.run(
        [sys.executable, "-c", LOCK, str(run.output_dir / ".lock")], capture_output=True, text=True
    )
    assert "BlockingIOError" in refused.stderr


def test_fp16_on_a_cpu_is_refused_because_accelerate_would_leave_it_out(tmp_path):
    accelerator = SimpleNamespace(mixed_precision="fp16", device=torch.device("cpu"), state=None)
    with pytest.raises(ValueError, match="mixed_precision=fp16 does not work on a CPU"):
        Run(TrainingConfig(output_dir=str(tmp_path / "a")), accelerator)


@pytest.mark.parametrize("keep_last", [0, -1])
def test_a_run_that_would_keep_no_checkpoint_is_refused(tmp_path, keep_last):
    with pytest.raises(ValueError, match=f"keep_last is {keep_last}, expected at least 1"):
        tiny_run(tmp_path, config={"keep_last": keep_last})


def test_a_crash_leaves_the_old_config_and_no_half_of_a_list_of_clips(tmp_path, monkeypatch):
    run, *_ = tiny_run(tmp_path)
    run.resume(None)
    before = (tmp_path / "config.yaml").read_text()

    def crash(*args):
        raise KeyboardInterrupt

    again, *_ = tiny_run(tmp_path, config={"batch_size": 8})
    monkeypatch.setattr(training.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        again.resume(None)
    with pytest.raises(KeyboardInterrupt):
        again.check_finite(1, float("nan"), 1.0, [float("nan")], NAMES[:1])
    assert (tmp_path / "config.yaml").read_text() == before
    assert not (tmp_path / "offending_batch.json").exists()


def test_a_new_run_does_not_inherit_the_lists_of_one_that_left_no_checkpoint(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.resume(None)
    for name in ("skipped.jsonl", "skipped-1.jsonl"):
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(ValueError, match="The loss of step 1 is nan"):
        run.check_finite(1, float("nan"), 1.0, [float("nan")], NAMES[:1])
    tiny_run(tmp_path)[0].resume("latest")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml"]


def test_a_resumed_run_keeps_the_list_of_what_it_skipped(tmp_path):
    run_of(tmp_path, {})
    (tmp_path / "skipped-1.jsonl").write_text("{}\n")
    tiny_run(tmp_path)[0].resume("latest")
    assert (tmp_path / "skipped-1.jsonl").exists()


def test_no_process_goes_on_before_the_main_one_has_truncated_the_metrics(tmp_path, monkeypatch):
    run_of(tmp_path, {})
    run, *_ = tiny_run(tmp_path)
    run.log({"step": 5, "loss": 1.0})
    seen = []
    monkeypatch.setattr(run.accelerator, "wait_for_everyone", lambda: seen.append(len(read_metrics(tmp_path))))
    run.resume("latest")
    assert seen[0] == 1 and seen[-1] == 0


def test_a_run_does_not_end_before_the_steps_it_has_done(tmp_path):
    constant = {"learning_rate": LearningRateSchedule("constant")}
    run_of(tmp_path, constant)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ValueError, match="max_steps=3 is below the 4 steps that are done; set max_steps=4 or more"):
        tiny_run(tmp_path, config={**constant, "max_steps": 3})[0].resume("latest")
    assert (tmp_path / "config.yaml").read_text() == before


class Saveable(nn.Linear):
    def save_pretrained(self, path, state_dict):
        torch.save(state_dict, Path(path) / "model.bin")


def test_the_final_model_of_a_run_that_had_ended_is_left_as_it_is(tmp_path):
    run_of(tmp_path, {"max_steps": 4})
    tiny_run(tmp_path)[0].save_final(Saveable(2, 1))
    (tmp_path / "final" / "README.md").write_text("a card")
    ended, *_ = tiny_run(tmp_path, config={"max_steps": 4})
    ended.resume("latest")
    ended.save_final(Saveable(2, 1))
    assert (tmp_path / "final" / "README.md").read_text() == "a card"


def ended_run(folder, recorded=True):
    run_of(folder, {"max_steps": 4})
    tiny_run(folder)[0].save_final(Saveable(2, 1))
    (folder / "final" / "README.md").write_text("a card")
    if not recorded:
        (folder / "final" / "training_step.json").unlink()


def resume_and_save(folder):
    again, *_ = tiny_run(folder, config={"max_steps": 4})
    again.resume("latest")
    again.save_final(Saveable(2, 1))


def test_the_final_model_of_a_copied_run_is_left_as_it_is(tmp_path):
    """A copy may have any times."""
    ended_run(tmp_path)
    os.utime(tmp_path / "final", (1, 1))
    resume_and_save(tmp_path)
    assert (tmp_path / "final" / "README.md").read_text() == "a card"


@pytest.mark.parametrize("record", [None, "", "{}", "[]"])
@pytest.mark.parametrize("stays", [True, False])
def test_times_decide_where_a_final_model_has_no_step(tmp_path, stays, record):
    ended_run(tmp_path, recorded=False)
    if record is not None:
        (tmp_path / "final" / "training_step.json").write_text(record)
    if not stays:
        os.utime(tmp_path / "final", (1, 1))
    resume_and_save(tmp_path)
    assert (tmp_path / "final" / "README.md").exists() == stays


def test_a_run_that_went_on_after_its_end_replaces_the_final_model(tmp_path):
    run_of(tmp_path, {"max_steps": 4})
    tiny_run(tmp_path)[0].save_final(Saveable(2, 1))
    (tmp_path / "final" / "README.md").write_text("a card of the shorter run")
    longer, *_ = tiny_run(tmp_path, config={"max_steps": 6})
    longer.resume("latest")
    longer.save_checkpoint(6)
    again, *_ = tiny_run(tmp_path, config={"max_steps": 6})  # killed before `final/` was written
    os.utime(tmp_path / "final")  # copied last
    again.resume("latest")
    again.save_final(Saveable(2, 1))
    assert not (tmp_path / "final" / "README.md").exists()
    assert (tmp_path / "final.edited" / "README.md").read_text() == "a card of the shorter run"


@pytest.mark.parametrize("edit", [None, "added", "changed"])
def test_a_final_model_that_a_user_has_edited_is_kept_when_the_run_goes_on(tmp_path, caplog, edit):
    run_of(tmp_path, {"max_steps": 4})
    final = tiny_run(tmp_path)[0].save_final(Saveable(2, 1))
    (written,) = (path for path in final.iterdir() if path.name != "training_step.json")
    if edit:
        (final / "notes.txt" if edit == "added" else written).write_text("mine")
    longer, *_ = tiny_run(tmp_path, config={"max_steps": 6})
    longer.resume("latest")
    longer.save_checkpoint(6)
    longer.save_final(Saveable(2, 1))
    assert sorted(path.name for path in final.iterdir()) == sorted([written.name, "training_step.json"])
    kept = [path.read_text() for path in tmp_path.glob("final.edited/*") if path.read_bytes() == b"mine"]
    assert kept == (["mine"] if edit else [])
    assert ("is kept as" in caplog.text) == (edit is not None)


def test_a_new_run_does_not_overwrite_another(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.save_checkpoint(1)
    with pytest.raises(ValueError, match="already holds a run .checkpoint-1.; set resume=latest"):
        run.resume(None)


def test_resuming_in_the_middle_does_not_mix_two_histories(tmp_path):
    run, *_ = tiny_run(tmp_path / "a")
    run.save_checkpoint(1)
    run.save_checkpoint(2)
    with pytest.raises(ValueError, match="holds checkpoint-2, later than step 1"):
        run.resume("checkpoint-1")
    other, *_ = tiny_run(tmp_path / "b")
    assert other.resume(str(tmp_path / "a" / "checkpoint-1"))[0] == 1


def test_checkpoints_that_cannot_be_continued_are_refused(tmp_path):
    run, *_ = tiny_run(tmp_path)
    whole = save_checkpoint(run.accelerator, tmp_path, 3)
    with pytest.raises(FileNotFoundError, match="no checkpoint folder 'nowhere', neither .*which holds checkpoint-3"):
        run.resume("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty' is not a checkpoint of this package"):
        run.resume("empty")
    wider, *_ = tiny_run(tmp_path, width=5)
    with pytest.raises(ValueError, match="does not fit the configured model"):
        wider.resume("latest")
    (whole / "digests.json").unlink()
    (whole / "progress.json").write_text('{"step": 3, "num_processes": 2}')
    with pytest.raises(ValueError, match="is damaged .*rank_state_1.pt"):
        run.resume("latest")


def run_of(folder, config):
    """A run of 4 steps with a checkpoint, started as scripts start theirs."""
    run, *_ = tiny_run(folder, config=config)
    run.resume(None)
    run.save_checkpoint(4)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {},
            {"batch_size": 8},
            r"batch_size=8 \(was 4\); set them back, or continue in another folder with resume=.*-4",
        ),
        ({"encoder": {"width": 16}}, {"encoder": {"width": 24}}, r"encoder.width=24 \(was 16\)"),
        ({"encoder": {"width": 16}}, {}, r"encoder.width=None \(was 16\)"),
        ({}, {"scale": (0.5, 1.0)}, r"scale=\[0.5, 1.0\] \(was \[0.3, 1.0\]\)"),
        ({}, {"learning_rate": LearningRateSchedule("warmup_stable_decay", peak=1.0)}, "learning_rate.peak=1.0"),
        ({}, {"learning_rate": LearningRateSchedule("warmup_cosine")}, "learning_rate.schedule='warmup_cosine'"),
        (
            {"learning_rate": LearningRateSchedule("warmup_cosine")},
            {"learning_rate": LearningRateSchedule("warmup_cosine"), "max_steps": 20},
            r"max_steps=20 \(was 10\)",
        ),
    ],
)
def test_a_run_does_not_go_on_with_settings_that_would_have_changed_its_steps(tmp_path, before, after, message):
    run_of(tmp_path, before)
    again, *_ = tiny_run(tmp_path, config=after)
    for resume in ("latest", "checkpoint-4"):
        with pytest.raises(ValueError, match=f"cannot resume: these settings differ .*{message}"):
            again.resume(resume)
    assert load_config(TinyRunConfig, tmp_path / "config.yaml").encoder == before.get("encoder", {})


@pytest.mark.parametrize(
    "after",
    [
        {"log_every": 7},
        {"max_steps": 20},  # the learning rate is constant
        {"learning_rate": LearningRateSchedule("warmup_stable_decay", final=1e-6, decay_steps=5)},  # of steps 6 to 10
    ],
)
def test_a_run_goes_on_with_settings_that_leave_its_steps_as_they_were(tmp_path, after):
    run_of(tmp_path, {})
    again, *_ = tiny_run(tmp_path, config=after)
    assert again.resume("latest")[0] == 4
    assert load_config(TinyRunConfig, tmp_path / "config.yaml") == again.config


def test_a_setting_that_is_not_of_a_schedule_does_not_change(tmp_path, monkeypatch):
    run_of(tmp_path, {})
    monkeypatch.setattr(TrainingConfig, "schedule_settings", ())
    with pytest.raises(ValueError, match="max_steps=20"):
        tiny_run(tmp_path, config={"max_steps": 20})[0].resume("latest")


def test_another_folder_goes_on_from_a_checkpoint_with_settings_of_its_own(tmp_path, caplog):
    run_of(tmp_path / "a", {})
    branch, *_ = tiny_run(tmp_path / "b", config={"batch_size": 8})
    assert branch.resume(str(tmp_path / "a" / "checkpoint-4"))[0] == 4
    assert "with other settings: batch_size=8 (was 4)" in caplog.text


def test_a_config_of_another_script_is_named(tmp_path):
    run_of(tmp_path, {})
    (tmp_path / "config.yaml").write_text("output_dir: x\nepisodes: 3\n")
    with pytest.raises(ValueError, match="config.yaml' is not a config of this script .*Unknown key 'episodes'"):
        tiny_run(tmp_path)[0].resume("latest")


def test_a_lost_config_is_named(tmp_path, caplog):
    run_of(tmp_path, {})
    (tmp_path / "config.yaml").unlink()
    assert tiny_run(tmp_path, config={"batch_size": 8})[0].resume("latest")[0] == 4
    assert "cannot compare the settings of" in caplog.text


def test_metrics_hold_plain_json_numbers(tmp_path):
    run, *_ = tiny_run(tmp_path)
    run.log({"step": 1, "loss": torch.tensor(0.5), "target_std": float("nan"), "rank": None})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5, "target_std": None, "rank": None}]


def test_trackers_get_numbers_alone(tmp_path, monkeypatch):
    run, *_ = tiny_run(tmp_path)
    tracked = []
    monkeypatch.setattr(run.accelerator, "log", lambda values, step: tracked.append((step, values)))
    run.log({"step": 1, "loss": 0.5, "rank": None, "warning": "The targets collapse"})
    assert tracked == [(1, {"loss": 0.5})]
    assert read_metrics(tmp_path)[0]["warning"] == "The targets collapse"


NAMES = [["a.mp4", "b.mp4"], ["c.mp4", "d.mp4"]]


@pytest.mark.parametrize(
    ("loss", "norm", "message"),
    [
        (float("nan"), float("nan"), "The loss of step 7 is nan; the names of its clips are in"),
        (0.5, float("inf"), "The gradient norm of step 7 is inf; the names of its clips are in"),
    ],
)
def test_a_step_that_would_lose_the_weights_names_its_clips_and_the_last_checkpoint(tmp_path, loss, norm, message):
    run, *_ = tiny_run(tmp_path)
    run.save_checkpoint(6)
    with pytest.raises(ValueError, match=f"{message} .*offending_batch.json.*resume={tmp_path / 'checkpoint-6'}"):
        run.check_finite(7, loss, norm, [torch.tensor(0.5), torch.tensor(loss)], NAMES)
    found = json.loads((tmp_path / "offending_batch.json").read_text())
    assert found["step"] == 7 and found["gradient_norm"] is None
    assert [batch["clips"] for batch in found["batches"]] == NAMES
    assert [batch["loss"] for batch in found["batches"]] == [0.5, 0.5 if loss == 0.5 else None]


def test_a_finite_step_and_a_scaled_gradient_go_on(tmp_path, monkeypatch):
    run, *_ = tiny_run(tmp_path)
    run.check_finite(1, 0.5, 3.0, [0.5], NAMES[:1])
    monkeypatch.setattr(run.accelerator, "scaler", object())  # of fp16: it skips the update by itself
    run.check_finite(1, 0.5, float("inf"), [0.5], NAMES[:1])
    assert not (tmp_path / "offending_batch.json").exists()


def test_final_folder_is_written_aside_and_replaces_the_old_one(tmp_path):
    class Model(nn.Linear):
        def save_pretrained(self, path, state_dict):
            assert Path(path).name == "final.tmp"
            torch.save(state_dict, Path(path) / "model.bin")

    accelerator = Accelerator(cpu=True)
    run = Run(TinyRunConfig(output_dir=str(tmp_path)), accelerator)
    for value in (1.0, 2.0):
        model = Model(2, 1)
        nn.init.constant_(model.weight, value)
        final = run.save_final(accelerator.prepare(model))
    assert torch.load(final / "model.bin")["weight"].unique() == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "final"]


def test_two_runs_of_one_process_keep_the_lock_until_both_are_gone(tmp_path):
    """As in a notebook, whose second cell makes the run again."""
    probe = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1])\n"
        "try:\n    lock.acquire(blocking=False)\nexcept filelock.Timeout:\n    sys.exit(3)"
    )

    def is_locked() -> bool:
        done = subprocess.run([sys.executable, "-c", probe, str(tmp_path / ".lock")], check=False)
        assert done.returncode in (0, 3)
        return done.returncode == 3

    first, *_ = tiny_run(tmp_path)
    second, *_ = tiny_run(tmp_path)
    assert is_locked()
    del first
    gc.collect()
    assert is_locked()
    other, *_ = tiny_run(tmp_path / "other")
    del other
    gc.collect()
    assert is_locked()
    del second
    gc.collect()
    assert not is_locked()
