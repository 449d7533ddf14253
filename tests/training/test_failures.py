"""Failures of the machine end in one sentence with the likely cause."""

import os
import re
import signal
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from vjepa2_hf.data.files import writing
from vjepa2_hf.training import settings
from vjepa2_hf.training.batches import all_batches, next_batch
from vjepa2_hf.training.failures import explain_failure
from vjepa2_hf.training.settings import exit_on_user_error
from vjepa2_hf.training.signals import StopSignals, _report_but_lost_connections


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(settings, "FAILURE_SECONDS", 0)


class Numbers(IterableDataset):
    def __iter__(self):
        for _ in range(3):
            yield torch.tensor(os.getpid())
        time.sleep(60)


def kill_worker() -> None:
    """The error of a DataLoader whose worker the kernel kills."""
    batches = all_batches(DataLoader(Numbers(), batch_size=None, num_workers=1, prefetch_factor=1))
    os.kill(int(next(batches)), signal.SIGKILL)
    list(batches)


def test_a_killed_worker_names_the_memory_and_num_workers(tmp_path):
    """In a forked process: torch's handler of SIGCHLD raises wherever the main thread is, also in pytest."""
    child = os.fork()
    if not child:
        code = 9
        try:
            with open(tmp_path / "stderr", "w", encoding="utf-8") as sys.stderr:
                exit_on_user_error(kill_worker)()
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    (sentence,) = (tmp_path / "stderr").read_text(encoding="utf-8").splitlines()
    # "exited", if it died while its batch was being received
    assert re.search(r"data \(num_workers\) (was killed by the signal 'Killed'|exited); most likely", sentence)
    assert "ran out of memory: lower num_workers" in sentence


def test_a_dead_worker_is_reported_where_batches_are_read_and_nowhere_else():
    batches = iter(DataLoader(Numbers(), batch_size=None, num_workers=1))
    worker = next_batch(batches).item()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.3)  # here torch's own handler would raise
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        for _ in range(4):
            next_batch(batches)


def test_a_connection_that_a_dead_worker_has_closed_is_explained_as_its_death():
    def batches():
        yield 1
        raise ConnectionResetError(104, "Connection reset by peer")

    found = []
    with pytest.raises(RuntimeError, match="exited unexpectedly") as error:
        found += all_batches(batches())
    assert "num_workers" in explain_failure(error.value)
    assert list(all_batches([1, 2])) == [1, 2]


def test_a_worker_killed_during_a_save_is_not_taken_for_a_full_disk(tmp_path):
    message = "DataLoader worker (pid 7) is killed by signal: Killed. "
    with pytest.raises(RuntimeError, match="DataLoader worker"), writing(tmp_path / "checkpoint-1"):
        raise RuntimeError(message)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"), ["num_workers", "memory"]),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), ["/dev/shm"]),
        (torch.OutOfMemoryError("CUDA out of memory."), ["batch_size", "gradient_checkpointing", "capacity"]),
        (MemoryError(), ["ran out of memory (MemoryError)", "num_workers"]),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), ["batch_size"]),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), ["Another process"]),
        (torch.distributed.DistBackendError("NCCL error"), ["Another process of this run has ended (NCCL error)"]),
    ],
)  # fmt: skip
def test_the_sentence_says_what_to_do(capsys, error, words):
    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit):
        main()
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: ") and "resume=latest" in sentence
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), KeyError()]
)
def test_an_error_of_the_code_is_not_explained_away(error):
    assert explain_failure(error) is None


def test_a_signal_that_comes_with_the_end_of_another_process_is_what_ends_this_one(monkeypatch, capfd):
    monkeypatch.setattr(settings, "FAILURE_SECONDS", 0.1)
    signals = StopSignals()

    @exit_on_user_error
    def main():
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")

    with pytest.raises(SystemExit) as stop:
        main()
    signals.restore()
    assert stop.value.code == 0 and capfd.readouterr().err.startswith("Stopped by SIGTERM")


def test_a_worker_is_silent_about_a_main_process_that_has_ended(capsys):
    _report_but_lost_connections(ConnectionResetError, ConnectionResetError(104, "reset"), None)
    assert capsys.readouterr().err == ""
    _report_but_lost_connections(ValueError, ValueError("of a thread"), None)
    assert "of a thread" in capsys.readouterr().err
