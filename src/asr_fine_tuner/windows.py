"""The train split as windows of the model: whether clips are packed, and features and labels of a window."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.batches import LabelledFeatures, steps_in_epoch
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.features import FRAMES_PER_POSITION, Float16Array, cut_range, join_clips
from asr_fine_tuner.labels import POSITIONS_PER_SECOND, LabelEncoder
from asr_fine_tuner.manifest import ModelFormat
from asr_fine_tuner.packing import ClipLengths, Kind, Packer, PackingRules, Window
from asr_fine_tuner.parameters import TrainParameters

logger = logging.getLogger(__name__)

# At least. A window mostly has one speaker, and a step that follows one speaker alone leads astray.
_WINDOWS_IN_A_STEP = 2
# From so many clips to a window on, packing is worth its other batches.
_WORTH_PACKING = 1.5
# Of the windows whose clips are joined.
_TIMESTAMPED = {"mixed": 0.5, "always": 1.0, "never": 0.0}
# Of a window, its end, which is left silent: Whisper pays attention to it wherever it hears speech, so that a clip
# that hears nothing but itself is not heard well without. A second of 30 does as well as all that a single clip has.
_SILENT_END = 1 / 30


@dataclass(frozen=True, slots=True)
class TrainingWindows(torch.utils.data.Dataset[LabelledFeatures]):
    """Features and labels of windows of a split, which need not be listed before they are asked for."""

    clips: ArtifactSplit
    labels: LabelEncoder
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    window_frames: int

    def __getitem__(self, window: Window) -> LabelledFeatures:
        index = list(window.clips)
        ends: list[int] = np.cumsum(self.positions[index]).tolist()
        texts = [self.clips.labels(clip) for clip in index]
        features = self._features(index)
        if window.kind is not Kind.APART:
            bounds = [0, *ends] if window.kind is Kind.TIMESTAMPED else None
            texts = [np.array(self.labels.join([labels.tolist() for labels in texts], bounds), np.int32)]
            features = cut_range(features)
        return LabelledFeatures(
            index=index[0],
            features=features,
            texts=tuple(texts),
            seconds=float(self.clips.seconds[index].sum()),
            ends=tuple(ends),
        )

    def _features(self, clips: list[int]) -> Float16Array:
        features = [self.clips.features(clip) for clip in clips]
        return join_clips(features, (FRAMES_PER_POSITION * self.positions[clips]).tolist(), self.window_frames)


def plan_windows(
    clips: ArtifactSplit,
    labels: LabelEncoder,
    model: ModelFormat,
    parameters: TrainParameters,
    effective_batch: int,
    clips_in_a_window: int | None = None,
) -> Packer:
    """Decide whether clips are packed, and say so.

    effective_batch: clips of an optimizer step. clips_in_a_window: at most; half those of a step when not given.

    Raises:
        PermanentError: timestamps are asked for of a checkpoint that has no tokens for them.
    """
    n_steps = steps_in_epoch(len(clips), effective_batch)
    positions = round(model.window_seconds * POSITIONS_PER_SECOND)
    apart = parameters.single_clip_share
    rules = PackingRules(
        positions=round(positions * (1 - _SILENT_END)),
        labels=model.max_labels,
        clips=clips_in_a_window or max(1, len(clips) // n_steps // _WINDOWS_IN_A_STEP),
        apart_share=apart,
        timestamped_share=(1 - apart) * _TIMESTAMPED[parameters.packed_timestamps],
    )
    alone = replace(rules, clips=1, apart_share=1.0, timestamped_share=0.0)
    lengths = clip_lengths(clips, model)
    packed, unpacked = (Packer(lengths, ruled, seed=parameters.seed) for ruled in (rules, alone))
    if parameters.packing == "off":
        return unpacked
    if rules.clips == 1:
        asked = parameters.packing == "on"
        logger.log(
            logging.WARNING if asked else logging.INFO, "packing is off: an optimizer step has fewer than four clips"
        )
        return unpacked
    n_windows = len(packed.first_epoch)
    per_window = len(clips) / n_windows
    if parameters.packing == "auto" and per_window < _WORTH_PACKING:
        logger.info("packing is off: %.1f clips to a window of %g s", per_window, model.window_seconds)
        return unpacked
    if rules.timestamped_share and not labels.has_timestamps(positions):
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
    if sum(len(window.clips) == rules.clips for window in packed.first_epoch) > n_windows / 2:
        logger.info(
            "no more than %d clips to a window, half of a step's: a larger --train_batch_size would fill windows",
            rules.clips,
        )
    return packed


def clip_lengths(clips: ArtifactSplit, model: ModelFormat) -> ClipLengths:
    """Each clip ends at a position of the encoder, so that timestamps can tell where the next one begins."""
    samples = np.round(clips.seconds.astype(np.float64) * model.sampling_rate).astype(np.int64)
    samples_per_position = model.sampling_rate // POSITIONS_PER_SECOND
    return ClipLengths(
        positions=-(-samples // samples_per_position),
        # More than it adds to other clips with a timestamp at each end.
        labels=clips.label_counts.astype(np.int64),
        speakers=clips.speaker_numbers,
    )
