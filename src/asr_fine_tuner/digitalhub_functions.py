"""The two jobs as python functions of DigitalHub, with the platform in the place of a shared disk.

`preprocess_dataset` logs the artifact to the project; `train_and_log_model` fetches it from there, shows its metrics in
the run, and logs the model. howto/digitalhub.md says how to submit them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from asr_fine_tuner.command_line import parameters_from
from asr_fine_tuner.digitalhub_project import (
    RunTracker,
    fetch_artifact,
    find_artifact,
    log_artifact,
    log_model,
    platform_errors,
)
from asr_fine_tuner.errors import ExitCode
from asr_fine_tuner.logs import output_on_stderr, redact
from asr_fine_tuner.outcome import outcome_of
from asr_fine_tuner.parameters import PreprocessParameters, TrainParameters, default_artifact_name
from asr_fine_tuner.stop import allow_grace

if TYPE_CHECKING:
    from digitalhub.entities.project._base.entity import Project
    from digitalhub.entities.run._base.entity import Run

    from asr_fine_tuner.outcome import JobResult

logger = logging.getLogger(__name__)

_MEANING = {
    ExitCode.BUG: "a bug, please report it",
    ExitCode.PERMANENT: "it fails again until this is changed",
    ExitCode.TRANSIENT: "submit it again",
    ExitCode.INTERRUPTED: "submit it again to continue",
}


class RunFailed(RuntimeError):
    """Fails the run on the platform. The message has the exit code that the job would have ended with."""


def preprocess_dataset(project: Project, run: Run | None = None, **parameters: object) -> None:
    """Turn a speech dataset into an artifact, and log it to the project as `artifact_name`.

    project, run: the platform injects them. parameters: those of the preprocess job, by name.
    The run gets the output `artifact`, and the clips and hours of each split as metrics.

    Raises:
        RunFailed: whatever went wrong; the run's results have the details, as the last line of the job's stdout has.
    """

    def work() -> JobResult:
        given = parameters_from(PreprocessParameters, parameters)
        allow_grace(given.grace_period)
        from asr_fine_tuner.preprocessing import preprocess

        result = preprocess(given)
        artifact = log_artifact(project, result.artifact_name, result.artifact)
        metrics: dict[str, float] = {"rejected_clips": sum(result.rejected.values())}
        for split, summary in result.splits.items():
            metrics |= {f"{split}_clips": summary.clips, f"{split}_hours": summary.hours}
        _tell(run, "artifact", artifact.key, metrics)
        return result

    _carry_out("preprocess", run, work)


def train_and_log_model(project: Project, run: Run | None = None, **parameters: object) -> None:
    """Fine-tune Whisper on an artifact of the project, and log the model to it as `model_name`, of kind huggingface.

    project, run: the platform injects them. parameters: those of the train job, by name; `artifact_name` is the name of
    an artifact of the project, its newest version, or the key (`store://...`) of a version, which can also be given
    among the run's inputs.
    While it trains the run shows loss, learning rate and error rates; in the end the results on validation and test,
    which the model has, too. The run gets the output `model`.

    Raises:
        RunFailed: whatever went wrong; the run's results have the details, as the last line of the job's stdout has.
    """

    def work() -> JobResult:
        given = parameters_from(TrainParameters, _without_entities(parameters))
        allow_grace(given.grace_period)
        consumed = None
        if name := _artifact_of_project(given):
            artifact = find_artifact(project, name)
            given = given.model_copy(update={"artifact_name": str(fetch_artifact(artifact))})
            consumed = artifact.key
        from asr_fine_tuner.model_folder import RESULTS_NAME, published_files
        from asr_fine_tuner.results import read_results
        from asr_fine_tuner.training import train

        result = train(given, RunTracker(run) if run is not None else None)
        # Whoever may read the model in the project may read the artifact's transcripts there.
        files = published_files(result.model_dir, with_transcripts=True)
        results = read_results(result.model_dir / RESULTS_NAME)
        model = log_model(project, result.model_name.rpartition("/")[2], results, result.model_dir, files)
        metrics = {**result.metrics, "steps": result.steps, "best_step": result.best_step}
        with platform_errors(f"metrics of model {model.key}"):
            model.log_metrics(metrics, overwrite=True)
        _tell(run, "model", model.key, metrics, consumed)
        return result

    _carry_out("train", run, work)


def _without_entities(parameters: Mapping[str, object]) -> dict[str, object]:
    """An artifact among the run's inputs arrives as an object; the parameter is its key."""
    from digitalhub.entities.artifact._base.entity import Artifact

    return {name: value.key if isinstance(value, Artifact) else value for name, value in parameters.items()}


def _artifact_of_project(given: TrainParameters) -> str | None:
    """The name or key of the artifact in the project; None where it is a folder, on the Hub, or not told."""
    name = given.artifact_name
    if name is None and given.dataset_name and given.language_code:
        name = default_artifact_name(given.model_id, given.dataset_name, given.language_code, given.task)
    return None if name is None or ("/" in name and not name.startswith("store://")) else name


def _tell(run: Run | None, output: str, key: str, metrics: Mapping[str, float], consumed: str | None = None) -> None:
    """Show in the run what came out of it. consumed: key of the artifact that it was made of."""
    if run is None:
        return
    with platform_errors(f"run {run.key}"):
        run.log_metrics(metrics, overwrite=True)
        run.refresh()
        run.add_output(output, key)
        if consumed is not None:
            run.add_relationship("consumes", consumed)
        run.save(update=True)


def _carry_out(job: str, run: Run | None, work: Callable[[], JobResult]) -> None:
    with output_on_stderr():
        code, outcome = outcome_of(job, work)
        if code == ExitCode.DONE:
            return
        outcome = json.loads(redact(json.dumps({"job": job, **outcome, "exit_code": int(code)}, ensure_ascii=False)))
        error = outcome.get("error", {})
        told = {"given": error.get("given"), "expected": error.get("expected"), "to do": error.get("action")}
        lines = [f"  {what}: {text}" for what, text in told.items() if text]
        message = "\n".join([f"{job} ended with exit code {int(code)}: {_MEANING[code]}", *lines])
        if run is not None:
            _tell_failure(run, message, outcome)
    # Outside of the handlers: what the platform prints of it is the message, not our stack.
    raise RunFailed(message)


def _tell_failure(run: Run, message: str, outcome: Mapping[str, object]) -> None:
    # The SDK replaces the message of a function that it runs itself by one of its own, and leaves the results.
    try:
        run.refresh()
        run.status.message = message
        run.status.results = outcome
        run.save(update=True)
    except Exception as error:  # noqa: BLE001 - what is to be told is why the run failed
        logger.warning("the platform does not take the outcome of this run: %s", error)
