"""Datasets of audio files and tables that name them: AudioFolder, Common Voice's releases, `audio/` beside a table."""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
from typing import TYPE_CHECKING, Any

from asr_fine_tuner.clips import ClipIndex, LocatedClip, Span, check_audio_size, is_audio
from asr_fine_tuner.columns import AUDIO_COLUMNS, TEXT_COLUMNS, Columns, choose_column, find_speaker_column
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import is_unsafe
from asr_fine_tuner.splits import is_split_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from asr_fine_tuner.filetree import FileTree, StoredFile
    from asr_fine_tuner.splits import DataFile

TABLE_EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl")
_MAX_TABLE_BYTES = 1 << 30
_MAX_FIELD_BYTES = 1 << 20
_PLAIN_NAMES = {"audio": "audio", "text": "transcription"}  # what messages suggest
_BATCH = 1024  # rows of a parquet table in memory at a time
# Where the files that a table names may be, from the table's own folder.
_AUDIO_FOLDERS = ("", "clips", "audio", "wavs")


def is_table(name: str) -> bool:
    """Whether a file is a table by its name."""
    return name.lower().endswith(TABLE_EXTENSIONS) or is_audiofolder_metadata(name)


def is_audiofolder_metadata(name: str) -> bool:
    """Whether a file is an AudioFolder's metadata: https://huggingface.co/docs/datasets/audio_dataset."""
    return posixpath.basename(name).lower() in ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_common_voice(tree: FileTree, name: str) -> bool:
    """Whether a file is a table of a Common Voice release: a .tsv beside `clips/`."""
    clips = posixpath.join(posixpath.dirname(name), "clips/")
    return name.endswith(".tsv") and any(other.startswith(clips) for other in tree.listing())


def header(tree: FileTree, file: StoredFile) -> list[str]:
    """The names of a table's columns; empty for a table without rows, or one that is not of records."""
    return list(next(_rows(tree, file), {}))


def names_audio(columns: Sequence[str], audio_column: str | None, text_column: str | None) -> bool:
    """Whether a table names audio files and their transcripts, in the columns given or in ones with the usual names."""
    audio = AUDIO_COLUMNS if audio_column is None else (audio_column,)
    text = TEXT_COLUMNS if text_column is None else (text_column,)
    return any(name in columns for name in audio) and any(name in columns for name in text)


def unfit_columns(
    given: str, headers: Mapping[str, Sequence[str]], audio_column: str | None, text_column: str | None
) -> PermanentError:
    """What to tell of tables none of which names audio and transcripts: what the one that comes nearest lacks.

    given: how the message begins; headers: the columns of each table by its name.
    """
    wanted = {
        "audio": AUDIO_COLUMNS if audio_column is None else (audio_column,),
        "text": TEXT_COLUMNS if text_column is None else (text_column,),
    }
    lacking = {
        name: [role for role, usual in wanted.items() if not set(usual) & set(columns)]
        for name, columns in headers.items()
    }
    # JSON files beside the audio may be about anything.
    name = min(headers, key=lambda table: (len(lacking[table]), table.lower().endswith(".json")))
    columns, roles = headers[name], lacking[name]
    if not columns:
        return PermanentError(
            given=f"{given}: {name} has no rows",
            expected="a table with a header and a row for each clip",
            action="write the names of the audio files and their transcripts into it",
        )
    if any(map(is_audio, columns)):
        return PermanentError(
            given=f"{given}: {name} begins with a clip ({', '.join(columns)}), not with the names of its columns",
            expected="a header in its first line, such as audio,transcription",
            action=f"put a line with the names of the {len(columns)} columns before it",
        )
    return PermanentError(
        given=f"{given}: {name} has the columns {', '.join(columns)}; none is "
        + ", and none ".join(" or ".join(map(repr, wanted[role])) for role in roles),
        expected="a column with the names of the audio files, and one with their transcripts",
        action=f"say which it is with {' and '.join(f'--{role}_column' for role in roles)}, or rename it to "
        + " and ".join(_PLAIN_NAMES[role] for role in roles),
    )


def split_folders(tree: FileTree, file: StoredFile) -> list[str]:
    """The split folders (`train`, `test`) that the file names of an AudioFolder's metadata begin with."""
    found: dict[str, None] = {}
    for row in _rows(tree, file):
        folder, slash, _ = str(row.get("file_name")).partition("/")
        if slash and is_split_name(folder):
            found.setdefault(folder)
    return list(found)


def find_table_columns(
    tree: FileTree, file: StoredFile, *, audio_column: str | None, text_column: str | None
) -> Columns:
    """The columns of a table by their names.

    Raises PermanentError, with the list of columns, where one is not found.
    """
    present = header(tree, file)
    usual_audio = ("file_name", *AUDIO_COLUMNS) if is_audiofolder_metadata(file.name) else AUDIO_COLUMNS
    return Columns(
        audio=choose_column("audio", audio_column, usual=usual_audio, eligible=present, present=present),
        text=choose_column("text", text_column, usual=TEXT_COLUMNS, eligible=present, present=present),
        speaker=find_speaker_column(present),
    )


