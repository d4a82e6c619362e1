"""The train split as windows of the model: whether clips are packed, and features and labels of a window."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.batches import LabelledFeatures, steps_in_epoch
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.features import join_clips
from asr_fine_tuner.labels import POSITIONS_PER_SECOND, LabelEncoder
from asr_fine_tuner.manifest import ModelFormat
from asr_fine_tuner.packing import ClipLengths, Packer, PackingRules, Window
from asr_fine_tuner.parameters import TrainParameters

logger = logging.getLogger(__name__)

FRAMES_PER_POSITION = 2  # the encoder's second convolution halves the frame rate
# From so many clips to a window on, packing is worth its other batches.
_WORTH_PACKING = 1.5
_TIMESTAMPED = {"mixed": 0.25, "always": 1.0, "never": 0.0}


@dataclass(frozen=True, slots=True)
class TrainingWindows(torch.utils.data.Dataset[LabelledFeatures]):
    """Features and labels of windows of a split, which need not be listed before they are asked for."""

    clips: ArtifactSplit
    labels: LabelEncoder
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    window_frames: int

    def __getitem__(self, window: Window) -> LabelledFeatures:
        first = window.clips[0]
        if len(window.clips) == 1 and not window.timestamps:
            return LabelledFeatures(first, self.clips.features(first), self.clips.labels(first), self._seconds(window))
        index = list(window.clips)
        ends = np.cumsum(self.positions[index])
        joined = self.labels.join(
            [self.clips.labels(clip).tolist() for clip in index],
            [0, *ends.tolist()] if window.timestamps else None,
        )
        features = join_clips(
            [self.clips.features(clip) for clip in index],
            (FRAMES_PER_POSITION * self.positions[index]).tolist(),
            self.window_frames,
        )
        return LabelledFeatures(first, features, np.array(joined, np.int32), self._seconds(window))

    def _seconds(self, window: Window) -> float:
        return float(self.clips.seconds[list(window.clips)].sum())


def plan_windows(
    clips: ArtifactSplit, labels: LabelEncoder, model: ModelFormat, parameters: TrainParameters, effective_batch: int
) -> Packer:
    """Decide whether clips are packed, and say so.

    effective_batch: clips of an optimizer step, of which a window never holds more.

    Raises:
        PermanentError: timestamps are asked for of a checkpoint that has no tokens for them.
    """
    n_steps = steps_in_epoch(len(clips), effective_batch)
    rules = PackingRules(
        positions=round(model.window_seconds * POSITIONS_PER_SECOND),
        labels=model.max_labels - labels.prompt_length,
        clips=len(clips) // n_steps,
        single_share=parameters.single_clip_share,
        timestamped_share=_TIMESTAMPED[parameters.packed_timestamps],
    )
    alone = replace(rules, clips=1, single_share=1.0, timestamped_share=0.0)
    lengths = clip_lengths(clips, labels, model)
    packed, unpacked = (Packer(lengths, ruled, seed=parameters.seed) for ruled in (rules, alone))
    if parameters.packing == "off":
        return unpacked
    if rules.clips == 1:
        logger.info("packing is off: an optimizer step has hardly more than one clip")
        return unpacked
    n_windows = len(packed.first_epoch)
    per_window = len(clips) / n_windows
    if parameters.packing == "auto" and per_window < _WORTH_PACKING:
        logger.info("packing is off: %.1f clips to a window of %g s", per_window, model.window_seconds)
        return unpacked
    if rules.timestamped_share and not labels.has_timestamps(rules.positions):
        if parameters.packed_timestamps == "always":
            raise PermanentError(
                given=f"--packed_timestamps always for {model.model_id}, which has no tokens for timestamps",
                expected="a checkpoint with <|0.00|> and so on in its vocabulary",
                action="set --packed_timestamps never",
            )
        logger.info("without timestamps, for which %s has no tokens", model.model_id)
        packed = Packer(lengths, replace(rules, timestamped_share=0.0), seed=parameters.seed)
    logger.info(
        "packing is on: %d clips in %d windows of %g s, %.1f to a window, which are %.0f %% full",
        len(clips),
        n_windows,
        model.window_seconds,
        per_window,
        100 * clips.hours * 3600 / (n_windows * model.window_seconds),
    )
    return packed


def clip_lengths(clips: ArtifactSplit, labels: LabelEncoder, model: ModelFormat) -> ClipLengths:
    """Each clip ends at a position of the encoder, so that timestamps can tell where the next one begins."""
    samples = np.round(clips.seconds.astype(np.float64) * model.sampling_rate).astype(np.int64)
    samples_per_position = model.sampling_rate // POSITIONS_PER_SECOND
    own = clips.label_counts.astype(np.int64) - labels.prompt_length - 1
    return ClipLengths(
        positions=-(-samples // samples_per_position),
        # And a timestamp at each end.
        labels=own + 2,
        speakers=clips.speaker_numbers,
    )
