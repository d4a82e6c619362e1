"""Parameters of the train job -> arguments of the trainer."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments

from asr_fine_tuner.device_plan import DevicePlan
from asr_fine_tuner.parameters import TrainParameters

logger = logging.getLogger(__name__)

# Adapters learn best at about ten times the rate of the weights they stand for, which is 1e-5 for Whisper: Biderman et
# al. 2024, arXiv 2405.09673.
_LEAST_USUAL_RATE_OF_ADAPTERS = 1e-4


def training_arguments(
    parameters: TrainParameters, output_dir: Path, plan: DevicePlan, rank: int = 0
) -> Seq2SeqTrainingArguments:
    """Arguments of the trainer. Tokens never enter them: checkpoints keep a copy.

    rank: what is drawn by chance is drawn anew by each rank, except the order of the clips.
    """
    if parameters.lr_scheduler != "constant" and parameters.warmup_steps >= parameters.max_steps:
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
