"""Validation and test splits for datasets that have none: a deterministic, speaker-disjoint part of train."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HELD_OUT_FRACTION = 0.1
# A speaker with more than this many times the clips wanted is left in train: held out, it would be most of the split
# and a large part of train would be lost.
LARGEST_SPEAKER = 1.5
# Where speakers are known of some clips only, splits of fewer than this many times the clips wanted are too small to
# compare checkpoints by: then a speaker in two splits is the smaller evil.
SMALLEST_SPLIT = 0.2


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Positions `[n]` of a pool of clips, by the split they go to, each in increasing order.

    rows: split name (`train` and each one asked for) -> positions in the pool; together they are the whole pool.
    by_speaker: whether no speaker is in two splits, as far as speakers are known.
    """

    rows: dict[str, tuple[int, ...]]
    by_speaker: bool


def hold_out(
    speakers: Sequence[str | None], splits: Sequence[str], *, at_most: int | None = None, seed: int = 42
) -> HeldOut:
    """Divide a pool of clips into train and the `splits` asked for (`validation`, `test`).

    speakers: the speaker of each clip in the pool, None where it is not known.
    at_most: largest size of a held-out split; a tenth of the pool when that is smaller.

    Speakers are drawn in the order of sha256(seed:speaker), which depends on nothing but the seed and the speaker, so
    the same speaker goes the same way however the pool is ordered. Clips of unknown speakers stay in train. Where there
    are too few speakers to leave one in each split, or those known speak too few of the clips, clips are drawn
    one by one by the hash of their position.
    """
    wanted = max(1, int(len(speakers) * HELD_OUT_FRACTION))
    if at_most is not None:
        wanted = min(wanted, at_most)
    rows = _by_speaker(speakers, splits, wanted, seed)
    by_speaker = rows is not None
    if rows is None:
        rows = _by_clip(len(speakers), splits, wanted, seed)
    return HeldOut({split: tuple(sorted(rows[split])) for split in ("train", *splits)}, by_speaker)


def _by_speaker(
    speakers: Sequence[str | None], splits: Sequence[str], wanted: int, seed: int
) -> dict[str, list[int]] | None:
    clips: dict[str, list[int]] = {}
    unknown: list[int] = []
    for position, speaker in enumerate(speakers):
        (unknown if speaker is None else clips.setdefault(speaker, [])).append(position)
    # The largest speaker stays in train, and half of the clips of the others, so that train keeps several voices.
    sizes = [len(of_speaker) for of_speaker in clips.values()]
    others = sum(sizes) - max(sizes, default=0)
    fewest = SMALLEST_SPLIT * wanted if unknown else 1
    wanted = max(1, min(wanted, others // (2 * len(splits))))
    waiting = sorted(clips, key=lambda speaker: _draw(seed, speaker))
    rows: dict[str, list[int]] = {"train": []}
    for split in splits:
        rows[split] = []
        for speaker in list(waiting):
            if len(rows[split]) >= wanted:
                break
            if len(rows[split]) + len(clips[speaker]) <= LARGEST_SPEAKER * wanted:
                rows[split] += clips[speaker]
                waiting.remove(speaker)
        if not rows[split]:  # every speaker left is a large one: the smallest costs train the least
            if len(waiting) < 2:
                return None
            smallest = min(waiting, key=lambda speaker: (len(clips[speaker]), _draw(seed, speaker)))
            rows[split] = list(clips[smallest])
            waiting.remove(smallest)
    if any(len(rows[split]) < fewest for split in splits):
        return None
    rows["train"] = unknown + [position for speaker in waiting for position in clips[speaker]]
    # Few speakers of unlike size: a split by speaker would leave train with less than half.
    return rows if 2 * len(rows["train"]) >= len(speakers) else None


def _by_clip(n_clips: int, splits: Sequence[str], wanted: int, seed: int) -> dict[str, list[int]]:
    drawn = sorted(range(n_clips), key=lambda position: _draw(seed, str(position)))
    rows: dict[str, list[int]] = {}
    for number, split in enumerate(splits):
        rows[split] = drawn[number * wanted : (number + 1) * wanted]
    rows["train"] = drawn[len(splits) * wanted :]
    return rows


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
