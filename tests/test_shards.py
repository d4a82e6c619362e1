"""Shards: encoded in any number of processes, recorded when whole, kept when the job is not."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import tiny

from asr_fine_tuner import stop
from asr_fine_tuner.artifact import ClipWriter
from asr_fine_tuner.dataset import ShardPlan, resolve_dataset
from asr_fine_tuner.encoding import EncoderSettings
from asr_fine_tuner.engines import encode_shards
from asr_fine_tuner.errors import InterruptedJob, TransientError
from asr_fine_tuner.examples import Example
from asr_fine_tuner.shards import (
    ShardRecord,
    ShardTask,
    WorkingFolder,
    encode_shard,
    finished_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SETTINGS = EncoderSettings(tiny.model(), "it", "transcribe", min_duration=0.1, max_duration=4.0, max_labels=448)


@dataclass(frozen=True)
class ListedShard:
    """Examples that are there already."""

    listed: tuple[Example, ...]

    @property
    def n_examples(self) -> int:
        return len(self.listed)

    def speakers(self) -> list[str | None]:
        return [example.speaker for example in self.listed]

    def examples(self, rows: Sequence[int]) -> Iterator[Example]:
        for row in rows:
            yield self.listed[row]


class DeadlyShard(ListedShard):
    """Ends the process that reads it, as the kernel does for lack of memory."""

    def examples(self, rows: Sequence[int]) -> Iterator[Example]:
        yield self.listed[rows[0]]
        os._exit(9)


@pytest.fixture
def work(tmp_path: Path) -> WorkingFolder:
    work = WorkingFolder(tmp_path / "partial")
    work.create("identity")
    return work


def examples(n: int, first: int = 0) -> tuple[Example, ...]:
    return tuple(
        Example(f"{number}.flac", tiny.spoken(number), f"Frase {number}.", None) for number in range(first, first + n)
    )


def task(work: WorkingFolder, index: int, of: tuple[Example, ...], kind: type[ListedShard] = ListedShard) -> ShardTask:
    return ShardTask(index, ShardPlan(kind(of), {"train": tuple(range(len(of)))}), work, SETTINGS)


def tasks_of_the_dataset(work: WorkingFolder) -> list[ShardTask]:
    dataset = resolve_dataset(str(tiny.dataset()), language_code="it")
    plan = dataset.plan(max_train_samples=None, max_eval_samples=None, seed=42)
    return [ShardTask(index, shard, work, SETTINGS) for index, shard in enumerate(plan.shards)]


def arrow_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tiny.contents(folder).items() if name.endswith(".arrow")}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_files(num_workers: int, work: WorkingFolder) -> None:
    tasks = tasks_of_the_dataset(work)
    assert len(tasks) == 10
    finished: list[ShardRecord] = []
    assert encode_shards(tasks, "local", num_workers, finished.append) == 0
    assert sum(record.n_examples for record in finished) == 112
    assert arrow_files(work.artifact) == arrow_files(tiny.artifact())
    assert all(finished_record(task) for task in tasks)


def test_the_splits_of_one_shard_go_to_a_file_each(work: WorkingFolder) -> None:
    rows = {"test": (1, 4), "train": (0, 3, 5), "validation": (2,)}
    encode_shard(ShardTask(7, ShardPlan(ListedShard(examples(6)), rows), work, SETTINGS))
    record = work.record(7)
    assert {split: file.clips for split, file in record.files.items()} == {"test": 2, "train": 3, "validation": 1}
    assert set(tiny.contents(work.artifact)) == {f"{split}/data-00007.arrow" for split in rows}
    assert record.files["train"].seconds == pytest.approx(1.8)


def test_what_is_rejected_is_recorded_with_its_split(work: WorkingFolder) -> None:
    bad = Example("bad.flac", b"", "testo", None)
    record = encode_shard(task(work, 0, (*examples(1), bad))).record
    (rejected,) = record.rejected
    assert (rejected.split, rejected.id, rejected.reason) == ("train", "bad.flac", "empty")
    assert (record.n_examples, record.files["train"].clips) == (2, 1)


def test_a_shard_of_nothing_but_rejections_leaves_a_file_without_clips(work: WorkingFolder) -> None:
    record = encode_shard(task(work, 0, (Example("bad.flac", b"", "testo", None),))).record
    assert record.files["train"].clips == 0
    assert finished_record(task(work, 0, ())) == record


class TestFinishedRecord:
    def test_none_yet(self, work: WorkingFolder) -> None:
        assert finished_record(task(work, 0, examples(1))) is None

    def test_damaged_files_are_encoded_again(self, work: WorkingFolder) -> None:
        todo = task(work, 0, examples(2))
        record = encode_shard(todo).record
        assert finished_record(todo) == record
        path = work.artifact / "train" / "data-00000.arrow"
        path.write_bytes(path.read_bytes()[:-1])
        assert finished_record(todo) is None
        assert encode_shard(todo).record == record
        assert finished_record(todo) == record

    @pytest.mark.parametrize("content", ["", "{", '{"files": {}}'])
    def test_a_damaged_record(self, content: str, work: WorkingFolder) -> None:
        todo = task(work, 0, examples(1))
        encode_shard(todo)
        work.record_path(0).write_text(content)
        assert finished_record(todo) is None


def test_a_stop_keeps_what_is_finished_and_drops_the_rest(work: WorkingFolder) -> None:
    event = multiprocessing.get_context("spawn").Event()
    stop.share_stop(event)
    tasks = [task(work, index, examples(2, first=2 * index)) for index in range(3)]
    try:
        with pytest.raises(InterruptedJob, match="finished shards are kept"):
            encode_shards(tasks, "local", 1, lambda _: event.set())
    finally:
        stop._shared.clear()
    assert [finished_record(todo) is not None for todo in tasks] == [True, False, False]
    assert set(arrow_files(work.artifact)) == {"train/data-00000.arrow"}


def test_a_worker_that_dies_is_told_and_loses_only_its_shard(work: WorkingFolder) -> None:
    finished: list[ShardRecord] = []
    good = [task(work, index, examples(1, first=index)) for index in range(2)]
    encode_shards(good, "local", 1, finished.append)
    deadly = [task(work, 2, examples(2), DeadlyShard), task(work, 3, examples(2), DeadlyShard)]
    with pytest.raises(TransientError, match="worker processes was killed") as caught:
        encode_shards(deadly, "local", 2, finished.append)
    assert "--num_workers" in caught.value.action
    assert [finished_record(todo) is not None for todo in (*good, *deadly)] == [True, True, False, False]


def test_leftovers_of_a_killed_job_are_removed(work: WorkingFolder) -> None:
    encode_shard(task(work, 0, examples(1)))
    whole = tiny.contents(work.artifact)
    ClipWriter(work.artifact / "train" / ".data-00001.arrow.tmp", 80).close()
    (work.artifact / ".rejected.jsonl.123.tmp").write_text("half")
    (work.artifact / "manifest.json").write_text("{}")
    work.remove_leftovers()
    assert tiny.contents(work.artifact) == whole


def test_the_identity_is_there_once_the_folder_is_whole(tmp_path: Path) -> None:
    work = WorkingFolder(tmp_path / "partial")
    assert not work.is_for("asked for")
    work.create("asked for")
    assert work.is_for("asked for")
    assert not work.is_for("something else")
    work.artifact.rename(tmp_path / "artifact")
    assert not work.is_for("asked for"), "what killed its job before it was removed"
