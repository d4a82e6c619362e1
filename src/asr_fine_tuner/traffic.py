"""How many bytes this process has received from the Hub."""

from __future__ import annotations

import functools
import threading

_lock = threading.Lock()
_received = 0


def bytes_fetched() -> int:
    """Bytes of files that this process has received so far; what came from the cache is not counted. Only ever grows;
    a forked process goes on from its parent's count."""
    return _received


def count(n_bytes: int) -> None:
    """Note that bytes of a file have arrived."""
    global _received
    with _lock:
        _received += n_bytes


@functools.cache
def counting_progress() -> type:
    """A progress bar for the client that shows nothing and counts what arrives over the network, over HTTP and Xet."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class CountingProgress(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update_transfer(self, n_bytes: float) -> None:
            count(int(n_bytes))

        def set_transfer_postfix_str(self, *args: object, **kwargs: object) -> None:
            """The client shows the speed of a transfer here."""

    return CountingProgress
