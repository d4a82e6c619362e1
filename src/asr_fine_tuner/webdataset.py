"""WebDataset: tar files whose members `KEY.flac`, `KEY.json`, `KEY.txt` make one example.

Format: https://github.com/webdataset/webdataset. Archives are read in place; nothing is extracted.
"""

from __future__ import annotations

import json
import logging
import posixpath
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from asr_fine_tuner import stop
from asr_fine_tuner.clips import AUDIO_EXTENSIONS, ClipIndex, LocatedClip, Span, check_audio_size
from asr_fine_tuner.columns import TEXT_COLUMNS, Columns, choose_column, find_speaker_column
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import is_unsafe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asr_fine_tuner.filetree import FileTree, StoredFile

logger = logging.getLogger(__name__)

_METADATA_EXTENSIONS = ("json", "txt", "text", "transcript", "cls", "spk", "speaker", "sentence", "transcription")
_MAX_METADATA_BYTES = 1 << 20
_DOWNLOADS_AT_ONCE = 4
# Below this many clips a prefix of an archive is read by ranges, one request for each clip; above it is fetched whole.
_CLIPS_BY_RANGE = 512


@dataclass(slots=True)
class _Sample:
    """The members with one key. Small ones are values: of `.txt` members and of the fields of `.json` ones."""

    key: str
    spans: dict[str, Span] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def clip(self, columns: Columns) -> LocatedClip:
        text = self.values.get(columns.text)
        speaker = self.values.get(columns.speaker) if columns.speaker is not None else None
        return LocatedClip(
            id=f"{self.key}.{columns.audio}" if columns.audio in self.spans else self.key,
            audio=self.spans.get(columns.audio),
            text=None if text is None else str(text),
            speaker=None if speaker is None else str(speaker),
        )


def find_webdataset_columns(
    tree: FileTree, file: StoredFile, *, audio_column: str | None, text_column: str | None
) -> Columns:
    """The extensions and JSON fields that hold audio, text and speaker, by the first sample of an archive.

    Raises PermanentError, with the list, where one is not found.
    """
    with tree.open_part(file) as stream:
        sample = next(_samples(stream, file), None)
    if sample is None:
        raise PermanentError(
            given=f"{file.name} of {tree.label} has no members",
            expected="tar files with audio and text members",
            action="check that the archive was made whole, or remove it",
        )
    present = [*sample.spans, *sample.values]
    audio = [extension for extension in sample.spans if extension.split(".")[-1] in AUDIO_EXTENSIONS]
    text = [name for name, value in sample.values.items() if isinstance(value, str)]
    return Columns(
        audio=choose_column("audio", audio_column, usual=AUDIO_EXTENSIONS, eligible=audio, present=present),
        text=choose_column("text", text_column, usual=TEXT_COLUMNS, eligible=text, present=present),
        speaker=find_speaker_column(present),
    )


def index_webdataset(tree: FileTree, files: Sequence[StoredFile], columns: Columns, *, limit: int | None) -> ClipIndex:
    """Read the headers and metadata of archives, in order, until `limit` clips are found.

    The number of clips is nowhere written, so archives that are wanted whole are fetched here, a few at a time.
    """
    clips: list[LocatedClip] = []
    read: list[str] = []
    by_range = limit is not None and limit <= _CLIPS_BY_RANGE
    with ThreadPoolExecutor(1 if limit is not None else _DOWNLOADS_AT_ONCE) as pool:
        if limit is None:
            indexes = pool.map(lambda file: _index(tree, file, columns, None, by_range=False), files)
            for number, (file, found) in enumerate(zip(files, indexes, strict=True), start=1):
                logger.info("archive %d of %d: %s, %d clips", number, len(files), file.name, len(found))
                stop.raise_if_stopped("archives fetched so far stay in the cache")
                clips += found
                read.append(file.name)
        else:
            for file in files:
                if len(clips) >= limit:
                    break
                clips += _index(tree, file, columns, limit - len(clips), by_range=by_range)
                read.append(file.name)
    return ClipIndex(tree, tuple(clips), tuple(read), whole=not by_range)


def _index(
    tree: FileTree, file: StoredFile, columns: Columns, limit: int | None, *, by_range: bool
) -> list[LocatedClip]:
    clips: list[LocatedClip] = []
    with (tree.open_part if by_range else tree.open_whole)(file) as stream:
        for sample in _samples(stream, file):
            clips.append(sample.clip(columns))
            if len(clips) == limit:
                break
    return clips


def _samples(stream: IO[bytes], file: StoredFile) -> Iterator[_Sample]:
    """Members grouped by key: the path up to the first dot of the file name."""
    sample: _Sample | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.isdir() or posixpath.basename(member.name).startswith("."):
                    continue
                _check_member(member, file)
                folder, name = posixpath.split(member.name)
                stem, _, extension = name.partition(".")
                key = posixpath.join(folder, stem)
                if sample is not None and sample.key != key:
                    yield sample
                    sample = None
                sample = sample or _Sample(key)
                _add(sample, extension.lower(), member, stream, file)
    except (tarfile.TarError, EOFError) as error:
        raise PermanentError(
            given=f"{file.name} cannot be read as a tar archive ({error})",
            expected="complete, uncompressed tar files",
            action="check that the file was copied or uploaded whole",
        ) from error
    if sample is not None:
        yield sample


def _add(sample: _Sample, extension: str, member: tarfile.TarInfo, stream: IO[bytes], file: StoredFile) -> None:
    if extension.split(".")[-1] not in _METADATA_EXTENSIONS:
        check_audio_size(f"{file.name}: {member.name}", member.size)
        sample.spans[extension] = Span(file, member.offset_data, member.size)
        return
    if member.size > _MAX_METADATA_BYTES:
        raise PermanentError(
            given=f"{file.name} has the metadata member {member.name} of {member.size:,} bytes",
            expected=f"at most {_MAX_METADATA_BYTES:,} bytes for the metadata of one clip",
            action="make the archive again without it",
        )
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    try:
        if extension.split(".")[-1] == "json":
            fields = json.loads(content)
            sample.values.update(fields if isinstance(fields, dict) else {extension: fields})
        else:
            sample.values[extension] = content.decode("utf-8").strip()
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are kinds of the first
        raise PermanentError(
            given=f"{file.name}: {member.name} cannot be read ({error})",
            expected="metadata in UTF-8, and JSON in .json members",
            action="make the archive again with valid metadata",
        ) from error


def _check_member(member: tarfile.TarInfo, file: StoredFile) -> None:
    if not member.isfile() or is_unsafe(member.name):
        kind = "a link" if member.issym() or member.islnk() else "not a regular file inside the archive"
        raise PermanentError(
            given=f"{file.name} has the member {member.name!r}, {kind}",
            expected="regular files with paths inside the archive",
            action="make the archive again from the dataset's folder, without links",
        )
