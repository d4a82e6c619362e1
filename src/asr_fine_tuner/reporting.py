"""What the trainer tells while it runs: lines in the log, numbers and sample transcripts to the tracker."""

from __future__ import annotations

import logging
import time
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainerCallback, TrainerControl, TrainerState

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.metrics import score_clips
from asr_fine_tuner.results import percent
from asr_fine_tuner.tracking import SamplePrediction, Tracker

logger = logging.getLogger(__name__)

SAMPLED_CLIPS = 10


class ReportingCallback(TrainerCallback):
    """Passes on what the trainer logs."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._began: tuple[int, float] | None = None

    def on_train_begin(
        self,
        args: Seq2SeqTrainingArguments,  # noqa: ARG002 - the callback's own signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self._began = (state.global_step, time.monotonic())

    def on_log(
        self,
        args: Seq2SeqTrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if not {"loss", "eval_loss"} & logs.keys():
            return  # totals of this session, which say nothing about a run that was continued
        prefix = "eval" if "eval_loss" in logs else "train"
        numbers = {f"{prefix}/{name.removeprefix('eval_')}": value for name, value in logs.items() if name != "epoch"}
        self._tracker.log(numbers, state.global_step)
        if prefix == "eval":
            log_rates(f"step {state.global_step} of {state.max_steps}", logs, "eval_")
        else:
            logger.info(
                "step %d of %d: loss %.4f, learning rate %.2e, gradient norm %.2f, %.2f h of audio, "
                "%.0f times real time, MFU %.1f %%, %s left",
                state.global_step,
                state.max_steps,
                logs["loss"],
                logs["learning_rate"],
                logs.get("grad_norm", float("nan")),
                logs["audio_hours"],
                logs["audio_seconds_per_second"],
                100 * logs["mfu"],
                self._time_left(state),
            )

    def _time_left(self, state: TrainerState) -> str:
        first_step, began = self._began or (0, time.monotonic())
        per_step = (time.monotonic() - began) / max(1, state.global_step - first_step)
        minutes, seconds = divmod(round(per_step * (state.max_steps - state.global_step)), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def log_rates(what: str, metrics: dict[str, float], prefix: str) -> None:
    logger.info(
        "%s: loss %.4f, WER %s (as written %s), CER %s",
        what,
        metrics[f"{prefix}loss"],
        *(percent(metrics.get(f"{prefix}{name}")) for name in ("wer", "wer_orthographic", "cer")),
    )


def sample_predictions(
    clips: ArtifactSplit, evaluation: Evaluation, base: Evaluation | None, language: str
) -> list[SamplePrediction]:
    """The first clips of a split with what the models heard. language: Whisper's code of the transcripts' language."""
    first = slice(0, SAMPLED_CLIPS)
    scored = score_clips(clips.ids[first], clips.texts[first], evaluation.predictions[first], language_code=language)
    return [
        SamplePrediction(
            id=clip.id,
            reference=clip.reference,
            base=base.predictions[position] if base else None,
            prediction=clip.prediction,
            wer=clip.wer.as_dict()["rate"],
        )
        for position, clip in enumerate(scored)
    ]
