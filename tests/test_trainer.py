"""trainer.py: Whisper's loss, gradients that accumulation does not change, the best weights, and safe ends."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import (
    changed,
    clips_of,
    fine_tuning_of,
    log_history,
    sigterm_at,
    weights_of,
    with_texts,
    write_artifact,
)
from transformers import TrainerCallback, WhisperForConditionalGeneration

from asr_fine_tuner import InterruptedJob, PermanentError, TrainParameters
from asr_fine_tuner.artifact import SPLITS, Clip
from asr_fine_tuner.batches import IGNORED_LABEL, Collator
from asr_fine_tuner.checkpoints import checkpoints_in, newest_complete, step_of
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.packing import Window
from asr_fine_tuner.training import TrainResult, train
from asr_fine_tuner.transcribing import token_loss


def test_the_loss_of_one_batch_is_whispers_own(parameters: TrainParameters) -> None:
    trainer = fine_tuning_of(parameters).trainer
    model, collator = trainer.model.eval(), trainer.data_collator
    assert isinstance(collator, Collator)
    batch = collator([trainer.train_dataset[Window((index,))] for index in range(4)])
    features = batch["input_features"].float()
    with torch.no_grad():
        theirs = model(input_features=features, labels=batch["labels"]).loss
        outputs = model(input_features=features, decoder_input_ids=batch["decoder_input_ids"])
    torch.testing.assert_close(token_loss(outputs, batch["labels"]), theirs)
    n_labels = (batch["labels"] != IGNORED_LABEL).sum()
    torch.testing.assert_close(token_loss(outputs, batch["labels"], 2 * n_labels), theirs / 2)


class _Gradients(TrainerCallback):
    """Keeps the gradients as they are when the optimizer takes its first step."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: torch.nn.Module, **_: Any) -> None:
        self.kept = self.kept or {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }


def test_accumulated_gradients_are_those_of_one_large_batch(parameters: TrainParameters, tmp_path: Path) -> None:
    gradients, logged = [], []
    for micro_batch, accumulated in ((8, 1), (4, 2), (1, 8)):
        given = {"train_batch_size": micro_batch, "grad_accum_steps": accumulated, "max_steps": 1, "warmup_steps": 0}
        tuning = fine_tuning_of(changed(parameters, **given, output_dir=str(tmp_path / f"by-{micro_batch}")))
        lengths = [len(tuning.clips["train"].labels(index)) for index in range(10)]
        assert len(set(lengths)) > 3, "transcripts of one length would hide a mean of means"
        callback = _Gradients()
        tuning.trainer.add_callback(callback)
        tuning.trainer.train()
        gradients.append(callback.kept)
        logged.append(tuning.trainer.state.log_history[0])
    for other, entry in zip(gradients[1:], logged[1:], strict=True):
        assert set(other) == set(gradients[0])
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=2e-3, atol=2e-6, msg=name)
        assert entry["grad_norm"] == pytest.approx(logged[0]["grad_norm"], rel=1e-4)
        assert entry["loss"] == pytest.approx(logged[0]["loss"], rel=1e-5)


def test_the_logged_loss_is_the_mean_over_labels(parameters: TrainParameters) -> None:
    """In one step over the whole split, before any weight has changed."""
    whole = {"train_batch_size": 5, "grad_accum_steps": 2, "max_steps": 1}
    tuning = fine_tuning_of(changed(parameters, **whole))
    collator = tuning.trainer.data_collator
    assert isinstance(collator, Collator)
    batch = collator([tuning.trainer.train_dataset[Window((index,))] for index in range(10)])
    with torch.no_grad():
        expected = tuning.trainer.model.eval()(
            input_features=batch["input_features"].float(), labels=batch["labels"]
        ).loss
    tuning.trainer.train()
    assert tuning.trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_training_lowers_the_loss_and_the_errors(memorised: TrainResult) -> None:
    history = log_history(memorised.model_dir.parent)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] > 4
    assert losses[-1] < 0.2
    assert memorised.metrics["test_base_wer"] > 0.9
    assert memorised.metrics["test_tuned_wer"] == 0
    assert memorised.metrics["test_tuned_cer"] == 0


