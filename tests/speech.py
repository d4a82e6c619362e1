"""Speech for the tests: synthesised here or spoken by espeak-ng, and encoded in every format that clips arrive in."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import TYPE_CHECKING

import av
import numpy as np
import soundfile

if TYPE_CHECKING:
    from numpy.typing import NDArray

ESPEAK = shutil.which("espeak-ng")

# libsndfile's names, and FFmpeg's container and encoder, of each format.
_SOUNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wavfloat": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
_PYAV = {
    "m4a": ("mp4", "aac"),
    "aac": ("adts", "aac"),
    "webm": ("webm", "libopus"),
    "wma": ("asf", "wmav2"),
    "mpegts": ("mpegts", "aac"),
}
FORMATS = (*_SOUNDFILE, *_PYAV)
LOSSLESS = ("wav", "wav24", "wavfloat", "rf64", "aiff", "au", "flac")


def synthesize(seconds: float, sampling_rate: int = 16_000, seed: int = 0, channels: int = 1) -> NDArray[np.float32]:
    """Voiced syllables: harmonics of a gliding pitch under two formants, 4 syllables a second, over faint noise.

    Returns `(n_samples,)`, or `(n_samples, channels)` for several channels, which differ in level.
    """
    random = np.random.default_rng(seed)
    n_samples = round(seconds * sampling_rate)
    time = np.arange(n_samples) / sampling_rate
    pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / sampling_rate
    formants = random.uniform((300, 900), (800, 2500))
    speech: NDArray[np.float64] = np.zeros(n_samples)
    for harmonic in range(1, 20):
        frequency = harmonic * pitch.mean() if n_samples else 0.0
        level = np.exp(-(((frequency - formants) / 250) ** 2)).sum() + 0.02
        if frequency < 0.45 * sampling_rate:
            speech += level * np.sin(harmonic * phase)
    speech *= np.clip(np.sin(2 * np.pi * 2 * time), 0, 1) ** 0.5
    speech = 0.3 * speech / max(np.abs(speech).max(initial=0), 1e-9) + 0.001 * random.standard_normal(n_samples)
    if channels > 1:
        speech = speech[:, None] * np.linspace(1, 0.5, channels)
    return speech.astype(np.float32)


def speak(
    text: str, voice: str = "it", words_per_minute: int = 160, pitch: int = 50
) -> tuple[NDArray[np.float32], int]:
    """Waveform `(n_samples,)` and sampling rate of `text` spoken by espeak-ng; check `ESPEAK` first."""
    assert ESPEAK, "espeak-ng is not installed"
    command = [ESPEAK, "--stdout", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    return audio, rate


def sentence(
    text: str = "Il treno per Trento parte alle nove e un quarto.", seed: int = 0
) -> tuple[NDArray[np.float32], int]:
    """Waveform and sampling rate of real speech where espeak-ng is installed, else of synthesised of that length."""
    if ESPEAK:
        return speak(text, pitch=30 + seed * 7 % 60)
    return synthesize(0.07 * len(text), 22_050, seed), 22_050


def encode(audio: NDArray[np.float32], sampling_rate: int, form: str) -> bytes:
    """`audio`, `(n_samples,)` or `(n_samples, channels)`, as a file in the format `form` of `FORMATS`."""
    file = io.BytesIO()
    if form in _SOUNDFILE:
        container, subtype = _SOUNDFILE[form]
        soundfile.write(file, audio, sampling_rate, format=container, subtype=subtype)
        return file.getvalue()
    container, codec = _PYAV[form]
    return encode_with_ffmpeg(audio, sampling_rate, container, codec, codec_options={"b": "96000"})


def encode_with_ffmpeg(
    audio: NDArray[np.float32],
    sampling_rate: int,
    container: str,
    codec: str,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """`audio` in an FFmpeg container and codec, for what `encode` has no name for."""
    layout = "mono" if audio.ndim == 1 else {1: "mono", 2: "stereo"}[audio.shape[1]]
    planar = np.ascontiguousarray(np.atleast_2d(audio.T), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sampling_rate, 0
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=sampling_rate, layout=layout, options=codec_options or {})
        stream.codec_context.open()
        converter = av.AudioResampler(
            stream.format.name, layout, sampling_rate, frame_size=stream.codec_context.frame_size or None
        )
        for part in (frame, None):
            for piece in converter.resample(part):
                output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()
