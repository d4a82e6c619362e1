"""What every call to the Hub shares: the client, commits, snapshots, and listings."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from asr_fine_tuner.patience import with_patience

if TYPE_CHECKING:
    from collections.abc import Sequence

    from huggingface_hub import HfApi, RepoFile

PACKAGE = "asr-fine-tuner"


def client() -> HfApi:
    """The Hub's client with the token of the environment, or with none."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # the jobs show their own; several processes download at once
    return HfApi(token=os.environ.get("HF_TOKEN") or False, library_name=PACKAGE, library_version=version(PACKAGE))


@with_patience
def resolve(repo_id: str, repo_type: str, revision: str | None) -> str:
    """The commit that a branch, a tag or the beginning of a commit stands for now."""
    return str(client().resolve_revision(repo_id, repo_type=repo_type, revision=revision).resolved)


@with_patience
def download_snapshot(repo_id: str, repo_type: str, commit: str, patterns: Sequence[str]) -> Path:
    """Fetch files by pattern; the client keeps the listing of the repository beside them."""
    return Path(
        client().snapshot_download(repo_id, repo_type=repo_type, revision=commit, allow_patterns=list(patterns))
    )


def cached_tree(repo_id: str, repo_type: str, commit: str) -> dict[str, int] | None:
    """Name -> bytes of every file of a commit whose listing is in the cache."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(repo_id, repo_type=repo_type, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None


@with_patience
def list_files(repo_id: str, repo_type: str, commit: str) -> dict[str, RepoFile]:
    """Every file of a commit by its name, with its size and hash."""
    from huggingface_hub import RepoFile

    entries = client().list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
