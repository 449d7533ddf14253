"""A signal ends a run after its step with a checkpoint that goes on to the bit; a second signal ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from accelerate import Accelerator
from builders import TinyRunConfig, run_group
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from vjepa2_hf.training import signals as signals_module
from vjepa2_hf.training.checkpoints import checkpoints
from vjepa2_hf.training.loop import TrainingLoop
from vjepa2_hf.training.run import read_metrics
from vjepa2_hf.training.signals import STOP_SIGNALS, StoppedBySignal, StopSignals, ignore_stop_signals


HANDLERS = [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.fixture(autouse=True)
def handlers_are_restored():
    yield
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == HANDLERS


class Model(nn.Linear):
    def save_pretrained(self, folder, state_dict):
        torch.save(state_dict, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")


def train(output_dir, at=None, **settings) -> torch.Tensor:
    """Trains one layer; `at` maps a step, or "start" or "end", to what happens there. Returns the weight."""
    at = at or {}
    loop = TrainingLoop(
        TinyRunConfig(output_dir=str(output_dir), max_steps=6, **settings), "tiny", Accelerator(cpu=True)
    )
    at.get("start", int)()
    torch.manual_seed(0)
    model = Model(3, 1)
    model, optimizer = loop.prepare(model, torch.optim.AdamW(model.parameters()))

    def batches():
        for number in range(loop.start + 1, 7):
            at.get(number, int)()
            yield [], torch.randn(4, 3, generator=torch.Generator().manual_seed(number))

    def forward_backward(batch):
        loss = (model(batch) + 0.1 * torch.randn(1)).square().mean()  # the random state is part of a checkpoint
        loop.accelerator.backward(loss)
        return {"loss": loss}

    loop.run_steps(batches(), forward_backward)
    at.get("end", int)()
    loop.finish(model)
    return loop.accelerator.unwrap_model(model).weight.detach()


def send(number: int, times: int = 1):
    return lambda: [os.kill(os.getpid(), number) for _ in range(times)]


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_run_stopped_by_a_signal_goes_on_to_the_bit(tmp_path, capfd, number):
    whole = train(tmp_path / "whole")
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:  # a launcher repeats what the group has received: twice is one request
        train(tmp_path / "run", {4: send(number, times=2)})
    assert stop.value.code == 0
    assert list(checkpoints(tmp_path / "run")) == [4] and not (tmp_path / "run/final").exists()
    sentences = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Stopped")]
    folder = tmp_path / "run/checkpoint-4"
    assert sentences == [f"Stopped by {number.name} after step 4: {folder} is saved; continue with resume=latest."]
    assert torch.equal(train(tmp_path / "run", resume="latest"), whole)
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")


def test_a_signal_in_the_last_step_leaves_the_end_to_the_resumed_run(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(tmp_path / "run", {6: send(signal.SIGTERM)})
    assert list(checkpoints(tmp_path / "run")) == [6] and not (tmp_path / "run/final").exists()
    assert torch.equal(train(tmp_path / "run", resume="latest"), whole) and (tmp_path / "run/final").is_dir()


@pytest.mark.parametrize(("moment", "saved"), [("start", []), ("end", [6])])
def test_a_signal_outside_of_the_steps_ends_the_program_where_it_is(tmp_path, capfd, moment, saved):
    with pytest.raises(StoppedBySignal):
        train(tmp_path, {moment: send(signal.SIGTERM)})
    assert list(checkpoints(tmp_path)) == saved
    expected = {"start": "before the first step; run the same command again", "end": "continue with resume=latest"}
    assert expected[moment] in capfd.readouterr().err


def test_an_error_gives_the_signals_back(tmp_path):
    with pytest.raises(ValueError, match="already holds a run"):
        train(tmp_path / "run")
        train(tmp_path / "run")


def test_the_final_folder_is_looked_at_before_saved_is_printed(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Model, "save_pretrained", lambda self, folder, state_dict: None)
    with pytest.raises(OSError, match="holds no model after saving"):
        train(tmp_path)
    assert "saved" not in capfd.readouterr().out


def test_the_second_signal_ends_at_once():
    """In a process of its own, with the module alone."""
    program = """
import os, runpy, signal, sys, time
module = runpy.run_path(sys.argv[1])
signals = module["StopSignals"]()
signals.deferred = True
os.kill(os.getpid(), signal.SIGUSR1)
signals._first -= module["SAME_REQUEST_SECONDS"]
time.sleep(0.01)
print("works", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("never", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program, signals_module.__file__], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "works\n"
    assert done.stderr == "Ended at once by a second signal (SIGTERM); checkpoints saved so far stay.\n"


def test_nohup_stays_and_another_thread_handles_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = StopSignals()
        os.kill(os.getpid(), signal.SIGHUP)
        signals.restore()
        assert signals.requested is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, HANDLERS[STOP_SIGNALS.index(signal.SIGHUP)])
    thread = threading.Thread(target=lambda: StopSignals().restore())
    thread.start()
    thread.join()


class Numbers(IterableDataset):
    def __iter__(self):
        for _ in range(100):
            yield torch.tensor(os.getpid())


def test_workers_outlive_a_signal_to_the_whole_group_and_end_with_their_loader():
    signals = StopSignals()
    signals.deferred = True
    loader = DataLoader(Numbers(), batch_size=None, num_workers=1, worker_init_fn=ignore_stop_signals)
    batches = iter(loader)
    worker = int(next(batches))
    for number in STOP_SIGNALS:
        # Sent by another process, as a launcher or a scheduler does
        subprocess.run(["kill", f"-{number.name[3:]}", str(worker)], check=True)
    time.sleep(0.05)
    assert [int(pid) for pid in batches] == [worker] * 99
    assert signals.requested is None
    signals.restore()

    batches = iter(loader)
    worker = batches._workers[0]
    next(batches)
    worker.terminate()  # by this process, as a loader does that is shut down
    worker.join(10)
    assert worker.exitcode == 0
    batches._workers_done_event.set()


def train_of_two(rank: int, folder) -> None:
    train(folder, {3: send(signal.SIGUSR1)} if rank == 1 else {})


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path, capfd):
    run_group(train_of_two, tmp_path)
    assert list(checkpoints(tmp_path)) == [3]
    assert {path.name for path in (tmp_path / "checkpoint-3").glob("rank_state*")} == {
        "rank_state_0.pt",
        "rank_state_1.pt",
    }
    stopped = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Stopped")]
    assert len(stopped) == 1 and stopped[0].startswith("Stopped by a signal to another process after step 3")


def train_to_the_end(rank: int, folder) -> None:
    train(folder, {"end": send(signal.SIGUSR1)} if rank == 0 else {})


def test_a_signal_to_one_of_two_processes_after_the_steps_leaves_the_other_its_partner(tmp_path):
    run_group(train_to_the_end, tmp_path)
    assert (tmp_path / "final").is_dir()
