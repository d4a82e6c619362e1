"""text.py: transcripts as datasets hold them."""

from __future__ import annotations

import pickle
import unicodedata

import pytest

from asr_fine_tuner.text import TranscriptRejected, clean_transcript


@pytest.mark.parametrize(
    ("published", "cleaned"),
    [
        ("  Buongiorno,\n a\ttutti!  ", "Buongiorno, a tutti!"),
        ("perche\u0301 no?", "perché no?"),
        ("e\u200b\u0301", "é"),
        ("nul\x00 and bell\x07", "nul and bell"),
        ("\ufeffbyte order mark", "byte order mark"),
        ("soft\u00adhyphen", "softhyphen"),
        ("line\u2028separator", "line separator"),
        ("\u202bשלום\u202c עולם\u200f", "שלום עולם"),
        ("مرحبا، كيف حالك؟", "مرحبا، كيف حالك؟"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("half \ud83d a pair", "half a pair"),
        ("42", "42"),
    ],
)
def test_what_is_seen_and_spoken_stays(published: str, cleaned: str) -> None:
    assert clean_transcript(published) == cleaned
    assert clean_transcript(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        (None, "empty_text"),
        ("", "empty_text"),
        (" \n\u200b\u00a0", "empty_text"),
        ("\x00\u202e", "empty_text"),
        ("...", "punctuation_only"),
        ("— ¿?", "punctuation_only"),
        ("♪ ♫", "punctuation_only"),
        ("\u0301", "punctuation_only"),
    ],
)
def test_text_that_teaches_nothing_is_rejected(published: str | None, reason: str) -> None:
    with pytest.raises(TranscriptRejected) as rejected:
        clean_transcript(published)
    assert rejected.value.reason == reason
    assert rejected.value.detail


def test_a_rejection_crosses_process_borders() -> None:
    rejected = pickle.loads(pickle.dumps(TranscriptRejected("empty_text", "nothing")))  # noqa: S301
    assert (rejected.reason, rejected.detail) == ("empty_text", "nothing")
