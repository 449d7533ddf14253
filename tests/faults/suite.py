"""The cases of the fault suite, run by a few workers that are forked from one process."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from faults import contents, crashes, data, jobs, troubles
from faults.disk import Fault
from faults.jobs import Job
from faults.judge import Case, Problem, Reference, make_reference


SCRIPTS = ("pretrain", "train_world_model", "train_probe", "make_video_shards", "extract_features")


LONGER = ("max_steps=8", "save_every=4")  # for faults at random moments of the steps


@dataclasses.dataclass(frozen=True)
class Counts:
    """Cases of each fault: for one process and, after it, for two."""

    kills: tuple[int, int]
    random_kills: tuple[int, int]
    power_losses: int
    signals: tuple[int, int]
    second_signals: tuple[int, int]
    full_disks: tuple[int, int]
    worker_kills: tuple[int, int]
    damages: tuple[int, int]
    writers: tuple[int, int]


WHOLE = Counts(
    kills=(1030, 340), random_kills=(120, 60), power_losses=150, signals=(42, 24), second_signals=(12, 9),
    full_disks=(48, 15), worker_kills=(18, 9), damages=(76, 16), writers=(15, 6),
)  # fmt: skip


FAULTS = {
    "kills": crashes.KILL, "random_kills": crashes.RANDOM_KILL, "power_losses": crashes.POWER,
    "signals": troubles.SIGNAL, "second_signals": troubles.SECOND, "full_disks": troubles.FULL,
    "worker_kills": troubles.WORKER, "damages": troubles.DAMAGE, "writers": troubles.WRITERS,
}  # fmt: skip


def scaled(counts: Counts, fraction: float, fault: str | None = None) -> Counts:
    """A fraction of the cases, at least one of each kind, of the faults whose name holds a text."""
    found = {}
    for name, value in dataclasses.asdict(counts).items():
        wanted = fault is None or fault in FAULTS[name]
        numbers = value if isinstance(value, tuple) else (value,)
        numbers = tuple(max(1, round(number * fraction)) if wanted and number else 0 for number in numbers)
        found[name] = numbers if isinstance(value, tuple) else numbers[0]
    return Counts(**found)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a case ended."""

    fault: str
    job: str
    ranks: int
    label: str
    seconds: float
    problems: list[tuple[str, str]]


class Stage:
    """Inputs, jobs and their undisturbed runs, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        for script in SCRIPTS:
            importlib.import_module(script)
        in_child(lambda: data.make_inputs(folder / "inputs"))
        self.jobs = data.make_jobs(folder / "inputs")
        gc.collect()
        gc.freeze()  # forked children share these objects' memory
        self._references: dict[tuple[Job, int], Reference] = {}

    def reference(self, name: str, ranks: int = 1, *arguments: str, record: bool = True) -> Reference:
        """The undisturbed run of a job with more arguments; `record` its file operations."""
        job = self.jobs[name].with_arguments(*arguments)
        if (job, ranks) not in self._references:
            place = self.folder / f"reference-{len(self._references)}"
            self._references[job, ranks] = make_reference(job, place, ranks, record)
        return self._references[job, ranks]

    def stopped(self, reference: Reference, step: int) -> Path:
        """The folder of a run that was killed right after the checkpoint of a step."""
        folder = self.folder / f"stopped-{reference.job.name}-{reference.ranks}"
        count = next(count for count, mark in reference.recorded[0]["marks"] if mark == step)
        contents.plant(folder, reference.job)
        jobs.run(reference.job, folder, Fault(kill_at=count + 1), reference.ranks)
        return folder


def in_child(function: Callable[[], None]) -> None:
    """Calls a function in a forked process, so that this one stays without threads."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("The inputs of the fault suite could not be made.")


def parts(total: int, *weights: int) -> list[int]:
    """A count split by weights."""
    return [
        total * sum(weights[: i + 1]) // sum(weights) - total * sum(weights[:i]) // sum(weights)
        for i in range(len(weights))
    ]


