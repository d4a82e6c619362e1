"""Which clips are trained on together in one window of the model, drawn anew in each epoch."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Clips are fitted together in shuffled blocks of this many: enough to fill windows to the brim, and few enough that an
# epoch groups them in another way than the one before.
_BLOCK = 1024
# What one speaker fills less than this much of a window with is put together with other speakers' clips.
_LOOSE = 0.5
# Clips that differ in length by up to this factor are fitted in any order.
_ABOUT = 0.5


@dataclass(frozen=True, slots=True)
class Window:
    """clips: their positions in the split, in the order in which they sound in the window.
    timestamps: whether the labels tell when each of them begins and ends.
    """

    clips: tuple[int, ...]
    timestamps: bool = False


@dataclass(frozen=True, slots=True)
class ClipLengths:
    """What each clip takes of a window, `[n_clips]` each.

    positions: of the encoder, 20 ms each. labels: tokens that it adds to those of a window with other clips.
    speakers: a number for each speaker, the same one for all who are not known.
    """

    positions: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    speakers: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackingRules:
    """What a window holds at most, and how it is filled.

    positions: of the encoder. labels: tokens that its clips may add together. clips: most of them in a window.
    single_share: of the clips, have a window of their own. timestamped_share: of the windows, have timestamps.
    """

    positions: int
    labels: int
    clips: int
    single_share: float
    timestamped_share: float


class Packer:
    """Divides the clips of a split among windows: each clip is in one window of an epoch.

    Best fit, longer clips first (Johnson et al. 1974), under the limits of the encoder, of the decoder and of clips in
    a window. Clips of one speaker are put together; only where they leave more than half of a window empty, others join
    them.
    """

    def __init__(self, lengths: ClipLengths, rules: PackingRules, *, seed: int) -> None:
        self.lengths, self.rules, self.seed = lengths, rules, seed

    def __len__(self) -> int:
        """Clips of the split."""
        return len(self.lengths.positions)

    @functools.cached_property
    def most_labels(self) -> int:
        """Labels that the clips of one window add together, in the window of the first epoch that has the most."""
        return max(int(self.lengths.labels[list(window.clips)].sum()) for window in self.first_epoch)

    @functools.cached_property
    def first_epoch(self) -> list[Window]:
        return self.windows(epoch=0)

    def windows(self, epoch: int) -> list[Window]:
        """All windows of an epoch, in an order that is left to chance; all follows from seed and epoch alone."""
        chance = np.random.default_rng([self.seed, epoch])
        order = chance.permutation(len(self))
        n_single = round(self.rules.single_share * len(self))
        fillings = self._alone(order[:n_single]) + self._together(order[n_single:], chance)
        timestamped = chance.random(len(fillings)) < self.rules.timestamped_share
        place = np.argsort(order)
        return [
            Window(
                tuple(sorted(fillings[number].clips, key=place.__getitem__)),
                bool(timestamped[number]) and fillings[number].labels <= self.rules.labels,
            )
            for number in chance.permutation(len(fillings)).tolist()
        ]

    def _together(self, clips: npt.NDArray[np.int64], chance: np.random.Generator) -> list[_Filling]:
        by_speaker = clips[np.argsort(self.lengths.speakers[clips], kind="stable")]
        changes = np.flatnonzero(np.diff(self.lengths.speakers[by_speaker])) + 1
        full: list[_Filling] = []
        loose: list[_Filling] = []
        for of_speaker in np.split(by_speaker, changes):
            for filling in self._fitted(self._alone(of_speaker), chance):
                (full if filling.positions >= _LOOSE * self.rules.positions else loose).append(filling)
        # They come speaker by speaker, in every epoch in the same order.
        return full + self._fitted([loose[place] for place in chance.permutation(len(loose)).tolist()], chance)

    def _fitted(self, fillings: Sequence[_Filling], chance: np.random.Generator) -> list[_Filling]:
        return [
            window
            for begin in range(0, len(fillings), _BLOCK)
            for window in _best_fit(fillings[begin : begin + _BLOCK], self.rules, chance)
        ]

    def _alone(self, clips: npt.NDArray[np.int64]) -> list[_Filling]:
        lengths = zip(self.lengths.positions[clips].tolist(), self.lengths.labels[clips].tolist(), strict=True)
        return [_Filling(*taken, (clip,)) for taken, clip in zip(lengths, clips.tolist(), strict=True)]


@dataclass(frozen=True, slots=True, order=True)
class _Filling:
    """What clips together take of a window; ordered by how much of the encoder that is."""

    positions: int
    labels: int = field(compare=False)
    clips: tuple[int, ...] = field(compare=False)

    def with_(self, other: _Filling) -> _Filling:
        return _Filling(self.positions + other.positions, self.labels + other.labels, self.clips + other.clips)


def _best_fit(fillings: Sequence[_Filling], rules: PackingRules, chance: np.random.Generator) -> list[_Filling]:
    """Put each into the fullest window that has room for it, or else into a new one."""
    windows: list[_Filling] = []  # the emptiest first
    # By length alone the same ones would meet in every epoch; about by length fills windows as well.
    lengths = np.array([filling.positions for filling in fillings]) * chance.uniform(_ABOUT, 1, len(fillings))
    for filling in (fillings[number] for number in np.argsort(-lengths).tolist()):
        room = bisect.bisect_right(windows, rules.positions - filling.positions, key=lambda window: window.positions)
        for place in reversed(range(room)):
            window = windows[place]
            n_labels, n_clips = window.labels + filling.labels, len(window.clips) + len(filling.clips)
            if n_labels <= rules.labels and n_clips <= rules.clips:
                del windows[place]
                bisect.insort(windows, window.with_(filling))
                break
        else:
            bisect.insort(windows, filling)
    return windows
