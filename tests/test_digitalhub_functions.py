"""The two python functions on DigitalHub, through the real SDK: what the howto submits is executed as a pod does it."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT
from digitalhub_platform import BUCKET
from loopback.hub_answers import Account
from tiny import contents

from asr_fine_tuner.checkpoint_files import PREDICTIONS_NAME, PUBLISHED_FILES
from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.digitalhub_functions import RunFailed, preprocess_dataset, train_and_log_model
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.parameters import PreprocessParameters, TrainParameters

if TYPE_CHECKING:
    from digitalhub_platform import Platform
    from loopback.hub import LoopbackHub

HF_TOKEN = "hf_OfTheProjectOnly"
SUBMIT = ROOT / "howto" / "digitalhub" / "submit.py"
# The SDK announces its next version's names; pyproject.toml stays below it.
pytestmark = pytest.mark.filterwarnings("ignore:.*0.16:UserWarning")

# What the howto submits, made small.
SMALL = {"num_workers": 1, "max_train_samples": 10, "max_eval_samples": 5, "text_column": None}
SHORT = {
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "warmup_steps": 1,
    "logging_steps": 1,
    "train_batch_size": 2,
    "max_sequence_length": 12,
}
Submit = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def submitted(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Run the howto's file; the platform says of each run at once that it is completed. Returns the runs."""
    project = platform.project()
    project.new_secret("HF_TOKEN", secret_value=HF_TOKEN)
    project.new_secret("WANDB_API_KEY", secret_value="a" * 40)

    def submit(kind: str) -> list[dict[str, Any]]:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [str(SUBMIT), kind])
            patched.setattr(platform.core, "state_of_runs", "COMPLETED")
            # Which asks again every five seconds.
            patched.setattr("digitalhub.entities.run._base.entity.time", SimpleNamespace(time=lambda: 0.0, sleep=id))
            runpy.run_path(str(SUBMIT), run_name="__main__")
        return platform.held.all("runs")

    return submit


@pytest.fixture
def gated(hub: LoopbackHub, tiny_model: Path) -> LoopbackHub:
    """The dataset and the model that the howto names, small; the dataset only for the token that the project has."""
    hub.tokens[HF_TOKEN] = Account("ada", orgs=("google",), role="read")
    hub.add_repo("dataset", "google/fleurs", ROOT / "demo" / "dataset", private=True)
    hub.add_repo("model", "openai/whisper-small", tiny_model)
    return hub


def test_what_the_howto_submits_makes_an_artifact_and_a_model_of_the_project(
    platform: Platform, submitted: Submit, gated: LoopbackHub, tmp_path: Path
) -> None:
    preprocessing, training = submitted("python")
    assert preprocessing["spec"]["secrets"] == training["spec"]["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]
    held, home = platform.held, ArtifactHome.of("fleurs-it")

    ended = platform.execute(preprocessing["id"], **SMALL)
    artifact = held.only("artifacts")
    assert ended["status"]["outputs"] == {"artifact": artifact["key"]}
    assert platform.files_of(artifact) == contents(home.artifact)
    assert (
        held.metrics[preprocessing["id"]].items() >= {"train_clips": 10, "test_clips": 5, "rejected_clips": 0}.items()
    )

    shutil.rmtree(home.folder)  # the next pod is on another machine
    run_folder = tmp_path / "volume" / "run"
    ended = platform.execute(training["id"], output_dir=str(run_folder), **SHORT)
    model = held.only("models")
    assert ended["status"]["outputs"] == {"model": model["key"]}
    assert {"type": "consumes", "dest": artifact["key"]} in ended["metadata"]["relationships"]
    assert (model["kind"], model["name"], model["status"]["state"]) == ("huggingface", "whisper-small-it", "READY")
    assert model["spec"].items() >= {"framework": "transformers", "base_model": "openai/whisper-small"}.items()
    assert model["spec"]["parameters"]["max_steps"] == 4
    logged = platform.files_of(model)
    assert logged == {name: (run_folder / "model" / name).read_bytes() for name in logged}
    assert set(logged) == {*PUBLISHED_FILES, PREDICTIONS_NAME} & set(contents(run_folder / "model"))

    results = json.loads(logged["results.json"])
    shown = held.metrics[training["id"]]
    final = {"test_tuned_wer": results["splits"]["test"]["tuned"]["wer"]["rate"], "steps": 4}
    assert shown.items() >= {"train_step": [1, 2, 3, 4], "eval_step": [0, 2, 4], **final}.items()
    assert len(shown["train_loss"]) == 4
    assert len(shown["eval_wer"]) == 3
    assert held.metrics[model["id"]].items() >= final.items()
    assert HF_TOKEN not in json.dumps([held.entities, held.metrics])
    assert not [name for name, body in platform.objects().items() if HF_TOKEN.encode() in body]


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


def test_container_functions_get_what_the_images_take(platform: Platform, submitted: Submit) -> None:
    preprocessing, training = submitted("container")
    functions = [platform.function_of(run)["spec"] for run in (preprocessing, training)]
    assert [function["image"] for function in functions] == [
        "ghcr.io/your-name/asr-preprocess:0.1.0",
        "ghcr.io/your-name/asr-train:0.1.0",
    ]
    # Without a command the image's own entry point gets the arguments.
    assert not [function["command"] for function in functions if "command" in function]
    first = read_parameters(PreprocessParameters, "", preprocessing["spec"]["args"])
    second = read_parameters(TrainParameters, "", training["spec"]["args"])
    assert (first.dataset_name, first.artifact_name) == ("google/fleurs", second.artifact_name)
    assert second.publish
    for run in (preprocessing, training):
        spec = run["spec"]
        assert spec["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]
        assert spec["volumes"] == [{"volume_type": "shared_volume", "name": "asr", "mount_path": "/data"}]
        assert (spec["run_as_user"], spec["fs_group"]) == (65532, 65532)


def test_functions_and_volume_are_those_of_the_image() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert "USER 65532:65532" in dockerfile
    assert "HF_HOME=/data/" in dockerfile
    for target in ("preprocess", "train"):
        assert f"org.opencontainers.image.title=asr-{target} " in dockerfile
        assert f'ENTRYPOINT ["python", "-m", "jobs.{target}"]' in dockerfile


def _key_of(entity: dict[str, Any], name: str) -> str:
    return f"{entity['spec']['path']}{name}".removeprefix(f"s3://{BUCKET}/")
