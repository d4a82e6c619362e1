"""platform_folders.py: SageMaker and Vertex AI find checkpoints and model where they look for them."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from tiny_training import changed, weights_of
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_fine_tuner import PermanentError, TrainParameters, train
from asr_fine_tuner.checkpoint_files import PREDICTIONS_NAME
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.platform_folders import PlatformFolders, platform_folders
from asr_fine_tuner.training import TrainResult, run_folder


def test_elsewhere_there_are_none() -> None:
    assert platform_folders({"HOME": "/root"}) is None
    assert platform_folders({"SM_MODEL_DIR": "", "AIP_MODEL_DIR": "gs://bucket/model/"}) is None


def test_sagemaker_has_both_below_opt_ml() -> None:
    folders = platform_folders({"SM_MODEL_DIR": "/opt/ml/model", "SM_CHANNELS": "[]"})
    assert folders == PlatformFolders(runs=Path("/opt/ml/checkpoints"), model=Path("/opt/ml/model"))


def test_buckets_of_vertex_are_folders(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    environment = {"AIP_MODEL_DIR": "gs://bucket/run/model/", "AIP_CHECKPOINT_DIR": "gs://bucket/run/checkpoints/"}
    folders = platform_folders(environment, tmp_path)
    assert folders == PlatformFolders(tmp_path / "bucket/run/checkpoints", tmp_path / "bucket/run/model")
    # What tests of a container on one's own machine set.
    local = {"AIP_MODEL_DIR": "/data/model", "AIP_CHECKPOINT_DIR": "/data/checkpoints"}
    assert platform_folders(local, tmp_path) == PlatformFolders(Path("/data/checkpoints"), Path("/data/model"))


def test_a_bucket_that_cannot_be_seen_is_refused(tmp_path: Path) -> None:
    environment = {"AIP_MODEL_DIR": "gs://bucket/model/", "AIP_CHECKPOINT_DIR": "gs://bucket/checkpoints/"}
    with pytest.raises(PermanentError, match="gs://bucket/checkpoints/ as the folder of Vertex AI"):
        platform_folders(environment, tmp_path)


def test_a_folder_that_is_asked_for_is_taken_on_every_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "model"))
    assert run_folder(TrainParameters(output_dir="here"), "name").folder == Path("here")
    assert run_folder(TrainParameters(), "name").folder == tmp_path / "checkpoints" / "name"
    monkeypatch.delenv("SM_MODEL_DIR")
    assert run_folder(TrainParameters(), "name").folder == Path("outputs/name")


def test_sagemaker_gets_the_model_and_again_in_a_new_container(
    memorised: TrainResult, memorising: TrainParameters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A finished run whose checkpoints SageMaker has brought back, while the folder of the model is empty."""
    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "model"))
    shutil.copytree(memorised.model_dir.parent, tmp_path / "checkpoints" / "memorised")

    result = train(changed(memorising, output_dir=None, model_name="memorised"))

    assert not result.trained
    assert weights_of(tmp_path / "model") == weights_of(memorised.model_dir)
    assert (tmp_path / "model" / PREDICTIONS_NAME).is_file()
    assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert WhisperProcessor.from_pretrained(tmp_path / "model")


def test_sagemaker_is_told_why_a_job_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: TrainParameters) -> TrainResult:
        raise PermanentError(given="a loss that is not finite", expected="a finite one", action="lower --learning_rate")

    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "model"))
    assert run_job("train", TrainParameters, fail, []) == 2
    told = (tmp_path / "output" / "failure").read_text()
    assert told.startswith("train ended with 2: a loss that is not finite")
    assert told.endswith("lower --learning_rate")


def test_a_model_is_not_collected_from_a_folder_that_was_asked_for(
    memorised_again: TrainParameters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "model"))
    train(memorised_again)
    assert not (tmp_path / "model").exists()


def test_a_run_on_vertex_needs_no_folder_renamed(
    parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cloud Storage FUSE renames files, and answers a rename of a folder that holds some with EMFILE."""
    replace = os.replace

    def refusing(source: str | Path, target: str | Path) -> None:
        if Path(source).is_dir():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", str(tmp_path / "bucket" / "checkpoints"))
    monkeypatch.setenv("AIP_MODEL_DIR", str(tmp_path / "bucket" / "model"))

    result = train(
        changed(parameters, output_dir=None, model_name="whisper-it", max_steps=2, eval_steps=2, save_steps=1)
    )

    assert result.trained
    run = tmp_path / "bucket" / "checkpoints" / "whisper-it"
    assert sorted(path.name for path in run.glob("*-*")) == ["best-2", "checkpoint-1", "checkpoint-2"]
    assert not list(run.glob(".*"))
    assert weights_of(tmp_path / "bucket" / "model") == weights_of(run / "model")
