"""Progress: bars on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asr_fine_tuner.launch import is_first_process

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    def advance(self, amount: int = 1) -> None: ...


class _TerminalBar:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)  # type: ignore[arg-type]


class _LogBar:
    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._began = self._last_line = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._last_line = now
            logger.info("%s: %d of %d %s, %.0f s", self._what, self._done, self._total, self._unit, now - self._began)


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar that counts to `total` of `unit`."""
    if not sys.stderr.isatty() or not is_first_process():
        yield _LogBar(what, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        yield _TerminalBar(progress, progress.add_task(what, total=total))
