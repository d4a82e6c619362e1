"""The benchmarks run, and give every ratio; how large one is, is for a quiet machine and `make bench`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.mark.bench
def test_the_last_line_has_every_ratio(job_env: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    run = subprocess.run(command, cwd=ROOT, env=job_env, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    ratios = json.loads(run.stdout.splitlines()[-1])
    assert list(ratios) == [
        "preprocess_flac",
        "preprocess_mp3",
        "artifact_size",
        "peak_memory",
        "memory_growth",
        "collate",
        "first_step",
        "two_workers",
    ]
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values())
    # Sizes, unlike times, are the same on every machine.
    assert ratios["artifact_size"] < 1 / 11
