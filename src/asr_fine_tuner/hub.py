"""The Hugging Face Hub: the only module that talks to it."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from asr_fine_tuner import traffic
from asr_fine_tuner.checkpoint_files import (
    CARD_FILE,
    MODEL_FILES,
    PREDICTIONS_NAME,
    PUBLISHED_FILES,
    WEIGHT_FILES,
    ModelFiles,
    licence_in,
    refuse_without_weights,
)
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.files import sha256_of
from asr_fine_tuner.filetree import LocalFolder, StoredFile
from asr_fine_tuner.hub_errors import RepositoryNotFound
from asr_fine_tuner.patience import with_patience
from asr_fine_tuner.range_reader import RangeReader
from asr_fine_tuner.traffic import bytes_fetched

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from huggingface_hub import CommitOperationCopy, HfApi, RepoFile

__all__ = [
    "HubTree",
    "ModelFiles",
    "UploadedModel",
    "WeightsToFetch",
    "bytes_fetched",
    "cache_folder",
    "check_write_access",
    "download_model",
    "is_public_dataset",
    "open_converted_dataset",
    "open_dataset",
    "upload_model",
    "weights_to_fetch",
    "whose_token",
]

logger = logging.getLogger(__name__)

PACKAGE = "asr-fine-tuner"

CONVERTED_BRANCH = "refs/convert/parquet"  # where the Hub keeps a parquet conversion of datasets that it can read
_SMALL_READ = 1 << 16  # bytes: a parquet footer, as pyarrow asks for it; these are read again and again, and kept


@dataclass(frozen=True)
class HubTree:
    """The files of a dataset repository at one commit."""

    repo_id: str
    commit: str

    @property
    def label(self) -> str:
        return f"the dataset {self.repo_id}"

    def listing(self) -> Mapping[str, StoredFile]:
        return _list_dataset(self.repo_id, self.commit)

    def open_part(self, file: StoredFile) -> IO[bytes]:
        """Random access by range requests, or to the cached file where there is one."""
        cached = self._cached(file)
        if cached is not None:
            return cached.open("rb")
        fetch = functools.partial(_read_range, self.repo_id, self.commit, file.name)
        return RangeReader(file.size, fetch)  # type: ignore[return-value]

    def open_whole(self, file: StoredFile) -> IO[bytes]:
        return _download_dataset_file(self.repo_id, self.commit, file.name).open("rb")

    def is_here(self, file: StoredFile) -> bool:
        return self._cached(file) is not None

    def revision(self, names: Iterable[str]) -> str:  # noqa: ARG002  a commit pins every file
        return self.commit

    def _cached(self, file: StoredFile) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repo_id, file.name, revision=self.commit, repo_type="dataset")
        return Path(path) if isinstance(path, str) else None


def open_dataset(repo_id: str, revision: str | None) -> HubTree:
    """The files of a dataset at a branch, tag or commit, pinned to the commit it is now.

    Raises PermanentError where it is missing, private or gated, TransientError while the Hub cannot be reached.
    """
    tree = HubTree(repo_id, _resolve(repo_id, "dataset", revision))
    tree.listing()
    return tree


def open_converted_dataset(repo_id: str) -> HubTree | None:
    """The Hub's own parquet conversion of a dataset; None where it has none."""
    commit = _resolve_converted(repo_id)
    return HubTree(repo_id, commit) if commit is not None else None


def is_public_dataset(repo_id: str) -> bool:
    """Whether anyone may read a dataset: it is there, and neither private nor gated.

    Raises TransientError while the Hub cannot be reached.
    """
    try:
        return _is_public(repo_id)
    except RepositoryNotFound:
        return False


def download_model(model_id: str, revision: str | None, *, weights: bool) -> ModelFiles:
    """A checkpoint's configuration and tokenizer, and with `weights` its safetensors, from the Hub or a local folder.

    Raises PermanentError where it is missing or has weights only as pickles, TransientError while the Hub cannot be
    reached.
    """
    local = Path(model_id)
    if local.is_dir():
        folder, names = local, {path.name for path in local.iterdir() if path.is_file()}
        revision = LocalFolder(local.absolute()).revision(names & set(MODEL_FILES))
    else:
        revision = _resolve(model_id, "model", revision)
        folder = _download_snapshot(
            model_id, "model", revision, (*MODEL_FILES, CARD_FILE, *(WEIGHT_FILES if weights else ()))
        )
        names = set(_cached_tree(model_id, "model", revision) or (path.name for path in folder.iterdir()))
    if "config.json" not in names:
        raise PermanentError(
            given=f"the model {model_id} has no config.json",
            expected="a Whisper checkpoint in the format of transformers",
            action="check --model_id; openai/whisper-small is one",
        )
    if weights:
        refuse_without_weights(model_id, names)
    return ModelFiles(folder, revision, licence_in(folder / CARD_FILE))


