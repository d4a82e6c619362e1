"""The preflight as people run it: what it finds, in which words, with which exit code, and what it leaves alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from loopback.hub_answers import Account
from loopback.wandb import API_KEY, LoopbackWandb
from tiny_training import changed, given_of, sigterm_at

from asr_fine_tuner import train
from asr_fine_tuner.checklist import Check
from asr_fine_tuner.errors import ExitCode, InterruptedJob, PermanentError
from asr_fine_tuner.files import exclusive
from asr_fine_tuner.preflight_report import CHECKS
from asr_fine_tuner.preflighting import preflight

if TYPE_CHECKING:
    from conftest import JobRun, RunJob
    from loopback.hub import LoopbackHub
    from warm_jobs import WarmJobs

    from asr_fine_tuner.parameters import TrainParameters

MODEL = "test-org/tiny-whisper"
GIGABYTE = 10**9


@pytest.fixture
def given(parameters: TrainParameters) -> dict[str, object]:
    """A train job on the tiny artifact with a model of the Hub."""
    return given_of(changed(parameters, model_id=MODEL))


@pytest.fixture
def model_on_hub(hub: LoopbackHub, tiny_model: Path) -> str:
    return hub.add_repo("model", MODEL, tiny_model)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set here, so that what the preflight sets in this process is undone."""
    monkeypatch.setenv("HUB_PATIENCE_SECONDS", "1")


def statuses(run: JobRun) -> dict[str, str]:
    return {check["name"]: check["status"] for check in run.result["checks"]}


def check(run: JobRun, name: str) -> dict[str, Any]:
    (found,) = (check for check in run.result["checks"] if check["name"] == name)
    return dict(found)


def examined(parameters: TrainParameters, code: ExitCode) -> dict[str, Check]:
    """The checks by name, of a preflight in this process that ends with `code`."""
    report = preflight(parameters)
    assert report.exit_code is code
    return {check.name: check for check in report.checks.checks}


def test_all_is_well(
    hub: LoopbackHub,
    model_on_hub: str,
    wandb_server: LoopbackWandb,
    given: dict[str, object],
    tmp_path: Path,
    jobs: WarmJobs,
) -> None:
    env = {
        "TMPDIR": str(tmp_path),
        "HF_TOKEN": "hf_test",
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": wandb_server.url,
        "WANDB_API_KEY": API_KEY,
    }
    run = jobs.run("preflight", {**given, "publish": True, "evaluate_base": True}, env=env)

    assert (run.returncode, run.result["status"], run.result["exit_code"]) == (0, "done", 0), run.stderr
    assert statuses(run) == dict.fromkeys(CHECKS, "ok")
    assert model_on_hub in check(run, "model")["found"]
    assert "tester, role write" in check(run, "Hub token")["found"]
    assert "tester/tiny-whisper-it" in check(run, "publishing")["found"]
    assert all(seconds > 0 for seconds in run.result["rehearsal"].values())
    estimate = run.result["estimate"]
    pace = run.result["rehearsal"]
    assert estimate["job_seconds"] > 6 * pace["step"]
    assert min(estimate.values()) > 0
    assert "continuing from step 1 of 2" in run.stderr
    assert [line for line in run.stderr.splitlines() if line.startswith("ok  ")] != []

    assert {path.name for path in tmp_path.iterdir()} == {"hf"}
    assert hub.requested("/commit/") == []
    assert list(hub.files("model", "tester/tiny-whisper-it")) in ([], [".gitattributes"])
    assert wandb_server.runs == {}
    assert not any(secret in run.stdout + run.stderr for secret in ("hf_test", API_KEY))


def test_one_run_shows_all_problems(
    hub: LoopbackHub, model_on_hub: str, wandb_server: LoopbackWandb, tmp_path: Path, jobs: WarmJobs
) -> None:
    hub.tokens["hf_reader"] = Account("reader", role="read")
    env = {
        "HF_TOKEN": "hf_reader",
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": wandb_server.url,
        "WANDB_API_KEY": "b" * 40,
    }
    missing = {"artifact_name": "missing", "language_code": "it", "dataset_name": "me/speech"}
    asked = {"model_id": MODEL, **missing, "publish": True, "output_dir": tmp_path / "run"}
    run = jobs.run("preflight", asked, env=env)

    assert run.returncode == 2
    assert run.result["status"] == "failed"
    failed = {name for name, status in statuses(run).items() if status == "failed"}
    assert failed == {"tracking", "artifact", "dataset", "publishing"}
    assert check(run, "artifact")["action"].startswith("make it: python -m jobs.preprocess --dataset_name me/speech ")
    assert check(run, "artifact")["action"] in run.stderr
    assert "reader may only read" in check(run, "publishing")["found"]
    assert "WANDB_API_KEY" in check(run, "tracking")["action"]
    # What does not need the artifact was looked at all the same.
    assert {statuses(run)[name] for name in ("Hub token", "model", "output folder", "disk", "memory")} == {"ok"}
    assert {statuses(run)[name] for name in ("fit", "weights", "rehearsal")} == {"not checked"}
    assert hub.requested("safetensors", "GET") == []


