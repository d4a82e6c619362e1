"""howto/slurm: the batch scripts hand on the signal, give Slurm the job's exit code, and go back where that helps.

Slurm and Apptainer are small programs here that do what the scripts ask of them; between them runs a job of ours, with
its parameters, its signals and its exit codes, that has nothing to do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_readme import commands

from asr_fine_tuner import PreprocessParameters, TrainParameters
from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.errors import ExitCode
from asr_fine_tuner.launch import Launch, launch_of

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "howto" / "slurm"
PAGE = FILES.parent / "slurm.md"
SUBMITTED = [command for command in commands(PAGE, "sh") if "sbatch " in command]
BATCH_SCRIPTS = {"preprocess": PreprocessParameters, "train": TrainParameters}
TOKEN = "hf_slurm_canary"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")

_PROGRAMS = {
    # Not the signal: on SIGTERM the real one kills its tasks, so that nothing is saved.
    "srun": """
        while [[ $1 == --* ]]; do echo "$1" >> "$FOLDER/srun_options"; shift; done
        trap 'touch "$FOLDER/srun_was_signalled"' TERM
        "$@" & echo $! > "$FOLDER/task"
        wait $! || code=$?; exit ${code:-0}
    """,
    "scancel": 'kill -TERM "$(cat "$FOLDER/task")"',
    "squeue": 'echo "$STATE"',
    "scontrol": 'if [[ $1 == requeue ]]; then echo "$2" >> "$FOLDER/requeued"; else echo node1; echo node2; fi',
    "apptainer": 'exec "$PYTHON" "$FOLDER/apptainer.py" "$@"',
}

# The image: a variable comes in as APPTAINERENV_X, a folder by --bind, and the entry point is the job of its name.
_APPTAINER = """
import json, os, signal, sys, time
from pathlib import Path

folder, arguments = Path(os.environ["FOLDER"]), sys.argv[1:]
inside = {n.removeprefix("APPTAINERENV_"): v for n, v in os.environ.items() if n.startswith("APPTAINERENV_")}
(folder / "apptainer.json").write_text(json.dumps({"arguments": arguments, "environment": inside}))
assert arguments.pop(0) == "run"
while arguments[0].startswith("--"):
    if arguments.pop(0) in ("--bind", "--pwd"):
        arguments.pop(0)
job = Path(arguments.pop(0)).stem.removeprefix("asr-")
outcome = os.environ["OUTCOME"]
for name in set(os.environ) - {"PYTHONPATH", "PATH"}:
    del os.environ[name]
os.environ.update(inside)

from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import PreprocessParameters, TrainParameters
from asr_fine_tuner.stop import raise_if_stopped

class Result:
    def as_json(self):
        return {}

def run(parameters):
    if outcome == "bug":
        raise KeyError(outcome)
    if outcome.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[outcome])
    error = {"permanent": PermanentError, "transient": TransientError}.get(outcome)
    if error:
        raise error(given="it", expected="something else", action="change it")
    while outcome == "endless":
        (folder / "running").touch()
        raise_if_stopped("all is saved")
        time.sleep(0.01)
    return Result()

sys.exit(run_job(job, {"preprocess": PreprocessParameters, "train": TrainParameters}[job], run, arguments))
"""


@dataclass(frozen=True)
class Cluster:
    """A folder as a user has it on a cluster, and what stands for Slurm in it."""

    folder: Path

    def start(self, job: str, *parameters: str, **environment: str) -> subprocess.Popen[str]:
        """The batch script as Slurm starts it on its first node; OUTCOME and STATE say how job and cluster behave."""
        slurm = {
            "SLURM_JOB_ID": "4242",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
        }
        ours = {"FOLDER": str(self.folder), "PYTHON": sys.executable, "OUTCOME": "done", "STATE": "RUNNING"}
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(self.folder / f"{job}.sbatch"), *parameters],
            cwd=self.folder,
            env={**os.environ, "PATH": path, **slurm, **ours, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, job: str, *parameters: str, **environment: str) -> tuple[int, str]:
        process = self.start(job, *parameters, **environment)
        told, _ = process.communicate(timeout=60)
        return process.returncode, told

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()

    @property
    def container(self) -> tuple[list[str], dict[str, str]]:
        """How the image was started: the arguments of `apptainer`, and the variables within."""
        told = json.loads((self.folder / "apptainer.json").read_text())
        return told["arguments"], told["environment"]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    for name, script in _PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "apptainer.py").write_text(_APPTAINER)
    return Cluster(tmp_path)


def _directives(script: Path) -> dict[str, str]:
    """The options of `sbatch` that the script has in itself."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.+))?$", script.read_text(), re.MULTILINE)
    assert len(found) == script.read_text().count("#SBATCH")
    return dict(found)


def test_the_scripts_are_clean() -> None:
    scripts = [str(path) for path in sorted(FILES.iterdir())]
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), "--external-sources", *scripts],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("command", SUBMITTED)
def test_the_jobs_understand_what_the_page_submits(command: str) -> None:
    options, job, parameters = re.split(r" (\w+)\.sbatch ", command.removesuffix(")"))
    given = shlex.split(parameters)
    if array := re.search(r"--array=0-(\d+)", options):
        assert given[given.index("--shard_count") + 1] == str(int(array[1]) + 1)
        given += ["--shard_index", array[1]]
    understood = read_parameters(BATCH_SCRIPTS[job], job, given)
    for flag, value in zip(given[::2], given[1::2], strict=True):
        assert str(getattr(understood, flag.removeprefix("--"))).lower() == value


