"""One run in its folder: evaluate the base model, train, evaluate the best weights, write the finished model."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    TrainerCallback,
    TrainerState,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.batches import ClipDataset
from asr_fine_tuner.checkpoints import sealed, step_of
from asr_fine_tuner.curves import draw_training_curves
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.labels import LabelEncoder, is_multilingual
from asr_fine_tuner.metrics import leading_metric, score_clips
from asr_fine_tuner.model_folder import CURVES_NAME, RESULTS_NAME, save_model, write_predictions
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.reporting import ReportingCallback, log_rates, sample_predictions
from asr_fine_tuner.results import Source, SplitData, SplitScores, TrainingResults, write_results
from asr_fine_tuner.run_folder import FittedBatch, RunFolder
from asr_fine_tuner.stop import raise_if_stopped
from asr_fine_tuner.tracking import Tracker
from asr_fine_tuner.trainer import WhisperTrainer, train_seconds
from asr_fine_tuner.training_arguments import DevicePlan, plan_device, training_arguments
from asr_fine_tuner.training_input import TrainingInput

logger = logging.getLogger(__name__)

_VERSIONS = ("asr-fine-tuner", "torch", "transformers", "datasets", "accelerate", "evaluate", "jiwer")
# Shown in the model card. Where and what to publish, and where files lie, is nobody else's business.
_HYPERPARAMETERS = (
    "max_steps",
    "learning_rate",
    "lr_scheduler",
    "warmup_steps",
    "train_batch_size",
    "grad_accum_steps",
    "eval_steps",
    "early_stopping_patience",
    "freeze_encoder",
    "spec_augment",
    "max_sequence_length",
    "seed",
)
# SpecAugment over real frames: each frame begins a mask of 10 frames (0.1 s) with a chance such that about 5 % of the
# time is masked, and likewise for mel bins. The first pair is Whisper's own default in transformers.
_MASKED_TIME, _MASKED_MELS, _MASK_LENGTH = 0.05, 0.05, 10


class FineTuning:
    """The base model with everything it is trained and judged by."""

    def __init__(
        self,
        run: RunFolder,
        source: TrainingInput,
        model_folder: Path,
        parameters: TrainParameters,
        tracker: Tracker,
        watching: Sequence[TrainerCallback] = (),
    ) -> None:
        """watching: told what the trainer does, whichever trainer it is after memory ran out."""
        encoding = source.manifest.encoding
        self.run, self.source, self.tracker = run, source, tracker
        self.parameters = _fitted(parameters, run.fitted())
        self.model_folder = model_folder
        self._watching = watching
        self.labels = LabelEncoder.from_folder(model_folder, encoding.language_token, encoding.task)
        # Whisper translates into English.
        self.text_language = "en" if encoding.task == "translate" else encoding.language_token
        self.clips = {split: source.clips(split) for split in SPLITS}
        source.refuse_replaced()
        self.trainer = self._build_trainer()

    def _build_trainer(self) -> WhisperTrainer:
        """A trainer of the untouched base model."""
        parameters = self.parameters
        model = self._load_base()
        if parameters.freeze_encoder:
            model.freeze_encoder()
        # A base model that was itself trained with SpecAugment has it on.
        model.config.apply_spec_augment = parameters.spec_augment
        if parameters.spec_augment:
            model.config.update(
                {
                    "mask_time_prob": _MASKED_TIME,
                    "mask_time_length": _MASK_LENGTH,
                    "mask_feature_prob": _MASKED_MELS,
                    "mask_feature_length": _MASK_LENGTH,
                }
            )
        self.plan: DevicePlan = plan_device(parameters, model)
        return WhisperTrainer(
            model=model,
            args=training_arguments(parameters, self.run.folder, self.plan),
            train_clips=self.clips["train"],
            validation_clips=self.clips["validation"],
            labels=self.labels,
            text_language=self.text_language,
            leading_metric=leading_metric(self.text_language),
            early_stopping_patience=parameters.early_stopping_patience,
            callbacks=[ReportingCallback(self.tracker), *self._watching],
        )

    def train(self) -> None:
        """Train to the end, from the newest complete checkpoint when there is one.

        Raises:
            InterruptedJob: SIGTERM or SIGINT; a checkpoint was written.
        """
        run = self.run
        if run.trained.is_file():
            self.trainer.state = TrainerState.load_from_json(str(run.trained))
            return
        base = self._base_on("validation")
        if base is not None:
            log_rates("base model on validation", base.metrics("eval"), "eval_")
            self.tracker.log({f"eval/{k.removeprefix('eval_')}": v for k, v in base.metrics("eval").items()}, 0)
        while not self._fits_memory(self._train_or_continue):
            self._use_less_memory()
        raise_if_stopped(f"step {self.trainer.state.global_step} is saved")
        run.keep_state(self.trainer.state)

    @staticmethod
    def _fits_memory(work: Callable[[], None]) -> bool:
        """Whether `work` got through. What it held is only free once the error, with its frames, is gone."""
        try:
            work()
        except torch.OutOfMemoryError as error:
            logger.warning("%s", str(error).splitlines()[0])
            return False
        return True

    def _use_less_memory(self) -> None:
        """Gradient checkpointing where that was left to us; then smaller micro batches, and more of them to a step.

        The effective batch, and what is learned, stay the same.

        Raises:
            PermanentError: a micro batch is one clip already.
        """
        parameters = self.parameters
        micro_batch, accumulated = parameters.train_batch_size, parameters.grad_accum_steps
        if not self.plan.gradient_checkpointing and parameters.gradient_checkpointing == "auto":
            logger.warning("out of memory: gradient checkpointing is on from here on")
        elif micro_batch == 1:
            raise PermanentError(
                given=f"training is out of memory on {self.plan.device} with one clip in a micro batch",
                expected="a device that holds the model, its gradients and Adam's two moments",
                action="try --gradient_checkpointing on or --freeze_encoder true, a smaller model or a larger device",
            )
        else:
            smaller = max(divisor for divisor in range(1, micro_batch) if micro_batch % divisor == 0)
            micro_batch, accumulated = smaller, accumulated * (micro_batch // smaller)
            logger.warning(
                "out of memory: %d clips in a micro batch and %d to a step from here on", smaller, accumulated
            )
        checkpointing = self.plan.gradient_checkpointing or parameters.gradient_checkpointing == "auto"
        fitted = FittedBatch(micro_batch, accumulated, checkpointing)
        self.run.keep_fitted(fitted)
        self.parameters = _fitted(parameters, fitted)
        del self.trainer
        gc.collect()
        torch.cuda.empty_cache()
        self.trainer = self._build_trainer()

    def _train_or_continue(self) -> None:
        checkpoint = self.run.checkpoint()
        if checkpoint is not None:
            self._continue(checkpoint)
            return
        self.trainer.train()

    def _continue(self, checkpoint: Path) -> None:
        logger.info("continuing from step %d of %d", step_of(checkpoint), self.parameters.max_steps)
        trainer = self.trainer
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if not trainer.is_done(state):
            trainer.args.eval_on_start = trainer.evaluation_is_missing(state)
            trainer.train(resume_from_checkpoint=str(checkpoint))
            return
        # The trainer's loop would take one more step.
        trainer.state = state
        trainer.load_weights(checkpoint)
        if trainer.evaluation_is_missing(state):
            trainer.evaluate()

    def finish(self, model_name: str, model_revision: str) -> TrainingResults:
        """Evaluate best and base on the test split, and write the finished model's folder.

        Raises:
            InterruptedJob: SIGTERM or SIGINT; the evaluations that were finished are kept.
            PermanentError: the best weights are gone or damaged.
        """
        trainer, run = self.trainer, self.run
        best = trainer.best.verified()
        if best is None:
            raise PermanentError(
                given=f"{run.folder}: training is done, and no folder best-STEP is complete",
                expected="the weights that did best on validation",
                action="restore them from a copy, or move the folder away to train anew",
            )
        best_folder, best_on_validation = best
        trainer.load_weights(best_folder)
        tuned = run.remembered("tuned-test", lambda: trainer.assess(self._ordered("test"), "test, tuned model"))
        log_rates("tuned model on test", tuned.metrics("test"), "test_")
        base = {split: self._base_on(split) for split in ("validation", "test")}
        results = self._results(
            model_name,
            model_revision,
            best_step=step_of(best_folder),
            tuned={"validation": best_on_validation, "test": tuned},
            base=base,
        )
        clips = self.clips["test"]
        with sealed(run.model) as folder:
            model = WhisperForConditionalGeneration.from_pretrained(best_folder, local_files_only=True)
            # Masking is for training only; whoever trains further decides anew.
            base_config = WhisperConfig.from_pretrained(self.model_folder, local_files_only=True)
            model.config.update(_spec_augment_of(base_config))
            extractor = WhisperFeatureExtractor.from_pretrained(self.model_folder, local_files_only=True)
            save_model(folder, model, self.labels.tokenizer, extractor)
            scores = score_clips(clips.ids, clips.texts, tuned.predictions, language_code=self.text_language)
            write_predictions(folder, scores, base["test"].predictions if base["test"] else None)
            validation = base["validation"]
            draw_training_curves(
                trainer.state.log_history,
                folder / CURVES_NAME,
                leading=trainer.leading_metric,
                base=validation.scores.rates() if validation else None,
                best_step=results.best_step,
            )
            write_results(results, folder / RESULTS_NAME)
        samples = sample_predictions(clips, tuned, base["test"], self.text_language)
        self.tracker.log_predictions(trainer.state.global_step, samples)
        shutil.rmtree(trainer.scratch, ignore_errors=True)
        return results

    def _ordered(self, split: str) -> ClipDataset:
        return ClipDataset(self.clips[split], longest_first=True)

    def _load_base(self) -> WhisperForConditionalGeneration:
        try:
            model = WhisperForConditionalGeneration.from_pretrained(
                self.model_folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except SafetensorError as error:
            raise PermanentError(
                given=f"the weights in {self.model_folder} cannot be read ({error})",
                expected="whole safetensors files",
                action="download the checkpoint again, or choose another --model_id",
            ) from error
        encoding = self.source.manifest.encoding
        model.config.forced_decoder_ids = model.generation_config.forced_decoder_ids = None
        if is_multilingual(self.model_folder):
            model.generation_config.language = encoding.language_token
            model.generation_config.task = encoding.task
        return model

    def _base_on(self, split: str) -> Evaluation | None:
        """How the untouched model does on a split; None when that was not asked for."""
        if not self.parameters.evaluate_base:
            return None

        def assess() -> Evaluation:
            self.trainer.model.load_state_dict(self._load_base().state_dict())
            return self.trainer.assess(self._ordered(split), f"{split}, base model")

        return self.run.remembered(f"base-{split}", assess)

    def _results(
        self,
        model_name: str,
        model_revision: str,
        best_step: int,
        tuned: dict[str, Evaluation],
        base: dict[str, Evaluation | None],
    ) -> TrainingResults:
        manifest, parameters, state = self.source.manifest, self.parameters, self.trainer.state
        encoding, dataset = manifest.encoding, manifest.dataset
        chosen = parameters.model_dump(include=set(_HYPERPARAMETERS))
        return TrainingResults(
            model_name=model_name,
            model=Source.of(parameters.model_id, revision=model_revision),
            dataset=Source(dataset.id, dataset.on_hub, dataset.revision, dataset.config),
            artifact_sha256=manifest.sha256,
            language_code=encoding.language_code,
            language=encoding.language,
            language_token=encoding.language_token,
            multilingual=is_multilingual(self.model_folder),
            task=encoding.task,
            steps=state.global_step,
            best_step=best_step,
            epochs=state.epoch or 0.0,
            train_runtime=train_seconds(state),
            data={
                split: SplitData(len(clips), clips.hours, dataset.splits.get(split, split))
                for split, clips in self.clips.items()
            },
            splits={
                split: SplitScores(before.scores if (before := base[split]) else None, after.scores)
                for split, after in tuned.items()
            },
            rejected=manifest.rejected,
            hyperparameters={
                **{name: chosen[name] for name in _HYPERPARAMETERS},
                "effective_batch_size": parameters.train_batch_size * parameters.grad_accum_steps,
                "optimizer": str(self.trainer.args.optim.value),
                **asdict(self.plan),
            },
            versions={
                "python": platform.python_version(),
                **{package: importlib.metadata.version(package) for package in _VERSIONS},
            },
        )


def _fitted(parameters: TrainParameters, fitted: FittedBatch | None) -> TrainParameters:
    if fitted is None:
        return parameters
    return parameters.model_copy(
        update={
            "train_batch_size": fitted.train_batch_size,
            "grad_accum_steps": fitted.grad_accum_steps,
            "gradient_checkpointing": "on" if fitted.gradient_checkpointing else "off",
        }
    )


def _spec_augment_of(config: object) -> dict[str, object]:
    names = ("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length")
    return {name: getattr(config, name) for name in names}
