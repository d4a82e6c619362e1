"""fine_tuning.py: what is trained and what is not, what the base model is, and what is left in the finished folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import (
    EVAL_CLIPS,
    changed,
    clips_of,
    fine_tuning_of,
    log_history,
    sigterm_at,
    weights_of,
    with_texts,
    write_artifact,
)
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_fine_tuner import InterruptedJob, PermanentError, TrainParameters
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.batches import ClipDataset
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.results import read_results
from asr_fine_tuner.run_folder import RunFolder
from asr_fine_tuner.training import TrainResult, train


def test_the_base_model_is_the_one_asked_for(
    parameters: TrainParameters, memorised: TrainResult, tmp_path: Path
) -> None:
    artifact = memorised.model_dir.parent.parent / "four-clips"
    given = changed(
        parameters, artifact_name=str(artifact), evaluate_base=True, max_steps=1, max_sequence_length=40, eval_steps=1
    )
    knows_nothing = train(given)
    knows_all = train(changed(given, model_id=str(memorised.model_dir), output_dir=str(tmp_path / "other")))
    for split in ("validation", "test"):
        assert knows_nothing.metrics[f"{split}_base_wer"] > 0.9
        assert knows_all.metrics[f"{split}_base_wer"] == 0
    assert read_results(knows_all.model_dir / "results.json").model.id == "model"


def test_the_base_model_is_scored_untouched_whatever_was_trained(
    parameters: TrainParameters, tiny_artifact: Path
) -> None:
    tuning = fine_tuning_of(changed(parameters, spec_augment=True))
    untouched = tuning.trainer.assess(ClipDataset(tuning.clips["test"], longest_first=True), "untouched")
    result = train(changed(parameters, spec_augment=True, evaluate_base=True, learning_rate=1e-2))
    assert {name: result.metrics[f"test_base_{name}"] for name in untouched.scores.rates()} == untouched.scores.rates()
    lines = [json.loads(line) for line in (result.model_dir / "predictions.jsonl").read_text().splitlines()]
    assert [line["base_prediction"] for line in lines] == untouched.predictions


def test_predictions_are_those_of_the_test_split_in_its_order(parameters: TrainParameters, tiny_artifact: Path) -> None:
    result = train(changed(parameters, max_steps=2))
    clips = clips_of(tiny_artifact, "test")
    lines = [json.loads(line) for line in (result.model_dir / "predictions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reference"]) for line in lines] == [(clip.id, clip.text) for clip in clips]
    assert all(line["base_prediction"] is None for line in lines)
    assert sum(line["errors"] for line in lines) / sum(line["words"] for line in lines) == pytest.approx(
        result.metrics["test_tuned_wer"]
    )


def _changed_weights(tuned: Path, base: Path) -> dict[str, bool]:
    """Whether each weight of a model differs from the base model's."""
    one, other = (WhisperForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (tuned, base))
    return {name: not torch.equal(weight, other[name]) for name, weight in one.items()}


def test_the_encoder_s_positions_are_not_trained(memorised: TrainResult, tiny_model: Path) -> None:
    """In openai/whisper they are a buffer: https://github.com/huggingface/transformers/pull/26032."""
    before, after = (
        WhisperForConditionalGeneration.from_pretrained(folder).get_encoder().state_dict()
        for folder in (tiny_model, memorised.model_dir)
    )
    assert torch.equal(before["embed_positions.weight"], after["embed_positions.weight"])
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_encoder_keeps_its_weights(frozen: bool, parameters: TrainParameters, tiny_model: Path) -> None:
    result = train(changed(parameters, freeze_encoder=frozen, max_steps=2, eval_steps=2))
    differs = _changed_weights(result.model_dir, tiny_model)
    of_encoder = {name: it for name, it in differs.items() if name.startswith("model.encoder.")}
    # Positions of the encoder are sines, and never trained.
    trained = {name: it for name, it in of_encoder.items() if "embed_positions" not in name}
    assert set(trained.values()) == {not frozen}
    assert differs["model.decoder.layers.0.fc1.weight"]