@pytest.mark.parametrize("job", BATCH_SCRIPTS)
def test_slurm_warns_in_time_and_may_put_the_job_back(job: str) -> None:
    given = _directives(FILES / f"{job}.sbatch")
    assert {"requeue", "nodes", "cpus-per-task", "mem-per-cpu", "time"} <= set(given)
    assert given["open-mode"] == "append", "a job that goes on keeps what it has told"
    told = re.fullmatch(r"B:TERM@(\d+)", given["signal"])
    assert told is not None
    grace = BATCH_SCRIPTS[job].model_fields["grace_period"].default
    assert grace + 30 <= int(told[1]), "time to save, and to get back into the queue"
    assert grace < 30, "the time that Slurm gives to a job that is cancelled: KillWait"


@pytest.mark.parametrize(
    ("outcome", "code", "requeued"),
    [
        ("permanent", ExitCode.PERMANENT, False),
        ("transient", ExitCode.TRANSIENT, True),
        ("bug", ExitCode.BUG, False),
        ("SIGKILL", 128 + signal.SIGKILL, True),
        ("SIGABRT", 128 + signal.SIGABRT, True),
    ],
)
def test_a_job_goes_back_where_the_same_command_helps(
    cluster: Cluster, outcome: str, code: int, requeued: bool
) -> None:
    assert cluster.run("train", "--max_steps", "10", OUTCOME=outcome)[0] == code
    assert cluster.requeued is requeued


def test_a_job_that_fails_all_the_time_does_not_go_back_for_ever(cluster: Cluster) -> None:
    code, told = cluster.run("train", OUTCOME="transient", SLURM_RESTART_COUNT="20")
    assert code == ExitCode.TRANSIENT
    assert "not put back into the queue: that was done 20 times" in told
    assert not cluster.requeued


def test_the_table_of_platforms_says_what_the_files_say() -> None:
    table = (FILES.parent / "train_container.md").read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith("| Slurm |")]
    warning = _directives(FILES / "train.sbatch")["signal"].removeprefix("B:TERM@")
    restarts = re.search(r"RESTARTS:-(\d+)", (FILES / "step.bash").read_text())
    assert restarts is not None
    assert f"{warning} s before the time limit" in row
    assert f"back into the queue, {restarts[1]} times" in row


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_the_signal_reaches_the_job_which_saves_and_goes_back_unless_it_was_cancelled(
    cluster: Cluster, state: str, requeued: bool
) -> None:
    process = cluster.start("train", OUTCOME="endless", STATE=state)
    until = time.monotonic() + 30
    while not (cluster.folder / "running").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)

    assert process.returncode == ExitCode.INTERRUPTED, told
    assert json.loads(told.splitlines()[-1])["status"] == "interrupted"
    assert cluster.requeued is requeued
    assert not (cluster.folder / "srun_was_signalled").exists()


def test_only_what_the_job_needs_comes_into_the_image(cluster: Cluster) -> None:
    code, told = cluster.run("train", HF_TOKEN=TOKEN, HF_HOME="/home/ada/.cache", ASR_MAX_STEPS="7", NCCL_DEBUG="INFO")
    assert code == 0, told
    arguments, environment = cluster.container
    assert "--shard_index" not in arguments
    given = {"HF_TOKEN": TOKEN, "ASR_MAX_STEPS": "7", "NCCL_DEBUG": "INFO"}
    assert {name: environment[name] for name in given} == given
    assert not {"HF_HOME", "PYTHONPATH", "RANK", "MASTER_ADDR"} & set(environment)
    assert TOKEN not in shlex.join(arguments) + told
    assert {"--nv", "--cleanenv", f"{cluster.folder}/data:/data"} <= set(arguments)
    assert (cluster.folder / "data").is_dir()
    assert not cluster.requeued


def test_a_task_gets_the_cores_that_the_job_was_given(cluster: Cluster) -> None:
    code, told = cluster.run("train", SLURM_CPUS_PER_TASK="6")
    assert code == 0, told
    assert "--cpus-per-task=6" in (cluster.folder / "srun_options").read_text().split()


def test_every_task_of_an_array_makes_its_own_part(cluster: Cluster) -> None:
    dataset = ("--dataset_name", "google/fleurs", "--language_code", "it")
    code, told = cluster.run("preprocess", "--shard_count", "4", *dataset, SLURM_ARRAY_TASK_ID="3")
    assert code == 0, told
    arguments, _ = cluster.container
    assert arguments[arguments.index("--shard_index") + 1] == "3"
    assert arguments[arguments.index("--shard_count") + 1] == "4"


def test_each_of_many_processes_knows_its_place(cluster: Cluster) -> None:
    """The second process on the second of two nodes of four GPUs."""
    many = {"SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    code, told = cluster.run("train", CUDA_VISIBLE_DEVICES="0,1,2,3", **many)
    assert code == 0, told
    environment = cluster.container[1]
    assert launch_of(environment) == Launch(rank=5, processes=8, local_rank=1, local_processes=4)
    assert environment["MASTER_ADDR"] == "node1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
