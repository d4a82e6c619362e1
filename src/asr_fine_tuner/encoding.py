"""One example -> one clip with features and labels, or the reason why it is rejected."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from asr_fine_tuner.artifact import Clip
from asr_fine_tuner.audio import decode
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.examples import Example
from asr_fine_tuner.features import Float32Array, LogMelExtractor
from asr_fine_tuner.labels import LabelEncoder, is_multilingual, tokenizer_sha256
from asr_fine_tuner.manifest import ModelFormat
from asr_fine_tuner.rejection import ClipRejected
from asr_fine_tuner.text import clean_transcript


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What a worker process needs to build its encoder. Durations are in seconds."""

    model_folder: Path
    language_code: str
    task: str
    min_duration: float
    max_duration: float
    max_labels: int


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """A clip that is accepted, as `Clip` has it, but with its audio: float32 `[n_samples]` at the extractor's rate."""

    id: str
    audio: Float32Array
    labels: list[int]
    seconds: float
    text: str
    speaker: str | None


class ClipEncoder:
    """Decodes audio, extracts features and encodes labels for one model, language and task.

    In two steps, so that each can be taken for several clips in turn: decoder and extractor drive each other's code and
    data out of the processor's caches, which costs up to a tenth of the time when they alternate with every clip.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._extractor = LogMelExtractor.from_folder(settings.model_folder)
        self._labels = LabelEncoder.from_folder(settings.model_folder, settings.language_code, settings.task)
        self.n_mels = self._extractor.n_mels

    def decode(self, example: Example) -> DecodedClip:
        """All but the features.

        Raises:
            ClipRejected: the transcript, the audio, its duration or the number of labels does not fit.
        """
        text = clean_transcript(example.text)
        labels = self._encode_labels(text)
        if example.audio is None:
            missing = example.missing
            raise ClipRejected("no_audio", f"{missing} is not there" if missing else "the row has no audio bytes")
        audio = decode(example.audio, self._extractor.sampling_rate, self._settings.max_duration)
        seconds = len(audio) / self._extractor.sampling_rate
        if seconds < self._settings.min_duration:
            raise ClipRejected("too_short", f"{seconds:.2f} s, at least {self._settings.min_duration} s asked for")
        return DecodedClip(example.id, audio, labels, seconds, text, example.speaker)

    def encode(self, clip: DecodedClip) -> Clip:
        """The clip with its features, which nothing is rejected for."""
        return Clip(
            id=clip.id,
            features=self._extractor.extract(clip.audio),
            labels=clip.labels,
            seconds=clip.seconds,
            text=clip.text,
            speaker=clip.speaker,
        )

    def _encode_labels(self, text: str) -> list[int]:
        labels = self._labels.encode(text)
        # The start token is the decoder's first input, never a label.
        if len(labels) - 1 > self._settings.max_labels:
            raise ClipRejected("too_many_labels", f"{len(labels) - 1}, the decoder holds {self._settings.max_labels}")
        return labels


@functools.lru_cache(maxsize=1)
def shared_encoder(settings: EncoderSettings) -> ClipEncoder:
    """One encoder for all shards that a process works on."""
    return ClipEncoder(settings)


def model_format(model_id: str, revision: str, model_folder: Path) -> ModelFormat:
    """What features and labels have to look like for the model in `model_folder`.

    Raises:
        PermanentError: the folder holds no Whisper model, or one that cannot be read.
    """
    try:
        return _read_format(model_id, revision, model_folder)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PermanentError(
            given=f"--model_id {model_id}, whose configuration or tokenizer cannot be read ({error!r})",
            expected="the files of a Whisper checkpoint, as transformers writes them",
            action="choose another checkpoint, or download this one again",
        ) from error


def _read_format(model_id: str, revision: str, model_folder: Path) -> ModelFormat:
    config = _whisper_config(model_id, model_folder)
    extractor = LogMelExtractor.from_folder(model_folder)
    multilingual = is_multilingual(model_folder)
    labels = LabelEncoder.from_folder(model_folder, "en", "transcribe")
    return ModelFormat(
        model_id=model_id,
        revision=revision,
        n_mels=extractor.n_mels,
        sampling_rate=extractor.sampling_rate,
        window_seconds=extractor.window_seconds,
        max_labels=int(config["max_target_positions"]),
        multilingual=multilingual,
        tokenizer_sha256=tokenizer_sha256(labels.tokenizer),
    )


def _whisper_config(model_id: str, model_folder: Path) -> dict[str, int]:
    config: dict[str, int | str] = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "whisper":
        raise PermanentError(
            given=f"--model_id {model_id}, a model of type {config.get('model_type')!r}",
            expected="a Whisper model",
            action="choose one such as openai/whisper-small",
        )
    return {name: value for name, value in config.items() if isinstance(value, int)}
