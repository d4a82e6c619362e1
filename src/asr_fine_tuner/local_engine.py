"""Encoding shards on this machine, one after another or in several processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event

from asr_fine_tuner.errors import ExitCode, TransientError
from asr_fine_tuner.logs import redact_stderr
from asr_fine_tuner.shards import EncodedShard, ShardTask, encode_shard
from asr_fine_tuner.stop import raise_if_stopped, share_stop, stop_requested

# What a worker needs beyond our own modules; the fork server imports them once for all workers.
_PRELOADED = [
    "asr_fine_tuner.local_engine",
    "pyarrow.parquet",
    "torch",
    "datasets",
    "transformers.models.whisper.feature_extraction_whisper",
    "transformers.models.whisper.tokenization_whisper",
]
_SECONDS_BETWEEN_STOP_CHECKS = 0.5


def encode_locally(tasks: Sequence[ShardTask], num_workers: int) -> Generator[EncodedShard, None, None]:
    """Each shard as it is finished, in whatever order. Ends early when a stop is asked for.

    Raises:
        InterruptedJob: a stop was asked for while this process encoded a shard, which is dropped.
        TransientError: a worker process died.
    """
    if num_workers == 1 or len(tasks) <= 1:
        return _in_process(tasks)
    return _in_processes(tasks, num_workers)


def _in_process(tasks: Sequence[ShardTask]) -> Generator[EncodedShard, None, None]:
    for task in tasks:
        raise_if_stopped("finished shards are kept")
        yield encode_shard(task)


def _in_processes(tasks: Sequence[ShardTask], num_workers: int) -> Generator[EncodedShard, None, None]:
    # Not fork: with threads alive in this process (the Hub's client, torch) a forked child can hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, len(tasks)), mp_context=context, initializer=_start_worker, initargs=(stop,)
    )
    with pool:
        waiting = {pool.submit(encode_shard, task) for task in tasks}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, _SECONDS_BETWEEN_STOP_CHECKS, concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    yield future.result()
                if stop_requested():
                    return
        except BrokenProcessPool:
            # A signal to the whole process group ends the workers too, before they can be told to stop.
            if stop_requested():
                return
            raise TransientError(
                given=f"one of {num_workers} worker processes was killed, most often for lack of memory",
                expected="workers that live until their shard is done",
                action="submit again with fewer --num_workers or more memory; finished shards are kept",
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(stop: Event) -> None:
    import torch

    # Ctrl-C reaches the whole process group; the parent decides and tells through the event.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share_stop(stop)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    redact_stderr()
    # More than one torch thread in each of several workers fights over the cores, and can hang.
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A job that is killed must not leave workers that write beside those of the next one."""
    if parent := multiprocessing.parent_process():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(ExitCode.TRANSIENT)
