"""A Hub that fails for a while is waited for, one that stays away ends the job with 75."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import tiny
from conftest import RunJob
from loopback.hub import LoopbackHub
from warm_jobs import WarmJobs

# The client waits this long for the next bytes of an answer.
IMPATIENT = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}


def _flags(hub: LoopbackHub) -> list[str]:
    dataset = tiny.preprocess_flags(dataset_name="org/speech", num_workers=1, artifact_name="made")
    hub.add_repo("dataset", "org/speech", tiny.dataset())
    return [f"--{name}={value}" for name, value in dataset.items()]


def test_errors_stalls_and_cuts_that_pass(hub: LoopbackHub, run_job: RunJob) -> None:
    flags = _flags(hub)
    hub.fail("^/api/datasets/org/speech", 503, times=1)
    hub.fail("train-00001", 429, times=1, headers={"Retry-After": "1"})
    hub.fail("train-00002", 520, times=1)
    hub.stall("train-00003", 3, times=1)
    hub.cut("_cdn/datasets", 1000, times=1)
    run = run_job("preprocess", *flags, env=IMPATIENT)
    assert run.returncode == 0, run.stderr
    statuses = {request.status for request in hub.requested()}
    assert {503, 429, 520} <= statuses
    assert run.stderr.count("HTTP Error 429") == 1
    made, expected = (
        {name: data for name, data in tiny.contents(folder).items() if name.endswith(".arrow")}
        for folder in (Path(run.result["artifact"]), tiny.artifact())
    )
    assert made == expected


def test_a_download_that_stalls_for_good(hub: LoopbackHub, run_job: RunJob) -> None:
    flags = _flags(hub)
    hub.stall("_cdn/datasets", 5)
    run = run_job("preprocess", *flags, env={**IMPATIENT, "HUB_PATIENCE_SECONDS": "2"})
    assert run.returncode == 75, run.stderr
    assert "org/speech" in run.result["error"]["given"]
    assert "Traceback" not in run.stderr


def test_sigterm_while_a_download_stalls(hub: LoopbackHub, jobs: WarmJobs, tmp_path: Path) -> None:
    hub.add_repo("dataset", "org/speech", tiny.dataset())
    hub.stall("_cdn/datasets", 30)
    given = tiny.preprocess_flags(dataset_name="org/speech", num_workers=1, artifact_name="made", grace_period=0.5)
    job = jobs.start("preprocess", given, env={"HF_HOME": str(tmp_path / "hf")})
    while not hub.requested("org/speech/resolve"):
        time.sleep(0.01)
    began = time.monotonic()
    os.kill(job.pid, signal.SIGTERM)
    ended = job.wait()
    assert time.monotonic() - began < 10
    assert (ended.returncode, ended.result["status"]) == (143, "interrupted"), ended.stderr
