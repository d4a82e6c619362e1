"""Log-mel features of a clip's real frames, equal to what the padded extractor gives, and padding them back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from transformers import WhisperFeatureExtractor

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]

FRAMES_PER_POSITION = 2  # the encoder's second convolution halves the frame rate

# Mel filters that are applied at once, to only the frequencies that one of them lets through: a fifth of all products
# for 80 filters, an eighth for 128. With fewer at once, calling takes longer than multiplying.
_FILTERS_AT_ONCE = 16


class LogMelExtractor:
    """Whisper's log-mel features without the padding to the full window.

    Computed here rather than by transformers, whose extractor spends most of its time on other things than the
    transform and its mel filters: a clip of 5 s takes it three times as long. The arithmetic is that of
    `WhisperFeatureExtractor._torch_extract_fbank_features`.
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        """
        Raises:
            ValueError: the extractor pads with something else than silence, or adds noise by chance.
        """
        import torch

        for setting in ("dither", "padding_value"):
            if value := getattr(extractor, setting):
                raise ValueError(f"a feature extractor with {setting}={value}, only 0 is supported")
        self.sampling_rate: int = extractor.sampling_rate
        self.n_mels: int = extractor.feature_size
        self.window_frames: int = extractor.nb_max_frames
        self.window_seconds: float = extractor.n_samples / extractor.sampling_rate
        self._n_fft: int = extractor.n_fft
        self._hop_length: int = extractor.hop_length
        self._window_samples: int = extractor.n_samples
        self._window = torch.hann_window(self._n_fft)
        mel_filters = torch.from_numpy(extractor.mel_filters).to(torch.float32)
        self._mel_bands = [_band(filters) for filters in mel_filters.split(_FILTERS_AT_ONCE, dim=1)]

    @classmethod
    def from_folder(cls, model_folder: Path) -> LogMelExtractor:
        from transformers import WhisperFeatureExtractor

        return cls(WhisperFeatureExtractor.from_pretrained(model_folder, local_files_only=True))

    def real_frames(self, n_samples: int) -> int:
        """Frames that carry all there is to know of `n_samples`: the last one is pure padding and repeats to the end.

        A frame is centred on its hop and sees n_fft/2 samples on either side, so frames from
        (n_samples + n_fft/2) / hop_length on see only padding. One of them has to be kept.
        """
        frames = math.ceil((n_samples + self._n_fft // 2) / self._hop_length) + 1
        return min(self.window_frames, frames)

    def log_mel(self, audio: Float32Array) -> torch.Tensor:
        """Features float32 `[n_frames, n_mels]` of `audio`, float32 `[n_samples]` at `sampling_rate`.

        Raises:
            ValueError: the audio is longer than the window; Whisper's own extractor would cut it silently.
        """
        import torch

        if len(audio) > self._window_samples:
            raise ValueError(f"{len(audio)} samples given, the window holds {self._window_samples}")
        n_frames, edge = self.real_frames(len(audio)), self._n_fft // 2
        # Centred frames, as torch.stft makes them: mirrored at both ends. Whisper drops the last.
        samples = np.zeros(n_frames * self._hop_length + 2 * edge, np.float32)
        samples[edge : edge + len(audio)] = audio
        samples[:edge] = samples[2 * edge : edge : -1]
        samples[-edge:] = samples[-edge - 2 : -2 * edge - 2 : -1]
        frames = torch.from_numpy(samples).unfold(0, self._n_fft, self._hop_length)[:n_frames]
        spectrum = torch.fft.rfft(frames * self._window)
        # |z|² without the square root that abs() would take first.
        squares = torch.view_as_real(spectrum).square_()
        power = squares[..., 0] + squares[..., 1]
        mel = torch.cat([power[:, frequencies] @ filters for frequencies, filters in self._mel_bands], dim=1)
        log_mel = mel.clamp_(min=1e-10).log10_()
        return torch.maximum(log_mel, log_mel.max() - 8.0).add_(4.0).div_(4.0)

    def extract(self, audio: Float32Array) -> Float16Array:
        """`log_mel`, rounded to float16."""
        import torch

        with torch.inference_mode():
            features: Float16Array = self.log_mel(audio).half().numpy()
        return features


def join_clips(clips: Sequence[Float16Array], n_frames: Sequence[int], window_frames: int) -> Float16Array:
    """Features `[frames, n_mels]` of clips that follow one another in one window.

    Of each clip but the last its first `n_frames` are taken, which leaves out its silent tail; the last one's tail
    stays, as far as the window goes.
    """
    kept = [clip[:frames] for clip, frames in zip(clips[:-1], n_frames[:-1], strict=True)]
    return np.concatenate([*kept, clips[-1][: window_frames - sum(n_frames[:-1])]])


def cut_range(features: Float16Array) -> Float16Array:
    """The log-mel spectrum of joined clips, cut 8 below its maximum (see `LogMelExtractor.log_mel`, which divides by
    4): a clip's own is cut again where another one is louder. So this is what the extractor gives for the joined audio,
    but for the frames at a join that hear both clips.
    """
    clipped: Float16Array = np.maximum(features, features.max() - np.float16(2.0))
    return clipped


def _band(filters: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """The frequencies between the first and the last that one of `filters` `[n_frequencies, n_filters]` lets through,
    and the filters there."""
    passed = filters.any(dim=1).nonzero()
    frequencies = slice(int(passed[0]), int(passed[-1]) + 1)
    return frequencies, filters[frequencies]


def pad_to_window(clips: Sequence[Float16Array], window_frames: int) -> Float16Array:
    """Stack clips `[n_frames, n_mels]` into a batch `[batch, n_mels, window_frames]`, each padded with its last frame.

    The last frame of a shorter clip is pure padding (see `real_frames`), so this is what the padded extractor gives.
    """
    batch = np.empty((len(clips), clips[0].shape[1], window_frames), dtype=np.float16)
    for row, clip in zip(batch, clips, strict=True):
        row[:, : len(clip)] = clip.T
        row[:, len(clip) :] = clip[-1][:, np.newaxis]
    return batch
