"""One ratio with what it is of and what it should reach, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio of two measured values.

    key: its name in the JSON object. what: what was measured, and in which unit.
    ours, against: the two values. ratio: of one to the other, the way round that the target is stated.
    """

    key: str
    what: str
    ours: float
    against: float
    ratio: float
    target: float
    bound: Literal["at least", "at most"]

    @property
    def reached(self) -> bool:
        return self.ratio >= self.target if self.bound == "at least" else self.ratio <= self.target


def show(figures: Sequence[Figure]) -> None:
    """Print the table on stderr."""
    table = Table()
    for heading, justify in (
        ("", "left"),
        ("ours", "right"),
        ("plain", "right"),
        ("ratio", "right"),
        ("target", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for figure in figures:
        target = f"{figure.bound} {figure.target:.3g}{'' if figure.reached else ', missed'}"
        table.add_row(figure.what, *(f"{value:.4g}" for value in (figure.ours, figure.against, figure.ratio)), target)
    Console(stderr=True).print(table)
