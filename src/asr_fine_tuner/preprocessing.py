"""The preprocess job: dataset -> examples -> clips with features and labels -> artifact."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from asr_fine_tuner import hub
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.artifact_assembly import assemble, recorded_versions, refuse_too_many_rejected
from asr_fine_tuner.artifact_size import check_room
from asr_fine_tuner.cores import usable_cores
from asr_fine_tuner.dataset import DatasetPlan, resolve_dataset
from asr_fine_tuner.encoding import EncoderSettings, model_format, shared_encoder
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import exclusive, mismatches, sha256_of_json, sync_folder
from asr_fine_tuner.languages import Language, resolve_language
from asr_fine_tuner.locations import ArtifactHome, is_on_hub, public_name
from asr_fine_tuner.manifest import (
    MANIFEST_NAME,
    DatasetOrigin,
    Encoding,
    Manifest,
    ModelFormat,
    SplitSummary,
    describe_differences,
    identity_of,
    read_manifest,
)
from asr_fine_tuner.parameters import PreprocessParameters, default_artifact_name
from asr_fine_tuner.progress import progress_bar
from asr_fine_tuner.shards import ShardTask, WorkingFolder, encode_shards, finished_record
from asr_fine_tuner.summary import show_artifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreprocessResult:
    """What the preprocess job made.

    artifact: its folder. sha256: hash of its manifest. reused: it was there already, made from the same input.
    bytes_fetched: bytes of the dataset that came over the network in this run; 0 when all came from the cache.
    """

    artifact: Path
    artifact_name: str
    sha256: str
    reused: bool
    splits: Mapping[str, SplitSummary]
    rejected: Mapping[str, int]
    bytes_fetched: int
    artifact_bytes: int

    def as_json(self) -> dict[str, object]:
        splits = {split: summary.model_dump() for split, summary in self.splits.items()}
        return {**asdict(self), "artifact": str(self.artifact), "splits": splits, "rejected": dict(self.rejected)}


def preprocess(parameters: PreprocessParameters) -> PreprocessResult:
    """Turn a speech dataset into the artifact that `train` reads.

    The artifact is a folder in the Hugging Face cache (or wherever HF_HOME points) that `datasets.load_from_disk`
    opens: splits train, validation and test with one row per clip, `features` log-mel float16 `[n_frames, n_mels]`
    (100 frames per second, real frames only), `labels` int32 `[n_labels]`, `seconds`, `text`, `id`, `speaker`; beside
    them `manifest.json` and `rejected.jsonl`.

    With more than one worker this starts processes that import the caller's main module: call it under
    `if __name__ == "__main__":`, or set num_workers to 1.

    Raises:
        PermanentError: the dataset, language, model or clips do not fit; says what was given and what to do.
        TransientError: the Hub cannot be reached, or another job is writing the same artifact.
        InterruptedJob: SIGTERM or SIGINT; finished shards are kept and the next call continues.
    """
    language = resolve_language(parameters.language_code, parameters.language)
    files = hub.download_model(parameters.model_id, parameters.model_revision, weights=False)
    model = model_format(public_name(parameters.model_id), files.revision, files.folder)
    encoding = _encoding(parameters, language, model)
    settings = EncoderSettings(
        model_folder=files.folder,
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
    bytes_fetched = hub.bytes_fetched() - fetched_before
    name = parameters.artifact_name or default_artifact_name(
        parameters.model_id, parameters.dataset_name, parameters.language_code, parameters.task
    )
    home = ArtifactHome.of(name)
    with exclusive(home.lock, what=f"artifact {name}"):
        _settle_replacement(home)
        existing = _finished(name, home.artifact, overwrite=parameters.overwrite)
        reused = existing is not None and existing.identity == identity_of(model, origin, encoding)
        if existing and reused:
            refuse_too_many_rejected(
                home.artifact, existing.splits, existing.rejected, parameters.max_rejected_fraction
            )
            logger.info("artifact %s is there already, made from the same input", name)
            manifest = existing
        elif existing and not parameters.overwrite:
            raise _name_is_taken(name, existing, model, origin, encoding)
        else:
            work = _working_folder(home.partial, _identity_of_work(identity_of(model, origin, encoding), plan))
            bytes_fetched += _encode(plan, work, settings, model, parameters.num_workers or usable_cores())
            manifest = assemble(
                work,
                plan,
                max_rejected_fraction=parameters.max_rejected_fraction,
                model=model,
                origin=origin,
                encoding=encoding,
            )
            _move_into_place(work, home)
    result = _result(name, home.artifact, manifest, reused=reused, bytes_fetched=bytes_fetched)
    show_artifact(home.artifact, manifest, result.artifact_bytes, bytes_fetched)
    return result


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


def _finished(name: str, artifact: Path, *, overwrite: bool) -> Manifest | None:
    """The manifest of a finished and undamaged artifact; a damaged one counts as none and is replaced.

    Raises:
        PermanentError: the manifest cannot be read (another version may have written it), without `overwrite`.
    """
    if not (artifact / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(artifact)
    except PermanentError:
        if overwrite:
            return None
        raise
    if problems := mismatches(artifact, manifest.files):
        logger.warning("artifact %s is damaged (%s) and is made anew", name, "; ".join(problems))
        return None
    return manifest


def _name_is_taken(
    name: str, existing: Manifest, model: ModelFormat, origin: DatasetOrigin, encoding: Encoding
) -> PermanentError:
    pairs = ((model, existing.model), (origin, existing.dataset), (encoding, existing.encoding))
    differences = [line for given, found in pairs for line in describe_differences(given, found)]
    return PermanentError(
        given=f"artifact name {name!r}, taken by a different artifact (asked for, found): {'; '.join(differences)}",
        expected="a free name, or the parameters that artifact was made with",
        action="give another --artifact_name, or --overwrite to replace it",
    )


def _identity_of_work(identity: str, plan: DatasetPlan) -> str:
    """Hash of what an unfinished artifact may be continued for: the same request, packages and division into shards."""
    shards = [
        # As text: a hold-out of a million rows is hashed in no time, and a range as what it is.
        [shard.shard.n_examples, {split: str(rows) for split, rows in shard.rows.items()}]
        for shard in plan.shards
    ]
    return sha256_of_json([identity, recorded_versions(), shards])


def _working_folder(partial: Path, identity: str) -> WorkingFolder:
    """The folder in which this request's artifact grows; what another request left there is removed."""
    work = WorkingFolder(partial)
    if work.identity() == identity:
        logger.info("continuing the unfinished artifact in %s", partial)
        return work
    if partial.exists():
        shutil.rmtree(partial)
    work.create(identity)
    return work


