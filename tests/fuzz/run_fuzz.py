"""Calls the package with wrong inputs and says what came of each: `python tests/fuzz/run_fuzz.py --count 10000`.

Each input ends in a right result (an invariant of the call holds) or in one sentence of the package: a ValueError,
TypeError or OSError that one of its files raised, of one line, which names the argument or the value. Anything else is
a failure: a foreign traceback, a wrong result, a call that takes longer than `--timeout`, an allocation of gigabytes.
The same seed gives the same inputs.
"""

import argparse
import collections
import contextlib
import logging
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fuzz_calls import Call, all_calls  # noqa: E402
from fuzz_values import wrong_value  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from transformers.utils.logging import disable_progress_bar, enable_progress_bar  # noqa: E402

import vjepa2_hf  # noqa: E402
from vjepa2_hf.specs import describe  # noqa: E402


PACKAGE = str(Path(vjepa2_hf.__file__).parent)
RIGHT, SENTENCE, FOREIGN, WRONG, HANG = "right", "sentence", "foreign", "wrong", "hang"
ROOM = 6 * 2**30  # bytes that a call may allocate


@dataclass
class Outcome:
    call: str
    verdict: str
    inputs: str
    detail: str

    @property
    def is_failure(self) -> bool:
        return self.verdict not in (RIGHT, SENTENCE)


class Hang(BaseException):
    """A call took too long."""


def names_of(call: Call, arguments: dict[str, Any], changed: list[str]) -> list[str]:
    """Words of which a sentence about the changed arguments has at least one."""
    words = []
    for name in changed:
        if call.kinds[name] == "image":
            words += ["video", "image", "frame", "pixels"]
        value = arguments[name]
        words += [name, name.rstrip("s"), *(part for part in name.split("_") if len(part) > 3), describe(value)[:20]]
        if isinstance(value, (torch.Tensor, np.ndarray)):
            words += [str(tuple(value.shape)), str(value.dtype), *map(str, value.shape)]
            words += ["non-finite"]  # of costs, which numbers of any argument may cause
        else:
            words += [str(value)[:20], type(value).__name__]
    return [word.lower() for word in words if word]


def is_sentence(error: BaseException, call: Call, arguments: dict[str, Any], changed: list[str]) -> bool:
    if isinstance(error, StrictDataclassError):  # the types of configs, in huggingface_hub's sentence
        return True
    if not isinstance(error, (ValueError, TypeError, OSError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    message = str(error)
    ours = last.startswith(PACKAGE) and "\n" not in message and 0 < len(message) < 1200
    return ours and any(word in message.lower() for word in names_of(call, arguments, changed))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit(room: int = ROOM) -> Iterator[None]:
    """Allocations beyond `room` bytes fail instead of filling the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    disable_progress_bar()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
            enable_progress_bar()


def try_input(call: Call, rng: random.Random, timeout: float) -> Outcome:
    arguments = call.right()
    names = sorted(call.kinds)
    changed = rng.sample(names, min(len(names), 1 if rng.random() < 0.8 else 2))
    for name in changed:
        arguments[name] = wrong_value(call.kinds[name], arguments[name], rng, call.in_api)
    inputs = ", ".join(f"{name}={describe(arguments[name])}" for name in changed)
    try:
        with time_limit(timeout):
            result = call.function(**arguments)
            try:
                right = bool(call.holds(result, arguments))
            except Exception as error:  # noqa: BLE001, an invariant that cannot be computed does not hold
                return Outcome(call.name, WRONG, inputs, f"invariant: {type(error).__name__}: {error}")
        return Outcome(call.name, RIGHT if right else WRONG, inputs, "" if right else describe(result))
    except Hang:
        return Outcome(call.name, HANG, inputs, f"more than {timeout:g} s")
    except Exception as error:  # noqa: BLE001, the point of the suite
        if is_sentence(error, call, arguments, changed):
            return Outcome(call.name, SENTENCE, inputs, str(error))
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        detail = f"{type(error).__name__}: {str(error)[:160]!r} ({Path(last.filename).name}:{last.lineno} {where})"
        return Outcome(call.name, FOREIGN, inputs, detail)


def fuzz(count: int, seed: int = 0, timeout: float = 20.0, only: str = "") -> list[Outcome]:
    """Outcomes of `count` inputs; `only` is a part of the names of the calls to try."""
    calls = [call for call in all_calls() if only in call.name for _ in range(call.weight)]
    outcomes = []
    with quiet(), memory_limit(), torch.random.fork_rng():
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            outcomes.append(try_input(calls[number % len(calls)], rng, timeout))
    return outcomes


def try_right(call: Call) -> Any:
    """Result of a call with right arguments, whose invariant has to hold."""
    arguments = call.right()
    result = call.function(**arguments)
    assert call.holds(result, arguments), f"{call.name}: {describe(result)}"
    return result


def table(outcomes: list[Outcome]) -> str:
    counts = collections.defaultdict(collections.Counter)
    for outcome in outcomes:
        counts[outcome.call][outcome.verdict] += 1
    kinds = (RIGHT, SENTENCE, FOREIGN, WRONG, HANG)
    lines = [f"{'call':32}" + "".join(f"{kind:>10}" for kind in kinds)]
    lines += [f"{name:32}" + "".join(f"{row[kind]:>10}" for kind in kinds) for name, row in sorted(counts.items())]
    total = sum(counts.values(), collections.Counter())
    return "\n".join([*lines, f"{'all':32}" + "".join(f"{total[kind]:>10}" for kind in kinds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds that a call may take")
    parser.add_argument("--only", default="", help="part of the names of the calls to try")
    options = parser.parse_args()
    start = time.time()
    outcomes = fuzz(options.count, options.seed, options.timeout, options.only)
    failures = [each for each in outcomes if each.is_failure]
    for each in failures:
        print(f"{each.verdict}: {each.call}({each.inputs}): {each.detail}")
    print(table(outcomes))
    print(f"{len(outcomes)} inputs in {time.time() - start:.0f} s: {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
