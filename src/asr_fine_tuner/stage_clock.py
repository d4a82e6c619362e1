"""A clock that tells how long each stage of a run took, on a GPU without waiting for it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Protocol

import torch


class Stage(StrEnum):
    """What a run does at a time.

    DATA: waiting for batches. FORWARD, BACKWARD: the passes of training. OPTIMIZER: gradients averaged over the ranks
    and clipped, and the step with them. EVALUATION, SAVING: of checkpoints. OTHER: everything between them.
    """

    DATA = "data"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EVALUATION = "evaluation"
    SAVING = "saving"
    OTHER = "other"


class _Watch(Protocol):
    """Takes moments of time, which can lie ahead, and tells the seconds between two that have come."""

    def now(self) -> Any: ...

    def has_come(self, moment: Any) -> bool: ...

    def between(self, begin: Any, end: Any) -> float: ...


class _HostWatch:
    def now(self) -> float:
        return time.monotonic()

    def has_come(self, moment: float) -> bool:  # noqa: ARG002
        return True

    def between(self, begin: float, end: float) -> float:
        return end - begin


class _CudaWatch:
    """Moments in the work of a GPU, which it comes to after what was enqueued before.

    The time from one to the next is what the GPU took for the work between them, with its waiting for the host: the
    time of all stages is still the time that passes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def has_come(self, moment: torch.cuda.Event) -> bool:
        return bool(moment.query())

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1000  # of milliseconds


class StageClock:
    """Gives each moment to one stage: the innermost that is under way. Outside of all of them it stands still."""

    def __init__(self, device: torch.device) -> None:
        self._watch: _Watch = _CudaWatch(device) if device.type == "cuda" else _HostWatch()
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._under_way: list[Stage] = []
        # Stages that ended, or were left for an inner one, and whose time was not read yet: (stage, begin, end).
        self._past: deque[tuple[Stage, Any, Any]] = deque()
        self._since: Any = None

    @contextlib.contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """The block is `stage`, but for the stages within it, which end with it."""
        outside = len(self._under_way)
        self.begin(stage)
        try:
            yield
        finally:
            self._turn()
            del self._under_way[outside:]

    def begin(self, stage: Stage) -> None:
        """What follows is `stage`, up to its `end`: for what is no block of code."""
        self._turn()
        self._under_way.append(stage)

    def end(self) -> None:
        self._turn()
        self._under_way.pop()

    def seconds(self) -> Mapping[Stage, float]:
        """By stage, so far. What a GPU has not come to yet is told by a later call."""
        if self._under_way:
            self._turn()
        while self._past and self._watch.has_come(self._past[0][2]):
            stage, begin, end = self._past.popleft()
            self._seconds[stage] += self._watch.between(begin, end)
        return dict(self._seconds)

    def _turn(self) -> None:
        """Give the time up to now to the stage under way."""
        now = self._watch.now()
        if self._under_way:
            self._past.append((self._under_way[-1], self._since, now))
        self._since = now
