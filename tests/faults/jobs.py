"""The scripts under test, each as a child that is forked from a process which has imported everything.

    outcome = finish(start(job, folder, Fault(kill_at=9)))

A job runs in its own folder and writes below it; its settings name everything relative to it, so that two folders are
alike to the byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import logging
import os
import pickle
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState
from faults.disk import Disk, Fault

from vjepa2_hf.training.run import Run


STEPS = 3
TIMEOUT = 60.0  # seconds: a job that takes longer hangs
GRACE = 10.0  # seconds that a process may take after another of its run has died


@dataclasses.dataclass(frozen=True)
class Job:
    """A script with its arguments. `steps`: of a training run, which continues with `resume=latest`; 0: the command is
    repeated."""

    name: str
    script: str
    arguments: tuple[str, ...]
    steps: int = STEPS

    @property
    def is_training(self) -> bool:
        return self.steps > 0

    def with_arguments(self, *more: str) -> Job:
        return dataclasses.replace(self, arguments=(*self.arguments, *more))


@dataclasses.dataclass
class Outcome:
    """How the processes of a job ended.

    codes: exit codes, or minus the signal. text: stdout and stderr of each. start: the step that a run began
    at, if it came so far. promised: the last step that it has saved. seconds: until the last process ended.
    """

    codes: list[int]
    text: list[str]
    start: int | None
    promised: int
    seconds: float
    hung: bool = False

    @property
    def ok(self) -> bool:
        return not self.hung and not any(self.codes)

    def errors(self) -> list[str]:
        """The error lines of all processes."""
        return [line for text in self.text for line in re.findall(r"error: .*", text)]

    def problems(self) -> list[str]:
        """What no run of ours may do, whatever happens to it."""
        found = ["it hung"] if self.hung else []
        for rank, text in enumerate(self.text):
            if "Traceback (most recent call last)" in text:
                lines = text.strip().splitlines()
                found.append(f"process {rank} printed a traceback: {lines[-1][:200]}")
        return found


@dataclasses.dataclass
class Started:
    """The processes of a job that runs."""

    pids: list[int]
    pipes: list[int]
    folder: Path
    begun: float
    codes: dict[int, int] = dataclasses.field(default_factory=dict)
    text: dict[int, bytes] = dataclasses.field(default_factory=dict)

    def poll(self) -> bool:
        """Collects output, and processes that have ended; whether all have."""
        for pipe in self.pipes:
            with contextlib.suppress(BlockingIOError):
                self.text[pipe] = self.text.get(pipe, b"") + os.read(pipe, 2**20)
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def send(self, number: int, ranks: list[int] | None = None) -> None:
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if self.pids[rank] not in self.codes:
                os.kill(self.pids[rank], number)


def aside(folder: Path, name: str) -> Path:
    """A path beside a job's folder, for what is not part of its results."""
    return folder.with_name(f"{folder.name}.{name}")


def start(
    job: Job,
    folder: Path,
    fault: Fault | None = None,
    ranks: int = 1,
    faulty: int = 0,
    before: Callable[[], None] | None = None,
) -> Started:
    """Starts a job in a folder; `fault` befalls the process `faulty`. `before` runs in each process first."""
    folder.mkdir(parents=True, exist_ok=True)
    port, pids, pipes = _free_port() if ranks > 1 else 0, [], []
    for name in ("start", "promised"):
        aside(folder, name).unlink(missing_ok=True)
    for rank in range(ranks):
        ours, theirs = os.pipe()  # not a file: a limit of the size of files does not concern it
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            code = 70
            try:
                watched = fault if rank == faulty else None
                code = _child(job, folder, theirs, watched, rank, ranks, port, before)
            finally:
                os._exit(code)
        os.close(theirs)
        os.set_blocking(ours, False)
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 2**20)
        pids.append(pid)
        pipes.append(ours)
    return Started(pids, pipes, folder, time.monotonic())


def finish(started: Started, timeout: float = TIMEOUT, grace: float = GRACE) -> Outcome:
    """Waits for all processes. After one has failed the others have `grace` seconds to end by themselves."""
    failed, hung = None, False
    while not started.poll():
        now = time.monotonic()
        if failed is None and any(started.codes.values()):
            failed = now
        if now - started.begun > timeout or (failed is not None and now - failed > grace):
            hung = True
            started.send(signal.SIGKILL)
        time.sleep(0.003)
    seconds = time.monotonic() - started.begun
    started.poll()
    text = [started.text.get(pipe, b"").decode(errors="replace") for pipe in started.pipes]
    for pipe in started.pipes:
        os.close(pipe)
    begun, promised = (_number(aside(started.folder, name)) for name in ("start", "promised"))
    return Outcome([started.codes[pid] for pid in started.pids], text, begun, promised or 0, seconds, hung)


def _number(path: Path) -> int | None:
    text = path.read_text() if path.exists() else ""
    return int(text) if text else None


def run(
    job: Job, folder: Path, fault: Fault | None = None, ranks: int = 1, faulty: int = 0, **options: Any
) -> Outcome:
    return finish(start(job, folder, fault, ranks, faulty, **options))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _child(
    job: Job, folder: Path, pipe: int, fault: Fault | None, rank: int, ranks: int, port: int, before: Any
) -> int:
    """The script in this forked process; returns its exit code."""
    os.chdir(folder)
    renew(pipe, pipe)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    if ranks > 1:
        shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in shared.items()} | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
    disk = Disk(folder, fault)
    _note_progress(disk, aside(folder, "start") if rank == 0 else None)
    if before is not None:
        before()
    if fault is not None:
        disk.install()
    code = call_main(job.script, job.arguments)
    if fault is not None:
        found = {name: getattr(disk, name) for name in ("events", "marks", "operations", "used", "root")}
        aside(folder, "disk").write_bytes(pickle.dumps(found))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def renew(out: int, err: int) -> None:
    """Makes a forked process what a new one is: its output, signals, warnings, logging, and Accelerate's state."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    logging.getLogger().handlers.clear()
    for state in (GradientState, AcceleratorState, PartialState):
        state._shared_state.clear()


def call_main(script: str, arguments: Iterable[str]) -> int:
    """Runs a script's `main` as Python would; returns its exit code."""
    module = importlib.import_module(script)
    sys.argv = [f"{script}.py", *arguments]
    try:
        module.main()
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(error.code + "\n")
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _note_progress(disk: Disk, path: Path | None) -> None:
    """Writes down where a run begins, and marks each checkpoint that it has promised."""
    resume, save, final = Run.resume, Run.save_checkpoint, Run.save_final

    def noted_resume(self, *arguments, **options):
        found = resume(self, *arguments, **options)
        if path is not None:
            path.write_text(str(found[0]))
        return found

    def marked_save(self, step, *arguments, **options):
        found = save(self, step, *arguments, **options)
        disk.mark(step)
        if path is not None:
            path.with_suffix(".promised").write_text(str(step))
        return found

    def marked_final(self, *arguments, **options):
        found = final(self, *arguments, **options)
        disk.mark("final")
        return found

    Run.resume, Run.save_checkpoint, Run.save_final = noted_resume, marked_save, marked_final


def recorded(folder: Path) -> dict[str, Any]:
    """Events and operations of the last job in a folder that had a `Fault` and came to its end."""
    return pickle.loads(aside(folder, "disk").read_bytes())
