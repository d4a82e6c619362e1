"""howto/sagemaker and howto/vertex: requests that the platforms take, and folders that our job finds again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.platform_folders import platform_folders

FILES = Path(__file__).resolve().parent.parent / "howto"
SAGEMAKER: dict[str, Any] = json.loads((FILES / "sagemaker" / "train.json").read_text(encoding="utf-8"))
VERTEX: dict[str, Any] = yaml.safe_load((FILES / "vertex" / "train.yaml").read_text(encoding="utf-8"))
(POOL,) = VERTEX["workerPoolSpecs"]
ARGUMENTS = {
    "sagemaker": SAGEMAKER["AlgorithmSpecification"]["ContainerArguments"],
    "vertex": POOL["containerSpec"]["args"],
}


def _refusal(request: dict[str, Any]) -> str:
    """What the AWS client says of a request to create a training job before it sends it; nothing when it is fine."""
    operation = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    return str(ParamValidator().validate(request, operation.input_shape).generate_report())


def test_sagemaker_takes_the_request() -> None:
    assert _refusal(SAGEMAKER) == ""
    assert "TrainingImages" in _refusal({**SAGEMAKER, "AlgorithmSpecification": {"TrainingImages": "asr-train"}})


@pytest.mark.parametrize("platform", ARGUMENTS)
def test_the_job_understands_every_argument(platform: str) -> None:
    given = ARGUMENTS[platform]
    understood = read_parameters(TrainParameters, "train", given)
    for flag, value in zip(given[::2], given[1::2], strict=True):
        assert str(getattr(understood, flag.removeprefix("--"))).lower().removesuffix(".0") == value
    assert understood.output_dir is None, "the run would go elsewhere than to the platform's folders"


def test_sagemaker_keeps_what_the_job_leaves() -> None:
    folders = platform_folders(SAGEMAKER["Environment"])
    assert folders is not None
    assert str(folders.runs) == SAGEMAKER["CheckpointConfig"]["LocalPath"]
    assert SAGEMAKER["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "-m", "jobs.train"]
    (channel,) = SAGEMAKER["InputDataConfig"]
    understood = read_parameters(TrainParameters, "train", ARGUMENTS["sagemaker"])
    assert understood.artifact_name == f"/opt/ml/input/data/{channel['ChannelName']}"
    assert understood.grace_period < 120, "SageMaker kills 120 s after SIGTERM"


def test_vertex_keeps_what_the_job_leaves(tmp_path: Path) -> None:
    below = VERTEX["baseOutputDirectory"]["outputUriPrefix"]
    (tmp_path / "your-bucket").mkdir()
    given = {"AIP_CHECKPOINT_DIR": f"{below}/checkpoints/", "AIP_MODEL_DIR": f"{below}/model/"}
    folders = platform_folders(given, tmp_path)
    assert folders is not None
    assert folders.model == tmp_path / "your-bucket/asr/runs/whisper-small-it/model"
    understood = read_parameters(TrainParameters, "train", ARGUMENTS["vertex"])
    assert understood.artifact_name is not None
    assert understood.artifact_name.startswith("/gcs/your-bucket/")
