"""Parquet: columns by type and name, footers before audio, row groups as shards."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING

import corpora
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asr_fine_tuner.columns import Columns
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import LocalFolder
from asr_fine_tuner.parquet import ParquetIndex, find_parquet_columns, index_parquet

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = Columns("audio", "sentence", None)


def index(folder: Path, files: dict[str, bytes], *, columns: Columns = COLUMNS, limit: int | None) -> ParquetIndex:
    tree = LocalFolder(corpora.write(folder, files))
    return index_parquet(tree, [tree.listing()[name] for name in files], columns, split="train", limit=limit)


def columns_of(folder: Path, table: pa.Table, audio: str | None = None, text: str | None = None) -> Columns:
    pq.write_table(table, folder / "a.parquet")
    tree = LocalFolder(folder)
    return find_parquet_columns(tree, tree.listing()["a.parquet"], audio_column=audio, text_column=text)


def test_columns_by_type_and_name(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a"],
            "path": ["a.wav"],
            "speech": [{"bytes": b"a", "path": "a.wav"}],
            "raw_text": ["A"],
            "transcript": ["a"],
            "speaker_id": [7],
        }
    )
    assert columns_of(tmp_path, table) == Columns("speech", "transcript", "speaker_id")
    assert columns_of(tmp_path, table, text="raw_text").text == "raw_text"
    with pytest.raises(PermanentError, match=r"'transcrpt'(.|\n)*did you mean transcript") as failure:
        columns_of(tmp_path, table, text="transcrpt")
    assert "id, path, speech, raw_text, transcript, speaker_id" in failure.value.expected
    with pytest.raises(PermanentError, match="does not hold audio"):
        columns_of(tmp_path, table, audio="path")
    with pytest.raises(PermanentError, match="no text column was found"):
        columns_of(tmp_path, table.select(["speech", "id"]))
    with pytest.raises(PermanentError, match="no audio column was found"):
        columns_of(tmp_path, table.select(["transcript", "path"]))


def test_binary_column_without_paths(tmp_path: Path) -> None:
    written = io.BytesIO()
    pq.write_table(pa.table({"wav": [b"one", None], "text": ["uno", None], "speaker_id": [1, None]}), written)
    found = index(tmp_path, {"a.parquet": written.getvalue()}, columns=Columns("wav", "text", "speaker_id"), limit=None)
    first, second = (example for shard in found.shards(64) for example in shard.examples([0, 1]))
    assert (first.id, first.audio, first.text, first.speaker) == ("train/0", b"one", "uno", "1")
    assert (second.id, second.audio, second.text, second.speaker) == ("train/1", None, None, None)


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 250, 350, 1000, None])
def test_limit_counts_rows_in_file_order(tmp_path: Path, limit: int | None) -> None:
    files = {"a.parquet": corpora.parquet(250), "b.parquet": corpora.parquet(150, first=250)}
    found = index(tmp_path, files, limit=limit)
    read = [example for shard in found.shards(64) for example in shard.examples(range(shard.n_examples))]
    wanted = min(limit or 400, 400)
    assert found.n_examples == len(read) == wanted
    assert [example.id for example in read] == [f"{number:06d}.wav" for number in range(wanted)]
    assert all(example.audio == corpora.audio(number) for number, example in enumerate(read))
    assert found.names() == ({"a.parquet"} if wanted <= 250 else {"a.parquet", "b.parquet"})


def test_rows_of_a_shard(tmp_path: Path) -> None:
    found = index(tmp_path, {"a.parquet": corpora.parquet(250, speakers=7)}, limit=None)
    (first, second, _) = found.shards(100)
    read = list(pickle.loads(pickle.dumps(second)).examples([0, 17, 99]))  # noqa: S301
    assert [example.text for example in read] == ["frase 100", "frase 117", "frase 199"]
    assert list(first.examples([])) == []


def test_speakers_without_audio(tmp_path: Path) -> None:
    columns = Columns("audio", "sentence", "client_id")
    found = index(tmp_path, {"a.parquet": corpora.parquet(250, speakers=7)}, columns=columns, limit=130)
    speakers = [speaker for shard in found.shards(64) for speaker in shard.speakers()]
    assert speakers == [f"speaker {number % 7}" for number in range(130)]


@pytest.mark.parametrize(
    ("row_group", "size", "lengths"),
    [
        (100, 64, [100, 100, 50]),
        (10, 64, [70, 70, 70, 40]),
        (250, 64, [83, 83, 84]),
        (250, 2, [31, 31, 31, 32, 31, 31, 31, 32]),  # at most eight of one row group
    ],
)
def test_shards_follow_row_groups(tmp_path: Path, row_group: int, size: int, lengths: list[int]) -> None:
    found = index(tmp_path, {"a.parquet": corpora.parquet(250, row_group=row_group)}, limit=None)
    shards = found.shards(size)
    assert [shard.n_examples for shard in shards] == lengths
    read = [example.text for shard in shards for example in shard.examples(range(shard.n_examples))]
    assert read == [f"frase {number}" for number in range(250)]


def test_damaged_and_unlike_files(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot be read as parquet"):
        index(tmp_path / "a", {"a.parquet": corpora.parquet(5)[:-20]}, limit=None)
    files = {"a.parquet": corpora.parquet(5), "b.parquet": corpora.parquet(5, text="text")}
    with pytest.raises(PermanentError, match=r"b\.parquet .* has no column sentence"):
        index(tmp_path / "b", files, limit=None)


def test_damaged_pages(tmp_path: Path) -> None:
    content = bytearray(corpora.parquet(50, size=2000))
    content[4:2000] = bytes(1996)
    found = index(tmp_path, {"a.parquet": bytes(content)}, limit=None)
    with pytest.raises(PermanentError, match="cannot be read as parquet"):
        [example for shard in found.shards(64) for example in shard.examples(range(shard.n_examples))]
