"""Fine-tune Whisper on an artifact and publish the model. See --help and howto/train_container.md."""

from __future__ import annotations

import sys

import asr_fine_tuner
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import TrainParameters

if __name__ == "__main__":
    sys.exit(run_job("train", TrainParameters, lambda given: asr_fine_tuner.train(given), sys.argv[1:]))
