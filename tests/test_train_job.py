"""`python -m jobs.train` as a scheduler sees it: exit codes, the last line of stdout, signals, no secret anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import RunJob, StartJob
from filelock import FileLock
from loopback.hub import LoopbackHub
from loopback.hub_answers import Account
from tiny_training import changed, given_of, log_history, sigterm_at, weights_of
from wandb_log import read_run

from asr_fine_tuner import TrainParameters, train
from asr_fine_tuner.outcome import run_job as run_in_process

HF_CANARY = "hf_CanaryCanaryCanaryCanary"
WANDB_CANARY = "cafe0123456789abcdef0123456789abcdefcafe"


def _flags(parameters: TrainParameters) -> list[str]:
    """The command line that gives these parameters."""
    return [part for name, value in given_of(parameters).items() for part in (f"--{name}", str(value))]


def _outcome(parameters: TrainParameters, capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, last line of stdout and stderr of the job, run in this process."""
    capfd.readouterr()
    code = run_in_process("train", TrainParameters, train, _flags(parameters))
    printed = capfd.readouterr()
    line = json.loads(printed.out.splitlines()[-1])
    assert (line["job"], line["exit_code"]) == ("train", code)
    return code, line, printed.err


def _assert_told(line: dict[str, Any], stderr: str, given: str) -> None:
    assert line["status"] == "failed"
    assert given in line["error"]["given"]
    for part in ("given", "expected", "action"):
        assert line["error"][part] in stderr
    assert "Traceback" not in stderr


