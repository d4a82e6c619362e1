"""run_folder.py: one run in a folder, and nothing of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asr_fine_tuner import PermanentError
from asr_fine_tuner.checkpoints import SEAL_NAME, sealed
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.metrics import score
from asr_fine_tuner.run_folder import FittedBatch, Identity, RunFolder, effective_batch, run_id

IDENTITY: Identity = {"artifact": "abc", "learning_rate": 1e-5, "max_steps": 100, "freeze_encoder": False}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def _checkpoint(run: RunFolder, step: int) -> Path:
    folder = run.folder / f"checkpoint-{step}"
    with sealed(folder) as staging:
        (staging / "model.safetensors").write_text("weights")
    return folder


def _refusal(run: RunFolder, identity: Identity, *, resume: bool = True) -> PermanentError:
    with pytest.raises(PermanentError) as raised:
        run.claim(identity, resume=resume)
    return raised.value


def test_the_same_run_is_let_in_again(run: RunFolder) -> None:
    run.claim(IDENTITY, resume=True)
    run.claim(IDENTITY, resume=True)
    assert json.loads((run.folder / "run.json").read_text()) == IDENTITY


def test_another_run_is_told_with_both_values(run: RunFolder) -> None:
    run.claim(IDENTITY, resume=True)
    _checkpoint(run, 5)
    error = _refusal(run, {**IDENTITY, "learning_rate": 1e-4, "max_steps": 200})
    assert "learning_rate 1e-05 rather than 0.0001, max_steps 100 rather than 200" in error.given
    assert "freeze_encoder" not in error.given
    assert "--output_dir" in error.action
    assert json.loads((run.folder / "run.json").read_text()) == IDENTITY, "the folder stays that of the first run"


_BEGUN = {**IDENTITY, "train_batch_size": 4, "grad_accum_steps": 2, "processes": 2}


@pytest.mark.parametrize(
    "batch",
    [
        {"train_batch_size": 16, "grad_accum_steps": 1, "processes": 1},  # the same clips to a step
        {"train_batch_size": 2, "grad_accum_steps": 2, "processes": 4},
        {"train_batch_size": 4, "grad_accum_steps": 2, "processes": 3},  # the same parameters
    ],
)
def test_a_run_keeps_the_batch_it_was_begun_with(batch: dict[str, int], run: RunFolder) -> None:
    assert run.claim(_BEGUN, resume=True) == _BEGUN
    _checkpoint(run, 5)
    assert run.claim({**_BEGUN, **batch}, resume=True) == _BEGUN
    assert effective_batch(_BEGUN) == 16


def test_a_run_whose_parameters_were_wrong_from_the_start_may_be_corrected(run: RunFolder) -> None:
    run.claim(IDENTITY, resume=True)
    run.keep_fitted(FittedBatch(1, gradient_checkpointing=True))
    corrected = {**IDENTITY, "freeze_encoder": True}
    assert run.claim(corrected, resume=False) == corrected
    assert json.loads((run.folder / "run.json").read_text()) == corrected
    assert run.fitted() is None, "which was of the other run"


@pytest.mark.parametrize("made", ["best-5", "evaluations", "model", "trained.json"])
def test_what_took_time_is_left_alone(made: str, run: RunFolder) -> None:
    run.claim(IDENTITY, resume=True)
    (run.folder / made).mkdir()
    assert "learning_rate" in _refusal(run, {**IDENTITY, "learning_rate": 1e-4}).given


@pytest.mark.parametrize("other", [{"train_batch_size": 8}, {"grad_accum_steps": 1, "processes": 1}])
def test_another_batch_is_another_run(other: dict[str, int], run: RunFolder) -> None:
    run.claim(_BEGUN, resume=True)
    _checkpoint(run, 5)
    error = _refusal(run, {**_BEGUN, **other})
    for name, value in other.items():
        assert f"{name} {_BEGUN[name]} rather than {value}" in error.given


def test_without_resume_an_empty_folder_is_taken_and_a_used_one_refused(run: RunFolder) -> None:
    run.claim(IDENTITY, resume=False)
    _checkpoint(run, 5)
    assert "--resume is false" in _refusal(run, IDENTITY, resume=False).given


def test_checkpoints_of_nobody_knows_what_are_left_alone(run: RunFolder) -> None:
    _checkpoint(run, 5)
    assert "unknown run" in _refusal(run, IDENTITY).given


def test_an_unreadable_record_of_the_run_is_no_crash(run: RunFolder) -> None:
    (run.folder / "run.json").write_text('{"artifact": ')
    _checkpoint(run, 5)
    assert "unreadable run.json" in _refusal(run, IDENTITY).given


def test_the_newest_whole_checkpoint_is_continued_from(run: RunFolder) -> None:
    assert run.checkpoint() is None
    _checkpoint(run, 5)
    newest = _checkpoint(run, 10)
    assert run.checkpoint() == newest
    (newest / SEAL_NAME).unlink()
    assert run.checkpoint() == run.folder / "checkpoint-5"


def test_when_no_checkpoint_is_whole_nothing_is_trained_anew_over_them(run: RunFolder) -> None:
    for step in (5, 10):
        (_checkpoint(run, step) / "model.safetensors").write_text("w")
    with pytest.raises(PermanentError, match="none of 2 checkpoints is complete, up to step 10"):
        run.checkpoint()


def test_a_finished_model_is_one_that_is_whole(run: RunFolder) -> None:
    assert not run.is_finished()
    with sealed(run.model) as staging:
        (staging / "model.safetensors").write_text("weights")
    assert run.is_finished()
    (run.model / "README.md").write_text("the card is written later")
    assert run.is_finished()
    (run.model / "model.safetensors").write_text("w")
    assert not run.is_finished()


def test_an_evaluation_is_kept_under_its_name(run: RunFolder) -> None:
    evaluation = Evaluation(score(["uno due"], ["uno"], language_code="it"), 0.5, ["uno"], 10, 1.0)
    assert run.evaluation("base-test") is None
    run.keep_evaluation("base-test", evaluation)
    assert run.evaluation("base-test") == evaluation
    assert run.evaluation("tuned-test") is None


def test_the_tracked_run_is_that_of_the_job_and_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_id(IDENTITY, tmp_path / "run") == run_id(dict(reversed([*IDENTITY.items()])), Path("run"))
    assert run_id(IDENTITY, tmp_path / "run") != run_id(IDENTITY, tmp_path / "other")
    assert run_id(IDENTITY, tmp_path / "run") != run_id({**IDENTITY, "max_steps": 200}, tmp_path / "run")
