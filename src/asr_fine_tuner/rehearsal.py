"""A whole job in little: train, evaluate, save, resume and reload in a scratch folder, on its fullest windows."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, pipeline

from asr_fine_tuner.artifact import SPLITS, ArtifactSplit, Clip, ClipWriter, write_dataset_metadata
from asr_fine_tuner.batches import BatchSizes, TrainingSteps
from asr_fine_tuner.checkpoints import checkpoint_folder
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.manifest import MANIFEST_NAME
from asr_fine_tuner.packing import Packer
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.run_folder import RunFolder
from asr_fine_tuner.tracking import NoTracker
from asr_fine_tuner.training_input import TrainingInput

logger = logging.getLogger(__name__)

_STEPS = 2  # the first allocates and warms up, the second is timed
_SCRATCH_PREFIX = ".preflight-"


@dataclass(frozen=True, slots=True)
class Pace:
    """What the rehearsal took, in seconds and bytes.

    step: an optimizer step. evaluation_batch: transcribing `eval_batch_size` clips. checkpoint: writing one.
    peak_memory: of the GPU, or of this process without one.
    micro_batch: most windows at once; fewer than `train_batch_size` where a step has fewer, or memory asks for it.
    """

    step: float
    evaluation_batch: float
    checkpoint: float
    peak_memory: int
    micro_batch: int

    def job_seconds(self, parameters: TrainParameters, clips: Mapping[str, int], steps_done: int) -> float:
        """The rest of a job after `steps_done` steps, if no early stopping ends it.

        It is a high estimate: the rehearsal has the fullest windows, as many as the fullest step, and the longest
        transcripts to evaluate.
        """

        def left(every: int) -> int:
            return math.ceil(parameters.max_steps / every) - steps_done // every

        def batches(n_clips: int) -> int:
            return math.ceil(n_clips / parameters.eval_batch_size)

        bases = parameters.evaluate_base
        while_training = min(clips["validation"], parameters.eval_subset)
        evaluated = batches(while_training) * (left(parameters.eval_steps) + (bases and steps_done == 0))
        at_the_end = clips["test"] + (clips["validation"] if clips["validation"] > while_training else 0)
        evaluated += batches(at_the_end) * (1 + bases)
        steps = parameters.max_steps - steps_done
        return steps * self.step + evaluated * self.evaluation_batch + left(parameters.save_steps) * self.checkpoint


def rehearse(
    source: TrainingInput, packer: Packer, model_folder: Path, parameters: TrainParameters, parent: Path
) -> Pace:
    """Train two steps, evaluate, save, resume after the first step, finish, and transcribe with the finished model.

    packer: of the job's clips. parent: the folder on whose volume the job will write; nothing stays in it.

    Raises:
        PermanentError: what the job itself would fail with, or there is too little memory.
        InterruptedJob: SIGTERM or SIGINT.
    """
    with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=parent, ignore_cleanup_errors=True) as scratch:
        fullest = fullest_step(source, packer, Path(scratch, "artifact"), parameters)
        in_little = parameters.model_copy(
            update={
                "max_steps": _STEPS,
                # The second step is taken with the peak learning rate.
                "warmup_steps": min(parameters.warmup_steps, _STEPS - 1),
                "train_batch_size": math.ceil(len(fullest.clips("train")) / parameters.grad_accum_steps),
                "save_steps": 1,
                "eval_steps": _STEPS,
                "logging_steps": 1,
                "packing": "on" if packer.rules.clips > 1 else "off",
                "max_train_samples": None,
                "max_eval_samples": None,
            }
        )
        run = RunFolder(Path(scratch, "run"))
        run.folder.mkdir()
        begin = functools.partial(
            FineTuning, run, fullest, model_folder, in_little, NoTracker(), clips_in_a_window=packer.rules.clips
        )
        with _memory_explained(parameters):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            pace = _train(begin)
            # As a job leaves it that was killed in its second step.
            shutil.rmtree(checkpoint_folder(run.folder, _STEPS))
            run.trained.unlink()
            _resume(begin, source.manifest.model.revision)
            _transcribe(run.model)
    return pace


def _train(begin: Callable[..., FineTuning]) -> Pace:
    watch = _Stopwatch()
    fine_tuning = begin(watching=[watch])
    fine_tuning.train()
    evaluation = fine_tuning.trainer.last_evaluation
    assert evaluation is not None  # noqa: S101 - every run is evaluated at its last step
    return Pace(
        step=watch.step,
        evaluation_batch=evaluation.seconds,
        checkpoint=watch.checkpoint,
        peak_memory=_peak_memory(),
        micro_batch=fine_tuning.parameters.train_batch_size,
    )


def _resume(begin: Callable[..., FineTuning], model_revision: str) -> None:
    _free_models()
    fine_tuning = begin()
    fine_tuning.train()
    fine_tuning.finish("rehearsal", model_revision)


def _transcribe(model_folder: Path) -> None:
    """Load the finished model as its users do, and hear a second of silence."""
    _free_models()
    recognise = pipeline("automatic-speech-recognition", str(model_folder))
    rate = recognise.feature_extractor.sampling_rate
    recognise({"raw": np.zeros(rate, np.float32), "sampling_rate": rate}, generate_kwargs={"max_new_tokens": 4})


def fullest_step(source: TrainingInput, packer: Packer, folder: Path, parameters: TrainParameters) -> TrainingInput:
    """An artifact of one optimizer step, of the clips in the job's windows with the most labels, and of the longest
    transcripts of the other splits, one batch to evaluate.

    They take the most time and memory: features fill the window, however short the audio. There are as many windows as
    in the job's step that has the most.
    """
    steps = TrainingSteps(packer, BatchSizes(parameters.clips_in_a_step, micro=1))
    by_labels = sorted(packer.first_epoch, key=packer.n_labels, reverse=True)
    of_step = [clip for window in by_labels[: max(map(len, steps))] for clip in window.clips]
    n_mels = source.manifest.model.n_mels
    for split in SPLITS:
        clips = source.clips(split)
        (folder / split).mkdir(parents=True)
        writer = ClipWriter(folder / split / "data.arrow", n_mels)
        for index in of_step if split == "train" else _longest(clips, parameters.eval_batch_size):
            labels, seconds = clips.labels(index).tolist(), float(clips.seconds[index])
            speaker = str(clips.speaker_numbers[index])  # clips of one are put together
            writer.append(Clip(clips.id(index), clips.features(index), labels, seconds, clips.text(index), speaker))
        writer.close()
    write_dataset_metadata(folder, {split: ["data.arrow"] for split in SPLITS}, n_mels, source.manifest.sha256)
    (folder / MANIFEST_NAME).write_text(source.manifest.to_json(), encoding="utf-8")
    return TrainingInput(folder, source.manifest, None, None)


def _longest(clips: ArtifactSplit, at_most: int) -> list[int]:
    """The clips with the most labels."""
    longest: list[int] = np.argsort(-clips.label_counts, kind="stable")[:at_most].tolist()
    return longest


class _Stopwatch(TrainerCallback):
    """step: seconds of the last optimizer step. checkpoint: seconds of writing the first checkpoint."""

    def __init__(self) -> None:
        self.step = 0.0
        self.checkpoint = 0.0
        self._began = 0.0

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the callback's own signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self._began = _now()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        now = _now()
        self.step = now - self._began
        self._began = now

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        if state.global_step == 1:
            self.checkpoint = _now() - self._began


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    # In kilobytes on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free_models() -> None:
    """The trainer and its model refer to one another."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _memory_explained(parameters: TrainParameters) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Without a GPU torch tells it only in words.
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise PermanentError(
            given=f"--train_batch_size {parameters.train_batch_size} --eval_batch_size {parameters.eval_batch_size}: "
            f"{str(error).splitlines()[0] if str(error) else 'out of memory'}",
            expected="memory for a micro batch and for a batch of evaluation",
            action="set --gradient_checkpointing on, --freeze_encoder true or --lora_rank 32, "
            "or lower --eval_batch_size",
        ) from error
