"""One run in its folder: evaluate the base model, train, evaluate the best weights, write the finished model."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerState

from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.base_model import load_base_model, set_spec_augment
from asr_fine_tuner.checkpoints import SEAL_NAME, refuse_unseen, step_of
from asr_fine_tuner.compilation import check_can_compile, compile_encoder
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.features import FRAMES_PER_POSITION
from asr_fine_tuner.finished_run import FinishedRun
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.launch import Launch
from asr_fine_tuner.lora import NoGradientOfTheInput, add_adapters, has_adapters, without_adapters
from asr_fine_tuner.metrics import leading_metric
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.reporting import ReportingCallback, log_rates, sample_predictions
from asr_fine_tuner.reproducible import reproducible_on_cpu
from asr_fine_tuner.results import TrainingResults
from asr_fine_tuner.run_evaluations import RunEvaluations
from asr_fine_tuner.run_folder import RunFolder
from asr_fine_tuner.step_division import StepDivision
from asr_fine_tuner.stop import raise_if_stopped
from asr_fine_tuner.tracking import Tracker
from asr_fine_tuner.trainer import WhisperTrainer
from asr_fine_tuner.training_arguments import training_arguments
from asr_fine_tuner.training_input import TrainingInput
from asr_fine_tuner.windows import TrainingWindows, plan_windows

logger = logging.getLogger(__name__)

_ALONE = Ranks(Launch())


class FineTuning:
    """The base model with everything it is trained and judged by.

    Of several ranks each one has a `FineTuning`, and all do the same with it; only the first reads and writes the run's
    folder, but for the checkpoint that a run continues from.
    """

    def __init__(
        self,
        run: RunFolder,
        source: TrainingInput,
        model_folder: Path,
        parameters: TrainParameters,
        tracker: Tracker,
        ranks: Ranks = _ALONE,
        effective_batch: int | None = None,
        clips_in_a_window: int | None = None,
        watching: Sequence[TrainerCallback] = (),
    ) -> None:
        """effective_batch: clips of an optimizer step over all ranks; what the parameters make of it when not given.
        clips_in_a_window: at most; see `plan_windows`.
        watching: told what the trainer does, whichever trainer it is after memory ran out.
        """
        if parameters.compile:
            check_can_compile()
        encoding = source.manifest.encoding
        self.run, self.source, self.tracker, self.ranks = run, source, tracker, ranks
        self.model_folder = model_folder
        self._watching = watching
        self.labels = LabelEncoder.from_folder(model_folder, encoding.language_token, encoding.task)
        # Whisper translates into English.
        self.text_language = "en" if encoding.task == "translate" else encoding.language_token
        self.clips = {split: source.clips(split) for split in SPLITS}
        self._evaluations = RunEvaluations(run, self.clips, parameters, ranks)
        source.refuse_replaced()
        effective_batch = effective_batch or parameters.clips_in_a_step * ranks.size
        self.packer = plan_windows(
            self.clips["train"], self.labels, source.manifest.model, parameters, effective_batch, clips_in_a_window
        )
        self._division = StepDivision(
            parameters,
            effective_batch,
            self.packer,
            ranks,
            fitted=ranks.from_first(run.fitted),
        )
        self.trainer = self._build_trainer()

    @property
    def parameters(self) -> TrainParameters:
        """Those of this run, with what memory made of them."""
        return self._division.parameters

    def _build_trainer(self) -> WhisperTrainer:
        """A trainer of the untouched base model."""
        parameters = self.parameters
        model = load_base_model(self.model_folder, self.source.manifest)
        if parameters.freeze_encoder:
            model.freeze_encoder()
        if parameters.lora_rank is not None:
            add_adapters(model, parameters)
        set_spec_augment(model, on=parameters.spec_augment)
        if parameters.compile:
            compile_encoder(model)
        self._division.plan(model)
        parameters = self.parameters
        return WhisperTrainer(
            model=model,
            args=training_arguments(parameters, self.run.folder, self._division.device, self.ranks.rank),
            windows=TrainingWindows(
                self.clips["train"],
                self.labels,
                self.packer.lengths.positions,
                FRAMES_PER_POSITION * model.config.max_source_positions,
            ),
            packer=self.packer,
            validation=self._evaluations.clips(self._evaluations.while_training),
            labels=self.labels,
            text_language=self.text_language,
            leading_metric=leading_metric(self.text_language),
            batch_sizes=self._division.sizes,
            ranks=self.ranks,
            early_stopping_patience=parameters.early_stopping_patience,
            callbacks=[
                ReportingCallback(self.tracker),
                *([NoGradientOfTheInput()] if has_adapters(model) else []),
                *self._watching,
            ],
        )

    @reproducible_on_cpu()
    def train(self) -> None:
        """Train to the end, from the newest complete checkpoint when there is one.

        Raises:
            InterruptedJob: SIGTERM or SIGINT; a checkpoint was written.
        """
        run, ranks = self.run, self.ranks
        if state := ranks.from_first(lambda: _state_in(run.trained) if run.trained.is_file() else None):
            self.trainer.state = state
            return
        base = self._base_on(self._evaluations.while_training)
        if base is not None:
            log_rates(f"base model on {self._evaluations.while_training}", base.metrics("eval"), "eval_")
            self.tracker.log({f"eval/{k.removeprefix('eval_')}": v for k, v in base.metrics("eval").items()}, 0)
        if ranks.size > 1:
            told = self._division.sizes
            logger.info(
                "%d clips to a step, by %d processes in micro batches of up to %d windows",
                *(told.effective, told.processes, told.micro),
            )
        while not self._fits_memory(self._train_or_continue):
            self._divide_further()
        trainer = self.trainer
        if not trainer.is_done(trainer.state) or trainer.evaluation_is_missing(trainer.state):
            with ranks.together():
                raise_if_stopped(f"step {trainer.state.global_step} is saved")
        ranks.from_first(lambda: run.keep_state(trainer.state))

    def _fits_memory(self, work: Callable[[], None]) -> bool:
        """Whether all ranks got through `work`. What it held is only free once the error, with its frames, is gone."""
        try:
            with self.ranks.together():
                work()
        except torch.OutOfMemoryError as error:
            logger.warning("%s", str(error).splitlines()[0])
            return False
        return True

    def _divide_further(self) -> None:
        fitted = self._division.divide_further(self.trainer.most_windows_at_once)
        self.ranks.from_first(lambda: self.run.keep_fitted(fitted))
        del self.trainer
        gc.collect()
        torch.cuda.empty_cache()
        self.trainer = self._build_trainer()

    def _train_or_continue(self) -> None:
        checkpoint = self.ranks.from_first(self.run.checkpoint)
        if checkpoint is None:
            self.trainer.train()
            return
        checkpoint = self.run.folder / checkpoint.name
        seal = self.ranks.from_first((checkpoint / SEAL_NAME).read_bytes)
        with self.ranks.together():
            refuse_unseen(checkpoint, seal)
        self._continue(checkpoint)

    def _continue(self, checkpoint: Path) -> None:
        logger.info("continuing from step %d of %d", step_of(checkpoint), self.parameters.max_steps)
        trainer = self.trainer
        state = _state_in(checkpoint / "trainer_state.json")
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
        trainer, evaluations = self.trainer, self._evaluations
        best, on_validation = self.ranks.from_first(self._best)
        trainer.load_weights(best)
        if evaluations.while_training != "validation":
            on_validation = self._tuned_on("validation")
        tuned = self._tuned_on("test")
        log_rates("tuned model on test", tuned.metrics("test"), "test_")
        base = {split: self._base_on(split) for split in ("validation", "test")}
        base_while_training = self._base_on(evaluations.while_training)
        finished = FinishedRun(
            parameters=self.parameters,
            sizes=self._division.sizes,
            plan=self._division.device,
            optimizer=str(trainer.args.optim.value),
            artifact=self.source.manifest,
            clips=self.clips,
            base_model=self.model_folder,
            best=best,
            state=trainer.state,
            throughput=trainer.meter.throughput(trainer.state, evaluations.seconds),
            tuned={"validation": on_validation, "test": tuned},
            base=base,
            base_while_training=base_while_training,
            clips_per_window=len(self.packer) / len(self.packer.first_epoch),
        )
        results = finished.results(model_name, model_revision)
        self.ranks.from_first(lambda: self._write(finished, results))
        return results

    def _write(self, finished: FinishedRun, results: TrainingResults) -> None:
        finished.write(self.run.model, results, self.labels)
        tuned, base = finished.tuned["test"], finished.base["test"]
        samples = sample_predictions(self.clips["test"], tuned, base, self.text_language)
        self.tracker.log_predictions(self.trainer.state.global_step, samples)
        shutil.rmtree(self.trainer.scratch, ignore_errors=True)

    def _best(self) -> tuple[Path, Evaluation]:
        best = self.trainer.best.verified()
        if best is None:
            raise PermanentError(
                given=f"{self.run.folder}: training is done, and no folder best-STEP is complete",
                expected="the weights that did best on validation",
                action="restore them from a copy, or move the folder away to train anew",
            )
        return best

    def _tuned_on(self, what: str) -> Evaluation:
        """How the weights do that the trainer has by now."""
        clips = self._evaluations.clips(what)
        return self._evaluations.kept(f"tuned-{what}", lambda: self.trainer.assess(clips, f"{what}, tuned model"))

    def _base_on(self, what: str) -> Evaluation | None:
        """How the untouched model does; None when that was not asked for."""
        if not self.parameters.evaluate_base:
            return None

        def assess() -> Evaluation:
            model = self.trainer.model
            with contextlib.ExitStack() as meanwhile:
                if has_adapters(model):
                    meanwhile.enter_context(without_adapters(model))
                else:
                    model.load_state_dict(load_base_model(self.model_folder, self.source.manifest).state_dict())
                return self.trainer.assess(self._evaluations.clips(what), f"{what}, base model")

        return self._evaluations.kept(f"base-{what}", assess)


def _state_in(path: Path) -> TrainerState:
    state: TrainerState = TrainerState.load_from_json(str(path))
    return state
