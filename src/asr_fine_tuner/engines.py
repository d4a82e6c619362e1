"""Encoding the shards of an artifact that are not there yet, where it was asked for: on this machine, or on Ray."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from asr_fine_tuner.cores import usable_cores
from asr_fine_tuner.local_engine import encode_locally
from asr_fine_tuner.parameters import Engine
from asr_fine_tuner.progress import progress_bar
from asr_fine_tuner.ray_engine import encode_on_ray
from asr_fine_tuner.shards import ShardRecord, ShardTask, finished_record
from asr_fine_tuner.stop import raise_if_stopped

logger = logging.getLogger(__name__)


def encode_missing(
    tasks: Sequence[ShardTask],
    engine: Engine,
    num_workers: int | None,
    before: Callable[[Sequence[ShardTask]], object] = lambda _: None,
) -> int:
    """Encode the shards that are not there yet, `before` which it is called with them; returns the bytes fetched.

    Raises: see `encode_shards`.
    """
    with progress_bar("preprocess", sum(task.plan.n_examples for task in tasks), "clips") as bar:
        missing = []
        for task in tasks:
            if record := finished_record(task):
                bar.advance(record.n_examples)
            else:
                missing.append(task)
        if len(missing) < len(tasks):
            logger.info("%d of %d shards are finished already", len(tasks) - len(missing), len(tasks))
        if not missing:
            return 0
        before(missing)
        return encode_shards(missing, engine, num_workers, lambda record: bar.advance(record.n_examples))


def encode_shards(
    tasks: Sequence[ShardTask], engine: Engine, num_workers: int | None, on_shard: Callable[[ShardRecord], None]
) -> int:
    """Encode all tasks, calling `on_shard` for each as it finishes. Returns the bytes fetched from the Hub.

    num_workers: shards that are encoded at once; when None, as many as the engine has cores for.
    Raises:
        InterruptedJob: SIGTERM or SIGINT; finished shards stay, those being written are dropped.
        TransientError: a worker or node died, or the Hub or the cluster cannot be reached.
        PermanentError: the disk is full, or the engine is not there.
    """
    bytes_fetched = 0
    run = (
        encode_locally(tasks, num_workers or usable_cores()) if engine == "local" else encode_on_ray(tasks, num_workers)
    )
    with contextlib.closing(run):
        for encoded in run:
            bytes_fetched += encoded.bytes_fetched
            on_shard(encoded.record)
    raise_if_stopped("finished shards are kept")
    return bytes_fetched
