"""One batch of 16 clips through torch's data loader, as a child process: rows read from disk and collated.

What is timed is what a training step waits for: the loader asks for 16 rows by their numbers and hands them to the
collator. Processor time, with the prepared clips in the page cache. Ours leaves the features in float16, which travels
to the device in half the bytes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from asr_fine_tuner import PreprocessResult

_BATCH_SIZE = 16


def our_loader(dataset: Path, model: Path, n_batches: int) -> DataLoader[Any]:
    from transformers import WhisperConfig

    from asr_fine_tuner import PreprocessParameters, preprocess
    from asr_fine_tuner.artifact import ArtifactSplit
    from asr_fine_tuner.batches import ClipDataset, Collator

    made = preprocess(
        PreprocessParameters(dataset_name=str(dataset), language_code="it", model_id=str(model), num_workers=1)
    )
    config = WhisperConfig.from_pretrained(model)
    collator = Collator(2 * config.max_source_positions, config.decoder_start_token_id, config.pad_token_id)
    return _loader(ClipDataset(ArtifactSplit(cast("PreprocessResult", made).artifact, "train")), collator, n_batches)


def plain_loader(dataset: Path, model: Path, n_batches: int) -> DataLoader[Any]:
    from transformers import WhisperConfig

    from benchmarks.plain_recipe import PaddingCollator, load_processor, prepare

    processor = load_processor(model)
    collator = PaddingCollator(processor, WhisperConfig.from_pretrained(model).decoder_start_token_id)
    # As the trainer does, which knows the columns that a Whisper takes.
    rows = prepare(dataset, processor)["train"].select_columns(["input_features", "labels"])
    return _loader(rows, collator, n_batches)


def _loader(clips: Any, collator: Callable[..., Any], n_batches: int) -> DataLoader[Any]:
    """The same clips in every batch."""
    from torch.utils.data import DataLoader, Subset

    return DataLoader(Subset(clips, [*range(_BATCH_SIZE)] * n_batches), batch_size=_BATCH_SIZE, collate_fn=collator)


def seconds_per_batch(batches: Iterable[Any]) -> list[float]:
    seconds = []
    began = time.process_time()
    for _ in batches:
        seconds.append(time.process_time() - began)
        began = time.process_time()
    # The first pays for lazy imports.
    return seconds[1:]


def main(dataset: Path, model: Path, n_batches: int) -> None:
    loaders = {"ours": our_loader(dataset, model, n_batches), "plain": plain_loader(dataset, model, n_batches)}
    print(json.dumps({recipe: statistics.median(seconds_per_batch(loader)) for recipe, loader in loaders.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
