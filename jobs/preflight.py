"""Find out in minutes what a train job would fail with after hours. See --help and howto/operations.md."""

from __future__ import annotations

import sys

from asr_fine_tuner.outcome import JobResult, run_job
from asr_fine_tuner.parameters import PreflightParameters
from asr_fine_tuner.preflight_report import refuse


def preflight(given: PreflightParameters) -> JobResult:
    from asr_fine_tuner import preflight  # brings torch and transformers

    return preflight.preflight(given)


if __name__ == "__main__":
    sys.exit(run_job("preflight", PreflightParameters, preflight, sys.argv[1:], on_refused=refuse))