def cache_folder() -> Path:
    """Where downloads are kept, below HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


class WeightsToFetch(NamedTuple):
    """What has to be downloaded before a model can be loaded. folder: the cache it goes to."""

    folder: Path
    n_bytes: int


def weights_to_fetch(model_id: str, model: ModelFiles) -> WeightsToFetch:
    """What the weights of a `model` that was downloaded without them still cost.

    Raises PermanentError where it has weights only as pickles.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    cache = cache_folder()
    if Path(model_id).is_dir():
        refuse_without_weights(model_id, {path.name for path in model.folder.iterdir()})
        return WeightsToFetch(cache, 0)
    sizes = _cached_tree(model_id, "model", model.revision) or {}
    refuse_without_weights(model_id, set(sizes) or {path.name for path in model.folder.iterdir()})
    missing = (
        name
        for name in filter_repo_objects(sizes, allow_patterns=list(WEIGHT_FILES))
        if not isinstance(try_to_load_from_cache(model_id, name, revision=model.revision), str)
    )
    return WeightsToFetch(cache, sum(sizes[name] for name in missing))


def whose_token() -> str | None:
    """The account and the role of HF_TOKEN, in words; None where it is not set.

    Raises PermanentError where the Hub refuses it, TransientError while the Hub cannot be reached.
    """
    if not os.environ.get("HF_TOKEN"):
        return None
    account = _read_account("HF_TOKEN")
    return f"{account.name}, role {account.role or 'not told'}"


def check_write_access(repo_id: str, *, private: bool) -> str:
    """Make sure that HF_TOKEN may publish to a model repository, which is created where it does not exist.

    repo_id: `namespace/name`, or a name in the namespace of the token's account. Returns the full id.
    Raises PermanentError where the token is missing, refused or may not write, or where an existing repository is
    public and `private` was asked for; TransientError while the Hub cannot be reached.
    """
    if not os.environ.get("HF_TOKEN"):
        raise PermanentError(
            given="publishing was asked for, and HF_TOKEN is not set",
            expected="a token that may write",
            action="make one at https://huggingface.co/settings/tokens and set HF_TOKEN, or leave out --publish",
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
            given=f"--model_name {repo_id}: HF_TOKEN belongs to {account.name}, who is not in {namespace}",
            expected=f"one of the namespaces {', '.join(account.namespaces)}",
            action="correct --model_name, or use a token of a member",
        )
    if not _create_repository(full_id, private) and private:
        raise PermanentError(
            given=f"--private, and the model {full_id} is on the Hub already and public",
            expected="a private repository, or a new name",
            action="make it private in its settings, choose another --model_name, or leave out --private",
        )
    return full_id


class UploadedModel(NamedTuple):
    """Where a model was published: the page for people, and the commit."""

    url: str
    commit: str


def upload_model(folder: Path, repo_id: str, files: Sequence[str]) -> UploadedModel:
    """Publish the `files` of `folder`, and nothing else, as one commit; then compare each with what the Hub has.

    The same commit deletes what an earlier upload published and this one does not (`PUBLISHED_FILES` and
    `predictions.jsonl`); earlier commits of the repository keep it. Other files there stay.
    Uploading again what is there already makes no second commit.
    Raises PermanentError where the token may not write, TransientError where the Hub cannot be reached or a file did
    not arrive as it is here.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    uploaded = _upload(repo_id, folder, files)
    there = _list_model(repo_id, uploaded.commit)
    wrong = [name for name in files if name not in there or not _same_content(folder / name, there[name])]
    if wrong:
        raise TransientError(
            given=f"the model {repo_id} on the Hub differs from {folder} in {', '.join(wrong)}",
            expected="every file as it is here",
            action="run the same command again; it uploads without training again",
        )
    return uploaded


def _client() -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # the jobs show their own; several processes download at once
    return HfApi(token=os.environ.get("HF_TOKEN") or False, library_name=PACKAGE, library_version=version(PACKAGE))


@with_patience
def _resolve(repo_id: str, repo_type: str, revision: str | None) -> str:
    return str(_client().resolve_revision(repo_id, repo_type=repo_type, revision=revision).resolved)


@with_patience
def _is_public(repo_id: str) -> bool:
    dataset = _client().dataset_info(repo_id)
    return not (dataset.private or dataset.gated)


@with_patience
def _resolve_converted(repo_id: str) -> str | None:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return str(_client().resolve_revision(repo_id, repo_type="dataset", revision=CONVERTED_BRANCH).resolved)
    except RevisionNotFoundError:
        return None


@with_patience
def _download_snapshot(repo_id: str, repo_type: str, commit: str, patterns: Sequence[str]) -> Path:
    """Fetch files by pattern; the client keeps the listing of the repository beside them."""
    return Path(
        _client().snapshot_download(repo_id, repo_type=repo_type, revision=commit, allow_patterns=list(patterns))
    )


def _cached_tree(repo_id: str, repo_type: str, commit: str) -> dict[str, int] | None:
    """Name -> bytes of every file of a commit whose listing is in the cache."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(repo_id, repo_type=repo_type, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None


