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
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_BATCH_SIZE = 16


def our_loader(dataset: Path, model: Path) -> DataLoader[Any]:
    from torch.utils.data import DataLoader
    from transformers import WhisperConfig

    from asr_fine_tuner import PreprocessParameters, preprocess
    from asr_fine_tuner.artifact import ArtifactSplit
    from asr_fine_tuner.batches import ClipDataset, Collator

    artifact = preprocess(
        PreprocessParameters(dataset_name=str(dataset), language_code="it", model_id=str(model), num_workers=1)
    ).artifact
    config = WhisperConfig.from_pretrained(model)
    collator = Collator(2 * config.max_source_positions, config.decoder_start_token_id, config.pad_token_id)
    clips = ClipDataset(ArtifactSplit(artifact, "train", _BATCH_SIZE))
    return DataLoader(clips, batch_size=_BATCH_SIZE, collate_fn=collator)


def plain_loader(dataset: Path, model: Path) -> DataLoader[Any]:
    from torch.utils.data import DataLoader
    from transformers import WhisperConfig

    from benchmarks.plain_recipe import PaddingCollator, load_processor, prepare

    processor = load_processor(model)
    collator = PaddingCollator(processor, WhisperConfig.from_pretrained(model).decoder_start_token_id)
    rows = prepare(dataset, processor)["train"].select_columns(["input_features", "labels"]).select(range(_BATCH_SIZE))
    return DataLoader(rows, batch_size=_BATCH_SIZE, collate_fn=collator)


def main(dataset: Path, model: Path, repetitions: int) -> None:
    loaders = {"ours": our_loader(dataset, model), "plain": plain_loader(dataset, model)}
    seconds: dict[str, list[float]] = {recipe: [] for recipe in loaders}
    for _ in range(repetitions):
        for recipe, loader in loaders.items():
            began = time.process_time()
            next(iter(loader))
            seconds[recipe].append(time.process_time() - began)
    # The first batch of each pays for lazy imports.
    print(json.dumps({recipe: statistics.median(times[1:]) for recipe, times in seconds.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
