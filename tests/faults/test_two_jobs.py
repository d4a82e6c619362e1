"""Two jobs that write the same: one of them does, the other one ends with 75, and nothing is mixed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import tiny
from tiny_training import changed, given_of
from warm_jobs import Disturbance, WarmJobs

from asr_fine_tuner import TrainParameters


def _halted(folder: Path, at: str) -> Disturbance:
    return Disturbance(folder=str(folder), at=at, signal=signal.SIGSTOP)


def test_one_artifact(jobs: WarmJobs, tmp_path: Path) -> None:
    folder = tmp_path / "hf/assets/asr-fine-tuner/artifacts/made"
    home = {"HF_HOME": str(tmp_path / "hf")}
    parameters = tiny.preprocess_flags(num_workers=1, artifact_name="made")
    at = "open partial/artifact/train/.data-00002.arrow.PID.tmp"
    first = jobs.start("preprocess", parameters, env=home, disturbance=_halted(folder, at))
    first.wait_until_stopped()
    half = tiny.contents(folder)
    for others in ({}, {"overwrite": True, "max_train_samples": 3}):
        second = jobs.run("preprocess", {**parameters, **others}, env=home)
        assert second.returncode == 75, second.stderr
        assert "being written by another job" in second.result["error"]["given"]
    assert tiny.contents(folder) == half
    os.kill(first.pid, signal.SIGCONT)
    ended = first.wait()
    assert ended.returncode == 0, ended.stderr
    assert tiny.contents(folder / "artifact") == tiny.contents(tiny.artifact())


def test_one_artifact_at_the_same_time(jobs: WarmJobs, tmp_path: Path) -> None:
    parameters = tiny.preprocess_flags(num_workers=1, artifact_name="made")
    for home in (tmp_path / "first", tmp_path / "second"):
        both = [jobs.start("preprocess", parameters, env={"HF_HOME": str(home)}) for _ in range(2)]
        ended = [job.wait() for job in both]
        codes = sorted(run.returncode for run in ended)
        assert codes in ([0, 75], [0, 0]), [run.stderr for run in ended]
        if codes == [0, 0]:
            assert sorted(run.result["reused"] for run in ended) == [False, True]
        artifact = home / "assets/asr-fine-tuner/artifacts/made/artifact"
        assert tiny.contents(artifact) == tiny.contents(tiny.artifact())


def test_one_output_folder(jobs: WarmJobs, parameters: TrainParameters, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = given_of(changed(parameters, output_dir=run, max_steps=1, eval_steps=1))
    first = jobs.start("train", given, disturbance=_halted(run, "os.mkdir .best-1.tmp"))
    first.wait_until_stopped()
    half = tiny.contents(run)
    second = jobs.run("train", given)
    assert second.returncode == 75, second.stderr
    assert "being written by another job" in second.result["error"]["given"]
    assert tiny.contents(run) == half
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().returncode == 0
