"""How the clips of an optimizer step are divided into micro batches that fit the memory of every process."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from transformers import WhisperForConditionalGeneration

from asr_fine_tuner.batches import BatchSizes, steps_in_epoch
from asr_fine_tuner.device_plan import BUSY, DevicePlan, common_plan, plan_device
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.memory import free_memory
from asr_fine_tuner.packing import Packer
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.run_folder import FittedBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What there is to do in an optimizer step. windows: on average, over all processes. labels: of the fullest one."""

    windows: float
    labels: int

    @classmethod
    def of(cls, packer: Packer, effective_batch: int) -> StepLoad:
        return cls(len(packer.first_epoch) / steps_in_epoch(len(packer), effective_batch), packer.most_labels)

    def at_once(self, parameters: TrainParameters, processes: int = 1) -> TrainParameters:
        """With a `train_batch_size` of about the windows of a step: it would not pay to keep room for more, or to
        checkpoint for them."""
        windows = min(parameters.train_batch_size, math.ceil(self.windows / processes) + 1)
        return parameters.model_copy(update={"train_batch_size": windows})


class StepDivision:
    """Divides the windows of a step among processes, and those of a process into micro batches, as memory allows.

    Each step has the same clips, and teaches the same, however they are divided.

    parameters: those given, with the `train_batch_size`, `grad_accum_steps` and `gradient_checkpointing` that are
    decided. device, sizes: of the last `plan`.
    """

    device: DevicePlan
    sizes: BatchSizes

    def __init__(
        self,
        parameters: TrainParameters,
        effective_batch: int,
        packer: Packer,
        ranks: Ranks,
        *,
        fitted: FittedBatch | None,
    ) -> None:
        """fitted: what fitted when memory had run out."""
        self.parameters = parameters
        self._effective_batch, self._ranks = effective_batch, ranks
        self._load = StepLoad.of(packer, effective_batch)
        self._take(fitted or FittedBatch(parameters.train_batch_size, gradient_checkpointing=False))
        if ranks.size > 1 and self._load.windows < 2 * ranks.size:
            logger.warning(
                "a step has about %.1f windows, which do not keep %d processes busy: raise --train_batch_size",
                self._load.windows,
                ranks.size,
            )

    def _take(self, fitted: FittedBatch) -> None:
        share = math.ceil(self._effective_batch / self._ranks.size)
        update: dict[str, object] = {"train_batch_size": min(share, fitted.train_batch_size)}
        if fitted.gradient_checkpointing:
            update["gradient_checkpointing"] = "on"
        self.parameters = self.parameters.model_copy(update=update)

    def plan(self, model: WhisperForConditionalGeneration) -> None:
        """Decide what all processes do to train `model` within the memory that is free.

        Raises:
            PermanentError: the device cannot compute in the precision asked for.
        """
        free, _ = free_memory()
        if not torch.cuda.is_available():
            free //= self._ranks.on_this_node
        asked = self._load.at_once(self.parameters, self._ranks.size)
        own = plan_device(asked, model, free, self._load.labels)
        self.device = common_plan(self._ranks.gather(own))
        self.sizes = BatchSizes(self._effective_batch, self.device.micro_batch, self._ranks.size)
        told = self.sizes
        if told.micro == asked.train_batch_size:  # memory asked for no smaller ones
            told = replace(told, micro=self.parameters.train_batch_size)
        divided = {"train_batch_size": told.micro, "grad_accum_steps": told.accumulated}
        self.parameters = self.parameters.model_copy(update=divided)

    def divide_further(self, most_windows_at_once: int) -> FittedBatch:
        """Spare memory that ran out: smaller micro batches, and more of them to a step; gradient checkpointing, where
        that was left to us, before the device has too little to do.

        most_windows_at_once: of a micro batch of this process that was tried; 0 where already the optimizer's state
        found no room.

        Raises:
            PermanentError: a micro batch is one window already.
        """
        micro_batch = min(self.sizes.micro, max(self._ranks.gather(most_windows_at_once)) or self.sizes.micro)
        checkpointing = self.device.gradient_checkpointing
        if not checkpointing and self.parameters.gradient_checkpointing == "auto" and micro_batch <= BUSY:
            checkpointing = True
            logger.warning("out of memory: gradient checkpointing is on from here on")
        elif micro_batch == 1:
            raise PermanentError(
                given=f"training is out of memory on {self.device.device} with one window in a micro batch",
                expected="a device that holds the model, its gradients and Adam's two moments",
                action=f"try {'' if checkpointing else '--gradient_checkpointing on, or '}in another --output_dir "
                "--freeze_encoder true, --lora_rank 32 or a smaller model",
            )
        else:
            micro_batch = math.ceil(micro_batch / 2)
            logger.warning("out of memory: %d windows in a micro batch from here on, and more of them", micro_batch)
        fitted = FittedBatch(micro_batch, checkpointing)
        self._take(fitted)
        return fitted
