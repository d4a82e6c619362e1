"""Several processes as one job: the same losses, transcripts and results, one JSON line, and an end that all share."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import JobRun
from tiny_training import changed, given_of, log_history, sigterm_at
from warm_jobs import Disturbance, WarmJobs

from asr_fine_tuner import InterruptedJob, TrainParameters
from asr_fine_tuner.checkpoints import newest_complete
from asr_fine_tuner.training import TrainResult, train


@pytest.fixture(scope="module")
def one(memorised: TrainResult, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainParameters:
    """Four clips to a step in one process: two steps and half of one in an epoch of ten clips.

    The base model knows four of the clips by heart.
    """
    return TrainParameters(
        artifact_name=str(tiny_artifact),
        model_id=str(memorised.model_dir),
        output_dir=str(tmp_path_factory.mktemp("one") / "run"),
        max_steps=7,
        learning_rate=2e-3,
        warmup_steps=1,
        train_batch_size=4,
        eval_batch_size=2,
        logging_steps=1,
        eval_steps=3,
        save_steps=3,
        max_sequence_length=40,
    )


@pytest.fixture(scope="module")
def of_one(one: TrainParameters) -> TrainResult:
    return train(one)


def _of_two(one: TrainParameters, run: Path) -> dict[str, object]:
    """The same clips to a step in each of two processes half of them."""
    return given_of(changed(one, train_batch_size=2, output_dir=str(run)))


def _torchrun(parameters: Mapping[str, object], tmp_path: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "jobs.train"]
    command += [f"--{name}={value}" for name, value in parameters.items()]
    return subprocess.Popen(
        command, cwd=tmp_path, env=dict(env), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _assert_same(run: Path, result: Mapping[str, Any], of_one: TrainResult) -> None:
    theirs = log_history(of_one.model_dir.parent)
    ours = log_history(run)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name in {"loss", "grad_norm", "eval_loss"} & their.keys():
            assert our[name] == pytest.approx(their[name], rel=1e-4), (name, our["step"])
        for name in ("learning_rate", "eval_wer", "eval_cer"):
            assert our.get(name) == their.get(name)
    assert result["metrics"] == of_one.metrics
    assert result["best_step"] == of_one.best_step
    predictions = (run / "model" / "predictions.jsonl").read_bytes()
    assert predictions == (of_one.model_dir / "predictions.jsonl").read_bytes()


def test_two_processes_learn_and_tell_what_one_does(
    one: TrainParameters, of_one: TrainResult, job_env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    began = time.monotonic()
    stdout, stderr = (job := _torchrun(_of_two(one, run), tmp_path, job_env)).communicate(timeout=240)
    print(stderr, time.monotonic() - began)
    assert job.returncode == 0, stderr
    (line,) = stdout.splitlines()
    result = json.loads(line)
    assert (result["status"], result["train_batch_size"], result["processes"]) == ("done", 2, 2)
    _assert_same(run, result, of_one)