def _augmented(given: TrainParameters) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Of each training step the features as collated, as the encoder saw them, and the mask of real frames.

    Asserts that an evaluation shows the encoder the features as they are.
    """
    tuning = fine_tuning_of(given)
    seen: list[tuple[bool, torch.Tensor]] = []
    convolution = tuning.trainer.model.get_encoder().conv1
    convolution.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, inputs[0].detach().clone()))
    )
    batches = [batch for step in tuning.trainer.get_train_dataloader() for batch in step.micro_batches]
    tuning.trainer.train()
    trained = [features for training, features in seen if training]
    assert len(trained) == given.max_steps
    for batch, features in zip(batches, trained, strict=True):
        yield batch["input_features"].float(), features, batch.get("attention_mask")
    (assessed,) = [features for training, features in seen if not training][:1]
    collated = next(iter(tuning.trainer.get_eval_dataloader()))["input_features"].float()
    assert torch.equal(assessed, collated)


def test_masks_lie_on_real_frames_and_only_while_training(parameters: TrainParameters, tmp_path: Path) -> None:
    bands = 0
    for seed in range(2):
        folder = str(tmp_path / f"seed-{seed}")
        given = changed(parameters, spec_augment=True, max_steps=5, seed=seed, output_dir=folder)
        for collated, shown, real in _augmented(given):
            assert real is not None
            masked_frames = (shown == 0).all(dim=1)
            masked_bands = (shown == 0).all(dim=2)
            assert masked_frames.any(dim=1).all(), "every clip is masked somewhere"
            assert not (masked_frames & (real == 0)).any(), "padding needs no mask"
            assert 0.02 < masked_frames.sum() / real.sum() < 0.2
            elsewhere = ~masked_frames[:, None, :] & ~masked_bands[:, :, None]
            assert torch.equal(shown[elsewhere], collated[elsewhere])
            bands += int(masked_bands.sum())
    assert bands > 0


def test_nothing_is_masked_unless_asked_for(parameters: TrainParameters) -> None:
    for collated, shown, real in _augmented(changed(parameters, max_steps=5)):
        assert real is None
        assert torch.equal(shown, collated)


def test_a_base_model_that_masks_does_so_only_when_asked_for(
    parameters: TrainParameters, tiny_model: Path, tmp_path: Path
) -> None:
    masking = tmp_path / "masking"
    shutil.copytree(tiny_model, masking)
    config = json.loads((masking / "config.json").read_text())
    (masking / "config.json").write_text(json.dumps({**config, "apply_spec_augment": True, "mask_time_prob": 0.5}))
    for collated, shown, _ in _augmented(changed(parameters, model_id=str(masking), max_steps=5)):
        assert torch.equal(shown, collated)


def test_what_is_for_training_alone_is_not_in_the_finished_model(parameters: TrainParameters, tiny_model: Path) -> None:
    result = train(changed(parameters, spec_augment=True, max_steps=1))
    base, tuned = WhisperConfig.from_pretrained(tiny_model), WhisperConfig.from_pretrained(result.model_dir)
    assert tuned.apply_spec_augment is False
    assert tuned.use_cache is True
    for name in ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length"):
        assert getattr(tuned, name) == getattr(base, name)


def test_a_translation_is_scored_as_english(
    parameters: TrainParameters, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    labels = LabelEncoder.from_folder(tiny_model, "it", "translate")
    splits = {
        split: with_texts(clips, ["The colour of the house."] * len(clips), labels)
        for split, clips in ((split, clips_of(tiny_artifact, split)[:2]) for split in SPLITS)
    }
    artifact = write_artifact(tmp_path / "translate", tiny_model, tiny_artifact, splits, task="translate")
    given = changed(
        parameters, artifact_name=str(artifact), task="translate", max_steps=80, learning_rate=1e-2, eval_steps=20
    )
    result = train(changed(given, max_sequence_length=40, save_steps=80))
    generation = json.loads((result.model_dir / "generation_config.json").read_text())
    assert (generation["language"], generation["task"]) == ("it", "translate")
    assert read_results(result.model_dir / "results.json").task == "translate"
    assert fine_tuning_of(changed(given, output_dir=str(tmp_path / "x"))).text_language == "en"
    assert result.metrics["test_tuned_wer"] == 0


def test_an_english_only_checkpoint_has_neither_language_nor_task(
    parameters: TrainParameters, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    english = shutil.copytree(tiny_model, tmp_path / "tiny.en")
    generation = json.loads((english / "generation_config.json").read_text())
    for name in ("lang_to_id", "task_to_id"):
        del generation[name]
    generation |= {"is_multilingual": False, "forced_decoder_ids": [[1, generation["no_timestamps_token_id"]]]}
    (english / "generation_config.json").write_text(json.dumps(generation))
    labels = LabelEncoder.from_folder(english, "en", "transcribe")
    four = clips_of(tiny_artifact, "train")[:4]
    four = with_texts(four, ["one", "two", "three", "four"], labels)
    assert labels.tokenizer.convert_ids_to_tokens(four[0].labels)[:2] == ["<|startoftranscript|>", "<|notimestamps|>"]
    artifact = write_artifact(
        tmp_path / "english",
        english,
        tiny_artifact,
        dict.fromkeys(SPLITS, four),
        language_code="en",
        language="english",
        language_token="en",
    )
    given = {"artifact_name": str(artifact), "model_id": str(english), "train_batch_size": 4, "max_steps": 120}
    result = train(changed(parameters, **given, learning_rate=5e-3, eval_steps=20, save_steps=120, evaluate_base=True))
    assert result.metrics["test_tuned_wer"] == 0
    finished = json.loads((result.model_dir / "generation_config.json").read_text())
    assert finished["is_multilingual"] is False
    assert finished.get("language") is finished.get("task") is finished.get("forced_decoder_ids") is None
    assert not read_results(result.model_dir / "results.json").multilingual


def test_characters_lead_where_words_are_not_written_apart(
    parameters: TrainParameters, tiny_model: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    labels = LabelEncoder.from_folder(tiny_model, "zh", "transcribe")
    splits = {
        split: with_texts(clips_of(tiny_artifact, split)[:2], ["今天天气很好。", "你好"], labels) for split in SPLITS
    }
    artifact = write_artifact(
        tmp_path / "zh",
        tiny_model,
        tiny_artifact,
        splits,
        language_code="zh-CN",
        language="chinese",
        language_token="zh",
    )
    given = changed(parameters, artifact_name=str(artifact), max_steps=3, eval_steps=1)
    result = train(given)
    evaluations = [entry for entry in log_history(result.model_dir.parent) if "eval_cer" in entry]
    best = min(evaluations, key=lambda entry: (entry["eval_cer"], entry["step"]))
    assert read_results(result.model_dir / "results.json").leading_metric == "cer"
    assert result.best_step == best["step"]
    assert json.loads((result.model_dir / "generation_config.json").read_text())["language"] == "zh"


def test_results_tell_where_everything_came_from(parameters: TrainParameters, tiny_artifact: Path) -> None:
    result = train(changed(parameters, max_steps=2, grad_accum_steps=2, max_train_samples=8))
    results = read_results(result.model_dir / "results.json")
    assert (results.dataset.id, results.dataset.on_hub, results.dataset.config) == ("dataset", False, "it")
    assert (results.language, results.language_token, results.multilingual) == ("italian", "it", True)
    assert {split: data.clips for split, data in results.data.items()} == {"train": 8, "validation": 5, "test": 5}
    hours = sum(clip.seconds for clip in clips_of(tiny_artifact, "train")[:8]) / 3600
    assert results.data["train"].hours == pytest.approx(hours)
    assert results.epochs == 1.0
    assert results.hyperparameters["effective_batch_size"] == 4
    assert results.hyperparameters["learning_rate"] == parameters.learning_rate
    assert results.train_runtime > 0
    assert results.throughput.audio_hours == pytest.approx(hours)
    assert f"Trained on {results.throughput.audio_hours:.2f} h of audio" in (result.model_dir / "README.md").read_text()
    published = (result.model_dir / "results.json").read_text() + (result.model_dir / "README.md").read_text()
    assert str(tiny_artifact.parent) not in published
    assert str(Path(str(parameters.output_dir)).parent) not in published


def test_an_interrupted_test_evaluation_is_made_up_for_without_training(parameters: TrainParameters) -> None:
    given = changed(parameters, max_steps=2, eval_steps=2)
    with sigterm_at("test, tuned model: 5 of 5 clips"), pytest.raises(InterruptedJob):
        train(given)
    run = Path(str(given.output_dir))
    trained = (run / "trained.json").read_bytes()
    assert not (run / "model").exists()
    result = train(given)
    assert (run / "trained.json").read_bytes() == trained
    assert weights_of(result.model_dir) == weights_of(run / "best-2")


def test_without_the_best_weights_nothing_is_passed_off_as_them(parameters: TrainParameters) -> None:
    given = changed(parameters, max_steps=2, eval_steps=2)
    run = train(given).model_dir.parent
    for lost in (run / "best-2", run / "model"):
        shutil.rmtree(lost)
    with pytest.raises(PermanentError, match="no folder best-STEP is complete"):
        train(given)


def test_a_part_of_validation_is_evaluated_while_training_and_all_of_it_at_the_end(
    parameters: TrainParameters, caplog: pytest.LogCaptureFixture
) -> None:
    given = changed(parameters, eval_subset=2, evaluate_base=True, eval_steps=3)
    with caplog.at_level(logging.INFO, "asr_fine_tuner"):
        result = train(given)
    run = RunFolder(result.model_dir.parent)
    parts = {name: run.evaluation(name) for name in ("base-validation-subset", "base-validation", "tuned-validation")}
    assert {name: part and len(part.predictions) for name, part in parts.items()} == {
        "base-validation-subset": 2,
        "base-validation": EVAL_CLIPS,
        "tuned-validation": EVAL_CLIPS,
    }
    assert result.clips["validation"] == EVAL_CLIPS
    told = read_results(result.model_dir / "results.json").splits["validation"]
    assert (told.base and told.base.clips, told.tuned.clips) == (EVAL_CLIPS, EVAL_CLIPS)


def test_the_part_of_validation_is_the_same_in_every_run(parameters: TrainParameters, tmp_path: Path) -> None:
    def chosen(run: str, **changes: int) -> list[str]:
        given = changed(parameters, eval_subset=2, output_dir=str(tmp_path / run), **changes)
        return fine_tuning_of(given).trainer.eval_dataset.texts

    assert chosen("first") == chosen("second")
    assert len({tuple(chosen(f"seed {seed}", seed=seed)) for seed in range(6)}) > 1
