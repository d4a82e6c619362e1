"""Where the files of a dataset are: the interface that a folder, a zip archive and a repository on the Hub share."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from asr_fine_tuner import stop
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import FILES_HASHED_AT_ONCE, sha256_of_stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

logger = logging.getLogger(__name__)

_WORTH_TELLING = 1 << 30  # bytes whose hashing takes seconds
# An archive that unpacks to more than so many times its size is a bomb: audio hardly shrinks, tables to a tenth.
_MAX_EXPANSION = 200
_HARMLESS = 1 << 26  # bytes unpacked, whatever the archive's size


@dataclass(frozen=True, slots=True, order=True)
class StoredFile:
    """A file of a tree: its path from the root of the tree, with `/`, and its size in bytes."""

    name: str
    size: int


class FileTree(Protocol):
    """Files that can be listed and read, in any process (a tree pickles without its listing)."""

    @property
    def label(self) -> str:
        """What messages call it."""
        ...

    def listing(self) -> Mapping[str, StoredFile]:
        """Every file by name, in the order of names, without hidden ones."""
        ...

    def open_part(self, file: StoredFile) -> IO[bytes]:
        """Open for random access; of a remote file only the parts that are read are fetched."""
        ...

    def open_whole(self, file: StoredFile) -> IO[bytes]:
        """Open a file that will be read to its end, here or by others; a remote one is fetched into the cache."""
        ...

    def is_here(self, file: StoredFile) -> bool:
        """Whether it can be read without the network."""
        ...

    def revision(self, names: Iterable[str]) -> str:
        """What pins the content of the files `names`."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """The files in a folder, and in its subfolders unless told otherwise."""

    root: Path
    subfolders: bool = True

    @property
    def label(self) -> str:
        return str(self.root)

    def listing(self) -> Mapping[str, StoredFile]:
        return self._listing

    @functools.cached_property
    def _listing(self) -> Mapping[str, StoredFile]:
        return _list_folder(self.root, self.subfolders)

    def __reduce__(self) -> tuple[type[LocalFolder], tuple[Path, bool]]:
        return LocalFolder, (self.root, self.subfolders)

    def open_part(self, file: StoredFile) -> IO[bytes]:
        return (self.root / file.name).open("rb")

    open_whole = open_part

    def is_here(self, file: StoredFile) -> bool:  # noqa: ARG002  all are
        return True

    def revision(self, names: Iterable[str]) -> str:
        return content_hash(self, names)


@dataclass(frozen=True)
class ZipArchive:
    """The members of a .zip file, read in place; nothing is extracted."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    def listing(self) -> Mapping[str, StoredFile]:
        return self._listing

    @functools.cached_property
    def _listing(self) -> Mapping[str, StoredFile]:
        return _list_archive(self.path)

    def open_part(self, file: StoredFile) -> IO[bytes]:
        # Processes that share a descriptor would move each other's position in the file: one for each.
        return _open_archive(self.path, os.getpid(), self.path.stat().st_mtime_ns).open(file.name)

    def __reduce__(self) -> tuple[type[ZipArchive], tuple[Path]]:
        return ZipArchive, (self.path,)

    open_whole = open_part

    def is_here(self, file: StoredFile) -> bool:  # noqa: ARG002  all are
        return True

    def revision(self, names: Iterable[str]) -> str:
        return content_hash(self, names)


@dataclass(frozen=True)
class Subtree:
    """The files of a folder within another tree."""

    tree: FileTree
    folder: str

    @property
    def label(self) -> str:
        return f"{self.tree.label}/{self.folder}"

    def listing(self) -> Mapping[str, StoredFile]:
        return self._listing

    @functools.cached_property
    def _listing(self) -> Mapping[str, StoredFile]:
        inside = f"{self.folder}/"
        return {
            file.name.removeprefix(inside): StoredFile(file.name.removeprefix(inside), file.size)
            for file in self.tree.listing().values()
            if file.name.startswith(inside)
        }

    def __reduce__(self) -> tuple[type[Subtree], tuple[FileTree, str]]:
        return Subtree, (self.tree, self.folder)

    def open_part(self, file: StoredFile) -> IO[bytes]:
        return self.tree.open_part(self._outside(file))

    def open_whole(self, file: StoredFile) -> IO[bytes]:
        return self.tree.open_whole(self._outside(file))

    def is_here(self, file: StoredFile) -> bool:
        return self.tree.is_here(self._outside(file))

    def revision(self, names: Iterable[str]) -> str:
        return content_hash(self, names)

    def _outside(self, file: StoredFile) -> StoredFile:
        return StoredFile(f"{self.folder}/{file.name}", file.size)


