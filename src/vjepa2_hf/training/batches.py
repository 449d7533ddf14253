"""Batches of a DataLoader whose worker processes may die.

for batch in all_batches(loader): ...        # or next_batch(iterator)
"""

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch.utils.data._utils import signal_handling


Batch = TypeVar("Batch")
CLOSING_SECONDS = 0.2  # between the last words of a killed process and its end


def next_batch(batches: Iterator[Batch]) -> Batch:
    """The next batch. Dead workers are looked for here: torch would report them from a signal handler, which raises in
    the middle of whatever the program does, such as a `__del__` or the saving of a checkpoint.

    Raises:
        RuntimeError: a worker has died, in torch's words; `failures` explains them.
        StopIteration: there is no more.
    """
    try:
        signal_handling._error_if_any_worker_fails()
        return next(batches)
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # of the tensors that the worker was sending
        time.sleep(CLOSING_SECONDS)
        signal_handling._error_if_any_worker_fails()
        if isinstance(error, FileNotFoundError):
            raise
        raise RuntimeError(f"DataLoader worker exited unexpectedly ({error})") from error
    finally:
        _silence_torch()


def all_batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader, by `next_batch`."""
    batches = iter(loader)
    _silence_torch()
    with contextlib.suppress(StopIteration):
        while True:
            yield next_batch(batches)


def _silence_torch() -> None:
    """Removes torch's handler, which every process sets once, with its first worker."""
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if getattr(handler, "__module__", None) == signal_handling.__name__:
        with contextlib.suppress(ValueError):  # only the main thread sets handlers, also torch's
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
