"""A Whisper small enough to train within a test, real artifacts for it, and finished runs; made once for all tests."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from asr_fine_tuner import PreprocessParameters, TrainParameters, preprocess
from asr_fine_tuner.artifact import SPLITS, ArtifactSplit, Clip, ClipWriter, write_dataset_metadata
from asr_fine_tuner.encoding import model_format
from asr_fine_tuner.files import hashes_below
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.hub import download_model
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.manifest import MANIFEST_NAME, Encoding, SplitSummary, read_manifest
from asr_fine_tuner.run_folder import RunFolder
from asr_fine_tuner.stop import stop_on_signals
from asr_fine_tuner.tracking import start_tracking
from asr_fine_tuner.training import TrainResult, train
from asr_fine_tuner.training_input import open_artifact

DEMO = Path(__file__).resolve().parent.parent / "demo"
TRAIN_CLIPS, EVAL_CLIPS = 10, 5


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint made smaller still, its 0.1 million weights drawn by chance: Whisper's tokens, 4 s."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor, logging

    logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("tiny") / "tiny-whisper"
    size = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(DEMO / "model", **size, **heads))
    model.generation_config = GenerationConfig.from_pretrained(DEMO / "model")
    model.save_pretrained(folder)
    processor = WhisperProcessor.from_pretrained(DEMO / "model")
    processor.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's Italian clips as the preprocess job makes them: 10 to train on, 5 to validate, 5 to test."""
    made = preprocess(
        PreprocessParameters(
            dataset_name=str(DEMO / "dataset"),
            language_code="it",
            model_id=str(tiny_model),
            artifact_name="tiny",
            max_train_samples=TRAIN_CLIPS,
            max_eval_samples=EVAL_CLIPS,
            num_workers=1,
        )
    )
    return shutil.copytree(made.artifact, tmp_path_factory.mktemp("artifact") / "tiny-it")


