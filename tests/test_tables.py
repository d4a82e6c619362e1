"""Tables of clips: separators, quoting, JSON, paths that are refused."""

from __future__ import annotations

from pathlib import Path

import corpora
import pytest

from asr_fine_tuner.clips import ClipIndex
from asr_fine_tuner.columns import SPEAKER_COLUMNS, Columns
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import LocalFolder
from asr_fine_tuner.splits import DataFile
from asr_fine_tuner.tables import find_table_columns, header, index_tables, is_audiofolder_metadata, is_table

COLUMNS = Columns("audio", "transcription", None)


def index(folder: Path, name: str, content: bytes, files: dict[str, bytes] | None = None, **columns: str) -> ClipIndex:
    audio = {"audio/a.wav": b"a", "audio/b.wav": b"b"} if files is None else files
    tree = LocalFolder(corpora.write(folder, {name: content, **audio}))
    named = Columns(columns.get("audio", "audio"), columns.get("text", "transcription"), columns.get("speaker"))
    return index_tables(tree, [DataFile(tree.listing()[name])], named, limit=None)


def texts(found: ClipIndex) -> list[str | None]:
    return [clip.text for clip in found.clips]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b'audio,transcription\naudio/a.wav,"Ciao, disse ""lei"""\nb.wav,due\n'),
        ("t.csv", b'\xef\xbb\xbfaudio;transcription\r\naudio/a.wav;Ciao, disse "lei"\r\nb.wav;due\r\n'),
        ("t.csv", b'audio|transcription\naudio/a.wav|Ciao, disse "lei"\nb.wav|due\n'),
        ("t.tsv", b'audio\ttranscription\naudio/a.wav\tCiao, disse "lei"\nb.wav\tdue\n'),
        ("t.jsonl", b'{"audio": "audio/a.wav", "transcription": "Ciao, disse \\"lei\\""}\n\n'
                    b'{"audio": "b.wav", "transcription": "due"}\n'),
        ("t.json", b'{"audio": "audio/a.wav", "transcription": "Ciao, disse \\"lei\\""}\n'
                   b'{"audio": "b.wav", "transcription": "due"}\n'),
        ("t.json", b'[{"audio": "audio/a.wav", "transcription": "Ciao, disse \\"lei\\""},\n'
                   b'{"audio": "b.wav", "transcription": "due"}]'),
        ("t.json", b'[\n {"audio": "audio/a.wav", "transcription": "Ciao, disse \\"lei\\""},\n'
                   b'{"audio": "b.wav", "transcription": "due"}\n]'),
    ],
)  # fmt: skip
def test_forms_of_a_table(tmp_path: Path, name: str, content: bytes) -> None:
    found = index(tmp_path, name, content)
    assert texts(found) == ['Ciao, disse "lei"', "due"]
    (shard,) = found.shards(64)
    assert [example.audio for example in shard.examples([0, 1])] == [b"a", b"b"]
    assert found.names() == {name, "audio/a.wav", "audio/b.wav"}


def test_common_voice_has_unpaired_quotes(tmp_path: Path) -> None:
    content = b'path\tsentence\na.mp3\t"Vieni\nb.mp3\tqui" disse\n'
    files = {"clips/a.mp3": b"a", "clips/b.mp3": b"b"}
    found = index(tmp_path, "train.tsv", content, files, audio="path", text="sentence")
    assert texts(found) == ['"Vieni', 'qui" disse']


def test_multi_line_transcripts(tmp_path: Path) -> None:
    found = index(tmp_path, "t.csv", b'audio,transcription\na.wav,"uno\ndue"\nb.wav,tre\n')
    assert texts(found) == ["uno\ndue", "tre"]


def test_missing_files_are_kept_for_rejection_unless_all_are(tmp_path: Path) -> None:
    found = index(tmp_path / "1", "t.csv", b"audio,transcription\na.wav,uno\ngone.wav,due\n")
    assert [clip.audio is None for clip in found.clips] == [False, True]
    (shard,) = found.shards(64)
    assert [example.missing for example in shard.examples([0, 1])] == [None, "gone.wav"]
    with pytest.raises(PermanentError, match=r"names 'gone\.wav', and there is no such file"):
        index(tmp_path / "2", "t.csv", b"audio,transcription\ngone.wav,due\n")


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.wav", "C:/secret.wav", "audio/../../secret.wav"])
def test_paths_outside_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.wav").write_bytes(b"secret")
    with pytest.raises(PermanentError, match="names the file"):
        index(tmp_path / "data", "t.csv", f"audio,transcription\n{path},uno\n".encode())


def test_absent_values(tmp_path: Path) -> None:
    content = b"audio,transcription,speaker\na.wav,uno,s1\nb.wav,,\n,tre,s2\n"
    found = index(tmp_path, "t.csv", content, speaker="speaker")
    assert [(clip.id, clip.text, clip.speaker) for clip in found.clips] == [
        ("a.wav", "uno", "s1"),
        ("b.wav", "", None),
    ]


def test_columns(tmp_path: Path) -> None:
    files = {
        "metadata.csv": b"path,file_name,text,client_id\n",
        "a.csv": b"path,duration,text,client_id\na.wav,1,uno,s\n",
        "metadata.jsonl": b'{"file_name": "a.wav", "path": "x", "text": "uno"}',
    }
    tree = LocalFolder(corpora.write(tmp_path, files))
    listing = tree.listing()

    def columns(name: str, audio: str | None = None) -> Columns:
        return find_table_columns(tree, listing[name], audio_column=audio, text_column=None)

    assert columns("a.csv") == Columns("path", "text", "client_id")
    assert columns("metadata.jsonl") == Columns("file_name", "text", None)
    assert columns("metadata.jsonl", audio="path").audio == "path"
    with pytest.raises(PermanentError, match="path, duration, text, client_id"):
        columns("a.csv", audio="wav")
    assert header(tree, listing["metadata.csv"]) == []


def test_unreadable_tables(tmp_path: Path) -> None:
    for number, (name, content) in enumerate(
        [
            ("t.jsonl", b'{"audio": "a.wav", "transcription": "uno"}\n{"audio": '),
            ("t.csv", b"audio,transcription\na.wav," + b"x" * 2_000_000),
        ]
    ):
        with pytest.raises(PermanentError, match=r"cannot be read"):
            index(tmp_path / str(number), name, content)


def test_the_howto_names_the_columns_of_speakers() -> None:
    howto = (Path(__file__).resolve().parent.parent / "howto" / "data.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in SPEAKER_COLUMNS) in howto


def test_tables_of_a_spreadsheet_are_saved_in_utf8(tmp_path: Path) -> None:
    for number, encoding in enumerate(("cp1252", "utf-16")):
        content = "audio;transcription\na.wav;perché\n".encode(encoding)
        with pytest.raises(PermanentError, match=r"t\.csv of .* is not in UTF-8") as caught:
            index(tmp_path / str(number), "t.csv", content)
        assert "CSV UTF-8" in caught.value.action


def test_names_of_tables() -> None:
    assert all(map(is_table, ["it/train.tsv", "a.CSV", "a.json", "a.jsonl", "train/metadata.parquet"]))
    assert not any(map(is_table, ["train.parquet", "a.txt", "a.wav"]))
    assert is_audiofolder_metadata("train/metadata.csv")
    assert not is_audiofolder_metadata("train/my_metadata.csv")