def all_cases(stage: Stage, counts: Counts) -> Iterator[Case]:
    """Every fault for every job that it can befall."""
    single, pairs = ("pretrain", "world_model", "probe", "shards", "features"), ("pretrain", "world_model", "probe")
    trained = pairs

    def deal(count: int, names: tuple[str, ...], weights: tuple[int, ...] = (), ranks: int = 1, *more: str, **options):
        """(reference, number of cases) of the jobs, of which those with cases are run."""
        for name, part in zip(names, parts(count, *(weights or [1] * len(names)))):
            if part:
                yield stage.reference(name, ranks, *more, **options), part

    for reference, count in deal(counts.kills[0], single, (12, 14, 15, 7, 4)):
        yield from crashes.kills(reference, count)
    for reference, count in deal(counts.kills[1], pairs, (3, 2, 1), 2):
        most = len(crashes.kill_points(reference, rank=1))
        yield from crashes.kills(reference, max(count // 2, count - most))
        yield from crashes.kills(reference, min(count - count // 2, most), rank=1)
    for reference, count in deal(counts.power_losses, trained):
        yield from crashes.power_losses(reference, count)
    for ranks, names in ((1, single), (2, pairs)):
        for reference, count in deal(counts.random_kills[ranks - 1], names, ranks=ranks):
            yield from crashes.random_kills(reference, count)
        for reference, count in deal(counts.full_disks[ranks - 1], names, (2, 2, 2, 1, 1)[: len(names)], ranks):
            yield from troubles.full_disks(reference, count - count // 3)
            yield from troubles.small_files(reference, count // 3)
        for reference, count in deal(counts.writers[ranks - 1], names, ranks=ranks):
            yield from troubles.two_writers(reference, count)
        signals = (
            (troubles.send_signals, counts.signals),
            (troubles.send_signals_twice, counts.second_signals),
        )
        for make, of in signals:
            for reference, part in deal(of[ranks - 1], trained, (), ranks, *LONGER, record=False):
                yield from make(reference, part)
        for reference, count in deal(
            counts.worker_kills[ranks - 1], ("pretrain",), (), ranks, *LONGER, "num_workers=2", record=False
        ):
            yield from troubles.worker_kills(reference, count)
        for reference, count in deal(counts.damages[ranks - 1], trained if ranks == 1 else ("pretrain",), ranks=ranks):
            yield from troubles.damages(reference, stage.stopped(reference, 2), count, random.Random(count))


# ------------------------------------------------------------------------------------------------------------- running


def judge(case: Case, folder: Path, seed: int) -> Verdict:
    """Runs one case in a new folder, which stays if there are problems."""
    begun = time.monotonic()
    place = folder / "case"
    try:
        problems = case.run(place, random.Random(seed))
    except Exception as error:  # a fault of the suite itself counts too
        problems = [Problem("message", f"the suite failed: {''.join(traceback.format_exception(error))[-1500:]}")]
    verdict = Verdict(
        case.fault, case.job, case.ranks, case.label, time.monotonic() - begun, [tuple(p) for p in problems]
    )
    shutil.rmtree(folder, ignore_errors=True)
    return verdict


def run_cases(
    cases: Iterable[Case], folder: Path, workers: int, seed: int = 0, progress: bool = True
) -> list[Verdict]:
    """All verdicts. Every worker takes the next case that nobody has taken."""
    cases = list(cases)
    order = list(range(len(cases)))
    random.Random(seed).shuffle(order)
    taken, pids, files = folder / "taken", [], []
    taken.mkdir(parents=True, exist_ok=True)
    for worker in range(workers):
        file = folder / f"verdicts-{worker}.jsonl"
        files.append(file)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                _work(cases, order, folder, taken, file, seed)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    begun = said = time.monotonic()
    while pids:
        for pid in list(pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                pids.remove(pid)
                if status:
                    raise RuntimeError(f"A worker of the fault suite died ({status}).")
        if progress and time.monotonic() > said + 20:
            said = time.monotonic()
            sys.stderr.write(f"{len(list(taken.iterdir()))} of {len(cases)} cases, {said - begun:.0f} s\n")
        time.sleep(0.05)
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [Verdict(**json.loads(line)) for line in lines]


def _work(cases: list[Case], order: list[int], folder: Path, taken: Path, file: Path, seed: int) -> None:
    with open(file, "w", encoding="utf-8", buffering=1) as out:
        for number in order:
            try:
                os.close(os.open(taken / str(number), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            verdict = judge(cases[number], folder / str(number), seed * 10**6 + number)
            out.write(json.dumps(dataclasses.asdict(verdict)) + "\n")
