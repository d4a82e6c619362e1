"""One example of a dataset as it was published, before its audio is decoded, and the shards that examples come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Example:
    """One clip.

    id: what a person finds the clip by in the source (a path or a file name; else split and row number).
    audio: the encoded bytes as stored (wav, flac, mp3, ...); None when the row has no audio.
    text: the transcript as stored; None when the row has none.
    speaker: the speaker's id where the dataset knows it.
    missing: the file that the dataset names for the audio, where there is no such file.
    """

    id: str
    audio: bytes | None
    text: str | None
    speaker: str | None
    missing: str | None = None


class Shard(Protocol):
    """A run of consecutive examples that can be read by itself, in any process (so it has to pickle)."""

    @property
    def n_examples(self) -> int: ...

    def speakers(self) -> list[str | None]:
        """The speaker of each example, `[n_examples]`, read without fetching audio."""
        ...

    def to_fetch(self) -> Mapping[str, int]:
        """Name -> bytes of the files that come into the cache before the examples can be read."""
        ...

    def examples(self, rows: Sequence[int]) -> Iterator[Example]:
        """The examples at `rows` (increasing positions within the shard), in that order, a few in memory at a time."""
        ...
