"""Measures the throughput of a trainer while it trains."""

from __future__ import annotations

import functools
import operator
from dataclasses import replace
from typing import Any

from transformers import (
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    WhisperForConditionalGeneration,
)

from asr_fine_tuner.batches import Step
from asr_fine_tuner.device_peak import DevicePeak, device_peak
from asr_fine_tuner.flops import TrainedWeights, TrainingFlops
from asr_fine_tuner.labels import POSITIONS_PER_SECOND
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.stage_clock import Stage, StageClock
from asr_fine_tuner.throughput import Throughput, Work

# Where the trainer's state, and so each checkpoint, keeps what its callbacks want to find again.
_KEPT_AS = "ThroughputMeter"


class ThroughputMeter(TrainerCallback):
    """Adds up the work of all ranks in the trainer's state, over all the sessions of a resumed run.

    The state holds it up to the last `settle`, which is at each log and checkpoint.
    """

    def __init__(self, model: WhisperForConditionalGeneration, args: Seq2SeqTrainingArguments, ranks: Ranks) -> None:
        self.clock = StageClock(args.device)
        self._ranks = ranks
        self._flops = TrainingFlops(model.config, TrainedWeights.of(model))
        self._window_seconds = model.config.max_source_positions / POSITIONS_PER_SECOND
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        own_peak = device_peak(args.device, precision)
        self.peak = DevicePeak(sum(ranks.gather(own_peak.flops)), own_peak.source)
        # Of this rank since the last `settle`, and of all ranks since the last log.
        self._counted, self._unlogged = Work(), Work()
        self._settled_seconds = self.clock.seconds()

    def count(self, step: Step) -> None:
        """Add what this rank trains on in one optimizer step."""
        self._counted += Work(
            audio_seconds=step.audio_seconds,
            window_seconds=step.n_windows * self._window_seconds,
            flops=self.flops(step),
        )

    def flops(self, step: Step) -> int:
        """Of training on it, by this rank."""
        return sum(self._flops(*batch["labels"].shape) for batch in step.micro_batches)

    def settle(self, state: TrainerState) -> None:
        """Add to the state what all ranks did since; each of them calls this."""
        seconds, before = self.clock.seconds(), self._settled_seconds
        passed = Work(seconds={str(stage): seconds[stage] - before[stage] for stage in Stage})
        counted = functools.reduce(operator.add, self._ranks.gather(self._counted), passed)
        since = replace(
            counted,
            peak_flops=self.peak.flops * passed.training_seconds,
            device_seconds=self._ranks.size * passed.training_seconds,
        )
        self._counted, self._settled_seconds = Work(), seconds
        self._unlogged += since
        state.stateful_callbacks[_KEPT_AS] = (work_of(state) + since).as_dict()

    def since_last_log(self, state: TrainerState) -> dict[str, float]:
        """Rates of the time since the last log, up to the last `settle`, and the `audio_hours` of the whole run."""
        since, self._unlogged = self._unlogged, Work()
        return {
            "audio_hours": round(work_of(state).audio_hours, 6),
            "audio_seconds_per_second": since.audio_seconds / since.training_seconds if since.training_seconds else 0.0,
            "mfu": since.mfu,
            "padding_share": round(since.padding_share, 6),
        }

    def throughput(self, state: TrainerState, evaluated: float = 0.0) -> Throughput:
        """Of the whole run. evaluated: seconds of evaluations outside of the trainer's loop."""
        work = work_of(state)
        seconds = {**work.seconds, Stage.EVALUATION: work.seconds[Stage.EVALUATION] + evaluated}
        return Throughput.of(replace(work, seconds=seconds), self.peak, self._ranks.size)

    def on_pre_optimizer_step(
        self,
        args: Seq2SeqTrainingArguments,  # noqa: ARG002 - the callback's own signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.clock.begin(Stage.OPTIMIZER)

    def on_optimizer_step(
        self,
        args: Seq2SeqTrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.clock.end()


def work_of(state: TrainerState) -> Work:
    """What was done in the run of this state, up to its last log or checkpoint."""
    kept = state.stateful_callbacks.get(_KEPT_AS)
    return Work.from_dict(kept) if kept else Work()
