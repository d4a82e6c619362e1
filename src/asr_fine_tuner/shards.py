"""Shards of a dataset: each is encoded by itself, recorded when it is whole, and never lost then."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from asr_fine_tuner import hub
from asr_fine_tuner.artifact import ClipWriter
from asr_fine_tuner.dataset import ShardPlan
from asr_fine_tuner.encoding import ClipEncoder, DecodedClip, EncoderSettings, shared_encoder
from asr_fine_tuner.files import (
    canonical_json,
    full_disk_explained,
    mismatches,
    sha256_of,
    staging_path,
    sync_folder,
    write_atomically,
)
from asr_fine_tuner.manifest import MANIFEST_NAME
from asr_fine_tuner.rejection import ClipRejected
from asr_fine_tuner.stop import raise_if_stopped

logger = logging.getLogger(__name__)

# Decoded before the features of the first are extracted (see ClipEncoder): 15 MB of audio for clips of 30 s.
_CLIPS_AT_ONCE = 8
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

    def is_for(self, identity: str) -> bool:
        """Whether the folder is there, was created for `identity`, and its artifact has not been moved into place."""
        if not (self._identity_path.is_file() and self.artifact.is_dir()):
            return False
        return self.begun_for() == identity

    def begun_for(self) -> str:
        """The identity that the folder was created for."""
        return self._identity_path.read_text(encoding="utf-8")

    def remove_leftovers(self) -> None:
        """Remove what killed jobs left half written, and what one left between its last shard and the finished
        artifact, which would be hashed too. No other job may be writing here."""
        for path in [*self.artifact.rglob(".*.tmp"), self.artifact / MANIFEST_NAME]:
            path.unlink(missing_ok=True)

    def record_path(self, index: int) -> Path:
        return self.folder / "shards" / f"{index:05d}.json"

    def record(self, index: int) -> ShardRecord:
        return ShardRecord.model_validate_json(self.record_path(index).read_text(encoding="utf-8"))

    def n_recorded(self) -> int:
        """How many shards are recorded, by whatever job on whatever machine."""
        if not (self.folder / "shards").is_dir():
            return 0
        # NFS clients list a folder from a cache that may be a minute old, unless they have just changed the folder.
        with tempfile.TemporaryFile(dir=self.folder / "shards"):
            return sum(1 for _ in (self.folder / "shards").glob("*.json"))

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
    name = f"data-{task.index:05d}.arrow"
    staged = {split: staging_path(task.work.artifact / split / name) for split, rows in task.plan.rows.items() if rows}
    try:
        with full_disk_explained(task.work.artifact, task.plan.n_examples * longest):
            record = _write_shard(task, encoder, name, staged)
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)
    return EncodedShard(record, hub.bytes_fetched() - fetched_before)


def _write_shard(task: ShardTask, encoder: ClipEncoder, name: str, staged: Mapping[str, Path]) -> ShardRecord:
    for path in staged.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    files = {split: _StagedFile(path, encoder) for split, path in staged.items()}
    rejected = []
    for split, example in task.plan.examples():
        raise_if_stopped("finished shards are kept")
        try:
            files[split].append(encoder.decode(example))
        except ClipRejected as rejection:
            rejected.append(Rejection(split=split, id=example.id, reason=rejection.reason, detail=rejection.detail))
    record = ShardRecord(files={split: file.publish(name) for split, file in files.items()}, rejected=rejected)
    write_atomically(task.work.record_path(task.index), canonical_json(record.model_dump(mode="json")))
    return record


class _StagedFile:
    """The Arrow file of one split while it is written, and what it holds so far."""

    def __init__(self, path: Path, encoder: ClipEncoder) -> None:
        self._path = path
        self._encoder = encoder
        self._writer = ClipWriter(path, encoder.n_mels)
        self._waiting: list[DecodedClip] = []
        self._clips, self._seconds, self._longest_labels = 0, 0.0, 0

    def append(self, clip: DecodedClip) -> None:
        self._waiting.append(clip)
        self._clips += 1
        self._seconds += clip.seconds
        self._longest_labels = max(self._longest_labels, len(clip.labels))
        if len(self._waiting) == _CLIPS_AT_ONCE:
            self._encode_waiting()

    def publish(self, name: str) -> ShardFile:
        """Write what is left and rename the file to `name`, durably."""
        self._encode_waiting()
        self._writer.close()
        sha256 = sha256_of(self._path)
        self._path.replace(self._path.with_name(name))
        sync_folder(self._path.parent)
        return ShardFile(
            name=name,
            sha256=sha256,
            clips=self._clips,
            seconds=self._seconds,
            longest_labels=self._longest_labels,
        )

    def _encode_waiting(self) -> None:
        for clip in self._waiting:
            self._writer.append(self._encoder.encode(clip))
        self._waiting.clear()
