"""How data and base model of `quality` are made, for those who only ask for them."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_SECONDS = 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """speakers: each of whom says `phrases` phrases. batch_size: windows of a step."""

    speakers: int = 120
    phrases: int = 25
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    threads: int = 2
    seed: int = 2026


@dataclass(frozen=True, slots=True)
class Clips:
    """Of each split of the Italian dataset. anywhere: those of training are anywhere in a window, after silence."""

    train: int = 2000
    validation: int = 200
    test: int = 1000
    anywhere: bool = False
