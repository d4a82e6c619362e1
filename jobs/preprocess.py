"""Turn a speech dataset into the artifact that the train job reads. See --help and howto/preprocess_container.md."""

from __future__ import annotations

import sys
from collections.abc import Callable

from asr_fine_tuner.outcome import run_job
from asr_fine_tuner.parameters import PreprocessParameters
from asr_fine_tuner.results import PreprocessResult  # noqa: TC001


def _load() -> Callable[[PreprocessParameters], PreprocessResult]:
    from asr_fine_tuner.preprocessing import preprocess

    return preprocess


if __name__ == "__main__":
    sys.exit(run_job("preprocess", PreprocessParameters, _load, sys.argv[1:]))
