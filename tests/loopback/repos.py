"""Repositories as the Hub keeps them: commits with stable ids, branches, and files that are blobs or LFS objects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The kinds of file that the `.gitattributes` of a new repository sends to LFS, and the size from which all others go.
_LFS_SUFFIXES = (
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".flac", ".gz", ".h5", ".jpg", ".mp3", ".msgpack", ".npy", ".npz"),
    *(".ogg", ".onnx", ".parquet", ".pickle", ".png", ".pt", ".pth", ".rar", ".safetensors", ".tar", ".tgz", ".wav"),
    *(".xz", ".zip", ".zst"),
)
_LFS_BYTES = 10 << 20
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES).encode()


def goes_to_lfs(path: str, size: int) -> bool:
    return size > 0 and (PurePosixPath(path).suffix in _LFS_SUFFIXES or size > _LFS_BYTES)


@dataclass(frozen=True)
class Blob:
    """The content of one file; `oid` is git's id of it, `sha256` LFS's."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def oid(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()  # noqa: S324

    @cached_property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    files: dict[str, Blob]

    def folders(self) -> set[str]:
        """Every folder that holds a file, at any depth, but for the root."""
        return {str(parent) for path in self.files for parent in PurePosixPath(path).parents} - {"."}


@dataclass
class Repo:
    """A repository: `refs` maps "main" or "refs/convert/parquet" to a commit id, `commits` keeps all there were."""

    repo_type: str
    repo_id: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, revision: str, title: str, files: Mapping[str, Blob]) -> Commit:
        """Put `files`, all there are to be, on `revision`. The id follows from content, parent and title."""
        parent = self.refs.get(revision, "")
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        key = "\n".join((self.repo_type, self.repo_id, parent, title, listing))
        commit = Commit(hashlib.sha1(key.encode()).hexdigest(), title, dict(files))  # noqa: S324
        self.commits[commit.sha] = commit
        self.refs[revision] = commit.sha
        return commit

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, a full id or an abbreviated one."""
        if revision in self.refs:
            return self.commits[self.refs[revision]]
        matches = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return self.commits[matches[0]] if len(matches) == 1 else None


def read_files(files: Path | Mapping[str, bytes | str | Path]) -> dict[str, Blob]:
    """Blobs of a folder, or of a mapping from path to content or local file."""
    if isinstance(files, Path):
        paths = sorted(path for path in files.rglob("*") if path.is_file())
        files = {path.relative_to(files).as_posix(): path for path in paths}
    blobs = {}
    for path, source in files.items():
        content = source.read_bytes() if isinstance(source, Path) else source
        content = content.encode() if isinstance(content, str) else content
        blobs[path] = Blob(content, goes_to_lfs(path, len(content)))
    return blobs
