"""Turn a speech dataset into the artifact that the train job reads. See --help and howto/preprocess_container.md."""

from __future__ import annotations

import sys

import asr_fine_tuner
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import PreprocessParameters

if __name__ == "__main__":
    sys.exit(run_job("preprocess", PreprocessParameters, lambda given: asr_fine_tuner.preprocess(given), sys.argv[1:]))
