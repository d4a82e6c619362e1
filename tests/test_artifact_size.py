"""The estimate before anything is encoded, against the files that encoding really writes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny

from asr_fine_tuner.artifact_size import check_room, clip_bytes
from asr_fine_tuner.dataset import DatasetPlan, resolve_dataset
from asr_fine_tuner.encoding import EncoderSettings, model_format
from asr_fine_tuner.errors import PermanentError

if TYPE_CHECKING:
    from loopback.hub import LoopbackHub

MODEL = model_format("tiny", "1", tiny.model())
SETTINGS = EncoderSettings(tiny.model(), "it", "transcribe", 0.1, tiny.WINDOW, 448)
N_CLIPS = 112
LONGEST = N_CLIPS * clip_bytes(tiny.WINDOW, MODEL)


def planned(dataset: str) -> DatasetPlan:
    return resolve_dataset(dataset, language_code="it").plan(max_train_samples=None, max_eval_samples=None, seed=1)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> DatasetPlan:
    """Clips of 0.3 to 1.2 s."""
    splits = {
        split: [replace(row, audio=tiny.spoken(0, 0.3 * (1 + number % 4))) for number, row in enumerate(rows)]
        for split, rows in tiny.all_splits(96, 8).items()
    }
    return planned(str(tiny.write_dataset(tmp_path_factory.mktemp("varied"), splits, n_files=8)))


def test_clips_are_as_large_as_estimated() -> None:
    written = sum(path.stat().st_size for path in tiny.artifact().glob("*/data-*.arrow"))
    assert 0.8 < written / (N_CLIPS * clip_bytes(0.6, MODEL)) < 1


def test_no_clip_is_read_while_the_longest_would_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = planned(str(tiny.write_dataset(tmp_path / "data", tiny.all_splits())))
    (tmp_path / "data" / "it" / "train-00000-of-00001.parquet").unlink()
    with caplog.at_level(logging.INFO):
        size = check_room(plan.shards, SETTINGS, MODEL, tmp_path / "artifact", tmp_path / "cache")
    assert (size.least, size.most) == (0, 10 * clip_bytes(tiny.WINDOW, MODEL))
    assert f"disk: {size} for the artifact, 0 bytes to download" in caplog.text


def test_some_are_measured_where_they_would_not(
    varied: DatasetPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sum(28 * clip_bytes(0.3 * length, MODEL) for length in (1, 2, 3, 4))

    def check(free: int) -> tuple[int, int]:
        size = check_room(varied.shards, SETTINGS, MODEL, tmp_path, tmp_path, lambda path: free)
        return size.least, size.most

    least, most = check(LONGEST - 1)
    assert 0.5 * expected < least < expected < most < 1.5 * expected
    assert "may become full" not in caplog.text
    check(expected)
    assert "may become full" in caplog.text
    with pytest.raises(PermanentError) as refused:
        check(least - 1)
    assert "free at" in refused.value.given
    assert "for the artifact, 0 bytes to download" in refused.value.expected
    assert "HF_HOME" in refused.value.action


def test_what_cannot_be_decoded_takes_no_room(tmp_path: Path) -> None:
    splits = tiny.all_splits()
    splits["train"] = [replace(row, audio=b"no audio") for row in splits["train"]]
    plan = planned(str(tiny.write_dataset(tmp_path / "data", splits)))
    size = check_room(plan.shards, SETTINGS, MODEL, tmp_path, tmp_path, lambda path: LONGEST // 20)
    assert size.least < 10 * clip_bytes(0.6, MODEL)


def test_files_of_the_hub_count_until_they_are_here(hub: LoopbackHub, hf_home: Path, tmp_path: Path) -> None:
    hub.add_repo("dataset", "org/speech", tiny.dataset())
    plan = planned("org/speech")
    files = {path.name: path.stat().st_size for path in (tiny.dataset() / "it").iterdir()}

    def check(free_in_cache: int) -> None:
        # Another volume than the artifact's, which has room for anything.
        free = {Path("/proc"): free_in_cache}
        check_room(plan.shards, SETTINGS, MODEL, tmp_path, Path("/proc"), lambda path: free.get(path, LONGEST))

    check(sum(files.values()))
    with pytest.raises(PermanentError, match="free at /proc"):
        check(sum(files.values()) - 1)
    list(plan.shards[0].examples())
    check(sum(files.values()) - files["train-00000-of-00008.parquet"])
