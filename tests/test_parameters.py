"""Parameters: the defaults that are promised, ranges, and names made of other parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from asr_fine_tuner.parameters import (
    PreprocessParameters,
    TrainParameters,
    default_artifact_name,
    default_model_name,
)

REQUIRED = {"dataset_name": "google/fleurs", "language_code": "it"}


def test_promised_defaults() -> None:
    promised = {
        "model_id": "openai/whisper-small",
        "max_sequence_length": 255,
        "learning_rate": 1e-5,
        "train_batch_size": 16,
        "eval_batch_size": 8,
        "grad_accum_steps": 1,
        "logging_steps": 25,
        "eval_steps": 1000,
        "save_steps": 1000,
        "warmup_steps": 500,
        "max_steps": 5000,
        "precision": "auto",
        "gradient_checkpointing": "auto",
        "resume": True,
        "publish": False,
    }
    assert TrainParameters().model_dump(include=set(promised)) == promised
    preprocess = PreprocessParameters.model_validate(REQUIRED)
    assert (preprocess.task, preprocess.max_rejected_fraction, preprocess.overwrite) == ("transcribe", 0.05, False)


@pytest.mark.parametrize("missing", REQUIRED)
def test_dataset_and_language_are_required_to_preprocess(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        PreprocessParameters.model_validate({name: value for name, value in REQUIRED.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_train_samples", 0),
        ("max_eval_samples", -1),
        ("seed", -1),
        ("seed", 2**32),
        ("max_duration", 0),
        ("max_duration", float("inf")),
        ("min_duration", -0.1),
        ("min_duration", float("nan")),
        ("num_workers", 0),
        ("max_rejected_fraction", 1.1),
        ("task", "translation"),
        ("dataset_name", "  "),
        ("language_code", ""),
        ("artifact_name", "../elsewhere"),
        ("artifact_name", "a/b"),
        ("artifact_name", "a" * 97),
        ("hf_token", "secret"),
    ],
)
def test_preprocess_refuses(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        PreprocessParameters.model_validate({**REQUIRED, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("warmup_steps", -1),
        ("train_batch_size", 0),
        ("grad_accum_steps", 0),
        ("eval_batch_size", 0),
        ("max_sequence_length", 449),
        ("logging_steps", 0),
        ("eval_steps", 0),
        ("save_steps", 0),
        ("early_stopping_patience", 0),
        ("precision", "fp8"),
        ("gradient_checkpointing", "yes"),
        ("lr_scheduler", "exponential"),
        ("model_name", "a/b/c"),
        ("model_name", "a--b"),
        ("wandb_api_key", "secret"),
    ],
)
def test_train_refuses(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainParameters.model_validate({name: value})


def test_spaces_around_names_are_dropped() -> None:
    assert PreprocessParameters(dataset_name=" google/fleurs ", language_code="it ").language_code == "it"


def test_parameters_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainParameters().max_steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model_id", "dataset_name", "language_code", "task", "name"),
    [
        ("openai/whisper-small", "google/fleurs", "it", "transcribe", "fleurs-it-whisper-small"),
        ("openai/whisper-small", "google/fleurs", "it", "translate", "fleurs-it-whisper-small-translate"),
        ("/models/tiny/", "/data/my speech.zip", "it_it", None, "my-speech-it_it-tiny"),
    ],
)
def test_default_artifact_name(model_id: str, dataset_name: str, language_code: str, task: str, name: str) -> None:
    assert default_artifact_name(model_id, dataset_name, language_code, task) == name
    assert PreprocessParameters.model_validate({**REQUIRED, "artifact_name": name}).artifact_name == name


def test_default_model_name() -> None:
    assert default_model_name("openai/whisper-small", "it") == "whisper-small-it"
    assert TrainParameters(model_name=default_model_name("models/my model!", "sr latin")).model_name


@pytest.mark.parametrize("name", ["model_id", "dataset_name", "output_dir", "artifact_name"])
def test_a_tilde_is_the_home_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it in `--model_id=~/model`, and nobody expands it in .env."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parameters = TrainParameters.model_validate({name: "~/somewhere"})
    assert getattr(parameters, name) == str(tmp_path / "somewhere")


def test_paths_are_taken_as_text(tmp_path: Path) -> None:
    """In Python people have a Path at hand."""
    given = PreprocessParameters(dataset_name=tmp_path, language_code="it", model_id=tmp_path / "model")  # type: ignore[arg-type]
    assert (given.dataset_name, given.model_id) == (str(tmp_path), str(tmp_path / "model"))