@pytest.fixture(scope="session")
def memorising(tiny_model: Path, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainParameters:
    """A run that learns four clips by heart, which are its validation and test too."""
    folder = tmp_path_factory.mktemp("memorised")
    four = clips_of(tiny_artifact, "train")[:4]
    artifact = write_artifact(folder / "four-clips", tiny_model, tiny_artifact, dict.fromkeys(SPLITS, four))
    return TrainParameters(
        artifact_name=str(artifact),
        model_id=str(tiny_model),
        output_dir=str(folder / "run"),
        max_steps=60,
        learning_rate=5e-3,
        warmup_steps=5,
        train_batch_size=4,
        eval_batch_size=4,
        eval_steps=20,
        save_steps=60,
        logging_steps=10,
    )


@pytest.fixture(scope="session")
def memorised(memorising: TrainParameters) -> TrainResult:
    """That run, finished."""
    return train(memorising)


@pytest.fixture(scope="module")
def short_clips(tiny_model: Path, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of the tiny artifact's clips, of 0.8 to 1.25 s: three or four fill the window of 4 s."""
    labels = LabelEncoder.from_folder(tiny_model, "it", "transcribe")
    splits = {
        split: [_beginning(clip, 0.8 + 0.05 * row, labels) for row, clip in enumerate(clips_of(tiny_artifact, split))]
        for split in SPLITS
    }
    return write_artifact(tmp_path_factory.mktemp("short") / "short-it", tiny_model, tiny_artifact, splits)


def _beginning(clip: Clip, seconds: float, labels: LabelEncoder) -> Clip:
    text = " ".join(clip.text.split()[:2])
    features = clip.features[: int(100 * seconds) + 3]
    return replace(clip, features=features, seconds=seconds, text=text, labels=labels.encode(text))


@pytest.fixture
def memorised_again(memorised: TrainResult, memorising: TrainParameters, tmp_path: Path) -> TrainParameters:
    """That run in a copy of its folder, for what publishing or damage does to it."""
    folder = shutil.copytree(memorised.model_dir.parent, tmp_path / "memorised")
    return changed(memorising, output_dir=str(folder))


@pytest.fixture
def parameters(tiny_model: Path, tiny_artifact: Path, tmp_path: Path) -> TrainParameters:
    """Six steps of two clips: more than one pass over the tiny artifact."""
    return short_run(tiny_model, tiny_artifact, output_dir=str(tmp_path / "run"), evaluate_base=False)


def short_run(model: Path, artifact: Path, **others: Any) -> TrainParameters:
    """Six steps of two clips with two evaluations and checkpoints, everything logged; with `others`."""
    run: dict[str, Any] = {
        "artifact_name": str(artifact),
        "model_id": str(model),
        "max_steps": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "train_batch_size": 2,
        "eval_batch_size": 4,
        "logging_steps": 1,
        "eval_steps": 3,
        "save_steps": 3,
        "max_sequence_length": 12,
    }
    return TrainParameters(**{**run, **others})


def changed(parameters: TrainParameters, **changes: Any) -> TrainParameters:
    """`parameters` with some of them changed, validated like all."""
    return TrainParameters(**{**parameters.model_dump(), **changes})


def given_of(parameters: TrainParameters) -> dict[str, object]:
    """The parameters, by name, that are not what they are by default."""
    defaults = TrainParameters().model_dump()
    return {name: value for name, value in parameters.model_dump().items() if value != defaults[name]}


def clips_of(artifact: Path, split: str) -> list[Clip]:
    rows = ArtifactSplit(artifact, split)
    return [
        Clip(
            id=rows.ids[index],
            features=rows.features(index),
            labels=rows.labels(index).tolist(),
            seconds=float(rows.seconds[index]),
            text=rows.texts[index],
            speaker=None,
        )
        for index in range(len(rows))
    ]


def with_texts(clips: Sequence[Clip], texts: Sequence[str], labels: LabelEncoder) -> list[Clip]:
    """The same sound with other transcripts."""
    return [replace(clip, text=text, labels=labels.encode(text)) for clip, text in zip(clips, texts, strict=True)]


def write_artifact(
    folder: Path, model_folder: Path, like: Path, splits: dict[str, list[Clip]], **encoding: object
) -> Path:
    """An artifact of the clips given; all else is as in the artifact `like`, but for the fields of `encoding`."""
    base = read_manifest(like)
    model = model_format(
        model_folder.name, download_model(str(model_folder), None, weights=False).revision, model_folder
    )
    n_mels = next(iter(splits.values()))[0].features.shape[1]
    for split, clips in splits.items():
        (folder / split).mkdir(parents=True)
        writer = ClipWriter(folder / split / "data.arrow", n_mels)
        for clip in clips:
            writer.append(clip)
        writer.close()
    write_dataset_metadata(folder, {split: ["data.arrow"] for split in splits}, n_mels, "0" * 64)
    manifest = base.model_copy(
        update={
            "model": model,
            "encoding": Encoding(**{**base.encoding.model_dump(), **encoding}),
            "splits": {
                split: SplitSummary(
                    clips=len(clips),
                    hours=sum(clip.seconds for clip in clips) / 3600,
                    longest_labels=max(len(clip.labels) for clip in clips),
                )
                for split, clips in splits.items()
            },
            "files": hashes_below(folder),
        }
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder


class _SignalOnMessage(logging.Handler):
    def __init__(self, pattern: str) -> None:
        super().__init__(logging.INFO)
        self._pattern = pattern
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.seen and re.search(self._pattern, record.getMessage()):
            self.seen = True
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def sigterm_at(pattern: str) -> Iterator[None]:
    """Within the block this process gets SIGTERM at the first log message with `pattern`, and stops as a job does."""
    logger = logging.getLogger("asr_fine_tuner")
    handler, level = _SignalOnMessage(pattern), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with stop_on_signals():
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert handler.seen, f"{pattern!r} was never logged"


def log_history(run: Path) -> list[dict[str, Any]]:
    """What the trainer logged, without what is different each time: how long things took."""
    timed = ("audio_seconds_per_second", "mfu", "train_runtime")
    entries = json.loads((run / "trained.json").read_text())["log_history"]
    return [
        {name: value for name, value in entry.items() if name not in timed}
        for entry in entries
        if "train_runtime" not in entry
    ]


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def fine_tuning_of(parameters: TrainParameters, watching: Sequence[TrainerCallback] = ()) -> FineTuning:
    """All that the train job trains with, in an empty folder, untracked."""
    run = RunFolder(Path(str(parameters.output_dir)))
    run.folder.mkdir(parents=True, exist_ok=True)
    tracker = start_tracking(run_id="none", name="none", parameters={}, dataset_summary={}, directory=run.folder)
    return FineTuning(run, open_artifact(parameters), Path(parameters.model_id), parameters, tracker, watching=watching)
