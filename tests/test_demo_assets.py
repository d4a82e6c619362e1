"""What the demo carries is what it says: small, complete, and with voices that nobody hears before the test."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Audio, load_dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES

DEMO = Path(__file__).parent.parent / "demo"
SPLITS = ("train", "validation", "test")
LARGEST = 8 * 1000**2  # bytes
SAMPLING_RATE = 16_000


def rows_of(split: str) -> list[dict[str, Any]]:
    return pq.read_table(DEMO / "dataset" / "it" / f"{split}-00000-of-00001.parquet").to_pylist()


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {split: rows_of(split) for split in SPLITS}


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(DEMO / "model", language="it", task="transcribe")


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(DEMO / "model")


def test_the_assets_stay_small() -> None:
    assets = [*(DEMO / "dataset").rglob("*"), *(DEMO / "model").rglob("*"), DEMO / "clip.flac", DEMO / "clip.txt"]
    assert sum(path.stat().st_size for path in assets if path.is_file()) <= LARGEST


def test_weights_are_safetensors_alone() -> None:
    names = {path.name for path in (DEMO / "model").iterdir()}
    assert {name for name in names if name.startswith("model")} == {"model.safetensors"}
    assert not [name for name in names if not name.endswith((".safetensors", ".json", ".md"))]


def test_splits_share_neither_speakers_nor_sentences(rows: dict[str, list[dict[str, Any]]]) -> None:
    for column in ("speaker_id", "sentence", "id"):
        values = [{row[column] for row in rows[split]} for split in SPLITS]
        assert sum(map(len, values)) == len(set.union(*values)), column
    clip_text = (DEMO / "clip.txt").read_text(encoding="utf-8").strip()
    assert clip_text not in {row["sentence"] for split in SPLITS for row in rows[split]}


def test_the_base_model_heard_other_voices() -> None:
    code = (
        "import voices as v; base = {*v.BASE_VARIANTS, *v.BASE_TEST_VARIANTS};"
        "own = [s.variant for s in (*v.TRAIN, *v.VALIDATION, *v.TEST)];"
        "assert len(own) == len(set(own)) and not base & set(own)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=DEMO, check=True)


def test_the_dataset_is_one_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    dataset = load_dataset(str(DEMO / "dataset"), "it", cache_dir=str(tmp_path))
    assert set(dataset) == set(SPLITS)
    assert dataset["train"].features["audio"] == Audio(sampling_rate=SAMPLING_RATE)
    assert dataset["train"].cast_column("audio", Audio(decode=False))[0]["audio"]["bytes"][:4] == b"OggS"


@pytest.mark.parametrize("split", SPLITS)
def test_clips_decode_and_fit_the_window(split: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows[split]:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        assert rate == SAMPLING_RATE
        assert samples.ndim == 1
        assert 1.5 <= len(samples) / rate < 4.0, row["id"]
        assert np.abs(samples).max() > 0.1, row["id"]


def test_sentences_have_casing_and_punctuation(rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows["test"]:
        assert re.fullmatch(r"[A-ZÈ].*[.?]", row["sentence"]), row


def test_text_survives_the_tokenizer(processor: WhisperProcessor, rows: dict[str, list[dict[str, Any]]]) -> None:
    tokenizer = processor.tokenizer
    for row in rows["test"]:
        labels = tokenizer(row["sentence"]).input_ids
        prefix = ["<|startoftranscript|>", "<|it|>", "<|transcribe|>", "<|notimestamps|>"]
        assert tokenizer.convert_ids_to_tokens(labels[:4]) == prefix
        assert labels[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(labels, skip_special_tokens=True) == row["sentence"]


def test_special_tokens_are_those_of_whisper(
    processor: WhisperProcessor, model: WhisperForConditionalGeneration
) -> None:
    window = processor.feature_extractor.chunk_length
    expected = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    expected += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    expected += ["<|notimestamps|>", *(f"<|{step / 50:.2f}|>" for step in range(window * 50 + 1))]
    first = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert processor.tokenizer.convert_ids_to_tokens(range(first, first + len(expected))) == expected
    assert model.config.vocab_size == len(processor.tokenizer) == first + len(expected)
    assert model.config.max_source_positions * 2 == processor.feature_extractor.nb_max_frames
    assert model.generation_config.lang_to_id["<|it|>"] == processor.tokenizer.convert_tokens_to_ids("<|it|>")


def test_the_model_listens(processor: WhisperProcessor, model: WhisperForConditionalGeneration) -> None:
    samples, rate = soundfile.read(DEMO / "clip.flac", dtype="float32")
    features = processor.feature_extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
    assert model.dtype == torch.float32
    ids = model.generate(features, language="it", task="transcribe", max_new_tokens=60)
    assert processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
