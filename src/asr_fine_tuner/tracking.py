"""Weights & Biases: a run that follows the job, and never stops it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from asr_fine_tuner.errors import ExitCode, PermanentError, TransientError

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

DEFAULT_PROJECT = "asr-fine-tuner"

# Seconds that a server which is away may keep the job. What is not uploaded by the end stays on disk for `wandb sync`.
_PATIENCE = {"login": 10.0, "init": 20.0, "finish": 60.0}
_STEP = "step"


@dataclass(frozen=True, slots=True)
class SamplePrediction:
    """One row of the table of sample predictions. base: what the untouched model heard. wer: of the prediction."""

    id: str
    reference: str
    base: str | None
    prediction: str
    wer: float | None


class Tracker(Protocol):
    """Where a run's numbers go. No method raises: what cannot be recorded is said once in the log."""

    @property
    def url(self) -> str | None:
        """Where people see the run; None where nobody can yet."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics (`train/loss`, `eval/wer`, ...) after an optimizer step; a continued run may repeat steps."""
        ...

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None: ...

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:
        """Record the final result and the job's exit code, and wait a bounded time until it is delivered."""
        ...


def start_tracking(
    *,
    run_id: str,
    name: str,
    parameters: Mapping[str, object],
    dataset_summary: Mapping[str, object],
    directory: Path,
) -> Tracker:
    """Start or continue the run `run_id`: online when `WANDB_API_KEY` is set, offline when `WANDB_MODE` says so.

    Only the parameters and the summary given here are recorded, with loss curves and the use of the hardware: no
    source code, no command line, no host or user name, no console output. `WANDB_RUN_ID`, `WANDB_NAME`,
    `WANDB_PROJECT` and `WANDB_DIR` win over what is given. When the server cannot be reached within half a minute
    (`WANDB_LOGIN_TIMEOUT`, `WANDB_INIT_TIMEOUT`) the run is kept offline, in a folder below `directory` that
    `wandb sync` uploads.
    """
    mode = _mode(os.environ)
    if mode is None:
        return NoTracker()
    folder = Path(os.environ.get("WANDB_DIR", directory))
    _set_defaults(folder)
    import wandb

    def begin(mode: str) -> wandb.Run:
        folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            id=os.environ.get("WANDB_RUN_ID", run_id),
            name=os.environ.get("WANDB_NAME", name),
            config={**parameters, "dataset": dict(dataset_summary)},
            dir=str(folder),
            mode="offline" if mode == "offline" else "online",
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(
                login_timeout=_patience("login"),
                init_timeout=_patience("init"),
                finish_timeout=_patience("finish"),
                finish_timeout_raises=True,
                console="off",
                disable_git=True,
                host="undisclosed",
                label_disable=True,
                save_code=False,
                silent=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )

    try:
        return _WandbTracker(begin(mode))
    except Exception as error:  # noqa: BLE001 - whatever keeps W&B from starting, the training can go on
        logger.warning("W&B cannot be used %s: %s", mode, error)
        if mode == "offline":
            return NoTracker()
    try:
        # The failed attempt still holds the run's id in W&B's service process.
        wandb.teardown()
        tracker = _WandbTracker(begin("offline"))
    except Exception as error:  # noqa: BLE001 - as above
        logger.warning("W&B cannot be used offline either: %s", error)
        return NoTracker()
    return tracker


