"""Which source split serves for what."""

from __future__ import annotations

import pytest

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.splits import choose_splits, is_split_name


def choose(available: list[str], **given: str) -> dict[str, tuple[str, ...]]:
    return choose_splits(available, {role: given.get(role) for role in ("train", "validation", "test")})


@pytest.mark.parametrize(
    ("available", "train", "validation", "test"),
    [
        (["train", "validation", "test"], ("train",), ("validation",), ("test",)),
        (["test", "dev", "train"], ("train",), ("dev",), ("test",)),
        (["training", "valid"], ("training",), ("valid",), ()),
        (["train", "dev", "test", "9_hours", "1_hours"], ("train",), ("dev",), ("test",)),
        (["train", "dev", "test", "validated", "invalidated"], ("train",), ("dev",), ("test",)),
        (["train.100", "train.360", "validation", "test"], ("train.100", "train.360"), ("validation",), ("test",)),
        (["Train", "Val", "Eval"], ("Train",), ("Val",), ("Eval",)),
        (["all"], ("all",), (), ()),
    ],
)
def test_found_by_name(
    available: list[str], train: tuple[str, ...], validation: tuple[str, ...], test: tuple[str, ...]
) -> None:
    assert choose(available) == {"train": train, "validation": validation, "test": test}


def test_given_names_win_and_join() -> None:
    chosen = choose(["train", "validation", "test", "other"], train="train+other")
    assert chosen == {"train": ("train", "other"), "validation": ("validation",), "test": ("test",)}


def test_what_is_trained_on_is_not_evaluated_on() -> None:
    assert choose(["train", "validation", "test"], train="train+validation")["validation"] == ()
    with pytest.raises(PermanentError, match="both name test"):
        choose(["train", "test"], validation="test", test="test")


def test_errors_list_the_splits() -> None:
    with pytest.raises(PermanentError, match=r"train, validation(.|\n)*did you mean validation"):
        choose(["train", "validation"], validation="validaton")
    with pytest.raises(PermanentError, match="none of which is for training"):
        choose(["test"])
    with pytest.raises(PermanentError, match="none of which is for training"):
        choose(["alpha", "beta"])
    assert choose(["test"], train="test")["test"] == ()


def test_split_names() -> None:
    assert all(map(is_split_name, ["train", "dev-clean", "train.100", "test_other", "Validation", "val"]))
    assert not any(map(is_split_name, ["validated", "trainer", "it", "data", "clips", "9_hours"]))
