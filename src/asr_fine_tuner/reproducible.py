"""The same bits from the same run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def reproducible_on_cpu() -> Iterator[None]:
    """Within the block, or the function that it decorates, the threads of a processor do not race for who adds first.

    They do in the gradient of what is looked up by index, as the decoder's positions are, from 32,768 numbers on. It
    costs no time that could be measured. On a GPU, where it would cost some, nothing changes.
    """
    if torch.cuda.is_available():
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills
