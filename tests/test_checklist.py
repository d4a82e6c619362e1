"""The checklist goes on after a failure, tells all checks, and chooses the exit code."""

from __future__ import annotations

import signal

import pytest

from asr_fine_tuner.checklist import Check, Checklist, Found, needed
from asr_fine_tuner.errors import ExitCode, InterruptedJob, PermanentError, TransientError
from asr_fine_tuner.stop import stop_on_signals

PERMANENT = PermanentError(given="a", expected="b", action="make " + "x" * 200)
TRANSIENT = TransientError(given="a", expected="b", action="c")
INTERRUPTED = InterruptedJob(given="a", expected="b", action="c")


def failing(error: Exception) -> Found[int]:
    raise error


def test_a_failure_stops_only_what_needs_it() -> None:
    checks = Checklist(["first", "second", "third", "fourth"])
    first = checks.run("first", lambda: failing(TRANSIENT))
    second = checks.run("second", lambda: Found("two", 2))
    assert checks.run("third", lambda: Found("sum", needed(first, "the first") + needed(second, "the second"))) is None
    assert checks.checks == [
        Check("first", "failed", "a; expected: b", "c"),
        Check("second", "ok", "two"),
        Check("third", "not checked", "needs the first"),
        Check("fourth", "not checked", "not come to"),
    ]
    assert checks.exit_code is ExitCode.TRANSIENT


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], ExitCode.DONE),
        ([TRANSIENT], ExitCode.TRANSIENT),
        ([TRANSIENT, PERMANENT], ExitCode.PERMANENT),
        ([PERMANENT, TRANSIENT], ExitCode.PERMANENT),
    ],
)
def test_the_worst_failure_decides_the_exit_code(errors: list[PermanentError], code: ExitCode) -> None:
    names = [str(number) for number in range(len(errors))]
    checks = Checklist(names)
    for name, error in zip(names, errors, strict=True):
        checks.fail(name, error)
    assert checks.exit_code is code
    checks.leave(INTERRUPTED, "interrupted")
    assert checks.exit_code is ExitCode.INTERRUPTED


def test_a_signal_is_seen_between_two_checks() -> None:
    checks = Checklist(["one"])
    with stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedJob):
            checks.run("one", lambda: Found("not reached", None))
    checks.leave(INTERRUPTED, "interrupted")
    assert checks.checks == [Check("one", "not checked", "interrupted")]


def test_a_bug_is_not_taken_for_a_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        Checklist(["one"]).run("one", lambda: Found("", 1 // 0))


def test_actions_are_shown_on_one_line_to_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checklist(["one", "another"])
    checks.fail("one", PERMANENT)
    checks.show()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["failed", "to", "not"]
    assert PERMANENT.action in lines[1]
