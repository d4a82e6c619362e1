"""Encoding the shards of a dataset, one after another or in several processes; a finished shard is never lost."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from asr_fine_tuner import hub
from asr_fine_tuner.artifact import ClipWriter
from asr_fine_tuner.dataset import ShardPlan
from asr_fine_tuner.encoding import ClipEncoder, EncoderSettings, shared_encoder
from asr_fine_tuner.errors import ExitCode, TransientError
from asr_fine_tuner.files import (
    canonical_json,
    full_disk_explained,
    mismatches,
    sha256_of,
    sync_folder,
    write_atomically,
)
from asr_fine_tuner.logs import redact_stderr
from asr_fine_tuner.manifest import MANIFEST_NAME
from asr_fine_tuner.rejection import ClipRejected
from asr_fine_tuner.stop import raise_if_stopped, share_stop, stop_requested

logger = logging.getLogger(__name__)

# What a worker needs beyond our own modules; the fork server imports them once for all workers.
_PRELOADED = [
    "asr_fine_tuner.shards",
    "pyarrow.parquet",
    "torch",
    "datasets",
    "transformers.models.whisper.feature_extraction_whisper",
    "transformers.models.whisper.tokenization_whisper",
]
_SECONDS_BETWEEN_STOP_CHECKS = 0.5
_FRAMES_PER_SECOND, _BYTES_PER_FEATURE = 100, 2  # of log-mel features in float16


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rejection(_Record):
    """One line of `rejected.jsonl`."""

    split: str
    id: str
    reason: str
    detail: str


class ShardFile(_Record):
    """One Arrow file: its name within the split's folder, its hash, and what it holds."""

    name: str
    sha256: str
    clips: int
    seconds: float
    longest_labels: int


class ShardRecord(_Record):
    """What became of one shard: a file for each split that it feeds, and what was rejected."""

    files: dict[str, ShardFile]
    rejected: list[Rejection]

    @property
    def n_examples(self) -> int:
        return sum(file.clips for file in self.files.values()) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class WorkingFolder:
    """An unfinished artifact, beside what is needed to continue it: what was asked for, and a record of each shard."""

    folder: Path

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"

    def create(self, identity: str) -> None:
        self.artifact.mkdir(parents=True)
        (self.folder / "shards").mkdir()
        write_atomically(self._identity_path, identity)

    def identity(self) -> str | None:
        """What this folder was created for; None when there is no such folder."""
        return self._identity_path.read_text(encoding="utf-8") if self._identity_path.is_file() else None

    def remove_leftovers(self) -> None:
        """Remove what a killed job left between its last shard and the finished artifact, which would be hashed too."""
        for path in [*self.artifact.rglob(".*.tmp"), self.artifact / MANIFEST_NAME]:
            path.unlink(missing_ok=True)

    def record_path(self, index: int) -> Path:
        return self.folder / "shards" / f"{index:05d}.json"

    def record(self, index: int) -> ShardRecord:
        return ShardRecord.model_validate_json(self.record_path(index).read_text(encoding="utf-8"))

    @property
    def _identity_path(self) -> Path:
        return self.folder / "identity"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to encode, and the folder that its files go to."""

    index: int
    plan: ShardPlan
    work: WorkingFolder
    settings: EncoderSettings


@dataclass(frozen=True, slots=True)
class EncodedShard:
    record: ShardRecord
    bytes_fetched: int


def encode_shards(tasks: Sequence[ShardTask], num_workers: int, on_shard: Callable[[ShardRecord], None]) -> int:
    """Encode all tasks, calling `on_shard` for each as it finishes. Returns the bytes fetched from the Hub.

    Raises:
        InterruptedJob: SIGTERM or SIGINT; finished shards stay, the one being written is dropped.
        TransientError: a worker process died.
    """
    bytes_fetched = 0
    run = _in_process(tasks) if num_workers == 1 or len(tasks) <= 1 else _in_processes(tasks, num_workers)
    for encoded in run:
        bytes_fetched += encoded.bytes_fetched
        on_shard(encoded.record)
    raise_if_stopped("finished shards are kept")
    return bytes_fetched


def finished_record(task: ShardTask) -> ShardRecord | None:
    """The record of an already finished shard whose files are as they were written; None otherwise."""
    try:
        record = task.work.record(task.index)
    except (FileNotFoundError, ValidationError):
        return None
    expected = {f"{split}/{file.name}": file.sha256 for split, file in record.files.items()}
    if problems := mismatches(task.work.artifact, expected):
        logger.warning("shard %d is encoded again: %s", task.index, "; ".join(problems))
        return None
    return record


def encode_shard(task: ShardTask) -> EncodedShard:
    """Encode one shard in one pass: stage a file per split, hash it, rename it into place, record it last.

    Raises:
        InterruptedJob: a stop was asked for.
        PermanentError: the disk is full.
    """
    fetched_before = hub.bytes_fetched()
    encoder = shared_encoder(task.settings)
    longest = round(task.settings.max_duration * _FRAMES_PER_SECOND) * encoder.n_mels * _BYTES_PER_FEATURE
    with full_disk_explained(task.work.artifact, task.plan.n_examples * longest):
        record = _write_shard(task, encoder)
    return EncodedShard(record, hub.bytes_fetched() - fetched_before)


def _write_shard(task: ShardTask, encoder: ClipEncoder) -> ShardRecord:
    name = f"data-{task.index:05d}.arrow"
    staged = {split: task.work.artifact / split / f".{name}.tmp" for split, rows in task.plan.rows.items() if rows}
    for path in staged.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    writers = {split: ClipWriter(path, encoder.n_mels) for split, path in staged.items()}
    clips, seconds, longest = dict.fromkeys(staged, 0), dict.fromkeys(staged, 0.0), dict.fromkeys(staged, 0)
    rejected = []
    for split, example in task.plan.examples():
        raise_if_stopped("finished shards are kept")
        try:
            clip = encoder.encode(example)
        except ClipRejected as rejection:
            rejected.append(Rejection(split=split, id=example.id, reason=rejection.reason, detail=rejection.detail))
            continue
        writers[split].append(clip)
        clips[split] += 1
        seconds[split] += clip.seconds
        longest[split] = max(longest[split], len(clip.labels))
    files = {}
    for split, path in staged.items():
        writers[split].close()
        files[split] = ShardFile(
            name=name,
            sha256=sha256_of(path),
            clips=clips[split],
            seconds=seconds[split],
            longest_labels=longest[split],
        )
        path.replace(path.with_name(name))
        sync_folder(path.parent)
    record = ShardRecord(files=files, rejected=rejected)
    write_atomically(task.work.record_path(task.index), canonical_json(record.model_dump(mode="json")))
    return record


def _in_process(tasks: Sequence[ShardTask]) -> Iterator[EncodedShard]:
    for task in tasks:
        raise_if_stopped("finished shards are kept")
        yield encode_shard(task)


def _in_processes(tasks: Sequence[ShardTask], num_workers: int) -> Iterator[EncodedShard]:
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
