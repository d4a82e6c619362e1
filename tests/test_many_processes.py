"""Several processes as one job: the same losses, transcripts and results, one JSON line, and an end that all share."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import JobRun
from test_readme import commands
from tiny_training import changed, clips_of, fine_tuning_of, given_of, log_history, sigterm_at, write_artifact
from torch.distributed.run import parse_args
from warm_jobs import Disturbance, WarmJob, WarmJobs

from asr_fine_tuner import InterruptedJob, TrainParameters
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.batches import BatchSizes, TrainingSteps
from asr_fine_tuner.checkpoints import newest_complete
from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.training import TrainResult, train

CLIPS = 9
_GUIDE = Path(__file__).resolve().parent.parent / "howto" / "many_gpus.md"


@pytest.mark.parametrize("command", commands(_GUIDE, "sh"))
def test_launcher_and_job_understand_the_commands_of_the_guide(command: str) -> None:
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args(words[2:])
    else:
        launcher = ["torchrun"] if words[0] == "torchrun" else ["python", "-m", "asr_fine_tuner.torchrun"]
        assert words[: len(launcher)] == launcher
        parsed = parse_args(words[len(launcher) :])
    assert (parsed.module, parsed.training_script) == (True, "jobs.train")
    given = read_parameters(TrainParameters, "jobs.train", parsed.training_script_args)
    assert (given.artifact_name, given.train_batch_size) == ("fleurs-it", 4)


@pytest.fixture(scope="module")
def one(memorised: TrainResult, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainParameters:
    """Four clips to a step in one process at most: an epoch of nine clips has three steps.

    The base model knows four of the clips by heart.
    """
    return TrainParameters(
        artifact_name=str(tiny_artifact),
        model_id=str(memorised.model_dir),
        output_dir=str(tmp_path_factory.mktemp("one") / "run"),
        max_train_samples=CLIPS,
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
    command = [
        sys.executable,
        "-m",
        "asr_fine_tuner.torchrun",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "jobs.train",
    ]
    command += [f"--{name}={value}" for name, value in parameters.items()]
    return subprocess.Popen(
        command, cwd=tmp_path, env=dict(env), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _started(
    jobs: WarmJobs,
    of_first: Mapping[str, object],
    of_second: Mapping[str, object] | None = None,
    disturbance: Disturbance | None = None,
) -> tuple[WarmJob, WarmJob]:
    """The two processes of a job, as torchrun starts them. disturbance: of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_all = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{**of_all, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    first = jobs.start("train", of_first, env=ranks[0], disturbance=disturbance)
    return first, jobs.start("train", of_second or of_first, env=ranks[1])


def _assert_same(run: Path, result: Mapping[str, Any], of_one: TrainResult) -> None:
    theirs = log_history(of_one.model_dir.parent)
    ours = log_history(run)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name in {"loss", "grad_norm", "eval_loss", "audio_hours", "padding_share"} & their.keys():
            assert our[name] == pytest.approx(their[name], rel=1e-4), (name, our["step"])
        for name in ("learning_rate", "eval_wer", "eval_cer"):
            assert our.get(name) == their.get(name)
    assert result["metrics"] == of_one.metrics
    assert result["best_step"] == of_one.best_step
    predictions = (run / "model" / "predictions.jsonl").read_bytes()
    assert predictions == (of_one.model_dir / "predictions.jsonl").read_bytes()


def test_two_processes_learn_and_tell_what_one_does(
    one: TrainParameters, of_one: TrainResult, jobs: WarmJobs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, second = (job.wait() for job in _started(jobs, _of_two(one, run)))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    result = first.result
    assert (result["status"], result["train_batch_size"], result["processes"]) == ("done", 2, 2)
    assert second.stdout == ""
    assert "tuned model on test" in first.stderr
    assert "tuned model on test" not in second.stderr, "only the first rank logs"
    assert json.loads((run / "model" / "results.json").read_text())["throughput"]["devices"] == 2
    assert 0 < of_one.metrics["test_base_wer"] != of_one.metrics["test_tuned_wer"]
    _assert_same(run, result, of_one)


def test_a_signal_to_the_launcher_stops_all_ranks_at_one_step(
    one: TrainParameters, job_env: dict[str, str], tmp_path: Path
) -> None:
    """Real processes of a real launcher; those of the other tests are given what it tells its processes."""
    run = tmp_path / "run"
    endless = {**_of_two(one, run), "max_steps": 5000, "eval_steps": 5000, "evaluate_base": False}
    job = _torchrun(endless, tmp_path, job_env)
    until = time.monotonic() + 120
    while not (run / "checkpoint-3").is_dir():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    began = time.monotonic()
    stdout, stderr = job.communicate(timeout=60)
    assert time.monotonic() - began < 25
    assert job.returncode == 143, stderr
    (line,) = stdout.splitlines()
    assert json.loads(line)["status"] == "interrupted"
    newest = newest_complete(run)
    assert newest is not None
    assert f"{newest.name.replace('checkpoint-', 'step ')} is saved" in json.loads(line)["error"]["given"]


def _second_told_to_stop(
    jobs: WarmJobs, of_two: Mapping[str, object], first_is_held: Disturbance
) -> tuple[JobRun, JobRun]:
    """SIGTERM to the second process only, while the first is held; how both end."""
    first, second = _started(jobs, of_two, disturbance=first_is_held)
    first.wait_until_stopped()
    os.kill(second.pid, signal.SIGTERM)
    os.kill(first.pid, signal.SIGCONT)
    ended = first.wait(), second.wait()
    assert [job.returncode for job in ended] == [143, 143], ended[0].stderr + ended[1].stderr
    return ended


def test_a_signal_to_one_rank_stops_both_and_one_process_goes_on(
    one: TrainParameters, of_one: TrainResult, jobs: WarmJobs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    while_saving = Disturbance(folder=str(run), at="os.rename .checkpoint-3.tmp", signal=signal.SIGSTOP)
    ended = _second_told_to_stop(jobs, _of_two(one, run), first_is_held=while_saving)
    assert (ended[0].result["status"], ended[1].stdout) == ("interrupted", "")
    assert "rank 1: SIGTERM received" in ended[0].result["error"]["given"]
    newest = newest_complete(run)
    assert newest is not None
    assert newest.name == "checkpoint-4"
    assert {path.name for path in newest.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}

    result = train(changed(one, output_dir=str(run)))
    _assert_same(run, result.as_json(), of_one)
    assert (result.processes, result.train_batch_size, result.grad_accum_steps) == (1, 4, 1)


def test_a_signal_to_one_rank_ends_an_evaluation(one: TrainParameters, jobs: WarmJobs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before_it = Disturbance(folder=str(run), at="open lock", signal=signal.SIGSTOP)
    ended = _second_told_to_stop(jobs, _of_two(one, run), first_is_held=before_it)
    assert "rank 1: SIGTERM received; the evaluation was left" in ended[0].result["error"]["given"]
    assert not (run / "evaluations").exists()


def test_two_processes_go_on_with_what_one_began(
    one: TrainParameters, of_one: TrainResult, jobs: WarmJobs, tmp_path: Path
) -> None:
    """With the same parameters: the clips to a step stay those of the run."""
    run = tmp_path / "run"
    given = changed(one, output_dir=str(run))
    with sigterm_at("step 4 of 7: loss"), pytest.raises(InterruptedJob):
        train(given)
    first, second = (job.wait() for job in _started(jobs, given_of(given)))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    assert "continuing from step 5 of 7" in first.stderr
    _assert_same(run, first.result, of_one)
    told = {name: first.result[name] for name in ("processes", "train_batch_size", "grad_accum_steps")}
    assert told == {"processes": 2, "train_batch_size": 2, "grad_accum_steps": 1}


@pytest.mark.parametrize(("clips", "batch_size", "windows"), [(8, 4, 2), (1, 2, 1)])
def test_windows_teach_two_processes_what_they_teach_one(
    clips: int, batch_size: int, windows: int, one: TrainParameters, short_clips: Path, jobs: WarmJobs, tmp_path: Path
) -> None:
    """Each has a window of two clips, or the second rank has none."""
    some = {"artifact_name": str(short_clips), "max_train_samples": clips, "single_clip_share": 0.5, "max_steps": 3}
    given = changed(one, **some, packing="on", train_batch_size=batch_size, output_dir=str(tmp_path / "alone"))
    alone = train(given)
    run = tmp_path / "run"
    ranks = _started(jobs, given_of(changed(given, train_batch_size=batch_size // 2, output_dir=str(run))))
    first, second = (job.wait() for job in ranks)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert f"a step has about {windows}.0 windows, which do not keep 2 processes busy" in first.stderr
    _assert_same(run, first.result, alone)


def test_what_one_rank_fails_with_ends_both(
    one: TrainParameters, jobs: WarmJobs, tiny_artifact: Path, tmp_path: Path
) -> None:
    """A clip with features that are no numbers, which only the second rank has in its batch."""
    packer = fine_tuning_of(changed(one, output_dir=str(tmp_path / "of one"))).packer
    of_second = TrainingSteps(packer, BatchSizes(effective=4, micro=2, processes=2), rank=1)
    broken = list(of_second)[1][0].clips[0]
    splits = {split: clips_of(tiny_artifact, split) for split in SPLITS}
    features = splits["train"][broken].features.copy()
    features[3, 5] = np.nan
    splits["train"][broken] = replace(splits["train"][broken], features=features)
    artifact = write_artifact(tmp_path / "nan", Path(one.model_id), tiny_artifact, splits)
    run = tmp_path / "run"
    given = {**_of_two(one, run), "artifact_name": artifact, "evaluate_base": False, "save_steps": 1}
    first, second = (job.wait() for job in _started(jobs, given))
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert second.stdout == ""
    assert "rank 1: loss nan at step 2" in first.result["error"]["given"]
    assert "loss nan at step 2" in second.stderr
    newest = newest_complete(run)
    assert newest is not None
    assert newest.name == "checkpoint-1"


def test_ranks_with_other_parameters_are_refused(one: TrainParameters, jobs: WarmJobs, tmp_path: Path) -> None:
    """Parameters, too, that do not decide the weights: batches of two sizes would share the clips of no evaluation."""
    of_first = _of_two(one, tmp_path / "run")
    ranks = _started(jobs, of_first, {**of_first, "eval_batch_size": 1, "save_steps": 2})
    first, second = (job.wait() for job in ranks)
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert first.result["error"]["given"].startswith("eval_batch_size, save_steps of rank 1,")
    assert not (tmp_path / "run").exists()


def test_a_killed_rank_does_not_leave_the_other_waiting(one: TrainParameters, jobs: WarmJobs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    while_saving = Disturbance(folder=str(run), at="os.rename .checkpoint-3.tmp", signal=signal.SIGSTOP)
    first, second = _started(jobs, {**_of_two(one, run), "evaluate_base": False}, disturbance=while_saving)
    first.wait_until_stopped()
    os.kill(second.pid, signal.SIGKILL)
    os.kill(first.pid, signal.SIGCONT)
    ended = first.wait()
    assert ended.returncode == 75, ended.stderr
    assert "contact" in ended.result["error"]["given"]
    second.wait()
    newest = newest_complete(run)
    assert newest is not None
    assert newest.name == "checkpoint-3"


def test_nodes_without_a_common_folder_do_not_continue(
    one: TrainParameters, of_one: TrainResult, jobs: WarmJobs, tmp_path: Path
) -> None:
    run = shutil.copytree(of_one.model_dir.parent, tmp_path / "run")
    (run / "trained.json").unlink()
    (run / "model" / "model.safetensors").unlink()
    elsewhere = tmp_path / "of another node"
    both = _started(jobs, _of_two(one, run), _of_two(one, elsewhere))
    first, second = (job.wait() for job in both)
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert f"rank 1: no {elsewhere / 'checkpoint-7'} on" in first.result["error"]["given"]
    assert "shared volume" in first.result["error"]["action"]
    assert not elsewhere.exists()


def test_memory_that_one_rank_lacks_makes_the_micro_batches_of_all_smaller(
    one: TrainParameters, of_one: TrainResult, jobs: WarmJobs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = {**_of_two(one, run), "max_steps": 2}
    both = _started(jobs, given, disturbance=Disturbance(clips_at_once=1))
    first, second = (job.wait() for job in both)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    told = {name: first.result[name] for name in ("processes", "train_batch_size", "grad_accum_steps")}
    assert told == {"processes": 2, "train_batch_size": 1, "grad_accum_steps": 2}
    for our, their in zip(log_history(run), log_history(of_one.model_dir.parent)[:2], strict=False):
        assert (our["loss"], our["grad_norm"]) == pytest.approx((their["loss"], their["grad_norm"]), rel=1e-4)
    results = json.loads((run / "model" / "results.json").read_text())
    assert results["hyperparameters"]["effective_batch_size"] == 4
    assert results["hyperparameters"]["gradient_checkpointing"] is True
