"""What an artifact promises: where it came from, which model it fits, what it holds, and the hash of every file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import canonical_json, mismatches, sha256_of_json

MANIFEST_NAME = "manifest.json"
FORMAT: Literal[2] = 2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelFormat(_Record):
    """What features and labels have to look like for a model.

    window_seconds: the audio one log-mel window holds (30 s for OpenAI's checkpoints).
    max_labels: label tokens that the decoder holds, the start token not counted.
    tokenizer_sha256: hash of the vocabulary (see `labels.tokenizer_sha256`).
    """

    model_id: str
    revision: str
    n_mels: int
    sampling_rate: int
    window_seconds: float
    max_labels: int
    multilingual: bool
    tokenizer_sha256: str


class DatasetOrigin(_Record):
    """Where the clips come from.

    id: on the Hub; of a local folder or archive its name only. on_hub: whether others can load `id`.
    revision: the commit; of local data a hash of what was read.
    splits: for each of our splits the source split it was made of.
    """

    id: str
    on_hub: bool
    config: str
    revision: str
    licence: str | None
    splits: dict[str, str]


class SplitSummary(_Record):
    clips: int
    hours: float
    longest_labels: int


class Encoding(_Record):
    """The parameters that decide what the artifact holds.

    language_code: as it was given, which can name a language that Whisper lacks.
    language, language_token: Whisper's name and code of the language that the labels begin with.
    dataset_revision: as it was given; the commit it stood for is the dataset's `revision`.
    Durations are in seconds.
    """

    language_code: str
    language: str
    language_token: str
    task: Literal["transcribe", "translate"]
    dataset_revision: str | None
    audio_column: str | None
    text_column: str | None
    max_train_samples: int | None
    max_eval_samples: int | None
    min_duration: float
    max_duration: float
    seed: int


class Manifest(_Record):
    """`manifest.json`, written last: an artifact with one is complete."""

    format: Literal[2] = FORMAT
    model: ModelFormat
    dataset: DatasetOrigin
    encoding: Encoding
    splits: dict[str, SplitSummary]
    rejected: dict[str, int]
    versions: dict[str, str]
    files: dict[str, str]

    @property
    def identity(self) -> str:
        """Hash of what was asked for: equal identities give equal contents."""
        return identity_of(self.model, self.dataset, self.encoding)

    @property
    def sha256(self) -> str:
        """Hash of the whole manifest, and through the hashes in it of the whole artifact."""
        return sha256_of_json(self.model_dump(mode="json"))

    def to_json(self) -> str:
        return canonical_json(self.model_dump(mode="json"))


def identity_of(model: ModelFormat, dataset: DatasetOrigin, encoding: Encoding) -> str:
    parts = [FORMAT, *(part.model_dump(mode="json") for part in (model, dataset, encoding))]
    return sha256_of_json(parts)


def read_manifest(artifact: Path) -> Manifest:
    """
    Raises:
        PermanentError: there is no manifest, or it is not one that this version reads.
    """
    path = artifact / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PermanentError(
            given=f"{artifact} without {MANIFEST_NAME}",
            expected="a finished artifact; the manifest is written last",
            action="run the preprocess job again, it continues where it stopped",
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise PermanentError(
            given=f"{path}: {reason}",
            expected=f"a manifest of format {FORMAT}, as this version writes it",
            action="make the artifact anew with the preprocess job and --overwrite",
        ) from None


def verify_files(artifact: Path, manifest: Manifest) -> None:
    """
    Raises:
        PermanentError: a file is missing or does not have the sha256 it was written with.
    """
    if problems := mismatches(artifact, manifest.files):
        raise PermanentError(
            given=f"artifact {artifact}: {'; '.join(problems)}",
            expected="the files as the preprocess job wrote them",
            action="run the preprocess job again; it replaces a damaged artifact",
        )


def describe_differences(given: BaseModel, expected: BaseModel) -> list[str]:
    """`field: one value, other value` for each field in which two records of one kind differ."""
    one, other = given.model_dump(), expected.model_dump()
    return [f"{name}: {one[name]!r} and {other[name]!r}" for name in one if one[name] != other[name]]
