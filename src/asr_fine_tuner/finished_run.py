"""A run that is trained and evaluated -> its results, and the folder of the finished model."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState, WhisperFeatureExtractor, WhisperForConditionalGeneration

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.base_model import load_base_model, restore_config
from asr_fine_tuner.batches import BatchSizes
from asr_fine_tuner.checkpoint_files import ADAPTER_FOLDER, CURVES_NAME, RESULTS_NAME
from asr_fine_tuner.checkpoints import sealed, step_of
from asr_fine_tuner.curves import draw_training_curves
from asr_fine_tuner.device_plan import DevicePlan
from asr_fine_tuner.disk import bytes_below
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.lora import merged, publish_adapter
from asr_fine_tuner.manifest import Manifest
from asr_fine_tuner.metrics import score_clips
from asr_fine_tuner.model_folder import save_model, write_predictions
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.results import Source, SplitData, SplitScores, TrainingResults, write_results
from asr_fine_tuner.throughput import Throughput

_VERSIONS = ("asr-fine-tuner", "torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "jiwer")
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
    "packing",
    "single_clip_share",
    "packed_timestamps",
    "eval_subset",
    "freeze_encoder",
    "lora_rank",
    "spec_augment",
    "max_sequence_length",
    "seed",
)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What there is to tell of a run.

    best: folder of the weights that did best on validation. base_model: folder of what they were trained from.
    tuned, base: evaluations of validation and test; of the base model None where that was not asked for.
    base_while_training: on what was evaluated while training, validation or part of it.
    clips_per_window: that were trained on together, on average.
    """

    parameters: TrainParameters
    sizes: BatchSizes
    plan: DevicePlan
    optimizer: str
    artifact: Manifest
    clips: Mapping[str, ArtifactSplit]
    base_model: Path
    best: Path
    state: TrainerState
    throughput: Throughput
    tuned: Mapping[str, Evaluation]
    base: Mapping[str, Evaluation | None]
    base_while_training: Evaluation | None
    clips_per_window: float

    def results(self, model_name: str, model_revision: str) -> TrainingResults:
        """model_revision: of the base model."""
        manifest, parameters = self.artifact, self.parameters
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
            multilingual=manifest.model.multilingual,
            task=encoding.task,
            steps=self.state.global_step,
            best_step=step_of(self.best),
            epochs=self.state.epoch or 0.0,
            train_runtime=self.throughput.training_seconds,
            throughput=self.throughput,
            data={
                split: SplitData(len(clips), clips.hours, dataset.splits.get(split, split))
                for split, clips in self.clips.items()
            },
            splits={
                split: SplitScores(before.scores if (before := self.base[split]) else None, after.scores)
                for split, after in self.tuned.items()
            },
            rejected=manifest.rejected,
            hyperparameters={
                **{name: chosen[name] for name in _HYPERPARAMETERS},
                "clips_per_window": round(self.clips_per_window, 2),
                "processes": self.sizes.processes,
                "effective_batch_size": self.sizes.effective,
                "optimizer": self.optimizer,
                "device": self.plan.device,
                "precision": self.plan.precision,
                "gradient_checkpointing": self.plan.gradient_checkpointing,
            },
            versions={
                "python": platform.python_version(),
                **{package: importlib.metadata.version(package) for package in _VERSIONS},
            },
        )

    def write(self, target: Path, results: TrainingResults, labels: LabelEncoder) -> None:
        """Write the finished model's folder, but for its card.

        Raises:
            PermanentError: the disk is full.
        """
        base_test, base = self.base["test"], self.base_while_training
        clips, transcripts = self.clips["test"], self.tuned["test"].predictions
        model = self._best_model()
        restore_config(model, self.base_model)
        with sealed(target, model.get_memory_footprint() + bytes_below(self.best)) as folder:
            if self.parameters.lora_rank is not None:
                revision = results.model.revision if results.model.on_hub else None
                publish_adapter(self.best, folder / ADAPTER_FOLDER, results.model.id, revision)
            extractor = WhisperFeatureExtractor.from_pretrained(self.base_model, local_files_only=True)
            save_model(folder, model, labels.tokenizer, extractor)
            scores = score_clips(clips.ids, clips.texts, transcripts, language_code=results.text_language)
            write_predictions(folder, scores, base_test.predictions if base_test else None)
            draw_training_curves(
                self.state.log_history,
                folder / CURVES_NAME,
                leading=results.leading_metric,
                base=base.metrics("eval") if base else None,
                best_step=results.best_step,
            )
            write_results(results, folder / RESULTS_NAME)

    def _best_model(self) -> WhisperForConditionalGeneration:
        """The model with the best weights; plain Whisper, whether these or adapters were trained."""
        if self.parameters.lora_rank is not None:
            return merged(load_base_model(self.base_model, self.artifact), self.best)
        model: WhisperForConditionalGeneration = WhisperForConditionalGeneration.from_pretrained(
            self.best, local_files_only=True
        )
        return model
