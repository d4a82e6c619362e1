"""How fast a device multiplies matrices at best: by its data sheet where it is known, or else measured."""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass
from typing import Literal

import torch

PeakSource = Literal["data sheet", "measured"]

_TERA = 1e12
_MEASURING_SECONDS, _TRIALS = 0.3, 5
# Matrices that a core multiplies in a millisecond, and those with which the largest GPUs are at their peak.
_SMALLEST_SIDE, _LARGEST_SIDE = 256, 4096


@dataclass(frozen=True, slots=True)
class DevicePeak:
    """flops: floating-point operations a second, of matrix products in the precision asked for."""

    flops: float
    source: PeakSource


@dataclass(frozen=True, slots=True)
class _DataSheet:
    """Teraflop/s of NVIDIA's data sheets and architecture whitepapers, dense: without the doubling by sparsity.

    name: pattern of the whole name, as torch.cuda.get_device_name tells it.
    half: fp16 with float32 accumulation, and bf16 where the device computes in it. tf32: None where it cannot.
    """

    name: str
    half: float
    tf32: float | None
    fp32: float


_SLICE = " MIG "  # of a device, which does not tell how large a slice
_NVIDIA = r"(?:NVIDIA |Tesla |NVIDIA GeForce |NVIDIA Tesla )?"
_DATA_SHEETS = (
    _DataSheet(r"B200", 2250, 1100, 75),
    _DataSheet(r"H200 NVL", 835.5, 417.5, 60),
    _DataSheet(r"H200", 989.5, 494.5, 67),
    _DataSheet(r"GH200.*", 989.5, 494.5, 67),
    _DataSheet(r"H100 PCIe", 756.5, 378, 51),
    _DataSheet(r"H100 NVL", 835.5, 417.5, 60),
    _DataSheet(r"H100 .*HBM3", 989.5, 494.5, 67),
    _DataSheet(r"A100.*", 312, 156, 19.5),
    _DataSheet(r"A30", 165, 82, 10.3),
    _DataSheet(r"A40", 149.7, 74.8, 37.4),
    _DataSheet(r"A10", 125, 62.5, 31.2),
    _DataSheet(r"A10G", 70, 35, 35),
    _DataSheet(r"L4", 121, 60, 30.3),
    _DataSheet(r"L40", 181, 90.5, 90.5),
    _DataSheet(r"L40S", 362, 183, 91.6),
    _DataSheet(r"V100S.*", 130, None, 16.4),
    _DataSheet(r"V100-PCIE.*", 112, None, 14),
    _DataSheet(r"V100-SXM2.*", 125, None, 15.7),
    _DataSheet(r"T4", 65, None, 8.1),
    _DataSheet(r"RTX A6000", 154.8, 77.4, 38.7),
    _DataSheet(r"RTX A5000", 111.1, 55.6, 27.8),
    _DataSheet(r"RTX 6000 Ada Generation", 364.2, 182.1, 91.1),
    _DataSheet(r"RTX 3090", 71, 35.6, 35.6),
    _DataSheet(r"RTX 3090 Ti", 80, 40, 40),
    _DataSheet(r"RTX 4090", 165.2, 82.6, 82.6),
    _DataSheet(r"RTX 5090", 209.5, 104.8, 104.8),
)


def device_peak(device: torch.device, precision: str) -> DevicePeak:
    """precision: `bf16`, `fp16` or `fp32`; the last is TF32 where PyTorch is told to multiply so."""
    if device.type == "cuda":
        if precision == "fp32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
            precision = "tf32"
        known = data_sheet_peak(torch.cuda.get_device_name(device), precision)
        if known is not None:
            return DevicePeak(known, "data sheet")
    return DevicePeak(_measured(device, precision), "measured")


def data_sheet_peak(name: str, precision: str) -> float | None:
    """FLOP/s of the device with this name; None where it is not known. precision: as above, or `tf32`."""
    for sheet in _DATA_SHEETS:
        if re.fullmatch(_NVIDIA + sheet.name, name) and _SLICE not in name:
            tera = {"fp32": sheet.fp32, "tf32": sheet.tf32 or sheet.fp32}.get(precision, sheet.half)
            return tera * _TERA
    return None


@functools.cache
def _measured(device: torch.device, precision: str) -> float:
    """Of the fastest product of two square matrices, which grow as far as there is time."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}[precision]
    # The very first product wakes threads and loads a kernel, in bf16 once for a second.
    _multiply(torch.ones(_SMALLEST_SIDE, _SMALLEST_SIDE, dtype=dtype, device=device))
    deadline = time.monotonic() + _MEASURING_SECONDS
    side, best = _SMALLEST_SIDE, 0.0
    while True:
        matrix = torch.ones(side, side, dtype=dtype, device=device)
        # The first of a size is slower, too, and others compute here.
        best = max(best, *(2 * side**3 / _multiply(matrix) for _ in range(_TRIALS)))
        side *= 2
        if side > _LARGEST_SIDE or time.monotonic() + _TRIALS * 2 * side**3 / best > deadline:
            return best


def _multiply(matrix: torch.Tensor) -> float:
    """Seconds of a product of `matrix` by itself."""
    _wait(matrix.device)
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    _wait(matrix.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
