"""The cores a job may use: those it may run on, and no more than its container's quota."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from asr_fine_tuner.cores import usable_cores

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("10000 100000", 1), ("6400000 100000", 8)],
)
def test_quota_of_control_groups_v2(limit: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("150000", 2)])
def test_quota_of_control_groups_v1(quota: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


def test_no_control_groups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


def test_of_this_machine() -> None:
    assert 1 <= usable_cores() <= 8
