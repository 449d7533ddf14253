"""Runs that nothing happens to, and what is demanded of all others.

A case ends in a list of `Problem`s, each of one kind: "lost" (work or a user's file), "differs" (results that are not
those of the uninterrupted run, to the byte) or "message" (a traceback, no sentence, or a hang).
"""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faults import contents, jobs
from faults.disk import Fault
from faults.jobs import Job, Outcome


class Problem(NamedTuple):
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault. `run` takes an empty folder and a draw of random numbers."""

    fault: str
    job: str
    ranks: int
    label: str
    run: Callable[[Path, random.Random], list[Problem]]


@dataclasses.dataclass(frozen=True)
class Reference:
    """A job that nothing happened to.

    results: by file, see `contents.results`. checkpoints: those of every step. recorded: its operations, by process.
    """

    job: Job
    ranks: int
    folder: Path
    results: dict[str, bytes]
    checkpoints: dict[str, bytes]
    recorded: list[dict[str, Any]]
    seconds: float


def make_reference(job: Job, folder: Path, ranks: int = 1, record: bool = True) -> Reference:
    """Runs a job once for each process whose operations are recorded, and once with all checkpoints kept."""
    recorded, found = [], []
    for rank in range(ranks if record else 1):
        place = jobs.aside(folder, str(rank))
        contents.plant(place, job)
        outcome = jobs.run(job, place, Fault(record=True) if record else None, ranks, rank)
        _demand(outcome)
        recorded += [jobs.recorded(place)] if record else []
        found.append(contents.results(place))
    if any(one != found[0] for one in found):
        raise RuntimeError(f"{job.name} does not repeat itself: its faults cannot be judged.")
    checkpoints = {}
    if job.is_training:
        whole = jobs.aside(folder, "all")
        outcome = jobs.run(job.with_arguments("keep_last=null", "save_every=1"), whole, ranks=ranks)
        _demand(outcome)
        checkpoints = {
            name: data for name, data in contents.results(whole).items() if contents.CHECKPOINT.fullmatch(name)
        }
    return Reference(job, ranks, jobs.aside(folder, "0"), found[0], checkpoints, recorded, outcome.seconds)


def _demand(outcome: Outcome) -> None:
    if not outcome.ok or outcome.problems():
        said = "\n".join(f"process {rank}: {text[-3000:]}" for rank, text in enumerate(outcome.text))
        raise RuntimeError(f"An undisturbed run failed ({outcome.codes}):\n{said}")


# ------------------------------------------------------------------------------------------------------------- demands


def messages(outcome: Outcome) -> list[Problem]:
    """No traceback and no hang."""
    return [Problem("message", text) for text in outcome.problems()]


def one_sentence(outcome: Outcome, *named: str) -> list[Problem]:
    """A run that failed says why, on one line for each of its processes, which names all of `named`."""
    found, errors = messages(outcome), outcome.errors()
    if not errors:
        found.append(Problem("message", f"no error line, exit codes {outcome.codes}: {outcome.text[0][-300:]!r}"))
    found += [
        Problem("message", f"an error of {len(line)} characters: {line[:80]}") for line in errors if len(line) > 800
    ]
    missing = [name for name in named if errors and not any(name in line for line in errors)]
    return found + [Problem("message", f"{name!r} is not in {errors}") for name in missing]


def check_left(reference: Reference, folder: Path, promised: int = 0) -> tuple[list[Problem], int]:
    """What a run that ended early left: every checkpoint whole, the promised one among them, the user's files as they
    were. Also returns the step of the newest whole checkpoint."""
    found = [Problem("lost", text) for text in contents.lost_files(folder, reference.job)]
    whole = contents.whole_checkpoints(folder, reference.checkpoints)
    names = [path.name for path in (folder / "run").glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    broken = [name for name in names if int(name.split("-")[1]) not in whole]
    found += [Problem("lost", f"{name} is not whole") for name in broken]
    newest = max(whole, default=0)
    if newest < promised:
        found.append(Problem("lost", f"checkpoint-{promised} was saved, and the newest is {newest}"))
    return found, newest


def check_resume(reference: Reference, folder: Path, newest: int, ignored: tuple[str, ...] = ()) -> list[Problem]:
    """The same command again, which continues from step `newest` and ends as the uninterrupted run did. Checkpoints of
    other steps may be there, if they are whole, and files that begin with one of `ignored` may differ."""
    outcome = jobs.run(reference.job, folder, ranks=reference.ranks)
    found = messages(outcome)
    if not outcome.ok:
        return [*found, Problem("lost", f"it does not resume {outcome.codes}: {outcome.text[0].strip()[-400:]}")]
    if reference.job.is_training and (outcome.start or 0) != newest:
        found.append(Problem("lost", f"it resumed from step {outcome.start}, and step {newest} was there"))
    left, _ = check_left(reference, folder, reference.job.steps)
    wrong = [text for text in contents.differences(folder, reference.results) if not contents.CHECKPOINT.match(text)]
    return found + left + [Problem("differs", text) for text in wrong if not text.startswith(ignored)]


def copy_of(source: Path, target: Path) -> None:
    """The folder of a job as it was left."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def case(fault: str, reference: Reference, label: str, function: Callable, *arguments: Any) -> Case:
    return Case(fault, reference.job.name, reference.ranks, label, functools.partial(function, reference, *arguments))


def spread(items: list, count: int) -> list:
    """`count` items, evenly over the list; all if there are fewer."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
