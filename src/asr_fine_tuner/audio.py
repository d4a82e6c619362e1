"""Encoded clip to waveform: bytes of any common format to float32 mono at one sampling rate.

Pure functions: no files, no network. What cannot be used is an `AudioRejected` with a reason that can be counted;
nothing else that libsndfile, FFmpeg or the resampler raise on hostile bytes escapes. Memory is bounded by
`max_seconds`, not by what the header claims or a compressed stream expands to.
"""

from __future__ import annotations

import io
import math
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np
import soundfile
import soxr

from asr_fine_tuner.rejection import ClipRejected
from asr_fine_tuner.truncation import missing_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from numpy.typing import NDArray

    Waveform: TypeAlias = NDArray[np.float32]

# Samples, over all channels, that are held before they are down-mixed: 1 MiB of float32, more than 5 s of 48 kHz mono.
_BLOCK_SAMPLES = 1 << 18
# What a lossy codec may add or drop at its ends (encoder delay, padding, rounded times) without anything being missing.
_CODEC_SLACK_SECONDS = 0.1
# Telephony is 8 kHz, the largest rate a FLAC header can hold 1,048,575 Hz; outside, it is the header that is broken.
_SAMPLING_RATES = range(1_000, 1_048_576)
# FFmpeg demuxers that clips arrive in. A closed list, since playlists (HLS, DASH, concat) make it open other files and
# addresses.
_DEMUXERS = "mov,matroska,webm,aac,asf,mp3,ogg,flac,wav,w64,aiff,au,caf,amr,mpegts,ac3,ape,wv,tta"
# Of these, the ones whose length comes from a header rather than from a guess at the bit rate.
_DEMUXERS_WITH_LENGTH = {"mov", "asf"}


class AudioRejected(ClipRejected):
    """Audio that is "empty" (no samples), "undecodable", "truncated" (samples are missing), "too_long", "not_finite"
    (NaN or infinity) or "silent" (all zero)."""


def decode(data: bytes, sampling_rate: int, max_seconds: float) -> Waveform:
    """Decode one clip, down-mix it to mono by the mean of its channels and resample it.

    soundfile reads wav, flac, mp3, ogg (Vorbis, Opus), aiff and the like; PyAV what it cannot, such as m4a, aac, webm
    and wma. The length in the header is compared with `max_seconds` before a sample is decoded, and decoding stops
    there if the header lied.

    Args:
        data: the encoded file.
        sampling_rate: of the result, in Hz.
        max_seconds: longest clip that is accepted; exactly this long is.

    Returns:
        float32 waveform `(n_samples,)`; n frames at rate r become `ceil(n * sampling_rate / r)` samples.

    Raises:
        AudioRejected: for whatever is wrong with the clip.
    """
    if not data:
        raise AudioRejected("empty", "0 bytes")
    missing = missing_bytes(data)
    if missing:
        raise AudioRejected("truncated", missing)
    try:
        waveform, rate = _decode_mono(data, max_seconds)
        if rate != sampling_rate:
            waveform = _resample(waveform, rate, sampling_rate)
    except AudioRejected:
        raise
    # Damaged bytes make the decoders raise anything from ValueError to MemoryError, and all of it means the same.
    except Exception as error:
        raise AudioRejected("undecodable", _describe(error)) from error
    return waveform


def _decode_mono(data: bytes, max_seconds: float) -> tuple[Waveform, int]:
    try:
        sound = soundfile.SoundFile(_SeekableBytes(data))
    except soundfile.LibsndfileError:
        return _decode_pyav(data, max_seconds)
    with sound:
        if _length_is_unknown(sound, data):
            return _decode_pyav(data, max_seconds)
        return _decode_soundfile(sound, max_seconds)


class _SeekableBytes(io.BytesIO):
    """Bytes for libsndfile, which seeks before the start of damaged files: raising there prints a traceback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _length_is_unknown(sound: soundfile.SoundFile, data: bytes) -> bool:
    """Whether libsndfile would read the wrong number of frames because the header does not say how many there are.

    It reads none of a WAV streamed with size 0, fails at the end of a FLAC without a total, and ends an MP3 of variable
    bit rate that lacks the Xing, Info or VBRI frame where a constant bit rate would.
    """
    if sound.format == "MP3":
        start = _id3_size(data)
        head = data[start : start + 512]
        return not any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))
    return not 0 < sound.frames < 1 << 62


def _id3_size(data: bytes) -> int:
    """Bytes of the ID3v2 tag at the start, whose size is written 7 bits a byte (ID3v2.4, section 3.1)."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = data[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def _decode_soundfile(sound: soundfile.SoundFile, max_seconds: float) -> tuple[Waveform, int]:
    rate = _checked_rate(sound.samplerate)
    declared = sound.frames / rate
    if declared > max_seconds:
        raise _too_long(f"{declared:.2f} s", max_seconds)
    try:
        waveform = _mix(_soundfile_blocks(sound), rate, max_seconds)
    except soundfile.LibsndfileError as error:
        # The one error of libsndfile for a FLAC stream that ends before its last frame.
        reason = "truncated" if "lost sync" in error.error_string else "undecodable"
        raise AudioRejected(reason, f"{error.error_string} ({declared:.2f} s in the header)") from error
    decoded = len(waveform) / rate
    if declared - decoded > _CODEC_SLACK_SECONDS:
        raise AudioRejected("truncated", f"{decoded:.2f} s of the {declared:.2f} s in the header")
    return waveform, rate


