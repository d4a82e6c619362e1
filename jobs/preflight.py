"""Find out in minutes what a train job would fail with after hours. See --help and howto/operations.md."""

from __future__ import annotations

import sys

import asr_fine_tuner
from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import PreflightParameters
from asr_fine_tuner.preflight_report import refuse

if __name__ == "__main__":
    sys.exit(
        run_job(
            "preflight",
            PreflightParameters,
            lambda given: asr_fine_tuner.preflight(given),
            sys.argv[1:],
            on_refused=refuse,
        )
    )
