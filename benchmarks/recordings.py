"""What the train job does not evaluate, transcribed by a model, as a child process: long recordings and late clips.

    python -m benchmarks.recordings MODEL DATASET CHUNK_SECONDS ORDERS CLIPS LATE

All is of the test speakers of a dataset of `phrases` or `sentences`. CLIPS test clips of a speaker follow one another
with short pauses, in ORDERS different orders. They are transcribed as Whisper does it, one window after another, each
beginning where the timestamps of the one before say that its last sentence ended (section 4.5 of arXiv 2212.04356); and
without timestamps, in overlapping pieces of CHUNK_SECONDS, whose transcripts the pipeline of transformers joins. LATE
test clips are transcribed alone, after half a second of silence.

The result has the words of each recording, `long_words` and `late_words`, and word errors in the normal form that ours
are counted in: `with_timestamps`, `without` and `late`, in the same order.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
from numpy.typing import NDArray
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from asr_fine_tuner.metrics import score

_TEST_SPLIT = Path("it", "test-00000-of-00001.parquet")
_PAUSES = (0.0, 0.4)  # seconds between two clips, from and to
_LATE = 0.5  # seconds
_SAMPLING_RATE = 16_000
# Of a second, of the small model, twice what is said in one; of a window, what Whisper's decoder has room for.
_MOST_TOKENS_A_SECOND, _MOST_TOKENS = 50, 440


@dataclass(frozen=True, slots=True)
class Recording:
    """samples: at 16 kHz."""

    samples: NDArray[np.float32]
    text: str


def late_clips(dataset: Path, count: int) -> Iterator[Recording]:
    """The first test clips, after silence."""
    for row in pq.read_table(dataset / _TEST_SPLIT).slice(0, count).to_pylist():
        yield Recording(np.concatenate([_silence(_LATE), _samples(row)]), row["sentence"])


def long_recordings(dataset: Path, orders: int, n_clips: int) -> Iterator[Recording]:
    """Each speaker's, of `n_clips` clips in `orders` different orders; always the same ones."""
    rng = random.Random(0)  # noqa: S311
    rows = pq.read_table(dataset / _TEST_SPLIT).to_pylist()
    for speaker in sorted({row["speaker_id"] for row in rows}):
        clips = [row for row in rows if row["speaker_id"] == speaker]
        for _ in range(orders):
            parts: list[NDArray[np.float32]] = []
            said = rng.sample(clips, n_clips)
            for clip in said:
                parts += [_samples(clip), _silence(rng.uniform(*_PAUSES))]
            yield Recording(np.concatenate(parts), " ".join(clip["sentence"] for clip in said))


def _samples(row: Mapping[str, Any]) -> NDArray[np.float32]:
    samples: NDArray[np.float32]
    samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    return samples


def _silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * _SAMPLING_RATE), np.float32)


class RecordingTranscriber:
    """chunk_seconds: of the pieces without timestamps; the model's window or less."""

    def __init__(self, folder: Path, chunk_seconds: float) -> None:
        self._model = WhisperForConditionalGeneration.from_pretrained(folder)
        self._processor = WhisperProcessor.from_pretrained(folder)
        self._in_pieces = pipeline("automatic-speech-recognition", str(folder), chunk_length_s=chunk_seconds)
        self._most_tokens = min(round(_MOST_TOKENS_A_SECOND * chunk_seconds), _MOST_TOKENS)

    def with_timestamps(self, recording: Recording) -> str:
        given = self._processor.feature_extractor(
            recording.samples,
            sampling_rate=_SAMPLING_RATE,
            truncation=False,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids = self._model.generate(**given, return_timestamps=True, max_new_tokens=self._most_tokens)
        return str(self._processor.tokenizer.decode(ids[0], skip_special_tokens=True))

    def without(self, recording: Recording) -> str:
        sound = {"raw": recording.samples, "sampling_rate": _SAMPLING_RATE}
        return str(self._in_pieces(sound, generate_kwargs={"max_new_tokens": self._most_tokens})["text"])


def main(folder: Path, dataset: Path, chunk_seconds: float, orders: int, n_clips: int, n_late: int) -> None:
    transcriber = RecordingTranscriber(folder, chunk_seconds)
    result: dict[str, list[int]] = {}

    def hear(kind: str, recording: Recording, transcribe: Callable[[Recording], str]) -> int:
        heard = transcribe(recording)
        print(f"{kind}\n  {recording.text}\n  {heard}", file=sys.stderr)
        errors = score([recording.text], [heard], language_code="it").wer
        result.setdefault(kind, []).append(errors.errors)
        return errors.reference_length

    for recording in long_recordings(dataset, orders, n_clips):
        hear("with_timestamps", recording, transcriber.with_timestamps)
        result.setdefault("long_words", []).append(hear("without", recording, transcriber.without))
    for recording in late_clips(dataset, n_late):
        result.setdefault("late_words", []).append(hear("late", recording, transcriber.without))
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:]))