def check_tracking() -> str:
    """How a run would be tracked now, in words; signs in where that is online.

    A job whose tracking fails goes on without. Before it, whoever set a key wants to know.

    Raises:
        PermanentError: W&B does not accept WANDB_API_KEY.
        TransientError: W&B cannot be reached.
    """
    mode = _mode(os.environ)
    if mode is None:
        return "nothing is tracked: neither WANDB_API_KEY nor WANDB_MODE=offline is set"
    if mode == "offline":
        return "tracked offline, for `wandb sync`"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from wandb.errors import AuthenticationError

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        wandb.Api(timeout=round(_patience("login")))
    except AuthenticationError as error:
        answer = getattr(error.__cause__, "response", None)
        if getattr(answer, "http_status", None) in (401, 403):
            raise PermanentError(
                given=f"WANDB_API_KEY, which {server} does not accept",
                expected="a key of an account there",
                action="correct WANDB_API_KEY, or set WANDB_MODE=offline or WANDB_MODE=disabled",
            ) from error
        raise TransientError(
            given=f"W&B at {server} cannot be reached: {error}",
            expected="an answer; the train job would keep its run offline",
            action="check the network and WANDB_BASE_URL, or set WANDB_MODE=offline",
        ) from error
    finally:
        wandb.teardown()
    return f"WANDB_API_KEY is accepted by {server}"


def _patience(phase: str) -> float:
    """W&B's own variable for it, which settings given in code would overrule; else ours."""
    return float(os.environ.get(f"WANDB_{phase.upper()}_TIMEOUT", _PATIENCE[phase]))


def _mode(environment: Mapping[str, str]) -> str | None:
    wanted = environment.get("WANDB_MODE", "").lower()
    if wanted in ("offline", "dryrun"):
        return "offline"
    if wanted == "disabled":
        return None
    if environment.get("WANDB_API_KEY"):
        return "online"
    if wanted:
        logger.warning("WANDB_MODE=%s needs WANDB_API_KEY, which is not set: nothing is tracked", wanted)
    return None


def _set_defaults(folder: Path) -> None:
    """What the client takes from the environment only, where nothing was chosen."""
    # Reports of W&B's own crashes go to W&B with stack frames of this process.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Tables are staged there until they are uploaded: beside the run that refers to them, not in a home folder that a
    # container may not have.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb" / "data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))


class NoTracker:
    """Keeps nothing."""

    @property
    def url(self) -> str | None:
        return None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None:
        pass

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:
        pass


class Trackers:
    """Several trackers, told the same."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    @property
    def url(self) -> str | None:
        return next((tracker.url for tracker in self._trackers if tracker.url), None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None:
        rows = list(rows)
        for tracker in self._trackers:
            tracker.log_predictions(step, rows)

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:
        for tracker in self._trackers:
            tracker.finish(summary, exit_code)


class _WandbTracker:
    def __init__(self, run: wandb.Run) -> None:
        self._run = run
        # What failed once is not tried again: the client may wait long for a server that is away.
        self._refused: set[str] = set()
        # Not W&B's own step, which only rises: a continued run goes back to its checkpoint and repeats some steps.
        run.define_metric(_STEP, hidden=True)
        run.define_metric("*", step_metric=_STEP)
        if self._offline:
            logger.info("W&B keeps this run offline; upload it with: wandb sync %s", self._folder)
        else:
            logger.info("W&B shows this run at %s", run.url)

    @property
    def url(self) -> str | None:
        return None if self._offline else self._run.url

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._attempt("metrics", lambda: self._run.log({**metrics, _STEP: step}))

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None:
        def record() -> None:
            import wandb

            columns: list[str | int] = [field.name for field in fields(SamplePrediction)]
            table = wandb.Table(columns=columns, data=[list(astuple(row)) for row in rows])
            self._run.log({"predictions": table, _STEP: step})

        self._attempt("sample predictions", record)

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:
        self._attempt("final result", lambda: self._run.summary.update(dict(summary)))
        if exit_code == ExitCode.INTERRUPTED:
            self._attempt("state", self._run.mark_preempting)
        self._attempt("rest of the run", lambda: self._run.finish(exit_code=exit_code))

    @property
    def _offline(self) -> bool:
        return self._run.settings.mode == "offline"

    @property
    def _folder(self) -> Path:
        return Path(self._run.dir).parent

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        if what in self._refused:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever happens to W&B, the training goes on
            self._refused.add(what)
            logger.warning(
                "W&B does not take the %s: %s; what it has so far is in %s, which `wandb sync` uploads",
                what,
                error,
                self._folder,
            )
