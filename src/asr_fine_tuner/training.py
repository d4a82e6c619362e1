"""The train job: artifact -> batches -> trainer -> metrics -> published model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from asr_fine_tuner import hub
from asr_fine_tuner.checkpoint_files import CURVES_NAME, RESULTS_NAME, weights_sha256
from asr_fine_tuner.encoding import model_format
from asr_fine_tuner.errors import ExitCode, JobError, PermanentError
from asr_fine_tuner.files import exclusive
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.joining import joined_ranks
from asr_fine_tuner.locations import public_name
from asr_fine_tuner.manifest import Manifest, ModelFormat
from asr_fine_tuner.model_card import write_model_card
from asr_fine_tuner.model_folder import published_files
from asr_fine_tuner.parameters import TrainParameters, default_model_name
from asr_fine_tuner.platform_folders import platform_folders
from asr_fine_tuner.quiet import quiet_libraries
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.results import TrainingResults, read_results, results_table
from asr_fine_tuner.run_folder import Identity, RunFolder, effective_batch, run_id
from asr_fine_tuner.run_size import check_room
from asr_fine_tuner.stop import raise_if_stopped
from asr_fine_tuner.tracking import NoTracker, Tracker, Trackers, start_tracking
from asr_fine_tuner.training_input import TrainingInput, check_fits, open_artifact

logger = logging.getLogger(__name__)

# The parameters that decide what the weights become: a run continues only with the same ones.
_DECIDE_THE_WEIGHTS = (
    "max_steps",
    "learning_rate",
    "lr_scheduler",
    "warmup_steps",
    "train_batch_size",
    "grad_accum_steps",
    "eval_steps",
    "max_sequence_length",
    "max_train_samples",
    "max_eval_samples",
    "early_stopping_patience",
    "precision",
    "freeze_encoder",
    "lora_rank",
    "spec_augment",
    "packing",
    "single_clip_share",
    "packed_timestamps",
    "eval_subset",
    "seed",
)


# Folders, which nodes may have in other places. The identity has what is in them.
_OF_A_NODE = {"artifact_name", "model_id", "output_dir"}


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What the train job made.

    model_dir: the finished model. repo_id, url: where it was published; None when it was not asked for.
    metrics: `SPLIT_base_METRIC` and `SPLIT_tuned_METRIC` as fractions, such as `test_tuned_wer`.
    trained: False when an earlier run had finished training and this one only published.
    train_batch_size, grad_accum_steps, processes: as they were in the end, with as many clips to a step as in the
        beginning; where memory did not suffice the first was divided and the second multiplied.
    """

    model_dir: Path
    model_name: str
    repo_id: str | None
    url: str | None
    tracking_url: str | None
    trained: bool
    steps: int
    best_step: int
    train_batch_size: int
    grad_accum_steps: int
    processes: int
    clips: Mapping[str, int]
    hours: Mapping[str, float]
    metrics: Mapping[str, float]

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "model_dir": str(self.model_dir)}


@quiet_libraries()
def train(parameters: TrainParameters, tracker: Tracker | None = None) -> TrainResult:
    """Fine-tune Whisper on an artifact of `preprocess`, evaluate it against the base model, save it, publish it.

    Runs for `max_steps` optimizer steps, evaluates on validation every `eval_steps`, keeps the weights with the lowest
    normalised WER (CER for languages written without spaces), and scores base and best on the test split at the end.
    `model_dir` holds safetensors, configuration, tokenizer and processor, `results.json`, `predictions.jsonl`,
    `training_curves.png` and the model card. Called again with the same parameters it continues from the newest
    complete checkpoint, and once finished only publishes. Started by torchrun or `accelerate launch`, its processes do
    this together; the result is the same in each of them.

    tracker: told the run's numbers while it trains, beside Weights & Biases.

    Raises:
        PermanentError: artifact, model and parameters do not fit, HF_TOKEN may not write, or the loss is not finite.
        TransientError: the Hub cannot be reached, or another job works in the same folder.
        InterruptedJob: SIGTERM or SIGINT; a checkpoint is saved and nothing is published.
    """
    with joined_ranks() as ranks:
        source, model, made_of = ranks.from_first_of_node(lambda: _verified_input(parameters))
        name = parameters.model_name or default_model_name(parameters.model_id, source.manifest.encoding.language_code)
        repo_id = ranks.from_first(lambda: _publishes_to(name, parameters))
        job = _Job(parameters, source, model, name, repo_id, run_folder(parameters, name), ranks)
        identity = run_identity(source.manifest, made_of, parameters, ranks.size)
        _refuse_another_job(ranks.gather({**parameters.model_dump(exclude=_OF_A_NODE), **identity}))
        with _locked(job.run) if ranks.first else contextlib.nullcontext():
            identity = ranks.from_first(lambda: job.run.claim(identity, resume=parameters.resume))
            tracking_url = None
            trained = not ranks.from_first(job.run.is_finished)
            if trained:
                ranks.from_first(lambda: check_room(job.run.folder, source, model, parameters))
                tracking_url = _fine_tune(job, identity, tracker)
            else:
                logger.info("the model in %s is finished already", job.run.model)
            return ranks.from_first(lambda: _conclude(job, tracking_url, trained=trained))


