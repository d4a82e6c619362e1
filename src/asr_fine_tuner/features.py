"""Log-mel features of a clip's real frames, equal to what the padded extractor gives, and padding them back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]


class LogMelExtractor:
    """Whisper's feature extractor without the padding to the full window."""

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self._extractor = extractor
        self.sampling_rate: int = extractor.sampling_rate
        self.n_mels: int = extractor.feature_size
        self.window_frames: int = extractor.nb_max_frames
        self.window_seconds: float = extractor.n_samples / extractor.sampling_rate

    @classmethod
    def from_folder(cls, model_folder: Path) -> LogMelExtractor:
        from transformers import WhisperFeatureExtractor

        return cls(WhisperFeatureExtractor.from_pretrained(model_folder, local_files_only=True))

    def real_frames(self, n_samples: int) -> int:
        """Frames that carry all there is to know of `n_samples`: the last one is pure padding and repeats to the end.

        A frame is centred on its hop and sees n_fft/2 samples on either side, so frames from
        (n_samples + n_fft/2) / hop_length on see only padding. One of them has to be kept.
        """
        extractor = self._extractor
        frames = math.ceil((n_samples + int(extractor.n_fft) // 2) / int(extractor.hop_length)) + 1
        return min(self.window_frames, frames)

    def extract(self, audio: Float32Array) -> Float16Array:
        """Features `[n_frames, n_mels]` of `audio`, float32 `[n_samples]` at `sampling_rate`, within the window.

        Raises:
            ValueError: the audio is longer than the window; Whisper's own extractor would cut it silently.
        """
        if len(audio) > self._extractor.n_samples:
            raise ValueError(f"{len(audio)} samples given, the window holds {self._extractor.n_samples}")
        features = self._extractor(
            audio,
            sampling_rate=self.sampling_rate,
            max_length=self.real_frames(len(audio)) * self._extractor.hop_length,
            return_tensors="np",
        ).input_features[0]
        return np.ascontiguousarray(features.T, dtype=np.float16)


def pad_to_window(clips: list[Float16Array], window_frames: int) -> Float16Array:
    """Stack clips `[n_frames, n_mels]` into a batch `[batch, n_mels, window_frames]`, each padded with its last frame.

    The last frame of a shorter clip is pure padding (see `real_frames`), so this is what the padded extractor gives.
    """
    batch = np.empty((len(clips), clips[0].shape[1], window_frames), dtype=np.float16)
    for row, clip in zip(batch, clips, strict=True):
        row[:, : len(clip)] = clip.T
        row[:, len(clip) :] = clip[-1][:, np.newaxis]
    return batch
