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


def ratios_of(module: str, env: Mapping[str, str]) -> dict[str, float]:
    """What the last line of a benchmark's stdout has, in its quick form."""
    command = [sys.executable, "-m", module, "--quick"]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    ratios: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return ratios


@pytest.mark.bench
def test_the_last_line_has_every_ratio(job_env: Mapping[str, str]) -> None:
    ratios = ratios_of("benchmarks", job_env)
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


@pytest.mark.bench
@pytest.mark.parametrize(("benchmark", "key"), [("train", "train_audio"), ("evaluate", "evaluate")])
def test_both_recipes_train_and_evaluate(benchmark: str, key: str, job_env: Mapping[str, str]) -> None:
    ratios = ratios_of(f"benchmarks.{benchmark}", job_env)
    assert ratios["model_shape"] == "mini"
    assert all(math.isfinite(ratios[name]) and ratios[name] > 0 for name in (key, "peak_memory"))
