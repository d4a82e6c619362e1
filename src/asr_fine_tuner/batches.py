"""Clips of the artifact -> batches as Whisper takes them."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.features import FRAMES_PER_POSITION, Float16Array, pad_to_window
from asr_fine_tuner.packing import Packer, Window

# What PyTorch's cross entropy leaves out, by its default.
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """What one window of the model holds: a clip, or several that are packed.

    index: of the clip among those of its dataset, or of the first. features: `[n_frames, n_mels]`.
    texts: label tokens of each text that is written by itself, from the start token to the end token.
    seconds: of audio. ends: the positions of the encoder at which the clips end.
    """

    index: int
    features: Float16Array
    texts: tuple[npt.NDArray[np.int32], ...]
    seconds: float
    ends: tuple[int, ...] = ()

    @property
    def n_labels(self) -> int:
        """Those that are learned, which start tokens are not."""
        return sum(len(text) - 1 for text in self.texts)


class Batch(TypedDict, total=False):
    """input_features: float16 `[batch, n_mels, window_frames]`, padded as the padded extractor does.
    decoder_input_ids, labels: int64 `[batch, longest]`; labels are the decoder's inputs shifted by one, text by text.
    decoder_position_ids, clip_of_label: int64 `[batch, longest]`; encoder_position_ids, clip_of_position: int64
    `[batch, positions]`: see `attention`; only where a window has several texts.
    attention_mask: int64 `[batch, window_frames]`, 1 on real frames; only for SpecAugment.
    clip_index: int64 `[batch]`, of each clip among those of its dataset.
    """

    input_features: torch.Tensor
    decoder_input_ids: torch.Tensor
    labels: torch.Tensor
    decoder_position_ids: torch.Tensor
    clip_of_label: torch.Tensor
    encoder_position_ids: torch.Tensor
    clip_of_position: torch.Tensor
    attention_mask: torch.Tensor
    clip_index: torch.Tensor


class ClipDataset(torch.utils.data.Dataset[LabelledFeatures]):
    """Clips of one split of the artifact, each in a window of its own, in the split's order or the longest transcripts
    first."""

    def __init__(
        self, clips: ArtifactSplit, *, longest_first: bool = False, at_most: int | None = None, seed: int = 0
    ) -> None:
        """at_most: so many clips, drawn by chance with `seed`; all when not given."""
        self.clips = clips
        drawn = np.random.default_rng(seed).permutation(len(clips))[: at_most or len(clips)]
        self._chosen = np.sort(drawn)
        counts = clips.label_counts[self._chosen]
        self.longest_labels = int(counts.max())
        # Transcripts of one length in one batch: a batch generates until its longest is done.
        self._order = np.argsort(-counts, kind="stable") if longest_first else np.arange(len(counts))

    def __len__(self) -> int:
        return len(self._chosen)

    @functools.cached_property
    def texts(self) -> list[str]:
        """The reference of each clip, by its `index`."""
        return [self.clips.texts[clip] for clip in self._chosen.tolist()]

    def __getitem__(self, position: int) -> LabelledFeatures:
        index = int(self._order[position])
        clip = int(self._chosen[index])
        return LabelledFeatures(
            index, self.clips.features(clip), (self.clips.labels(clip),), float(self.clips.seconds[clip])
        )


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How the clips of an optimizer step are divided.

    effective: clips in one step, over all processes. micro: most windows at once in a process.
    """

    effective: int
    micro: int
    processes: int = 1

    @property
    def accumulated(self) -> int:
        """Micro batches of a process that make a step of windows with one clip each."""
        return math.ceil(math.ceil(self.effective / self.processes) / self.micro)


def steps_in_epoch(n_clips: int, effective_batch: int) -> int:
    return math.ceil(n_clips / effective_batch)


class TrainingSteps(torch.utils.data.Sampler[list[Window]]):
    """The windows of one process in each optimizer step of an epoch.

    All processes draw the same windows, and each one takes its share of every step: what a step learns from is the same
    on any number of them. The steps of an epoch have as many clips each as windows allow, `sizes.effective` or close to
    it.
    """

    def __init__(self, packer: Packer, sizes: BatchSizes, rank: int = 0) -> None:
        self._packer, self._sizes, self._rank = packer, sizes, rank
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return steps_in_epoch(len(self._packer), self._sizes.effective)

    def __iter__(self) -> Iterator[list[Window]]:
        chance = np.random.default_rng([self._packer.seed, self._epoch, len(self)])
        for windows in dealt(self._packer.windows(self._epoch), len(self), chance):
            yield windows[self._rank :: self._sizes.processes]


