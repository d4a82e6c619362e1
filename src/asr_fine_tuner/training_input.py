"""Finding the artifact to train on, and refusing one that does not fit the files, the model or the parameters."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.artifact_repository import ArtifactRepository
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.languages import resolve_language
from asr_fine_tuner.locations import ArtifactHome, public_name
from asr_fine_tuner.manifest import MANIFEST_NAME, Manifest, ModelFormat, read_manifest, verify_files
from asr_fine_tuner.parameters import TrainParameters, default_artifact_name

logger = logging.getLogger(__name__)

_HAS_TO_MATCH = {
    "n_mels": "mel bins",
    "window_seconds": "seconds in the window",
    "sampling_rate": "samples per second",
    "multilingual": "multilingual",
    "tokenizer_sha256": "tokenizer",
}


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """A verified artifact, with the caps of the job."""

    folder: Path
    manifest: Manifest
    max_train_samples: int | None
    max_eval_samples: int | None

    def clips(self, split: str) -> ArtifactSplit:
        cap = self.max_train_samples if split == "train" else self.max_eval_samples
        return ArtifactSplit(self.folder, split, cap)

    def refuse_replaced(self) -> None:
        """
        Raises:
            TransientError: since it was verified, a preprocess job has put another artifact in its place.
        """
        if read_manifest(self.folder).sha256 != self.manifest.sha256:
            raise TransientError(
                given=f"artifact {self.folder}, replaced since this job verified it",
                expected="an artifact that stays while it is trained on",
                action="run the same command again to train on the new one",
            )


def open_artifact(parameters: TrainParameters) -> TrainingInput:
    """Find the artifact, and verify its files and the parameters against its manifest.

    Raises:
        PermanentError: there is none, it is damaged, or it was made with other parameters.
    """
    folder = _find(parameters)
    manifest = read_manifest(folder)
    _refuse_other_parameters(parameters, manifest)
    verify_files(folder, manifest)
    return TrainingInput(folder, manifest, parameters.max_train_samples, parameters.max_eval_samples)


def check_fits(manifest: Manifest, model: ModelFormat) -> None:
    """
    Raises:
        PermanentError: features or labels of the artifact are not what the model takes; both values are told.
    """
    made_for = manifest.model
    longest = max(summary.longest_labels for summary in manifest.splits.values()) - 1
    problems = [
        f"{called}: {getattr(made_for, name)!r} in the artifact, {getattr(model, name)!r} in the model"
        for name, called in _HAS_TO_MATCH.items()
        if getattr(made_for, name) != getattr(model, name)
    ]
    if longest > model.max_labels:
        problems.append(f"labels of a clip: up to {longest} in the artifact, at most {model.max_labels} in the model")
    if problems:
        raise PermanentError(
            given=f"an artifact made for {made_for.model_id}, to train {model.model_id}; {'; '.join(problems)}",
            expected="an artifact with the features and labels of the model",
            action=f"run the preprocess job with --model_id {model.model_id} and another --artifact_name",
        )
    if (made_for.model_id, made_for.revision) != (model.model_id, model.revision):
        logger.info(
            "the artifact was made for %s at %s; its features and labels are those of %s",
            made_for.model_id,
            made_for.revision,
            model.model_id,
        )


def _find(parameters: TrainParameters) -> Path:
    name = parameters.artifact_name
    if name is not None and (repository := ArtifactRepository.named(name)):
        folder = repository.pulled()
    elif name is not None and ("/" in name or (Path(name) / MANIFEST_NAME).is_file()):
        folder = Path(name)
    elif name is not None:
        folder = ArtifactHome.of(name).artifact
    elif parameters.dataset_name and parameters.language_code:
        name = default_artifact_name(
            parameters.model_id, parameters.dataset_name, parameters.language_code, parameters.task
        )
        folder = ArtifactHome.of(name).artifact
    else:
        raise PermanentError(
            given="neither --artifact_name nor both --dataset_name and --language_code",
            expected="the artifact to train on",
            action="give --artifact_name as in the preprocess job, or the folder of an artifact",
        )
    if not (folder / MANIFEST_NAME).is_file():
        raise PermanentError(
            given=f"artifact {name!r}: no {MANIFEST_NAME} in {folder}",
            expected="an artifact finished by the preprocess job under the same HF_HOME",
            action=f"make it: {_preprocess_command(parameters, name)}",
        )
    return folder


def _preprocess_command(parameters: TrainParameters, artifact_name: str) -> str:
    values = {
        "dataset_name": parameters.dataset_name or "DATASET",
        "language_code": parameters.language_code or "CODE",
        "language": parameters.language,
        "task": parameters.task,
        "model_id": parameters.model_id,
        "model_revision": parameters.model_revision,
        "dataset_revision": parameters.dataset_revision,
        "artifact_name": artifact_name if ArtifactRepository.named(artifact_name) else Path(artifact_name).name,
        "max_train_samples": parameters.max_train_samples,
        "max_eval_samples": parameters.max_eval_samples,
    }
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in values.items() if value is not None]
    return " ".join(["python -m jobs.preprocess", *flags])


def _refuse_other_parameters(parameters: TrainParameters, manifest: Manifest) -> None:
    encoding, dataset = manifest.encoding, manifest.dataset
    token = None
    if parameters.language_code or parameters.language:
        code = parameters.language_code or encoding.language_code
        token = resolve_language(code, parameters.language or encoding.language).code
    asked_and_found = {
        "dataset_name": (public_name(parameters.dataset_name) if parameters.dataset_name else None, dataset.id),
        "language_code": (parameters.language_code, encoding.language_code),
        "language": (token, encoding.language_token),
        "task": (parameters.task, encoding.task),
    }
    problems = [
        f"--{name} {asked!r}, the artifact has {found!r}"
        for name, (asked, found) in asked_and_found.items()
        if asked is not None and asked != found
    ]
    if parameters.dataset_revision not in (None, encoding.dataset_revision, dataset.revision):
        problems.append(f"--dataset_revision {parameters.dataset_revision!r}, the artifact has {dataset.revision!r}")
    caps = (("max_train_samples", encoding.max_train_samples), ("max_eval_samples", encoding.max_eval_samples))
    for name, found in caps:
        asked = getattr(parameters, name)
        if asked is not None and found is not None and asked > found:
            problems.append(f"--{name} {asked}, the artifact was capped at {found}")
    if problems:
        raise PermanentError(
            given="; ".join(problems),
            expected="the parameters the artifact was made with",
            action="correct them, or make another artifact with the preprocess job",
        )
