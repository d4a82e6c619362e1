"""Both jobs in runs of DigitalHub, through the real SDK: what the howto submits is executed as its pods do it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from digitalhub_platform import HF_TOKEN, SHORT, SMALL, ContainerFailed, Submit
from loopback.digitalhub import REFRESH_TOKEN, TOKEN
from tiny import contents

from asr_fine_tuner.checkpoint_files import PREDICTIONS_NAME, PUBLISHED_FILES
from asr_fine_tuner.digitalhub_jobs import main
from asr_fine_tuner.digitalhub_project import log_artifact
from asr_fine_tuner.locations import ArtifactHome

if TYPE_CHECKING:
    from digitalhub_platform import Platform
    from loopback.hub import LoopbackHub

pytestmark = pytest.mark.filterwarnings("ignore:.*0.16:UserWarning")


@pytest.mark.parametrize("kind", ["container", "python"])
def test_what_the_howto_submits_makes_an_artifact_and_a_model_of_the_project(
    platform: Platform, submitted: Submit, gated: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    preprocessing, training = submitted(kind)
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
    ended = platform.execute(training["id"], output_dir=str(run_folder), lora_rank=4, **SHORT)
    model = held.only("models")
    assert ended["status"]["outputs"] == {"model": model["key"]}
    assert {"type": "consumes", "dest": artifact["key"]} in ended["metadata"]["relationships"]
    assert (model["kind"], model["name"], model["status"]["state"]) == ("huggingface", "whisper-small-it", "READY")
    assert model["spec"].items() >= {"framework": "transformers", "base_model": "openai/whisper-small"}.items()
    assert model["spec"]["parameters"]["max_steps"] == 4
    logged = platform.files_of(model)
    assert logged == {name: (run_folder / "model" / name).read_bytes() for name in logged}
    assert set(logged) == {*PUBLISHED_FILES, PREDICTIONS_NAME} & set(contents(run_folder / "model"))
    assert "adapter/adapter_config.json" in logged
    assert "adapter_config.json" not in logged, "transformers would load the adapter onto the merged weights"

    results = json.loads(logged["results.json"])
    shown = held.metrics[training["id"]]
    final = {"test_tuned_wer": results["splits"]["test"]["tuned"]["wer"]["rate"], "steps": 4}
    assert shown.items() >= {"train_step": [1, 2, 3, 4], "eval_step": [0, 2, 4], **final}.items()
    assert len(shown["train_loss"]) == 4
    assert len(shown["eval_wer"]) == 3
    assert held.metrics[model["id"]].items() >= final.items()
    assert HF_TOKEN not in json.dumps([held.entities, held.metrics])
    assert not [name for name, body in platform.objects().items() if HF_TOKEN.encode() in body]


def test_a_container_ends_with_the_code_of_the_job(
    platform: Platform, submitted: Submit, hf_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, training = submitted("container")
    with pytest.raises(ContainerFailed, match="2"):
        platform.execute(training["id"])
    line = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (line["job"], line["status"], line["exit_code"]) == ("train", "failed", 2)
    assert line["error"]["given"] == "no artifact 'fleurs-it' in the project asr"
    platform.core.fail("/artifacts", 503)
    with pytest.raises(ContainerFailed, match="75"):
        platform.execute(training["id"])


def test_a_token_that_expires_is_renewed_and_written_nowhere(
    platform: Platform, submitted: Submit, job_env: dict[str, str], tmp_path: Path
) -> None:
    """In a process of its own, as a container's is: the SDK reads where it keeps credentials when it is imported."""
    _, training = submitted("container")
    platform.core.tokens.clear()
    home = tmp_path / "home"
    home.mkdir()
    renewal = {
        "HOME": str(home),
        "DHCORE_REFRESH_TOKEN": REFRESH_TOKEN,
        "DHCORE_CLIENT_ID": "client",
        "OAUTH2_TOKEN_ENDPOINT": f"{platform.core.url}/oauth/token",
    }
    ended = subprocess.run(
        [sys.executable, *training["spec"]["args"]],
        env={**job_env, **os.environ, **renewal, "PROJECT_NAME": "asr", "RUN_ID": training["id"]},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["error"]["given"].startswith("no artifact 'fleurs-it'")
    assert platform.core.tokens == {f"{TOKEN}-renewed"}
    assert list(home.iterdir()) == []
    assert TOKEN not in ended.stdout + ended.stderr


def test_several_processes_fetch_and_log_once(
    platform: Platform, tiny_artifact: Path, tiny_model: Path, job_env: dict[str, str], tmp_path: Path
) -> None:
    artifact = log_artifact(platform.project(), "demo", tiny_artifact)
    run_id = platform.submit("train_and_log_model", {})
    made_of = {"artifact_name": "demo", "model_id": tiny_model, "output_dir": tmp_path / "run", "evaluate_base": False}
    command = [sys.executable, "-m", "asr_fine_tuner.torchrun", "--standalone", "--nproc-per-node=2"]
    command += ["-m", main.__module__, "train", *(f"--{name}={value}" for name, value in {**SHORT, **made_of}.items())]
    ended = subprocess.run(
        command,
        env={**job_env, **os.environ, "HF_HOME": str(tmp_path / "hf"), "PROJECT_NAME": "asr", "RUN_ID": run_id},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["processes"]) == ("done", 2)
    assert ended.stderr.count("tuned model on test") == 1, "only the first rank logs"
    model = platform.held.only("models")
    assert platform.held.entities["runs"][run_id]["status"]["outputs"] == {"model": model["key"]}
    assert len(platform.held.metrics[run_id]["train_loss"]) == 4
    (fetched,) = (tmp_path / "hf").glob("assets/asr-fine-tuner/digitalhub/*/artifact")
    assert fetched.parent.name == artifact.id


@pytest.mark.parametrize(
    ("argv", "told"), [(["publish"], "usage: "), (["train"], "no PROJECT_NAME in the environment")]
)
def test_elsewhere_it_says_what_it_is_for(argv: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert told in capfd.readouterr().err


def test_containers_are_those_of_the_dockerfile(platform: Platform, submitted: Submit) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for run, job in zip(submitted("container"), ("preprocess", "train"), strict=True):
        spec = run["spec"]
        assert platform.function_of(run)["spec"]["image"].endswith(f"/asr-{job}:0.1.0")
        assert f"org.opencontainers.image.title=asr-{job} " in dockerfile
        assert f"USER {spec['run_as_user']}:{spec['fs_group']}\n" in dockerfile
        (volume,) = spec["volumes"]
        assert (volume["volume_type"], volume["mount_path"]) == ("shared_volume", "/data")
        assert f"HF_HOME={volume['mount_path']}/" in dockerfile
