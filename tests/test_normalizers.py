"""normalizers.py: what counts as the same word, over the scripts that Whisper writes."""

from __future__ import annotations

import unicodedata

import pytest

from asr_fine_tuner.normalizers import MarkPreservingNormalizer, whisper_normalizer


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Buongiorno, a tutti!", "buongiorno a tutti"),
        ("l’ora, l'ora, l' ora, lʼora", "l ora l ora l ora l ora"),
        ("Perché no? Già.", "perché no già"),
        ("ex-ministro [risate]", "ex ministro risate"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("வணக்கம்!", "வணக்கம்"),
        ("السَّلامُ عَلَيْكُمْ،", "السَّلامُ عَلَيْكُمْ"),
        ("مرحبــا", "مرحبا"),
        ("می\u200cخواهم", "میخواهم"),
        ("ＡＢＣ １２３。", "abc 123"),
        ("I \u2764\ufe0f radio", "i radio"),
        ("1\ufe0f\u20e3 one", "1 one"),
        ("ΟΔΟΣ", "οδος"),
        ("… — !", ""),
    ],
)
def test_marks_survive_and_punctuation_does_not(text: str, normalised: str) -> None:
    assert MarkPreservingNormalizer()(text) == unicodedata.normalize("NFKC", normalised)


def test_thai_keeps_its_tones_where_whispers_own_loses_them() -> None:
    text = "สวัสดีครับ น้ำ"
    ours = MarkPreservingNormalizer("th")(text)
    assert "\u0e49" in ours, "the tone mark of น้ำ"
    assert "\u0e49" not in whisper_normalizer("th")(text)


def test_turkish_i_keeps_its_dot_and_its_lack_of_one() -> None:
    assert MarkPreservingNormalizer("tr")("IĞDIR İzmir") == "ığdır izmir"
    assert MarkPreservingNormalizer("it")("IERI") == "ieri"


@pytest.mark.parametrize("character", ["a", "½", "²", "ﷺ", "ﬁ", "〇", "Ⅷ", "①", "ㄱ", "ʰ", "ﾊ"])
def test_a_letter_or_a_digit_never_vanishes(character: str) -> None:
    assert MarkPreservingNormalizer()(f" {character}. ")


def test_normalising_twice_changes_nothing() -> None:
    normalize = MarkPreservingNormalizer()
    for text in ("L’Été ™ №5 ŉ", "ﬀ ß ẞ Ǆ", "नमस्ते"):
        assert normalize(normalize(text)) == normalize(text)


def test_whispers_english_normaliser_spells_the_american_way() -> None:
    normalize = whisper_normalizer("en", {"colour": "color"})
    assert normalize("Mr. Smith's colour, twenty five!") == "mister smith is color 25"


def test_whispers_normaliser_tears_hindi_apart_and_splits_chinese_into_characters() -> None:
    assert whisper_normalizer("hi")("नमस्ते") == "नमस त"
    assert whisper_normalizer("zh")("你好，世界") == "你 好 世 界"
    assert whisper_normalizer("it")("L'ora è (circa) tarda.") == "l ora è tarda"
