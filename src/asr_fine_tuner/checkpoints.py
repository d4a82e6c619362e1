"""Checkpoints that are complete or absent: staged, made durable, sealed with a hash of every file, then renamed."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import (
    canonical_json,
    full_disk_explained,
    hashes_below,
    mismatches,
    rename_folder,
    sync_folder,
    sync_tree,
    write_atomically,
)

logger = logging.getLogger(__name__)

SEAL_NAME = "complete.json"
KEPT_CHECKPOINTS = 2


@contextlib.contextmanager
def sealed(folder: Path, bytes_needed: int | None = None) -> Iterator[Path]:
    """Yields a staging folder that becomes `folder` when the block ends without an error, and is removed otherwise.

    bytes_needed: to write it, for the message when there is no room.

    Raises:
        PermanentError: the disk is full.
    """
    staging = folder.with_name(f".{folder.name}.tmp")
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    try:
        with full_disk_explained(folder.parent, bytes_needed):
            yield staging
            sync_tree(staging)
            write_atomically(staging / SEAL_NAME, canonical_json(hashes_below(staging)))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    rename_folder(staging, folder, last=SEAL_NAME)
    sync_folder(folder.parent)


def is_complete(folder: Path) -> bool:
    """Whether `folder` was sealed and its files are as they were then; says in the log what is wrong."""
    try:
        hashes = json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        logger.warning("%s is incomplete and left aside: it was never sealed", folder)
        return False
    if problems := mismatches(folder, hashes):
        logger.warning("%s is damaged and left aside: %s", folder, "; ".join(problems))
        return False
    return True


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def checkpoints_in(output_dir: Path, prefix: str = "checkpoint") -> list[Path]:
    """`PREFIX-STEP` folders, the newest step first; complete or not."""
    found = (path for path in output_dir.glob(f"{prefix}-*") if re.fullmatch(rf"{prefix}-\d+", path.name))
    return sorted(found, key=step_of, reverse=True)


def newest_complete(output_dir: Path) -> Path | None:
    return next((folder for folder in checkpoints_in(output_dir) if is_complete(folder)), None)


def remove_older(output_dir: Path, step: int) -> None:
    """Remove all but the newest KEPT_CHECKPOINTS of the checkpoints up to `step`.

    Later ones are damaged, else training would have continued from them; they must not count as kept.
    """
    for folder in [folder for folder in checkpoints_in(output_dir) if step_of(folder) <= step][KEPT_CHECKPOINTS:]:
        shutil.rmtree(folder)


def refuse_unseen(checkpoint: Path, seal: bytes) -> None:
    """
    Raises:
        PermanentError: there is no such checkpoint here, or not the one with this seal, which the first rank verified.
    """
    try:
        if (checkpoint / SEAL_NAME).read_bytes() == seal:
            return
        given = f"another {checkpoint.absolute()} on {platform.node()} than the first rank sees"
    except FileNotFoundError:
        given = f"no {checkpoint.absolute()} on {platform.node()}, while the first rank sees one"
    raise PermanentError(
        given=given,
        expected="one --output_dir for all nodes, on a volume that they share",
        action="give all nodes the same --output_dir on a shared volume, or continue on the node that has it",
    )
