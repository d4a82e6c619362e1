"""How much disk a train job takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asr_fine_tuner import hub
from asr_fine_tuner.checkpoints import KEPT_CHECKPOINTS
from asr_fine_tuner.disk import bytes_below, free_bytes, readable_size, shortage
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.lora import has_adapters
from asr_fine_tuner.memory import outline
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.training_input import TrainingInput

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

logger = logging.getLogger(__name__)

_BYTES = 4  # of a float32: weights are trained and saved in it, whatever precision the arithmetic has
_MOMENTS = 2  # that Adam keeps for each weight it trains
# Tokenizer, configurations, logs, curves, and the state of the trainer in each checkpoint.
_SMALL_FILES = 32 << 20
# A transcript is kept as reference and prediction: while an evaluation runs, in the evaluations of base and tuned
# model, beside the best weights, and in predictions.jsonl.
_COPIES_OF_TRANSCRIPTS = 12


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """Bytes below `output_dir`.

    weights: float32 weights of the finished model, with those of adapters. kept: of them those that a checkpoint and
    the best weights hold: the adapters where these are trained, else all. checkpoint: these and Adam's two moments of
    those that are trained. transcripts: the evaluations.
    """

    weights: int
    kept: int
    checkpoint: int
    transcripts: int

    @classmethod
    def of(cls, model: WhisperForConditionalGeneration, transcript_bytes: int) -> DiskEstimate:
        """transcript_bytes: UTF-8 of the references of validation and test."""
        weights = _BYTES * sum(weight.numel() for weight in model.parameters())
        trained = _BYTES * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        kept = trained if has_adapters(model) else weights
        return cls(weights, kept, kept + _MOMENTS * trained, _COPIES_OF_TRANSCRIPTS * transcript_bytes)

    @property
    def job(self) -> int:
        """The checkpoints that are kept and one being staged, the best weights twice while a better one replaces them,
        the finished model, evaluations and small files."""
        checkpoints = (KEPT_CHECKPOINTS + 1) * self.checkpoint
        return checkpoints + 2 * self.kept + self.weights + self.transcripts + _SMALL_FILES

    @property
    def least(self) -> int:
        """What every run ends with: the last checkpoint, the best weights and the finished model."""
        return self.checkpoint + self.kept + self.weights

    @property
    def rehearsal(self) -> int:
        """Two checkpoints, the best weights twice, the finished model."""
        return 2 * self.checkpoint + 2 * self.kept + self.weights + _SMALL_FILES


def transcript_bytes(source: TrainingInput | None) -> int:
    """UTF-8 of the references of validation and test."""
    if source is None:
        return 0
    texts = (text for split in ("validation", "test") for text in source.clips(split).texts)
    return sum(len(text.encode()) for text in texts)


def check_room(
    run: Path,
    source: TrainingInput,
    model: hub.ModelFiles,
    parameters: TrainParameters,
    free: Callable[[Path], int] = free_bytes,
) -> None:
    """Compare what the rest of a run takes with the free space where its folder and the Hub's cache are. Warns when
    there may not be enough.

    run: its folder, which need not exist. free: bytes free on the volume of a path.
    Raises PermanentError when there is surely not enough.
    """
    estimate = DiskEstimate.of(outline(model.folder, parameters), transcript_bytes(source))
    there = bytes_below(run)
    least, most = (max(0, n_bytes - there) for n_bytes in (estimate.least, estimate.job))
    cache, download = hub.weights_to_fetch(parameters.model_id, model)
    told = f"{readable_size(least)} to {readable_size(most)} for the run, {readable_size(download)} to download"
    if short := shortage([(run, least), (cache, download)], free):
        raise PermanentError(
            given=f"{readable_size(short.free)} free at {short.folder}",
            expected=told,
            action="free space, or point --output_dir or HF_HOME at a larger volume",
        )
    if short := shortage([(run, most), (cache, download)], free):
        logger.warning(
            "the disk may become full: %s free at %s, %s; what is finished by then would be kept",
            readable_size(short.free),
            short.folder,
            told,
        )
