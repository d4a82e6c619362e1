"""Files that are whole or absent, their hashes, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from asr_fine_tuner import files
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.files import (
    LockHeld,
    canonical_json,
    exclusive,
    hashes_below,
    mismatches,
    rename_folder,
    sha256_of,
    sha256_of_json,
    shared,
    staging_path,
    write_atomically,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_sha256_of_a_file_larger_than_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_equal_values_give_equal_json() -> None:
    assert canonical_json({"b": 1, "a": "è"}) == canonical_json({"a": "è", "b": 1}) == '{\n  "a": "è",\n  "b": 1\n}\n'
    assert sha256_of_json({"b": 1, "a": 2}) == sha256_of_json({"a": 2, "b": 1}) != sha256_of_json({"a": 1, "b": 2})


class TestWriteAtomically:
    def test_replaces_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        for text in ("old", "nuovo è"):
            write_atomically(tmp_path / "file", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == "nuovo è"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_failed_write_keeps_the_old_content(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "file", "old")
        with pytest.raises(UnicodeEncodeError):
            write_atomically(tmp_path / "file", "new \ud800")
        assert (tmp_path / "file").read_text() == "old"


class TestHashes:
    def test_every_file_below_by_relative_path(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "one").write_bytes(b"1")
        (tmp_path / "two").write_bytes(b"2")
        hashes = hashes_below(tmp_path)
        assert hashes == {"a/b/one": hashlib.sha256(b"1").hexdigest(), "two": hashlib.sha256(b"2").hexdigest()}
        assert hashes_below(tmp_path, {"two": "known"})["two"] == "known"

    def test_mismatches_are_told_one_by_one(self, tmp_path: Path) -> None:
        for name in ("same", "changed", "gone"):
            (tmp_path / name).write_text(name)
        hashes = hashes_below(tmp_path)
        assert mismatches(tmp_path, hashes) == []
        (tmp_path / "changed").write_text("changeD")
        (tmp_path / "gone").unlink()
        changed, gone = mismatches(tmp_path, hashes)
        assert changed.startswith("changed has sha256")
        assert gone == "gone is missing"

    def test_several_files_are_read_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        together = threading.Barrier(2, timeout=20)

        def met(path: Path) -> str:
            together.wait()
            return sha256_of(path)

        for name in ("one", "two"):
            (tmp_path / name).write_text(name)
        hashes = hashes_below(tmp_path)
        monkeypatch.setattr(files, "sha256_of", met)
        assert mismatches(tmp_path, hashes) == []


class TestShared:
    def test_some_share_what_another_may_not_hold_alone(self, tmp_path: Path) -> None:
        lock = tmp_path / "lock"
        with (
            shared(lock, what="the artifact"),
            shared(lock, what="the artifact"),
            pytest.raises(LockHeld, match="the artifact is being written"),
            exclusive(lock, what="the artifact"),
        ):
            pass
        with (
            exclusive(lock, what="the artifact"),
            pytest.raises(LockHeld, match="the artifact is being written"),
            shared(lock, what="the artifact"),
        ):
            pass

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_a_volume_without_locks_is_refused(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(PermanentError, match="no file locks"), exclusive(tmp_path / "lock", what="the artifact"):
            pass


def test_what_is_staged_has_a_name_of_this_process(tmp_path: Path) -> None:
    staged = staging_path(tmp_path / "manifest.json")
    assert staged.parent == tmp_path
    assert staged.name == f".manifest.json.{socket.gethostname()}-{os.getpid()}.tmp"


class TestExclusive:
    HOLD = (
        "import sys, asr_fine_tuner.files as f; from pathlib import Path\nwith f.exclusive(Path(sys.argv[1]), what=''):"
    )

    def test_another_process_is_refused_while_the_lock_is_held(self, tmp_path: Path) -> None:
        lock = tmp_path / "folder" / "lock"
        script = f"{self.HOLD} print('held', flush=True); sys.stdin.read()"
        holder = subprocess.Popen(
            [sys.executable, "-c", script, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(TransientError, match="the artifact is being written by another job"),
            exclusive(lock, what="the artifact"),
        ):
            pass
        holder.communicate()
        with exclusive(lock, what="the artifact"):
            pass

    def test_a_killed_holder_leaves_no_lock(self, tmp_path: Path) -> None:
        lock = tmp_path / "lock"
        script = f"{self.HOLD} import os; os._exit(9)"
        assert subprocess.run([sys.executable, "-c", script, lock], check=False).returncode == 9
        with exclusive(lock, what="the artifact"):
            pass


def test_where_folders_cannot_be_renamed_their_files_are_and_the_last_one_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "staging", tmp_path / "checkpoint"
    (source / "deeper").mkdir(parents=True)
    for name in ("complete.json", "a.bin", "z.bin", "deeper/state.json"):
        (source / name).write_text(name)
    moved, replace = [], os.replace

    def refuse_folders(old: Path, new: Path) -> None:
        if old.is_dir():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        moved.append(new.relative_to(target).as_posix())
        replace(old, new)

    monkeypatch.setattr(os, "replace", refuse_folders)
    rename_folder(source, target, last="complete.json")

    assert sorted(moved) == ["a.bin", "complete.json", "deeper/state.json", "z.bin"]
    assert moved[-1] == "complete.json"
    assert all((target / name).read_text() == name for name in moved)
    assert not source.exists()