@dataclass(frozen=True, slots=True)
class _Job:
    """model: its files but for the weights. model_name: of the tuned model. repo_id: where it will be published."""

    parameters: TrainParameters
    source: TrainingInput
    model: hub.ModelFiles
    model_name: str
    repo_id: str | None
    run: RunFolder
    ranks: Ranks


def _verified_input(parameters: TrainParameters) -> tuple[TrainingInput, hub.ModelFiles, ModelFormat]:
    """The artifact and the files of the model without its weights, which fit one another."""
    source = open_artifact(parameters)
    model = hub.download_model(parameters.model_id, parameters.model_revision, weights=False)
    made_of = model_format(public_name(parameters.model_id), model.revision, model.folder)
    check_fits(source.manifest, made_of)
    return source, model, made_of


def _publishes_to(model_name: str, parameters: TrainParameters) -> str | None:
    return hub.check_write_access(model_name, private=parameters.private) if parameters.publish else None


def _refuse_another_job(jobs: Sequence[Mapping[str, object]]) -> None:
    """
    Raises:
        PermanentError: a rank was started with other parameters, or finds another artifact or model.
    """
    for rank, job in enumerate(jobs):
        if differences := [name for name, value in job.items() if value != jobs[0][name]]:
            raise PermanentError(
                given=f"{', '.join(differences)} of rank {rank}, which are not those of rank 0",
                expected="the same parameters, artifact and model for every process of a job",
                action="start all nodes with the same command and environment, and the same artifact under HF_HOME",
            )


@contextlib.contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    run.folder.mkdir(parents=True, exist_ok=True)
    with exclusive(run.lock, what=f"output folder {run.folder}"):
        yield


def run_folder(parameters: TrainParameters, model_name: str) -> RunFolder:
    if parameters.output_dir is not None:
        return RunFolder(Path(parameters.output_dir))
    platform = platform_folders()
    return RunFolder((platform.runs if platform else Path("outputs")) / model_name)


def run_identity(artifact: Manifest, model: ModelFormat, parameters: TrainParameters, processes: int = 1) -> Identity:
    """What two jobs have in common when one may continue the other; of the batch, see `RunFolder.check`."""
    return {
        "artifact": artifact.sha256,
        "model_id": model.model_id,
        "model_revision": model.revision,
        "base_weights": weights_sha256(parameters.model_id),
        **parameters.model_dump(include=set(_DECIDE_THE_WEIGHTS)),
        "processes": processes,
    }


