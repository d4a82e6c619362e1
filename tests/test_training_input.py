"""training_input.py: an artifact that is not there, damaged, or of another model is refused, and the error says why."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import EVAL_CLIPS, TRAIN_CLIPS, clips_of, write_artifact
from transformers import WhisperFeatureExtractor, WhisperProcessor

from asr_fine_tuner import PermanentError, TrainParameters
from asr_fine_tuner.artifact import Clip
from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.encoding import model_format
from asr_fine_tuner.hub import download_model
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import MANIFEST_NAME, ModelFormat, read_manifest
from asr_fine_tuner.parameters import PreprocessParameters
from asr_fine_tuner.training_input import check_fits, open_artifact


def _format(folder: Path) -> ModelFormat:
    return model_format(folder.name, download_model(str(folder), None, weights=False).revision, folder)


def _refusal(parameters: TrainParameters) -> PermanentError:
    with pytest.raises(PermanentError) as raised:
        open_artifact(parameters)
    return raised.value


def test_an_artifact_is_found_by_path_by_name_and_by_what_it_was_made_of(
    tiny_artifact: Path, tiny_model: Path, hf_home: Path
) -> None:
    by_path = open_artifact(TrainParameters(artifact_name=str(tiny_artifact)))
    shutil.copytree(tiny_artifact, ArtifactHome.of("my-clips").artifact)
    assert open_artifact(TrainParameters(artifact_name="my-clips")).manifest == by_path.manifest
    shutil.copytree(tiny_artifact, ArtifactHome.of("dataset-it-tiny-whisper").artifact)
    derived = TrainParameters(dataset_name="dataset", language_code="it", model_id=str(tiny_model))
    assert open_artifact(derived).manifest == by_path.manifest


def test_a_missing_artifact_names_the_command_that_makes_it(hf_home: Path) -> None:
    asked: dict[str, Any] = {
        "artifact_name": "my clips",
        "dataset_name": "google/fleurs",
        "language_code": "it",
        "task": "translate",
        "model_id": "openai/whisper-tiny",
        "model_revision": "abc",
        "dataset_revision": "def",
        "max_train_samples": 100,
    }
    error = _refusal(TrainParameters(**asked))
    assert "'my clips'" in error.given
    assert str(hf_home) in error.given
    command = error.action.removeprefix("make it: ")
    assert command.startswith("python -m jobs.preprocess ")
    arguments = command.removeprefix("python -m jobs.preprocess ").replace("'my clips'", "my-clips").split()
    made = read_parameters(PreprocessParameters, "preprocess", arguments)
    assert made.artifact_name == "my-clips"
    assert {name: getattr(made, name) for name in asked if name != "artifact_name"} == {
        name: value for name, value in asked.items() if name != "artifact_name"
    }


def test_without_a_name_or_a_dataset_there_is_nothing_to_look_for() -> None:
    assert "--artifact_name" in _refusal(TrainParameters()).given


def test_an_unfinished_artifact_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    (folder / MANIFEST_NAME).unlink()
    assert "no manifest.json" in _refusal(TrainParameters(artifact_name=str(folder))).given


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
def test_a_damaged_file_is_named(damage: str, tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    file = next((folder / "train").glob("*.arrow"))
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    error = _refusal(TrainParameters(artifact_name=str(folder)))
    assert f"train/{file.name}" in error.given
    assert "preprocess" in error.action


def test_a_manifest_of_another_version_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "format": 99}))
    assert "format 2" in _refusal(TrainParameters(artifact_name=str(folder))).expected


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"language_code": "es"}, "--language_code 'es', the artifact has 'it'"),
        ({"language": "Spanish"}, "--language 'es', the artifact has 'it'"),
        ({"task": "translate"}, "--task 'translate', the artifact has 'transcribe'"),
        ({"dataset_name": "google/fleurs"}, "--dataset_name 'google/fleurs', the artifact has 'dataset'"),
        ({"dataset_revision": "abc"}, "--dataset_revision 'abc', the artifact has"),
        ({"max_train_samples": TRAIN_CLIPS + 1}, "--max_train_samples 11, the artifact was capped at 10"),
        ({"max_eval_samples": EVAL_CLIPS + 1}, "--max_eval_samples 6, the artifact was capped at 5"),
    ],
)
def test_parameters_that_the_artifact_was_not_made_with_are_refused(
    asked: dict[str, Any], told: str, tiny_artifact: Path
) -> None:
    assert told in _refusal(TrainParameters(artifact_name=str(tiny_artifact), **asked)).given


def test_the_same_parameters_in_other_words_are_taken(tiny_artifact: Path) -> None:
    asked = TrainParameters(artifact_name=str(tiny_artifact), language="italian", language_code="it")
    assert open_artifact(asked).manifest == read_manifest(tiny_artifact)


def test_caps_take_the_first_clips(tiny_artifact: Path) -> None:
    given = TrainParameters(artifact_name=str(tiny_artifact), max_train_samples=3, max_eval_samples=2)
    source = open_artifact(given)
    everything = open_artifact(TrainParameters(artifact_name=str(tiny_artifact)))
    assert {split: len(source.clips(split)) for split in ("train", "validation", "test")} == {
        "train": 3,
        "validation": 2,
        "test": 2,
    }
    assert source.clips("train").ids == everything.clips("train").ids[:3]


def test_a_model_with_other_mel_bins_is_told_with_both_values(
    tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    finer = shutil.copytree(tiny_model, tmp_path / "whisper-128")
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=4)
    WhisperProcessor(extractor, WhisperProcessor.from_pretrained(finer).tokenizer).save_pretrained(finer)
    extractor.save_pretrained(finer)
    wide = [
        Clip(clip.id, np.zeros((len(clip.features), 128), np.float16), clip.labels, clip.seconds, clip.text, None)
        for clip in clips_of(tiny_artifact, "test")
    ]
    of_finer = write_artifact(
        tmp_path / "artifact", finer, tiny_artifact, {"train": wide, "validation": wide, "test": wide}
    )
    source = open_artifact(TrainParameters(artifact_name=str(of_finer)))
    with pytest.raises(PermanentError) as raised:
        check_fits(source.manifest, _format(tiny_model))
    assert "mel bins: 128 in the artifact, 80 in the model" in raised.value.given
    assert "tokenizer" not in raised.value.given
    check_fits(source.manifest, _format(finer))


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        ({"window_seconds": 30.0}, "seconds in the window: 4.0 in the artifact, 30.0 in the model"),
        ({"sampling_rate": 8000}, "samples per second: 16000 in the artifact, 8000 in the model"),
        ({"multilingual": False}, "multilingual: True in the artifact, False in the model"),
        ({"tokenizer_sha256": "0" * 64}, "tokenizer: "),
        ({"max_labels": 10}, "at most 10 in the model"),
    ],
)
def test_each_difference_to_the_model_is_told(
    difference: dict[str, object], told: str, tiny_artifact: Path, tiny_model: Path
) -> None:
    other = _format(tiny_model).model_copy(update=difference)
    with pytest.raises(PermanentError) as raised:
        check_fits(read_manifest(tiny_artifact), other)
    assert told in raised.value.given
    assert "--model_id tiny-whisper" in raised.value.action


def test_another_model_of_the_same_format_is_taken_and_noted(
    tiny_artifact: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manifest = read_manifest(tiny_artifact)
    check_fits(manifest, _format(tiny_model))
    assert not caplog.records
    check_fits(manifest, _format(tiny_model).model_copy(update={"model_id": "mine/whisper-tuned"}))
    assert "mine/whisper-tuned" in caplog.text