@pytest.fixture
def unlearning(
    memorised: TrainResult, tiny_artifact: Path, tmp_path: Path, parameters: TrainParameters
) -> TrainParameters:
    """Starts with everything right on validation, and is taught to say something else for the same sound.

    The learning rate of the first step is 0, so the first evaluation is the best.
    """
    clips = clips_of(tiny_artifact, "train")[:4]
    labels = LabelEncoder.from_folder(memorised.model_dir, "it", "transcribe")
    wrong = with_texts(clips, [clip.text for clip in [*clips[1:], clips[0]]], labels)
    splits = {"train": wrong, "validation": clips, "test": clips}
    artifact = write_artifact(tmp_path / "wrong", memorised.model_dir, tiny_artifact, splits)
    return changed(
        parameters,
        artifact_name=str(artifact),
        model_id=str(memorised.model_dir),
        train_batch_size=4,
        learning_rate=5e-3,
        lr_scheduler="constant_with_warmup",
        max_steps=12,
        eval_steps=1,
        save_steps=1,
        max_sequence_length=40,
    )


def test_the_best_weights_are_kept_and_not_the_last(unlearning: TrainParameters, memorised: TrainResult) -> None:
    result = train(unlearning)
    run = result.model_dir.parent
    rates = [entry["eval_wer"] for entry in log_history(run) if "eval_wer" in entry]
    assert rates[0] == 0
    assert rates[-1] > 0.5
    assert (result.steps, result.best_step) == (12, 1)
    assert [folder.name for folder in checkpoints_in(run, "best")] == ["best-1"]
    assert weights_of(result.model_dir) == weights_of(memorised.model_dir) != weights_of(run / "checkpoint-12")
    assert result.metrics["test_tuned_wer"] == result.metrics["validation_tuned_wer"] == 0


def test_a_model_that_got_worse_is_said_to_be(unlearning: TrainParameters, caplog: pytest.LogCaptureFixture) -> None:
    result = train(changed(unlearning, eval_steps=12, evaluate_base=True))
    assert result.metrics["test_base_wer"] == 0 < result.metrics["test_tuned_wer"]
    assert "the tuned model does worse than the base model on the test split" in caplog.text
    card = (result.model_dir / "README.md").read_text()
    assert "**Do not prefer it to its base model: the tuned model does worse" in card


def test_training_stops_when_nothing_gets_better(unlearning: TrainParameters) -> None:
    result = train(changed(unlearning, early_stopping_patience=3))
    assert (result.steps, result.best_step) == (4, 1)


def test_an_early_stop_is_not_forgotten_by_the_next_session(unlearning: TrainParameters) -> None:
    """The signal comes in the very evaluation that ends the training; the next session makes up for it and stops."""
    given = changed(unlearning, early_stopping_patience=3)
    with sigterm_at("evaluate at step 4: 4 of 4 clips"), pytest.raises(InterruptedJob):
        train(given)
    result = train(given)
    assert (result.steps, result.best_step) == (4, 1)
    steps = [entry["step"] for entry in log_history(result.model_dir.parent) if "eval_wer" in entry]
    assert steps == [1, 2, 3, 4]


def test_a_signal_after_an_early_stop_loses_no_step(
    unlearning: TrainParameters, caplog: pytest.LogCaptureFixture
) -> None:
    given = changed(unlearning, early_stopping_patience=3, save_steps=1000)
    caplog.set_level(logging.INFO, "asr_fine_tuner")
    with sigterm_at("training stops early"), pytest.raises(InterruptedJob):
        train(given)
    caplog.clear()
    assert train(given).steps == 4
    assert "step 1 of" not in caplog.text


