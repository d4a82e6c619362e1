"""Which columns of a dataset hold audio, transcript and speaker."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr_fine_tuner.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

# The usual names, the likeliest first: Common Voice, LibriSpeech, FLEURS, MLS, VoxPopuli, NeMo manifests, WebDataset.
AUDIO_COLUMNS = ("audio", "file_name", "path", "audio_filepath", "audio_path", "audio_file", "filename", "file", "wav")
TEXT_COLUMNS = (
    "sentence",
    "text",
    "transcription",
    "transcript",
    "normalized_text",
    "raw_text",
    "raw_transcription",
    "txt",
    "utterance",
)
SPEAKER_COLUMNS = ("client_id", "speaker_id", "speaker", "spk_id", "user_id")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; `speaker` is None where the dataset does not know the speakers."""

    audio: str
    text: str
    speaker: str | None


def choose_column(
    role: str, given: str | None, *, usual: Sequence[str], eligible: Sequence[str], present: Sequence[str]
) -> str:
    """The column of a role (`audio`, `text`): the one given, else the first usual name among the eligible ones.

    eligible: the columns of the right type; present: all of them, for messages.
    Raises PermanentError, with the list of columns, where there is none.
    """
    if given is not None and given in eligible:
        return given
    if given is None:
        known = [name for name in usual if name in eligible]
        if known:
            return known[0]
        # A tabular dataset has one audio column as a rule, whatever its name; strings are too many to guess from.
        if role == "audio" and len(eligible) == 1:
            return eligible[0]
    nearest = difflib.get_close_matches(given or role, eligible, n=1, cutoff=0.5)
    fault = "does not exist" if given not in present else f"does not hold {role}"
    raise PermanentError(
        given=f"--{role}_column {given!r}, which {fault}"
        if given is not None
        else f"a dataset in which no {role} column was found",
        expected=f"one of the columns {', '.join(eligible) or '(none fits)'}; the dataset has {', '.join(present)}",
        action=f"give it as --{role}_column" + (f"; did you mean {nearest[0]}?" if nearest else ""),
    )


def find_speaker_column(present: Sequence[str]) -> str | None:
    """The column that holds the speaker's id, None where there is none."""
    return next((name for name in SPEAKER_COLUMNS if name in present), None)
