"""A list of checks that goes on after a failure, so that one run shows all problems."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Generic, Literal, TypeVar

from rich.console import Console
from rich.text import Text

from asr_fine_tuner.errors import ExitCode, InterruptedJob, JobError
from asr_fine_tuner.stop import raise_if_stopped

logger = logging.getLogger(__name__)
T = TypeVar("T")

Status = Literal["ok", "failed", "not checked"]

_STYLES: dict[Status, str] = {"ok": "green", "failed": "bold red", "not checked": "yellow"}
_ACTION = "to do"


@dataclass(frozen=True, slots=True)
class Check:
    """found: what there is, or why it was not looked at. action: what to do, for a failed one."""

    name: str
    status: Status
    found: str
    action: str | None = None


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """A check that is fine: what was found, in words and as a value for the checks after it."""

    text: str
    value: T


class NotChecked(Exception):
    """Raised by a check that cannot be made, with the reason."""


def needed(value: T | None, what: str) -> T:
    """A value of an earlier check.

    Raises:
        NotChecked: that check failed.
    """
    if value is None:
        raise NotChecked(f"needs {what}")
    return value


class Checklist:
    """Makes the checks called `names`, one at a time and in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._made: dict[str, Check] = {}
        self._exit_codes: set[ExitCode] = set()
        self._left_because = "not come to"

    def run(self, name: str, examine: Callable[[], Found[T]]) -> T | None:
        """What `examine` found; None when it failed or could not be made.

        Raises:
            InterruptedJob: SIGTERM or SIGINT.
        """
        raise_if_stopped(f"the check {name!r} was not made")
        try:
            found = examine()
        except InterruptedJob:
            raise
        except JobError as error:
            self.fail(name, error)
            return None
        except NotChecked as reason:
            self._add(Check(name, "not checked", str(reason)))
            return None
        self._add(Check(name, "ok", found.text))
        return found.value

    def fail(self, name: str, error: JobError) -> None:
        self._exit_codes.add(error.exit_code)
        self._add(Check(name, "failed", f"{error.given}; expected: {error.expected}", error.action))

    def leave(self, error: JobError, because: str) -> None:
        """Make no more checks; `because` is what the list says of those left."""
        self._exit_codes.add(error.exit_code)
        self._left_because = because

    @property
    def checks(self) -> list[Check]:
        """Every check, those that were not come to included."""
        return [self._made.get(name, Check(name, "not checked", self._left_because)) for name in self._names]

    @property
    def exit_code(self) -> ExitCode:
        """Interrupted; else permanent when anything failed for good, as trying again will not help; else transient."""
        for code in (ExitCode.INTERRUPTED, ExitCode.PERMANENT, ExitCode.TRANSIENT):
            if code in self._exit_codes:
                return code
        return ExitCode.DONE

    def as_json(self) -> list[dict[str, str | None]]:
        return [asdict(check) for check in self.checks]

    def show(self) -> None:
        """All checks on stderr. Lines are not wrapped: commands in them are there to be copied."""
        console = Console(stderr=True)
        width = max(map(len, self._names)) + 2
        for check in self.checks:
            line = Text(f"{check.status:<13}", _STYLES[check.status])
            console.print(line.append(f"{check.name:<{width}}", "bold").append(check.found, "default"), soft_wrap=True)
            if check.action:
                console.print(f"{'':13}{_ACTION:>{width - 2}}  {check.action}", soft_wrap=True, highlight=False)

    def _add(self, check: Check) -> None:
        self._made[check.name] = check
        logger.info("%s: %s", check.name, check.status)
