"""One run at a time fills a cache that several need: a lock beside its folder, over all processes of a run."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: str | os.PathLike, accelerator: Any) -> Iterator[None]:
    """Holds the folder for this run: of two runs that need the same one, one fills it and the other waits.

    Args:
        folder: of the cache; it need not exist, its parent is created.
        accelerator: of the run, all of whose processes call this.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    if accelerator.is_main_process:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another run is filling %s: waiting for it to end", folder)
            lock.acquire()
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        lock.release()


__all__ = ["locked"]
