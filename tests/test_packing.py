"""packing.py: windows that are full, hold each clip once, keep to their limits, and are others in each epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asr_fine_tuner.packing import ClipLengths, Kind, Packer, PackingRules, Window

RULES = PackingRules(positions=1500, labels=448, clips=100, apart_share=0.0, timestamped_share=0.0)


def lengths(n_clips: int, *, labels: int = 20, n_speakers: int = 1) -> ClipLengths:
    """Clips of 2 to 8 s."""
    chance = np.random.default_rng(0)
    return ClipLengths(
        positions=chance.integers(100, 401, n_clips),
        labels=np.full(n_clips, labels),
        speakers=(np.arange(n_clips) % n_speakers).astype(np.int32),
    )


def fullness(windows: list[Window], of: ClipLengths) -> float:
    return float(of.positions.sum() / (RULES.positions * len(windows)))


@pytest.mark.parametrize(
    ("of", "rules"),
    [
        (lengths(3000), RULES),
        (lengths(3000, labels=120), RULES),
        (lengths(3000), replace(RULES, clips=3)),
        (lengths(3000, n_speakers=7), replace(RULES, apart_share=0.3, timestamped_share=0.5)),
        (lengths(1), RULES),
    ],
)
def test_each_clip_is_in_one_window_within_the_limits(of: ClipLengths, rules: PackingRules) -> None:
    windows = Packer(of, rules, seed=1).windows(0)
    assert sorted(clip for window in windows for clip in window.clips) == list(range(len(of.positions)))
    for window in windows:
        index = list(window.clips)
        assert of.positions[index].sum() <= rules.positions
        assert of.labels[index].sum() <= rules.labels
        assert len(index) <= rules.clips


def test_windows_are_filled() -> None:
    of = lengths(5000)
    assert fullness(Packer(of, RULES, seed=1).windows(0), of) > 0.97


def test_the_limit_of_labels_decides_where_text_is_dense() -> None:
    windows = Packer(lengths(300, labels=120), RULES, seed=1).windows(0)
    assert {len(window.clips) for window in windows} == {3}


def test_clips_of_one_speaker_stay_together() -> None:
    of = lengths(2000, n_speakers=10)
    windows = Packer(of, RULES, seed=1).windows(0)
    mixed = [window for window in windows if len({int(of.speakers[clip]) for clip in window.clips}) > 1]
    assert len(mixed) <= 10, "what each speaker leaves over"


def test_speakers_with_little_to_say_share_windows() -> None:
    of = lengths(2000, n_speakers=2000)
    assert fullness(Packer(of, RULES, seed=1).windows(0), of) > 0.97


def test_windows_are_of_each_kind_as_often_as_asked() -> None:
    windows = Packer(lengths(20_000), replace(RULES, apart_share=0.5, timestamped_share=0.3), seed=1).windows(0)
    kinds = [window.kind for window in windows]
    shares = [kinds.count(kind) / len(kinds) for kind in (Kind.APART, Kind.TIMESTAMPED, Kind.JOINED)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_clip_beyond_a_limit_has_a_window_of_its_own() -> None:
    of = ClipLengths(np.array([1520, 100, 100, 100]), np.array([20, 20, 20, 460]), np.zeros(4, np.int32))
    windows = Packer(of, RULES, seed=1).windows(0)
    assert sorted(tuple(sorted(window.clips)) for window in windows) == [(0,), (1, 2), (3,)]


@pytest.mark.parametrize(("labels", "kind"), [(446, Kind.TIMESTAMPED), (448, Kind.JOINED), (449, Kind.JOINED)])
def test_a_clip_with_no_room_for_timestamps_has_none(labels: int, kind: Kind) -> None:
    long = ClipLengths(np.array([900]), np.array([labels]), np.array([0], np.int32))
    assert Packer(long, replace(RULES, timestamped_share=1.0), seed=1).windows(0) == [Window((0,), kind)]


def test_windows_follow_from_seed_and_epoch() -> None:
    def windows(seed: int, epoch: int) -> list[Window]:
        return Packer(lengths(200), replace(RULES, apart_share=0.1, timestamped_share=0.5), seed=seed).windows(epoch)

    assert windows(1, 0) == windows(1, 0)
    assert {frozenset(window.clips) for window in windows(1, 0)} != {
        frozenset(window.clips) for window in windows(1, 1)
    }
    assert windows(1, 0) != windows(2, 0)


@pytest.mark.parametrize("n_speakers", [1, 100, 2000])
def test_other_clips_meet_in_each_epoch(n_speakers: int) -> None:
    packer = Packer(lengths(2000, n_speakers=n_speakers), RULES, seed=1)
    first, second = ({frozenset(window.clips) for window in packer.windows(epoch)} for epoch in (0, 1))
    assert len(first & second) < 0.05 * len(first)
