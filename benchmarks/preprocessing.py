"""Preprocessing, as a child process: from the dataset's parquet files to a folder that `datasets.load_from_disk` opens.

Both recipes run whole, in one process, on clips they have not seen, after a run on a few other clips that pays for
imports. Time is processor time, of user and kernel, so that it is of one core whatever else the machine does; waiting
for the disk, of which the plain recipe has more to write, is left out. Peak memory is of the whole process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from asr_fine_tuner import PreprocessResult


def ours(dataset: Path, model: Path, name: str) -> int:
    """The preprocess job; returns the bytes of the artifact."""
    from asr_fine_tuner import PreprocessParameters, preprocess

    made = preprocess(
        PreprocessParameters(
            dataset_name=str(dataset), language_code="it", model_id=str(model), artifact_name=name, num_workers=1
        )
    )
    return cast("PreprocessResult", made).artifact_bytes


def plain(dataset: Path, model: Path, name: str) -> int:
    """The usual script up to its training, and what it prepared saved as such scripts do to keep it."""
    from benchmarks.plain_recipe import load_processor, prepare

    prepare(dataset, load_processor(model)).save_to_disk(name)
    return sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())


def main(recipe: str, few_clips: Path, dataset: Path, model: Path) -> None:
    recipes: dict[str, Callable[[Path, Path, str], int]] = {"ours": ours, "plain": plain}
    run = recipes[recipe]
    run(few_clips, model, "few")
    began = time.process_time()
    artifact_bytes = run(dataset, model, "measured")
    print(json.dumps({"core_seconds": time.process_time() - began, "artifact_bytes": artifact_bytes}))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
