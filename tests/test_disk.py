"""Free space, by volume, and sizes in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_fine_tuner.disk import Shortage, bytes_below, existing_parent, free_bytes, readable_size, shortage


def test_free_space_of_a_folder_yet_to_be_made(tmp_path: Path) -> None:
    wanted = tmp_path / "not" / "yet"
    assert existing_parent(wanted) == tmp_path
    assert free_bytes(wanted) > 0
    assert bytes_below(wanted) == 0


def test_what_goes_to_one_volume_is_added_up(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert shortage([(one, 60), (two, 40)], lambda path: 100) is None
    assert shortage([(one, 60), (two, 41)], lambda path: 100) == Shortage(one, 101, 100)
    assert shortage([(one, 60), (Path("/proc"), 41)], lambda path: 60) is None
    assert shortage([(one, 60), (Path("/proc"), 61)], lambda path: 60) == Shortage(Path("/proc"), 61, 60)
    assert shortage([(one, free_bytes(one) << 1)]) is not None


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (89_000, "89 kB"),
        (31_400_000, "31.4 MB"),
        (999_600_000, "1 GB"),
        (1_640_000_000, "1.64 GB"),
        (74_100_000_000, "74.1 GB"),
        (1_234_000_000_000, "1234 GB"),
    ],
)
def test_sizes_are_readable(n_bytes: int, text: str) -> None:
    assert readable_size(n_bytes) == text
