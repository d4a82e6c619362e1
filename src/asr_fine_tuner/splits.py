"""Splits: the files they are made of, and which ones serve for training, validation and test."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr_fine_tuner.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asr_fine_tuner.filetree import StoredFile

# The names that `datasets` knows too, the likeliest first.
USUAL_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_KEYWORDS = frozenset(word for words in USUAL_NAMES.values() for word in words)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that a split is read from.

    split_folder: for a table, only the rows whose audio lies in this folder; all when None.
    """

    file: StoredFile
    split_folder: str | None = None


def is_split_name(part: str) -> bool:
    """Whether a folder or file name begins with the name of a split: `train`, `dev-clean`, `train.100`, `test_01`."""
    return _first_word(part) in _KEYWORDS


def choose_splits(available: Sequence[str], given: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """For `train`, `validation` and `test` the source splits they are read from; none where the dataset has none.

    given: what the user asked for; `a+b` joins splits.
    A split serves one purpose only: what was asked for train is not also found for validation.
    Raises PermanentError for a name that does not exist, for a split asked for twice, and where nothing is to train on.
    """
    chosen = {role: _parse(role, names, available) for role, names in given.items() if names is not None}
    for role, others in ((role, other) for role in chosen for other in chosen if role < other):
        if both := set(chosen[role]) & set(chosen[others]):
            raise PermanentError(
                given=f"--{role}_split and --{others}_split both name {', '.join(sorted(both))}",
                expected="splits that have no clip in common, or scores would be of clips that were trained on",
                action="name different splits, or leave one out: it is then found, or held out of train",
            )
    taken = {name for names in chosen.values() for name in names}
    free = [name for name in available if name not in taken]
    for role in USUAL_NAMES:
        if role not in chosen:
            chosen[role] = _find(role, free)
    if not chosen["train"] and len(available) == 1 and not is_split_name(available[0]) and available[0] in free:
        chosen["train"] = (available[0],)
    if not chosen["train"]:
        raise PermanentError(
            given=f"a dataset with the splits {', '.join(available)}, none of which is for training",
            expected="a split to train on",
            action=f"name one as --train_split (for instance {available[0]}); what is missing is then held out of it",
        )
    return {role: chosen[role] for role in USUAL_NAMES}


def _parse(role: str, given: str, available: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in given.split("+")))
    for name in names:
        if name not in available:
            nearest = difflib.get_close_matches(name, available, n=1)
            raise PermanentError(
                given=f"--{role}_split {name!r}, which the dataset does not have",
                expected=f"one of its splits {', '.join(available)}, or several joined with +",
                action=f"did you mean {nearest[0]}?" if nearest else "correct the name, or leave it out",
            )
    return names


def _find(role: str, available: Sequence[str]) -> tuple[str, ...]:
    for word in USUAL_NAMES[role]:
        exact = [name for name in available if name.lower() == word]
        if exact:
            return (exact[0],)
    for word in USUAL_NAMES[role]:  # train.100 and train.360 are parts of one
        if parts := tuple(name for name in available if _first_word(name) == word):
            return parts
    return ()


def _first_word(name: str) -> str:
    return re.split(r"[-._ 0-9]", name.lower(), maxsplit=1)[0]
