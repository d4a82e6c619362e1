"""digitalhub_project.py with the real SDK: which version is taken, what a fetched one has to be, and what failures
mean."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from digitalhub_platform import BUCKET
from tiny import contents

from asr_fine_tuner.digitalhub_project import RunTracker, fetch_artifact, find_artifact, log_artifact, platform_errors
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.files import exclusive
from asr_fine_tuner.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from digitalhub_platform import Platform

pytestmark = pytest.mark.filterwarnings("ignore:.*0.16:UserWarning")


@pytest.fixture
def artifact(tiny_artifact: Path, hf_home: Path, tmp_path: Path) -> Path:
    """A copy of an artifact, made on another machine."""
    return shutil.copytree(tiny_artifact, tmp_path / "elsewhere")


def other(artifact: Path) -> Path:
    """The same with another manifest: another artifact."""
    manifest = artifact / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace('"torch"', '"torch "'))
    return artifact


def key_of(version: Any, name: str) -> str:
    return f"{version.spec.path}{name}".removeprefix(f"s3://{BUCKET}/")


def test_the_newest_whole_version_is_found(platform: Platform, artifact: Path) -> None:
    project = platform.project()
    first = log_artifact(project, "demo", artifact)
    second = log_artifact(project, "demo", other(artifact))
    unfinished = project.new_artifact("demo", kind="artifact", path=f"s3://{BUCKET}/unfinished/")
    assert find_artifact(project, "demo").id == second.id
    assert find_artifact(project, first.key).id == first.id
    with pytest.raises(PermanentError, match="which ends in its id"):
        find_artifact(project, "store://asr/artifact/artifact/demo")
    with pytest.raises(PermanentError, match="1 whose upload has not ended well"):
        find_artifact(project, unfinished.key)


def test_an_upload_that_failed_is_no_version_and_is_made_again(
    platform: Platform, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = platform.project()
    monkeypatch.setenv("DHCORE_DEFAULT_FILES_STORE", "s3://nowhere")
    _forget_environment()
    with pytest.raises(PermanentError, match=r"\(404\)"):
        log_artifact(project, "demo", artifact)
    monkeypatch.setenv("DHCORE_DEFAULT_FILES_STORE", f"s3://{BUCKET}")
    _forget_environment()
    project = platform.project()
    with pytest.raises(PermanentError, match="1 whose upload has not ended well"):
        find_artifact(project, "demo")
    again = log_artifact(project, "demo", artifact)
    assert find_artifact(project, "demo").id == again.id


def test_storage_that_cannot_be_reached_is_transient(
    platform: Platform, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = platform.project()
    version = log_artifact(project, "demo", artifact)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    _forget_environment()
    with pytest.raises(TransientError, match=r"the upload failed .*Could not connect"):
        log_artifact(platform.project(), "another", artifact)
    with pytest.raises(TransientError, match="the platform cannot be reached"):
        fetch_artifact(version)


def test_a_fetched_artifact_is_whole(platform: Platform, artifact: Path) -> None:
    version = log_artifact(platform.project(), "demo", artifact)
    key = key_of(version, "train/state.json")
    whole = platform.objects()[key]
    platform.s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    with pytest.raises(PermanentError, match=r"(?s)train/state\.json has sha256 .*delete this version"):
        fetch_artifact(version)
    platform.s3.put_object(Bucket=BUCKET, Key=key, Body=whole)
    assert contents(fetch_artifact(version)) == contents(artifact)


def test_an_artifact_of_many_files_arrives(platform: Platform, artifact: Path) -> None:
    """The SDK lists up to 100 files in the status of an artifact, and more of them elsewhere."""
    for number in range(101):
        (artifact / "train" / f"{number:03d}.txt").write_text("")
    version = log_artifact(platform.project(), "demo", artifact)
    assert {entry["path"] for entry in platform.held.files[version.id]} == set(contents(artifact))
    assert contents(fetch_artifact(version)) == contents(artifact)


def test_two_jobs_do_not_fetch_into_one_folder(platform: Platform, artifact: Path) -> None:
    version = log_artifact(platform.project(), "demo", artifact)
    fetched = fetch_artifact(version)
    shutil.rmtree(fetched)
    with exclusive(fetched.parent / "lock", what="x"), pytest.raises(TransientError, match="another job"):
        fetch_artifact(version)


@pytest.mark.parametrize(
    ("status", "meaning"), [(401, PermanentError), (403, PermanentError), (429, TransientError), (503, TransientError)]
)
def test_answers_of_core_have_an_outcome(platform: Platform, status: int, meaning: type[Exception]) -> None:
    project = platform.project()
    platform.core.fail("/artifacts", status)
    with pytest.raises(meaning, match="made to fail"):
        find_artifact(project, "demo")


def test_a_bug_stays_one() -> None:
    with pytest.raises(ZeroDivisionError), platform_errors("nothing"):
        _ = 1 / 0


def test_metrics_become_lists_with_their_steps(platform: Platform) -> None:
    run_id = platform.submit("train_and_log_model", {})
    tracker = RunTracker(_run(run_id))
    tracker.log({"train/loss": 3.0, "train/grad_norm": float("inf")}, 1)
    tracker.log({"train/loss": 2.0, "train/grad_norm": 0.5}, 2)
    tracker.log({"eval/wer": 0.5}, 2)
    tracker.finish({}, 0)
    assert platform.held.metrics[run_id] == {
        "train_step": [1, 2],
        "train_loss": [3.0, 2.0],
        "train_grad_norm": [0.5],
        "eval_step": [2],
        "eval_wer": [0.5],
    }


def test_training_does_not_wait_for_metrics_and_goes_on_without(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    run = _run(platform.submit("train_and_log_model", {}))
    platform.core.stall("/metrics", 0.5, times=1)
    platform.core.fail("/metrics", 500)
    tracker = RunTracker(run)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            tracker.log({"train/loss": 3.0}, step)
        assert time.monotonic() - began < 0.4
        tracker.finish({}, 0)
    assert len([record for record in caplog.records if "does not take the metrics" in record.message]) == 1
    assert not platform.held.metrics


def test_metrics_that_were_not_taken_come_with_later_ones(platform: Platform) -> None:
    run_id = platform.submit("train_and_log_model", {})
    tracker = RunTracker(_run(run_id))
    platform.core.fail("/metrics", 502, times=1)
    tracker.log({"train/loss": 3.0}, 1)
    tracker.log({"train/loss": 2.0}, 2)
    tracker.finish({}, 0)
    assert platform.held.metrics[run_id] == {"train_step": [1, 2], "train_loss": [3.0, 2.0]}


def _run(run_id: str) -> Any:
    from digitalhub import get_run

    return get_run(run_id, project="asr")


def _forget_environment() -> None:
    """The SDK reads where the platform is when its client is made, which projects keep."""
    from digitalhub.context.api import delete_context
    from digitalhub.stores.client.common.config import reset_client_config

    delete_context("asr")
    reset_client_config()
