"""What the jobs raise for expected failures, and the exit code that each one becomes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes that a scheduler can act on."""

    DONE = 0
    BUG = 1
    PERMANENT = 2
    TRANSIENT = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later
    INTERRUPTED = 143  # 128 + SIGTERM, what a shell reports for a terminated process


class JobError(Exception):
    """An expected failure, told without a traceback.

    given: what the job was given or found.
    expected: what it needed instead.
    action: what the person who submitted the job can do.
    """

    exit_code = ExitCode.PERMANENT

    def __init__(self, *, given: str, expected: str, action: str) -> None:
        super().__init__(f"{given}\n  expected: {expected}\n  to do:    {action}")
        self.given = given
        self.expected = expected
        self.action = action

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.given, self.expected, self.action)


def is_transient_status(status: int | None) -> bool:
    """Whether an HTTP status may be another one later: too early, too many requests, and what servers and proxies
    answer while they are down."""
    return status is not None and (status in (408, 425, 429) or status >= 500)


def _rebuild(kind: type[JobError], given: str, expected: str, action: str) -> JobError:
    """Errors cross process borders; keyword-only arguments do not survive the default pickling of exceptions."""
    return kind(given=given, expected=expected, action=action)


class PermanentError(JobError):
    """Parameters, data or authorisation: the same command fails again."""


class TransientError(JobError):
    """Network or a busy resource: the same command may succeed later."""

    exit_code = ExitCode.TRANSIENT


class InterruptedJob(JobError):
    """SIGTERM or SIGINT arrived; what was finished is kept and the same command continues."""

    exit_code = ExitCode.INTERRUPTED
