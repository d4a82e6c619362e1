"""The two jobs in a run of DigitalHub, with the project in the place of a shared disk.

A container that the platform has started does one of them by

    python -m asr_fine_tuner.digitalhub_jobs preprocess|train [--PARAMETER VALUE ...]

and python functions are in `digitalhub_functions`. howto/digitalhub.md says how to submit both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asr_fine_tuner.digitalhub_project import (
    RunTracker,
    fetch_artifact,
    find_artifact,
    log_artifact,
    log_model,
    platform_errors,
)
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.outcome import JobResult, run_job
from asr_fine_tuner.parameters import PreprocessParameters, TrainParameters, default_artifact_name

if TYPE_CHECKING:
    from digitalhub.entities.project._base.entity import Project
    from digitalhub.entities.run._base.entity import Run

    from asr_fine_tuner.training import TrainResult


def preprocess_in(project: Project, run: Run | None, given: PreprocessParameters) -> JobResult:
    """Make an artifact, and log it to the project; one that is pushed to the Hub (`hf://...`) is fetched from there.

    The run gets the output `artifact`, and the clips and hours of each split as metrics.
    Raises what `preprocess` raises, and TransientError or PermanentError where the platform fails or refuses.
    """
    from asr_fine_tuner.preprocessing import PartResult, preprocess

    result = preprocess(given)
    if isinstance(result, PartResult):
        return result  # the job of the last part logs the artifact
    metrics: dict[str, float] = {"rejected_clips": sum(result.rejected.values())}
    for split, summary in result.splits.items():
        metrics |= {f"{split}_clips": summary.clips, f"{split}_hours": summary.hours}
    made = {} if result.url else {"artifact": log_artifact(project, result.artifact_name, result.artifact).key}
    _tell(run, metrics, made)
    return result


def train_in(project: Project, run: Run | None, given: TrainParameters) -> JobResult:
    """Fine-tune on an artifact of the project, and log the model to it. Several processes that torchrun has started do
    this together.

    The run shows metrics while it trains, gets the results on validation and test in the end, as the model does, and
    the output `model`.
    Raises what `train` raises, and TransientError or PermanentError where the platform fails or refuses.
    """
    from asr_fine_tuner.joining import joined_ranks

    with joined_ranks() as ranks:
        consumed = None
        if name := _artifact_of_project(given):
            consumed, folder = ranks.from_first_of_node(lambda: _fetched(project, name))
            given = given.model_copy(update={"artifact_name": str(folder)})
        from asr_fine_tuner.training import train

        result = train(given, RunTracker(run) if run is not None else None)
        ranks.from_first(lambda: _log_trained(project, run, result, consumed))
    return result


def _fetched(project: Project, name: str) -> tuple[str, Path]:
    """The key and the folder of an artifact."""
    artifact = find_artifact(project, name)
    return artifact.key, fetch_artifact(artifact)


def _log_trained(project: Project, run: Run | None, result: TrainResult, consumed: str | None) -> None:
    from asr_fine_tuner.checkpoint_files import RESULTS_NAME
    from asr_fine_tuner.model_folder import published_files
    from asr_fine_tuner.results import read_results

    # Whoever may read the model in the project may read the artifact's transcripts there.
    files = published_files(result.model_dir, with_transcripts=True)
    results = read_results(result.model_dir / RESULTS_NAME)
    model = log_model(project, result.model_name.rpartition("/")[2], results, result.model_dir, files)
    metrics = {**result.metrics, "steps": result.steps, "best_step": result.best_step}
    with platform_errors(f"metrics of model {model.key}"):
        model.log_metrics(metrics, overwrite=True)
    _tell(run, metrics, {"model": model.key}, consumed)


def _artifact_of_project(given: TrainParameters) -> str | None:
    """The name or key of the artifact in the project; None where it is a folder, on the Hub, or not told."""
    name = given.artifact_name
    if name is None and given.dataset_name and given.language_code:
        name = default_artifact_name(given.model_id, given.dataset_name, given.language_code, given.task)
    return None if name is None or ("/" in name and not name.startswith("store://")) else name


def _tell(run: Run | None, metrics: Mapping[str, float], made: Mapping[str, str], consumed: str | None = None) -> None:
    """Show in the run what came out of it. made: output -> key. consumed: key of the artifact that it was made of."""
    if run is None:
        return
    with platform_errors(f"run {run.key}"):
        run.log_metrics(metrics, overwrite=True)
        run.refresh()
        run.status.outputs = {**(run.status.outputs or {}), **made}
        if consumed is not None:
            run.add_relationship("consumes", consumed)
        run.save(update=True)


def _place() -> tuple[Project, Run]:
    """The project and the run that this container was started for."""
    try:
        project, run = os.environ["PROJECT_NAME"], os.environ["RUN_ID"]
    except KeyError as error:
        raise PermanentError(
            given=f"no {error.args[0]} in the environment",
            expected="a container that DigitalHub has started",
            action="run python -m jobs.preprocess or jobs.train elsewhere",
        ) from None
    # The SDK writes credentials that it has renewed to a file in HOME, which is on the volume, and keeps them in memory
    # where it cannot. It reads this when it is imported.
    os.environ.setdefault("DH_CONFIG", "/dev/null/dhcore.ini")
    import digitalhub

    with platform_errors(f"run {run} of project {project}"):
        return digitalhub.get_project(project), digitalhub.get_run(run, project=project)


def main(argv: Sequence[str]) -> int:
    """Do the job that the first argument names with the parameters after it; returns the exit code."""
    match argv:
        case ["preprocess", *flags]:
            return run_job("preprocess", PreprocessParameters, lambda given: preprocess_in(*_place(), given), flags)
        case ["train", *flags]:
            return run_job("train", TrainParameters, lambda given: train_in(*_place(), given), flags)
    sys.stderr.write(f"usage: python -m {__spec__.name} preprocess|train [--PARAMETER VALUE ...]\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
