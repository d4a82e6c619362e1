"""Files that are either whole or absent: atomic writes, hashes, locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from asr_fine_tuner.errors import PermanentError, TransientError

# hashlib lets go of the interpreter lock: a few threads keep a disk or a network volume busy.
FILES_HASHED_AT_ONCE = 4
_BLOCK = 1 << 20  # bytes hashed at a time
# What Cloud Storage FUSE and its like answer when a folder is to be renamed: object stores have no folders.
_FOLDERS_STAY = (errno.EMFILE, errno.ENOSYS, errno.EOPNOTSUPP)


def sha256_of_stream(stream: IO[bytes]) -> str:
    """Hex sha256 of what is left to read of a stream."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return sha256_of_stream(file)


def canonical_json(value: object) -> str:
    """JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2) + "\n"


def sha256_of_json(value: object) -> str:
    """Hex sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def staging_path(path: Path) -> Path:
    """The name under which this process writes what will be `path`; no other process has it, on whatever machine."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that after a crash the file has either its old or its new content."""
    staged = staging_path(path)
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    sync_folder(path.parent)


def rename_folder(folder: Path, target: Path, last: str | None = None) -> None:
    """Rename a folder, or where folders cannot be renamed its files one by one, the file `last` after all others.

    target: absent, or an empty folder.
    """
    try:
        folder.replace(target)
    except OSError as error:
        if error.errno not in _FOLDERS_STAY:
            raise
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: name == last):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(target / name)
        shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` durable."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def hashes_below(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file below `folder`, by path relative to it; those in `known` are not read again."""
    known = known or {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    hashes = {**known, **_hashes_of(folder, [name for name in names if name not in known])}
    return {name: hashes[name] for name in names}


def mismatches(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """One line for each file in `folder` that is missing or does not have the sha256 expected of it."""
    found = _hashes_of(folder, [name for name in expected if (folder / name).is_file()])
    problems = []
    for name, sha256 in sorted(expected.items()):
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != sha256:
            problems.append(f"{name} has sha256 {found[name][:12]}..., written was {sha256[:12]}...")
    return problems


def _hashes_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    with ThreadPoolExecutor(FILES_HASHED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(sha256_of, [folder / name for name in names]), strict=True))


@contextlib.contextmanager
def full_disk_explained(folder: Path, bytes_needed: int | None = None) -> Iterator[None]:
    """Writing below `folder` in the block tells a full disk by its path, what is free and what is needed.

    Raises:
        PermanentError: the disk is full, or the quota or the limit of file sizes is reached.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        needed = f"up to {bytes_needed:,} bytes" if bytes_needed else "room for what is written"
        raise PermanentError(
            given=f"cannot write to {folder}: {error} ({free:,} bytes free)",
            expected=f"{needed} there; what was finished before is untouched",
            action="free space or use a larger volume, then run the same command again: it continues",
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error stands for a full disk, a quota that is used up, or the limit of file sizes."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # safetensors and torch write by themselves and tell only in words.
    numbers = "|".join(str(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return bool(
        re.search(
            rf"\(os error ({numbers})\)|PytorchStreamWriter failed writing|enforce fail at inline_container", str(error)
        )
    )


class LockHeld(TransientError):
    """Another process holds a lock."""


def exclusive(path: Path, *, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock file `path` alone.

    Raises:
        LockHeld: another process holds it, alone or shared.
    """
    return _locked(path, what, fcntl.LOCK_EX)


def shared(path: Path, *, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock file `path` beside others that do so too.

    Raises:
        LockHeld: another process holds it alone.
    """
    return _locked(path, what, fcntl.LOCK_SH)


@contextlib.contextmanager
def _locked(path: Path, what: str, kind: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The kernel takes the lock back when the file is closed, also by the death of its process. NFS wants a file that is
    # open for writing and reading.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(
                given=f"{what} is being written by another job (lock {path})",
                expected="one job at a time",
                action="wait for the other job, then submit this one again",
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise PermanentError(
                given=f"the volume of {path}, which has no file locks ({error})",
                expected="a volume with the locks of flock(2), as local disks, NFS 4 and CephFS have them",
                action="put it on such a volume; Lustre has to be mounted with the option flock",
            ) from None
        yield
