"""Which clips are trained on together in one window of the model, drawn anew in each epoch."""

from __future__ import annotations

import bisect
import enum
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
# Tokens that clips with timestamps can have more than the same ones apart have together.
ADDED_BY_TIMESTAMPS = 2


class Kind(enum.Enum):
    """How the clips of a window are heard and written.

    APART: each as if it was alone. JOINED: as one text. TIMESTAMPED: as one that tells when each clip begins and ends.
    """

    APART = enum.auto()
    JOINED = enum.auto()
    TIMESTAMPED = enum.auto()


@dataclass(frozen=True, slots=True)
class Window:
    """clips: their positions in the split, in the order in which they sound in the window."""

    clips: tuple[int, ...]
    kind: Kind = Kind.APART


@dataclass(frozen=True, slots=True)
class ClipLengths:
    """What each clip takes of a window, `[n_clips]` each.

    positions: of the encoder, 20 ms each. labels: tokens of a clip that is written apart.
    speakers: a number for each speaker, the same one for all who are not known.
    """

    positions: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    speakers: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackingRules:
    """What a window holds at most, and how it is filled.

    positions: of the encoder. labels: tokens of all its clips. clips: most of them in a window.
    apart_share, timestamped_share: of the windows; the others are joined without timestamps.
    """

    positions: int
    labels: int
    clips: int
    apart_share: float
    timestamped_share: float


class Packer:
    """Divides the clips of a split among windows: each clip is in one window of an epoch.

    Best fit, longer clips first (Johnson et al. 1974), under the limits of the encoder, of the decoder and of clips in
    a window; a clip beyond a limit has a window of its own. Clips of one speaker are put together; only where they
    leave more than half of a window empty, others join them.
    """

    def __init__(self, lengths: ClipLengths, rules: PackingRules, *, seed: int) -> None:
        self.lengths, self.rules, self.seed = lengths, rules, seed

    def __len__(self) -> int:
        """Clips of the split."""
        return len(self.lengths.positions)

    @functools.cached_property
    def most_labels(self) -> int:
        """Labels of the window of the first epoch that has the most, at least."""
        return max(map(self.n_labels, self.first_epoch))

    def n_labels(self, window: Window) -> int:
        """Of its clips, each written by itself."""
        return int(self.lengths.labels[list(window.clips)].sum())

    @functools.cached_property
    def first_epoch(self) -> list[Window]:
        return self.windows(epoch=0)

    def windows(self, epoch: int) -> list[Window]:
        """All windows of an epoch, in an order that is left to chance; all follows from seed and epoch alone."""
        chance = np.random.default_rng([self.seed, epoch])
        order = chance.permutation(len(self))
        fillings = self._alone(order) if self.rules.clips == 1 else self._together(order, chance)
        drawn = chance.random(len(fillings)).tolist()
        place = np.argsort(order)
        return [
            Window(
                tuple(sorted(fillings[number].clips, key=place.__getitem__)),
                self._kind(fillings[number], drawn[number]),
            )
            for number in chance.permutation(len(fillings)).tolist()
        ]

    def _kind(self, filling: _Filling, drawn: float) -> Kind:
        """drawn: evenly, of 0 to 1."""
        rules = self.rules
        if drawn < rules.apart_share:
            return Kind.APART
        fits = filling.labels + ADDED_BY_TIMESTAMPS <= rules.labels
        timestamped = drawn < rules.apart_share + rules.timestamped_share
        return Kind.TIMESTAMPED if timestamped and fits else Kind.JOINED

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