def _encode(
    plan: DatasetPlan, work: WorkingFolder, settings: EncoderSettings, model: ModelFormat, num_workers: int
) -> int:
    """Encode the shards that are not there yet; returns the bytes fetched."""
    tasks = [ShardTask(index, shard, work, settings) for index, shard in enumerate(plan.shards)]
    with progress_bar("preprocess", sum(plan.n_examples.values()), "clips") as bar:
        pending = []
        for task in tasks:
            if record := finished_record(task):
                bar.advance(record.n_examples)
            else:
                pending.append(task)
        if len(pending) < len(tasks):
            logger.info("%d of %d shards are finished already", len(tasks) - len(pending), len(tasks))
        if pending:
            check_room([task.plan for task in pending], settings, model, work.artifact, hub.cache_folder())
        return encode_shards(pending, num_workers, lambda record: bar.advance(record.n_examples))


def _move_into_place(work: WorkingFolder, home: ArtifactHome) -> None:
    """Put a finished artifact where the one that it replaces was, which is removed only then."""
    if home.artifact.exists():
        home.artifact.rename(home.replaced)
    work.artifact.rename(home.artifact)
    sync_folder(home.folder)
    _settle_replacement(home)
    shutil.rmtree(work.folder)


def _settle_replacement(home: ArtifactHome) -> None:
    """End a replacement: the artifact set aside is removed, or put back when a killed job had not moved the new one."""
    if not home.replaced.exists():
        return
    if home.artifact.exists():
        shutil.rmtree(home.replaced)
    else:
        home.replaced.rename(home.artifact)


def _result(name: str, artifact: Path, manifest: Manifest, *, reused: bool, bytes_fetched: int) -> PreprocessResult:
    return PreprocessResult(
        artifact=artifact,
        artifact_name=name,
        sha256=manifest.sha256,
        reused=reused,
        splits={split: manifest.splits[split] for split in SPLITS},
        rejected=manifest.rejected,
        bytes_fetched=bytes_fetched,
        artifact_bytes=sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()),
    )
