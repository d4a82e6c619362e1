"""prefetching.py: the next item is made while this one is worked on, and what fails is told in its turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from asr_fine_tuner.prefetching import prefetched


def test_all_items_come_in_their_order() -> None:
    assert list(prefetched(iter(range(100)))) == list(range(100))
    assert list(prefetched(iter(()))) == []


def test_the_next_item_is_made_while_this_one_is_worked_on() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    ahead = prefetched(items())
    assert next(ahead) == 0
    assert made[1].wait(timeout=10)
    assert not made[3].is_set(), "one ahead, not all of them"
    assert list(ahead) == [1, 2, 3]


def test_an_error_is_raised_where_the_item_would_have_been() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise OSError("a clip that cannot be read")

    ahead = prefetched(items())
    assert next(ahead) == 0
    with pytest.raises(OSError, match="cannot be read"):
        next(ahead)


def test_leaving_early_ends_the_thread() -> None:
    ahead = prefetched(iter(range(100)))
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
