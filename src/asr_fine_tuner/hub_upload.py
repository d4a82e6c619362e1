"""Publishing on the Hub: who may, and folders as commits that are compared with what they were made of."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from asr_fine_tuner.checkpoint_files import PREDICTIONS_NAME, PUBLISHED_FILES
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.files import sha256_of
from asr_fine_tuner.hub_client import client, list_files
from asr_fine_tuner.patience import with_patience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from huggingface_hub import CommitOperationCopy, RepoFile

logger = logging.getLogger(__name__)

# What people and the Hub itself put beside an artifact.
NOT_OF_AN_ARTIFACT = frozenset({".gitattributes", "README.md"})


@dataclass(frozen=True, slots=True)
class RepositoryKind:
    """repo_type: as the Hub calls it. parameter: what names the repository. otherwise: how to do without one.
    in_public: how to do with one that is not private.
    """

    repo_type: str
    parameter: str
    otherwise: str
    in_public: str


_WITHOUT = "give an --artifact_name without hf://"
MODEL = RepositoryKind("model", "--model_name", otherwise="leave out --publish", in_public="leave out --private")
ARTIFACT = RepositoryKind("dataset", "--artifact_name", otherwise=_WITHOUT, in_public=_WITHOUT)


class Uploaded(NamedTuple):
    """Where something was published: the page for people, and the commit."""

    url: str
    commit: str


def whose_token() -> str | None:
    """The account and the role of HF_TOKEN, in words; None where it is not set.

    Raises PermanentError where the Hub refuses it, TransientError while the Hub cannot be reached.
    """
    if not os.environ.get("HF_TOKEN"):
        return None
    account = _read_account("HF_TOKEN")
    return f"{account.name}, role {account.role or 'not told'}"


def check_write_access(repo_id: str, *, private: bool, kind: RepositoryKind = MODEL) -> str:
    """Make sure that HF_TOKEN may publish to a repository, which is created where it does not exist.

    repo_id: `namespace/name`, or a name in the namespace of the token's account. Returns the full id.
    Raises PermanentError where the token is missing, refused or may not write, or where an existing repository is
    public and `private` was asked for; TransientError while the Hub cannot be reached.
    """
    if not os.environ.get("HF_TOKEN"):
        raise PermanentError(
            given="publishing was asked for, and HF_TOKEN is not set",
            expected="a token that may write",
            action=f"make one at https://huggingface.co/settings/tokens and set HF_TOKEN, or {kind.otherwise}",
        )
    account = _read_account("HF_TOKEN")
    if account.role == "read":
        raise PermanentError(
            given=f"HF_TOKEN of {account.name} may only read",
            expected="a token that may write",
            action="make one with the role write at https://huggingface.co/settings/tokens",
        )
    full_id = repo_id if "/" in repo_id else f"{account.name}/{repo_id}"
    namespace = full_id.partition("/")[0]
    if namespace not in account.namespaces:
        raise PermanentError(
            given=f"{kind.parameter} {repo_id}: HF_TOKEN belongs to {account.name}, who is not in {namespace}",
            expected=f"one of the namespaces {', '.join(account.namespaces)}",
            action=f"correct {kind.parameter}, or use a token of a member",
        )
    if not _create_repository(full_id, kind.repo_type, private) and private:
        raise PermanentError(
            given=f"the {kind.repo_type} {full_id}, to be private, is on the Hub already and public",
            expected="a private repository, or a new name",
            action=f"make it private in its settings, choose another {kind.parameter}, or {kind.in_public}",
        )
    return full_id


def upload_model(folder: Path, repo_id: str, files: Sequence[str]) -> Uploaded:
    """Publish the `files` of `folder`, and nothing else, as one commit; then compare each with what the Hub has.

    The same commit deletes what an earlier upload published and this one does not (`PUBLISHED_FILES` and
    `predictions.jsonl`); earlier commits of the repository keep it. Other files there stay.
    Uploading again what is there already makes no second commit.
    Raises PermanentError where the token may not write, TransientError where the Hub cannot be reached or a file did
    not arrive as it is here.
    """
    ours = {*PUBLISHED_FILES, PREDICTIONS_NAME}
    return _publish(
        folder, repo_id, MODEL, dict.fromkeys(files), lambda there: there & ours, "Upload the fine-tuned model"
    )


def upload_artifact(folder: Path, repo_id: str, files: Mapping[str, str | None]) -> Uploaded:
    """Publish the `files` of an artifact, by name with their sha256 where it is known, as `upload_model` does.

    The same commit deletes every other file there but README.md, so that the repository holds one artifact.
    """
    return _publish(folder, repo_id, ARTIFACT, files, lambda there: there - NOT_OF_AN_ARTIFACT, "Upload the artifact")


def _publish(
    folder: Path,
    repo_id: str,
    kind: RepositoryKind,
    files: Mapping[str, str | None],
    ours: Callable[[set[str]], set[str]],
    message: str,
) -> Uploaded:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    uploaded = _upload(repo_id, kind.repo_type, folder, sorted(files), ours, message)
    there = list_files(repo_id, kind.repo_type, uploaded.commit)
    wrong = [
        name
        for name, sha256 in files.items()
        if name not in there or not _same_content(folder / name, sha256, there[name])
    ]
    if wrong:
        raise TransientError(
            given=f"the {kind.repo_type} {repo_id} on the Hub differs from {folder} in {', '.join(wrong)}",
            expected="every file as it is here",
            action="run the same command again; it uploads without doing the rest again",
        )
    return uploaded


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    role: str | None  # read, write or fineGrained; None for tokens that do not say
    namespaces: tuple[str, ...]


@with_patience
def _read_account(subject: str) -> _Account:  # noqa: ARG001  for messages
    answer = client().whoami()
    name = answer["name"]
    role = answer.get("auth", {}).get("accessToken", {}).get("role")
    return _Account(name, role, (name, *(organisation["name"] for organisation in answer.get("orgs", []))))


@with_patience
def _create_repository(repo_id: str, repo_type: str, private: bool) -> bool:
    """Create a repository, or find that it exists, and check that it can be written. Whether it is private."""
    from huggingface_hub.errors import HfHubHTTPError

    hub = client()
    hub.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    try:
        hub.auth_check(repo_id, repo_type=repo_type, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # mirrors of the Hub may not have this endpoint
            raise
    return bool(hub.repo_info(repo_id, repo_type=repo_type).private)


@with_patience
def _upload(
    repo_id: str,
    repo_type: str,
    folder: Path,
    names: Sequence[str],
    ours: Callable[[set[str]], set[str]],
    message: str,
) -> Uploaded:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    # Looked up at every attempt: one that failed may have arrived.
    outdated = sorted(ours(set(list_files(repo_id, repo_type, "main"))) - set(names))
    if outdated:
        logger.info("removing from %s what was published earlier: %s", repo_id, ", ".join(outdated))
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
        *(CommitOperationDelete(path_in_repo=name) for name in outdated),
    ]
    commit = client().create_commit(repo_id, operations, repo_type=repo_type, commit_message=message)
    return Uploaded(str(commit.repo_url), commit.oid)


def _same_content(path: Path, sha256: str | None, there: RepoFile) -> bool:
    """Compare by size and by the hash the Hub keeps: sha256 of large files, git's own of small ones."""
    size = path.stat().st_size
    if there.size != size:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == (sha256 or sha256_of(path)))
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    blob.update(path.read_bytes())
    return bool(there.blob_id == blob.hexdigest())
