"""Held-out splits: disjoint by speaker, about a tenth each, the same in every run."""

from __future__ import annotations

import numpy as np
import pytest

from asr_fine_tuner.holdout import HELD_OUT_FRACTION, HeldOut, hold_out


def speakers_of(held_out: HeldOut, pool: list[str]) -> dict[str, set[str]]:
    return {split: {pool[row] for row in rows} for split, rows in held_out.rows.items()}


@pytest.mark.parametrize("splits", [["validation"], ["test"], ["validation", "test"]])
@pytest.mark.parametrize("n_speakers", [5, 30, 300])
def test_no_speaker_is_in_two_splits(splits: list[str], n_speakers: int) -> None:
    draw = np.random.default_rng(n_speakers)
    pool = [f"speaker {draw.integers(n_speakers)}" for _ in range(600)]
    held_out = hold_out(pool, splits, seed=1)
    assert held_out.by_speaker
    assert sorted(row for rows in held_out.rows.values() for row in rows) == list(range(600))
    heard = list(speakers_of(held_out, pool).values())
    assert all(not one & other for position, one in enumerate(heard) for other in heard[:position])
    if n_speakers >= 30:
        for split in splits:
            assert 0.7 < len(held_out.rows[split]) / (600 * HELD_OUT_FRACTION) <= 1.5


def test_order_of_the_pool_does_not_matter() -> None:
    pool = [f"speaker {number % 40}" for number in range(400)]
    shuffled = list(np.random.default_rng(0).permutation(pool))
    first, second = hold_out(pool, ["validation", "test"]), hold_out(shuffled, ["validation", "test"])
    assert speakers_of(first, pool) == speakers_of(second, shuffled)


def test_seed_decides() -> None:
    pool = [f"speaker {number % 40}" for number in range(400)]
    drawn = {hold_out(pool, ["validation"], seed=seed).rows["validation"] for seed in range(5)}
    assert len(drawn) == 5
    assert hold_out(pool, ["validation"], seed=3) == hold_out(pool, ["validation"], seed=3)


def test_large_speakers_stay_in_train() -> None:
    pool = ["narrator"] * 900 + [f"guest {number}" for number in range(100)]
    for seed in range(10):
        held_out = hold_out(pool, ["validation", "test"], seed=seed)
        assert held_out.by_speaker
        assert "narrator" in speakers_of(held_out, pool)["train"]


def test_two_speakers_of_unlike_size() -> None:
    pool = ["many"] * 95 + ["few"] * 5
    held_out = hold_out(pool, ["validation"])
    assert speakers_of(held_out, pool) == {"train": {"many"}, "validation": {"few"}}


@pytest.mark.parametrize("pool", [["one"] * 50, [None] * 50, ["one", None] * 25, ["one"] * 25 + ["two"] * 25])
def test_by_clip_where_speakers_cannot_be_told_apart(pool: list[str | None]) -> None:
    held_out = hold_out(pool, ["validation", "test"])
    assert not held_out.by_speaker
    assert {split: len(rows) for split, rows in held_out.rows.items()} == {"train": 40, "validation": 5, "test": 5}
    assert sorted(row for rows in held_out.rows.values() for row in rows) == list(range(50))


@pytest.mark.parametrize("n_unknown", [1, 300])
def test_clips_of_unknown_speaker_stay_in_train(n_unknown: int) -> None:
    pool = [f"speaker {number % 40}" for number in range(400)] + [None] * n_unknown
    held_out = hold_out(pool, ["validation", "test"])
    assert held_out.by_speaker
    assert sorted(row for rows in held_out.rows.values() for row in rows) == list(range(len(pool)))
    assert set(range(400, len(pool))) <= set(held_out.rows["train"])
    heard = [{pool[row] for row in rows} - {None} for rows in held_out.rows.values()]
    assert all(not one & other for position, one in enumerate(heard) for other in heard[:position])
    assert min(len(held_out.rows[split]) for split in ("validation", "test")) >= 0.5 * HELD_OUT_FRACTION * len(pool)


def test_too_few_clips_of_known_speakers() -> None:
    pool = [None] * 990 + [f"speaker {number}" for number in range(10)]
    held_out = hold_out(pool, ["validation", "test"])
    assert not held_out.by_speaker
    assert {split: len(rows) for split, rows in held_out.rows.items()} == {"train": 800, "validation": 100, "test": 100}


def test_cap() -> None:
    pool = [f"speaker {number}" for number in range(1000)]
    held_out = hold_out(pool, ["validation", "test"], at_most=7)
    assert {split: len(rows) for split, rows in held_out.rows.items()} == {"train": 986, "validation": 7, "test": 7}
