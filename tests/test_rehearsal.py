"""The rehearsal runs the job's own parts, on its fullest windows, and leaves nothing."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import changed, clips_of, fine_tuning_of, sigterm_at, write_artifact

from asr_fine_tuner.batches import BatchSizes, TrainingSteps
from asr_fine_tuner.errors import InterruptedJob, PermanentError
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.rehearsal import Pace, fullest_step, rehearse
from asr_fine_tuner.trainer import WhisperTrainer
from asr_fine_tuner.training_input import open_artifact


def run(parameters: TrainParameters, parent: Path) -> Pace:
    parent.mkdir(exist_ok=True)
    try:
        packer = fine_tuning_of(parameters).packer
        return rehearse(open_artifact(parameters), packer, Path(parameters.model_id), parameters, parent)
    finally:
        assert list(parent.iterdir()) == []


def test_it_trains_resumes_and_finishes(
    parameters: TrainParameters, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asr_fine_tuner")
    pace = run(changed(parameters, evaluate_base=True, grad_accum_steps=2), tmp_path / "volume")
    assert min(pace.step, pace.evaluation_batch, pace.checkpoint) > 0
    assert pace.peak_memory > 50e6
    for part in ("base model on validation", "step 1 of 2", "continuing from step 1 of 2", "tuned model on test"):
        assert part in caplog.text


def test_it_takes_the_longest_transcripts(parameters: TrainParameters, tmp_path: Path) -> None:
    source = open_artifact(parameters)
    little = changed(parameters, train_batch_size=3, eval_batch_size=1)
    chosen = fullest_step(source, fine_tuning_of(parameters).packer, tmp_path / "chosen", little)
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        there, taken = clips_of(source.folder, split), clips_of(chosen.folder, split)
        lengths = sorted((len(clip.labels) for clip in there), reverse=True)
        assert lengths[0] > lengths[-1]
        assert [len(clip.labels) for clip in taken] == lengths[:count]
        original = {clip.id: clip for clip in there}
        assert all((clip.features == original[clip.id].features).all() for clip in taken)


def test_it_packs_as_the_job_does(
    parameters: TrainParameters, short_clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = changed(parameters, artifact_name=str(short_clips), train_batch_size=5)
    packer = fine_tuning_of(packed).packer
    by_labels = sorted(packer.first_epoch, key=packer.n_labels, reverse=True)
    most = max(map(len, TrainingSteps(packer, BatchSizes(effective=5, micro=5))))
    chosen = fullest_step(open_artifact(packed), packer, tmp_path / "chosen", packed)
    ids = [clip.id for clip in clips_of(short_clips, "train")]
    of_step = [ids[clip] for window in by_labels[:most] for clip in window.clips]
    assert [clip.id for clip in clips_of(chosen.folder, "train")] == of_step
    caplog.set_level(logging.INFO, "asr_fine_tuner")
    run(packed, tmp_path / "volume")
    told = f"packing is on: {len(of_step)} clips in {most} windows"
    assert caplog.text.count(told) == 2, "trained, and resumed"


def test_a_loss_that_is_not_finite_is_found(
    parameters: TrainParameters, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    splits = {split: clips_of(tiny_artifact, split)[:2] for split in ("train", "validation", "test")}
    splits["train"] = [
        dataclasses.replace(clip, features=np.full_like(clip.features, np.nan)) for clip in splits["train"]
    ]
    artifact = write_artifact(tmp_path / "nan", tiny_model, tiny_artifact, splits)
    with pytest.raises(PermanentError, match="loss nan"):
        run(changed(parameters, artifact_name=str(artifact)), tmp_path / "volume")


def test_memory_that_runs_out_makes_micro_batches_smaller(
    parameters: TrainParameters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = WhisperTrainer._micro_step

    def limited(trainer: WhisperTrainer, model: Any, inputs: Any, *rest: Any) -> Any:
        if len(inputs["labels"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return step(trainer, model, inputs, *rest)

    monkeypatch.setattr(WhisperTrainer, "_micro_step", limited)
    pace = run(changed(parameters, train_batch_size=8), tmp_path / "volume")
    assert pace.micro_batch == 2
    assert pace.step > 0


def test_a_signal_ends_it_and_leaves_nothing(parameters: TrainParameters, tmp_path: Path) -> None:
    with sigterm_at("step 1 of 2"), pytest.raises(InterruptedJob):
        run(parameters, tmp_path / "volume")


def test_the_time_of_a_job(parameters: TrainParameters) -> None:
    pace = Pace(step=10.0, evaluation_batch=1.0, checkpoint=0.1, peak_memory=0, micro_batch=2)
    job = changed(parameters, max_steps=25, eval_steps=10, save_steps=10, eval_batch_size=4, evaluate_base=True)
    clips = {"train": 1000, "validation": 8, "test": 5}
    # Evaluations at 10, 20 and 25 and of the base model, two batches each; test twice, two batches each.
    assert pace.job_seconds(job, clips, steps_done=0) == pytest.approx(25 * 10 + 4 * 2 + 2 * 2 + 3 * 0.1)
    assert pace.job_seconds(job, clips, steps_done=20) == pytest.approx(5 * 10 + 1 * 2 + 2 * 2 + 1 * 0.1)
    without = changed(job, evaluate_base=False)
    assert pace.job_seconds(without, clips, steps_done=0) == pytest.approx(25 * 10 + 3 * 2 + 1 * 2 + 3 * 0.1)
