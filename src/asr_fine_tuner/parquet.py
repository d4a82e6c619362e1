"""Parquet datasets: whole files through the cache, parts of files by range, never the audio to plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from asr_fine_tuner.columns import AUDIO_COLUMNS, TEXT_COLUMNS, Columns, choose_column, find_speaker_column
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.examples import Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq

    from asr_fine_tuner.filetree import FileTree, StoredFile

_BATCH = 8  # rows in memory at a time
# Bytes of a column read at a time, so that a row group is never wholly in memory; the size of a request, and what a cap
# within a row group fetches beyond it.
_BUFFER = 4 << 20
_FOOTERS_AT_ONCE = 8
# A row group larger than a shard is shared by at most this many, as each has to read past the rows before its own.
_SHARDS_OF_ONE_GROUP = 8


@dataclass(frozen=True, slots=True)
class ParquetShard:
    """Consecutive rows of one file.

    groups: the row groups that hold them; first: the first row within these groups; n_examples: how many rows.
    row_number: of the first row in its split, for the ids of clips without a path.
    whole: whether the whole file is wanted, so that it is fetched into the cache once for all its shards.
    """

    tree: FileTree
    file: StoredFile
    groups: tuple[int, ...]
    first: int
    n_examples: int
    columns: Columns
    split: str
    row_number: int
    whole: bool

    def speakers(self) -> list[str | None]:
        if self.columns.speaker is None:
            return [None] * self.n_examples
        with _open(self.tree, self.file, whole=False) as file:
            column = file.read_row_groups(list(self.groups), columns=[self.columns.speaker], use_threads=False)
        values = column.column(0).slice(self.first, self.n_examples).to_pylist()
        return [None if value is None else str(value) for value in values]

    def to_fetch(self) -> dict[str, int]:
        return {self.file.name: self.file.size} if self.whole and not self.tree.is_here(self.file) else {}

    def examples(self, rows: Sequence[int]) -> Iterator[Example]:
        if not rows:
            return
        columns = [self.columns.audio, self.columns.text]
        if self.columns.speaker is not None:
            columns.append(self.columns.speaker)
        wanted = iter(rows)
        row = next(wanted)
        with _open(self.tree, self.file, whole=self.whole) as file:
            start = -self.first
            for batch in file.iter_batches(_BATCH, row_groups=self.groups, columns=columns, use_threads=False):
                while row < start + batch.num_rows:
                    yield self._example(batch, row - start, row)
                    if (row := next(wanted, -1)) < 0:
                        return
                start += batch.num_rows

    def _example(self, batch: pa.RecordBatch, position: int, row: int) -> Example:
        audio: Any = batch.column(self.columns.audio)[position].as_py()
        text: Any = batch.column(self.columns.text)[position].as_py()
        speaker: Any = batch.column(self.columns.speaker)[position].as_py() if self.columns.speaker else None
        path = None
        if isinstance(audio, dict):
            audio, path = audio["bytes"], audio.get("path")
        return Example(
            id=str(path) if path else f"{self.split}/{self.row_number + row}",
            audio=audio,
            text=None if text is None else str(text),
            speaker=None if speaker is None else str(speaker),
        )


@dataclass(frozen=True, slots=True)
class _FilePart:
    """The row groups of a file of which rows are wanted: their numbers of rows, cut at the cap in the last one."""

    file: StoredFile
    group_rows: tuple[int, ...]
    n_wanted: int
    whole: bool


@dataclass(frozen=True, slots=True)
class ParquetIndex:
    """The rows that will be read of one split, by the footers of its files."""

    tree: FileTree
    columns: Columns
    split: str
    parts: tuple[_FilePart, ...]

    @property
    def n_examples(self) -> int:
        return sum(part.n_wanted for part in self.parts)

    def names(self) -> set[str]:
        """Every file that is read."""
        return {part.file.name for part in self.parts}

    def shards(self, size: int) -> list[ParquetShard]:
        """Runs of whole row groups of one file with at least `size` rows; much larger row groups are divided."""
        shards: list[ParquetShard] = []
        row_number = 0
        for part in self.parts:
            for groups, first, n_rows in _runs(part, size):
                shards.append(
                    ParquetShard(
                        self.tree, part.file, groups, first, n_rows, self.columns, self.split, row_number, part.whole
                    )
                )
                row_number += n_rows
        return shards


def find_parquet_columns(
    tree: FileTree, file: StoredFile, *, audio_column: str | None, text_column: str | None
) -> Columns:
    """The columns of a parquet file by type and name: audio is a struct with `bytes`, or binary.

    Raises PermanentError, with the list of columns, where one is not found.
    """
    import pyarrow.types as types

    with _open(tree, file, whole=False) as opened:
        schema = opened.schema_arrow
    audio = [field.name for field in schema if _holds_audio(field.type)]
    text = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    return Columns(
        audio=choose_column("audio", audio_column, usual=AUDIO_COLUMNS, eligible=audio, present=schema.names),
        text=choose_column("text", text_column, usual=TEXT_COLUMNS, eligible=text, present=schema.names),
        speaker=find_speaker_column(schema.names),
    )


def index_parquet(
    tree: FileTree, files: Sequence[StoredFile], columns: Columns, *, split: str, limit: int | None
) -> ParquetIndex:
    """Read footers, in the order of the files, until `limit` rows are found."""
    parts: list[_FilePart] = []
    left = limit
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        remaining = iter(files)
        # The first footer tells most caps apart; the others are asked for together, as each is a wait for the network.
        ahead = 1
        while (left is None or left > 0) and (some := list(islice(remaining, ahead))):
            for file, group_rows in zip(
                some, pool.map(lambda file: _group_rows(tree, file, columns), some), strict=True
            ):
                if left is not None and left <= 0:
                    break
                part = _wanted_part(file, group_rows, left)
                if part.n_wanted:
                    parts.append(part)
                if left is not None:
                    left -= part.n_wanted
            ahead = _FOOTERS_AT_ONCE
    return ParquetIndex(tree, columns, split, tuple(parts))


def _wanted_part(file: StoredFile, group_rows: Sequence[int], limit: int | None) -> _FilePart:
    total = sum(group_rows)
    if limit is None or total <= limit:
        return _FilePart(file, tuple(group_rows), total, whole=True)
    n_groups, covered = 0, 0
    while covered < limit:
        covered += group_rows[n_groups]
        n_groups += 1
    return _FilePart(file, tuple(group_rows[:n_groups]), limit, whole=False)


def _runs(part: _FilePart, size: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """(row groups, first row within them, rows) of each shard of a part."""
    run: list[int] = []
    rows = 0
    left = part.n_wanted
    for group, n_rows in enumerate(part.group_rows):
        run.append(group)
        rows += min(n_rows, left)
        left -= min(n_rows, left)
        if rows < size and left:
            continue
        # Parts of a remote row group are not shared: each reader would fetch the rows before its own again.
        pieces = min(max(1, rows // size), _SHARDS_OF_ONE_GROUP) if part.whole and len(run) == 1 else 1
        for piece in range(pieces):
            first, end = rows * piece // pieces, rows * (piece + 1) // pieces
            if end > first:
                yield tuple(run), first, end - first
        run, rows = [], 0


def _group_rows(tree: FileTree, file: StoredFile, columns: Columns) -> list[int]:
    with _open(tree, file, whole=False) as opened:
        missing = {columns.audio, columns.text} - set(opened.schema_arrow.names)
        if missing:
            raise PermanentError(
                given=f"{file.name} of {tree.label} has no column {', '.join(sorted(missing))}",
                expected="the same columns in every file of a config",
                action="give --audio_column and --text_column that all files have, or other splits",
            )
        metadata = opened.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@contextmanager
def _open(tree: FileTree, file: StoredFile, *, whole: bool) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (tree.open_whole if whole else tree.open_part)(file) as stream:
        try:
            yield pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk; pyarrow's own have no number
                raise
            raise PermanentError(
                given=f"{file.name} of {tree.label} cannot be read as parquet ({error})",
                expected="complete parquet files",
                action="check that the file was copied or uploaded whole",
            ) from error


def _holds_audio(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))
