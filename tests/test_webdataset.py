"""WebDataset archives: samples by key, prefixes by range, and members that are refused."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING

import corpora
import pytest

from asr_fine_tuner.clips import ClipIndex
from asr_fine_tuner.columns import Columns
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import LocalFolder
from asr_fine_tuner.webdataset import find_webdataset_columns, index_webdataset

if TYPE_CHECKING:
    from pathlib import Path

    from asr_fine_tuner.examples import Example

JSON = Columns("flac", "text", "speaker_id")


def index(folder: Path, files: dict[str, bytes], columns: Columns = JSON, limit: int | None = None) -> ClipIndex:
    tree = LocalFolder(corpora.write(folder, files))
    return index_webdataset(tree, list(tree.listing().values()), columns, limit=limit)


def read(found: ClipIndex, size: int = 64) -> list[Example]:
    return [example for shard in found.shards(size) for example in shard.examples(range(shard.n_examples))]


def columns_of(folder: Path, members: dict[str, bytes], **given: str) -> Columns:
    tree = LocalFolder(corpora.write(folder, {"a.tar": corpora.tar_of(members)}))
    names = {"audio_column": None, "text_column": None} | given
    return find_webdataset_columns(tree, tree.listing()["a.tar"], **names)  # type: ignore[arg-type]


def test_columns_of_members_and_fields(tmp_path: Path) -> None:
    fields = b'{"transcript": "a", "duration": 2.0, "speaker": "s"}'
    members = {"dir/a.json": fields, "dir/a.wav": b"a", "dir/a.png": b"a", "dir/b.wav": b"b"}
    assert columns_of(tmp_path / "1", members) == Columns("wav", "transcript", "speaker")
    assert columns_of(tmp_path / "2", {"a.mp3": b"a", "a.txt": b"a"}) == Columns("mp3", "txt", None)
    with pytest.raises(PermanentError, match="wav, png, transcript, duration, speaker"):
        columns_of(tmp_path / "3", members, text_column="text")
    with pytest.raises(PermanentError, match="no audio column"):
        columns_of(tmp_path / "4", {"a.png": b"a", "a.txt": b"a"})


@pytest.mark.parametrize("limit", [1, 5, 8, 600, None])
def test_samples_in_order(tmp_path: Path, limit: int | None) -> None:
    found = index(tmp_path, {"0.tar": corpora.tar(5), "1.tar": corpora.tar(5, first=5)}, limit=limit)
    examples = read(found, size=3)
    wanted = min(limit or 10, 10)
    assert [example.text for example in examples] == [f"frase {number}" for number in range(wanted)]
    assert [example.audio for example in examples] == [corpora.audio(number) for number in range(wanted)]
    assert [example.speaker for example in examples] == [str(number % 3) for number in range(wanted)]
    assert found.names() == ({"0.tar"} if wanted <= 5 else {"0.tar", "1.tar"})


def test_text_members(tmp_path: Path) -> None:
    examples = read(index(tmp_path, {"0.tar": corpora.tar(5, metadata="txt")}, Columns("flac", "txt", None)))
    assert [example.text for example in examples] == [f"frase {number}" for number in range(5)]
    assert examples[2].id == "000002.flac"
    assert examples[2].speaker is None


def test_incomplete_samples_are_kept_for_rejection(tmp_path: Path) -> None:
    members = {"a.flac": b"a", "a.json": b'{"text": "a"}', "b.json": b'{"text": "b"}', "c.flac": b"c"}
    a, b, c = read(index(tmp_path, {"0.tar": corpora.tar_of(members)}))
    assert (a.audio, a.text) == (b"a", "a")
    assert (b.audio, b.text) == (None, "b")
    assert (c.audio, c.text) == (b"c", None)


def test_rows_apart(tmp_path: Path) -> None:
    (shard,) = index(tmp_path, {"0.tar": corpora.tar(40, size=1_000_000)}).shards(64)
    examples = list(shard.examples([0, 9, 30, 39]))
    assert [example.audio for example in examples] == [corpora.audio(row, 1_000_000) for row in (0, 9, 30, 39)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("a.flac")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(PermanentError, match=r"has the member 'a\.flac'"):
        index(tmp_path, {"0.tar": corpora.tar_of({"a.flac": link})})


@pytest.mark.parametrize("name", ["../a.flac", "/etc/a.flac", "x/../../a.flac"])
def test_members_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PermanentError, match="has the member"):
        index(tmp_path, {"0.tar": corpora.tar_of({name: b"a"})})


def test_damaged_archives(tmp_path: Path) -> None:
    whole = corpora.tar(5, size=2000)
    with pytest.raises(PermanentError, match="cannot be read as a tar archive"):
        index(tmp_path / "1", {"0.tar": b"not a tar at all" * 100})
    with pytest.raises(PermanentError, match="cannot be read as a tar archive"):
        index(tmp_path / "2", {"0.tar": whole[:9000]})
    with pytest.raises(PermanentError, match=r"a\.json cannot be read"):
        index(tmp_path / "3", {"0.tar": corpora.tar_of({"a.json": b"{", "a.flac": b"a"})})
    with pytest.raises(PermanentError, match="metadata member"):
        index(tmp_path / "4", {"0.tar": corpora.tar_of({"a.json": json.dumps("a" * 2_000_000).encode()})})
    with pytest.raises(PermanentError, match="has no members"):
        columns_of(tmp_path / "5", {})
