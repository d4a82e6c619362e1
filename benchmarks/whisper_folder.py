"""A Whisper checkpoint with random weights, of any size, with Whisper's window of 30 s and a tokenizer of few words.

As a child process: `python -m benchmarks.whisper_folder FOLDER [SHAPE [SECONDS]]`. SHAPE is one of `shapes`; without
it, whisper-tiny's with the vocabulary of the tokenizer. With SECONDS, transcripts end as after so much speech, see
`end_transcripts`.
"""

from __future__ import annotations

import json
import statistics
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

from benchmarks.shapes import SHAPES, TINY_WITH_FEW_WORDS, Shape
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
_PROMPT_TOKENS = 4  # start, language, task, no timestamps
_FAR = 300.0  # more than random layers add up to in the direction of the end, in the largest Whisper, too


def write_whisper(folder: Path, shape: Shape, ends_as_after: float | None) -> None:
    """Write the checkpoint with everything that `from_pretrained` looks for.

    ends_as_after: transcripts end with as many tokens as are spoken in so many seconds; never when not given.
    """
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    model = _model(tokenizer, shape)
    if ends_as_after is not None:
        texts = (sentence(number, ends_as_after) for number in range(100))
        end_transcripts(model, tokenizer, round(statistics.mean(len(tokenizer.tokenize(text)) for text in texts)))
    extractor = WhisperFeatureExtractor(feature_size=shape.n_mels)
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


@torch.no_grad()
def end_transcripts(model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, n_tokens: int) -> None:
    """Make every transcript of `model` end after `n_tokens` tokens of text; which these are, the random weights decide.

    One direction of the residual stream tells the end. The decoder's positions carry it, against it before the end and
    along it from then on, far above what the layers add; it is the embedding of the end token, and half of it that of
    all other tokens that are no text, so that before the end only text is likely.
    """
    decoder = model.get_decoder()
    direction = torch.ones(model.config.d_model)
    direction[::2] = -1  # of mean zero, which the last layer's normalisation leaves alone
    direction /= direction.norm()
    positions = torch.arange(model.config.max_target_positions)
    # The output at the last position of the prompt is the first token of the text.
    ended = (positions >= _PROMPT_TOKENS - 1 + n_tokens)[:, None]
    decoder.embed_positions.weight += _FAR * torch.where(ended, direction, -direction)
    tokens = decoder.embed_tokens.weight
    n_text = len(tokenizer.get_vocab()) - len(tokenizer.get_added_vocab())
    tokens[n_text:] = direction / 2
    tokens[tokenizer.eos_token_id] = direction


def _model(tokenizer: WhisperTokenizer, shape: Shape) -> WhisperForConditionalGeneration:
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=shape.vocab_size or len(tokenizer),
            d_model=shape.d_model,
            encoder_layers=shape.layers,
            decoder_layers=shape.layers,
            encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads,
            encoder_ffn_dim=shape.feed_forward,
            decoder_ffn_dim=shape.feed_forward,
            num_mel_bins=shape.n_mels,
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
    shape, seconds = (*sys.argv[2:], None, None)[:2]
    write_whisper(
        Path(sys.argv[1]), SHAPES[shape] if shape else TINY_WITH_FEW_WORDS, float(seconds) if seconds else None
    )
    print("{}")
