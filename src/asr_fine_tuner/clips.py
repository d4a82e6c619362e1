"""Clips whose audio is a file, or a part of one, and whose transcript is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.examples import Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asr_fine_tuner.filetree import FileTree, StoredFile

AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "ogg", "opus", "m4a", "mp4", "aac", "webm", "wma", "aiff", "aif")

# Larger than hours of uncompressed speech; what an archive declares beyond it is an attack or a mistake.
MAX_AUDIO_BYTES = 1 << 30
_WINDOW = 8 << 20  # bytes read at once: one request for many neighbouring clips of a remote archive


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file, from `offset`, `size` of them."""

    file: StoredFile
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class LocatedClip:
    """A clip whose audio is known by where it is, not read yet.

    audio: None when there is none; missing: the file that the dataset names for it, where there is no such file.
    """

    id: str
    audio: Span | None
    text: str | None
    speaker: str | None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class ClipShard:
    """Consecutive clips; `whole` says whether their files are read to the end (by this shard or others)."""

    tree: FileTree
    clips: tuple[LocatedClip, ...]
    whole: bool = True

    @property
    def n_examples(self) -> int:
        return len(self.clips)

    def speakers(self) -> list[str | None]:
        return [clip.speaker for clip in self.clips]

    def to_fetch(self) -> dict[str, int]:
        files = {clip.audio.file for clip in self.clips if clip.audio is not None} if self.whole else ()
        return {file.name: file.size for file in files if not self.tree.is_here(file)}

    def examples(self, rows: Sequence[int]) -> Iterator[Example]:
        clips = [self.clips[row] for row in rows]
        opened: tuple[StoredFile, IO[bytes]] | None = None
        try:
            for window in _windows(clips):
                span = window[0].audio
                if span is None:
                    yield from (Example(clip.id, None, clip.text, clip.speaker, clip.missing) for clip in window)
                    continue
                if opened is None or opened[0] != span.file:
                    if opened is not None:
                        opened[1].close()
                    opened = span.file, (self.tree.open_whole if self.whole else self.tree.open_part)(span.file)
                yield from _read_window(opened[1], window)
        finally:
            if opened is not None:
                opened[1].close()


@dataclass(frozen=True, slots=True)
class ClipIndex:
    """The clips that will be read of one split, and the files (tables, archives) that say so."""

    tree: FileTree
    clips: tuple[LocatedClip, ...]
    files: tuple[str, ...]
    whole: bool = True

    @property
    def n_examples(self) -> int:
        return len(self.clips)

    def shards(self, size: int) -> list[ClipShard]:
        """Runs of `size` clips."""
        return [
            ClipShard(self.tree, self.clips[start : start + size], self.whole)
            for start in range(0, len(self.clips), size)
        ]

    def names(self) -> set[str]:
        """Every file that is read."""
        return {*self.files, *(clip.audio.file.name for clip in self.clips if clip.audio is not None)}


def is_audio(name: str) -> bool:
    """Whether a file is audio by its name."""
    return name.lower().rpartition(".")[2] in AUDIO_EXTENSIONS


def check_audio_size(name: str, size: int) -> None:
    """Raise PermanentError for a clip too large to be speech."""
    if size > MAX_AUDIO_BYTES:
        raise PermanentError(
            given=f"{name} has {size:,} bytes",
            expected=f"clips of at most {MAX_AUDIO_BYTES:,} bytes",
            action="cut it into clips of up to 30 s, or remove it",
        )


def _windows(clips: Sequence[LocatedClip]) -> Iterator[list[LocatedClip]]:
    """Runs of clips whose audio lies close together in one file, to be read at once."""
    window: list[LocatedClip] = []
    for clip in clips:
        if window and not _fits(window, clip):
            yield window
            window = []
        window.append(clip)
    if window:
        yield window


def _fits(window: Sequence[LocatedClip], clip: LocatedClip) -> bool:
    first, last, audio = window[0].audio, window[-1].audio, clip.audio
    if first is None or last is None or audio is None:
        return False
    in_order = last.offset + last.size <= audio.offset
    return first.file == audio.file and in_order and audio.offset + audio.size - first.offset <= _WINDOW


def _read_window(file: IO[bytes], window: Sequence[LocatedClip]) -> Iterator[Example]:
    spans = [clip.audio for clip in window if clip.audio is not None]
    start = spans[0].offset
    file.seek(start)
    block = file.read(spans[-1].offset + spans[-1].size - start)
    for clip, span in zip(window, spans, strict=True):
        yield Example(clip.id, block[span.offset - start : span.offset - start + span.size], clip.text, clip.speaker)
