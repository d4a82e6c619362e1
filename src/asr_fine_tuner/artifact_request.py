"""What an artifact is to be made of: the model, the dataset's shards and the encoding, looked up, not yet encoded."""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from asr_fine_tuner import hub
from asr_fine_tuner.dataset import DatasetPlan, resolve_dataset
from asr_fine_tuner.encoding import EncoderSettings, model_format, shared_encoder
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import canonical_json, sha256_of_json
from asr_fine_tuner.languages import Language, resolve_language
from asr_fine_tuner.locations import is_on_hub, public_name
from asr_fine_tuner.manifest import (
    FORMAT,
    DatasetOrigin,
    Encoding,
    Manifest,
    ModelFormat,
    describe_differences,
    identity_of,
)
from asr_fine_tuner.parameters import PreprocessParameters
from asr_fine_tuner.shards import ShardTask, WorkingFolder

logger = logging.getLogger(__name__)

_DECIDE_THE_BYTES = (
    "asr-fine-tuner",
    "av",
    "datasets",
    "librosa",
    "numpy",
    "pyarrow",
    "soundfile",
    "soxr",
    "torch",
    "transformers",
)


def recorded_versions() -> dict[str, str]:
    """Installed versions of the packages that decide an artifact's bytes."""
    return {package: importlib.metadata.version(package) for package in _DECIDE_THE_BYTES}


