"""A DigitalHub project: what the two jobs read from it and log to it, and what its failures mean."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from asr_fine_tuner.checkpoint_files import RESULTS_NAME
from asr_fine_tuner.errors import JobError, PermanentError, TransientError, is_transient_status
from asr_fine_tuner.files import exclusive, full_disk_explained, mismatches
from asr_fine_tuner.locations import LIBRARY, ArtifactHome
from asr_fine_tuner.manifest import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from digitalhub.entities.artifact._base.entity import Artifact
    from digitalhub.entities.model._base.entity import Model
    from digitalhub.entities.project._base.entity import Project
    from digitalhub.entities.run._base.entity import Run

    from asr_fine_tuner.results import TrainingResults
    from asr_fine_tuner.tracking import SamplePrediction

logger = logging.getLogger(__name__)
E = TypeVar("E", "Artifact", "Model")

_KEY_OF_VERSION = re.compile(r"store://.+/.+:.+")
# The state of an artifact or model whose files have all arrived.
_READY = "READY"
# By these an upload that failed, of which the SDK tells in words only, would fail again.
_REFUSED = re.compile(r"\((401|403|404|AccessDenied|NoSuchBucket|InvalidAccessKeyId|SignatureDoesNotMatch)\)")


def log_artifact(project: Project, name: str, folder: Path) -> Artifact:
    """Upload an artifact as a new version of `name`, unless the newest version is this one.

    Raises PermanentError where the platform refuses, TransientError where it cannot be reached or an upload fails.
    """
    with platform_errors(f"artifact {name} of project {project.name}"):
        newest = _newest_ready(project.get_artifact_versions(name))
        if newest is not None and _holds(newest, folder / MANIFEST_NAME):
            logger.info("the project has this artifact already: %s", newest.key)
            return newest
        logger.info("uploading the artifact to the project %s", project.name)
        return project.log_artifact(
            name=name, kind="artifact", source=str(folder), description=f"Log-mel features and labels, by {LIBRARY}"
        )


def find_artifact(project: Project, name_or_key: str) -> Artifact:
    """The newest whole version of an artifact by its name, or the very version that a key (`store://...`) names.

    Raises PermanentError where there is none, TransientError where the platform cannot be reached.
    """
    with platform_errors(f"artifact {name_or_key} of project {project.name}"):
        if not name_or_key.startswith("store://"):
            versions = project.get_artifact_versions(name_or_key)
        elif _KEY_OF_VERSION.fullmatch(name_or_key):
            versions = [project.get_artifact(name_or_key)]
        else:
            versions = []
    if newest := _newest_ready(versions):
        return newest
    raise PermanentError(
        given=f"no artifact {name_or_key!r} in the project {project.name}"
        + (f", but {len(versions)} whose upload has not ended well" if versions else ""),
        expected="the name of one that the preprocess job has logged, or the key of a version, which ends in its id",
        action="correct artifact_name, or run the preprocess job with it first",
    )


def fetch_artifact(artifact: Artifact) -> Path:
    """The folder of a version of an artifact: downloaded into the Hugging Face cache and compared with its manifest,
    unless it was before, or the preprocess job has made it there.

    Raises:
        PermanentError: it is not whole, or the disk is full.
        TransientError: the platform cannot be reached, or another job is downloading it.
    """
    from huggingface_hub import cached_assets_path

    what = f"artifact {artifact.key}"
    with platform_errors(what):
        made_here = ArtifactHome.of(artifact.name).artifact
        if (made_here / MANIFEST_NAME).is_file() and _holds(artifact, made_here / MANIFEST_NAME):
            return made_here
        home = cached_assets_path(LIBRARY, namespace="digitalhub", subfolder=artifact.id)
        fetched = home / "artifact"
        with exclusive(home / "lock", what=what), full_disk_explained(home):
            if not fetched.exists():
                # The SDK takes a destination with a dot in its last part for a file.
                staged = home / "download"
                shutil.rmtree(staged, ignore_errors=True)
                logger.info("downloading %s", what)
                artifact.download(str(staged), overwrite=True)
                _refuse_damaged(staged, what)
                staged.rename(fetched)
        return fetched


def log_model(project: Project, name: str, results: TrainingResults, folder: Path, files: Sequence[str]) -> Model:
    """Upload `files` of a finished model's folder as a new version of the model `name`, of the kind huggingface,
    unless the newest version is of the same run.

    Raises PermanentError where the platform refuses, TransientError where it cannot be reached or an upload fails.
    """
    with platform_errors(f"model {name} of project {project.name}"):
        model = _newest_ready(project.get_model_versions(name))
        if model is not None and _holds(model, folder / RESULTS_NAME):
            logger.info("the project has this model already: %s", model.key)
            return model
        logger.info("uploading the model to the project %s", project.name)
        with _folder_of(folder, files) as source:
            return project.log_huggingface(
                name=name,
                source=str(source),
                description=f"{results.model.id} fine-tuned for {results.language} on {results.dataset.id}, "
                f"by {LIBRARY}",
                framework="transformers",
                algorithm="whisper",
                base_model=results.model.id,
                parameters=dict(results.hyperparameters),
            )


@contextlib.contextmanager
def _folder_of(folder: Path, files: Sequence[str]) -> Iterator[Path]:
    """A folder with links to `files` of `folder`, by the same names: of a list of files the platform would take the
    last parts of the names, and so put an adapter beside the weights that it is merged into."""
    with tempfile.TemporaryDirectory() as staged:
        for file in files:
            link = Path(staged, file)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to((folder / file).absolute())
        yield Path(staged)


class RunTracker:
    """Shows a run's numbers on the platform while it trains.

    Each metric becomes a list, and `train_step` and `eval_step` the steps that belong to the values. They are sent from
    a thread of their own, each list as a whole: no optimizer step waits for the platform, and what it did not take
    comes with the next value.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._values: dict[str, list[float]] = {}
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
        self._failing = False

    @property
    def url(self) -> str | None:
        return None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        steps = {f"{name.partition('/')[0]}/step": step for name in metrics}
        # A metric's name becomes a part of a URL.
        logged = {name.replace("/", "_"): value for name, value in {**steps, **metrics}.items() if math.isfinite(value)}
        for name, value in logged.items():
            self._values.setdefault(name, []).append(value)
        self._sender.submit(self._send, {name: list(self._values[name]) for name in logged})

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None:
        """The platform has no tables; `predictions.jsonl` is with the model."""

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:  # noqa: ARG002
        """Wait until the metrics are delivered, or not taken once more. The summary is for whoever logs the model."""
        self._sender.shutdown(cancel_futures=True)
        self._send(self._values)

    def _send(self, values: Mapping[str, list[float]]) -> None:
        try:
            for name, series in values.items():
                self._run.log_metric(name, series, overwrite=True)
            self._failing = False
        except Exception as error:  # noqa: BLE001 - whatever happens to the platform, the training goes on
            if not self._failing:
                logger.warning("the platform does not take the metrics of this run now: %s", error)
            self._failing = True


