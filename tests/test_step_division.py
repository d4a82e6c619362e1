"""step_division.py: a step is divided as the memory that is free allows."""

from __future__ import annotations

import pytest
from tiny_training import changed, fine_tuning_of

from asr_fine_tuner import TrainParameters, step_division
from asr_fine_tuner.device_plan import DevicePlan, training_footprint


def test_the_plan_is_what_is_trained_with(parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    given = changed(parameters, train_batch_size=8, max_steps=1, eval_steps=1)
    model = fine_tuning_of(given).trainer.model
    three = DevicePlan("cpu", "fp32", gradient_checkpointing=False, micro_batch=3)
    free = training_footprint(model, three, n_labels=60) / 0.9
    monkeypatch.setattr(step_division, "free_memory", lambda: (int(free), "a small machine"))
    tuning = fine_tuning_of(changed(given, gradient_checkpointing="off"))
    sizes = [len(batch["labels"]) for step in tuning.trainer.get_train_dataloader() for batch in step.micro_batches]
    # Of five clips to a step.
    assert max(sizes) == 3
    assert (tuning.parameters.train_batch_size, tuning.parameters.grad_accum_steps) == (3, 3)
