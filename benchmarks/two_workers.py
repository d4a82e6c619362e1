"""Clips a second that one worker and two workers encode, as a child process.

Counted while all workers are at work: from when each has finished its first shard, with whatever it has to load, to
when the last shards are handed out. A real dataset is large enough for the ends not to matter.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from pathlib import Path


def clips_per_second(dataset: Path, model: Path, num_workers: int) -> float:
    """
    Raises:
        ValueError: the dataset has too few shards to see all workers at work.
    """
    from asr_fine_tuner.dataset import resolve_dataset
    from asr_fine_tuner.encoding import EncoderSettings
    from asr_fine_tuner.engines import encode_shards
    from asr_fine_tuner.shards import ShardTask, WorkingFolder

    settings = EncoderSettings(
        model_folder=model,
        language_code="it",
        task="transcribe",
        min_duration=0.1,
        max_duration=30.0,
        max_labels=448,
    )
    plan = resolve_dataset(str(dataset), language_code="it").plan(max_train_samples=None, max_eval_samples=None, seed=0)
    work = WorkingFolder(Path("work").absolute())
    work.create("benchmark")
    tasks = [ShardTask(index, shard, work, settings) for index, shard in enumerate(plan.shards)]
    finished: list[tuple[float, int]] = []
    encode_shards(tasks, "local", num_workers, lambda record: finished.append((time.monotonic(), record.n_examples)))
    shutil.rmtree(work.folder)
    if len(finished) <= 2 * num_workers:
        raise ValueError(f"{len(finished)} shards for {num_workers} workers")
    began, _ = finished[num_workers - 1]
    between = finished[num_workers:-num_workers]
    return sum(clips for _, clips in between) / (between[-1][0] - began)


def main(dataset: Path, model: Path, repetitions: int) -> None:
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repetitions):
        for num_workers, measured in speeds.items():
            measured.append(clips_per_second(dataset, model, num_workers))
    print(json.dumps({"one": statistics.median(speeds[1]), "two": statistics.median(speeds[2])}))


# The fork server imports this module into the workers.
if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
