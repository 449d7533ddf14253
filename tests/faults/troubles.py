"""Signals, full disks, killed workers, damaged files, and two writers in one folder."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from faults import contents, jobs
from faults.disk import Fault
from faults.jobs import Outcome, Started
from faults.judge import (
    Case,
    Problem,
    Reference,
    case,
    check_left,
    check_resume,
    copy_of,
    messages,
    one_sentence,
    spread,
)

from vjepa2_hf.training import signals as training_signals


SIGNAL, SECOND, FULL, WORKER = "signal", "second signal", "full disk", "killed data worker"
DAMAGE, WRITERS = "damaged file", "two writers"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
AT_ONCE = 3.0  # seconds in which a second signal must have ended a run


# ------------------------------------------------------------------------------------------------------------- signals


def send_signals(reference: Reference, count: int) -> Iterator[Case]:
    """At random moments of the steps; every sixth at any moment since the process was started."""
    for order in range(count):
        number = SIGNALS[order % 3]
        early = order % 6 == 5
        yield case(SIGNAL, reference, f"{number.name}, moment {order}", _signal, number, early)


def send_signals_twice(reference: Reference, count: int) -> Iterator[Case]:
    for order in range(count):
        number = SIGNALS[order % 3]
        yield case(SECOND, reference, f"{number.name} twice, moment {order}", _signal_twice, number)


def wait_for_training(started: Started) -> None:
    """Until the run has opened its folder and begins with its steps."""
    while not started.poll() and not jobs.aside(started.folder, "start").exists():
        time.sleep(0.001)


def wait(started: Started, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not started.poll() and time.monotonic() < until:
        time.sleep(0.001)


def some_ranks(reference: Reference, draw: random.Random) -> list[int] | None:
    """Launchers signal all processes; a scheduler may signal one alone."""
    return draw.choice([None, [draw.randrange(reference.ranks)]])


def _signal(reference: Reference, number: int, early: bool, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)
    started = jobs.start(reference.job, folder, None, reference.ranks)
    if early:
        wait(started, draw.uniform(0, 0.5 * reference.seconds))
    else:
        wait_for_training(started)
        wait(started, draw.uniform(0, 0.5 * reference.seconds))
    begun = jobs.aside(folder, "start").exists()
    over = started.poll()
    started.send(number, some_ranks(reference, draw))
    outcome = jobs.finish(started)
    found = messages(outcome)
    said = re.search(
        r"Stopped by (SIG\w+|a signal to another process) (before the first step)?.*", "\n".join(outcome.text)
    )
    if not begun and -number in outcome.codes:
        pass  # before the script has taken over the signals; nothing has been written
    elif not outcome.ok:
        found.append(Problem("message", f"exit codes {outcome.codes} after a signal: {outcome.text[0][-300:]!r}"))
    elif not said and not over and not has_ended(folder):
        found.append(Problem("message", f"no sentence about the signal: {outcome.text[0][-300:]!r}"))
    left, newest = check_left(reference, folder, outcome.promised)
    if said and not said[2] and not newest:
        left.append(Problem("lost", f"no checkpoint was saved: {said[0]}"))
    return found + left + check_resume(reference, folder, newest)


def _signal_twice(reference: Reference, number: int, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)

    def count_every_signal() -> None:
        training_signals.SAME_REQUEST_SECONDS = 0.0  # copies of one request arrive within this time

    started = jobs.start(reference.job, folder, None, reference.ranks, before=count_every_signal)
    wait_for_training(started)
    wait(started, draw.uniform(0, 0.5 * reference.seconds))
    started.send(number)
    wait(started, draw.uniform(0, 0.02))
    started.send(number)
    begun = time.monotonic()
    outcome = jobs.finish(started)
    found = messages(outcome)
    if time.monotonic() - begun > AT_ONCE:
        found.append(Problem("message", f"a second signal took {time.monotonic() - begun:.1f} s"))
    # A process that is still in its first signal misses the one that has ended
    if set(outcome.codes) - {0, -number} and not outcome.errors():
        found.append(Problem("message", f"exit codes {outcome.codes} after two signals: {outcome.text[0][-300:]!r}"))
    left, newest = check_left(reference, folder, outcome.promised)
    return found + left + check_resume(reference, folder, newest)


def has_ended(folder: Path) -> bool:
    return (folder / "run" / "final").is_dir()


# ---------------------------------------------------------------------------------------------------------- full disks


def full_disks(reference: Reference, count: int) -> Iterator[Case]:
    """A disk that is full at each write in turn; every other one takes no new names either."""
    record = reference.recorded[0]
    steps = [
        (used, size, path) for used, (kind, path, size) in zip(record["used"], record["events"]) if kind == "write"
    ]
    for number, (used, size, path) in enumerate(spread(steps, count)):
        fault = Fault(quota=used + size // 2, strict=bool(number % 2))
        yield case(FULL, reference, f"{fault.quota} bytes, in {path}", _fill_disk, fault)


def small_files(reference: Reference, count: int) -> Iterator[Case]:
    """The system refuses to let a file grow: what native writers meet when the disk is full."""
    sizes = sorted({len(data) for data in reference.results.values() if len(data) > 64})
    for size in spread(sizes, count):
        yield case(FULL, reference, f"files of {size - 1} bytes at most", _limit_files, size - 1)


def _fill_disk(reference: Reference, fault: Fault, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)
    return _after_full(reference, jobs.run(reference.job, folder, fault, reference.ranks), folder)


def _limit_files(reference: Reference, size: int, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return _after_full(reference, jobs.run(reference.job, folder, None, reference.ranks, before=limit), folder)


def _after_full(reference: Reference, outcome: Outcome, folder: Path) -> list[Problem]:
    found = messages(outcome) if outcome.ok else one_sentence(outcome)
    left, newest = check_left(reference, folder, outcome.promised)
    return found + left + check_resume(reference, folder, newest)


# -------------------------------------------------------------------------------------------------------- data workers


def worker_kills(reference: Reference, count: int) -> Iterator[Case]:
    """The job has `num_workers`; the system kills one of them, as it does when memory is short."""
    for number in range(count):
        yield case(WORKER, reference, f"moment {number}", _kill_worker)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill_worker(reference: Reference, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)
    started = jobs.start(reference.job, folder, None, reference.ranks)
    rank = draw.randrange(reference.ranks)
    while not started.poll() and len(children(started.pids[rank])) < 2:
        time.sleep(0.001)
    wait(started, draw.uniform(0, 0.3))
    workers = children(started.pids[rank])
    for pid in draw.sample(workers, min(1, len(workers))):
        os.kill(pid, signal.SIGKILL)
    outcome = jobs.finish(started)
    found = messages(outcome) if outcome.ok else one_sentence(outcome)
    left, newest = check_left(reference, folder, outcome.promised)
    return found + left + check_resume(reference, folder, newest)


# ------------------------------------------------------------------------------------------------------- damaged files


def damages(reference: Reference, stopped: Path, count: int, draw: random.Random) -> Iterator[Case]:
    """Each file of the newest checkpoint of a run that was stopped, with a flipped bit, cut, emptied, or gone. Every
    fourth case is another file of the run or of its cache."""
    newest = max((stopped / "run").glob("checkpoint-*"), key=_step)
    for inside, part in ((True, count - count // 4), (False, count // 4)):
        found = newest.iterdir() if inside else _other_files(stopped)
        files = sorted(path.relative_to(stopped) for path in found if path.is_file())
        ways = [(file, way) for way in ("bit", "cut", "empty", "gone") for file in files]
        ways += [(draw.choice(files), "bit") for _ in range(part - len(ways))]
        for file, way in spread(ways, part):
            yield case(DAMAGE, reference, f"{way}: {file}", _damage if inside else _damage_other, stopped, file, way)


def _other_files(stopped: Path) -> list[Path]:
    return [*stopped.glob("latents/*/*"), *stopped.glob("features/*/*"), *(stopped / "run").glob("[cm]*.*l")]


def _step(path: Path) -> int:
    return int(path.name.split("-")[1]) if path.name.split("-")[1].isdigit() else -1


def damage(path: Path, way: str, draw: random.Random) -> None:
    data = path.read_bytes()
    if way == "gone":
        path.unlink()
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "cut":
        path.write_bytes(data[: draw.randrange(1, len(data))])
    else:
        bit = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)


def _damage(
    reference: Reference, stopped: Path, file: Path, way: str, folder: Path, draw: random.Random
) -> list[Problem]:
    copy_of(stopped, folder)
    damage(folder / file, way, draw)
    checkpoint = folder / file.parts[0] / file.parts[1]
    outcome = jobs.run(reference.job, folder, None, reference.ranks)
    if outcome.ok:
        wrong = [name for name in contents.differences(folder, reference.results) if file.name not in name]
        if file.name == "digests.json" and way == "gone":  # as in checkpoints of 0.1; nothing else is damaged
            return messages(outcome) + [Problem("differs", text) for text in wrong]
        return [*messages(outcome), Problem("differs", f"the damage was not noticed ({len(wrong)} files differ)")]
    before = checkpoint.with_name(f"checkpoint-{_step(checkpoint) - 1}")
    found = one_sentence(outcome, checkpoint.name, before.name)
    found += [Problem("lost", text) for text in contents.lost_files(folder, reference.job)]
    if not checkpoint.is_dir() or not before.is_dir():
        return [*found, Problem("lost", "a checkpoint was removed after damage")]
    shutil.rmtree(checkpoint)  # what the sentence advises
    return found + check_resume(reference, folder, _step(before))


def _damage_other(
    reference: Reference, stopped: Path, file: Path, way: str, folder: Path, draw: random.Random
) -> list[Problem]:
    """The run may do without the file, or refuses it by its name; then the user removes the file, or the cache."""
    copy_of(stopped, folder)
    damage(folder / file, way, draw)
    newest = max(contents.whole_checkpoints(folder, reference.checkpoints))
    ignored = ("run/metrics.jsonl",)
    outcome = jobs.run(reference.job, folder, None, reference.ranks)
    if outcome.ok:
        wrong = [text for text in contents.differences(folder, reference.results) if not text.startswith(ignored)]
        return messages(outcome) + [Problem("differs", text) for text in wrong]
    # A damaged config.yaml may still be one, with other settings than the command
    found = one_sentence(outcome, "run" if file.parts[0] == "run" else file.parent.name)
    if file.parts[0] == "run":
        (folder / file).unlink(missing_ok=True)
    else:
        shutil.rmtree(folder / file.parent)
    return found + check_resume(reference, folder, newest, ignored=ignored)


# --------------------------------------------------------------------------------------------------------- two writers


def two_writers(reference: Reference, count: int) -> Iterator[Case]:
    for number in range(count):
        yield case(WRITERS, reference, f"moment {number}", _two_writers)


def _two_writers(reference: Reference, folder: Path, draw: random.Random) -> list[Problem]:
    contents.plant(folder, reference.job)
    first = jobs.start(reference.job, folder, None, reference.ranks)
    wait(first, draw.uniform(0, reference.seconds))
    second = jobs.start(reference.job, folder, None, reference.ranks)
    found, ended = [], []
    while not (first.poll() & second.poll()) and time.monotonic() - second.begun < jobs.TIMEOUT:
        time.sleep(0.002)
    for started in (first, second):
        outcome = jobs.finish(started)
        ended.append(outcome.ok)
        found += messages(outcome) if outcome.ok else one_sentence(outcome)
    if not any(ended):
        found.append(Problem("lost", "both writers failed"))
    found += [Problem("lost", text) for text in contents.lost_files(folder, reference.job)]
    return found + [Problem("differs", text) for text in contents.differences(folder, reference.results)]
