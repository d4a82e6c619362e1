"""How a job ends: the exit code, the last line of stdout, and what is told on stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
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


@pytest.fixture
def termination_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file as Kubernetes mounts it: there, empty, for everyone to write."""
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr("asr_fine_tuner.outcome._TERMINATION_LOG", log)
    return log


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda _: Result(7), '{"job": "train", "status": "done", "steps": 7, "text": "è", "exit_code": 0}'),
        (raising(PermanentError(**TOLD)), "train ended with 2: this\n  expected: that\n  to do:    do so"),
        (
            raising(TransientError(given="\x1b[31m\u202e", expected="è", action="again")),
            "train ended with 75: \\x1b[31m\\u202e\n  expected: è\n  to do:    again",
        ),
        (
            raising(KeyError("lost")),
            "train ended with 1, a bug: KeyError: 'lost'\n  to do:    report it with its log",
        ),
    ],
)
def test_last_words_for_kubernetes(
    work: Callable[[TrainParameters], Result], told: str, ended: Callable[..., Ended], termination_log: Path
) -> None:
    termination_log.write_text("of an earlier container, and longer than what comes now" * 9)
    ended(work)
    assert termination_log.read_text(encoding="utf-8") == told


def test_last_words_are_short_and_keep_what_to_do(ended: Callable[..., Ended], termination_log: Path) -> None:
    ended(raising(PermanentError(given="è" * 5000, expected="x" * 5000, action="do so")))
    assert len(termination_log.read_bytes()) <= 4096
    assert termination_log.read_text(encoding="utf-8").endswith("…\n  to do:    do so")


def test_last_words_hold_no_part_of_a_token(
    ended: Callable[..., Ended], termination_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary" * 400)
    ended(raising(PermanentError(given="canary" * 400, expected="", action="")))
    assert "canary" not in termination_log.read_text()


def test_a_stopped_process_leaves_the_words_of_the_one_that_failed(
    ended: Callable[..., Ended], termination_log: Path
) -> None:
    ended(raising(InterruptedJob(**TOLD)))
    assert termination_log.read_text().startswith("train ended with 143")
    termination_log.write_text("another rank failed")
    ended(raising(InterruptedJob(**TOLD)))
    assert termination_log.read_text() == "another rank failed"


def test_the_file_for_last_words_is_never_made(ended: Callable[..., Ended], termination_log: Path) -> None:
    termination_log.unlink()
    assert ended(raising(PermanentError(**TOLD))).code == 2
    assert not termination_log.exists()


def test_temporary_files_have_their_folder_on_a_new_volume(
    ended: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "volume" / "tmp", tmp_path / "train.log" / "below"):
        (tmp_path / "train.log").touch()
        monkeypatch.setenv("TMPDIR", str(folder))
        assert ended(lambda _: Result()).code == 0, "a job may not need it"
    assert (tmp_path / "volume" / "tmp").is_dir()


def test_a_machine_without_room_for_temporary_files_is_told(
    ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only container without a volume; libraries look for the folder when they are imported."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null/tmp"])

    def work(_: TrainParameters) -> Result:
        tempfile.gettempdir()
        return Result()

    failed = ended(work)
    assert failed.code == 2
    assert "/dev/null/tmp" in failed.result["error"]["given"]
    assert "TMPDIR" in failed.result["error"]["action"]
    monkeypatch.undo()
    assert ended(raising(FileNotFoundError(2, "No such file", "x"))).code == 1, "another file is missing"


def test_errors_cross_process_borders() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(TransientError(**TOLD)))  # noqa: S301
    assert type(error) is TransientError
    assert (error.given, error.expected, error.action) == tuple(TOLD.values())
    assert int(error.exit_code) == 75


def test_ctrl_c_while_the_interpreter_ends_does_not_change_the_exit_code(tmp_path: Path) -> None:
    script = """
import atexit, sys, time
from asr_fine_tuner.errors import InterruptedJob
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import TrainParameters

def work(parameters):
    # As libraries do that wait for their threads.
    atexit.register(lambda: (print("ending", flush=True), time.sleep(1)))
    raise InterruptedJob(given="", expected="", action="")

sys.exit(run_job("train", TrainParameters, work, []))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line == "ending\n":
            process.send_signal(signal.SIGINT)
    assert process.wait() == 143