class _Begun(BaseModel):
    """What an unfinished artifact may be continued for: the same request, packages and division into shards.

    shards: hash of the division.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: int
    model: ModelFormat
    dataset: DatasetOrigin
    encoding: Encoding
    versions: dict[str, str]
    shards: str


@dataclass(frozen=True, slots=True)
class ArtifactRequest:
    """bytes_fetched: bytes of the dataset that came over the network to plan its shards."""

    plan: DatasetPlan
    model: ModelFormat
    origin: DatasetOrigin
    encoding: Encoding
    settings: EncoderSettings
    bytes_fetched: int

    @property
    def identity(self) -> str:
        """Hash of what is asked for: that of the manifest of the artifact made of it."""
        return identity_of(self.model, self.origin, self.encoding)

    @property
    def identity_of_work(self) -> str:
        """What an unfinished artifact may be continued for, as text that is the same for the same."""
        return canonical_json(self._begun.model_dump(mode="json"))

    @property
    def _begun(self) -> _Begun:
        shards = [
            # As text: a hold-out of a million rows is hashed in no time, and a range as what it is.
            [shard.shard.n_examples, {split: str(rows) for split, rows in shard.rows.items()}]
            for shard in self.plan.shards
        ]
        return _Begun(
            format=FORMAT,
            model=self.model,
            dataset=self.origin,
            encoding=self.encoding,
            versions=recorded_versions(),
            shards=sha256_of_json(shards),
        )

    def tasks(self, work: WorkingFolder) -> list[ShardTask]:
        return [ShardTask(index, shard, work, self.settings) for index, shard in enumerate(self.plan.shards)]

    def name_is_taken(self, name: str, existing: Manifest) -> PermanentError:
        """What to raise when an artifact of that name is of another request."""
        differences = self._differences(existing)
        return PermanentError(
            given=f"artifact name {name!r}, taken by a different artifact (asked for, found): {'; '.join(differences)}",
            expected="a free name, or the parameters that artifact was made with",
            action="give another --artifact_name, or --overwrite to replace it",
        )

    def name_is_begun(self, name: str, work: WorkingFolder) -> PermanentError:
        """What to raise when an unfinished artifact of that name cannot be continued for this request."""
        try:
            found = _Begun.model_validate_json(work.begun_for())
        except (FileNotFoundError, ValidationError):
            differences = ["how cannot be told: another version of this package wrote it, or it is damaged"]
        else:
            now = self._begun
            differences = [*self._differences(found), *_other_versions(now.versions, found.versions)]
            if now.format != found.format:
                differences.append(f"format: {now.format} and {found.format}")
            if now.shards != found.shards:
                differences.append("its division into shards")
        return PermanentError(
            given=f"artifact name {name!r}, under which a different one is unfinished (shards done: "
            f"{work.n_recorded()}); asked for, found: {'; '.join(differences)}",
            expected="a free name, or the parameters, dataset and package versions that it was begun with",
            action="give what it was begun with to continue it; where that cannot be had again, --overwrite true "
            "begins anew without its shards, and another --artifact_name beside them",
        )

    def _differences(self, found: Manifest | _Begun) -> list[str]:
        pairs = ((self.model, found.model), (self.origin, found.dataset), (self.encoding, found.encoding))
        return [line for asked, other in pairs for line in describe_differences(asked, other)]


def _other_versions(now: dict[str, str], found: dict[str, str]) -> list[str]:
    return [
        f"version of {package}: {now.get(package)} and {found.get(package)}"
        for package in sorted({*now, *found})
        if now.get(package) != found.get(package)
    ]


def resolve_request(parameters: PreprocessParameters) -> ArtifactRequest:
    """Look up the model and the dataset, and plan its shards; audio is not fetched.

    Raises PermanentError where dataset, language, model and parameters do not fit, TransientError while the Hub cannot
    be reached.
    """
    language = resolve_language(parameters.language_code, parameters.language)
    files = hub.download_model(parameters.model_id, parameters.model_revision, weights=False)
    model = model_format(public_name(parameters.model_id), files.revision, files.folder)
    encoding = _encoding(parameters, language, model)
    settings = EncoderSettings(
        model_folder=files.folder.absolute(),
        language_code=language.code,
        task=parameters.task,
        min_duration=encoding.min_duration,
        max_duration=encoding.max_duration,
        max_labels=model.max_labels,
    )
    shared_encoder(settings)  # refuses a language or task that the checkpoint lacks before the dataset is touched
    fetched_before = hub.bytes_fetched()
    dataset = resolve_dataset(
        parameters.dataset_name,
        language_code=parameters.language_code,
        revision=parameters.dataset_revision,
        audio_column=parameters.audio_column,
        text_column=parameters.text_column,
        train_split=parameters.train_split,
        validation_split=parameters.validation_split,
        test_split=parameters.test_split,
    )
    plan = dataset.plan(
        max_train_samples=parameters.max_train_samples,
        max_eval_samples=parameters.max_eval_samples,
        seed=parameters.seed,
    )
    for warning in plan.warnings:
        logger.warning(warning)
    origin = DatasetOrigin(
        id=public_name(parameters.dataset_name),
        on_hub=is_on_hub(parameters.dataset_name),
        config=dataset.config,
        revision=plan.revision,
        licence=dataset.licence,
        splits=dict(plan.sources),
    )
    return ArtifactRequest(plan, model, origin, encoding, settings, hub.bytes_fetched() - fetched_before)


def _encoding(parameters: PreprocessParameters, language: Language, model: ModelFormat) -> Encoding:
    max_duration = parameters.max_duration or model.window_seconds
    if max_duration > model.window_seconds:
        raise PermanentError(
            given=f"--max_duration {max_duration:g} s",
            expected=f"at most {model.window_seconds:g} s, the window of {model.model_id}",
            action="leave --max_duration out, or split longer recordings into segments with their transcripts",
        )
    if parameters.min_duration >= max_duration:
        raise PermanentError(
            given=f"--min_duration {parameters.min_duration:g} s",
            expected=f"less than the longest clip, {max_duration:g} s",
            action="lower --min_duration",
        )
    return Encoding(
        language_code=parameters.language_code,
        language=language.name,
        language_token=language.code,
        task=parameters.task,
        dataset_revision=parameters.dataset_revision,
        audio_column=parameters.audio_column,
        text_column=parameters.text_column,
        max_train_samples=parameters.max_train_samples,
        max_eval_samples=parameters.max_eval_samples,
        min_duration=parameters.min_duration,
        max_duration=max_duration,
        seed=parameters.seed,
    )
