"""Results of a training run as the train job could have found them."""

from __future__ import annotations

from asr_fine_tuner.metrics import score
from asr_fine_tuner.results import Source, SplitData, SplitScores, TrainingResults
from asr_fine_tuner.throughput import Throughput

REFERENCES = ["Buongiorno, a tutti!", "L'ora è tarda."]


def some_results() -> TrainingResults:
    base = score(REFERENCES, ["buon giorno tutti", "lora tarda"], language_code="it")
    tuned = score(REFERENCES, ["Buongiorno a tutti!", "L'ora e tarda."], language_code="it")
    return TrainingResults(
        model_name="whisper-small-it",
        model=Source("openai/whisper-small", True, "973afd24965f72e36ca33b3055d56a652f456b4d"),
        dataset=Source("google/fleurs", True, "70bb2e84b976b7e960aa89f1c648e09c59f894dd", "it_it"),
        artifact_sha256="5e" * 32,
        language_code="it",
        language="italian",
        language_token="it",
        multilingual=True,
        task="transcribe",
        steps=500,
        best_step=400,
        epochs=2.63,
        train_runtime=1234.5,
        throughput=Throughput(
            devices=1,
            audio_hours=23.78,
            audio_hours_per_device_hour=69.3,
            mfu=0.312,
            peak_tflops=312.0,
            peak_source="data sheet",
            padding_share=0.087,
            seconds={
                "data": 12.0,
                "forward": 380.5,
                "backward": 760.0,
                "optimizer": 70.0,
                "evaluation": 300.0,
                "saving": 15.5,
                "other": 12.0,
            },
        ),
        data={
            "train": SplitData(3030, 9.0412, "train"),
            "validation": SplitData(391, 1.01, "validation"),
            "test": SplitData(865, 2.79, "test"),
        },
        splits={"validation": SplitScores(base, tuned), "test": SplitScores(base, tuned)},
        rejected={"too_long": 3, "empty_text": 1},
        hyperparameters={"learning_rate": 1e-5, "train_batch_size": 16, "precision": "bf16", "freeze_encoder": False},
        versions={"transformers": "5.23.0", "torch": "2.13.0"},
    )
