"""A disk that is full: the job says where and how much it needs, what was finished stays, room continues it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
from conftest import JobRun
from tiny_training import changed, given_of, weights_of
from warm_jobs import Disturbance, WarmJobs

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.checkpoints import newest_complete
from asr_fine_tuner.memory import outline
from asr_fine_tuner.run_size import DiskEstimate


def test_preprocess(jobs: WarmJobs, tmp_path: Path) -> None:
    parameters = tiny.preprocess_flags(num_workers=1, artifact_name="made")
    home = {"HF_HOME": str(tmp_path / "hf")}
    largest = max(path.stat().st_size for path in tiny.artifact().glob("train/*.arrow"))
    full = jobs.run("preprocess", parameters, env=home, disturbance=Disturbance(file_bytes=largest - 1))
    assert full.returncode == 2, full.stderr
    error = full.result["error"]
    assert str(tmp_path / "hf") in error["given"]
    assert "bytes free" in error["given"]
    assert "bytes there" in error["expected"]
    finished = list(tmp_path.glob("hf/assets/asr-fine-tuner/artifacts/made/partial/shards/*.json"))
    assert finished

    again = jobs.run("preprocess", parameters, env=home)

    assert again.returncode == 0, again.stderr
    assert f"{len(finished)} of 10 shards are finished already" in again.stderr
    assert tiny.contents(Path(again.result["artifact"])) == tiny.contents(tiny.artifact())


@pytest.fixture
def short(parameters: TrainParameters, tmp_path: Path) -> TrainParameters:
    return changed(parameters, max_steps=2, eval_steps=1, save_steps=1, output_dir=tmp_path / "run")


def test_train(jobs: WarmJobs, short: TrainParameters, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before_the_second = Disturbance(folder=str(run), at="os.mkdir .checkpoint-2.tmp")
    assert jobs.run("train", given_of(short), disturbance=before_the_second).returncode == -signal.SIGKILL
    estimate = DiskEstimate.of(outline(Path(short.model_id), short), transcript_bytes=0)
    weights = (run / "checkpoint-1" / "model.safetensors").stat().st_size
    for file_bytes in (weights // 2, weights + 10_000):  # too small for the weights, and for the moments of Adam
        full = jobs.run("train", given_of(short), disturbance=Disturbance(file_bytes=file_bytes))
        assert full.returncode == 2, full.stderr
        assert "Traceback" not in full.stderr
        assert "larger volume" in full.result["error"]["action"]
        assert f"up to {estimate.checkpoint:,} bytes there" in full.result["error"]["expected"]
        assert newest_complete(run) == run / "checkpoint-1"
    again = jobs.run("train", given_of(short))
    assert again.returncode == 0, again.stderr
    assert "continuing from step 1" in again.stderr
    straight = jobs.run("train", given_of(changed(short, output_dir=tmp_path / "straight")))
    assert weights_of(run / "model") == weights_of(Path(straight.result["model_dir"]))


def run_on_small_volume(
    volume: Path, size: str, job: str, given: Mapping[str, object], env: Mapping[str, str]
) -> tuple[JobRun, list[str]]:
    """Run a job while `volume` is a file system of a `size` in mount's words; also the files that it leaves there."""
    in_a_namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*in_a_namespace, "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    volume.mkdir()
    script = 'mount -t tmpfs -o size="$1" none "$0" && shift && "$@"; code=$?; find "$0" -printf "%f\\n"; exit $code'
    flags = [f"--{name}={value}" for name, value in given.items()]
    command = [*in_a_namespace, "sh", "-c", script, str(volume), size, sys.executable, "-m", f"jobs.{job}", *flags]
    ended = subprocess.run(command, cwd=volume.parent, env=env, capture_output=True, text=True, check=False)
    result, *left = ended.stdout.splitlines()
    assert not list(volume.iterdir())
    return JobRun(ended.returncode, result, ended.stderr), left


def test_a_volume_too_small_for_an_artifact_is_found_before_it_is_made(job_env: dict[str, str], tmp_path: Path) -> None:
    given = tiny.preprocess_flags(num_workers=1, artifact_name="made")
    run, left = run_on_small_volume(tmp_path / "hf", "900k", "preprocess", given, job_env)
    assert run.returncode == 2, run.stderr
    assert f"free at {tmp_path / 'hf'}" in run.result["error"]["given"]
    assert "for the artifact" in run.result["error"]["expected"]
    assert not [name for name in left if ".arrow" in name]


def test_a_volume_without_room(short: TrainParameters, job_env: dict[str, str], tmp_path: Path) -> None:
    """A real file system that is full, which tells it in other words than a limit does: room for one checkpoint."""
    run = tmp_path / "run"
    estimate = DiskEstimate.of(outline(Path(short.model_id), short), transcript_bytes=0)
    size = estimate.least + estimate.checkpoint // 4
    ended, left = run_on_small_volume(run, str(size), "train", given_of(short), job_env)
    assert ended.returncode == 2, ended.stderr
    assert "the disk may become full" in ended.stderr
    assert f"cannot write to {run}" in ended.result["error"]["given"]
    assert "checkpoint-1" in left
    assert "checkpoint-2" not in left
