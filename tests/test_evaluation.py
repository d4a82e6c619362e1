"""evaluation.py and the trainer's assess: one pass of the encoder, and the same tokens as Whisper's own generate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_training import changed, clips_of, fine_tuning_of, sigterm_at, weights_of, with_texts, write_artifact
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperForConditionalGeneration,
)

from asr_fine_tuner import InterruptedJob, TrainParameters
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.batches import IGNORED_LABEL, ClipDataset, Collator
from asr_fine_tuner.evaluation import Evaluation, generation_limit
from asr_fine_tuner.features import pad_to_window
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.metrics import score
from asr_fine_tuner.training import TrainResult


@pytest.fixture
def of_memorised(memorised: TrainResult, parameters: TrainParameters) -> FineTuning:
    """Starts from the weights that know four clips of the train split by heart, and is assessed on all ten."""
    return fine_tuning_of(changed(parameters, model_id=str(memorised.model_dir), max_sequence_length=40))


def _generated(tuning: FineTuning, clips: ClipDataset, limit: int) -> list[str]:
    model = WhisperForConditionalGeneration.from_pretrained(tuning.model_folder).eval()
    features = pad_to_window([clips.clips.features(index) for index in range(len(clips))], 400)
    tokens = model.generate(
        input_features=torch.from_numpy(features).float(), max_new_tokens=limit, language="it", task="transcribe"
    )
    return [tuning.labels.decode(row) for row in tokens.tolist()]


@pytest.mark.parametrize("batch_size", [3, 10])
def test_transcripts_are_those_of_plain_generate_in_the_order_of_the_split(
    batch_size: int, of_memorised: FineTuning
) -> None:
    tuning = of_memorised
    tuning.trainer.args.per_device_eval_batch_size = batch_size
    clips = ClipDataset(tuning.clips["train"], longest_first=True)
    assert [clips[position].index for position in range(10)] != list(range(10))

    evaluation = tuning.trainer.assess(clips, "train")

    assert evaluation.max_new_tokens == min(40, math.ceil(1.5 * (clips.longest_labels - 4)))
    assert evaluation.predictions == _generated(tuning, clips, evaluation.max_new_tokens)
    assert evaluation.predictions[:4] == clips.clips.texts[:4], "what it knows by heart"
    assert evaluation.scores == score(clips.clips.texts, evaluation.predictions, language_code="it")


def test_tokens_are_those_of_the_stock_trainer(of_memorised: FineTuning, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seq2SeqTrainer with predict_with_generate, which runs the encoder twice for them."""
    tuning = of_memorised
    clips = ClipDataset(tuning.clips["train"])
    ours: list[torch.Tensor] = []
    generate = tuning.trainer.model.generate

    def noting(**given: Any) -> torch.Tensor:
        ours.append(generate(**given))
        return ours[-1]

    monkeypatch.setattr(tuning.trainer.model, "generate", noting)
    evaluation = tuning.trainer.assess(clips, "train")

    model = WhisperForConditionalGeneration.from_pretrained(tuning.model_folder)
    model.generation_config.language, model.generation_config.task = "it", "transcribe"
    given = Seq2SeqTrainingArguments(
        tuning.trainer.run_dir,
        predict_with_generate=True,
        per_device_eval_batch_size=4,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
    )
    collator = cast("Collator", tuning.trainer.data_collator)

    def collated(rows: list[Any]) -> dict[str, torch.Tensor]:
        batch = collator(rows)
        return {"input_features": batch["input_features"].float(), "labels": batch["labels"]}

    stock = Seq2SeqTrainer(model, given, data_collator=collated)
    theirs = stock.predict(clips, max_new_tokens=evaluation.max_new_tokens).predictions
    around = {*tuning.labels.tokenizer.prefix_tokens, tuning.labels.tokenizer.eos_token_id, IGNORED_LABEL}

    def generated(rows: list[list[int]]) -> list[list[int]]:
        return [[token for token in row if token not in around] for row in rows]

    assert generated([row for batch in ours for row in batch.tolist()]) == generated(theirs.tolist())


def test_generation_stops_at_max_sequence_length(of_memorised: FineTuning) -> None:
    tuning = of_memorised
    tuning.trainer.args.generation_max_length = 3
    clips = ClipDataset(tuning.clips["train"])
    evaluation = tuning.trainer.assess(clips, "train")
    assert evaluation.max_new_tokens == 3
    assert evaluation.predictions == _generated(tuning, clips, 3)
    assert all(len(tuning.labels.tokenizer(f" {text}", add_special_tokens=False).input_ids) <= 3
               for text in evaluation.predictions)  # fmt: skip


