"""training.py: a run that is stopped anywhere and called again ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_training import changed, log_history, short_run, sigterm_at, weights_of

from asr_fine_tuner import InterruptedJob, PermanentError, TrainParameters, TransientError
from asr_fine_tuner.checkpoints import SEAL_NAME, checkpoints_in, newest_complete, step_of
from asr_fine_tuner.training import TrainResult, train
from asr_fine_tuner.training_input import open_artifact


@pytest.fixture(scope="session")
def restless_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout, so that a step depends on what is drawn by chance."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("restless") / "restless-whisper")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.1}))
    return folder


@pytest.fixture(scope="session")
def restless(restless_model: Path, tiny_artifact: Path) -> TrainParameters:
    """Seven steps over two epochs and a bit, the last of each epoch smaller, with all that draws by chance."""
    steps = {"max_steps": 7, "eval_steps": 2, "save_steps": 2, "grad_accum_steps": 2}
    return short_run(restless_model, tiny_artifact, **steps, learning_rate=2e-3, spec_augment=True)


@pytest.fixture(scope="session")
def straight(restless: TrainParameters, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The run that nothing interrupts."""
    return train(changed(restless, output_dir=str(tmp_path_factory.mktemp("straight") / "run")))


def _assert_same(result: TrainResult, straight: TrainResult) -> None:
    run, other = result.model_dir.parent, straight.model_dir.parent
    assert log_history(run) == log_history(other)
    assert weights_of(run / "checkpoint-7") == weights_of(other / "checkpoint-7")
    assert weights_of(result.model_dir) == weights_of(straight.model_dir)
    assert result.metrics == straight.metrics
    predictions = (result.model_dir / "predictions.jsonl").read_bytes()
    assert predictions == (straight.model_dir / "predictions.jsonl").read_bytes()
    assert (result.steps, result.best_step) == (straight.steps, straight.best_step)


def test_the_straight_run_is_worth_comparing_with(straight: TrainResult, restless: TrainParameters) -> None:
    history = log_history(straight.model_dir.parent)
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4, 6, 7]
    assert history[2]["epoch"] < 1 < history[-1]["epoch"]
    assert straight.trained


# Log messages at which SIGTERM comes, each to the session that continues after the one before, and the newest
# checkpoint then. A signal at the log of a step that no evaluation follows is seen at the end of the next step.
STOPS: dict[str, list[tuple[str, str | None]]] = {
    "between steps": [
        ("step 1 of 7: loss .*, learning rate", "checkpoint-2"),
        ("step 2 of 7: .* WER", "checkpoint-3"),
        ("step 4 of 7: .* WER", "checkpoint-5"),
        ("step 6 of 7: .* WER", "checkpoint-7"),
    ],
    "in evaluations": [
        ("validation, base model: 5 of 5 clips", None),
        ("step 2 of 7: loss .*, learning rate", "checkpoint-2"),
        ("evaluate at step 2: 5 of 5 clips", "checkpoint-2"),
        ("evaluate at step 4: 5 of 5 clips", "checkpoint-4"),
        ("evaluate at step 7: 5 of 5 clips", "checkpoint-7"),
        ("tuned model on test", "checkpoint-7"),
    ],
}


@pytest.mark.parametrize("stops", STOPS)
def test_a_run_stopped_again_and_again_ends_as_if_it_had_not_been(
    stops: str, restless: TrainParameters, straight: TrainResult, tmp_path: Path
) -> None:
    given = changed(restless, output_dir=str(tmp_path / "run"))
    for message, expected in STOPS[stops]:
        with sigterm_at(message), pytest.raises(InterruptedJob) as raised:
            train(given)
        assert "SIGTERM" in raised.value.given
        assert not (tmp_path / "run" / "model").exists()
        newest = newest_complete(tmp_path / "run")
        assert (newest.name if newest else None) == expected, message
    result = train(given)
    assert result.trained
    _assert_same(result, straight)


