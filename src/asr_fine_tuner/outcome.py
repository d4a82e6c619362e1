"""How a job ends: an exit code, one JSON object as the last line of stdout, and on Kubernetes a termination message."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, cast

from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.errors import ExitCode, InterruptedJob, JobError, PermanentError
from asr_fine_tuner.files import is_full_disk
from asr_fine_tuner.launch import is_first_process
from asr_fine_tuner.logs import output_on_stderr, redact, without_controls
from asr_fine_tuner.parameters import JobParameters
from asr_fine_tuner.platform_folders import failure_file
from asr_fine_tuner.stop import allow_grace, stop_on_signals

logger = logging.getLogger(__name__)
P = TypeVar("P", bound=JobParameters)

# The file that Kubernetes mounts for a container's last words, of which it keeps 4096 bytes. `kubectl describe pod`
# shows them.
_TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_BYTES = 4096
_TOLD_BYTES = 1300  # of what was given, of what was expected and of what to do each: three of them and a head fit


class JobResult(Protocol):
    def as_json(self) -> Mapping[str, object]:
        """What the last line of stdout tells. A report of failures has its own `status` and `exit_code`."""
        ...


def run_job(
    job: str,
    kind: type[P],
    run: Callable[[P], JobResult],
    argv: Sequence[str],
    on_refused: Callable[[PermanentError], JobResult] | None = None,
) -> int:
    """Parse the parameters, run the job and report how it ended; returns the exit code.

    on_refused: makes the result when the parameters are wrong, which otherwise is told as any failure.
    """

    def work() -> JobResult:
        try:
            # Help is for people: it goes where they expect it.
            with contextlib.redirect_stdout(sys.__stdout__ or sys.stderr):
                parameters = read_parameters(kind, f"python -m jobs.{job}", argv)
        except PermanentError as error:
            if on_refused is None:
                raise
            return on_refused(error)
        allow_grace(parameters.grace_period)
        return run(parameters)

    # The libraries print to stdout here and there; the last line of stdout has to be ours.
    with output_on_stderr():
        code, outcome = outcome_of(job, work)
    _report(job, outcome, code)
    # While the interpreter ends, a second Ctrl-C would put its own exit code in place of this one.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return int(code)


def outcome_of(job: str, work: Callable[[], JobResult]) -> tuple[ExitCode, Mapping[str, object]]:
    """Do the work of a job: signals ask it to stop, and what it returns or raises becomes an exit code and an outcome
    with `status`, and where it failed `error`."""

    def grace_is_over() -> None:
        logger.error("%s stopped: the grace time is over; what was finished is kept", job)
        _report(job, {"status": "interrupted"}, ExitCode.INTERRUPTED)

    # OpenMP's threads spin while they wait, unless told so before torch is loaded: where another process wants a core,
    # two spinning threads took 4 to 7 times as long for a training step as two that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _make_temporary_folder()
    try:
        with stop_on_signals(grace_is_over):
            outcome = {"status": "done", **work().as_json()}
            return ExitCode(cast("int", outcome.get("exit_code", ExitCode.DONE))), outcome
    except JobError as error:
        return _failed(job, error)
    except KeyboardInterrupt:
        logger.error("%s stopped at once by a second Ctrl-C; what was finished is kept", job)
        return ExitCode.INTERRUPTED, {"status": "interrupted"}
    except Exception as error:  # noqa: BLE001 - the last resort: told as a bug, with its traceback
        if explained := _of_the_machine(error):
            return _failed(job, explained)
        logger.error("this is a bug, please report it:\n%s", traceback.format_exc())
        return ExitCode.BUG, {"status": "failed", "error": {"kind": type(error).__name__, "given": str(error)}}


def _of_the_machine(error: Exception) -> PermanentError | None:
    """What an error says about the machine the job runs on; None when it is about the program."""
    where = getattr(error, "filename", None) or "the output folder, HF_HOME or TMPDIR"
    if is_full_disk(error):
        return PermanentError(
            given=f"the disk is full: {error}",
            expected=f"room for what is written to {where}",
            action="free space or use a larger volume, then run the same command again: it continues",
        )
    if isinstance(error, FileNotFoundError) and not _has_temporary_folder():
        return PermanentError(
            given=error.strerror or str(error),
            expected="a folder for temporary files that this user may write",
            action="give a volume to write to (in the container images it is mounted at /data), or set TMPDIR",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return PermanentError(
            given=f"{where}: {error.strerror}",
            expected="a file or folder that this user may read, and write where the job writes",
            action="give another path (--output_dir, HF_HOME, TMPDIR, --dataset_name), or this user the right to it",
        )
    return None


def _failed(job: str, error: JobError) -> tuple[ExitCode, Mapping[str, object]]:
    logger.error("%s stopped: %s", job, error)
    told = {"given": error.given, "expected": error.expected, "action": error.action}
    status = "interrupted" if isinstance(error, InterruptedJob) else "failed"
    return error.exit_code, {"status": status, "error": {"kind": type(error).__name__, **told}}


def _make_temporary_folder() -> None:
    """On a new volume TMPDIR is not there yet, and Python would take another folder, which may be read-only."""
    if folder := os.environ.get("TMPDIR"):
        # Where this fails, the parameters are still read and --help is still shown; what needs the folder says so.
        with contextlib.suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


def _report(job: str, outcome: Mapping[str, object], code: ExitCode) -> None:
    line = redact(json.dumps({"job": job, **outcome, "exit_code": int(code)}, ensure_ascii=False))
    if is_first_process():
        print(line, file=sys.__stdout__, flush=True)
    error = outcome.get("error")
    told = _told(job, cast("Mapping[str, str]", error), code) if error else line
    _write_termination_message(_cut(told, _TERMINATION_BYTES), code)
    if code != ExitCode.DONE and is_first_process() and (failure := failure_file()):
        with contextlib.suppress(OSError):  # the log has it all the same
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(told, encoding="utf-8", errors="replace")


def _told(job: str, error: Mapping[str, str], code: ExitCode) -> str:
    """An error for people: what was given may be long, and must not push out what to do."""
    given, expected, action = (
        _cut(without_controls(redact(error.get(part, ""))), _TOLD_BYTES) for part in ("given", "expected", "action")
    )
    if code == ExitCode.BUG:
        return f"{job} ended with {int(code)}, a bug: {error['kind']}: {given}\n  to do:    report it with its log"
    return f"{job} ended with {int(code)}: {given}\n  expected: {expected}\n  to do:    {action}"


def _cut(text: str, size: int) -> str:
    """`text` without its end where it takes more than `size` bytes in UTF-8."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= size else encoded[: size - 3].decode("utf-8", "ignore") + "…"


def _write_termination_message(message: str, code: ExitCode) -> None:
    """Write the container's last words; elsewhere the file is not there, and is not made."""
    with contextlib.suppress(OSError), _TERMINATION_LOG.open("r+b") as file:
        # Of several processes the one that fails ends the others with SIGTERM: what it wrote tells more.
        if code == ExitCode.INTERRUPTED and file.read(1):
            return
        file.seek(0)
        file.truncate()
        file.write(message.encode("utf-8", "replace"))