def test_the_loss_is_the_mean_over_all_tokens_of_the_split(of_memorised: FineTuning) -> None:
    tuning = of_memorised
    clips = ClipDataset(tuning.clips["train"], longest_first=True)
    model = WhisperForConditionalGeneration.from_pretrained(tuning.model_folder).eval()
    collator = tuning.trainer.data_collator
    assert isinstance(collator, Collator)
    total, n_tokens = 0.0, 0
    for position in range(len(clips)):
        batch = collator([clips[position]])
        count = int((batch["labels"] != IGNORED_LABEL).sum())
        with torch.no_grad():
            loss = model(input_features=batch["input_features"].float(), labels=batch["labels"]).loss
        total, n_tokens = total + float(loss) * count, n_tokens + count

    assert tuning.trainer.assess(clips, "train").loss == pytest.approx(total / n_tokens, rel=1e-5)


def test_the_encoder_runs_once_for_each_batch(of_memorised: FineTuning) -> None:
    tuning = of_memorised
    batches: list[int] = []
    encoder = tuning.trainer.model.get_encoder()
    encoder.register_forward_hook(lambda _module, _inputs, output: batches.append(len(output.last_hidden_state)))
    tuning.trainer.assess(ClipDataset(tuning.clips["validation"]), "validation")
    assert batches == [4, 1]


def test_half_precision_reaches_all_of_an_evaluation_before_training_and_after(parameters: TrainParameters) -> None:
    tuning = fine_tuning_of(changed(parameters, precision="bf16", max_steps=1))
    trainer, clips = tuning.trainer, ClipDataset(tuning.clips["validation"])
    types: set[torch.dtype] = set()
    encoder_layer = trainer.model.get_encoder().layers[0].fc1
    encoder_layer.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))

    before = trainer.assess(clips, "before")
    assert types == {torch.bfloat16}
    trainer.train()
    trainer.load_weights(tuning.model_folder)
    after = trainer.assess(clips, "after")

    assert types == {torch.bfloat16}
    assert (after.loss, after.predictions) == (before.loss, before.predictions)


def test_a_signal_ends_an_evaluation_after_the_batch_in_progress(of_memorised: FineTuning) -> None:
    tuning = of_memorised
    with (
        sigterm_at("validation of a test: 5 of 5 clips"),
        pytest.raises(InterruptedJob, match="the evaluation was left"),
    ):
        tuning.trainer.assess(ClipDataset(tuning.clips["validation"]), "validation of a test")


def test_a_model_that_says_nothing_is_scored(
    tmp_path: Path, parameters: TrainParameters, tiny_artifact: Path, memorised: TrainResult
) -> None:
    """It has learnt to say nothing: every prediction is empty, and every word of the references a deletion."""
    clips = clips_of(tiny_artifact, "train")[:4]
    tuning = fine_tuning_of(changed(parameters, model_id=str(memorised.model_dir)))
    silent = with_texts(clips, [""] * 4, tuning.labels)
    artifact = write_artifact(tmp_path / "silent", memorised.model_dir, tiny_artifact, dict.fromkeys(SPLITS, silent))
    training = fine_tuning_of(
        changed(
            parameters,
            model_id=str(memorised.model_dir),
            artifact_name=str(artifact),
            output_dir=str(tmp_path / "silent-run"),
            learning_rate=1e-2,
            max_steps=15,
            eval_steps=15,
            train_batch_size=4,
        )
    )
    training.trainer.train()
    weights = training.run.folder / "best-15"
    assert weights_of(weights) != weights_of(memorised.model_dir)
    tuning.trainer.load_weights(weights)

    evaluation = tuning.trainer.assess(ClipDataset(tuning.clips["train"]), "train")

    assert evaluation.predictions[:4] == [""] * 4
    assert evaluation.scores.wer.deletions > 0


def test_an_evaluation_is_kept_in_a_file(of_memorised: FineTuning, tmp_path: Path) -> None:
    evaluation = of_memorised.trainer.assess(ClipDataset(of_memorised.clips["test"]), "test")
    evaluation.write(tmp_path / "deeper" / "evaluation.json")
    assert Evaluation.read(tmp_path / "deeper" / "evaluation.json") == evaluation
    metrics = evaluation.metrics("eval")
    assert metrics["eval_loss"] == evaluation.loss
    assert metrics["eval_cer"] == evaluation.scores.cer.rate


@pytest.mark.parametrize(
    ("longest", "asked", "limit"),
    [(20, 255, 30), (21, 255, 32), (20, 25, 25), (400, 448, 444), (400, 255, 255), (1, 255, 2)],
)
def test_generation_is_bounded_by_the_references_the_parameter_and_the_decoder(
    longest: int, asked: int, limit: int
) -> None:
    assert generation_limit(longest, asked, max_target_positions=448, prompt=4) == limit