def is_unsafe(name: str) -> bool:
    """Whether a path is absolute (POSIX or Windows), has a `..`, or holds a NUL: it could name a file of this machine
    outside the dataset that it comes from."""
    path = name.replace("\\", "/")
    return path.startswith("/") or path[1:2] == ":" or ".." in path.split("/") or "\0" in path


def content_hash(tree: FileTree, names: Iterable[str]) -> str:
    """`sha256:` and the hash over name, size and content of files: the same for the same files wherever they are."""
    listing = tree.listing()
    files = [listing[name] for name in sorted(set(names))]
    if (n_bytes := sum(file.size for file in files)) > _WORTH_TELLING:
        logger.info("hashing %d files of %s, %.1f GB", len(files), tree.label, n_bytes / 1e9)
    with ThreadPoolExecutor(FILES_HASHED_AT_ONCE) as pool:
        digests = list(pool.map(functools.partial(_hash_file, tree), files))
    total = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        total.update(f"{file.name}\0{file.size}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _hash_file(tree: FileTree, file: StoredFile) -> str:
    stop.raise_if_stopped("nothing was written yet")
    with tree.open_whole(file) as opened:
        return sha256_of_stream(opened)


def _hidden(name: str) -> bool:
    """What operating systems and tools leave in folders (`.DS_Store`, `__MACOSX/`, `.git/`)."""
    return any(part.startswith((".", "__")) for part in name.split("/"))


def _list_folder(root: Path, subfolders: bool) -> Mapping[str, StoredFile]:
    inside = [root.resolve()]
    if root.parent.name == "snapshots":  # a snapshot in the Hugging Face cache: its files are links into `blobs`
        inside.append((root.parent.parent / "blobs").resolve())
    files = {}
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if subfolders and not _hidden(name)]
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if _hidden(relative):
                continue
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
                raise PermanentError(
                    given=f"{path} is a link to {path.resolve()}",
                    expected=f"files inside {root}",
                    action="copy the file into the folder, or remove the link",
                )
            if path.is_file():
                files[relative] = StoredFile(relative, path.stat().st_size)
    return dict(sorted(files.items()))


@functools.lru_cache(maxsize=4)
def _open_archive(path: Path, process: int, modified: int) -> zipfile.ZipFile:  # noqa: ARG001  parts of the cache key
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise PermanentError(
            given=f"{path}, which cannot be read as a .zip archive ({error})",
            expected="a complete .zip archive",
            action="check that the file was copied whole, or make the archive again",
        ) from error


def _list_archive(path: Path) -> Mapping[str, StoredFile]:
    files = {}
    for member in _open_archive(path, os.getpid(), path.stat().st_mtime_ns).infolist():
        link = stat.S_ISLNK(member.external_attr >> 16)
        if is_unsafe(member.filename) or link:
            raise PermanentError(
                given=f"{path} has the member {member.filename!r}" + (", a link" if link else ""),
                expected="regular files with paths inside the archive",
                action="make the archive again from the dataset's folder, without links",
            )
        if member.flag_bits & 0x1:  # general purpose bit 0 of the zip format: encrypted
            raise PermanentError(
                given=f"{path} has the encrypted member {member.filename!r}",
                expected="an archive without a password",
                action="make the archive again without encryption",
            )
        if not member.is_dir() and not _hidden(member.filename):
            files[member.filename] = StoredFile(member.filename, member.file_size)
    unpacked, packed = sum(file.size for file in files.values()), path.stat().st_size
    if unpacked > max(_HARMLESS, _MAX_EXPANSION * packed):
        raise PermanentError(
            given=f"{path} of {packed:,} bytes, whose members unpack to {unpacked:,}",
            expected=f"at most {_MAX_EXPANSION} times the archive's size",
            action="look into the archive: it was made to fill memory or time; give the dataset as a folder if not",
        )
    return dict(sorted(files.items()))
