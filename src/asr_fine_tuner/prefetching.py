"""Making the next item of an iterator while this one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """`items` in their order, each made by a thread while the one before is worked on.

    A thread and not processes, as torch's loader has them: those would need shared memory, of which containers have
    64 MB, and would inherit the handlers of signals. Making a batch is copying, which leaves the interpreter free.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield cast("T", item)
