"""A file of which only parts are fetched, read like any other."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_AHEAD = 1 << 14  # bytes: the headers and metadata between two clips of an archive, less than a clip


class RangeReader(io.RawIOBase):
    """Random access with a read-ahead, so that headers do not cost a request each."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        """size: of the whole file, in bytes. fetch: gives the bytes from a position up to another."""
        self._size = size
        self._fetch = fetch
        self._position = 0
        self._block, self._block_start = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._position))
        ahead = self._position - self._block_start
        kept = self._block[ahead : ahead + wanted] if ahead >= 0 else b""
        buffer[: len(kept)] = kept
        if len(kept) < wanted:
            start = self._position + len(kept)
            end = min(self._size, start + max(wanted - len(kept), _READ_AHEAD))
            self._block, self._block_start = self._fetch(start, end), start
            buffer[len(kept) : wanted] = self._block[: wanted - len(kept)]
        self._position += wanted
        return wanted
