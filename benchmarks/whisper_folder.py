"""A Whisper checkpoint with random weights: the size of whisper-tiny, its window of 30 s, a small vocabulary."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from benchmarks.speech_data import sentence

_END_OF_TEXT = "<|endoftext|>"
_TASK_TOKENS = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
_BPE_TOKENS = 1000
_WINDOW_SECONDS = 30


def write_whisper(folder: Path) -> None:
    """Write the checkpoint with everything that `from_pretrained` looks for."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    model = _model(tokenizer)
    extractor = WhisperFeatureExtractor()
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    extractor.save_pretrained(folder)
    model.save_pretrained(folder)


def _tokenizer() -> WhisperTokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_BPE_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(map(sentence, range(2000)), trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(
        vocab=learnt["vocab"], merges=[tuple(merge) for merge in learnt["merges"]], pad_token=_END_OF_TEXT
    )
    special = ["<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), *_TASK_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    # One for each encoder position, 20 ms apart.
    timestamps = range(_WINDOW_SECONDS * 50 + 1)
    tokenizer.add_tokens([AddedToken(f"<|{step / 50:.2f}|>", normalized=False) for step in timestamps])
    return tokenizer


def _model(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    # WhisperConfig's defaults are whisper-tiny's.
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in LANGUAGES},
        task_to_id={task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=448,
    )
    return model


if __name__ == "__main__":
    write_whisper(Path(sys.argv[1]))
    print("{}")