def test_a_gate_is_told_with_its_licence(
    hub: LoopbackHub, tiny_model: Path, parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("model", MODEL, tiny_model, gated=True)
    hub.tokens["hf_other"] = Account("other")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    found = examined(changed(parameters, model_id=MODEL), ExitCode.PERMANENT)
    assert f"accept its conditions at {hub.url}/{MODEL}" in str(found["model"].action)
    assert found["artifact"].status == "ok"
    assert found["fit"] == Check("fit", "not checked", "needs the model")


def test_the_dataset_of_an_artifact_yet_to_be_made(
    hub: LoopbackHub, parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["hf_other"] = Account("other")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    asked = changed(parameters, artifact_name=None, dataset_name="org/speech", language_code="it")
    hub.add_repo("dataset", "org/gated", tiny.dataset(), gated=True)
    gated = examined(changed(asked, dataset_name="org/gated"), ExitCode.PERMANENT)["dataset"]
    assert gated.status == "failed"
    assert f"accept its conditions at {hub.url}/datasets/org/gated" in str(gated.action)
    hub.add_repo("dataset", "org/speech", tiny.dataset())
    found = examined(asked, ExitCode.PERMANENT)
    assert (found["artifact"].status, found["dataset"].status) == ("failed", "ok")
    assert found["dataset"].found == (
        "org/speech (it): train of train, validation of validation, test of test; text in sentence"
    )
    assert hub.sent_bytes("_cdn/datasets") < 100_000


def test_pickled_weights_are_found_without_loading_any(
    hub: LoopbackHub, tiny_model: Path, parameters: TrainParameters
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.name != "model.safetensors"}
    hub.add_repo("model", MODEL, {**files, "pytorch_model.bin": b"pickle"})
    found = examined(changed(parameters, model_id=MODEL), ExitCode.PERMANENT)
    assert "only pickled ones" in found["model"].found
    assert hub.requested("pytorch_model.bin") == []


def test_a_hub_that_is_down_may_be_up_again(hub: LoopbackHub, model_on_hub: str, parameters: TrainParameters) -> None:
    hub.fail("/api/models/", 503)
    asked = changed(parameters, model_id=MODEL)
    assert examined(asked, ExitCode.TRANSIENT)["model"].status == "failed"


def test_an_artifact_of_another_model(tiny_artifact: Path, parameters: TrainParameters) -> None:
    found = examined(changed(parameters, model_id=str(tiny.wide_model())), ExitCode.PERMANENT)
    assert "mel bins: 80 in the artifact, 128 in the model" in found["fit"].found
    assert {found[name].status for name in ("model", "artifact", "disk", "memory")} == {"ok"}
    assert {found[name].status for name in ("weights", "rehearsal")} == {"not checked"}


def test_memory_is_planned_for_the_windows_of_the_job(parameters: TrainParameters, short_clips: Path) -> None:
    packed = changed(parameters, artifact_name=str(short_clips), train_batch_size=10)
    found = examined(packed, ExitCode.DONE)
    # Ten clips in three windows, and one more where a step has more of them.
    assert "up to 4 windows at once" in found["memory"].found
    unpacked = examined(changed(packed, packing="off"), ExitCode.DONE)
    assert "up to 10 windows at once" in unpacked["memory"].found


def test_a_lock_that_another_job_holds(parameters: TrainParameters) -> None:
    folder = Path(str(parameters.output_dir))
    with exclusive(folder / "lock", what="it"):
        found = examined(parameters, ExitCode.TRANSIENT)
    assert "another job" in found["output folder"].found


def test_wrong_parameters_are_the_first_check_and_cost_no_time(run_job: RunJob) -> None:
    run = run_job("preflight", "--max_steps", "0", "--train_batch_size", "many")
    assert run.returncode == 2
    assert [check["name"] for check in run.result["checks"]] == list(CHECKS)
    first, *rest = run.result["checks"]
    assert first["status"] == "failed"
    assert "--max_steps" in first["found"]
    assert "--train_batch_size" in first["found"]
    assert {check["status"] for check in rest} == {"not checked"}


def test_sigterm_ends_the_rehearsal_with_what_was_found(
    model_on_hub: str, given: dict[str, object], tmp_path: Path, jobs: WarmJobs
) -> None:
    job = jobs.start("preflight", {**given, "train_batch_size": 64}, env={"TMPDIR": str(tmp_path)})
    job.wait_until_said("step 1 of 2")
    os.kill(job.pid, signal.SIGTERM)
    run = job.wait()
    assert run.returncode == 143
    assert run.result["status"] == "interrupted"
    assert check(run, "memory")["status"] == "ok"
    assert check(run, "rehearsal")["found"] == "interrupted"
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".preflight-*"))


