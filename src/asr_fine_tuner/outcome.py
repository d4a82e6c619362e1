"""How a job ends: an exit code, and one JSON object as the last line of stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.errors import ExitCode, InterruptedJob, JobError
from asr_fine_tuner.logs import log_to_stderr, redact
from asr_fine_tuner.parameters import JobParameters
from asr_fine_tuner.stop import stop_on_signals

logger = logging.getLogger(__name__)
P = TypeVar("P", bound=JobParameters)


class JobResult(Protocol):
    def as_json(self) -> Mapping[str, object]: ...


def run_job(job: str, kind: type[P], run: Callable[[P], JobResult], argv: Sequence[str]) -> int:
    """Parse the parameters, run the job and report how it ended; returns the exit code."""
    outcome: Mapping[str, object]
    # The libraries print to stdout here and there; the last line of stdout has to be ours.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            log_to_stderr()
            with stop_on_signals():
                # Help is for people: it goes where they expect it.
                with contextlib.redirect_stdout(sys.__stdout__ or sys.stderr):
                    parameters = read_parameters(kind, f"python -m jobs.{job}", argv)
                outcome = {"status": "done", **run(parameters).as_json()}
            code = ExitCode.DONE
        except JobError as error:
            logger.error("%s stopped: %s", job, error)
            code = error.exit_code
            status = "interrupted" if isinstance(error, InterruptedJob) else "failed"
            outcome = {
                "status": status,
                "error": {
                    "kind": type(error).__name__,
                    "given": error.given,
                    "expected": error.expected,
                    "action": error.action,
                },
            }
        except KeyboardInterrupt:
            logger.error("%s stopped at once by a second Ctrl-C", job)
            code, outcome = ExitCode.INTERRUPTED, {"status": "interrupted"}
        except Exception as error:  # noqa: BLE001 - the last resort: told as a bug, with its traceback
            logger.error("this is a bug, please report it:\n%s", traceback.format_exc())
            code = ExitCode.BUG
            outcome = {"status": "failed", "error": {"kind": type(error).__name__, "given": str(error)}}
    line = {"job": job, **outcome, "exit_code": int(code)}
    print(redact(json.dumps(line, ensure_ascii=False)), flush=True)  # noqa: T201
    return int(code)
