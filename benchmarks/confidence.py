"""Word error rates with 95 % confidence intervals, by bootstrap over seeds and recordings.

Seeds and recordings are drawn with replacement, the same ones for both ways of training, so that the interval of a
difference is of pairs (Bisani and Ney, 2004, for recordings). Of few seeds it is a little too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """A rate or a difference of two, and the bounds that 95 of 100 draws lie between."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """difference: second minus first."""

    first: Interval
    second: Interval
    difference: Interval


def compare(first: NDArray[np.int64], second: NDArray[np.int64], words: NDArray[np.int64]) -> Comparison:
    """Compare word errors `[n_seeds, n_recordings]` of two ways to train on recordings with so many `words` each."""
    rng = np.random.default_rng(0)
    n_seeds, n_recordings = first.shape
    seeds = rng.integers(n_seeds, size=(_DRAWS, n_seeds, 1))
    recordings = rng.integers(n_recordings, size=(_DRAWS, 1, n_recordings))
    drawn_words = n_seeds * words[recordings].sum(axis=(1, 2))
    drawn = [errors[seeds, recordings].sum(axis=(1, 2)) / drawn_words for errors in (first, second)]
    rates = [float(errors.sum() / (n_seeds * words.sum())) for errors in (first, second)]
    return Comparison(
        _interval(rates[0], drawn[0]),
        _interval(rates[1], drawn[1]),
        _interval(rates[1] - rates[0], drawn[1] - drawn[0]),
    )


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value, float(low), float(high))
