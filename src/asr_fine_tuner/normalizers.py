"""What counts as the same word: the normalisers that text goes through before errors are counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Normalizer = Callable[[str], str]

_SPLIT_BY_WHISPER = frozenset({"ja", "lo", "my", "th", "yue", "zh"})
"""The languages whose characters are scored as words in section 4.4 of arXiv 2212.04356; `yue` came with large-v3."""

_DOTTED_AND_DOTLESS_I = str.maketrans({"I": "ı", "İ": "i"})
_TURKIC = frozenset({"az", "tr"})

_APOSTROPHES = frozenset("ʹʻʼʽˈ")  # modifier letters that are typed for ' and ’, so that spelling decides nothing
_ONLY_LOOKS = frozenset(
    "ـ"  # tatweel, which stretches an Arabic word
    + "".join(
        map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
    )  # variation selectors
)


class _Spoken(dict[int, "int | str | None"]):
    """A translation table for `str.translate` that looks each character up once."""

    def __missing__(self, point: int) -> int | str | None:
        character = chr(point)
        category = unicodedata.category(character)
        kept: int | str | None
        if character in _APOSTROPHES:
            kept = " "
        elif character in _ONLY_LOOKS or category in ("Cf", "Me"):
            kept = None
        elif category[0] in "LMN":
            kept = point
        else:
            kept = " "
        self[point] = kept
        return kept


_SPOKEN = _Spoken()


@dataclass(frozen=True, slots=True)
class MarkPreservingNormalizer:
    """Lower case, no punctuation, no symbols, and every vowel sign, tone and accent still there.

    Whisper's own normaliser replaces combining marks by spaces, which tears Hindi, Tamil, Thai and vocalised Arabic
    apart and scores fragments. Here:

    - NFKC, as Whisper does: full-width forms, ligatures and presentation forms become plain letters;
    - lower case, with the dotless i of Turkish and Azerbaijani;
    - letters, digits and combining marks (Mn, Mc) stay, all else is a space. An apostrophe is a space too, in all its
      forms, so that `l'ora`, `l’ora` and `l' ora` are the same two words (an elided article is a word of its own);
    - what only changes the look is dropped: tatweel, joiners (ZWJ, ZWNJ), variation selectors, enclosing marks.

    Words in brackets stay: what a transcript spells out counts. A transcript that `clean_transcript` accepts never
    becomes empty, unless apostrophes or tatweel are all it has.

    language_code: Whisper's code of the text's language; only the casing of Turkish and Azerbaijani depends on it.
    """

    language_code: str = ""

    def __call__(self, text: str) -> str:
        if self.language_code in _TURKIC:
            text = text.translate(_DOTTED_AND_DOTLESS_I)
        # Lower case first and last: some compatibility forms, such as ™, bring capitals.
        folded = unicodedata.normalize("NFKC", text.lower()).lower()
        return " ".join(folded.translate(_SPOKEN).split())


def whisper_normalizer(language_code: str, english_spelling: Mapping[str, str] | None = None) -> Normalizer:
    """The normaliser that Whisper's published figures were measured with (appendix C of arXiv 2212.04356).

    language_code: Whisper's code of the text's language.
    english_spelling: British -> American spellings, `tokenizer.english_spelling_normalizer` of a Whisper checkpoint;
        only English uses it.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    normalize: Normalizer
    if language_code == "en":
        normalize = EnglishTextNormalizer(dict(english_spelling or {}))
    else:
        normalize = BasicTextNormalizer(split_letters=language_code in _SPLIT_BY_WHISPER)
    return lambda text: normalize(text).strip()