def test_a_missing_artifact_is_exit_code_2(
    parameters: TrainParameters, hf_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, line, stderr = _outcome(changed(parameters, artifact_name="nowhere"), capfd)
    assert code == 2
    _assert_told(line, stderr, "artifact 'nowhere'")
    assert "python -m jobs.preprocess" in line["error"]["action"]


def test_a_folder_in_use_is_exit_code_75(
    parameters: TrainParameters, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FileLock(tmp_path / "run" / "lock"):
        code, line, stderr = _outcome(parameters, capfd)
    assert code == 75
    _assert_told(line, stderr, "is being written by another job")


def test_a_hub_that_is_down_is_exit_code_75(
    parameters: TrainParameters,
    hub: LoopbackHub,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("HUB_PATIENCE_SECONDS", "0")
    hub.fail("/api/", 502)
    code, line, stderr = _outcome(changed(parameters, publish=True), capfd)
    assert code == 75
    _assert_told(line, stderr, "502")


def test_a_parameter_that_is_not_one_is_exit_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    code = run_in_process("train", TrainParameters, train, ["--learning_rat", "1e-4"])
    printed = capfd.readouterr()
    assert code == 2
    assert "learning_rate" in printed.out.splitlines()[-1]


def test_a_signal_is_exit_code_143_and_the_end_is_0(
    parameters: TrainParameters, capfd: pytest.CaptureFixture[str]
) -> None:
    with sigterm_at("evaluate at step 3: 5 of 5 clips"):
        code, line, stderr = _outcome(parameters, capfd)
    assert (code, line["status"]) == (143, "interrupted")
    assert "SIGTERM" in line["error"]["given"]
    assert "Traceback" not in stderr

    code, line, _ = _outcome(parameters, capfd)

    assert (code, line["status"], line["trained"], line["steps"]) == (0, "done", True, 6)
    model = Path(line["model_dir"])
    assert (
        line["metrics"]["test_tuned_wer"]
        == json.loads((model / "results.json").read_text())["splits"]["test"]["tuned"]["wer"]["rate"]
    )
    assert line["clips"] == {"train": 10, "validation": 5, "test": 5}
    assert line["repo_id"] is None


def _terminate_at(process: subprocess.Popen[str], message: str) -> str:
    """Sends SIGTERM when `message` is on stderr; returns what was on it until then."""
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if message in line:
            process.send_signal(signal.SIGTERM)
            return told
    raise AssertionError(f"{message!r} was never said:\n{told}")


def _assert_nowhere(secret: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def _assert_tracked(run: Path) -> None:
    """Both sessions are one W&B run, and what they logged is all there."""
    logs = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    first, second = (read_run(path) for path in logs)
    assert first.id == second.id
    assert (first.exit_code, second.exit_code) == (143, 0)
    for logged in (first, second):
        assert (logged.name, logged.project, logged.host) == ("tiny-whisper-it", "asr-fine-tuner", "undisclosed")
        assert logged.config["learning_rate"] == 1e-3
        assert logged.config["max_steps"] == 6
        assert logged.config["dataset"]["splits"]["train"]["clips"] == 10
        assert logged.config["dataset"]["dataset"]["id"] == "dataset"
        assert WANDB_CANARY.encode() not in logged.raw
        assert HF_CANARY.encode() not in logged.raw
        assert str(run.parent) not in json.dumps([logged.config, logged.summary]), "paths are nobody's business"
    steps = [row for logged in (first, second) for row in logged.history if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for measured in (
        "train/learning_rate",
        "train/grad_norm",
        "train/audio_seconds_per_second",
        "train/mfu",
        "train/audio_hours",
    ):
        assert all(row[measured] >= 0 for row in steps), measured
    evaluated = {row["step"]: row for row in [*first.history, *second.history] if "eval/wer" in row}
    assert set(evaluated) == {0, 3, 6}
    assert all({"eval/loss", "eval/cer", "eval/wer_orthographic"} <= set(row) for row in evaluated.values())
    (table,) = [row for row in second.history if "predictions/_type" in row]
    assert (table["predictions/_type"], table["predictions/nrows"], table["predictions/ncols"]) == ("table-file", 5, 5)
    assert second.summary["test_tuned_wer"] > 0
    assert second.summary["test_base_wer"] > 0
    assert second.summary["best_step"] in (3, 6)


def test_stopped_continued_and_published_it_is_the_run_that_was_never_stopped(
    parameters: TrainParameters, hub: LoopbackHub, run_job: RunJob, start_job: StartJob, tmp_path: Path
) -> None:
    hub.tokens[HF_CANARY] = Account("tester")
    environment = {"HF_TOKEN": HF_CANARY, "WANDB_API_KEY": WANDB_CANARY, "WANDB_MODE": "offline"}
    given = changed(parameters, publish=True, evaluate_base=True)

    process = start_job("train", *_flags(given), env=environment)
    told = _terminate_at(process, "step 3 of 6: loss")
    stdout, rest = process.communicate(timeout=120)

    assert process.returncode == 143, rest
    stopped = json.loads(stdout.splitlines()[-1])
    assert (stopped["status"], stopped["exit_code"]) == ("interrupted", 143)
    assert len(stdout.splitlines()) == 1
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "model").exists()
    assert "model.safetensors" not in hub.files("model", "tester/tiny-whisper-it")

    done = run_job("train", *_flags(given), env=environment)

    assert done.returncode == 0, done.stderr
    assert done.result["repo_id"] == "tester/tiny-whisper-it"
    assert "continuing from step" in done.stderr
    _assert_tracked(tmp_path / "run")
    assert not (tmp_path / "run" / "scratch").exists()
    published = hub.files("model", "tester/tiny-whisper-it")
    assert published["model.safetensors"] == weights_of(tmp_path / "run" / "model")
    for secret in (HF_CANARY, WANDB_CANARY):
        assert secret not in told + rest + stdout + done.stdout + done.stderr
        assert not any(secret.encode() in content for content in published.values())
        _assert_nowhere(secret, tmp_path)

    straight = run_job("train", *_flags(changed(parameters, output_dir=str(tmp_path / "straight"))))

    assert straight.returncode == 0, straight.stderr
    assert log_history(tmp_path / "straight") == log_history(tmp_path / "run")
    assert weights_of(tmp_path / "straight" / "model") == weights_of(tmp_path / "run" / "model")
    assert "Traceback" not in straight.stderr
    assert not (tmp_path / "straight" / "wandb").exists()
