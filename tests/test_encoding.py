"""One example to one clip, or the reason why not; and what a model expects."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import speech
import tiny

from asr_fine_tuner.encoding import ClipEncoder, EncoderSettings, model_format
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.examples import Example
from asr_fine_tuner.features import LogMelExtractor
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.rejection import ClipRejected

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = EncoderSettings(
    model_folder=tiny.model(),
    language_code="it",
    task="transcribe",
    min_duration=0.1,
    max_duration=float(tiny.WINDOW),
    max_labels=448,
)


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(SETTINGS)


def rejection(encoder: ClipEncoder, audio: bytes | None, text: str | None) -> ClipRejected:
    with pytest.raises(ClipRejected) as caught:
        encoder.decode(Example("a", audio, text, None))
    return caught.value


def test_a_clip_is_what_the_parts_make_of_it(encoder: ClipEncoder) -> None:
    audio = speech.synthesize(1.23)
    example = Example("id", speech.encode(audio, 16_000, "wavfloat"), "  Così  è. ", "anna")
    clip = encoder.encode(encoder.decode(example))
    assert (clip.id, clip.speaker, clip.text) == ("id", "anna", "Così è.")
    assert clip.seconds == pytest.approx(1.23)
    assert np.array_equal(clip.features, LogMelExtractor.from_folder(tiny.model()).extract(audio))
    assert clip.labels == LabelEncoder.from_folder(tiny.model(), "it", "transcribe").encode("Così è.")


def test_other_rates_and_channels_become_the_extractors(encoder: ClipEncoder) -> None:
    stereo = speech.synthesize(1.0, 48_000, channels=2)
    clip = encoder.encode(encoder.decode(Example("a", speech.encode(stereo, 48_000, "flac"), "a", None)))
    assert clip.seconds == pytest.approx(1.0)
    assert clip.features.shape == (103, 80)


@pytest.mark.parametrize("reason", tiny.broken())
def test_what_cannot_be_learned_from_is_rejected(reason: str, encoder: ClipEncoder) -> None:
    for row in tiny.broken()[reason]:
        rejected = rejection(encoder, row.audio, row.text)
        assert rejected.reason == reason
        assert rejected.detail


def test_a_file_that_is_not_there_is_told_by_its_name(encoder: ClipEncoder) -> None:
    with pytest.raises(ClipRejected, match=r"no_audio.*audio/0005\.wav is not there"):
        encoder.decode(Example("a", None, "testo", None, missing="audio/0005.wav"))


@pytest.mark.parametrize(("seconds", "accepted"), [(0.1, True), (0.0999, False), (4.0, True), (4.001, False)])
def test_durations_at_the_limits(seconds: float, accepted: bool, encoder: ClipEncoder) -> None:
    audio = speech.encode(speech.synthesize(seconds), 16_000, "wav")
    if accepted:
        assert encoder.decode(Example("a", audio, "a", None)).seconds == pytest.approx(seconds)
    else:
        assert rejection(encoder, audio, "a").reason in ("too_short", "too_long")


def test_as_many_labels_as_the_decoder_holds() -> None:
    """448 decoder positions: the start token takes none of them, being the first input and no label."""
    labels = LabelEncoder.from_folder(tiny.model(), "it", "transcribe").encode("uno due tre")
    for max_labels, accepted in ((len(labels) - 1, True), (len(labels) - 2, False)):
        encoder = ClipEncoder(
            EncoderSettings(tiny.model(), "it", "transcribe", min_duration=0.1, max_duration=4.0, max_labels=max_labels)
        )
        if accepted:
            assert encoder.decode(Example("a", tiny.spoken(0), "uno due tre", None)).labels == labels
        else:
            assert rejection(encoder, tiny.spoken(0), "uno due tre").detail.startswith(
                f"{len(labels) - 1}, the decoder"
            )


class TestModelFormat:
    def test_what_features_and_labels_have_to_look_like(self) -> None:
        narrow = model_format("org/tiny", "abc", tiny.model())
        assert (narrow.model_id, narrow.revision) == ("org/tiny", "abc")
        assert (narrow.n_mels, narrow.window_seconds, narrow.sampling_rate, narrow.max_labels) == (80, 4.0, 16_000, 448)
        assert narrow.multilingual
        wide = model_format("org/wide", "abc", tiny.wide_model())
        assert (wide.n_mels, wide.window_seconds) == (128, 30.0)
        assert wide.tokenizer_sha256 == narrow.tokenizer_sha256
        assert not model_format("org/english", "abc", tiny.english_model()).multilingual

    def test_another_kind_of_model_is_refused(self, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny.model(), tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "wav2vec2"}))
        with pytest.raises(PermanentError, match="a model of type 'wav2vec2'"):
            model_format("org/wav2vec2", "abc", folder)