def _soundfile_blocks(sound: soundfile.SoundFile) -> Iterator[Waveform]:
    frames = max(1, _BLOCK_SAMPLES // sound.channels)
    while True:
        block = sound.read(frames, dtype="float32", always_2d=True)
        yield block.T
        if len(block) < frames:
            return


def _decode_pyav(data: bytes, max_seconds: float) -> tuple[Waveform, int]:
    import av

    # Without these lists a clip that is really a playlist makes FFmpeg open files and addresses. No protocol is "none".
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    # Tags in Latin-1 are common and no reason to lose a clip.
    with av.open(io.BytesIO(data), container_options=options, metadata_errors="replace") as container:
        if not container.streams.audio:
            raise AudioRejected("undecodable", f"a {container.format.long_name} file without an audio stream")
        stream = container.streams.audio[0]
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None:
            raise AudioRejected("empty", f"a {container.format.long_name} file without samples")
        # Of the frame, since for HE-AAC the header gives half the rate.
        rate = _checked_rate(first.sample_rate)
        # The padding of the last packet is cut off below; it must not make the clip too long before.
        blocks = _pyav_blocks(chain([first], frames))
        waveform = _mix(blocks, rate, max_seconds, slack_seconds=_CODEC_SLACK_SECONDS)

        decoded = len(waveform) / rate
        declared = _declared_seconds(container)
        if declared is not None:
            if declared - decoded > _CODEC_SLACK_SECONDS:
                raise AudioRejected("truncated", f"{decoded:.2f} s of the {declared:.2f} s in the header")
            if decoded - declared < _CODEC_SLACK_SECONDS:
                waveform = waveform[: round(declared * rate)]
        if len(waveform) > max_seconds * rate:
            raise _too_long(f"{decoded:.2f} s", max_seconds)
    return waveform, rate


def _declared_seconds(container: InputContainer) -> float | None:
    """Length of the only stream as its header gives it, or None where FFmpeg would guess it from the bit rate."""
    if len(container.streams) > 1 or not {*container.format.name.split(",")} & _DEMUXERS_WITH_LENGTH:
        return None
    # FFmpeg's AV_TIME_BASE: microseconds.
    return container.duration / 1e6 if container.duration else None


def _pyav_blocks(frames: Iterator[AudioFrame]) -> Iterator[Waveform]:
    import av

    # Converts to planar float and collects frames into blocks; given neither, it keeps the rate and layout there are.
    converter = av.AudioResampler(format="fltp", frame_size=_BLOCK_SAMPLES // 4)
    decoded_seconds = 0.0
    try:
        for frame in frames:
            decoded_seconds += frame.samples / frame.sample_rate
            for block in converter.resample(frame):
                yield block.to_ndarray()
    except av.FFmpegError as error:
        raise AudioRejected("truncated", f"decoding stops after {decoded_seconds:.2f} s: {error.strerror}") from error
    for block in converter.resample(None):
        yield block.to_ndarray()


def _mix(blocks: Iterator[Waveform], rate: int, max_seconds: float, slack_seconds: float = 0.0) -> Waveform:
    """Check and down-mix blocks `(channels, frames)` as they come, so that many channels never lie in memory at once.

    Returns the waveform `(frames,)`, still at `rate`.
    """
    mono: list[Waveform] = []
    n_frames = 0
    for block in blocks:
        if block.size and not _is_finite(block):
            raise AudioRejected("not_finite", "NaN or infinity among the samples")
        n_frames += block.shape[1]
        if n_frames > (max_seconds + slack_seconds) * rate:
            raise _too_long(f"at least {n_frames / rate:.2f} s", max_seconds)
        mono.append(_to_mono(block))
    if n_frames == 0:
        raise AudioRejected("empty", "no samples")
    waveform = mono[0] if len(mono) == 1 else np.concatenate(mono)
    if not waveform.any():
        raise AudioRejected("silent", f"{n_frames / rate:.2f} s of zeros")
    return waveform


def _is_finite(samples: Waveform) -> bool:
    # A NaN passes through both extremes, which are found in a fraction of the time that asking every sample takes.
    return bool(np.isfinite(samples.min()) and np.isfinite(samples.max()))


def _to_mono(block: Waveform) -> Waveform:
    if len(block) == 1:
        return cast("Waveform", block[0])
    import librosa

    return cast("Waveform", librosa.to_mono(block))


def _resample(waveform: Waveform, rate: int, sampling_rate: int) -> Waveform:
    # What librosa.resample calls, too, between checks that are made here already.
    resampled: Waveform = soxr.resample(waveform, rate, sampling_rate, quality="HQ")
    # Samples near the end of the float32 range overflow in the filter.
    if resampled.size and not _is_finite(resampled):
        raise AudioRejected("not_finite", "samples so large that resampling overflows")
    n_samples = math.ceil(len(waveform) * sampling_rate / rate)
    return resampled if len(resampled) == n_samples else np.pad(resampled, (0, n_samples - len(resampled)))


def _checked_rate(rate: int) -> int:
    if rate not in _SAMPLING_RATES:
        raise AudioRejected("undecodable", f"the header gives a sampling rate of {rate} Hz")
    return rate


def _too_long(length: str, max_seconds: float) -> AudioRejected:
    return AudioRejected("too_long", f"{length}, at most {max_seconds:g} s are accepted")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