@functools.lru_cache(maxsize=4)
def _list_dataset(repo_id: str, commit: str) -> Mapping[str, StoredFile]:
    files = _cached_tree(repo_id, "dataset", commit)
    if files is None:
        _download_snapshot(repo_id, "dataset", commit, ("README.md", ".gitattributes"))
        files = _cached_tree(repo_id, "dataset", commit)
    if files is None:
        raise PermanentError(
            given=f"the list of files of {repo_id} is not in the cache, and HF_HUB_OFFLINE is set",
            expected="a dataset that was read before",
            action="run once without HF_HUB_OFFLINE, or give a local folder",
        )
    return {name: StoredFile(name, size) for name, size in sorted(files.items())}


@with_patience
def _download_dataset_file(repo_id: str, commit: str, name: str) -> Path:
    path = _client().hf_hub_download(
        repo_id, name, repo_type="dataset", revision=commit, tqdm_class=traffic.counting_progress()
    )
    return Path(path)


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    role: str | None  # read, write or fineGrained; None for tokens that do not say
    namespaces: tuple[str, ...]


@with_patience
def _read_account(subject: str) -> _Account:  # noqa: ARG001  for messages
    answer = _client().whoami()
    name = answer["name"]
    role = answer.get("auth", {}).get("accessToken", {}).get("role")
    return _Account(name, role, (name, *(organisation["name"] for organisation in answer.get("orgs", []))))


@with_patience
def _create_repository(repo_id: str, private: bool) -> bool:
    """Create a model repository, or find that it exists, and check that it can be written. Whether it is private."""
    from huggingface_hub.errors import HfHubHTTPError

    client = _client()
    client.create_repo(repo_id, private=private, exist_ok=True)
    try:
        client.auth_check(repo_id, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # mirrors of the Hub may not have this endpoint
            raise
    return bool(client.model_info(repo_id).private)


@with_patience
def _upload(repo_id: str, folder: Path, names: Sequence[str]) -> UploadedModel:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    # Looked up at every attempt: one that failed may have arrived.
    outdated = sorted(set(_list_model(repo_id, "main")) & {*PUBLISHED_FILES, PREDICTIONS_NAME} - set(names))
    if outdated:
        logger.info("removing from %s what was published earlier: %s", repo_id, ", ".join(outdated))
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
        *(CommitOperationDelete(path_in_repo=name) for name in outdated),
    ]
    commit = _client().create_commit(repo_id, operations, commit_message="Upload the fine-tuned model")
    return UploadedModel(str(commit.repo_url), commit.oid)


@with_patience
def _list_model(repo_id: str, commit: str) -> dict[str, RepoFile]:
    from huggingface_hub import RepoFile

    entries = _client().list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same_content(path: Path, there: RepoFile) -> bool:
    """Compare by size and by the hash the Hub keeps: sha256 of large files, git's own of small ones."""
    size = path.stat().st_size
    if there.size != size:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == sha256_of(path))
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    blob.update(path.read_bytes())
    return bool(there.blob_id == blob.hexdigest())


def _read_range(repo_id: str, commit: str, name: str, start: int, end: int) -> bytes:
    fetch = _fetch_small_range if end - start <= _SMALL_READ else _fetch_range
    return fetch(repo_id, commit, name, start, end)


@with_patience
def _fetch_range(repo_id: str, commit: str, name: str, start: int, end: int) -> bytes:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    headers = build_hf_headers(token=os.environ.get("HF_TOKEN") or False)
    content = bytearray()
    with http_stream_backoff(
        "GET",
        hf_hub_url(repo_id, name, repo_type="dataset", revision=commit),
        # Of a compressed answer the range would be one of the compressed bytes.
        headers=headers | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),  # the client cannot repeat what fails while the body is read; patience does
    ) as response:
        if response.is_error:
            response.read()  # the message is in the body
        hf_raise_for_status(response)
        if response.status_code != 206 and start > 0:
            raise PermanentError(
                given=f"{repo_id}: the server at {response.url.host} sends the whole of {name} when it is asked for "
                f"bytes {start} to {end} (status {response.status_code})",
                expected="a server that answers range requests (RFC 9110, section 14), as the Hub does",
                action="check HF_ENDPOINT and the proxy settings, or download the dataset and give its folder",
            )
        for block in response.iter_bytes(_SMALL_READ):
            content += block
            if len(content) >= end - start:
                break
    traffic.count(len(content))
    del content[end - start :]
    if len(content) != end - start:
        raise TransientError(
            given=f"{repo_id}: {name} ended early",
            expected=f"bytes {start} to {end}",
            action="run the same command again",
        )
    return bytes(content)


_fetch_small_range = functools.lru_cache(maxsize=128)(_fetch_range)  # a commit's files do not change
