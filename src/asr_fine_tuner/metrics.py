"""Word and character error rates: what is counted, on which form of the text, and which of them selects checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from asr_fine_tuner.languages import UNSPACED_LANGUAGES
from asr_fine_tuner.normalizers import MarkPreservingNormalizer, Normalizer, whisper_normalizer


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Edits that turn the predictions into the references, counted over a whole split.

    substitutions, insertions, deletions: of words (WER) or of Unicode characters (CER).
    reference_length: words or characters in the references.
    skipped: clips left out because the normaliser left nothing of their reference.
    """

    substitutions: int
    insertions: int
    deletions: int
    reference_length: int
    skipped: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per word or character of the references, a fraction that can exceed 1; NaN without references."""
        return self.errors / self.reference_length if self.reference_length else math.nan

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which knows no NaN: the rate is None without references."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"rate": self.rate if self.reference_length else None, **counts}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ErrorRate:
        return cls(**{field.name: record[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Scores:
    """How well a model did on a split.

    clips: utterances scored.
    wer: words, in the mark-preserving normal form; selects checkpoints where words are written apart.
    wer_orthographic: words as written, with casing and punctuation.
    wer_whisper: words in Whisper's own normal form, comparable to published figures of Whisper models.
    cer: characters, in the mark-preserving normal form; selects checkpoints where words are not written apart, and
        then does not count spaces.
    cer_orthographic: characters as written.
    """

    clips: int
    wer: ErrorRate
    wer_orthographic: ErrorRate
    wer_whisper: ErrorRate
    cer: ErrorRate
    cer_orthographic: ErrorRate

    def rates(self) -> dict[str, float]:
        """Metric -> fraction, for a trainer or a tracker; those that could not be measured are absent."""
        measured = {name: getattr(self, name).rate for name in METRICS}
        return {name: rate for name, rate in measured.items() if not math.isnan(rate)}

    def as_dict(self) -> dict[str, Any]:
        return {"clips": self.clips, **{name: getattr(self, name).as_dict() for name in METRICS}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Scores:
        return cls(clips=record["clips"], **{name: ErrorRate.from_dict(record[name]) for name in METRICS})


METRICS: tuple[str, ...] = tuple(field.name for field in fields(Scores) if field.name != "clips")
"""The error rates of `Scores`, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class ClipScore:
    """One utterance and its errors in the mark-preserving normal form.

    id: of the clip in its dataset.
    """

    id: str
    reference: str
    prediction: str
    wer: ErrorRate
    cer: ErrorRate

    def as_dict(self) -> dict[str, Any]:
        """A line of predictions.jsonl."""
        return {
            "id": self.id,
            "reference": self.reference,
            "prediction": self.prediction,
            "wer": self.wer.as_dict()["rate"],
            "cer": self.cer.as_dict()["rate"],
            "errors": self.wer.errors,
            "words": self.wer.reference_length,
            "character_errors": self.cer.errors,
            "characters": self.cer.reference_length,
        }


def leading_metric(language_code: str) -> str:
    """The metric that selects checkpoints: `cer` for languages written without spaces between words, else `wer`.

    language_code: Whisper's, such as "zh"; the codes that datasets use have other forms (`zh-CN`, `cmn_hans_cn`).
    """
    return "cer" if language_code in UNSPACED_LANGUAGES else "wer"


def score(
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    language_code: str,
    english_spelling: Mapping[str, str] | None = None,
) -> Scores:
    """Score predictions against references of the same length, in the same order.

    language_code: Whisper's code of the text's language, such as "it".
    english_spelling: see `whisper_normalizer`.

    Raises:
        ValueError: not as many predictions as references.
    """
    normalize = MarkPreservingNormalizer(language_code)
    characters = _characters_of(normalize, language_code)
    return Scores(
        clips=len(references),
        wer=_error_rate(references, predictions, normalize, of_characters=False),
        wer_orthographic=_error_rate(references, predictions, _as_written, of_characters=False),
        wer_whisper=_error_rate(
            references, predictions, whisper_normalizer(language_code, english_spelling), of_characters=False
        ),
        cer=_error_rate(references, predictions, characters, of_characters=True),
        cer_orthographic=_error_rate(references, predictions, _as_written, of_characters=True),
    )


def score_clips(
    ids: Sequence[str], references: Sequence[str], predictions: Sequence[str], *, language_code: str
) -> Iterator[ClipScore]:
    """The errors of each clip by itself.

    Raises:
        ValueError: the three differ in length.
    """
    normalize = MarkPreservingNormalizer(language_code)
    characters = _characters_of(normalize, language_code)
    for clip, reference, prediction in zip(ids, references, predictions, strict=True):
        yield ClipScore(
            id=clip,
            reference=reference,
            prediction=prediction,
            wer=_error_rate([reference], [prediction], normalize, of_characters=False),
            cer=_error_rate([reference], [prediction], characters, of_characters=True),
        )


class ErrorRateMetric(Protocol):
    """The part of `evaluate.Metric` that an evaluation loop uses."""

    def add_batch(self, *, predictions: Sequence[str], references: Sequence[str]) -> None: ...

    def compute(self) -> Scores: ...


def error_rate_metric(
    *,
    language_code: str,
    scratch: Path,
    english_spelling: Mapping[str, str] | None = None,
) -> ErrorRateMetric:
    """An `evaluate.Metric` that keeps predictions in a file under `scratch`, batch by batch, until `compute`.

    Take a new one for each evaluation: one that was interrupted half-way keeps what it was fed. `compute` removes the
    file.
    Nothing is downloaded: only `evaluate.load` fetches scripts.

    Raises (from `compute`):
        ValueError: nothing was added.
    """
    # Importing evaluate takes seconds and half a gigabyte.
    from datasets import Features, Value
    from evaluate import Metric, MetricInfo

    class SpeechErrorRates(Metric):
        def _info(self) -> MetricInfo:
            return MetricInfo(
                description="Word and character error rates of speech recognition.",
                citation="",
                features=Features({"predictions": Value("string"), "references": Value("string")}),
            )

        def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
            return score(references, predictions, language_code=language_code, english_spelling=english_spelling)

    metric: ErrorRateMetric = SpeechErrorRates(cache_dir=str(scratch))
    return metric


def _as_written(text: str) -> str:
    return " ".join(text.split())


def _characters_of(normalize: Normalizer, language_code: str) -> Normalizer:
    """Where spaces do not separate words, they only mark where punctuation was, which is no error to miss."""
    if language_code in UNSPACED_LANGUAGES:
        return lambda text: normalize(text).replace(" ", "")
    return normalize


def _error_rate(
    references: Sequence[str], predictions: Sequence[str], normalize: Normalizer, *, of_characters: bool
) -> ErrorRate:
    import jiwer

    normalised = [
        (normalize(reference), normalize(prediction))
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    scored = [pair for pair in normalised if pair[0]]
    if not scored:
        return ErrorRate(0, 0, 0, 0, skipped=len(normalised))
    align = jiwer.process_characters if of_characters else jiwer.process_words
    alignment = align([reference for reference, _ in scored], [prediction for _, prediction in scored])
    return ErrorRate(
        substitutions=alignment.substitutions,
        insertions=alignment.insertions,
        deletions=alignment.deletions,
        reference_length=alignment.hits + alignment.substitutions + alignment.deletions,
        skipped=len(normalised) - len(scored),
    )
