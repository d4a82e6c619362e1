"""The preprocess job as a scheduler runs it: processes, exit codes, the last line of stdout, signals."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from conftest import JobRun
from loopback.hub_answers import Account

from asr_fine_tuner import PreprocessParameters, PreprocessResult, preprocess
from asr_fine_tuner.files import exclusive
from asr_fine_tuner.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conftest import RunJob
    from loopback.hub import LoopbackHub
    from warm_jobs import WarmJobs

IMPATIENT = {"HUB_PATIENCE_SECONDS": "0"}

pytestmark = pytest.mark.usefixtures("hf_home")


def ours(**others: object) -> dict[str, object]:
    """The parameters of a job on the shared dataset and model, one worker unless told otherwise."""
    return {**tiny.preprocess_flags(num_workers=1, artifact_name="made"), **others}


def flags(parameters: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in parameters.items()]


def home_of(tmp_path: Path, name: str = "made") -> Path:
    return tmp_path / "hf" / "assets" / "asr-fine-tuner" / "artifacts" / name


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """96 clips to train on in eight files, and one of each kind that cannot be."""
    splits = tiny.all_splits(96, 8)
    splits["train"] += [row for rows in tiny.broken().values() for row in rows]
    return tiny.write_dataset(tmp_path / "mixed", splits, n_files=8)


def again(**others: object) -> PreprocessResult:
    """The same job once more, in this process: it saves the time of the imports."""
    return preprocess(PreprocessParameters.model_validate(tiny.preprocess_flags(artifact_name="made", **others)))


def assert_failed(run: JobRun, code: int, *told: str) -> dict[str, Any]:
    """The job ended with `code`, as the last line of stdout and stderr say, without a traceback."""
    assert run.returncode == code, run.stderr
    assert run.result["job"] == "preprocess"
    assert (run.result["status"], run.result["exit_code"]) == ("failed", code)
    error = run.result["error"]
    assert "Traceback" not in run.stderr
    for part in (error["given"], error["expected"], error["action"]):
        assert part
        assert part in run.stderr
    for text in told:
        assert text in " ".join(error.values())
    return error


class TestDone:
    def test_the_last_line_says_what_was_made(self, tmp_path: Path, run_job: RunJob) -> None:
        run = run_job("preprocess", *flags(ours()))
        assert run.returncode == 0
        assert len(run.stdout.splitlines()) == 1
        result = run.result
        artifact = home_of(tmp_path) / "artifact"
        assert (result["job"], result["status"], result["exit_code"]) == ("preprocess", "done", 0)
        assert (result["artifact"], result["artifact_name"]) == (str(artifact), "made")
        assert {split: told["clips"] for split, told in result["splits"].items()} == {
            "train": 96,
            "validation": 8,
            "test": 8,
        }
        assert (result["bytes_fetched"], result["rejected"], result["reused"]) == (0, {}, False)
        assert result["sha256"] == read_manifest(artifact).sha256
        assert "duration of clips" in run.stderr
        assert "112 of 112 clips" in run.stderr

    def test_variables_and_dotenv_are_parameters_too(self, tmp_path: Path, run_job: RunJob) -> None:
        (tmp_path / ".env").write_text(f"ASR_MODEL_ID={tiny.model()}\nHF_HOME={tmp_path / 'elsewhere'}\n")
        run = run_job(
            "preprocess",
            "--artifact-name=made",
            "--max-train-samples",
            "3",
            env={
                "ASR_DATASET_NAME": str(tiny.dataset()),
                "ASR_LANGUAGE_CODE": "it",
                "ASR_MAX_TRAIN_SAMPLES": "5",
                "ASR_NUM_WORKERS": "1",
                "HF_HOME": None,
            },
        )
        assert run.returncode == 0, run.stderr
        assert run.result["splits"]["train"]["clips"] == 3
        assert Path(run.result["artifact"]).is_relative_to(tmp_path / "elsewhere")


class TestPermanent:
    """Exit code 2: the same command fails again."""

    CASES: tuple[tuple[dict[str, object], tuple[str, ...]], ...] = (
        ({"max_train_sampels": 3}, ("--max_train_samples",)),
        ({"num_workers": 0}, ("--num_workers",)),
        ({"language_code": "dv"}, ("Dhivehi", "--language Sinhala")),
        ({"model_id": tiny.english_model()}, ("English-only", "--model_id")),
        ({"dataset_name": "/no/such/folder"}, ("/no/such/folder",)),
        ({"artifact_name": "taken", "task": "translate"}, ("'taken'", "task: 'translate' and 'transcribe'")),
        ({"dataset_name": "org/missing"}, ("org/missing", "HF_TOKEN")),
        ({"model_id": "org/missing"}, ("org/missing",)),
        ({"dataset_name": "org/speech", "dataset_revision": "nope"}, ("no such revision",)),
    )

    def test_what_is_given_is_told(
        self, hub: LoopbackHub, tmp_path: Path, jobs: WarmJobs, subtests: pytest.Subtests
    ) -> None:
        hub.add_repo("dataset", "org/speech", tiny.dataset())
        taken = home_of(tmp_path, "taken") / "artifact"
        taken.parent.mkdir(parents=True)
        taken.symlink_to(tiny.artifact())
        for given, told in self.CASES:
            with subtests.test(**{name: str(value) for name, value in given.items()}):
                assert_failed(jobs.run("preprocess", ours(**given), env=IMPATIENT), 2, *told)
        assert not home_of(tmp_path).exists()

    def test_a_misspelt_variable(self, jobs: WarmJobs) -> None:
        run = jobs.run("preprocess", ours(), env={"ASR_MAX_TRAIN_SAMPELS": "3"})
        assert_failed(run, 2, "ASR_MAX_TRAIN_SAMPELS", "ASR_MAX_TRAIN_SAMPLES")

    def test_a_token_that_the_hub_refuses(self, hub: LoopbackHub, jobs: WarmJobs) -> None:
        hub.add_repo("dataset", "org/speech", tiny.dataset())
        token = "hf_canaryRefused0123"
        run = jobs.run("preprocess", ours(dataset_name="org/speech"), env={**IMPATIENT, "HF_TOKEN": token})
        assert_failed(run, 2, "does not accept HF_TOKEN")
        assert token not in run.stdout + run.stderr

    def test_too_many_rejections_and_then_more_are_allowed(self, mixed: Path, tmp_path: Path, jobs: WarmJobs) -> None:
        n_broken = sum(map(len, tiny.broken().values()))
        run = jobs.run("preprocess", ours(dataset_name=mixed))
        assert_failed(run, 2, f"{n_broken} of {112 + n_broken} clips", "--max_rejected_fraction 0.05")
        partial = home_of(tmp_path) / "partial" / "artifact"
        encoded = {path.name: path.stat().st_ino for path in (partial / "train").glob("*.arrow")}
        assert len(encoded) == 8
        more = jobs.run("preprocess", ours(dataset_name=mixed, max_rejected_fraction=0.2))
        assert more.returncode == 0, more.stderr
        assert "10 of 10 shards are finished already" in more.stderr
        # Renamed with their folder, not written again.
        artifact = Path(more.result["artifact"])
        assert {path.name: path.stat().st_ino for path in (artifact / "train").glob("*.arrow")} == encoded
        assert more.result["rejected"] == {reason: len(rows) for reason, rows in tiny.broken().items()}
        listed = [json.loads(line) for line in (artifact / "rejected.jsonl").read_text().splitlines()]
        assert len(listed) == n_broken
        assert all(line.keys() == {"split", "id", "reason", "detail"} for line in listed)


class TestTransient:
    """Exit code 75: the same command may succeed later."""

    def test_another_job_holds_the_lock(self, tmp_path: Path, jobs: WarmJobs) -> None:
        with exclusive(home_of(tmp_path) / "lock", what="made"):
            assert_failed(jobs.run("preprocess", ours()), 75, "being written by another job")

    def test_the_hub_is_down(self, hub: LoopbackHub, jobs: WarmJobs) -> None:
        hub.add_repo("dataset", "org/speech", tiny.dataset())
        hub.fail("org/speech", 503)
        run = jobs.run("preprocess", ours(dataset_name="org/speech"), env={"HUB_PATIENCE_SECONDS": "4"})
        assert_failed(run, 75, "503")
        assert len(hub.requested("org/speech")) > 1
        assert "trying again" in run.stderr

    def test_the_hub_cannot_be_reached(self, run_job: RunJob) -> None:
        env = {**IMPATIENT, "HF_ENDPOINT": "http://127.0.0.1:9"}
        run = run_job("preprocess", *flags(ours(dataset_name="org/speech")), env=env)
        assert_failed(run, 75, "http://127.0.0.1:9")

    def test_the_hub_goes_down_while_shards_are_fetched(
        self, hub: LoopbackHub, jobs: WarmJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.add_repo("dataset", "org/speech", tiny.dataset())
        # When the file is fetched, not its footer. 520 is one that the client itself does not repeat.
        hub.fail("train-00005", 520, method="HEAD")
        assert_failed(jobs.run("preprocess", ours(dataset_name="org/speech"), env=IMPATIENT), 75, "520")
        hub.heal()
        before = hub.sent_bytes("_cdn/datasets")
        with caplog.at_level(logging.INFO, "asr_fine_tuner"):
            made = again(dataset_name="org/speech")
        assert "shards are finished already" in caplog.text
        assert made.splits["train"].clips == 96
        # Only what was not fetched before.
        assert hub.sent_bytes("_cdn/datasets") - before < 0.8 * before


class TestInterrupted:
    """Exit code 143: what was finished is kept."""

    @pytest.mark.parametrize(("num_workers", "to_group"), [(1, False), (2, True)])
    def test_sigterm_and_then_the_same_bytes(
        self,
        num_workers: int,
        to_group: bool,
        tmp_path: Path,
        job_env: dict[str, str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        command = [sys.executable, "-m", "jobs.preprocess", *flags(ours(num_workers=num_workers))]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=job_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        records = home_of(tmp_path) / "partial" / "shards"
        try:
            _wait_for(lambda: records.is_dir() and any(records.glob("*.json")), process)
            # Schedulers signal the process, or all processes of the job.
            (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 143, stderr
        result = json.loads(stdout.splitlines()[-1])
        assert (result["status"], result["exit_code"]) == ("interrupted", 143)
        assert "SIGTERM" in result["error"]["given"]
        assert "Traceback" not in stderr
        n_finished = len(list(records.glob("*.json")))
        assert 1 <= n_finished < 10
        with caplog.at_level(logging.INFO, "asr_fine_tuner"):
            made = again(num_workers=num_workers)
        assert f"{n_finished} of 10 shards are finished already" in caplog.text
        assert tiny.contents(made.artifact) == tiny.contents(tiny.artifact())
        assert {path.name for path in home_of(tmp_path).iterdir()} == {"artifact", "lock"}

    def test_sigkill_and_then_the_same_bytes(self, tmp_path: Path, job_env: dict[str, str]) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.preprocess", *flags(ours())],
            cwd=tmp_path,
            env=job_env,
            stderr=subprocess.DEVNULL,
        )
        staged = home_of(tmp_path) / "partial" / "artifact" / "train"
        _wait_for(lambda: len(list(staged.glob("*.arrow"))) >= 2, process)
        process.kill()
        process.wait()
        assert tiny.contents(again(num_workers=1).artifact) == tiny.contents(tiny.artifact())


def _wait_for(condition: Any, process: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the job ended before it could be disturbed"
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_token_is_used_and_appears_nowhere(hub: LoopbackHub, tmp_path: Path, run_job: RunJob) -> None:
    token = "hf_canaryCanary0123456789"
    hub.tokens[token] = Account("tester")
    hub.add_repo("dataset", "tester/private", tiny.dataset(), private=True)
    hub.add_repo("model", "tester/tiny", tiny.model(), private=True)
    command = ours(dataset_name="tester/private", model_id="tester/tiny", max_train_samples=5)
    run = run_job("preprocess", *flags(command), env={"HF_TOKEN": token, "HF_DEBUG": "1"})
    assert run.returncode == 0, run.stderr
    assert {request.token for request in hub.requested("^/(api/)?datasets/tester/private")} == {token}
    assert token not in run.stdout
    assert token not in run.stderr
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "manifest.json" for path in written)
    assert [path for path, content in written.items() if token.encode() in content] == []
