"""The benchmarks run, and give every ratio; how large one is, is for a quiet machine and `make bench`."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.confidence import compare

if TYPE_CHECKING:
    from collections.abc import Mapping


def ratios_of(module: str, env: Mapping[str, str], *arguments: str) -> dict[str, float]:
    """What the last line of a benchmark's stdout has, in its quick form."""
    command = [sys.executable, "-m", module, "--quick", *arguments]
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


@pytest.mark.bench
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the base model learns from espeak-ng")
@pytest.mark.parametrize("learner", [(), ("--model", str(ROOT / "demo" / "model"), "--train_batch_size", "4")])
def test_both_ways_to_train_are_compared(learner: tuple[str, ...], job_env: Mapping[str, str]) -> None:
    compared = ratios_of("benchmarks.quality", job_env, *learner)
    assert set(compared["packed"]) == {"clips", "late", "with_timestamps", "without"}


def test_an_interval_of_a_difference_is_of_pairs() -> None:
    rng = np.random.default_rng(0)
    words = np.full(100, 10)
    first = rng.binomial(words, 0.3, (3, 100))
    # One error more in a tenth of the recordings.
    rates = compare(first, first + (np.arange(100) % 10 == 0), words)
    assert rates.difference.value == pytest.approx(0.01)
    assert 0 < rates.difference.low < rates.difference.value < rates.difference.high < 0.02
    # Of the rates themselves, which go up and down together, the intervals overlap.
    assert rates.first.high > rates.second.low


def test_the_same_errors_do_not_differ() -> None:
    errors = np.array([[1, 0, 2]])
    difference = compare(errors, errors, np.array([4, 5, 6])).difference
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
