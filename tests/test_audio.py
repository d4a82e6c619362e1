"""Every format gives the same waveform; what cannot be used is rejected with a reason, cheaply, and never otherwise."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import speech

from asr_fine_tuner.audio import AudioRejected, decode

RATE = 16_000
WINDOW = 30.0


def rejection(data: bytes, max_seconds: float = WINDOW) -> AudioRejected:
    with pytest.raises(AudioRejected) as caught:
        decode(data, RATE, max_seconds)
    return caught.value


def stereo(seconds: float, rate: int) -> np.ndarray:
    return speech.synthesize(seconds, rate, channels=2)


def rate_for(form: str) -> int:
    """WMA has no 48 kHz stereo at the bit rate of the tests."""
    return 44_100 if form == "wma" else 48_000


@pytest.mark.parametrize("form", speech.FORMATS)
def test_every_format_gives_the_down_mixed_and_resampled_speech(form: str) -> None:
    rate = rate_for(form)
    audio = stereo(2.0, rate)

    waveform = decode(speech.encode(audio, rate, form), RATE, WINDOW)

    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    expected = decode(speech.encode(audio.mean(axis=1), rate, "wavfloat"), RATE, WINDOW)
    if form in speech.LOSSLESS:
        np.testing.assert_allclose(waveform, expected, atol=1e-4)
        return
    # An encoder's delay shifts the speech by up to some thousand samples, either way: align before comparing.
    delay = int(np.correlate(waveform, expected, "full").argmax()) - (len(expected) - 1)
    assert abs(delay) < 0.1 * RATE
    waveform, expected = waveform[max(delay, 0) :], expected[max(-delay, 0) :]
    overlap = min(len(waveform), len(expected))
    assert overlap > 1.9 * RATE
    assert np.corrcoef(waveform[:overlap], expected[:overlap])[0, 1] > 0.95


def test_real_speech_survives_mp3() -> None:
    audio, rate = speech.sentence()
    original = decode(speech.encode(audio, rate, "wav"), RATE, WINDOW)

    compressed = decode(speech.encode(audio, rate, "mp3"), RATE, WINDOW)

    assert len(compressed) == len(original)
    assert np.corrcoef(compressed, original)[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("n_frames", [1, 7, 16_001, 40_003])
def test_n_frames_become_the_ceiling_of_n_times_the_ratio(rate: int, n_frames: int) -> None:
    audio = speech.synthesize(n_frames / rate, rate)

    waveform = decode(speech.encode(audio, rate, "wavfloat"), RATE, WINDOW)

    assert len(waveform) == -(-n_frames * RATE // rate)


def test_16_khz_mono_is_returned_as_it_is_and_without_importing_librosa() -> None:
    audio = speech.synthesize(1.0, RATE)
    data = speech.encode(audio, RATE, "wavfloat")
    np.testing.assert_array_equal(decode(data, RATE, WINDOW), audio)

    code = (
        "import sys; from asr_fine_tuner.audio import decode; decode(sys.stdin.buffer.read(), 16000, 30.0);"
        "print([name for name in ('librosa', 'av', 'torch') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert result.stdout.strip() == b"[]"


@pytest.mark.parametrize("options", [{"write_xing": "0"}, {"write_xing": "0", "id3v2_version": "0"}])
def test_a_variable_bit_rate_mp3_without_a_frame_count_is_read_whole(options: dict[str, str]) -> None:
    audio = 0.01 * speech.synthesize(5.0, 48_000)
    audio[4 * 48_000 :] += 0.3 * np.random.default_rng(0).standard_normal(48_000)
    variable = {"global_quality": "236", "flags": "+qscale"}
    data = speech.encode_with_ffmpeg(audio, 48_000, "mp3", "libmp3lame", options, variable)
    assert soundfile.info(io.BytesIO(data)).duration < 4.5, "soundfile has learnt it: PyAV is no longer needed here"

    assert len(decode(data, RATE, WINDOW)) / RATE == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize(("riff", "size"), [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (0x7FFFFFFF, 0x7FFFF000)])
def test_a_wav_streamed_without_sizes_is_read_whole(riff: int, size: int) -> None:
    audio = speech.synthesize(1.0, RATE)
    wav = bytearray(speech.encode(audio, RATE, "wav"))
    struct.pack_into("<I", wav, 4, riff)
    struct.pack_into("<I", wav, wav.index(b"data") + 4, size)

    np.testing.assert_allclose(decode(bytes(wav), RATE, WINDOW), audio, atol=1e-4)


def test_a_flac_streamed_without_a_total_is_read_whole() -> None:
    audio = speech.synthesize(1.0, RATE)
    flac = speech.encode(audio, RATE, "flac")
    # STREAMINFO: the total is the lower 36 bits of the 8 bytes at 18.
    fields = int.from_bytes(flac[18:26], "big") >> 36 << 36

    waveform = decode(flac[:18] + fields.to_bytes(8, "big") + flac[26:], RATE, WINDOW)

    np.testing.assert_allclose(waveform, audio, atol=1e-4)


# MPEG-TS is made to be cut anywhere, and says nothing of its length.
@pytest.mark.parametrize("form", [form for form in speech.FORMATS if form != "mpegts"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files_are_found(form: str, kept: float) -> None:
    rate = rate_for(form)
    data = speech.encode(stereo(3.0, rate), rate, form)

    assert rejection(data[: int(kept * len(data))]).reason == "truncated"


def test_a_truncated_streamed_mp4_is_found() -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    data = speech.encode_with_ffmpeg(stereo(3.0, 48_000), 48_000, "mp4", "aac", options)
    decode(data, RATE, WINDOW)

    assert rejection(data[: len(data) // 2]).reason == "truncated"


def test_damage_inside_a_flac_is_found() -> None:
    data = bytearray(speech.encode(speech.synthesize(2.0, RATE), RATE, "flac"))
    data[len(data) // 2] ^= 0x10

    assert rejection(bytes(data)).reason in {"undecodable", "truncated"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="no bytes"),
        pytest.param(b"<html>404 Not Found</html>", "undecodable", id="a web page"),
        pytest.param(bytes(5000), "undecodable", id="zero bytes"),
        pytest.param(np.random.default_rng(0).bytes(5000), "undecodable", id="noise"),
        pytest.param(b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n", "undecodable", id="a playlist"),
        pytest.param(speech.encode(np.zeros(0, np.float32), RATE, "wav"), "empty", id="wav without samples"),
        pytest.param(speech.encode(np.zeros(0, np.float32), RATE, "flac"), "empty", id="flac without samples"),
        pytest.param(speech.encode(np.zeros(RATE, np.float32), RATE, "flac"), "silent", id="zeros"),
        pytest.param(speech.encode(np.full(RATE, np.nan, np.float32), RATE, "wavfloat"), "not_finite", id="NaN"),
        pytest.param(speech.encode(np.full(RATE, np.inf, np.float32), 48_000, "wavfloat"), "not_finite", id="infinity"),
        pytest.param(speech.encode(np.full(RATE, 3e38, np.float32), 48_000, "wavfloat"), "not_finite", id="overflow"),
    ],
)
def test_unusable_clips_are_rejected_with_a_reason(data: bytes, reason: str) -> None:
    assert rejection(data).reason == reason


def test_one_nan_among_many_channels_is_found() -> None:
    audio = speech.synthesize(1.0, RATE, channels=4)
    audio[77, 2] = np.nan

    assert rejection(speech.encode(audio, RATE, "wavfloat")).reason == "not_finite"


def test_channels_that_cancel_are_silent() -> None:
    audio = speech.synthesize(1.0, RATE)

    assert rejection(speech.encode(np.stack([audio, -audio], axis=1), RATE, "wavfloat")).reason == "silent"


@pytest.mark.parametrize("form", speech.FORMATS)
def test_a_clip_longer_than_allowed_is_rejected(form: str) -> None:
    rate = rate_for(form)
    error = rejection(speech.encode(stereo(3.0, rate), rate, form), max_seconds=2.0)

    assert error.reason == "too_long"
    assert "at most 2 s" in error.detail


@pytest.mark.parametrize("form", [*speech.LOSSLESS, "mp3", "m4a", "webm"])
def test_a_clip_exactly_as_long_as_allowed_is_accepted(form: str) -> None:
    assert len(decode(speech.encode(stereo(2.0, 48_000), 48_000, form), RATE, 2.0)) == 2 * RATE


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        assert rejection(data).reason == "too_long"
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_two_hours_of_8_channels_at_192_khz_are_rejected_from_the_header() -> None:
    # 8 channels of 24 bits: the samples themselves would be 33 GB, so only the first second is there.
    n_bytes = 2 * 3600 * 192_000 * 24
    chunks = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 8, 192_000, 192_000 * 24, 24, 24)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, n_bytes + 72, n_bytes, n_bytes // 24, 0)
    wav = b"RF64\xff\xff\xff\xffWAVE" + ds64 + chunks + b"data\xff\xff\xff\xff" + bytes(192_000 * 24)
    assert rejection(wav).reason == "truncated"

    two_hours = speech.encode(np.zeros((2 * 3600 * 1000, 8), np.float32), 1_000, "flac")
    assert peak_bytes(two_hours) < 4 << 20


def test_a_false_length_in_the_header_does_not_cost_memory() -> None:
    # Ten minutes of silence are a few kB of FLAC; the header says: one second, then none at all.
    flac = speech.encode(np.zeros(600 * 48_000, np.float32), 48_000, "flac")
    fields = int.from_bytes(flac[18:26], "big") >> 36 << 36

    unknown = flac[:18] + fields.to_bytes(8, "big") + flac[26:]
    assert peak_bytes(unknown) < 40 << 20

    one_second = flac[:18] + (fields | 48_000).to_bytes(8, "big") + flac[26:]
    assert rejection(one_second).reason == "silent"


def test_eight_channels_are_mixed_block_by_block() -> None:
    audio = speech.synthesize(8.0, 96_000, channels=8)
    data = speech.encode(audio, 96_000, "flac")
    decode(data, RATE, WINDOW)

    tracemalloc.start()
    waveform = decode(data, RATE, WINDOW)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(waveform) == 8 * RATE
    assert peak < audio.nbytes / 2


@pytest.mark.parametrize("rate", [1, 12, 2_000_000_000])
def test_impossible_sampling_rates_are_rejected(rate: int) -> None:
    wav = bytearray(speech.encode(speech.synthesize(1.0, RATE), RATE, "wav"))
    struct.pack_into("<I", wav, 24, rate)

    assert rejection(bytes(wav)).reason in {"undecodable", "too_long"}


def test_no_bytes_raise_anything_but_a_rejection(capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(7)  # noqa: S311
    files = [speech.encode(stereo(0.5, rate_for(form)), rate_for(form), form) for form in speech.FORMATS]
    accepted = rejected = 0
    for _ in range(1500):
        data = bytearray(rng.choice(files))
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(rng.choice((64, 400, len(data))))] = rng.choice((0, 0x7F, 0xFF, rng.randrange(256)))
        try:
            waveform = decode(bytes(data), RATE, WINDOW)
        except AudioRejected:
            rejected += 1
        else:
            accepted += 1
            assert np.isfinite(waveform).all()
            assert 0 < len(waveform) <= WINDOW * RATE
    assert accepted > 100
    assert rejected > 100
    assert "Traceback" not in capfd.readouterr().err


def test_a_rejection_crosses_process_boundaries() -> None:
    error = pickle.loads(pickle.dumps(AudioRejected("silent", "1.00 s of zeros")))  # noqa: S301

    assert (error.reason, error.detail, str(error)) == ("silent", "1.00 s of zeros", "silent: 1.00 s of zeros")
