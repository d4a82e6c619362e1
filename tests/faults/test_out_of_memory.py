"""A device that cannot hold the batch: the micro batch shrinks, the effective batch and what is learned do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import small_device
import torch
from tiny_training import changed, weights_of

from asr_fine_tuner import InterruptedJob, PermanentError, TrainParameters
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.results import read_results
from asr_fine_tuner.trainer import WhisperTrainer
from asr_fine_tuner.training import train


@pytest.fixture
def device_holds(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes training and transcribing more than that many clips at once run out of memory."""

    def limit(clips: int) -> None:
        for owner, name, method in small_device.methods(clips):
            monkeypatch.setattr(owner, name, method)

    return limit


def test_the_effective_batch_and_the_weights_stay(
    parameters: TrainParameters, device_holds: Callable[[int], None], tmp_path: Any
) -> None:
    given = changed(parameters, train_batch_size=6, grad_accum_steps=1, eval_batch_size=5, max_steps=3)
    small = train(changed(given, train_batch_size=2, grad_accum_steps=3, output_dir=str(tmp_path / "small")))
    device_holds(2)
    result = train(given)
    assert (result.train_batch_size, result.grad_accum_steps) == (2, 3)
    told = read_results(result.model_dir / "results.json").hyperparameters
    assert (told["train_batch_size"], told["grad_accum_steps"], told["effective_batch_size"]) == (2, 3, 6)
    assert told["gradient_checkpointing"] is True
    assert weights_of(result.model_dir) == weights_of(small.model_dir)
    assert result.metrics == small.metrics


def test_memory_that_runs_out_after_a_checkpoint_loses_no_step(
    parameters: TrainParameters, device_holds: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = WhisperTrainer.training_step

    def watched(trainer: WhisperTrainer, model: Any, inputs: Any, *rest: Any) -> Any:
        if trainer.state.global_step == 2:
            device_holds(2)
        steps.append(trainer.state.global_step)
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(WhisperTrainer, "training_step", watched)
    result = train(changed(parameters, train_batch_size=4, save_steps=1, max_steps=4))
    assert (result.train_batch_size, result.grad_accum_steps, result.steps) == (2, 2, 4)
    assert steps[:3] == [0, 1, 2]


def test_a_continued_run_begins_with_what_fitted(
    parameters: TrainParameters, device_holds: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = changed(parameters, train_batch_size=4, save_steps=1, max_steps=2, evaluate_base=False)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(FineTuning, "finish", _interrupted)
        device_holds(2)
        with pytest.raises(InterruptedJob):
            train(given)
    result = train(given)
    assert (result.train_batch_size, result.grad_accum_steps) == (2, 2)


def test_no_room_for_the_state_of_the_optimizer(parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a first step to tell how many windows were too many."""
    given = changed(parameters, train_batch_size=4, eval_steps=1, max_steps=2, evaluate_base=False)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(WhisperTrainer, "evaluate", _interrupted)
        with pytest.raises(InterruptedJob):
            train(given)
    load = WhisperTrainer._load_optimizer_and_scheduler
    failures = [torch.OutOfMemoryError("out of memory")] * 2

    def limited(trainer: WhisperTrainer, checkpoint: str) -> None:
        if failures:
            raise failures.pop()
        load(trainer, checkpoint)

    monkeypatch.setattr(WhisperTrainer, "_load_optimizer_and_scheduler", limited)
    result = train(given)
    assert (result.train_batch_size, result.grad_accum_steps, result.steps) == (2, 2, 2)


def _interrupted(*_: object, **__: object) -> None:
    raise InterruptedJob(given="stopped", expected="", action="")


def test_one_clip_that_does_not_fit_is_told(parameters: TrainParameters, device_holds: Callable[[int], None]) -> None:
    device_holds(0)
    with pytest.raises(PermanentError, match="one clip in a batch"):
        train(changed(parameters, evaluate_base=True, max_steps=1))
    with pytest.raises(PermanentError, match="one window in a micro batch"):
        train(changed(parameters, evaluate_base=False, max_steps=1))
