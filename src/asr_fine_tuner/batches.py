"""Clips of the artifact -> batches as Whisper takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.features import Float16Array, pad_to_window

# What PyTorch's cross entropy leaves out, by its default.
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class TrainingClip:
    """features: `[n_frames, n_mels]`. labels: from the start token to the end token, `[n_labels]`."""

    index: int
    features: Float16Array
    labels: npt.NDArray[np.int32]
    seconds: float


class Batch(TypedDict, total=False):
    """input_features: float16 `[batch, n_mels, window_frames]`, padded as the padded extractor does.
    decoder_input_ids, labels: int64 `[batch, longest]`; labels are the decoder's inputs shifted by one.
    attention_mask: int64 `[batch, window_frames]`, 1 on real frames; only for SpecAugment.
    clip_index: int64 `[batch]`, position of each clip in its split. seconds: float32 `[batch]`.
    """

    input_features: torch.Tensor
    decoder_input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    clip_index: torch.Tensor
    seconds: torch.Tensor


class ClipDataset(torch.utils.data.Dataset[TrainingClip]):
    """One split of the artifact, in its own order or with the longest transcripts first."""

    def __init__(self, clips: ArtifactSplit, *, longest_first: bool = False) -> None:
        self.clips = clips
        # Transcripts of one length in one batch: a batch generates until its longest is done.
        self._order = np.argsort(-clips.label_counts, kind="stable") if longest_first else np.arange(len(clips))

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def longest_labels(self) -> int:
        return int(self.clips.label_counts.max())

    def __getitem__(self, position: int) -> TrainingClip:
        index = int(self._order[position])
        return TrainingClip(
            index, self.clips.features(index), self.clips.labels(index), float(self.clips.seconds[index])
        )


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes a `Batch` of clips.

    The start token is told by `decoder_start_token_id`. It is the decoder's first input and never a label: keeping it
    in the labels, as recipes that compare with `bos_token_id` do, trains a doubled start token.
    """

    window_frames: int
    decoder_start_token_id: int
    pad_token_id: int
    mask_padding: bool = False

    def __call__(self, clips: Sequence[TrainingClip]) -> Batch:
        """
        Raises:
            ValueError: labels that do not begin with the start token.
        """
        longest = max(len(clip.labels) for clip in clips) - 1
        decoder_input_ids = torch.full((len(clips), longest), self.pad_token_id)
        labels = torch.full((len(clips), longest), IGNORED_LABEL)
        for row, clip in enumerate(clips):
            if clip.labels[0] != self.decoder_start_token_id:
                raise ValueError(
                    f"labels of clip {clip.index} begin with token {clip.labels[0]}, "
                    f"the decoder starts with {self.decoder_start_token_id}"
                )
            tokens = torch.from_numpy(clip.labels.astype(np.int64))
            decoder_input_ids[row, : len(tokens) - 1] = tokens[:-1]
            labels[row, : len(tokens) - 1] = tokens[1:]
        features = pad_to_window([clip.features for clip in clips], self.window_frames)
        batch: Batch = {
            "input_features": torch.from_numpy(features),
            "decoder_input_ids": decoder_input_ids,
            "labels": labels,
            "clip_index": torch.tensor([clip.index for clip in clips]),
            "seconds": torch.tensor([clip.seconds for clip in clips]),
        }
        if self.mask_padding:
            frames = torch.tensor([len(clip.features) for clip in clips])
            batch["attention_mask"] = (torch.arange(self.window_frames) < frames[:, None]).long()
        return batch
