"""Features of the real frames, padded back, are those of Whisper's own padded extractor."""

from __future__ import annotations

import numpy as np
import pytest
import speech
import tiny
from transformers import WhisperFeatureExtractor

from asr_fine_tuner.features import LogMelExtractor, pad_to_window

RATE, WINDOW = 16_000, 480_000
# 1 sample, around every boundary of the arithmetic (half a window of the FFT, the hop, the whole window), and between.
LENGTHS = (
    *(1, 2, 159, 160, 161, 199, 200, 201, 319, 320, 321, 359, 360, 361, 399, 400, 401),
    *(1_600, 15_999, 16_000, 16_001, 16_039, 16_040, 16_041, 33_333, 47_999, 80_000, 80_200, 123_456),
    *(
        239_999,
        240_000,
        240_001,
        479_000,
        479_479,
        479_480,
        479_639,
        479_640,
        479_641,
        479_799,
        479_800,
        479_999,
        WINDOW,
    ),
)
# float16 keeps 11 bits of features between -1.5 and 1.5: half a unit in the last place is 4.9e-4.
FLOAT16_TOLERANCE = 5e-4
FLOAT32_TOLERANCE = 2.4e-7

_SPEECH = speech.synthesize(30.0, RATE, seed=1)


def padded(extractor: WhisperFeatureExtractor, audio: np.ndarray) -> np.ndarray:
    """`[n_mels, frames of the window]` float32, as transformers gives them."""
    return extractor(audio, sampling_rate=RATE, return_tensors="np").input_features[0]


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("n_samples", LENGTHS)
def test_equal_to_the_padded_extractor(n_samples: int, n_mels: int) -> None:
    _check(WhisperFeatureExtractor(feature_size=n_mels), n_samples)


@pytest.mark.parametrize("n_samples", [1, 201, 16_000, 16_041, 63_800, 63_801, 63_999, 64_000])
def test_equal_in_a_shorter_window(n_samples: int) -> None:
    _check(WhisperFeatureExtractor(chunk_length=4), n_samples)


def _check(extractor: WhisperFeatureExtractor, n_samples: int) -> None:
    ours = LogMelExtractor(extractor)
    audio = _SPEECH[WINDOW - n_samples :]
    expected = padded(extractor, audio)
    features = ours.extract(audio)
    assert features.dtype == np.float16
    assert features.shape == (ours.real_frames(n_samples), ours.n_mels)
    batch = pad_to_window([features], ours.window_frames)
    assert batch.shape == (1, *expected.shape)
    assert np.abs(batch[0].astype(np.float32) - expected).max() <= FLOAT16_TOLERANCE
    # Before the rounding to float16 there is no difference but in the last bit of float32, below 2.
    exact = ours.log_mel(audio).numpy()
    assert np.array_equal(exact.astype(np.float16), features)
    exact = np.pad(exact, ((0, ours.window_frames - len(exact)), (0, 0)), mode="edge").T
    assert np.abs(exact - expected).max() <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_equal_for_speech_that_stops_suddenly(seed: int) -> None:
    """The worst case for what is cut off: loud to the last sample."""
    extractor = WhisperFeatureExtractor()
    audio = speech.synthesize(2.0, RATE, seed=seed)
    audio[-400:] = np.where(np.arange(400) % 2, 0.9, -0.9)
    ours = LogMelExtractor(extractor)
    batch = pad_to_window([ours.extract(audio)], ours.window_frames)
    assert np.abs(batch[0] - padded(extractor, audio)).max() <= FLOAT16_TOLERANCE


def test_one_frame_less_would_not_do() -> None:
    """The last frame has to be pure padding: it is what the rest of the window repeats."""
    extractor = WhisperFeatureExtractor()
    ours = LogMelExtractor(extractor)
    audio = _SPEECH[:16_040]
    batch = pad_to_window([ours.extract(audio)[:-1]], ours.window_frames)
    assert np.abs(batch[0] - padded(extractor, audio)).max() > 0.1


def test_only_real_frames_are_kept() -> None:
    ours = LogMelExtractor(WhisperFeatureExtractor())
    assert [ours.real_frames(n) for n in (1, 3 * RATE, WINDOW - 1, WINDOW)] == [3, 303, 3000, 3000]


def test_longer_audio_is_refused_rather_than_cut() -> None:
    with pytest.raises(ValueError, match="480001 samples given, the window holds 480000"):
        LogMelExtractor(WhisperFeatureExtractor()).extract(np.zeros(WINDOW + 1, np.float32))


@pytest.mark.parametrize("setting", ["dither", "padding_value"])
def test_an_extractor_that_adds_something_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=0.5, only 0 is supported"):
        LogMelExtractor(WhisperFeatureExtractor(**{setting: 0.5}))


def test_clips_of_a_batch_do_not_touch_each_other() -> None:
    ours = LogMelExtractor(WhisperFeatureExtractor(chunk_length=4))
    clips = [ours.extract(_SPEECH[:length]) for length in (48_000, 8_000, 64_000)]
    batch = pad_to_window(clips, ours.window_frames)
    assert batch.dtype == np.float16
    for row, clip in zip(batch, clips, strict=True):
        assert np.array_equal(row, pad_to_window([clip], ours.window_frames)[0])


def test_what_a_checkpoint_says_of_its_features() -> None:
    narrow, wide = (LogMelExtractor.from_folder(folder) for folder in (tiny.model(), tiny.wide_model()))
    assert (narrow.n_mels, narrow.window_seconds, narrow.window_frames, narrow.sampling_rate) == (80, 4.0, 400, RATE)
    assert (wide.n_mels, wide.window_seconds, wide.window_frames) == (128, 30.0, 3000)
