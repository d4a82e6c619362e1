"""Folders and archives: what they list, what they refuse, and the revision that pins them."""

from __future__ import annotations

import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from corpora import write, write_zip

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import FileTree, LocalFolder, Subtree, ZipArchive, is_unsafe

FILES = {"train.tsv": b"a\tb", "clips/1.mp3": b"one" * 1000, "clips/2.mp3": b"two"}


@pytest.fixture(params=["folder", "zip", "folder in a zip"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> FileTree:
    left_behind = {".DS_Store": b"x", "__MACOSX/clips/1.mp3": b"x"}
    if request.param == "folder":
        return LocalFolder(write(tmp_path / "data", FILES | left_behind))
    if request.param == "folder in a zip":
        nested = {f"data/{name}": content for name, content in (FILES | left_behind).items()} | {"other.txt": b"x"}
        return Subtree(ZipArchive(write_zip(tmp_path / "data.zip", nested)), "data")
    return ZipArchive(write_zip(tmp_path / "data.zip", FILES | left_behind))


def test_lists_and_reads(tree: FileTree) -> None:
    assert {name: file.size for name, file in tree.listing().items()} == {
        name: len(content) for name, content in sorted(FILES.items())
    }
    for name, content in FILES.items():
        with tree.open_part(tree.listing()[name]) as opened:
            assert opened.seekable()
            opened.seek(2)
            assert opened.read() == content[2:]


def test_pickles_without_its_listing(tree: FileTree) -> None:
    small = len(pickle.dumps(tree))
    tree.listing()
    assert len(pickle.dumps(tree)) == small
    assert pickle.loads(pickle.dumps(tree)).listing() == tree.listing()  # noqa: S301


def test_threads_read_one_archive(tree: FileTree) -> None:
    files = [tree.listing()[f"clips/{number}.mp3"] for number in (1, 2)] * 50

    def read(position: int) -> bytes:
        with tree.open_whole(files[position]) as opened:
            return opened.read()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(100))) == [FILES["clips/1.mp3"], FILES["clips/2.mp3"]] * 50


def test_revision_is_of_the_content(tmp_path: Path) -> None:
    folder = LocalFolder(write(tmp_path / "data", FILES))
    archive = ZipArchive(write_zip(tmp_path / "data.zip", FILES))
    both = ["clips/1.mp3", "clips/2.mp3"]
    revision = folder.revision(both)
    assert revision.startswith("sha256:")
    assert revision == archive.revision(reversed(both))
    assert revision == Subtree(LocalFolder(tmp_path), "data").revision(both)
    write(tmp_path / "data", {"train.tsv": b"not read"})
    assert LocalFolder(tmp_path / "data").revision(both) == revision
    write(tmp_path / "data", {"clips/2.mp3": b"owt"})
    assert LocalFolder(tmp_path / "data").revision(both) != revision


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    data = write(tmp_path / "data", FILES)
    (data / "clips/3.mp3").symlink_to(data / "clips/1.mp3")
    assert "clips/3.mp3" in LocalFolder(data).listing()
    (data / "clips/4.mp3").symlink_to(tmp_path / "secret")
    with pytest.raises(PermanentError, match="is a link to"):
        LocalFolder(data).listing()


def test_what_lies_below_a_folder_of_a_model_is_left_alone(tmp_path: Path) -> None:
    """Other runs and virtual environments, of many files and with links to anywhere."""
    model = write(tmp_path / "model", FILES | {"config.json": b"{}", ".venv/pyvenv.cfg": b""})
    (model / "clips/4.mp3").symlink_to("/etc/passwd")
    (model / ".venv/python").symlink_to("/usr/bin/python3")
    tree = LocalFolder(model, subfolders=False)
    assert set(tree.listing()) == {name for name in FILES if "/" not in name} | {"config.json"}
    assert tree.revision(["config.json"]).startswith("sha256:")


def test_snapshots_of_the_cache_are_folders_of_links(tmp_path: Path) -> None:
    blobs = write(tmp_path / "repo/blobs", {"abc": b"content"})
    snapshot = tmp_path / "repo/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "train.parquet").symlink_to(blobs / "abc")
    assert LocalFolder(snapshot).listing()["train.parquet"].size == len(b"content")


@pytest.mark.parametrize("name", ["../secret", "clips/../../secret", "/etc/passwd", "C:\\secret", "..\\secret"])
def test_archives_that_climb_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="has the member"):
        ZipArchive(write_zip(tmp_path / "data.zip", {name: b"x"})).listing()


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("clips/1.mp3")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(PermanentError, match="a link"):
        ZipArchive(tmp_path / "data.zip").listing()


def test_damaged_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PermanentError, match=r"cannot be read as a \.zip archive"):
        ZipArchive(path).listing()


def test_unsafe_names() -> None:
    assert all(map(is_unsafe, ["/etc/passwd", "C:/secret", "../secret", "clips/../../secret", "..\\secret", "a\0b"]))
    assert not any(map(is_unsafe, ["clips/1.mp3", "./clips/1.mp3", "clips/a..b.mp3", "è.wav"]))
