"""SIGTERM at any time: the job ends with 143 within its grace time, publishes nothing, and goes on to the same end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import tiny
from loopback.hub import LoopbackHub
from tiny_training import changed, given_of, log_history, short_run, weights_of
from warm_jobs import Disturbance, WarmJobs

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.checkpoints import newest_complete


def _terminated(folder: Path, at: str) -> Disturbance:
    return Disturbance(folder=str(folder), at=at, signal=signal.SIGTERM)


@pytest.fixture(scope="session")
def straight(jobs: WarmJobs, tiny_model: Path, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that nothing disturbs."""
    run = tmp_path_factory.mktemp("straight") / "run"
    ended = jobs.run("train", _two_steps(tiny_model, tiny_artifact, run))
    assert ended.returncode == 0, ended.stderr
    return run


def _two_steps(model: Path, artifact: Path, run: Path) -> dict[str, object]:
    return given_of(short_run(model, artifact, output_dir=str(run), max_steps=2, eval_steps=1, save_steps=1))


WHEN = {
    "loading": ("os.rename .run.json.PID.tmp", None),
    "base model": ("os.mkdir scratch", None),
    "keeping the best": ("open .best-1.tmp/config.json", "checkpoint-2"),
    "saving": ("open .checkpoint-1.tmp.parent/checkpoint-1/config.json", "checkpoint-2"),
    "sealing": ("os.rename .checkpoint-2.tmp", "checkpoint-2"),
    "the finished model": ("open .model.tmp/config.json", "checkpoint-2"),
}


@pytest.mark.parametrize("when", WHEN)
def test_train(
    when: str, jobs: WarmJobs, straight: Path, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = _two_steps(tiny_model, tiny_artifact, run)
    at, newest = WHEN[when]
    began = time.monotonic()
    stopped = jobs.run("train", given, disturbance=_terminated(run, at))
    assert time.monotonic() - began < 25
    if when == "the finished model":
        assert stopped.returncode == 0, "all that was left was less than the grace time"
    else:
        assert stopped.returncode == 143, stopped.stderr
        assert stopped.result["status"] == "interrupted"
        assert "SIGTERM" in stopped.result["error"]["given"]
        found = newest_complete(run)
        assert (found.name if found else None) == newest
        assert not (run / "model").exists()
        assert jobs.run("train", given).returncode == 0
    assert weights_of(run / "model") == weights_of(straight / "model")
    assert log_history(run) == log_history(straight)


def test_preprocess(jobs: WarmJobs, tmp_path: Path) -> None:
    folder = tmp_path / "hf/assets/asr-fine-tuner/artifacts/made"
    parameters = tiny.preprocess_flags(num_workers=1, artifact_name="made")
    home = {"HF_HOME": str(tmp_path / "hf")}
    at = "open partial/artifact/train/.data-00003.arrow.PID.tmp"
    began = time.monotonic()
    stopped = jobs.run("preprocess", parameters, env=home, disturbance=_terminated(folder, at))
    assert time.monotonic() - began < 10
    assert stopped.returncode == 143, stopped.stderr
    assert len(list(folder.glob("partial/shards/*.json"))) == 3
    again = jobs.run("preprocess", parameters, env=home)
    assert "3 of 10 shards are finished already" in again.stderr
    assert tiny.contents(folder / "artifact") == tiny.contents(tiny.artifact())


def test_the_grace_time_is_the_one_asked_for(jobs: WarmJobs, parameters: TrainParameters, tmp_path: Path) -> None:
    """With none left, what is half written is dropped; the last line of stdout is there all the same."""
    run = tmp_path / "run"
    given = {**given_of(changed(parameters, output_dir=run, max_steps=500)), "grace_period": 0.05, "save_steps": 500}
    stopped = jobs.run("train", given, disturbance=_terminated(run, "os.mkdir scratch"))
    assert stopped.returncode == 143, stopped.stderr
    assert "the grace time is over" in stopped.stderr
    assert (stopped.result["status"], stopped.result["exit_code"]) == ("interrupted", 143)


def test_nothing_is_published(jobs: WarmJobs, hub: LoopbackHub, parameters: TrainParameters, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = given_of(changed(parameters, output_dir=run, max_steps=1, eval_steps=1, publish=True))
    at = "os.rename model/.README.md.PID.tmp"
    stopped = jobs.run("train", given, env={"HF_TOKEN": "hf_test"}, disturbance=_terminated(run, at))
    assert stopped.returncode == 143, stopped.stderr
    assert f"the finished model is in {run / 'model'}" in stopped.result["error"]["given"]
    assert not hub.requested("/commit/")
