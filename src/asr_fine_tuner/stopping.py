"""Training ends safely when SIGTERM or SIGINT asks for it."""

from __future__ import annotations

from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainerCallback, TrainerControl, TrainerState

from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.stop import stop_requested


class StopOnRequest(TrainerCallback):
    """SIGTERM or SIGINT at any rank: save a checkpoint after the step in progress and leave; no evaluation first."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def on_train_begin(
        self,
        args: Seq2SeqTrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        # A resumed state brings the intervals of the run before it, and the trainer goes by those.
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps

    def on_step_end(
        self,
        args: Seq2SeqTrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        if self._ranks.sum(stop_requested()):
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
        return control
