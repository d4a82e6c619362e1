"""The finished model as a folder that is complete for whoever uses it next."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

from asr_fine_tuner.checkpoint_files import PREDICTIONS_NAME, PUBLISHED_FILES
from asr_fine_tuner.metrics import ClipScore


def save_model(
    folder: Path,
    model: WhisperForConditionalGeneration,
    tokenizer: WhisperTokenizer,
    feature_extractor: WhisperFeatureExtractor,
) -> None:
    """Write weights, configuration, tokenizer and processor, in every form that the usual tools read."""
    model.save_pretrained(folder, max_shard_size="50GB")
    WhisperProcessor(feature_extractor, tokenizer).save_pretrained(folder)
    # transformers 5 keeps the extractor in processor_config.json; CTranslate2, faster-whisper and transformers 4
    # read preprocessor_config.json.
    feature_extractor.save_pretrained(folder)
    # whisper.cpp's converter reads these two.
    tokenizer.save_vocabulary(str(folder))
    added = dict(sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1]))
    (folder / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_predictions(folder: Path, tuned: Iterable[ClipScore], base: list[str] | None) -> None:
    """`predictions.jsonl`: each test clip with its reference, both transcripts and its errors."""
    with (folder / PREDICTIONS_NAME).open("w", encoding="utf-8") as file:
        for position, clip in enumerate(tuned):
            line = {**clip.as_dict(), "base_prediction": base[position] if base else None}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def published_files(folder: Path, *, with_transcripts: bool) -> list[str]:
    """The files of `folder` to upload.

    with_transcripts: predictions.jsonl too, which quotes the references of the test split.
    """
    allowed = (*PUBLISHED_FILES, PREDICTIONS_NAME) if with_transcripts else PUBLISHED_FILES
    return [name for name in allowed if (folder / name).is_file()]
