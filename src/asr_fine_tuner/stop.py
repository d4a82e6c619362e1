"""SIGTERM and SIGINT: noted at once, acted on where work can be left safely."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from types import FrameType

from asr_fine_tuner.errors import InterruptedJob

_requested: list[str] = []
_shared: list[Event] = []


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT ask for a stop instead of ending the process (as PID 1 too, which otherwise
    ignores SIGTERM). A second SIGINT ends at once. In a thread other than the main one signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested.clear()
    previous = {number: signal.signal(number, _note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _requested.clear()


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
