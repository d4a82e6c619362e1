"""What training takes of this device: precision, gradient checkpointing and windows at once, as memory allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import WhisperForConditionalGeneration

from asr_fine_tuner.disk import readable_size
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.parameters import TrainParameters

logger = logging.getLogger(__name__)

# Bytes of activations that one layer keeps for one position, per unit of hidden size, in 16 bit; the attention matrix
# is not kept by scaled dot product attention. Korthikanti et al. 2022, arXiv 2205.05198, equation 1.
_ACTIVATION_BYTES = 34
# float32 weights, gradients and Adam's two moments.
_STATE_BYTES_PER_PARAMETER = 16
# Of a clip's transcript.
LONGEST_TYPICAL_LABELS = 128
_USABLE_FRACTION = 0.9
# Windows at once from which on a GPU has enough to do.
BUSY = 4
# Resident memory of a training step on a processor, over the bytes of its tensors: measured 1.32 to 1.57 with 2 to 8
# layers of 384 to 768 units and 2 to 8 clips.
_RESIDENT = 1.6


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """How training runs on this device.

    precision: `bf16`, `fp16` or `fp32`. gradient_checkpointing: recompute activations instead of keeping them.
    micro_batch: most windows at once.
    """

    device: str
    precision: str
    gradient_checkpointing: bool
    micro_batch: int


def plan_device(
    parameters: TrainParameters,
    model: WhisperForConditionalGeneration,
    free: int,
    n_labels: int = LONGEST_TYPICAL_LABELS,
) -> DevicePlan:
    """Choose precision and gradient checkpointing where they are `auto`, and how many windows to train on at once.

    A step has as many clips whatever is chosen. Smaller micro batches come before gradient checkpointing, which costs
    a quarter of the speed, as long as they keep the device busy.

    free: bytes that training may take on this device. n_labels: of a window with many.

    Raises:
        PermanentError: the device cannot compute in the precision asked for.
    """
    asked = DevicePlan(
        _device_name(), _precision(parameters), parameters.gradient_checkpointing == "on", parameters.train_batch_size
    )

    def fitted(*, checkpointing: bool) -> DevicePlan | None:
        """With as many windows at once as fit, if one does."""
        plan = replace(asked, gradient_checkpointing=checkpointing)
        while training_footprint(model, plan, n_labels) > _USABLE_FRACTION * free:
            if plan.micro_batch == 1:
                return None
            plan = replace(plan, micro_batch=math.ceil(plan.micro_batch / 2))
        return plan

    plan = fitted(checkpointing=asked.gradient_checkpointing)
    if parameters.gradient_checkpointing == "auto" and (
        plan is None or plan.micro_batch < min(asked.micro_batch, BUSY)
    ):
        sparing = fitted(checkpointing=True)
        if sparing is not None and (plan is None or sparing.micro_batch > plan.micro_batch):
            plan = sparing
    # What the estimate gives no room is tried all the same.
    least = parameters.gradient_checkpointing != "off"
    plan = plan or replace(asked, gradient_checkpointing=least, micro_batch=1)
    logger.info(
        "%s on %s, up to %d windows at once, gradient checkpointing %s: about %s of the %s that are free",
        *(plan.precision, plan.device, plan.micro_batch, "on" if plan.gradient_checkpointing else "off"),
        readable_size(training_footprint(model, plan, n_labels)),
        readable_size(free),
    )
    return plan


def _precision(parameters: TrainParameters) -> str:
    cuda = torch.cuda.is_available()
    native_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = parameters.precision
    if precision == "auto":
        return ("bf16" if native_bf16 else "fp16") if cuda else "fp32"
    if (precision == "fp16" and not cuda) or (precision == "bf16" and cuda and not native_bf16):
        raise PermanentError(
            given=f"--precision {precision} on {_device_name()}",
            expected="fp16 only on a GPU, bf16 on a CPU or a GPU that computes in it (Ampere or newer)",
            action="leave --precision at auto",
        )
    return precision


def common_plan(plans: Sequence[DevicePlan]) -> DevicePlan:
    """What all devices can do: the first one's plan, with what any of them needs to be spared."""
    precisions = {plan.precision for plan in plans}
    return replace(
        plans[0],
        # Of what auto chooses on GPUs, fp16 is what the older ones compute in.
        precision="fp16" if precisions == {"bf16", "fp16"} else plans[0].precision,
        gradient_checkpointing=any(plan.gradient_checkpointing for plan in plans),
        micro_batch=min(plan.micro_batch for plan in plans),
    )


def training_bytes(
    model: WhisperForConditionalGeneration,
    micro_batch: int,
    precision: str,
    *,
    checkpointing: bool = False,
    n_labels: int = LONGEST_TYPICAL_LABELS,
) -> float:
    """Estimated bytes of weights, gradients, optimizer state and activations of one micro batch.

    n_labels: of the window with the most.
    checkpointing: of each layer only the input is kept, in float32, and one layer at a time is computed anew.
    """
    config = model.config
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    of_encoder = list(model.get_encoder().parameters())
    encoder_trains = any(weight.requires_grad for weight in of_encoder)
    encoder = config.encoder_layers * config.max_source_positions if encoder_trains else 0
    decoder = config.decoder_layers * n_labels
    positions = encoder + decoder
    inputs = 4 * positions if checkpointing else 0
    in_full = config.max_source_positions if checkpointing else positions
    width = 1 if precision != "fp32" else 2
    activations = config.d_model * micro_batch * (inputs + _ACTIVATION_BYTES * width * in_full)
    # Logits in float32, their softmax and their gradient.
    logits = 3 * 4 * config.vocab_size * n_labels * micro_batch
    # Autocast's copies in 16 bit of the weights that gradients pass, frozen ones too: backward needs them.
    passed = trainable + frozen - (0 if encoder_trains else sum(weight.numel() for weight in of_encoder))
    copies = 0 if precision == "fp32" else 2 * passed
    return float(trainable * _STATE_BYTES_PER_PARAMETER + frozen * 4 + copies + activations + logits)


def training_footprint(
    model: WhisperForConditionalGeneration, plan: DevicePlan, n_labels: int = LONGEST_TYPICAL_LABELS
) -> float:
    """`training_bytes` of a plan, and what a processor takes beside them."""
    needed = training_bytes(
        model, plan.micro_batch, plan.precision, checkpointing=plan.gradient_checkpointing, n_labels=n_labels
    )
    return needed if torch.cuda.is_available() else _RESIDENT * needed


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a machine without a GPU"
