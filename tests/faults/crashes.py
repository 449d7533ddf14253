"""Kills at every file operation and at random moments, and power losses."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from faults import contents, jobs, power
from faults.disk import Fault
from faults.judge import (
    Case,
    Problem,
    Reference,
    case,
    check_left,
    check_resume,
    messages,
    spread,
)


KILL, RANDOM_KILL, POWER = "kill at a file operation", "kill at a random moment", "power loss"


def kill_points(reference: Reference, rank: int = 0) -> list[tuple[int, bool]]:
    """(number, torn) of every operation of a process: before each, and in the middle of each write."""
    events = reference.recorded[rank]["events"]
    whole = [(number, False) for number in range(1, len(events) + 1)]
    torn = [(number, True) for number, (kind, _, size) in enumerate(events, start=1) if kind == "write" and size > 1]
    return sorted(whole + torn)


def kills(reference: Reference, count: int, rank: int = 0) -> Iterator[Case]:
    """Kills of one process at its file operations; another one of the run dies with it, or has to end by itself."""
    events = reference.recorded[rank]["events"]
    for order, (number, torn) in enumerate(spread(kill_points(reference, rank), count)):
        kind, path, _ = events[number - 1]
        label = f"{'in' if torn else 'before'} {number}: {kind} {path}" + (f", process {rank}" if rank else "")
        yield case(KILL, reference, label, _kill_at, number, torn, rank, bool(order % 2))


def _kill_at(
    reference: Reference, number: int, torn: bool, rank: int, alone: bool, folder: Path, draw: random.Random
) -> list[Problem]:
    contents.plant(folder, reference.job)
    started = jobs.start(reference.job, folder, Fault(kill_at=number, torn=torn), reference.ranks, rank)
    while not alone and reference.ranks > 1 and not started.poll() and started.pids[rank] not in started.codes:
        time.sleep(0.002)
    if not alone and reference.ranks > 1:
        started.send(signal.SIGKILL)  # a machine is gone with all its processes
    outcome = jobs.finish(started)
    found = messages(outcome) if alone else []
    if outcome.codes[rank] != -signal.SIGKILL:
        found.append(Problem("message", f"the kill did not happen: exit code {outcome.codes[rank]}"))
    left, newest = check_left(reference, folder, outcome.promised)
    return found + left + check_resume(reference, folder, newest)


def random_kills(reference: Reference, count: int) -> Iterator[Case]:
    for number in range(count):
        yield case(RANDOM_KILL, reference, f"moment {number}", _kill_at_random)


def _kill_at_random(reference: Reference, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)
    started, until = jobs.start(reference.job, folder, None, reference.ranks), draw.uniform(0, reference.seconds)
    while not started.poll() and time.monotonic() - started.begun < until:
        time.sleep(0.001)
    started.send(signal.SIGKILL, draw.sample(range(reference.ranks), reference.ranks))
    left, newest = check_left(reference, folder, jobs.finish(started).promised)
    return left + check_resume(reference, folder, newest)


def power_losses(reference: Reference, count: int) -> Iterator[Case]:
    """After every few operations, in each mode of survival in turn."""
    operations = reference.recorded[0]["operations"]
    for number, point in enumerate(spread(list(range(1, len(operations) + 1)), count)):
        mode = power.MODES[number % len(power.MODES)]
        yield case(POWER, reference, f"after {point} operations, {mode} survives", _lose_power, point, mode)


def _lose_power(reference: Reference, point: int, mode: str, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)
    record = reference.recorded[0]
    tree, marks = power.replay(record["operations"][:point], record["root"], power.read_tree(folder))
    tree.write_to(folder, draw, mode)
    promised = max((mark for mark in marks if mark != "final"), default=0)
    found = [Problem("lost", "final/ was saved and is gone")] if "final" in marks and not has_final(folder) else []
    left, newest = check_left(reference, folder, promised)
    return found + left + check_resume(reference, folder, newest)


def has_final(folder: Path) -> bool:
    return (folder / "run" / "final" / "model.safetensors").is_file()