def test_a_stop_right_at_the_end_is_made_up_for(
    restless: TrainParameters, straight: TrainResult, tmp_path: Path
) -> None:
    """All steps are done when the signal is seen, and the last evaluation is not."""
    given = changed(restless, output_dir=str(tmp_path / "run"), evaluate_base=False)
    with sigterm_at("step 6 of 7: .* WER"), pytest.raises(InterruptedJob):
        train(given)
    state = json.loads((tmp_path / "run" / "checkpoint-7" / "trainer_state.json").read_text())
    assert "eval_loss" not in state["log_history"][-1]
    result = train(given)
    assert log_history(result.model_dir.parent) == log_history(straight.model_dir.parent)
    assert weights_of(result.model_dir) == weights_of(straight.model_dir)


@pytest.fixture
def stopped(restless: TrainParameters, tmp_path: Path) -> TrainParameters:
    """Parameters of a run that was stopped after step 5: checkpoints of steps 4 and 5."""
    given = changed(restless, output_dir=str(tmp_path / "run"))
    with sigterm_at("step 4 of 7: .* WER"), pytest.raises(InterruptedJob):
        train(given)
    assert [folder.name for folder in checkpoints_in(tmp_path / "run")] == ["checkpoint-5", "checkpoint-4"]
    return given


def test_a_damaged_checkpoint_costs_steps_and_no_bits(
    stopped: TrainParameters, straight: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = tmp_path / "run" / "checkpoint-5"
    os.truncate(newest / "optimizer.pt", 1000)
    result = train(stopped)
    assert f"{newest} is damaged and left aside: optimizer.pt" in caplog.text
    _assert_same(result, straight)


def test_an_unsealed_checkpoint_counts_as_none(stopped: TrainParameters, straight: TrainResult, tmp_path: Path) -> None:
    """As after a kill while the folder was copied: every file of the trainer is there, and nobody vouches for it."""
    (tmp_path / "run" / "checkpoint-5" / SEAL_NAME).unlink()
    _assert_same(train(stopped), straight)


def test_with_no_whole_checkpoint_nothing_is_trained(stopped: TrainParameters, tmp_path: Path) -> None:
    for folder in checkpoints_in(tmp_path / "run"):
        os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(PermanentError, match="none of 2 checkpoints is complete"):
        train(stopped)
    assert not (tmp_path / "run" / "trained.json").exists()


@pytest.fixture
def finished(straight: TrainResult, restless: TrainParameters, tmp_path: Path) -> TrainParameters:
    """Parameters of a run that is finished, in a copy of its folder."""
    folder = shutil.copytree(straight.model_dir.parent, tmp_path / "run")
    return changed(restless, output_dir=str(folder))


def test_a_finished_run_is_not_trained_again(
    finished: TrainParameters, straight: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (tmp_path / "run" / "model" / "model.safetensors").stat()
    caplog.set_level("INFO")
    result = train(finished)
    assert not result.trained
    assert "finished already" in caplog.text
    assert "step 1 of" not in caplog.text
    after = (tmp_path / "run" / "model" / "model.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert result.metrics == straight.metrics


def test_a_damaged_model_is_made_anew_of_the_best_weights(
    finished: TrainParameters, straight: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(tmp_path / "run" / "model" / "model.safetensors", 1000)
    caplog.set_level("INFO")
    result = train(finished)
    assert "step 1 of" not in caplog.text
    assert result.trained
    _assert_same(result, straight)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"learning_rate": 1e-4}, "learning_rate 0.002 rather than 0.0001"),
        ({"max_steps": 8}, "max_steps 7 rather than 8"),
        ({"seed": 1}, "seed 42 rather than 1"),
        ({"spec_augment": False}, "spec_augment True rather than False"),
        ({"max_train_samples": 9}, "max_train_samples None rather than 9"),
        ({"resume": False}, "--resume is false"),
    ],
)
def test_a_folder_in_use_is_refused(asked: dict[str, object], told: str, finished: TrainParameters) -> None:
    with pytest.raises(PermanentError) as raised:
        train(changed(finished, **asked))
    assert told in raised.value.given


def test_a_folder_of_another_model_is_refused(finished: TrainParameters, tiny_model: Path) -> None:
    with pytest.raises(PermanentError, match="model_id 'restless-whisper' rather than 'tiny-whisper'"):
        train(changed(finished, model_id=str(tiny_model)))


