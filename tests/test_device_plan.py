"""device_plan.py: what training takes of a device, and what it does with less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_run_size import whisper
from transformers import WhisperForConditionalGeneration

from asr_fine_tuner import PermanentError, TrainParameters
from asr_fine_tuner.device_plan import (
    DevicePlan,
    common_plan,
    plan_device,
    training_bytes,
    training_footprint,
)

PLENTY = 10**15  # bytes

on_a_processor = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is chosen without a GPU")


@pytest.fixture
def model(tiny_model: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(tiny_model)


@pytest.fixture
def small() -> WhisperForConditionalGeneration:
    """The shape of whisper-small, 242 million weights."""
    return whisper(768, 12, 12, 80)


@on_a_processor
def test_without_a_gpu_all_is_computed_in_float32(model: WhisperForConditionalGeneration) -> None:
    plan = plan_device(TrainParameters(), model, PLENTY)
    assert (plan.precision, plan.gradient_checkpointing) == ("fp32", False)
    assert plan_device(TrainParameters(gradient_checkpointing="on"), model, PLENTY).gradient_checkpointing
    assert not plan_device(TrainParameters(gradient_checkpointing="off"), model, PLENTY).gradient_checkpointing


@on_a_processor
def test_fp16_without_a_gpu_is_refused(model: WhisperForConditionalGeneration) -> None:
    with pytest.raises(PermanentError, match="--precision fp16 on a machine without a GPU"):
        plan_device(TrainParameters(precision="fp16"), model, PLENTY)


@pytest.mark.parametrize(
    ("switch", "fits", "checkpointing", "micro_batch"),
    [
        ("auto", 16, False, 16),
        ("auto", 5, False, 4),  # of 16, 8, 4, 2 and 1
        ("auto", 3, True, 8),  # two at once would leave the device idle, eight fit where activations are not kept
        ("off", 3, False, 2),
        ("off", 0, False, 1),  # what the estimate refuses is tried all the same
        ("on", 16, True, 16),
    ],
)
def test_micro_batches_shrink_before_activations_are_computed_again(
    switch: Any, fits: int, checkpointing: bool, micro_batch: int, small: WhisperForConditionalGeneration
) -> None:
    held = DevicePlan("cpu", "fp32", gradient_checkpointing=False, micro_batch=fits)
    free = int(training_footprint(small, held) / 0.9) + 1
    plan = plan_device(TrainParameters(gradient_checkpointing=switch, precision="fp32"), small, free)
    assert (plan.gradient_checkpointing, plan.micro_batch) == (checkpointing, micro_batch)


@pytest.mark.parametrize(
    ("precisions", "common"), [(["bf16", "bf16"], "bf16"), (["bf16", "fp16"], "fp16"), (["fp16", "bf16"], "fp16")]
)
def test_devices_of_several_ranks_do_what_all_of_them_can(precisions: list[str], common: str) -> None:
    plans = [DevicePlan(f"GPU {rank}", precision, bool(rank), 8 - rank) for rank, precision in enumerate(precisions)]
    assert common_plan(plans) == DevicePlan("GPU 0", common, gradient_checkpointing=True, micro_batch=7)
    assert common_plan(plans[:1]) == plans[0]


def test_many_labels_take_memory(small: WhisperForConditionalGeneration) -> None:
    few, many = (training_bytes(small, 8, "bf16", n_labels=n_labels) for n_labels in (100, 448))
    # 348 more labels in 8 windows, three float32 for each of 51865 tokens.
    assert many - few > 348 * 8 * 3 * 4 * 51865


def test_memory_is_estimated_from_what_is_trained(model: WhisperForConditionalGeneration) -> None:
    needed = training_bytes(model, 16, "bf16")
    assert needed > 16 * sum(weight.numel() for weight in model.parameters())
    assert training_bytes(model, 32, "bf16") > needed
    assert training_bytes(model, 16, "fp32") > needed
    model.freeze_encoder()
    assert training_bytes(model, 16, "bf16") < needed


def test_backward_needs_the_weights_in_16_bit_too(small: WhisperForConditionalGeneration) -> None:
    def copies() -> float:
        """What is neither an activation nor float32: the same for any number of windows, and not there in float32."""
        half, full = (
            2 * training_bytes(small, 1, precision) - training_bytes(small, 2, precision)
            for precision in ("bf16", "fp32")
        )
        return half - full

    weights = sum(weight.numel() for weight in small.parameters())
    assert copies() == 2 * weights
    small.freeze_encoder()
    assert copies() == 2 * sum(weight.numel() for weight in small.get_decoder().parameters())


def test_the_estimate_is_of_the_right_order_for_a_real_model(small: WhisperForConditionalGeneration) -> None:
    """Of whisper-small a batch of 16 in half precision fits a GPU of 24 GB and not one of 8 GB."""
    assert 8e9 < training_bytes(small, 16, "bf16") < 24e9
