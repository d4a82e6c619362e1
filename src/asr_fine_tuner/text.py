"""A transcript as it was published -> the text that the model learns, or the reason why there is none."""

from __future__ import annotations

import unicodedata

from asr_fine_tuner.rejection import ClipRejected

_INVISIBLE = (
    0x00AD,  # soft hyphen
    0x061C,  # Arabic letter mark, the first of the bidirectional controls
    0x200B,  # zero-width space; ZWNJ and ZWJ, the next two, are spelling in Persian and in Indic scripts and stay
    *range(0x200E, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),  # word joiner, invisible operators, bidirectional isolates
    0xFEFF,  # byte order mark
    *range(0xFFF9, 0xFFFC),  # interlinear annotation
)
_CONTROLS = (point for point in (*range(0x20), *range(0x7F, 0xA0)) if not chr(point).isspace())
_SURROGATES = range(0xD800, 0xE000)  # alone they cannot be encoded as UTF-8, which tokenizers do
_REMOVED = dict.fromkeys((*_INVISIBLE, *_CONTROLS, *_SURROGATES))


class TranscriptRejected(ClipRejected):
    """A transcript that is `empty_text` or `punctuation_only`."""


def clean_transcript(text: str | None) -> str:
    """The transcript in NFC, on one line, without characters that are neither seen nor spoken.

    Casing, punctuation and right-to-left text stay as they are. Cleaning a clean transcript changes nothing.

    Raises:
        TranscriptRejected: no text, or neither a letter nor a digit in it.
    """
    if text is None:
        raise TranscriptRejected("empty_text", "the row has no transcript")
    visible = " ".join(text.translate(_REMOVED).split())
    # Composed last: an invisible character between a letter and its mark would have kept them apart.
    cleaned = unicodedata.normalize("NFC", visible)
    if not cleaned:
        raise TranscriptRejected("empty_text", f"{text[:40]!r} holds no visible character")
    if not any(unicodedata.category(character)[0] in "LN" for character in cleaned):
        raise TranscriptRejected("punctuation_only", f"{cleaned[:40]!r} holds neither a letter nor a digit")
    return cleaned
