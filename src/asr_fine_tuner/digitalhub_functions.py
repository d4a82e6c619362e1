"""The two jobs as python functions of DigitalHub: parameters by name, and the outcome told in the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from asr_fine_tuner.command_line import parameters_from
from asr_fine_tuner.digitalhub_jobs import preprocess_in, train_in
from asr_fine_tuner.errors import ExitCode
from asr_fine_tuner.logs import output_on_stderr, redact
from asr_fine_tuner.outcome import JobResult, outcome_of
from asr_fine_tuner.parameters import PreprocessParameters, TrainParameters
from asr_fine_tuner.stop import allow_grace

if TYPE_CHECKING:
    from digitalhub.entities.project._base.entity import Project
    from digitalhub.entities.run._base.entity import Run

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
        return preprocess_in(project, run, given)

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
        return train_in(project, run, given)

    _carry_out("train", run, work)


def _without_entities(parameters: Mapping[str, object]) -> dict[str, object]:
    """An artifact among the run's inputs arrives as an object; the parameter is its key."""
    from digitalhub.entities.artifact._base.entity import Artifact

    return {name: value.key if isinstance(value, Artifact) else value for name, value in parameters.items()}


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
