"""reporting.py: what a person reads in the log while a model trains, and what goes to the tracker."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from tiny_training import changed, fine_tuning_of

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.metrics import score
from asr_fine_tuner.reporting import SAMPLED_CLIPS, ReportingCallback, log_rates, sample_predictions
from asr_fine_tuner.tracking import SamplePrediction


class Recorder:
    """A tracker that keeps what it is told."""

    url = None

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.told.append((step, dict(metrics)))

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None:
        raise NotImplementedError

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:
        raise NotImplementedError


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_every_log_of_the_trainer_is_told(
    parameters: TrainParameters, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    tuning = fine_tuning_of(changed(parameters, max_steps=4, logging_steps=2, eval_steps=4))
    tuning.trainer.add_callback(ReportingCallback(recorder))
    caplog.set_level(logging.INFO)
    tuning.trainer.train()

    losses = {step: told for step, told in recorder.told if "train/loss" in told}
    assert set(losses) == {2, 4}
    history = {entry["step"]: entry for entry in tuning.trainer.state.log_history if "loss" in entry}
    for step, told in losses.items():
        assert told["train/loss"] == history[step]["loss"]
        assert told["train/learning_rate"] == history[step]["learning_rate"]
        assert told["train/grad_norm"] == pytest.approx(history[step]["grad_norm"])
        assert told["train/audio_seconds_per_second"] > 0
        assert {"train/audio_hours", "train/mfu", "train/padding_share"} <= set(told)
        assert not any(name.startswith("eval/") for name in told)
    ((step, evaluated),) = [(step, told) for step, told in recorder.told if "eval/loss" in told]
    assert step == 4
    assert {"eval/wer", "eval/cer", "eval/wer_orthographic"} <= set(evaluated)
    assert len(recorder.told) == 3, "the totals of a session are not those of the run"

    lines = [record.getMessage() for record in caplog.records if "step 2 of 4" in record.getMessage()]
    pattern = (
        r"step 2 of 4: loss \d\.\d{4}, learning rate 1\.00e-03, gradient norm \d+\.\d\d, 0\.0\d h of audio, "
        r"\d+ times real time, MFU \d+\.\d %, .*left"
    )
    assert re.fullmatch(pattern, lines[0])


def test_rates_are_written_as_percentages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_rates("base model", {"x_loss": 1.5, "x_wer": 0.25, "x_wer_orthographic": 1.0}, "x_")
    assert caplog.messages == ["base model: loss 1.5000, WER 25.00 % (as written 100.00 %), CER –"]


@pytest.mark.parametrize("with_base", [False, True])
def test_samples_are_the_first_clips_with_what_was_heard(with_base: bool, tiny_artifact: Path) -> None:
    clips = ArtifactSplit(tiny_artifact, "train")
    heard = [text.upper() for text in clips.texts]
    heard[1] = "tutto sbagliato"
    evaluation = Evaluation(score(clips.texts, heard, language_code="it"), 1.0, heard, 10, 1.0)
    base = Evaluation(evaluation.scores, 1.0, [f"base {text}" for text in heard], 10, 1.0) if with_base else None
    rows = sample_predictions(clips, evaluation, base, "it")
    assert len(rows) == min(SAMPLED_CLIPS, len(clips))
    assert [row.id for row in rows] == clips.ids[:SAMPLED_CLIPS]
    assert (rows[0].reference, rows[0].prediction, rows[0].wer) == (clips.texts[0], heard[0], 0)
    assert rows[1].wer is not None
    assert rows[1].wer > 0
    assert rows[0].base == (f"base {heard[0]}" if with_base else None)
