"""SIGTERM and SIGINT: noted at once, acted on where work can be left safely, and at the latest after a grace time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from types import FrameType

from asr_fine_tuner.errors import ExitCode, InterruptedJob
from asr_fine_tuner.launch import is_alone

# Schedulers kill 30 s after SIGTERM unless told otherwise.
DEFAULT_GRACE_SECONDS = 25.0

_requested: list[str] = []
_shared: list[Event] = []
_grace_seconds = DEFAULT_GRACE_SECONDS


@contextlib.contextmanager
def stop_on_signals(on_grace_over: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT ask for a stop instead of ending the process (as PID 1 too, which otherwise
    ignores SIGTERM). A second SIGINT ends at once.

    When the block has not ended within the grace time after that, `on_grace_over` is called and the process ends with
    exit code 143, even while it computes or waits for the network: whatever is written here is whole or absent.
    In a thread other than the main one signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested.clear()
    previous = {number: signal.signal(number, _note) for number in (signal.SIGTERM, signal.SIGINT)}
    watchdog = _Watchdog(on_grace_over)
    try:
        yield
    finally:
        watchdog.close()
        for number, handler in previous.items():
            # torchrun ends the other processes as soon as one has ended: that must not change how they end.
            signal.signal(number, handler if is_alone() else signal.SIG_IGN)
        _requested.clear()


def allow_grace(seconds: float) -> None:
    """How long after the signal the process may take to save."""
    global _grace_seconds
    _grace_seconds = seconds


class _Watchdog:
    """Ends the process when the grace time is over.

    A Python signal handler waits for the bytecode in progress, which can be a long call into C. The interpreter's
    wake-up descriptor is written to at once, so a thread that reads it sees the signal in time.
    """

    def __init__(self, on_grace_over: Callable[[], None] | None) -> None:
        self._on_grace_over = on_grace_over
        self._ended = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="grace time", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        signal.set_wakeup_fd(self._previous)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while number := self._reader.recv(1):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                break
        if not number or self._ended.wait(_grace_seconds):
            return
        if self._on_grace_over:
            self._on_grace_over()
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(ExitCode.INTERRUPTED)


def _note(number: int, _frame: FrameType | None) -> None:
    if _requested and number == signal.SIGINT:
        raise KeyboardInterrupt
    _requested.append(signal.Signals(number).name)


def share_stop(event: Event) -> None:
    """In a worker process: a stop is asked for when the parent sets `event`."""
    _shared[:] = [event]


def stop_requested() -> bool:
    return bool(_requested) or any(event.is_set() for event in _shared)


def raise_if_stopped(kept: str) -> None:
    """Raise InterruptedJob when a stop was asked for; `kept` tells what the next run continues from."""
    if stop_requested():
        signal_name = _requested[0] if _requested else "a stop"
        raise InterruptedJob(
            given=f"{signal_name} received; {kept}", expected="to run to the end", action="run the same command again"
        )
