"""What a child process computes on."""

from __future__ import annotations

import torch


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "one core of a processor"


def gpu_bytes() -> int | None:
    """The most that tensors took on the GPU; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
