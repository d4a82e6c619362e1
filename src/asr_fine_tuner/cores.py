"""How many processor cores a job may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup")  # inside a container: its own


def usable_cores(control_group: Path = _CONTROL_GROUP) -> int:
    """Cores this process may run on, at most as many as the CPU quota of its container pays for, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(control_group)
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def _quota(control_group: Path) -> float | None:
    """Cores' worth of time in each period, by the kernel's files of control groups (v2, then v1); None without a limit.

    `cpu.max` of v2 holds `quota period` in microseconds, or `max period`; v1 has a file for each, and a quota of -1.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((control_group / name).read_text(encoding="ascii") for name in names).split()
        except OSError:  # another version, or no limit can be set here
            continue
        return None if quota in ("max", "-1") else int(quota) / int(period)
    return None
