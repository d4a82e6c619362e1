"""The Hugging Face Hub: datasets, models and artifacts are read from it here, and `hub_upload` writes to it.

No other module but these two, `hub_client` and `hub_ranges` makes a request to it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from asr_fine_tuner import traffic
from asr_fine_tuner.checkpoint_files import (
    CARD_FILE,
    MODEL_FILES,
    WEIGHT_FILES,
    ModelFiles,
    licence_in,
    refuse_without_weights,
)
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import LocalFolder, StoredFile
from asr_fine_tuner.hub_client import cached_tree, client, download_snapshot, list_files, resolve
from asr_fine_tuner.hub_errors import RepositoryNotFound
from asr_fine_tuner.hub_ranges import read_range
from asr_fine_tuner.hub_upload import (
    ARTIFACT,
    NOT_OF_AN_ARTIFACT,
    Uploaded,
    check_write_access,
    upload_artifact,
    upload_model,
    whose_token,
)
from asr_fine_tuner.patience import with_patience
from asr_fine_tuner.range_reader import RangeReader
from asr_fine_tuner.traffic import bytes_fetched

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "ARTIFACT",
    "HubTree",
    "ModelFiles",
    "Uploaded",
    "WeightsToFetch",
    "artifact_files",
    "bytes_fetched",
    "cache_folder",
    "check_write_access",
    "dataset_page",
    "download_artifact",
    "download_model",
    "is_public_dataset",
    "open_converted_dataset",
    "open_dataset",
    "upload_artifact",
    "upload_model",
    "weights_to_fetch",
    "whose_token",
]

CONVERTED_BRANCH = "refs/convert/parquet"  # where the Hub keeps a parquet conversion of datasets that it can read


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
        fetch = functools.partial(read_range, self.repo_id, self.commit, file.name)
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
    tree = HubTree(repo_id, resolve(repo_id, "dataset", revision))
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
        tree = LocalFolder(local.absolute(), subfolders=False)
        folder, names = local, set(tree.listing())
        revision = tree.revision(names & set(MODEL_FILES))
    else:
        revision = resolve(model_id, "model", revision)
        folder = download_snapshot(
            model_id, "model", revision, (*MODEL_FILES, CARD_FILE, *(WEIGHT_FILES if weights else ()))
        )
        names = set(cached_tree(model_id, "model", revision) or (path.name for path in folder.iterdir()))
    if "config.json" not in names:
        raise PermanentError(
            given=f"the model {model_id} has no config.json",
            expected="a Whisper checkpoint in the format of transformers",
            action="check --model_id; openai/whisper-small is one",
        )
    if weights:
        refuse_without_weights(model_id, names)
    return ModelFiles(folder, revision, licence_in(folder / CARD_FILE))


def artifact_files(repo_id: str) -> set[str]:
    """What a dataset repository holds beside its card."""
    return set(list_files(repo_id, "dataset", "main")) - NOT_OF_AN_ARTIFACT


def download_artifact(repo_id: str, revision: str | None, names: Sequence[str]) -> Path:
    """The folder in the cache that holds those files of a dataset repository that `names` (patterns) list.

    Raises PermanentError where the repository is missing or may not be read, TransientError while the Hub cannot be
    reached.
    """
    return download_snapshot(repo_id, "dataset", resolve(repo_id, "dataset", revision), names)


def dataset_page(repo_id: str) -> str:
    """The address of a dataset for people."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/datasets/{repo_id}"


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
    sizes = cached_tree(model_id, "model", model.revision) or {}
    refuse_without_weights(model_id, set(sizes) or {path.name for path in model.folder.iterdir()})
    missing = (
        name
        for name in filter_repo_objects(sizes, allow_patterns=list(WEIGHT_FILES))
        if not isinstance(try_to_load_from_cache(model_id, name, revision=model.revision), str)
    )
    return WeightsToFetch(cache, sum(sizes[name] for name in missing))


@with_patience
def _is_public(repo_id: str) -> bool:
    dataset = client().dataset_info(repo_id)
    return not (dataset.private or dataset.gated)


@with_patience
def _resolve_converted(repo_id: str) -> str | None:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return str(client().resolve_revision(repo_id, repo_type="dataset", revision=CONVERTED_BRANCH).resolved)
    except RevisionNotFoundError:
        return None


@functools.lru_cache(maxsize=4)
def _list_dataset(repo_id: str, commit: str) -> Mapping[str, StoredFile]:
    files = cached_tree(repo_id, "dataset", commit)
    if files is None:
        download_snapshot(repo_id, "dataset", commit, ("README.md", ".gitattributes"))
        files = cached_tree(repo_id, "dataset", commit)
    if files is None:
        raise PermanentError(
            given=f"the list of files of {repo_id} is not in the cache, and HF_HUB_OFFLINE is set",
            expected="a dataset that was read before",
            action="run once without HF_HUB_OFFLINE, or give a local folder",
        )
    return {name: StoredFile(name, size) for name, size in sorted(files.items())}


@with_patience
def _download_dataset_file(repo_id: str, commit: str, name: str) -> Path:
    path = client().hf_hub_download(
        repo_id, name, repo_type="dataset", revision=commit, tqdm_class=traffic.counting_progress()
    )
    return Path(path)