def dealt(windows: Sequence[Window], n_steps: int, chance: np.random.Generator) -> list[list[Window]]:
    """Windows among steps, so that each has about as many clips: the fullest first, to the step that has the fewest.

    A clip alone in its step would weigh as much as all those of another one. No step is left without a window where
    there are as many windows as steps. Which step comes when is left to chance: as they are dealt, the fullest windows
    would all be in steps that follow one another.
    """
    steps: list[list[Window]] = [[] for _ in range(n_steps)]
    fewest = [(0, number) for number in range(n_steps)]
    for window in sorted(windows, key=lambda window: -len(window.clips)):
        n_clips, number = fewest[0]
        steps[number].append(window)
        heapq.heapreplace(fewest, (n_clips + len(window.clips), number))
    return [steps[number] for number in chance.permutation(n_steps).tolist()]


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

    def __call__(self, clips: Sequence[LabelledFeatures]) -> Batch:
        """
        Raises:
            ValueError: labels that do not begin with the start token.
        """
        longest = max(clip.n_labels for clip in clips)
        decoder_input_ids = np.full((len(clips), longest), self.pad_token_id)
        labels = np.full((len(clips), longest), IGNORED_LABEL)
        for row, clip in enumerate(clips):
            end = 0
            for text in clip.texts:
                if text[0] != self.decoder_start_token_id:
                    raise ValueError(
                        f"labels of clip {clip.index} begin with token {text[0]}, "
                        f"the decoder starts with {self.decoder_start_token_id}"
                    )
                begin, end = end, end + len(text) - 1
                decoder_input_ids[row, begin:end] = text[:-1]
                labels[row, begin:end] = text[1:]
        features = pad_to_window([clip.features for clip in clips], self.window_frames)
        batch: Batch = {
            "input_features": torch.from_numpy(features),
            "decoder_input_ids": torch.from_numpy(decoder_input_ids),
            "labels": torch.from_numpy(labels),
            "clip_index": torch.tensor([clip.index for clip in clips]),
        }
        if any(len(clip.texts) > 1 for clip in clips):
            batch.update(_texts_apart(clips, longest, self.window_frames // FRAMES_PER_POSITION))
        if self.mask_padding:
            frames = torch.tensor([len(clip.features) for clip in clips])
            batch["attention_mask"] = (torch.arange(self.window_frames) < frames[:, None]).long()
        return batch


def _texts_apart(clips: Sequence[LabelledFeatures], longest: int, positions: int) -> Batch:
    """What keeps the texts of a window apart; see `Batch`."""
    place_in_text = np.tile(np.arange(longest), (len(clips), 1))
    place_in_clip = np.tile(np.arange(positions), (len(clips), 1))
    clip_of_label = np.zeros((len(clips), longest), np.int64)
    clip_of_position = np.zeros((len(clips), positions), np.int64)
    for row, clip in enumerate(clips):
        if len(clip.texts) == 1:
            continue
        begin = position = 0
        for number, (text, end) in enumerate(zip(clip.texts, clip.ends, strict=True), start=1):
            place_in_text[row, begin:] = np.arange(longest - begin)
            # Padding goes with the last text: what is allowed to hear nothing becomes NaN.
            clip_of_label[row, begin:] = number
            place_in_clip[row, position:end] = np.arange(end - position)
            clip_of_position[row, position:end] = number
            begin, position = begin + len(text) - 1, end
    return {
        "decoder_position_ids": torch.from_numpy(place_in_text),
        "clip_of_label": torch.from_numpy(clip_of_label),
        "encoder_position_ids": torch.from_numpy(place_in_clip),
        "clip_of_position": torch.from_numpy(clip_of_position),
    }


@dataclass(frozen=True, slots=True)
class Step:
    """What one process computes of an optimizer step.

    n_labels: that are learned. audio_seconds: in all its windows.
    """

    micro_batches: list[Batch]
    n_labels: int
    n_windows: int
    audio_seconds: float

    def pin_memory(self) -> Step:
        """What torch's loader asks for where batches travel to a GPU."""

        def pinned(batch: Batch) -> Batch:
            tensors = cast("dict[str, torch.Tensor]", batch)
            return cast("Batch", {name: tensor.pin_memory() for name, tensor in tensors.items()})

        return replace(self, micro_batches=[pinned(batch) for batch in self.micro_batches])


@dataclass(frozen=True, slots=True)
class StepCollator:
    """Makes a `Step` of the windows of a process, in micro batches of up to `micro_batch` and of about one size."""

    collator: Collator
    micro_batch: int

    def __call__(self, windows: Sequence[LabelledFeatures]) -> Step:
        # Labels are padded to the longest of a micro batch.
        ordered = sorted(windows, key=lambda window: -window.n_labels)
        n_micro_batches = math.ceil(len(ordered) / self.micro_batch)
        bounds = [len(ordered) * number // max(1, n_micro_batches) for number in range(n_micro_batches + 1)]
        return Step(
            micro_batches=[self.collator(ordered[begin:end]) for begin, end in itertools.pairwise(bounds)],
            n_labels=sum(window.n_labels for window in windows),
            n_windows=len(windows),
            audio_seconds=sum(window.seconds for window in windows),
        )