def test_an_early_stop_is_seen_in_a_checkpoint_that_holds_it(unlearning: TrainParameters) -> None:
    """As when the job is killed between the last checkpoint and the end of training."""
    given = changed(unlearning, early_stopping_patience=3)
    run = train(given).model_dir.parent
    (run / "trained.json").unlink()
    (run / "model" / "model.safetensors").unlink()
    assert train(given).steps == 4


def test_a_stop_does_not_wait_for_an_evaluation(parameters: TrainParameters, caplog: pytest.LogCaptureFixture) -> None:
    """The time between SIGTERM and SIGKILL is for saving."""
    tuning = fine_tuning_of(changed(parameters, eval_batch_size=8))
    seen: list[int] = []
    tuning.trainer.model.get_encoder().register_forward_hook(lambda module, *_: seen.append(int(module.training)))
    with sigterm_at("step 2 of 6: loss"), pytest.raises(InterruptedJob, match="step 3 is saved"):
        tuning.train()
    assert seen == [1, 1, 1]


def test_two_checkpoints_are_kept(parameters: TrainParameters) -> None:
    run = train(changed(parameters, save_steps=1)).model_dir.parent
    assert [step_of(folder) for folder in checkpoints_in(run)] == [6, 5]


def _broken(clips: list[Clip], index: int) -> list[Clip]:
    features = clips[index].features.copy()
    features[3, 5] = np.nan
    clip = Clip(clips[index].id, features, clips[index].labels, clips[index].seconds, clips[index].text, None)
    return [*clips[:index], clip, *clips[index + 1 :]]


def test_a_loss_that_is_not_finite_ends_training_before_the_step(
    parameters: TrainParameters, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    third_step = list(fine_tuning_of(parameters).trainer.get_train_dataloader())[2]
    splits = {split: clips_of(tiny_artifact, split) for split in SPLITS}
    splits["train"] = _broken(splits["train"], int(third_step.micro_batches[0]["clip_index"][0]))
    artifact = write_artifact(tmp_path / "nan", tiny_model, tiny_artifact, splits)
    given = changed(parameters, artifact_name=str(artifact), output_dir=str(tmp_path / "nan-run"), save_steps=1)

    for _ in range(2):
        with pytest.raises(PermanentError) as raised:
            train(given)
        assert "loss nan at step 3" in raised.value.given
        newest = newest_complete(tmp_path / "nan-run")
        assert newest is not None
        assert newest.name == "checkpoint-2"
    model = WhisperForConditionalGeneration.from_pretrained(newest)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert not (tmp_path / "nan-run" / "model").exists()


def test_a_gradient_that_is_not_finite_ends_training_before_the_step(parameters: TrainParameters) -> None:
    tuning = fine_tuning_of(parameters)
    weight = tuning.trainer.model.get_decoder().layers[0].fc1.weight
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(PermanentError, match=r"gradient norm (nan|inf) at step 1"):
        tuning.trainer.train()
    assert torch.equal(weight, before)


def test_a_train_split_smaller_than_a_batch_and_validation_too(parameters: TrainParameters) -> None:
    small = {"max_train_samples": 3, "max_eval_samples": 2, "train_batch_size": 16, "eval_batch_size": 16}
    result = train(changed(parameters, **small, grad_accum_steps=4, max_steps=2, logging_steps=25))
    assert result.clips == {"train": 3, "validation": 2, "test": 2}
    state = json.loads((result.model_dir.parent / "trained.json").read_text())
    assert state["epoch"] == 2.0


def test_one_step_with_everything_else_later_is_a_whole_run(parameters: TrainParameters) -> None:
    result = train(changed(parameters, max_steps=1, eval_steps=1000, save_steps=1000, logging_steps=1000))
    assert (result.steps, result.best_step) == (1, 1)
    assert (result.model_dir / "training_curves.png").is_file()
