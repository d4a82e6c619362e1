"""Transcripts to labels and back, with the real tokenizer."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import tiny

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.labels import LabelEncoder, is_multilingual, load_tokenizer, tokenizer_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEXTS = (
    "Il treno per Trento parte alle nove e un quarto.",
    "Perché no? L'amico dell'orto, disse: «Va bene…» (forse)",
    "a , b n't . Don 't ' s",
    "Straße, naïve, ĿĊĠ, 100% — 3,5 €",
    "हिन्दी में लिखा हुआ",
    "مرحبا بالعالم",
    "ภาษาไทยไม่มีช่องว่าง",
    "日本語、中文。",
    "smile 😀 👩‍👩‍👧",
)
# What reads like the tokenizer's own tokens, special ones and timestamps.
MARKUP = (
    "<|endoftext|>",
    "prima <|endoftext|> dopo",
    "<|startoftranscript|><|en|><|translate|>",
    "da <|0.02|> a <|1.50|>",
    "<|<|notimestamps|>|>",
    "<|it|",
    "a <| b |> c",
)


@pytest.fixture(scope="module")
def italian() -> LabelEncoder:
    return LabelEncoder.from_folder(tiny.model(), "it", "transcribe")


def names(encoder: LabelEncoder, ids: Sequence[int]) -> list[str]:
    return list(encoder.tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize("text", TEXTS)
def test_labels_decode_back_to_the_text(text: str, italian: LabelEncoder) -> None:
    assert italian.decode(italian.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_labels_are_those_of_the_tokenizer(text: str, italian: LabelEncoder) -> None:
    with_space = italian.tokenizer(f" {text}").input_ids
    lone = italian.tokenizer.convert_ids_to_tokens(with_space[4]) == "Ġ"
    assert italian.encode(text) == (with_space[:4] + with_space[5:] if lone else with_space)


def test_labels_never_begin_with_what_generation_never_begins_with(italian: LabelEncoder) -> None:
    """The space by itself (`begin_suppress_tokens`); between texts it stays."""
    space = italian.tokenizer.convert_tokens_to_ids("Ġ")
    texts = ["हिन्दी में", "ภาษาไทย"]
    own = [italian.encode(text) for text in texts]
    assert [ids[4] == space for ids in own] == [False, False]
    assert italian.decode(italian.join(own, None)) == " ".join(texts)
    timed = italian.tokenizer.decode(italian.join(own, [0, 50, 100]), decode_with_timestamps=True)
    assert timed.endswith("<|0.00|> हिन्दी में<|1.00|><|1.00|> ภาษาไทย<|2.00|><|endoftext|>")


@pytest.mark.parametrize(
    ("code", "task", "written"),
    [
        ("it", "transcribe", " Sì."),
        ("ja", "transcribe", "Sì."),
        ("yue", "transcribe", "Sì."),
        ("ja", "translate", " Sì."),
    ],
)
def test_a_space_is_before_the_text_where_the_language_has_spaces(code: str, task: str, written: str) -> None:
    encoder = LabelEncoder.from_folder(tiny.model(), code, task)
    assert encoder.tokenizer.decode(encoder.encode("Sì."), skip_special_tokens=True) == written


@pytest.mark.parametrize(("code", "task"), [("it", "transcribe"), ("de", "translate"), ("yue", "transcribe")])
def test_a_multilingual_checkpoint_is_told_language_and_task(code: str, task: str) -> None:
    encoder = LabelEncoder.from_folder(tiny.model(), code, task)
    tokens = names(encoder, encoder.encode("Sì."))
    assert tokens[:4] == ["<|startoftranscript|>", f"<|{code}|>", f"<|{task}|>", "<|notimestamps|>"]
    assert tokens[-1] == "<|endoftext|>"
    assert not any(token.startswith("<|") for token in tokens[4:-1])


def test_an_english_only_checkpoint_is_told_neither() -> None:
    encoder = LabelEncoder.from_folder(tiny.english_model(), "en", "transcribe")
    tokens = names(encoder, encoder.encode("Yes."))
    assert tokens[:2] == ["<|startoftranscript|>", "<|notimestamps|>"]
    assert tokens[-1] == "<|endoftext|>"
    assert encoder.decode(encoder.encode("Yes, it is.")) == "Yes, it is."


@pytest.mark.parametrize(("code", "task"), [("it", "transcribe"), ("en", "translate")])
def test_an_english_only_checkpoint_does_only_english(code: str, task: str) -> None:
    with pytest.raises(PermanentError, match=r"multilingual checkpoint \(openai/whisper-small"):
        LabelEncoder.from_folder(tiny.english_model(), code, task)


def test_a_language_that_the_checkpoint_has_no_token_for() -> None:
    """Cantonese, `yue`, came with large-v3; older checkpoints have 99 languages."""
    with pytest.raises(PermanentError, match="language code 'xx', for which this checkpoint has no token"):
        LabelEncoder.from_folder(tiny.model(), "xx", "transcribe")


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_transcript_is_text_and_no_token(text: str, italian: LabelEncoder) -> None:
    ids = italian.encode(text)
    vocabulary = italian.tokenizer.get_vocab()
    own = {token_id for token, token_id in vocabulary.items() if token.startswith("<|")}
    assert not own & set(ids[4:-1])
    # Before "<" the space would be a token by itself in this vocabulary.
    space = " " if text[0].isalpha() else ""
    decoded = italian.tokenizer.decode(ids[4:-1], skip_special_tokens=True, decode_with_timestamps=True)
    assert decoded == f"{space}{text}"


def test_what_says_that_a_checkpoint_is_multilingual(tmp_path: Path) -> None:
    assert is_multilingual(tiny.model())
    assert not is_multilingual(tiny.english_model())
    # Checkpoints from before generation_config.json are told apart by the size of their vocabulary.
    for vocab_size, multilingual in ((51_864, False), (51_865, True), (51_866, True)):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
        assert is_multilingual(tmp_path) is multilingual


def test_the_hash_says_that_ids_mean_the_same(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny.model())
    same = load_tokenizer(shutil.copytree(tiny.model(), tmp_path / "copy"))
    same.set_prefix_tokens(language="de", task="translate")
    assert tokenizer_sha256(same) == tokenizer_sha256(tokenizer)
    same.add_tokens(["nuovo"])
    assert tokenizer_sha256(same) != tokenizer_sha256(tokenizer)