@contextlib.contextmanager
def platform_errors(subject: str) -> Iterator[None]:
    """Within the block, failures of the platform's client become the errors of a job.

    subject: what is read or written, for the message.
    """
    try:
        yield
    except Exception as error:
        if translated := _translate(error, subject):
            raise translated from error
        raise


def _translate(error: Exception, subject: str) -> JobError | None:
    from botocore.exceptions import BotoCoreError, NoCredentialsError
    from botocore.exceptions import ClientError as StorageError
    from digitalhub.utils import exceptions

    reason = str(error).strip().split("\n")[0]
    status = _http_status(error)
    match error:
        case JobError():
            return None
        case exceptions.EntityError() if not _REFUSED.search(str(error)):
            return TransientError(
                given=f"{subject}: the upload failed ({reason})",
                expected="storage of the project that takes it",
                action="submit again: what was computed is kept where HF_HOME and output_dir outlive the run",
            )
        case _ if is_transient_status(status):
            return TransientError(
                given=f"{subject}: the platform answers {status} ({reason})",
                expected="an answer that can be used",
                action="submit again after a while",
            )
        case _ if status is not None or isinstance(error, exceptions.EntityError):
            return PermanentError(
                given=f"{subject}: the platform refuses it ({reason})",
                expected="something that is there, and that this run may read and write",
                action="check its name and the rights of whoever submits the run",
            )
        case exceptions.ConfigError() | exceptions.ClientError() | NoCredentialsError():
            return PermanentError(
                given=f"{subject}: {reason}",
                expected="the address and the credentials of the platform and of its storage",
                action="they come from the platform; on another machine log in with its command line first",
            )
        case exceptions.BackendError() | ConnectionError() | TimeoutError() | BotoCoreError() | StorageError():
            return TransientError(
                given=f"{subject}: the platform cannot be reached ({reason})",
                expected="an answer from it and from its storage",
                action="submit again after a while",
            )
    return None


def _http_status(error: BaseException) -> int | None:
    """What the platform or its storage answered, of an error or of what it was raised for."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # of botocore
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        if response is not None:  # of requests
            return int(response.status_code)
        cause = cause.__cause__ or cause.__context__
    return None


def _newest_ready(versions: Sequence[E]) -> E | None:
    ready = [version for version in versions if version.status.state == _READY]
    return max(ready, key=lambda version: str(version.metadata.created), default=None)


def _holds(version: Artifact | Model, file: Path) -> bool:
    """Whether a version has a file of this name with these bytes. It tells one artifact (by its manifest) or one run
    (by its results) from any other, and is small."""
    from botocore.exceptions import ClientError as StorageError
    from digitalhub import get_store_by_entity

    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, file.name)
        try:
            get_store_by_entity(version).download(f"{version.spec.path}{file.name}", there)
        except StorageError as error:
            if _http_status(error) == 404:  # another kind of thing has the same name
                return False
            raise
        return there.read_bytes() == file.read_bytes()


def _refuse_damaged(folder: Path, what: str) -> None:
    problems = mismatches(folder, read_manifest(folder).files)
    if problems:
        raise PermanentError(
            given=f"{what}, as it was downloaded: {'; '.join(problems)}",
            expected="the files as the preprocess job wrote them",
            action="delete this version in the project and run the preprocess job again, which logs it anew",
        )