def index_tables(tree: FileTree, tables: Sequence[DataFile], columns: Columns, *, limit: int | None) -> ClipIndex:
    """Read the rows of tables, in order, until there are `limit`.

    Raises PermanentError for tables that cannot be read, that name files outside the dataset, or none inside it.
    """
    clips = tuple(itertools.islice((clip for table in tables for clip in _clips(tree, table, columns)), limit))
    if clips and all(clip.audio is None for clip in clips):
        raise PermanentError(
            given=f"{tables[0].file.name} of {tree.label} names {clips[0].id!r}, and there is no such file",
            expected=f"audio files beside the table, or in {', '.join(name for name in _AUDIO_FOLDERS if name)}",
            action="put the audio there, or correct the paths; --audio_column says which column holds them",
        )
    return ClipIndex(tree, clips, tuple(table.file.name for table in tables))


def _clips(tree: FileTree, table: DataFile, columns: Columns) -> Iterator[LocatedClip]:
    for row in _rows(tree, table.file):
        name, text, speaker = row.get(columns.audio), row.get(columns.text), row.get(columns.speaker or "")
        if not name or (table.split_folder and not str(name).startswith(f"{table.split_folder}/")):
            continue
        found = _find_audio(tree, table, str(name))
        yield LocatedClip(
            id=str(name),
            audio=Span(found, 0, found.size) if found is not None else None,
            text=None if text is None else str(text),
            speaker=str(speaker) if speaker not in (None, "") else None,
            missing=str(name) if found is None else None,
        )


def _find_audio(tree: FileTree, table: DataFile, name: str) -> StoredFile | None:
    if is_unsafe(name):
        raise PermanentError(
            given=f"{table.file.name} of {tree.label} names the file {name!r}",
            expected="a path relative to the table, without .., of a file inside the dataset",
            action="write the paths relative to the table, and keep the audio inside the dataset's folder",
        )
    listing = tree.listing()
    bases = [posixpath.join(posixpath.dirname(table.file.name), folder) for folder in _AUDIO_FOLDERS]
    for base in dict.fromkeys((*bases, "")):
        if (found := listing.get(posixpath.normpath(posixpath.join(base, name)))) is not None:
            check_audio_size(found.name, found.size)
            return found
    return None


def _rows(tree: FileTree, file: StoredFile) -> Iterator[dict[str, Any]]:
    if file.size > _MAX_TABLE_BYTES:
        raise PermanentError(
            given=f"{file.name} of {tree.label} has {file.size:,} bytes",
            expected=f"tables of at most {_MAX_TABLE_BYTES:,} bytes",
            action="divide it, or convert the dataset to parquet",
        )
    extension = posixpath.splitext(file.name)[1].lower()
    with tree.open_whole(file) as stream:
        try:
            if extension == ".parquet":
                yield from _parquet_rows(stream)
            elif extension in (".json", ".jsonl"):
                yield from _json_rows(io.TextIOWrapper(stream, encoding="utf-8-sig"))
            else:
                # Common Voice writes transcripts with unpaired quotes and no quoting.
                quoted = not is_common_voice(tree, file.name)
                yield from _separated_rows(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), quoted=quoted)
        except UnicodeDecodeError as error:
            raise PermanentError(
                given=f"{file.name} of {tree.label} is not in UTF-8 ({error})",
                expected="a table in UTF-8, so that every letter of the transcripts is what it was",
                action="save it again as CSV UTF-8 (in Excel: Save As, CSV UTF-8), or convert it to UTF-8",
            ) from error
        except (json.JSONDecodeError, csv.Error, RecursionError) as error:
            raise PermanentError(
                given=f"{file.name} of {tree.label} cannot be read ({error})",
                expected="a table in UTF-8: CSV or TSV with a header, JSON lines, or a JSON list of records",
                action="save the table again in one of these forms",
            ) from error


def _separated_rows(lines: io.TextIOWrapper, *, quoted: bool) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_MAX_FIELD_BYTES)
    first = lines.readline()
    separator = max("\t,;|", key=first.count)
    names = next(csv.reader([first], delimiter=separator), [])
    yield from csv.DictReader(
        lines, names, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )


def _json_rows(lines: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    first = lines.readline()
    if first.lstrip().startswith("[") or first.strip() == "{":  # one value: a list of records, or no table at all
        records = json.loads(first + lines.read())
    else:
        records = (json.loads(line) for line in itertools.chain((first,), lines) if line.strip())
    yield from (record for record in records if isinstance(record, dict))


def _parquet_rows(stream: Any) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(stream).iter_batches(_BATCH, use_threads=False):
        yield from batch.to_pylist()
