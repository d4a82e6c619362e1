"""How much disk a train job takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr_fine_tuner.trainer import KEPT_CHECKPOINTS

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

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

    weights: float32 weights once. checkpoint: the weights and Adam's two moments of those that are trained.
    transcripts: the evaluations.
    """

    weights: int
    checkpoint: int
    transcripts: int

    @classmethod
    def of(cls, model: WhisperForConditionalGeneration, transcript_bytes: int) -> DiskEstimate:
        """transcript_bytes: UTF-8 of the references of validation and test."""
        weights = _BYTES * sum(weight.numel() for weight in model.parameters())
        moments = _BYTES * _MOMENTS * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        return cls(weights, weights + moments, _COPIES_OF_TRANSCRIPTS * transcript_bytes)

    @property
    def job(self) -> int:
        """The checkpoints that are kept and one being staged, the best weights twice while a better one replaces them,
        the finished model, evaluations and small files."""
        return (KEPT_CHECKPOINTS + 1) * self.checkpoint + 3 * self.weights + self.transcripts + _SMALL_FILES

    @property
    def rehearsal(self) -> int:
        """Two checkpoints, the best weights twice, the finished model."""
        return 2 * self.checkpoint + 3 * self.weights + _SMALL_FILES
