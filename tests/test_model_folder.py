"""model_folder.py: the finished folder has every file that the usual tools read, and each says the right thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from asr_fine_tuner.checkpoints import SEAL_NAME
from asr_fine_tuner.model_folder import published_files
from asr_fine_tuner.training import TrainResult


@pytest.fixture
def folder(memorised: TrainResult) -> Path:
    return memorised.model_dir


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_file_that_users_need_is_there(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "vocab.json",
        "added_tokens.json",
        "results.json",
        "predictions.jsonl",
        "training_curves.png",
        "README.md",
    }
    assert not list(folder.glob("*.bin"))


def test_vocabulary_and_added_tokens_make_up_the_models_vocabulary(folder: Path) -> None:
    """What whisper.cpp's converter joins: ids without a gap, text first, then the special tokens."""
    vocabulary, added = _json(folder / "vocab.json"), _json(folder / "added_tokens.json")
    ids = sorted({**vocabulary, **added}.values())
    assert ids == list(range(_json(folder / "config.json")["vocab_size"]))
    assert list(added.values()) == sorted(added.values())
    assert added["<|startoftranscript|>"] == _json(folder / "config.json")["decoder_start_token_id"]


def test_the_fast_tokenizer_loads_by_itself(folder: Path) -> None:
    """CTranslate2 and faster-whisper read tokenizer.json without transformers."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.token_to_id("<|it|>") == _json(folder / "generation_config.json")["lang_to_id"]["<|it|>"]
    ids = tokenizer.encode("Posso prenotare la sala?", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "Posso prenotare la sala?"


def test_the_extractor_is_said_in_both_files(folder: Path, tiny_model: Path) -> None:
    preprocessor = _json(folder / "preprocessor_config.json")
    assert (preprocessor["feature_size"], preprocessor["chunk_length"], preprocessor["sampling_rate"]) == (80, 4, 16000)
    assert _json(folder / "processor_config.json")["feature_extractor"]["feature_size"] == 80
    base = WhisperFeatureExtractor.from_pretrained(tiny_model)
    assert WhisperFeatureExtractor.from_pretrained(folder).to_dict() == base.to_dict()


def test_language_and_task_are_in_the_generation_config(folder: Path) -> None:
    generation = _json(folder / "generation_config.json")
    assert (generation["language"], generation["task"]) == ("it", "transcribe")
    assert generation["is_multilingual"]
    assert generation.get("forced_decoder_ids") is None
    assert _json(folder / "config.json").get("forced_decoder_ids") is None
    for needed in ("suppress_tokens", "begin_suppress_tokens", "no_timestamps_token_id", "lang_to_id", "task_to_id"):
        assert generation[needed], needed


def test_weights_are_whole_in_one_safetensors_file(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.metadata()["format"] == "pt"
        names = set(weights.keys())
    model = WhisperForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    tied = {"proj_out.weight"}
    assert names == set(model.state_dict()) - tied
    assert model.config.architectures == ["WhisperForConditionalGeneration"]


def test_the_processor_loads_from_the_folder(folder: Path) -> None:
    processor = WhisperProcessor.from_pretrained(folder)
    ids = processor.tokenizer("ciao").input_ids
    assert processor.tokenizer.convert_ids_to_tokens(ids[:4]) == [
        "<|startoftranscript|>",
        "<|it|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]


def test_only_listed_files_are_published(folder: Path) -> None:
    public, with_transcripts = (published_files(folder, with_transcripts=it) for it in (False, True))
    assert {*with_transcripts} - {*public} == {"predictions.jsonl"}
    assert {path.name for path in folder.iterdir()} - {*with_transcripts} == {SEAL_NAME}
