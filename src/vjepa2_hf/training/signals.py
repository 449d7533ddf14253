"""Stop signals: SIGTERM, SIGUSR1 and SIGHUP, which clusters and spot machines send before they take a machine.

    signals = StopSignals()        # from here on a signal ends the program with one sentence and exit code 0
    signals.deferred = True        # from here on it is only recorded in `signals.requested`, e.g. to save a checkpoint
    signals.restore()

A second signal ends the program at once. DataLoaders take `worker_init_fn=ignore_stop_signals`: a signal to the whole
process group would otherwise end the workers before the main process has finished its step.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import NoReturn


STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
# Launchers forward a signal that the process group has received, too: these copies are no second request
SAME_REQUEST_SECONDS = 2.0


class StoppedBySignal(SystemExit):
    """Ends the program with exit code 0 after a signal; `sentence` has been written to stderr."""

    def __init__(self, sentence: str):
        super().__init__(0)
        self.sentence = sentence


class StopSignals:
    """Handles the stop signals of this process until `restore`. In a thread that is not the main one it does nothing.

    A SIGHUP that is ignored (`nohup`) stays ignored.

    Attributes:
        requested: name of the first signal received, or None.
        deferred: whether a signal is only recorded. Otherwise it raises `StoppedBySignal` where the program is.
        advice: completes "Stopped by SIGTERM ..." in that sentence.
        is_silent: whether another process writes the sentence.
    """

    def __init__(self, advice: str = "; run the same command again"):
        self.requested: str | None = None
        self.deferred, self.advice, self.is_silent = False, advice, False
        self._process, self._first, self._before = os.getpid(), 0.0, {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            if not (before is signal.SIG_IGN and signal.Signals(number).name == "SIGHUP"):
                self._before[number] = before
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker, which the main process ends
        name = signal.Signals(number).name
        if self.requested is None:
            self.requested, self._first = name, time.monotonic()
            if not self.deferred:
                self.stop(self.advice)
        elif time.monotonic() - self._first > SAME_REQUEST_SECONDS:
            _write(f"Ended at once by a second signal ({name}); checkpoints saved so far stay.")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def stop(self, advice: str) -> NoReturn:
        """Writes the sentence and raises `StoppedBySignal`."""
        sentence = f"Stopped by {self.requested or 'a signal to another process'}{advice}."
        if not self.is_silent:
            _write(sentence)
        raise StoppedBySignal(sentence)

    def end_program_at(self, advice: str) -> None:
        """From here on a signal ends the program where it is; one that has been received does so now."""
        self.advice, self.deferred = advice, False
        if self.requested:
            self.stop(advice)

    def restore(self) -> None:
        """Gives the signals back to their handlers before; only the main thread can."""
        if threading.current_thread() is not threading.main_thread() or os.getpid() != self._process:
            return
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}


def ignore_stop_signals(worker: int) -> None:
    """The `worker_init_fn` of a DataLoader: its workers end when the main process says so, or is gone."""
    sys.excepthook = _report_but_lost_connections
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # on Linux; elsewhere a SIGTERM to the group still ends workers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _report_but_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker's thread that sends tensors has nobody to report to when the main process ends in the middle of it."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_for(parent: int) -> None:
    """Ends this worker when the main process sends SIGTERM, as a DataLoader does that is shut down."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _write(sentence: str) -> None:
    # Not sys.stderr: a handler may run while it is being written to
    line = f"\n{sentence}\n" if sys.stderr is not None and sys.stderr.isatty() else f"{sentence}\n"
    os.write(2, line.encode())
