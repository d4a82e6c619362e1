"""The sizes of Whisper that can be measured: speed and memory depend on them, not on what the weights know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """layers: of the encoder and as many of the decoder. vocab_size: None for that of the small tokenizer.

    The feed-forward layers are four times as wide as the model, and each attention head has 64 channels.
    """

    d_model: int
    layers: int
    n_mels: int = 80
    vocab_size: int | None = 51_865

    @property
    def heads(self) -> int:
        return self.d_model // 64

    @property
    def feed_forward(self) -> int:
        return 4 * self.d_model


TINY_WITH_FEW_WORDS = Shape(384, 4, vocab_size=None)

SHAPES = {
    "mini": Shape(64, 1),  # of no checkpoint: to see that a benchmark runs
    "tiny": Shape(384, 4),
    "base": Shape(512, 6),
    "small": Shape(768, 12),
    "medium": Shape(1024, 24),
    "large-v3": Shape(1280, 32, n_mels=128, vocab_size=51_866),
}
"""The published checkpoints by their names, with the vocabulary of the multilingual ones."""
