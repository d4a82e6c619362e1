"""SIGTERM and SIGINT: noted at once, acted on where work can be left safely."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from asr_fine_tuner.errors import InterruptedJob

_requested: list[str] = []


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


def _note(number: int, frame: FrameType | None) -> None:
    if _requested and number == signal.SIGINT:
        raise KeyboardInterrupt
    _requested.append(signal.Signals(number).name)


def stop_requested() -> bool:
    return bool(_requested)


def raise_if_stopped(kept: str) -> None:
    """Raise InterruptedJob when a stop was asked for; `kept` tells what the next run continues from."""
    if _requested:
        raise InterruptedJob(
            given=f"{_requested[0]} received; {kept}", expected="to run to the end", action="run the same command again"
        )
