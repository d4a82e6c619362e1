"""The trainer: Whisper's loss, evaluation by transcription, complete checkpoints, the best weights, stopping safely."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    WhisperForConditionalGeneration,
)

from asr_fine_tuner.attention import attend_within_clips, clip_masks
from asr_fine_tuner.batches import Batch, BatchSizes, ClipDataset, Collator, Step, StepCollator, TrainingSteps
from asr_fine_tuner.best_weights import BestWeights
from asr_fine_tuner.checkpoints import checkpoint_folder, remove_older, sealed
from asr_fine_tuner.errors import InterruptedJob, PermanentError
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.files import rename_folder
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.lora import has_adapters, load_adapters
from asr_fine_tuner.packing import Packer
from asr_fine_tuner.prefetching import prefetched
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.run_size import DiskEstimate
from asr_fine_tuner.stage_clock import Stage
from asr_fine_tuner.stopping import StopOnRequest
from asr_fine_tuner.throughput_meter import ThroughputMeter
from asr_fine_tuner.transcribing import Transcriber, token_loss
from asr_fine_tuner.windows import TrainingWindows

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"


class WhisperTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer over the artifact.

    It keeps `checkpoint-STEP` folders to resume from, and a `best-STEP` folder with the weights that had the lowest
    leading metric on what is evaluated while training.
    """

    control: TrainerControl

    def __init__(
        self,
        *,
        model: WhisperForConditionalGeneration,
        args: Seq2SeqTrainingArguments,
        windows: TrainingWindows,
        packer: Packer,
        validation: ClipDataset,
        labels: LabelEncoder,
        text_language: str,
        leading_metric: str,
        batch_sizes: BatchSizes,
        ranks: Ranks,
        early_stopping_patience: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        """packer: tells which windows there are in each epoch. validation: what is evaluated while training.
        text_language: Whisper's code of the language of the transcripts (English for translations)."""
        config = model.config
        attend_within_clips(model)
        collator = Collator(
            window_frames=windows.window_frames,
            decoder_start_token_id=config.decoder_start_token_id,
            pad_token_id=config.pad_token_id,
            mask_padding=bool(config.apply_spec_augment),
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=windows,
            eval_dataset=validation,
            data_collator=collator,
            compute_loss_func=token_loss,
            callbacks=[StopOnRequest(ranks), *(callbacks or [])],
        )
        # Without DistributedDataParallel around the model: see `Ranks.average_gradients`.
        prepare = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.accelerator.prepare_model = prepare
        self.remove_callback(PrinterCallback)
        # Else `num_items_in_batch` would travel into the model's forward, which has no use for it.
        self.model_accepts_loss_kwargs = False
        self.ranks = ranks
        self.meter = ThroughputMeter(model, args, ranks)
        self.add_callback(self.meter)
        self._clock = self.meter.clock
        self.leading_metric = leading_metric
        self._disk = DiskEstimate.of(model, transcript_bytes=0)
        self.best = BestWeights(self.run_dir, leading_metric, self._disk.kept)
        self.last_evaluation: Evaluation | None = None
        self._steps = TrainingSteps(packer, batch_sizes, ranks.rank)
        self._step_collator = StepCollator(collator, batch_sizes.micro)
        self.most_windows_at_once = 0
        # The steps of an epoch, and the same ones made ahead.
        self._ahead: tuple[Iterator[Step], Iterator[Step]] | None = None
        self._transcriber = Transcriber(
            model, args, self.accelerator, collator, labels, text_language, self.scratch, ranks
        )
        self._patience = early_stopping_patience
        self._computed_in = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
        self._saving_to: Path | None = None

    @property
    def run_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def scratch(self) -> Path:
        return self.run_dir / "scratch"

    def get_train_dataloader(self) -> DataLoader[Step]:
        """Whole optimizer steps, which is how the trainer counts and skips them; the epoch is set when it begins."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._steps,
            collate_fn=self._step_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: torch.device
    ) -> tuple[list[Step], int]:
        if self._ahead is None or self._ahead[0] is not epoch_iterator:
            self._ahead = epoch_iterator, prefetched(epoch_iterator)
        with self._clock.stage(Stage.DATA):
            return cast("tuple[list[Step], int]", super().get_batch_samples(self._ahead[1], num_batches, device))

    def _get_num_items_in_batch(self, batch_samples: list[Step], device: torch.device) -> int:  # noqa: ARG002 - the trainer's own signature
        at_once = [len(batch["labels"]) for step in batch_samples for batch in step.micro_batches]
        self.most_windows_at_once = max([self.most_windows_at_once, *at_once])
        # Of all ranks; one that could not read its clips says so here.
        return int(self.ranks.sum(sum(step.n_labels for step in batch_samples)))

    def store_flos(self) -> None:
        self.ranks.meet()  # for what it adds up
        super().store_flos()

    def floating_point_ops(self, inputs: Step) -> int:
        return self.meter.flops(inputs)

    def training_step(
        self, model: torch.nn.Module, inputs: Step, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Gradients of a whole optimizer step, over its micro batches and all ranks; returns this rank's loss."""
        self.meter.count(inputs)
        loss = torch.zeros((), device=self.args.device)
        for batch in inputs.micro_batches:
            loss += self._micro_step(model, batch, num_items_in_batch)
        self._refuse_non_finite("loss", loss)
        if not inputs.micro_batches and self.accelerator.scaler is not None:
            self.accelerator.scaler.scale(loss)  # else it does not know its device when gradients are unscaled
        with self._clock.stage(Stage.OPTIMIZER):
            self.ranks.average_gradients(model.parameters())
        return loss

    def _micro_step(
        self, model: torch.nn.Module, batch: Batch, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        given = {name: tensor for name, tensor in batch.items() if name != "clip_index"}
        with self._clock.stage(Stage.BACKWARD):  # but for what has its own stage
            return cast("torch.Tensor", super().training_step(model, given, num_items_in_batch))

    def compute_loss(self, *given: Any, **more: Any) -> Any:
        with self._clock.stage(Stage.FORWARD):
            return super().compute_loss(*given, **more)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        with self._clock.stage(Stage.OPTIMIZER):
            return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: float | torch.Tensor | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16 skips steps whose gradient overflowed and lowers its loss scale; that is no failure.
        if norm is not None and not self.args.fp16:
            self._refuse_non_finite("gradient norm", norm)
        return norm

    def _refuse_non_finite(self, what: str, value: float | torch.Tensor) -> None:
        if not math.isfinite(float(value)):
            raise PermanentError(
                given=f"{what} {float(value)} at step {self.state.global_step + 1}",
                expected="a finite value; the step was not taken, and the last checkpoint is as it was",
                action="lower --learning_rate or raise --warmup_steps, with another --output_dir, and look at the data "
                "with the longest labels",
            )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        with self._clock.stage(Stage.DATA):
            # From pinned memory, so that the processor goes on with what comes next.
            prepared = {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in inputs.items()}
            # Features travel to the device in float16, half the bytes; the model takes its own type or autocasts.
            prepared["input_features"] = prepared["input_features"].to(self.model.dtype)
            if "clip_of_label" in prepared:
                clips = prepared.pop("clip_of_label"), prepared.pop("clip_of_position")
                prepared |= clip_masks(*clips, self._computed_in)
            return prepared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.meter.settle(self.state)
        if "loss" in logs:
            logs.update(self.meter.since_last_log(self.state))
        super().log(logs, start_time)

    def assess(self, clips: ClipDataset, what: str) -> Evaluation:
        """How the weights as they are do on a split; see `Transcriber.assess`."""
        return self._transcriber.assess(clips, what)

    def evaluate(
        self,
        eval_dataset: ClipDataset | None = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 - the trainer's own signature
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score what is evaluated while training; keeps the weights when they are the best so far."""
        with self._clock.stage(Stage.EVALUATION):
            evaluation = self.assess(eval_dataset or self.eval_dataset, f"evaluate at step {self.state.global_step}")
        self.last_evaluation = evaluation
        metrics = evaluation.metrics(metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        step, save = self.state.global_step, self.model.save_pretrained
        with self._clock.stage(Stage.SAVING):
            self.ranks.from_first(lambda: self.best.offer(step, evaluation, save))
        if self._out_of_patience(self.state):
            logger.info("no better evaluation in %d: training stops early", self._patience)
            self.control.should_training_stop = True
        return metrics

    def is_done(self, state: TrainerState) -> bool:
        """Whether `state` is that of the last step, be it by count or by early stopping."""
        return bool(state.global_step >= self.args.max_steps) or self._out_of_patience(state)

    def evaluation_is_missing(self, state: TrainerState) -> bool:
        """Whether the evaluation that was due at the step of `state` was interrupted."""
        due = state.global_step % self.args.eval_steps == 0 or state.global_step >= self.args.max_steps
        return due and not any(
            entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history
        )

    def _out_of_patience(self, state: TrainerState) -> bool:
        name = f"eval_{self.leading_metric}"
        rates = [entry[name] for entry in state.log_history if name in entry]
        since_best = len(rates) - 1 - rates.index(min(rates)) if rates else 0
        return self._patience is not None and since_best >= self._patience

    def _run_epoch(self, **arguments: Any) -> None:
        # The evaluation that a resumed run makes up for can be the one that ends it.
        if not self.control.should_training_stop:
            self._steps.set_epoch(arguments["epoch"])
            with self._clock.stage(Stage.OTHER):  # but for what has its own stage
                super()._run_epoch(**arguments)

    def load_weights(self, folder: Path) -> None:
        """Take the weights in `folder`, which only the first rank has to see."""
        if self.ranks.first and has_adapters(self.model):
            load_adapters(self.model, folder)
        elif self.ranks.first:
            load_model(self.model, folder / _WEIGHTS)
        self.ranks.copy_from_first(self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        # The trainer of transformers saves adapters, but reads them back only into a PeftModel.
        if has_adapters(self.model):
            load_adapters(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _get_output_dir(self, trial: object) -> str:
        return str(self._saving_to) if self._saving_to else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Write the trainer's own checkpoint to a staging folder; it appears under its name when it is whole."""
        self.meter.settle(self.state)
        with self._clock.stage(Stage.SAVING), self.ranks.together():
            if not self.ranks.first:
                super()._save_checkpoint(model, trial)  # where the others tell what only they know
                return
            target = checkpoint_folder(self.run_dir, self.state.global_step)
            with sealed(target, self._disk.checkpoint) as staging:
                self._saving_to = staging.with_name(f"{staging.name}.parent")
                try:
                    super()._save_checkpoint(model, trial)
                    rename_folder(self._saving_to / target.name, staging)
                finally:
                    shutil.rmtree(self._saving_to, ignore_errors=True)
                    self._saving_to = None
            remove_older(self.run_dir, self.state.global_step)

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the state of chance of every rank, which is a file for each."""
        with tempfile.TemporaryDirectory() as own:
            super()._save_rng_state(own)
            states = self.ranks.gather({path.name: path.read_bytes() for path in Path(own).iterdir()})
        if self.ranks.first:
            for name, state in ((name, state) for of_rank in states for name, state in of_rank.items()):
                Path(output_dir, name).write_bytes(state)

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: torch.nn.Module, *rest: Any, **more: Any
    ) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *rest, **more)
        except InterruptedJob:
            self._save_checkpoint(model, trial=None)
            raise