def test_a_local_base_model_with_other_weights_is_another(finished: TrainParameters, tmp_path: Path) -> None:
    other = tmp_path / Path(finished.model_id).name
    shutil.copytree(finished.model_id, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(PermanentError, match="base_weights 'sha256:"):
        train(changed(finished, model_id=str(other)))


def test_what_does_not_decide_the_weights_may_change(finished: TrainParameters) -> None:
    allowed = {"save_steps": 3, "logging_steps": 2, "eval_batch_size": 2, "model_name": "another-name"}
    assert not train(changed(finished, **allowed)).trained


def test_a_continued_run_goes_by_the_intervals_it_is_given(parameters: TrainParameters) -> None:
    rare = changed(parameters, max_steps=6, eval_steps=6, save_steps=100, logging_steps=1, evaluate_base=False)
    with sigterm_at("step 2 of 6"), pytest.raises(InterruptedJob):
        train(rare)
    result = train(changed(rare, save_steps=1, logging_steps=2))
    steps = [step_of(folder) for folder in checkpoints_in(result.model_dir.parent)]
    assert steps == [6, 5]
    logged = [entry["step"] for entry in log_history(result.model_dir.parent) if "loss" in entry]
    # The signal came while step 2 was logged, and ended the run after step 3.
    assert logged == [1, 2, 3, 4, 6]


def test_an_artifact_that_was_replaced_is_not_trained_on(
    parameters: TrainParameters, tiny_artifact: Path, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, artifact)
    source = open_artifact(changed(parameters, artifact_name=str(artifact)))
    source.refuse_replaced()
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "rejected": {"too_long": 1}}))
    with pytest.raises(TransientError, match="replaced since"):
        source.refuse_replaced()


def test_without_the_base_model_the_weights_are_the_same(
    restless: TrainParameters, straight: TrainResult, tmp_path: Path
) -> None:
    result = train(changed(restless, output_dir=str(tmp_path / "run"), evaluate_base=False))
    assert weights_of(result.model_dir.parent / "checkpoint-7") == weights_of(
        straight.model_dir.parent / "checkpoint-7"
    )
    assert {name for name in straight.metrics if name not in result.metrics} == {
        name for name in straight.metrics if "_base_" in name
    }
    results = json.loads((result.model_dir / "results.json").read_text())
    assert results["splits"]["test"]["base"] is None
    assert not (result.model_dir.parent / "evaluations" / "base-test.json").exists()


def test_names_and_folders_are_those_asked_for(
    parameters: TrainParameters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = changed(parameters, max_steps=1, eval_steps=1)
    by_default = train(changed(short, output_dir=None))
    assert by_default.model_name == "tiny-whisper-it"
    assert by_default.model_dir == Path("outputs/tiny-whisper-it/model")
    named = train(changed(short, model_name="someone/mine", output_dir=str(tmp_path / "there")))
    assert named.model_name == "someone/mine"
    assert named.model_dir == tmp_path / "there" / "model"
    assert (named.repo_id, named.url) == (None, None)


def test_two_jobs_do_not_share_a_folder(parameters: TrainParameters, tmp_path: Path) -> None:
    with FileLock(tmp_path / "run" / "lock"), pytest.raises(TransientError, match="another job"):
        train(parameters)
    assert not (tmp_path / "run" / "run.json").exists()


def test_metrics_and_results_agree(straight: TrainResult) -> None:
    results = json.loads((straight.model_dir / "results.json").read_text())
    for split in ("validation", "test"):
        for which in ("base", "tuned"):
            for metric in ("wer", "wer_orthographic", "wer_whisper", "cer", "cer_orthographic"):
                rate = results["splits"][split][which][metric]["rate"]
                assert straight.metrics[f"{split}_{which}_{metric}"] == rate
    assert straight.as_json()["model_dir"] == str(straight.model_dir)
    assert json.loads(json.dumps(straight.as_json()))["clips"] == {"train": 10, "validation": 5, "test": 5}
