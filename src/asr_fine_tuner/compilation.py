"""torch.compile of the encoder, where training on full windows spends most of its time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration

from asr_fine_tuner.errors import PermanentError

_COMPILERS = ("cc", "gcc", "clang")


def check_can_compile() -> None:
    """
    Raises:
        PermanentError: there is no GPU, or no C compiler, which Triton builds the launchers of its kernels with.
    """
    if not torch.cuda.is_available():
        raise PermanentError(
            given="--compile true on a machine without a GPU",
            expected="a CUDA GPU, where compiling pays",
            action="leave --compile away",
        )
    if "CC" not in os.environ and not any(map(shutil.which, _COMPILERS)):
        raise PermanentError(
            given="--compile true where there is no C compiler",
            expected=f"one of {', '.join(_COMPILERS)}, which torch.compile needs while it runs",
            action="install one (apt-get install gcc libc6-dev), or leave --compile away",
        )


def compile_encoder(model: WhisperForConditionalGeneration, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the encoder in place, for any number of windows at once; its weights keep their names.

    The decoder is left as it is: its inputs have another length in every batch, and in every step of generation.
    """
    model.get_encoder().compile(dynamic=True, backend=backend)
