"""Fine-tune Whisper in two steps: `preprocess` makes an artifact of a dataset, `train` makes a better model of it.

from asr_fine_tuner import PreprocessParameters, TrainParameters, preprocess, train

preprocess(
    PreprocessParameters(
        dataset_name="google/fleurs",
        language_code="it",
        text_column="raw_transcription",
        artifact_name="fleurs-it",
    )
)
result = train(TrainParameters(artifact_name="fleurs-it", max_steps=1000))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asr_fine_tuner.errors import InterruptedJob, JobError, PermanentError, TransientError
    from asr_fine_tuner.parameters import PreflightParameters, PreprocessParameters, TrainParameters
    from asr_fine_tuner.preflight_report import PreflightReport
    from asr_fine_tuner.preflighting import preflight
    from asr_fine_tuner.preprocessing import PartResult, PreprocessResult, preprocess
    from asr_fine_tuner.training import TrainResult, train

# Imported on first use: the modules behind `preflight`, `preprocess` and `train` bring torch and transformers.
_HOMES = {
    "InterruptedJob": "errors",
    "JobError": "errors",
    "PartResult": "preprocessing",
    "PermanentError": "errors",
    "PreflightParameters": "parameters",
    "PreflightReport": "preflight_report",
    "PreprocessParameters": "parameters",
    "PreprocessResult": "preprocessing",
    "TrainParameters": "parameters",
    "TrainResult": "training",
    "TransientError": "errors",
    "preflight": "preflighting",
    "preprocess": "preprocessing",
    "train": "training",
}

__all__ = [
    "InterruptedJob",
    "JobError",
    "PartResult",
    "PermanentError",
    "PreflightParameters",
    "PreflightReport",
    "PreprocessParameters",
    "PreprocessResult",
    "TrainParameters",
    "TrainResult",
    "TransientError",
    "preflight",
    "preprocess",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
