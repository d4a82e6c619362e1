"""How a job ends: the exit code, the last line of stdout, and what is told on stderr."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from asr_fine_tuner.errors import InterruptedJob, JobError, PermanentError, TransientError
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.stop import raise_if_stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOLD = {"given": "this", "expected": "that", "action": "do so"}


@dataclass(frozen=True)
class Ended:
    code: int
    result: dict[str, Any]
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Result:
    steps: int = 3

    def as_json(self) -> dict[str, object]:
        return {"steps": self.steps, "text": "è"}


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a job that does `work` and tell how it ended."""
    monkeypatch.chdir(tmp_path)

    def run(work: Callable[[TrainParameters], Result], *argv: str) -> Ended:
        code = run_job("train", TrainParameters, work, argv)
        out, err = capfd.readouterr()
        return Ended(code, json.loads(out.splitlines()[-1]), out, err)

    return run


def raising(error: BaseException) -> Callable[[TrainParameters], Result]:
    def work(_: TrainParameters) -> Result:
        raise error

    return work


def test_done(ended: Callable[..., Ended]) -> None:
    done = ended(lambda given: Result(given.max_steps), "--max_steps", "7")
    assert done.code == 0
    assert done.result == {"job": "train", "status": "done", "steps": 7, "text": "è", "exit_code": 0}
    assert done.stderr == ""


def test_a_path_that_cannot_be_used_is_told(ended: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(_: TrainParameters) -> Result:
        (tmp_path / "file" / "below").mkdir()
        return Result()

    failed = ended(work)
    assert failed.code == 2
    assert str(tmp_path / "file" / "below") in failed.result["error"]["given"]
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (PermanentError(**TOLD), 2, "failed"),
        (TransientError(**TOLD), 75, "failed"),
        (InterruptedJob(**TOLD), 143, "interrupted"),
    ],
)
def test_expected_failures_are_told_without_a_traceback(
    error: JobError, code: int, status: str, ended: Callable[..., Ended]
) -> None:
    failed = ended(raising(error))
    assert failed.code == failed.result["exit_code"] == code
    assert failed.result["status"] == status
    assert failed.result["error"] == {"kind": type(error).__name__, **TOLD}
    assert "Traceback" not in failed.stderr
    for text in TOLD.values():
        assert text in failed.stderr


def test_a_bug_is_told_with_its_traceback(ended: Callable[..., Ended]) -> None:
    failed = ended(raising(KeyError("lost")))
    assert failed.code == failed.result["exit_code"] == 1
    assert failed.result["error"] == {"kind": "KeyError", "given": "'lost'"}
    assert "Traceback" in failed.stderr
    assert "this is a bug" in failed.stderr


def test_wrong_parameters_never_start_the_job(ended: Callable[..., Ended]) -> None:
    failed = ended(raising(AssertionError("started")), "--max_steps", "0")
    assert (failed.code, failed.result["error"]["given"]) == (2, "--max_steps: '0'")


def test_a_signal_interrupts(ended: Callable[..., Ended]) -> None:
    def work(_: TrainParameters) -> Result:
        os.kill(os.getpid(), signal.SIGTERM)
        raise_if_stopped("a checkpoint is kept")
        return Result()

    stopped = ended(work)
    assert (stopped.code, stopped.result["status"]) == (143, "interrupted")
    assert "SIGTERM" in stopped.result["error"]["given"]


def test_a_second_ctrl_c_interrupts_at_once(ended: Callable[..., Ended]) -> None:
    def work(_: TrainParameters) -> Result:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return Result()

    assert ended(work).code == 143


def test_what_libraries_print_goes_to_stderr(ended: Callable[..., Ended]) -> None:
    def work(_: TrainParameters) -> Result:
        print("chatter of a library")
        return Result()

    done = ended(work)
    assert len(done.stdout.splitlines()) == 1
    assert "chatter of a library" in done.stderr


def test_tokens_are_in_neither_stream(ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary0123456789")
    for error in (PermanentError(given="canary0123456789", expected="", action=""), ValueError("canary0123456789")):
        failed = ended(raising(error))
        assert "canary0123456789" not in failed.stdout + failed.stderr
        assert "<HF_TOKEN>" in failed.stdout


def test_errors_cross_process_borders() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(TransientError(**TOLD)))  # noqa: S301
    assert type(error) is TransientError
    assert (error.given, error.expected, error.action) == tuple(TOLD.values())
    assert int(error.exit_code) == 75
