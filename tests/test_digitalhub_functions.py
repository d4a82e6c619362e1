"""The python functions of DigitalHub, through the real SDK: how they continue, and how they tell what went wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT
from digitalhub_platform import BUCKET, SHORT, SMALL, Submit

from asr_fine_tuner.digitalhub_functions import RunFailed, preprocess_dataset, train_and_log_model
from asr_fine_tuner.locations import ArtifactHome

if TYPE_CHECKING:
    from digitalhub_platform import Platform
    from loopback.hub import LoopbackHub

# The SDK announces its next version's names; pyproject.toml stays below it.
pytestmark = pytest.mark.filterwarnings("ignore:.*0.16:UserWarning")


def test_submitting_again_continues_and_uploads_nothing_twice(
    platform: Platform, tiny_model: Path, hf_home: Path, tmp_path: Path
) -> None:
    given = {"dataset_name": str(ROOT / "demo" / "dataset"), "language_code": "it", "model_id": str(tiny_model)}
    preprocessing = [platform.submit("preprocess_dataset", {**given, **SMALL, "artifact_name": "demo"}) for _ in "ab"]
    for run_id in preprocessing:
        platform.execute(run_id)
    artifact = platform.held.only("artifacts")
    assert all(run["status"]["outputs"] == {"artifact": artifact["key"]} for run in platform.held.all("runs"))

    shutil.rmtree(ArtifactHome.of("demo").folder)
    training = {"model_id": str(tiny_model), "model_name": "demo", "output_dir": str(tmp_path / "run"), **SHORT}
    by_name = platform.submit("train_and_log_model", {**training, "artifact_name": "demo"})
    by_input = platform.submit("train_and_log_model", training, inputs={"artifact_name": artifact["key"]})
    platform.execute(by_name)
    before = platform.objects()
    platform.s3.delete_object(Bucket=BUCKET, Key=_key_of(artifact, "train/state.json"))
    ended = platform.execute(by_input)
    model = platform.held.only("models")
    assert ended["status"]["outputs"] == {"model": model["key"]}
    assert "train_loss" not in platform.held.metrics[by_input], "it had been trained already"
    assert platform.objects().keys() == before.keys() - {_key_of(artifact, "train/state.json")}


def test_the_last_part_of_an_artifact_logs_it(platform: Platform, tiny_model: Path, hf_home: Path) -> None:
    given = {"dataset_name": str(ROOT / "demo" / "dataset"), "language_code": "it", "model_id": str(tiny_model)}
    for part in range(2):
        platform.execute(
            platform.submit("preprocess_dataset", {**given, **SMALL, "shard_index": part, "shard_count": 2})
        )
        assert len(platform.held.all("artifacts")) == part


def test_an_artifact_on_the_hub_is_not_logged_to_the_project(
    platform: Platform, hub: LoopbackHub, tiny_model: Path, tmp_path: Path
) -> None:
    platform.project().new_secret("HF_TOKEN", secret_value="hf_test")
    given = {"model_id": str(tiny_model), "artifact_name": "hf://datasets/tester/demo"}
    dataset = {"dataset_name": str(ROOT / "demo" / "dataset"), "language_code": "it"}
    run_id = platform.submit("preprocess_dataset", {**given, **dataset, **SMALL}, secrets=["HF_TOKEN"])
    assert not platform.execute(run_id)["status"].get("outputs")
    assert not platform.held.all("artifacts")
    run_id = platform.submit(
        "train_and_log_model", {**given, **SHORT, "output_dir": str(tmp_path / "run")}, secrets=["HF_TOKEN"]
    )
    platform.execute(run_id)
    assert platform.held.only("models")["status"]["state"] == "READY"


@pytest.mark.parametrize(
    ("handler", "parameters", "code", "told"),
    [
        (
            "preprocess_dataset",
            {"dataset_nam": "google/fleurs"},
            2,
            ("unknown parameter dataset_nam", "--dataset_name"),
        ),
        ("preprocess_dataset", {"dataset_name": "google/fleurs"}, 2, ("no language_code", "--language_code")),
        (
            "train_and_log_model",
            {"artifact_name": "nowhere"},
            2,
            ("no artifact 'nowhere' in the project asr", "logged"),
        ),
        ("train_and_log_model", {"learning_rate": -1}, 2, ("--learning_rate: -1", "greater than 0")),
        ("train_and_log_model", {"artifact_name": "x", "publish": "soon"}, 2, ("--publish: 'soon'", "boolean")),
    ],
)
def test_a_failure_is_told_in_the_run(
    platform: Platform, handler: str, parameters: dict[str, object], code: int, told: tuple[str, str]
) -> None:
    run_id = platform.submit(handler, parameters)
    with pytest.raises(RunFailed) as failed:
        platform.execute(run_id)
    status = platform.held.entities["runs"][run_id]["status"]
    assert status["state"] == "ERROR"
    assert status["message"] == str(failed.value)
    assert status["results"]["exit_code"] == code
    for part, text in zip(("given", "expected"), told, strict=True):
        assert text in status["results"]["error"][part]
        assert text in status["message"]


def test_a_secret_that_the_run_does_not_name_is_not_there(
    platform: Platform, submitted: Submit, gated: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_PATIENCE_SECONDS", "0")
    preprocessing, _ = submitted("python")
    preprocessing["spec"]["secrets"] = []
    with pytest.raises(RunFailed, match=r"exit code 2.*\n.*google/fleurs was not found on the Hub with no HF_TOKEN"):
        platform.execute(preprocessing["id"], **SMALL)


def test_a_platform_that_is_down_for_the_moment_says_submit_again(
    platform: Platform, tiny_artifact: Path, hf_home: Path
) -> None:
    run_id = platform.submit("train_and_log_model", {"artifact_name": "demo"})
    platform.core.fail("/artifacts", 502)
    with pytest.raises(RunFailed, match=r"exit code 75: submit it again\n.*the platform answers 502"):
        platform.execute(run_id)
    assert platform.held.entities["runs"][run_id]["status"]["results"]["error"]["kind"] == "TransientError"


def test_where_the_sdk_runs_a_function_itself_the_results_tell_why_it_failed(platform: Platform) -> None:
    """Its own message says only that something went wrong."""
    function = platform.function("train_and_log_model")
    with pytest.raises(RuntimeError):
        function.run(action="job", local_execution=True, parameters={"max_step": 3})
    status = platform.held.only("runs")["status"]
    assert status["state"] == "ERROR"
    assert status["results"]["exit_code"] == 2
    assert status["results"]["error"]["expected"] == "--max_steps"


def test_functions_can_be_called_without_a_run(platform: Platform, tiny_model: Path, hf_home: Path) -> None:
    project = platform.project()
    dataset = str(ROOT / "demo" / "dataset")
    preprocess_dataset(project, dataset_name=dataset, language_code="it", model_id=str(tiny_model), **SMALL)
    assert platform.held.only("artifacts")["status"]["state"] == "READY"
    with pytest.raises(RunFailed, match="unknown parameter max_step"):
        train_and_log_model(project, max_step=3)


def _key_of(entity: dict[str, Any], name: str) -> str:
    return f"{entity['spec']['path']}{name}".removeprefix(f"s3://{BUCKET}/")
