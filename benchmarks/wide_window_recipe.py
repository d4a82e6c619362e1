"""How the base model of `quality` is made, for those who only ask for it."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """speakers: each of whom says `sentences` sentences. batch_size: windows of a step."""

    speakers: int = 150
    sentences: int = 20
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    threads: int = 2
    seed: int = 2026
