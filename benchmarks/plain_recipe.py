"""What most people run today to fine-tune Whisper, in the form that courses teach it, as the measure of ours.

One script does it all: `datasets.map` turns every row into the extractor's padded log-mel window, float32
`[1, 80, 3000]`, and labels; clips over 30 s are filtered out; batches are padded from Python lists. Written anew for
this comparison, without what would need FFmpeg's libraries or a network: clips are decoded as `datasets` did it up to
its version 3, by soundfile and librosa, and the metric, a script that is fetched from the Hub, is what it calls.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evaluate  # noqa: F401 - at the top of every such script, for its metric
import jiwer
import librosa
import numpy as np
import soundfile
import torch
from datasets import Audio, DatasetDict, load_dataset
from transformers import (
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SAMPLING_RATE = 16_000
_LONGEST_SECONDS = 30.0
_LANGUAGE, _TASK = "italian", "transcribe"
_IGNORED = -100  # the label that the loss leaves out


def load_processor(model_folder: Path) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(model_folder, language=_LANGUAGE, task=_TASK)


def prepare(dataset_folder: Path, processor: WhisperProcessor) -> DatasetDict:
    """Features and labels of every clip, in the cache of `datasets`."""

    def prepare_row(row: Mapping[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        if rate != _SAMPLING_RATE:
            samples = librosa.resample(samples, orig_sr=rate, target_sr=_SAMPLING_RATE)
        prepared: dict[str, Any] = processor(audio=samples, sampling_rate=_SAMPLING_RATE, text=row["sentence"])
        prepared["input_length"] = len(samples) / _SAMPLING_RATE
        return prepared

    def fits(seconds: float) -> bool:
        return seconds < _LONGEST_SECONDS

    rows = load_dataset(str(dataset_folder)).cast_column("audio", Audio(decode=False))
    prepared = rows.map(prepare_row, remove_columns=rows["train"].column_names)
    return prepared.filter(fits, input_columns=["input_length"])


@dataclass(frozen=True)
class PaddingCollator:
    """Rows as `datasets` gives them, nested Python lists, to a batch: float32 `[batch, 80, 3000]`, int64 labels."""

    processor: WhisperProcessor
    decoder_start_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        features = [{"input_features": row["input_features"][0]} for row in rows]
        batch: dict[str, torch.Tensor] = self.processor.feature_extractor.pad(features, return_tensors="pt")
        labels = self.processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
        ids = labels["input_ids"].masked_fill(labels["attention_mask"].ne(1), _IGNORED)
        if (ids[:, 0] == self.decoder_start_token_id).all():
            ids = ids[:, 1:]
        batch["labels"] = ids
        return batch


@dataclass(frozen=True, slots=True)
class Settings:
    """What a script of this kind sets for its trainer, the rest as it is by default."""

    train_batch_size: int = 8
    eval_batch_size: int = 8
    max_steps: int = 1


def trainer_of(
    prepared: DatasetDict, processor: WhisperProcessor, model_folder: Path, output: Path, settings: Settings
) -> Seq2SeqTrainer:
    """In bf16 on a GPU. Evaluation is set up, as it is in such scripts, but never due."""
    model = WhisperForConditionalGeneration.from_pretrained(model_folder)
    model.generation_config.language = _LANGUAGE
    model.generation_config.task = _TASK

    def word_error_rate(prediction: EvalPrediction) -> dict[str, float]:
        labels = np.where(prediction.label_ids == _IGNORED, processor.tokenizer.pad_token_id, prediction.label_ids)
        heard, references = (
            processor.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (prediction.predictions, labels)
        )
        # What the metric of `evaluate` calls.
        return {"wer": 100 * jiwer.wer(references, heard)}

    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=settings.train_batch_size,
            per_device_eval_batch_size=settings.eval_batch_size,
            max_steps=settings.max_steps,
            bf16=torch.cuda.is_available(),
            eval_strategy="steps",
            eval_steps=1000,
            predict_with_generate=True,
            generation_max_length=225,
            report_to="none",
        ),
        train_dataset=prepared["train"],
        eval_dataset=prepared["validation"],
        data_collator=PaddingCollator(processor, model.config.decoder_start_token_id),
        compute_metrics=word_error_rate,
        processing_class=processor,
    )
