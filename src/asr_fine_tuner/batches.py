"""Clips of the artifact -> batches as Whisper takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.features import Float16Array, pad_to_window

# What PyTorch's cross entropy leaves out, by its default.
IGNORED_LABEL = -100
# Stands for a clip where a rank has none left while others do: what is computed for it counts for nothing.
NO_CLIP = -1


@dataclass(frozen=True, slots=True)
class TrainingClip:
    """features: `[n_frames, n_mels]`. labels: from the start token to the end token, `[n_labels]`.

    index: of the clip in its split, or `NO_CLIP`, where the rest is that of some clip.
    """

    index: int
    features: Float16Array
    labels: npt.NDArray[np.int32]
    seconds: float


class Batch(TypedDict, total=False):
    """input_features: float16 `[batch, n_mels, window_frames]`, padded as the padded extractor does.
    decoder_input_ids, labels: int64 `[batch, longest]`; labels are the decoder's inputs shifted by one.
    attention_mask: int64 `[batch, window_frames]`, 1 on real frames; only for SpecAugment.
    clip_index: int64 `[batch]`, position of each clip in its split, or `NO_CLIP`, whose labels are all ignored.
    seconds: float32 `[batch]`.
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
        if position == NO_CLIP:
            return TrainingClip(NO_CLIP, self.clips.features(0), self.clips.labels(0), 0.0)
        index = int(self._order[position])
        return TrainingClip(
            index, self.clips.features(index), self.clips.labels(index), float(self.clips.seconds[index])
        )


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How the clips of an optimizer step are divided.

    effective: clips in one step, over all processes. micro: most clips at once in a process.
    """

    effective: int
    micro: int
    processes: int = 1

    @property
    def accumulated(self) -> int:
        """Micro batches of a process that make a full step."""
        return math.ceil(math.ceil(self.effective / self.processes) / self.micro)


class TrainingBatches(torch.utils.data.Sampler[list[int]]):
    """The micro batches of one process in one epoch, as positions in the split.

    The order of the clips follows from seed and epoch alone, and a step takes the next `sizes.effective` of them: the
    clips of a step are the same on any number of processes. Each clip is in one micro batch of one process. The last
    step of an epoch has the clips that are left.
    """

    def __init__(self, n_clips: int, sizes: BatchSizes, *, seed: int, rank: int = 0) -> None:
        self._n_clips, self._sizes, self._seed, self._rank = n_clips, sizes, seed, rank
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(self._micro_batches(step) for step in self._steps())

    def __iter__(self) -> Iterator[list[int]]:
        micro, processes = self._sizes.micro, self._sizes.processes
        order = torch.randperm(self._n_clips, generator=torch.Generator().manual_seed(self._seed + self._epoch))
        for step in self._steps():
            share = order[step.start : step.stop][self._rank :: processes].tolist()
            for begin in range(0, micro * self._micro_batches(step), micro):
                yield share[begin : begin + micro] or [NO_CLIP]

    def _steps(self) -> Iterator[range]:
        effective = self._sizes.effective
        for begin in range(0, self._n_clips, effective):
            yield range(begin, min(begin + effective, self._n_clips))

    def _micro_batches(self, step: range) -> int:
        """The same on all processes: the first one has the largest share."""
        return math.ceil(math.ceil(len(step) / self._sizes.processes) / self._sizes.micro)


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
            if clip.index != NO_CLIP:
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
