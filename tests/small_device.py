"""A device that holds few clips: more than these, to train on or to transcribe at once, run out of memory.

With gradient checkpointing and among several ranks, it is the addition of the gradients that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from asr_fine_tuner import ranks
from asr_fine_tuner.batches import Batch, Step
from asr_fine_tuner.trainer import WhisperTrainer
from asr_fine_tuner.transcribing import Transcriber


def methods(clips: int) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """Classes, names of their methods, and what to put in their place."""

    def limited(method: Callable[..., Any], at_once: Callable[..., int]) -> Callable[..., Any]:
        def call(worker: WhisperTrainer | Transcriber, *arguments: Any) -> Any:
            if at_once(*arguments) <= clips:
                return method(worker, *arguments)
            lack = torch.OutOfMemoryError("out of memory")
            if isinstance(worker, WhisperTrainer) and worker.args.gradient_checkpointing and worker.ranks.size > 1:
                with mock.patch.object(ranks, "_room_for_largest", side_effect=lack):
                    return method(worker, *arguments)
            raise lack

        return call

    def trained(_: object, step: Step, *__: object) -> int:
        return max((len(batch["labels"]) for batch in step.micro_batches), default=0)

    def transcribed(batch: Batch, *_: object) -> int:
        return len(batch["labels"])

    yield WhisperTrainer, "training_step", limited(WhisperTrainer.training_step, trained)
    yield Transcriber, "_transcribe", limited(Transcriber._transcribe, transcribed)
