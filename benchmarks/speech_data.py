"""Speech-like clips in a parquet dataset as the Hub has them, without anything to download.

What is said cannot be understood, but decoders, resampler and feature extractor work on it as on speech: voiced
syllables with gliding pitch and formants, pauses, and noise down the whole band.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr
from numpy.typing import NDArray

Form = Literal["flac", "mp3"]

CLIP_SECONDS = 5.0
_WORDS_PER_SECOND = 12 / 5
# Common corpora: LibriSpeech and FLEURS are 16 kHz and lossless, Common Voice is 48 kHz MP3.
SAMPLING_RATES: dict[Form, int] = {"flac": 16_000, "mp3": 48_000}
_CONTAINERS: dict[Form, tuple[str, str]] = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}

SPLITS = ("train", "validation", "test")
# Every 16th clip each: three shards at least, and most of the clips in train.
_HELD_OUT_FRACTION = 1 / 16
# The Hub's own choice for audio, so that its viewer can page.
_ROWS_PER_GROUP = 100
# Clips repeat from here on: synthesis is slow, and nothing that is measured remembers what it has seen.
_DIFFERENT_CLIPS = 16
# Speech has next to nothing above 8 kHz.
_SYNTHESIS_RATE = 16_000

_SYLLABLES = (
    "ba",
    "ce",
    "chi",
    "co",
    "da",
    "di",
    "fa",
    "la",
    "le",
    "ma",
    "mi",
    "no",
    "per",
    "re",
    "sa",
    "sta",
    "ti",
    "tra",
)


def write_dataset(
    folder: Path, form: Form, n_clips: int, *, seconds: float = CLIP_SECONDS, held_out: int | None = None
) -> Path:
    """Write `n_clips` clips in `form` as `data/SPLIT-00000-of-00001.parquet`; returns the folder.

    held_out: so many of them are in validation, and as many in test; a share when not given.
    """
    waveforms = [synthesize(seed, SAMPLING_RATES[form], seconds) for seed in range(min(n_clips, _DIFFERENT_CLIPS))]
    clips = [encode(waveform, form) for waveform in waveforms]
    held_out = held_out or max(1, round(n_clips * _HELD_OUT_FRACTION))
    starts = dict(zip(SPLITS, (0, n_clips - 2 * held_out, n_clips - held_out), strict=True))
    ends = dict(zip(SPLITS, (*list(starts.values())[1:], n_clips), strict=True))
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        _write_split(path, clips, range(starts[split], ends[split]), form, seconds)
    return folder


def _write_split(path: Path, clips: Sequence[bytes], numbers: range, form: Form, seconds: float) -> None:
    features = {
        "audio": {"sampling_rate": SAMPLING_RATES[form], "_type": "Audio"},
        "sentence": {"dtype": "string", "_type": "Value"},
    }
    schema = pa.schema(
        [("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("sentence", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(numbers), _ROWS_PER_GROUP):
            rows = [
                {
                    "audio": {"bytes": clips[number % len(clips)], "path": f"{number:06d}.{form}"},
                    "sentence": sentence(number, seconds),
                }
                for number in numbers[start : start + _ROWS_PER_GROUP]
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def synthesize(seed: int, sampling_rate: int, seconds: float = CLIP_SECONDS) -> NDArray[np.float32]:
    """A waveform `(n_samples,)` of `seconds`: about four syllables a second under two moving formants."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * _SYNTHESIS_RATE)) / _SYNTHESIS_RATE
    pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / _SYNTHESIS_RATE
    formants = [
        low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * time + rng.uniform(0, 6)))
        for low, high in ((300, 900), (900, 2500))
    ]
    speech = np.zeros(len(time))
    for harmonic in range(1, 24):
        level = sum(np.exp(-(((harmonic * pitch - formant) / 200) ** 2)) for formant in formants)
        speech += (level + 0.02) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2 * time + rng.uniform(0, 6)) + 0.3, 0, 1) ** 0.5
    speech = soxr.resample(0.4 * speech * syllables / np.abs(speech).max(), _SYNTHESIS_RATE, sampling_rate)
    noisy: NDArray[np.float64] = speech + 0.004 * rng.standard_normal(len(speech))
    return noisy.astype(np.float32)


def encode(waveform: NDArray[np.float32], form: Form) -> bytes:
    file = io.BytesIO()
    container, subtype = _CONTAINERS[form]
    soundfile.write(file, waveform, SAMPLING_RATES[form], format=container, subtype=subtype)
    return file.getvalue()


def sentence(seed: int, seconds: float = CLIP_SECONDS) -> str:
    """Invented words, twelve in five seconds as in Italian."""
    rng = random.Random(seed)  # noqa: S311
    words = [
        "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(max(1, round(_WORDS_PER_SECOND * seconds)))
    ]
    return " ".join(words).capitalize() + "."
