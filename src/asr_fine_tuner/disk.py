"""How much room there is on the volumes that a job writes to, and sizes in words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Shortage(NamedTuple):
    """A volume that cannot hold what goes there. folder: the first one on it; needed, free: bytes."""

    folder: Path
    needed: int
    free: int


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def free_bytes(path: Path) -> int:
    """Free on the volume where `path` is or would be, to a user without privileges."""
    return shutil.disk_usage(existing_parent(path)).free


def shortage(wanted: Sequence[tuple[Path, int]], free: Callable[[Path], int] = free_bytes) -> Shortage | None:
    """The first volume that is too small for what is wanted on it, in bytes below folders; None when all fit."""
    volumes: dict[int, tuple[Path, int]] = {}
    for folder, n_bytes in wanted:
        device = existing_parent(folder).stat().st_dev
        first, sum_so_far = volumes.get(device, (folder, 0))
        volumes[device] = first, sum_so_far + n_bytes
    shortages = (Shortage(folder, n_bytes, free(folder)) for folder, n_bytes in volumes.values())
    return next((short for short in shortages if short.needed > short.free), None)


def bytes_below(folder: Path) -> int:
    """Bytes of the files below `folder`; 0 when there is none."""
    return sum(Path(root, name).lstat().st_size for root, _, names in os.walk(folder) for name in names)


def readable_size(n_bytes: float) -> str:
    """Three digits at most: `999 bytes`, `31 MB`, `1.64 GB`, `74.1 GB`."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 999.5 else f"{size:.0f} GB"
