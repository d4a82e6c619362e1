"""How much memory training and evaluation take on this device, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_fine_tuner.device_plan import LONGEST_TYPICAL_LABELS, DevicePlan, plan_device, training_footprint
from asr_fine_tuner.disk import readable_size
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.lora import add_adapters
from asr_fine_tuner.parameters import TrainParameters

# What a container may use, and what it does use: control groups version 2, then version 1.
_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
# Widths of the tensors that one encoder layer holds at once without gradients, in units of the hidden size: the
# residual stream, its norm, queries, keys, values, and the feed-forward layer of four times that before and after its
# non-linearity.
_ENCODER_WIDTHS = 12


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Estimated bytes, and the bytes that are free for them. where: what memory that is."""

    device: DevicePlan
    training: float
    evaluation: float
    free: int
    where: str

    def __str__(self) -> str:
        return (
            f"about {readable_size(self.training)} to train and {readable_size(self.evaluation)} to evaluate, "
            f"{readable_size(self.free)} of {self.where} free; {self.device.precision}, up to "
            f"{self.device.micro_batch} windows at once, gradient checkpointing "
            f"{'on' if self.device.gradient_checkpointing else 'off'}"
        )


def outline(model_folder: Path, parameters: TrainParameters) -> WhisperForConditionalGeneration:
    """The model of a configuration without its weights: shapes, and which of them are trained."""
    config = WhisperConfig.from_pretrained(model_folder, local_files_only=True)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    if parameters.freeze_encoder:
        model.freeze_encoder()
    if parameters.lora_rank is not None:
        add_adapters(model, parameters)
    return model


def plan_memory(
    parameters: TrainParameters, model: WhisperForConditionalGeneration, n_labels: int = LONGEST_TYPICAL_LABELS
) -> MemoryPlan:
    """
    n_labels: of the window with the most.

    Raises:
        PermanentError: the device cannot compute in the precision asked for, or has not enough free memory: on a GPU
            for evaluating one clip, since there the job makes its batches smaller; else for a batch, since the job is
            killed.
    """
    free, where = free_memory()
    device = plan_device(parameters, model, free, n_labels)

    def plan(train_batch: int, eval_batch: int) -> MemoryPlan:
        training = training_footprint(model, replace(device, micro_batch=train_batch), n_labels)
        evaluation = evaluation_bytes(model, eval_batch, parameters.max_sequence_length, device.precision)
        return MemoryPlan(device, training, evaluation, free, where)

    whole = plan(device.micro_batch, parameters.eval_batch_size)
    if (plan(1, 1) if torch.cuda.is_available() else whole).evaluation > free:
        raise PermanentError(
            given=f"--eval_batch_size {parameters.eval_batch_size}: {whole}",
            expected="memory for a batch of evaluation",
            action="lower --eval_batch_size, choose a smaller model, or give it more memory",
        )
    if plan(1, 1).training > free:
        checkpointing = "" if device.gradient_checkpointing else "--gradient_checkpointing on, "
        raise PermanentError(
            given=f"training on one window at a time: {plan(1, 1)}",
            expected="memory for it",
            action=f"{checkpointing}--freeze_encoder true, --lora_rank 16, a smaller model, or more memory",
        )
    return whole


def evaluation_bytes(model: WhisperForConditionalGeneration, batch: int, max_new_tokens: int, precision: str) -> float:
    """Estimated bytes of evaluating a batch between two training steps: the gradients are gone, the moments stay."""
    config = model.config
    weights = sum(weight.numel() for weight in model.parameters())
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    width = 4 if precision == "fp32" else 2
    # Autocast keeps a copy of the weights in 16 bit.
    state = 4 * weights + 8 * trainable + (width * weights if width == 2 else 0)
    encoder = _ENCODER_WIDTHS * config.d_model * config.max_source_positions
    # Keys and values of each decoder layer, over the encoder's positions and over what was generated.
    cache = config.decoder_layers * 2 * config.d_model * (config.max_source_positions + max_new_tokens)
    logits = 3 * 4 * config.vocab_size * max_new_tokens
    return float(state + batch * (width * (encoder + cache) + logits))


def free_memory() -> tuple[int, str]:
    """Free bytes of what training computes in: the GPU's memory, else the machine's or the container's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    free, limit = psutil.virtual_memory().available, container_free(Path("/sys/fs/cgroup"))
    return (free, "this machine") if limit is None or limit >= free else (limit, "this container")


def container_free(control_groups: Path) -> int | None:
    """Bytes that the container may still use; None where it has no limit. The file cache can be given up."""
    for limit_name, usage_name, statistics_name, cache_name in _CONTROL_GROUPS:
        try:
            limit = (control_groups / limit_name).read_text().strip()
            usage = int((control_groups / usage_name).read_text())
            statistics = dict(line.split() for line in (control_groups / statistics_name).read_text().splitlines())
        except FileNotFoundError:
            continue
        return None if limit == "max" else int(limit) - usage + int(statistics[cache_name])
    return None