def test_it_is_one_process(parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**started, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PermanentError, match="a preflight in 2 processes") as raised:
        preflight(parameters)
    assert "without torchrun" in raised.value.action


def test_help_imports_nothing_heavy(job_env: dict[str, str]) -> None:
    script = "import runpy, sys; sys.argv = ['preflight', '--help']\ntry: runpy.run_module('jobs.preflight', "
    script += "run_name='__main__')\nfinally: print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'wandb', "
    script += "'huggingface_hub', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], env=job_env, capture_output=True, text=True, check=True)
    assert "what a train job with the same parameters would fail with" in " ".join(done.stdout.split())
    assert done.stderr.strip() == "[]"


class TestDisk:
    def test_too_small_for_the_job(self, parameters: TrainParameters) -> None:
        report = preflight(parameters, free=lambda path: 1_000_000)
        found = {check.name: check for check in report.checks.checks}
        assert report.exit_code is ExitCode.PERMANENT
        assert found["disk"].status == "failed"
        assert "1 MB free" in found["disk"].found
        assert "--output_dir" in str(found["disk"].action)
        assert found["rehearsal"].status == "not checked"
        assert found["memory"].status == "ok"

    def test_weights_to_download_count_where_the_cache_is(
        self, hub: LoopbackHub, tiny_model: Path, parameters: TrainParameters, hf_home: Path
    ) -> None:
        size = 300_000_000
        files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
        hub.add_repo("model", MODEL, {**files, "model.safetensors": bytes(size)})
        asked = changed(parameters, model_id=MODEL)
        report = preflight(asked, free=lambda path: size)
        (disk,) = (check for check in report.checks.checks if check.name == "disk")
        assert disk.status == "failed"
        assert "300 MB to download" in disk.found
        assert hub.requested("safetensors", "GET") == []


class TestOutputFolder:
    def snapshot(self, parameters: TrainParameters) -> dict[str, bytes]:
        paths = sorted(Path(str(parameters.output_dir)).rglob("*"))
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    def test_a_run_with_other_parameters_is_refused_and_left_as_it_is(self, memorised_again: TrainParameters) -> None:
        before = self.snapshot(memorised_again)
        found = examined(changed(memorised_again, learning_rate=1e-4), ExitCode.PERMANENT)["output folder"]
        assert "learning_rate 0.005 rather than 0.0001" in found.found
        assert self.snapshot(memorised_again) == before

    def test_a_finished_run_needs_no_rehearsal(self, memorised_again: TrainParameters) -> None:
        found = examined(memorised_again, ExitCode.DONE)
        assert "is finished" in found["output folder"].found
        assert {found[name].status for name in ("disk", "memory", "weights", "rehearsal")} == {"not checked"}

    def test_a_run_that_was_stopped_is_continued(self, parameters: TrainParameters) -> None:
        # The step that is under way when the signal comes is finished.
        with sigterm_at("step 4 of 6"), pytest.raises(InterruptedJob):
            train(parameters)
        before = self.snapshot(parameters)
        report = preflight(parameters)
        (found,) = (check.found for check in report.checks.checks if check.name == "output folder")
        assert report.exit_code is ExitCode.DONE
        assert "would continue from" in found
        assert found.endswith("checkpoint-5")
        assert report.pace is not None
        # One step, one evaluation of validation and one of test, two batches each; a checkpoint.
        left = report.pace.step + 4 * report.pace.evaluation_batch + report.pace.checkpoint
        assert report.job_seconds == pytest.approx(left)
        assert self.snapshot(parameters) == before

    def test_a_file_in_its_place(self, parameters: TrainParameters, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        asked = changed(parameters, output_dir=str(tmp_path / "file" / "run"))
        assert "is a file" in examined(asked, ExitCode.PERMANENT)["output folder"].found

    @pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that nobody may write to")
    def test_a_place_that_cannot_be_written(self, parameters: TrainParameters) -> None:
        found = examined(changed(parameters, output_dir="/proc/sys/run"), ExitCode.PERMANENT)["output folder"]
        assert "cannot be written" in found.found
