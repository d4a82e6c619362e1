"""A device that holds few clips: more than these, to train on or to transcribe at once, run out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from asr_fine_tuner.trainer import WhisperTrainer
from asr_fine_tuner.transcribing import Transcriber


def methods(clips: int) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """Classes, names of their methods, and what to put in their place."""

    def limited(method: Callable[..., Any], batch_argument: int) -> Callable[..., Any]:
        def call(worker: WhisperTrainer | Transcriber, *arguments: Any) -> Any:
            if len(arguments[batch_argument]["labels"]) > clips:
                raise torch.OutOfMemoryError("out of memory")
            return method(worker, *arguments)

        return call

    yield WhisperTrainer, "training_step", limited(WhisperTrainer.training_step, 1)
    yield Transcriber, "_transcribe", limited(Transcriber._transcribe, 0)
