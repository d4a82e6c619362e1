"""The peak of a device, as its data sheet tells it or as it was measured."""

from __future__ import annotations

import time

import pytest
import torch

from asr_fine_tuner import device_peak as device_peak_module
from asr_fine_tuner.device_peak import data_sheet_peak, device_peak


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10G", "bf16", 70),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-SXM2-16GB", "tf32", 15.7),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2),
    ],
)
def test_known_devices_are_those_of_their_data_sheets(name: str, precision: str, tera: float) -> None:
    assert data_sheet_peak(name, precision) == tera * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA L400", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "AMD Instinct MI300X"],
)
def test_others_are_not_taken_for_known_ones(name: str) -> None:
    assert data_sheet_peak(name, "bf16") is None


def test_a_processor_is_measured_in_no_time() -> None:
    began = time.monotonic()
    peak = device_peak(torch.device("cpu"), "fp32")
    assert time.monotonic() - began < 2  # with room for what else runs on this machine
    assert peak.source == "measured"
    matrix = torch.ones(512, 512)
    began = time.perf_counter()
    for _ in range(4):
        torch.mm(matrix, matrix)
    reached = 4 * 2 * 512**3 / (time.perf_counter() - began)
    assert reached / 20 < peak.flops < 20 * reached


def test_what_goes_by_before_the_first_product_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, multiply = device_peak_module._measured.__wrapped__, device_peak_module._multiply
    undisturbed = measure(torch.device("cpu"), "fp32")
    asleep = iter([1.0])

    def multiplied(matrix: torch.Tensor) -> float:
        seconds = next(asleep, 0.0)
        time.sleep(seconds)
        return seconds + multiply(matrix)

    monkeypatch.setattr(device_peak_module, "_multiply", multiplied)
    assert measure(torch.device("cpu"), "fp32") > undisturbed / 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_no_product_on_a_gpu_is_faster_than_its_data_sheet() -> None:
    device = torch.device("cuda")
    for precision in ("bf16", "fp32"):
        known = data_sheet_peak(torch.cuda.get_device_name(device), precision)
        assert known is None or 0.4 * known < device_peak_module._measured(device, precision) < 1.02 * known
