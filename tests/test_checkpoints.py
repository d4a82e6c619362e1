"""checkpoints.py: a folder is whole under its name, or not there; what was damaged later is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from asr_fine_tuner.checkpoints import (
    SEAL_NAME,
    checkpoint_folder,
    checkpoints_in,
    is_complete,
    newest_complete,
    remove_older,
    sealed,
    step_of,
)


def _write(folder: Path, content: str = "weights") -> Path:
    with sealed(folder) as staging:
        (staging / "model.safetensors").write_text(content)
        (staging / "deeper").mkdir()
        (staging / "deeper" / "state.json").write_text("{}")
    return folder


def test_a_sealed_folder_is_complete_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = _write(checkpoint_folder(tmp_path, 5))
    assert folder == tmp_path / "checkpoint-5"
    assert is_complete(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = _write(tmp_path / "checkpoint-5", "old")
    with pytest.raises(OSError, match="disk full"), sealed(folder) as staging:
        (staging / "model.safetensors").write_text("half")
        raise OSError("disk full")
    assert is_complete(folder)
    assert (folder / "model.safetensors").read_text() == "old"
    assert newest_complete(tmp_path) == folder


def test_what_a_killed_process_left_is_not_mixed_into_the_next_attempt(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint-5.tmp"
    left.mkdir()
    (left / "optimizer.pt").write_text("half")
    folder = _write(tmp_path / "checkpoint-5")
    assert not (folder / "optimizer.pt").exists()
    assert not left.exists()


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = _write(tmp_path / "best-5", "old")
    (folder / "stray").write_text("")
    _write(folder, "new")
    assert (folder / "model.safetensors").read_text() == "new"
    assert not (folder / "stray").exists()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "never sealed": lambda folder: (folder / SEAL_NAME).unlink(),
    "seal truncated": lambda folder: os.truncate(folder / SEAL_NAME, 10),
    "file truncated": lambda folder: os.truncate(folder / "model.safetensors", 3),
    "file deleted": lambda folder: (folder / "deeper" / "state.json").unlink(),
    "byte flipped": lambda folder: (folder / "model.safetensors").write_text("weightz"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_and_said_and_the_one_before_is_taken(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "checkpoint-5")
    newest = _write(tmp_path / "checkpoint-10")
    assert newest_complete(tmp_path) == newest
    DAMAGES[damage](newest)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-5"
    assert "checkpoint-10" in caplog.text
    assert "left aside" in caplog.text


def test_checkpoints_are_ordered_by_step_and_nothing_else_counts(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "best-99", ".checkpoint-11.tmp", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert [step_of(folder) for folder in checkpoints_in(tmp_path)] == [10, 9, 2]
    assert checkpoints_in(tmp_path, "best") == [tmp_path / "best-99"]
    assert newest_complete(tmp_path) is None


def test_older_checkpoints_go(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        _write(checkpoint_folder(tmp_path, step))
    remove_older(tmp_path, 20)
    assert [step_of(folder) for folder in checkpoints_in(tmp_path)] == [20, 15]


def test_damaged_later_checkpoints_do_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    for step in (10, 15, 20):
        _write(checkpoint_folder(tmp_path, step))
    for step in (15, 20):
        (checkpoint_folder(tmp_path, step) / SEAL_NAME).unlink()
    _write(checkpoint_folder(tmp_path, 11))
    remove_older(tmp_path, 11)
    assert newest_complete(tmp_path) == checkpoint_folder(tmp_path, 11)
    assert checkpoint_folder(tmp_path, 10).is_dir()
