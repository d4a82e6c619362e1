"""Training up to its first step, as a child process that ends where the model is given its first batch.

The step itself costs both recipes the same, and on a processor so much that it would hide all else.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch

BATCH_SIZE = 16


def end_at_first_batch(**figures: float) -> None:
    """From now on the first batch that a Whisper gets to train on ends the process, with `figures` as its result."""

    def end(module: torch.nn.Module, _: object) -> None:
        if module.training and type(module).__name__ == "WhisperForConditionalGeneration":
            _exit(figures)

    torch.nn.modules.module.register_module_forward_pre_hook(end)


def _exit(figures: dict[str, float]) -> NoReturn:
    # stdout is a file, and the job may have put something else in its place.
    os.write(1, f"{json.dumps(figures)}\n".encode())
    os._exit(0)


def ours(model: str, artifact_name: str) -> None:
    """The train job on a finished artifact."""
    end_at_first_batch()
    given = {"model_id": model, "artifact_name": artifact_name, "output_dir": "trained", "train_batch_size": BATCH_SIZE}
    # The plain recipe does not evaluate before it trains.
    given |= {"evaluate_base": "false", "max_steps": "1"}
    sys.argv = ["jobs.train", *(f"--{name}={value}" for name, value in given.items())]
    runpy.run_module("jobs.train", run_name="__main__")


def plain(model: str, dataset: str) -> None:
    """The usual script, which prepares and trains."""
    from benchmarks.plain_recipe import Settings, load_processor, prepare, trainer_of

    processor = load_processor(Path(model))
    began = time.monotonic()
    prepared = prepare(Path(dataset), processor)
    end_at_first_batch(preparing_seconds=time.monotonic() - began)
    settings = Settings(train_batch_size=BATCH_SIZE)
    trainer_of(prepared, processor, Path(model), Path("trained"), settings).train()


if __name__ == "__main__":
    {"ours": ours, "plain": plain}[sys.argv[1]](*sys.argv[2:])
    sys.exit("training began without a batch")
