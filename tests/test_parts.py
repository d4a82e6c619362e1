"""Jobs that make one artifact in parts: at once or one after another, and whoever finds all shards done merges."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny

from asr_fine_tuner import PartResult, PermanentError, PreprocessParameters, PreprocessResult, preprocess
from asr_fine_tuner.files import LockHeld, exclusive, shared
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.parts import Part

if TYPE_CHECKING:
    from loopback.hub import LoopbackHub
    from warm_jobs import WarmJobs


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_fine_tuner.parts._SECONDS_TO_WAIT", 0.0)


def run(index: int | None, count: int | None, **others: object) -> PreprocessResult | PartResult:
    flags = tiny.preprocess_flags(num_workers=1, artifact_name="made", shard_index=index, shard_count=count)
    return preprocess(PreprocessParameters.model_validate({**flags, **others}))


def merged(result: PreprocessResult | PartResult) -> PreprocessResult:
    assert isinstance(result, PreprocessResult)
    return result


@pytest.mark.parametrize(("n_shards", "count"), [(10, 1), (10, 3), (10, 10), (3, 7), (64, 8)])
def test_every_shard_is_of_one_part(n_shards: int, count: int) -> None:
    tasks: list[Any] = list(range(n_shards))
    parts = [Part(index, count).of(tasks) for index in range(count)]
    assert [task for part in parts for task in part] == tasks
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("index", "count", "told"),
    [
        (0, None, "must be given together"),
        (None, 2, "must be given together"),
        (2, 2, "must be below shard_count 2"),
        (-1, 2, "greater than or equal to 0"),
        (0, 0, "greater than 0"),
    ],
)
def test_numbers_that_make_no_part(index: int | None, count: int | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run(index, count)


def test_at_once_in_one_folder(jobs: WarmJobs, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "hf")}
    flags = tiny.preprocess_flags(num_workers=1, artifact_name="made", shard_count=3)
    started = [jobs.start("preprocess", {**flags, "shard_index": index}, env=home) for index in range(3)]
    ended = [job.wait() for job in started]
    assert [run.returncode for run in ended] == [0, 0, 0], [run.stderr for run in ended]
    done = [run.result for run in ended if run.result["status"] == "done"]
    assert [result["reused"] for result in done].count(False) == 1, "one of them merges"
    for result in (run.result for run in ended if run.result["status"] != "done"):
        assert result["status"] == "part_done"
        assert result["shards_of_part"] <= result["shards_done"] <= result["shards"] == 10
    assert tiny.contents(Path(done[0]["artifact"])) == tiny.contents(tiny.artifact())
    assert {path.name for path in Path(done[0]["artifact"]).parent.iterdir()} == {"artifact", "lock"}


@pytest.mark.usefixtures("hf_home")
class TestOneAfterAnother:
    def test_the_last_one_merges(self) -> None:
        told = [run(index, 3) for index in (2, 0)]
        assert [result.as_json() for result in told] == [
            {
                "status": "part_done",
                "artifact_name": "made",
                "shard_index": index,
                "shard_count": 3,
                "shards_of_part": of_part,
                "shards_done": done,
                "shards": 10,
                "bytes_fetched": 0,
            }
            for index, of_part, done in ((2, 4, 4), (0, 3, 7))
        ]
        last = merged(run(1, 3))
        assert not last.reused
        assert tiny.contents(last.artifact) == tiny.contents(tiny.artifact())
        assert merged(run(0, 3)).reused

    def test_a_job_without_an_index_makes_the_rest_and_merges(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "asr_fine_tuner")
        run(0, 2)
        whole = merged(run(None, None))
        assert "5 of 10 shards are finished already" in caplog.text
        assert tiny.contents(whole.artifact) == tiny.contents(tiny.artifact())

    def test_another_division_into_parts_continues(self, caplog: pytest.LogCaptureFixture) -> None:
        run(0, 2)
        caplog.set_level("INFO", "asr_fine_tuner")
        told = run(0, 1)
        assert "5 of 10 shards are finished already" in caplog.text
        assert tiny.contents(merged(told).artifact) == tiny.contents(tiny.artifact())

    def test_parts_without_shards_have_nothing_to_do(self) -> None:
        told = run(0, 11)
        assert isinstance(told, PartResult)
        assert (told.shards_of_part, told.shards_done, told.shards) == (0, 0, 10)

    def test_too_many_rejections_are_found_by_who_merges(self, tmp_path: Path) -> None:
        rows = tiny.all_splits()
        rows["train"] += [tiny.Row(b"") for _ in range(3)]
        dataset = tiny.write_dataset(tmp_path / "mixed", rows)
        assert isinstance(run(0, 2, dataset_name=str(dataset)), PartResult)
        with pytest.raises(PermanentError, match="3 of 13 clips are rejected"):
            run(1, 2, dataset_name=str(dataset))
        assert merged(run(1, 2, dataset_name=str(dataset), max_rejected_fraction=0.5)).rejected == {"empty": 3}

    def test_shards_of_another_request_are_kept_unless_they_are_to_be_overwritten(self) -> None:
        run(0, 2)
        before = tiny.contents(ArtifactHome.of("made").partial)
        for index in (0, 1, None):
            with pytest.raises(PermanentError, match="'made', under which a different one is unfinished") as caught:
                run(index, None if index is None else 2, min_duration=0.2)
            assert caught.value.given.endswith("(shards done: 5); asked for, found: min_duration: 0.2 and 0.1")
            assert "--overwrite true" in caught.value.action
        assert tiny.contents(ArtifactHome.of("made").partial) == before
        told = run(0, 2, min_duration=0.2, overwrite=True)
        assert isinstance(told, PartResult)
        assert told.shards_done == told.shards_of_part == 5
        assert merged(run(1, 2, min_duration=0.2)).artifact.is_dir()

    def test_a_dataset_that_moved_does_not_end_what_was_begun(self, tmp_path: Path) -> None:
        rows = tiny.all_splits()
        dataset = tiny.write_dataset(tmp_path / "moving", rows)
        run(0, 2, dataset_name=str(dataset))
        rows["train"].append(tiny.Row(tiny.spoken(7), "Una frase in più."))
        tiny.write_dataset(dataset, rows)
        with pytest.raises(
            PermanentError, match=r"\(shards done: 1\).*: revision: 'sha256:\w+' and 'sha256:\w+'; its division"
        ):
            run(1, 2, dataset_name=str(dataset))

    def test_a_folder_in_which_no_shard_is_done_is_taken(self) -> None:
        run(0, 11)
        told = run(0, 11, min_duration=0.2)
        assert isinstance(told, PartResult)
        assert told.shards_done == 0

    def test_a_finished_artifact_stays_until_another_is_whole(self) -> None:
        made = merged(run(None, None, max_train_samples=24))
        with pytest.raises(PermanentError, match="taken by a different artifact"):
            run(0, 2)
        assert isinstance(run(0, 2, overwrite=True), PartResult)
        assert len(list(made.artifact.glob("train/*.arrow"))) == 2, "replaced only by a whole one"
        replaced = merged(run(1, 2, overwrite=True))
        assert tiny.contents(replaced.artifact) == tiny.contents(tiny.artifact())


@pytest.mark.usefixtures("hf_home")
class TestLocks:
    def test_a_part_waits_for_who_makes_the_whole(self, impatient: None) -> None:
        with exclusive(ArtifactHome.of("made").lock, what="made"), pytest.raises(LockHeld, match="another job"):
            run(0, 2)

    def test_who_makes_the_whole_does_not_disturb_parts(self) -> None:
        run(0, 2)
        home = ArtifactHome.of("made")
        before = tiny.contents(home.partial)
        with shared(home.lock, what="made"):
            for others in ({}, {"overwrite": True, "max_train_samples": 3}):
                with pytest.raises(LockHeld, match="another job"):
                    run(None, None, **others)
        assert tiny.contents(home.partial) == before

    def test_parts_of_another_request_do_not_disturb_either(self, impatient: None) -> None:
        run(0, 2)
        home = ArtifactHome.of("made")
        with shared(home.lock, what="made"), pytest.raises(LockHeld, match="another job"):
            run(0, 2, max_train_samples=3)
        assert merged(run(1, 2)).artifact.is_dir()

    def test_the_same_part_is_done_once_at_a_time(self, impatient: None) -> None:
        run(0, 2)
        lock = ArtifactHome.of("made").partial / "part 1 of 2.lock"
        with exclusive(lock, what="made"), pytest.raises(LockHeld, match="part 1 of 2 of artifact made"):
            run(1, 2)

    def test_who_ends_while_others_work_leaves_the_merge_to_them(self) -> None:
        run(0, 2)
        with shared(ArtifactHome.of("made").lock, what="made"):
            told = run(1, 2)
        assert isinstance(told, PartResult)
        assert told.shards_done == told.shards == 10
        assert not merged(run(1, 2)).reused


def test_only_the_shards_of_the_part_are_fetched(hub: LoopbackHub) -> None:
    hub.add_repo("dataset", "org/speech", tiny.dataset())
    told = run(1, 2, dataset_name="org/speech")
    assert isinstance(told, PartResult)
    whole_files = {
        re.sub(r".*/", "", request.path) for request in hub.requested("_cdn/", "GET") if request.range is None
    }
    assert whole_files == {
        *(f"train-{index:05d}-of-00008.parquet" for index in (5, 6, 7)),
        "validation-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    }
    assert told.bytes_fetched == hub.sent_bytes("_cdn/datasets")