def _fine_tune(job: _Job, identity: Identity, also: Tracker | None) -> str | None:
    """Train, and write the finished model; returns where the run can be seen.

    also: is told what W&B is told.
    """
    parameters, ranks = job.parameters, job.ranks
    # The branch that was asked for can have moved since it was looked up.
    revision = job.model.revision
    weights = ranks.from_first_of_node(lambda: hub.download_model(parameters.model_id, revision, weights=True))
    tracker: Tracker = NoTracker()
    if ranks.first:
        tracker = _start_tracking(job, identity)
        tracker = Trackers(tracker, also) if also is not None else tracker
    code = ExitCode.BUG
    summary: dict[str, float | int | str | None] = {}
    try:
        tuning = FineTuning(job.run, job.source, weights.folder, parameters, tracker, ranks, effective_batch(identity))
        tuning.train()
        results = tuning.finish(job.model_name, revision)
        summary = {**_flat_metrics(results), "best_step": results.best_step}
        code = ExitCode.DONE
    except JobError as error:
        code = error.exit_code
        raise
    finally:
        tracker.finish(summary, int(code))
    return tracker.url


def _start_tracking(job: _Job, identity: Identity) -> Tracker:
    manifest = job.source.manifest
    how = job.parameters.model_dump(include={"eval_batch_size", "logging_steps", "save_steps"})
    return start_tracking(
        run_id=run_id(identity, job.run.folder),
        name=job.model_name,
        # Not where files lie on this machine.
        parameters={**identity, **how},
        dataset_summary={
            "dataset": manifest.dataset.model_dump(),
            "splits": {split: summary.model_dump() for split, summary in manifest.splits.items()},
            "rejected": manifest.rejected,
            "artifact": manifest.sha256,
        },
        directory=job.run.folder,
    )


def _conclude(job: _Job, tracking_url: str | None, *, trained: bool) -> TrainResult:
    """Tell the results of the finished model, and publish it."""
    parameters, run = job.parameters, job.run
    # A finished run may be published under another name than it was made for.
    results = replace(read_results(run.model / RESULTS_NAME), model_name=job.model_name)
    _write_card(run, results, job.repo_id or job.model_name, job.model.licence)
    console = Console(stderr=True)
    console.print(results_table(results))
    console.print(results.throughput.told(), highlight=False)
    if results.warning:
        logger.warning("%s", results.warning)
    if parameters.output_dir is None and (platform := platform_folders()):
        platform.collect(run.model, published_files(run.model, with_transcripts=True))
    published = _publish(job)
    return TrainResult(
        model_dir=run.model,
        model_name=job.model_name,
        repo_id=job.repo_id,
        url=published.url if published else None,
        tracking_url=tracking_url,
        trained=trained,
        steps=results.steps,
        best_step=results.best_step,
        train_batch_size=int(results.hyperparameters["train_batch_size"] or 0),
        grad_accum_steps=int(results.hyperparameters["grad_accum_steps"] or 0),
        processes=int(results.hyperparameters.get("processes") or 1),
        clips={split: data.clips for split, data in results.data.items()},
        hours={split: round(data.hours, 6) for split, data in results.data.items()},
        metrics=_flat_metrics(results),
    )


def _write_card(run: RunFolder, results: TrainingResults, repo_id: str, licence: str | None) -> None:
    # Outside the sealed files: the repository's name is known only when the model is published.
    curves = CURVES_NAME if (run.model / CURVES_NAME).is_file() else None
    write_model_card(run.model, results, repo_id=repo_id, licence=licence, curves=curves)


def _publish(job: _Job) -> hub.Uploaded | None:
    run = job.run
    if job.repo_id is None:
        logger.info(
            "the model is in %s; to publish it, set HF_TOKEN and run the same command again with --publish true "
            "(it will not train again)",
            run.model,
        )
        return None
    raise_if_stopped(f"the finished model is in {run.model}")
    dataset = job.source.manifest.dataset
    # predictions.jsonl quotes the test transcripts: only for those who may read them anyway.
    with_transcripts = job.parameters.private or (dataset.on_hub and hub.is_public_dataset(dataset.id))
    uploaded = hub.upload_model(run.model, job.repo_id, published_files(run.model, with_transcripts=with_transcripts))
    logger.info("published: %s", uploaded.url)
    return uploaded


def _flat_metrics(results: TrainingResults) -> dict[str, float]:
    return {
        f"{split}_{which}_{metric}": rate
        for split, scores in results.splits.items()
        for which, scored in (("base", scores.base), ("tuned", scores.tuned))
        if scored is not None
        for metric, rate in scored.rates().items()
    }
