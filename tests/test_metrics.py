"""metrics.py: error rates against figures worked out by hand, and evaluate's Metric over real files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from asr_fine_tuner.metrics import (
    METRICS,
    ErrorRate,
    Scores,
    error_rate_metric,
    leading_metric,
    score,
    score_clips,
)

REFERENCES = ["Buongiorno, a tutti!", "L'ora è tarda."]
PREDICTIONS = ["buongiorno tutti", "l’ora e tarda adesso"]


def test_words_and_characters_are_counted_over_the_whole_split() -> None:
    scores = score(REFERENCES, PREDICTIONS, language_code="it")
    assert scores.clips == 2
    # "a" is missing; "è" became "e"; "adesso" is one too many: 3 errors in 3 + 4 words.
    assert scores.wer == ErrorRate(substitutions=1, insertions=1, deletions=1, reference_length=7)
    assert scores.wer.rate == pytest.approx(3 / 7)
    # As written no word is right: two substitutions and a deletion, then three substitutions and an insertion.
    assert (scores.wer_orthographic.errors, scores.wer_orthographic.reference_length) == (7, 6)
    # "a " goes, "è" changes, " adesso" comes: 2 + 1 + 7 of 18 + 13 characters.
    assert scores.cer.errors == 10
    assert scores.cer.reference_length == len("buongiorno a tutti") + len("l ora è tarda")
    assert scores.cer_orthographic.rate > scores.cer.rate
    assert scores.wer_whisper == scores.wer


def test_a_perfect_and_a_silent_model() -> None:
    perfect = score(REFERENCES, REFERENCES, language_code="it")
    assert perfect.rates() == dict.fromkeys(METRICS, 0.0)
    silent = score(REFERENCES, ["", " "], language_code="it")
    assert silent.rates() == dict.fromkeys(METRICS, 1.0)
    assert silent.wer.deletions == silent.wer.reference_length == 7


def test_a_babbling_model_exceeds_one() -> None:
    assert score(["sì"], ["sì sì sì sì"], language_code="it").wer.rate == 3.0


def test_a_wrong_vowel_sign_is_an_error_that_whispers_normaliser_does_not_see() -> None:
    scores = score(["किताब"], ["कताब"], language_code="hi")
    assert scores.wer.rate == 1.0
    assert scores.cer == ErrorRate(substitutions=0, insertions=0, deletions=1, reference_length=5)


@pytest.mark.parametrize("code", ["zh", "ja", "th", "lo", "my", "km", "yue"])
def test_characters_lead_where_words_are_not_written_apart(code: str) -> None:
    assert leading_metric(code) == "cer"


@pytest.mark.parametrize("code", ["it", "en", "ko", "vi", "hi", "ar"])
def test_words_lead_elsewhere(code: str) -> None:
    assert leading_metric(code) == "wer"


def test_a_missing_comma_is_no_error_in_chinese() -> None:
    scores = score(["你好，世界。"], ["你好世界"], language_code="zh")
    assert scores.cer.errors == 0
    assert scores.cer.reference_length == 4
    assert scores.cer_orthographic.errors == 2


def test_english_spelling_reaches_whispers_normaliser_only() -> None:
    scores = score(["The colour."], ["the color"], language_code="en", english_spelling={"colour": "color"})
    assert scores.wer_whisper.rate == 0.0
    assert scores.wer.rate == 0.5


def test_references_that_a_normaliser_empties_are_left_out_and_counted() -> None:
    scores = score(["(risate)", "ciao"], ["ah", "ciao"], language_code="it")
    assert scores.wer_whisper == ErrorRate(0, 0, 0, reference_length=1, skipped=1)
    assert scores.wer.rate == 0.5
    nothing = score(["..."], ["rumore"], language_code="it")
    assert math.isnan(nothing.wer.rate)
    assert "wer" not in nothing.rates()
    assert nothing.rates()["wer_orthographic"] == 1.0
    assert json.loads(json.dumps(nothing.as_dict(), allow_nan=False))["wer"]["rate"] is None


def test_scores_come_back_from_json() -> None:
    scores = score(REFERENCES, PREDICTIONS, language_code="it")
    assert Scores.from_dict(json.loads(json.dumps(scores.as_dict()))) == scores


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        score(["uno", "due"], ["uno"], language_code="it")
    with pytest.raises(ValueError, match="zip"):
        list(score_clips(["1"], ["uno", "due"], ["uno", "due"], language_code="it"))


def test_the_clips_errors_sum_to_the_splits() -> None:
    clips = list(score_clips(["1.wav", "2.wav"], REFERENCES, PREDICTIONS, language_code="it"))
    scores = score(REFERENCES, PREDICTIONS, language_code="it")
    assert [clip.wer.errors for clip in clips] == [1, 2]
    assert sum(clip.cer.errors for clip in clips) == scores.cer.errors
    assert clips[0].as_dict() == {
        "id": "1.wav",
        "reference": "Buongiorno, a tutti!",
        "prediction": "buongiorno tutti",
        "wer": pytest.approx(1 / 3),
        "cer": pytest.approx(2 / 18),
        "errors": 1,
        "words": 3,
        "character_errors": 2,
        "characters": 18,
    }


def test_batches_accumulate_on_disk_and_the_file_goes(tmp_path: Path) -> None:
    for _ in range(2):
        metric = error_rate_metric(language_code="it", scratch=tmp_path)
        for reference, prediction in zip(REFERENCES, PREDICTIONS, strict=True):
            metric.add_batch(predictions=[prediction], references=[reference])
        assert list(tmp_path.rglob("*.arrow"))
        assert metric.compute() == score(REFERENCES, PREDICTIONS, language_code="it")
        assert not list(tmp_path.rglob("*.arrow"))


def test_two_metrics_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    first = error_rate_metric(language_code="it", scratch=tmp_path)
    second = error_rate_metric(language_code="it", scratch=tmp_path)
    first.add_batch(predictions=["uno"], references=["uno"])
    second.add_batch(predictions=["due", "tre"], references=["uno", "due"])
    assert first.compute().wer == ErrorRate(0, 0, 0, reference_length=1)
    assert second.compute().wer == ErrorRate(2, 0, 0, reference_length=2)


def test_a_metric_that_was_fed_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least once"):
        error_rate_metric(language_code="it", scratch=tmp_path).compute()


def test_naming_metrics_imports_nothing_heavy() -> None:
    script = (
        "import sys; from asr_fine_tuner.metrics import leading_metric; leading_metric('it')\n"
        "assert not {'evaluate', 'datasets', 'transformers', 'torch', 'jiwer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
