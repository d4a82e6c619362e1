"""Voices and sound: espeak-ng reads a sentence in one of many voices, as float32 samples at 16 kHz."""

import io
import random
import subprocess
from dataclasses import dataclass

import av
import numpy as np
import soxr

SAMPLING_RATE = 16_000  # Hz, what Whisper's feature extractor expects
SYNTHESIS_RATE = 22_050  # Hz, what espeak-ng writes
WAV_HEADER = 44  # bytes; on a pipe its length fields are not filled in, so the samples are read without it
OPUS_BIT_RATE = 16_000  # bit/s


@dataclass(frozen=True)
class Speaker:
    """One voice: an espeak-ng variant with its own pitch (0 to 99) and speed (words a minute)."""

    name: str
    variant: str
    pitch: int
    speed: int


def speak(text: str, language: str, speaker: Speaker, rng: random.Random) -> np.ndarray:
    """Reads `text` aloud, a little higher or lower, slower or faster each time, as people do.

    Returns float32 samples in [-1, 1], of shape (samples,) at 16 kHz, with a short silence before and after.
    Raises `subprocess.CalledProcessError` when espeak-ng refuses, `FileNotFoundError` when it is not installed.
    """
    pitch = min(99, max(0, speaker.pitch + rng.randint(-5, 5)))
    speed = round(speaker.speed * rng.uniform(0.93, 1.07))
    command = ["espeak-ng", "-v", f"{language}+{speaker.variant}", "-p", str(pitch), "-s", str(speed), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples = np.frombuffer(wav[WAV_HEADER:], dtype="<i2").astype(np.float32) / 32768
    samples = soxr.resample(trim_silence(samples), SYNTHESIS_RATE, SAMPLING_RATE)
    samples *= rng.uniform(0.3, 0.8) / max(float(np.abs(samples).max(initial=0.0)), 1e-3)
    before, after = (np.zeros(int(rng.uniform(0.02, 0.15) * SAMPLING_RATE), np.float32) for _ in range(2))
    return np.concatenate([before, samples, after])


def trim_silence(samples: np.ndarray, threshold: float = 0.005) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > threshold)
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples[:0]


def encode_opus(samples: np.ndarray) -> bytes:
    """Ogg/Opus at 16 kHz, mono. The same samples give the same bytes: soundfile would draw a random stream number."""
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        options = {"application": "voip", "frame_duration": "60"}
        stream = container.add_stream("libopus", rate=SAMPLING_RATE, layout="mono", options=options)
        stream.bit_rate = OPUS_BIT_RATE
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLING_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return encoded.getvalue()
