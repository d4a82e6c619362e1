"""Parameters of the train job -> arguments of the trainer; what `auto` becomes on this device."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments, WhisperForConditionalGeneration

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
# Adapters learn best at about ten times the rate of the weights they stand for, which is 1e-5 for Whisper: Biderman et
# al. 2024, arXiv 2405.09673.
_LEAST_USUAL_RATE_OF_ADAPTERS = 1e-4


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
    encoder_trains = any(weight.requires_grad for weight in model.get_encoder().parameters())
    encoder = config.encoder_layers * config.max_source_positions if encoder_trains else 0
    decoder = config.decoder_layers * n_labels
    positions = encoder + decoder
    inputs = 4 * positions if checkpointing else 0
    in_full = config.max_source_positions if checkpointing else positions
    width = 1 if precision != "fp32" else 2
    activations = config.d_model * micro_batch * (inputs + _ACTIVATION_BYTES * width * in_full)
    # Logits in float32, their softmax and their gradient.
    logits = 3 * 4 * config.vocab_size * n_labels * micro_batch
    return float(trainable * _STATE_BYTES_PER_PARAMETER + frozen * 4 + activations + logits)


def training_footprint(
    model: WhisperForConditionalGeneration, plan: DevicePlan, n_labels: int = LONGEST_TYPICAL_LABELS
) -> float:
    """`training_bytes` of a plan, and what a processor takes beside them."""
    needed = training_bytes(
        model, plan.micro_batch, plan.precision, checkpointing=plan.gradient_checkpointing, n_labels=n_labels
    )
    return needed if torch.cuda.is_available() else _RESIDENT * needed


def training_arguments(
    parameters: TrainParameters, output_dir: Path, plan: DevicePlan, rank: int = 0
) -> Seq2SeqTrainingArguments:
    """Arguments of the trainer. Tokens never enter them: checkpoints keep a copy.

    rank: what is drawn by chance is drawn anew by each rank, except the order of the clips.
    """
    if parameters.warmup_steps >= parameters.max_steps:
        logger.warning(
            "--warmup_steps %d is not below --max_steps %d: the learning rate stays below --learning_rate %g",
            parameters.warmup_steps,
            parameters.max_steps,
            parameters.learning_rate,
        )
    if parameters.lora_rank is not None and parameters.learning_rate < _LEAST_USUAL_RATE_OF_ADAPTERS:
        logger.warning(
            "--learning_rate %g is one for training all weights: adapters of --lora_rank usually take %g to 1e-3",
            parameters.learning_rate,
            _LEAST_USUAL_RATE_OF_ADAPTERS,
        )
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output_dir),
        max_steps=parameters.max_steps,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.lr_scheduler,
        warmup_steps=parameters.warmup_steps,
        per_device_train_batch_size=parameters.train_batch_size,
        per_device_eval_batch_size=parameters.eval_batch_size,
        # What the trainer's loader gives is a whole optimizer step: see `WhisperTrainer.training_step`.
        gradient_accumulation_steps=1,
        activation_checkpointing=plan.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if plan.gradient_checkpointing else None,
        bf16=plan.precision == "bf16",
        # Without a CUDA GPU the plan is for the processor: the trainer would take an Apple GPU, and bf16 for a mistake.
        use_cpu=not torch.cuda.is_available(),
        fp16=plan.precision == "fp16",
        eval_strategy="steps",
        eval_steps=parameters.eval_steps,
        logging_strategy="steps",
        logging_steps=parameters.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=parameters.save_steps,
        predict_with_generate=True,
        generation_max_length=parameters.max_sequence_length,
        seed=parameters.seed + rank,
        data_seed=parameters.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        # Of the libraries' warnings those of the first process are enough.
        log_level_replica="error",
        report_to="none",
        push_to_hub=False,
    )
    if arguments.n_gpu > 1:
        logger.info("one of %d GPUs is used; to use all of them, start with torchrun", arguments.n_gpu)
        # Else the trainer would give a whole micro batch to each (DataParallel): another effective batch.
        arguments._n_gpu = 1
    return arguments


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a machine without a GPU"
