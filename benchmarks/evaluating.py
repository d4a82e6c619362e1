"""One evaluation of the test split, as a child process.

    python -m benchmarks.evaluating ours MODEL ARTIFACT_NAME BATCH_SIZE
    python -m benchmarks.evaluating plain MODEL PREPARED BATCH_SIZE [MAX_NEW_TOKENS]

The first batch is evaluated once before, to warm up. The result has the `seconds` of the whole evaluation with its
scores, the `transcripts` in the order of the split, of ours also `max_new_tokens`, the most that one could have, the
`device` and `gpu_bytes`, the most that tensors took on it (null without a GPU).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.device import device_name, gpu_bytes

if TYPE_CHECKING:
    from transformers import EvalPrediction


def ours(model: str, artifact_name: str, batch_size: str) -> dict[str, Any]:
    """As the train job evaluates the weights it starts from."""
    from asr_fine_tuner import TrainParameters
    from asr_fine_tuner.artifact import ArtifactSplit
    from asr_fine_tuner.batches import ClipDataset
    from asr_fine_tuner.fine_tuning import FineTuning
    from asr_fine_tuner.run_folder import RunFolder
    from asr_fine_tuner.tracking import NoTracker
    from asr_fine_tuner.training_input import open_artifact

    parameters = TrainParameters(model_id=model, artifact_name=artifact_name, eval_batch_size=int(batch_size))
    source = open_artifact(parameters)
    trainer = FineTuning(RunFolder(Path("run")), source, Path(model), parameters, NoTracker()).trainer
    first, whole = (ArtifactSplit(source.folder, "test", n_clips) for n_clips in (int(batch_size), None))
    trainer.assess(ClipDataset(first, longest_first=True), "first batch")
    began = time.monotonic()
    evaluation = trainer.assess(ClipDataset(whole, longest_first=True), "test")
    seconds = time.monotonic() - began
    heard = {"transcripts": evaluation.predictions, "max_new_tokens": evaluation.max_new_tokens}
    return {"seconds": seconds, **heard}


def plain(model: str, prepared: str, batch_size: str, max_new_tokens: str | None = None) -> dict[str, Any]:
    """`Seq2SeqTrainer.evaluate` with `predict_with_generate`.

    max_new_tokens: instead of the 225 tokens, prompt and all, that such scripts set.
    """
    import numpy as np
    from datasets import load_from_disk

    from benchmarks.plain_recipe import Settings, load_processor, trainer_of

    processor = load_processor(Path(model))
    splits = load_from_disk(prepared)
    trainer = trainer_of(splits, processor, Path(model), Path("run"), Settings(eval_batch_size=int(batch_size)))
    limit = {"max_new_tokens": int(max_new_tokens)} if max_new_tokens else {}
    heard: list[str] = []
    score = trainer.compute_metrics

    def keep_and_score(prediction: EvalPrediction) -> dict[str, float]:
        ids = np.where(prediction.predictions < 0, processor.tokenizer.pad_token_id, prediction.predictions)
        heard[:] = (text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True))
        scores: dict[str, float] = score(prediction)
        return scores

    trainer.compute_metrics = keep_and_score
    trainer.evaluate(splits["test"].take(min(int(batch_size), len(splits["test"]))), **limit)
    began = time.monotonic()
    trainer.evaluate(splits["test"], **limit)
    return {"seconds": time.monotonic() - began, "transcripts": heard}


def main(recipe: str, *given: str) -> None:
    recipes: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "plain": plain}
    print(json.dumps({**recipes[recipe](*given), "device": device_name(), "gpu_bytes": gpu_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
