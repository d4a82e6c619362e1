"""SIGKILL wherever a job is about to write, rename, make or remove a file: what is there is whole, and work goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import tiny
from tiny_training import changed, given_of, log_history, weights_of
from warm_jobs import Disturbance, WarmJobs

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.checkpoints import SEAL_NAME, checkpoints_in, is_complete
from asr_fine_tuner.files import mismatches
from asr_fine_tuner.manifest import MANIFEST_NAME, read_manifest


def _worth_a_kill(boundaries: Iterable[str]) -> list[str]:
    """One of each kind: before the first file of a staged folder, and before what is staged appears or goes."""
    first: dict[str, str] = {}
    for boundary in boundaries:
        if boundary.startswith(("os.rename", "shutil.rmtree")) or boundary.endswith(("/config.json", ".arrow.PID.tmp")):
            first.setdefault(re.sub(r"\d+", "N", boundary), boundary)
    return list(first.values())


def _killed_at_each(
    jobs: WarmJobs, job: str, parameters: dict[str, object], home: Path, folder: Path, boundaries: Iterable[str]
) -> Iterator[str]:
    """Each session continues what the one before left, and is killed at the next boundary that it comes to."""
    for boundary in boundaries:
        disturbance = Disturbance(folder=str(folder), at=boundary)
        ended = jobs.run(job, parameters, env={"HF_HOME": str(home)}, disturbance=disturbance)
        assert ended.returncode in (-signal.SIGKILL, 0), ended.stderr
        if ended.returncode:
            assert ended.stdout == ""
            yield boundary


def test_an_artifact_is_whole_or_absent_and_ends_with_the_same_bytes(jobs: WarmJobs, tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny.all_splits(6, 2), n_files=2)
    parameters = tiny.preprocess_flags(dataset_name=dataset, num_workers=1, artifact_name="made")
    artifacts = {name: tmp_path / name / "assets/asr-fine-tuner/artifacts/made" for name in ("straight", "killed")}
    straight = jobs.start(
        "preprocess",
        parameters,
        env={"HF_HOME": str(tmp_path / "straight")},
        disturbance=Disturbance(folder=str(artifacts["straight"])),
    )
    assert straight.wait().returncode == 0
    boundaries = _worth_a_kill(straight.boundaries)

    folder = artifacts["killed"]
    killed = 0
    for _ in _killed_at_each(jobs, "preprocess", parameters, tmp_path / "killed", folder, boundaries):
        killed += 1
        manifest = folder / "artifact" / MANIFEST_NAME
        assert not manifest.exists() or not mismatches(manifest.parent, read_manifest(manifest.parent).files)
    assert killed == len(boundaries)
    ended = jobs.run("preprocess", parameters, env={"HF_HOME": str(tmp_path / "killed")})
    assert ended.returncode == 0, ended.stderr
    assert tiny.contents(folder / "artifact") == tiny.contents(artifacts["straight"] / "artifact")


def test_checkpoints_and_the_model_are_whole_or_absent_and_the_weights_are_the_same(
    jobs: WarmJobs, parameters: TrainParameters, tmp_path: Path
) -> None:
    short = changed(parameters, max_steps=2, eval_steps=1, save_steps=1, output_dir=None)
    runs = {name: tmp_path / name for name in ("straight", "killed")}
    straight = jobs.start(
        "train",
        given_of(changed(short, output_dir=runs["straight"])),
        disturbance=Disturbance(folder=str(runs["straight"])),
    )
    assert straight.wait().returncode == 0
    boundaries = _worth_a_kill(straight.boundaries)
    assert any(SEAL_NAME in boundary for boundary in boundaries)

    run = runs["killed"]
    given = given_of(changed(short, output_dir=run))
    killed = 0
    for boundary in _killed_at_each(jobs, "train", given, tmp_path / "hf", run, boundaries):
        killed += 1
        folders = [*checkpoints_in(run), *checkpoints_in(run, "best"), *run.glob("model")]
        assert all(is_complete(folder) for folder in folders), boundary
    assert killed == len(boundaries)
    ended = jobs.run("train", given)
    assert ended.returncode == 0, ended.stderr
    assert log_history(run) == log_history(runs["straight"])
    assert tiny.contents(run / "model").keys() == tiny.contents(runs["straight"] / "model").keys()
    assert weights_of(run / "model") == weights_of(runs["straight"] / "model")
    assert not list(run.rglob(".*")), "nothing staged is left"


def test_workers_do_not_outlive_a_killed_job(job_env: dict[str, str], tmp_path: Path) -> None:
    """They would write where the next job writes."""
    flags = [f"--{name}={value}" for name, value in tiny.preprocess_flags(num_workers=2, artifact_name="made").items()]
    command = [sys.executable, "-m", "jobs.preprocess", *flags]
    process = subprocess.Popen(command, cwd=tmp_path, env=job_env, stderr=subprocess.PIPE)
    records = tmp_path / "hf/assets/asr-fine-tuner/artifacts/made/partial/shards"
    while not list(records.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    # Whoever still runs holds the other end.
    assert process.stderr
    began = time.monotonic()
    process.stderr.read()
    process.wait()
    assert time.monotonic() - began < 5
