"""What a run tells of its speed is what it did, in all of its sessions and all of its time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tiny_training import changed, fine_tuning_of, sigterm_at
from transformers import TrainerCallback

from asr_fine_tuner import InterruptedJob, TrainParameters
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.throughput import training_seconds
from asr_fine_tuner.throughput_meter import work_of

WINDOW = 4  # seconds that the tiny model hears at once


class _Watching(TrainerCallback):
    """Measures the training loop from outside; each step begins with some waiting."""

    def __init__(self, delay: float = 0.0) -> None:
        self.seconds, self._delay = 0.0, delay

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        time.sleep(self._delay)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.monotonic() - self._began


def windows_of(tuning: FineTuning, epochs: int) -> int:
    return sum(len(tuning.packer.windows(epoch)) for epoch in range(epochs))


def test_the_stages_of_a_run_are_its_time_and_its_audio_that_of_its_epochs(parameters: TrainParameters) -> None:
    # Two epochs of five steps, and logs that neither evaluation nor end coincide with.
    tuning = fine_tuning_of(changed(parameters, max_steps=10, logging_steps=4, eval_steps=5, save_steps=5))
    watching = _Watching(delay=0.02)
    tuning.trainer.add_callback(watching)
    tuning.trainer.train()

    work = work_of(tuning.trainer.state)
    assert all(seconds > 0 for seconds in work.seconds.values()), work.seconds
    assert sum(work.seconds.values()) == pytest.approx(watching.seconds, rel=0.05, abs=0.15)
    assert work.seconds["other"] >= 10 * 0.02, "the waits of the callback are in no other stage"
    assert work.seconds["data"] + work.seconds["optimizer"] < work.seconds["forward"] + work.seconds["backward"]

    audio = 2 * float(tuning.clips["train"].seconds.sum())
    assert work.audio_seconds == pytest.approx(audio)
    assert work.padding_share == pytest.approx(1 - audio / (windows_of(tuning, 2) * WINDOW))
    throughput = tuning.trainer.meter.throughput(tuning.trainer.state, 1000.0)
    assert throughput.seconds["evaluation"] == work.seconds["evaluation"] + 1000
    assert throughput.audio_hours_per_device_hour == pytest.approx(audio / training_seconds(work.seconds))
    assert throughput.mfu == pytest.approx(work.flops / (tuning.trainer.meter.peak.flops * work.training_seconds))

    logs = [entry for entry in tuning.trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [4, 8]
    assert 0 < logs[0]["audio_hours"] < logs[1]["audio_hours"] < work.audio_hours
    assert logs[0]["audio_seconds_per_second"] < audio / (4 * 0.02)


def test_a_resumed_run_has_done_what_all_its_sessions_did(parameters: TrainParameters) -> None:
    given = changed(parameters, max_steps=10, logging_steps=2, eval_steps=10, save_steps=10)
    with sigterm_at("step 6 of 10"), pytest.raises(InterruptedJob):
        fine_tuning_of(given).train()
    tuning = fine_tuning_of(given)
    watching = _Watching()
    tuning.trainer.add_callback(watching)
    tuning.train()
    work = work_of(tuning.trainer.state)
    assert work.audio_seconds == pytest.approx(2 * float(tuning.clips["train"].seconds.sum()))
    assert work.padding_share == pytest.approx(1 - work.audio_seconds / (windows_of(tuning, 2) * WINDOW))
    assert sum(work.seconds.values()) > watching.seconds, "there was a session before"
    assert 0 < work.mfu < 2

    finished = fine_tuning_of(given)  # a session that finds all trained, and only evaluates
    finished.train()
    assert work_of(finished.trainer.state).audio_seconds == work.audio_seconds
