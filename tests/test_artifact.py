"""The artifact on disk: what `datasets` reads in it, and random access to memory-mapped clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import pytest
import tiny

from asr_fine_tuner.artifact import (
    CLIPS_PER_RECORD_BATCH,
    SPLITS,
    ArtifactSplit,
    Clip,
    ClipWriter,
    write_dataset_metadata,
)

if TYPE_CHECKING:
    from pathlib import Path

N_MELS = 80


def clip(number: int) -> Clip:
    random = np.random.default_rng(number)
    return Clip(
        id=f"clip {number}",
        features=random.standard_normal((3 + number % 50, N_MELS)).astype(np.float16),
        labels=[1, 2, *range(number % 7), 3],
        seconds=0.01 * number,
        text=f"Frase numero {number}, è vero.",
        speaker=None if number % 3 == 0 else f"speaker {number % 3}",
    )


def write(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ClipWriter(path, N_MELS)
    for number in numbers:
        writer.append(clip(number))
    writer.close()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Train in three files: several record batches, none, and one."""
    sizes = {"train": [(0, 75), (75, 75), (75, 80)], "validation": [(80, 82)], "test": [(82, 83)]}
    for split, parts in sizes.items():
        for index, (first, end) in enumerate(parts):
            write(tmp_path / split / f"data-{index:05d}.arrow", range(first, end))
    names = {split: [f"data-{index:05d}.arrow" for index in range(len(parts))] for split, parts in sizes.items()}
    write_dataset_metadata(tmp_path, names, N_MELS, "0123456789abcdef" * 4)
    return tmp_path


def assert_is(number: int, row: dict[str, object]) -> None:
    expected = clip(number)
    features = np.asarray(row["features"], dtype=np.float16)
    assert np.array_equal(features, expected.features)
    assert list(row["labels"]) == expected.labels  # type: ignore[call-overload]
    assert row["seconds"] == pytest.approx(expected.seconds)
    assert (row["text"], row["id"], row["speaker"]) == (expected.text, expected.id, expected.speaker)


def test_datasets_opens_it(artifact: Path) -> None:
    opened = datasets.load_from_disk(str(artifact))
    assert {split: len(opened[split]) for split in opened} == {"train": 80, "validation": 2, "test": 1}
    assert list(opened) == list(SPLITS)
    for number in (0, CLIPS_PER_RECORD_BATCH - 1, CLIPS_PER_RECORD_BATCH, 74, 75, 79):
        assert_is(number, opened["train"][number])
    assert_is(82, opened["test"].with_format("numpy")[0] | {"labels": opened["test"][0]["labels"]})


def test_datasets_knows_the_types(artifact: Path) -> None:
    train = datasets.load_from_disk(str(artifact))["train"]
    assert train.features["features"] == datasets.Array2D((None, N_MELS), "float16")
    assert train.features["labels"] == datasets.List(datasets.Value("int32"))
    assert train.data.schema.field("features").type.storage_type == pa.list_(pa.list_(pa.float16()))
    features = train.with_format("numpy", dtype=np.float16)[5]["features"]
    assert (features.dtype, features.shape) == (np.float16, clip(5).features.shape)


def test_random_access(artifact: Path) -> None:
    train = ArtifactSplit(artifact, "train")
    assert len(train) == 80
    for number in (79, 0, 31, 32, 33, 64, 74, 75):
        expected = clip(number)
        assert np.array_equal(train.features(number), expected.features)
        assert train.labels(number).tolist() == expected.labels
        assert (train.ids[number], train.texts[number]) == (expected.id, expected.text)
        assert train.seconds[number] == pytest.approx(expected.seconds)
    assert train.hours == pytest.approx(sum(0.01 * number for number in range(80)) / 3600)


@pytest.mark.parametrize("index", [-1, 80, 1000])
def test_no_clip_is_beyond_the_end(index: int, artifact: Path) -> None:
    with pytest.raises(IndexError, match=f"clip {index} of 80"):
        ArtifactSplit(artifact, "train").features(index)


@pytest.mark.parametrize("cap", [1, 32, 40, 76, 200])
def test_a_cap_takes_the_first_clips(cap: int, artifact: Path) -> None:
    capped = ArtifactSplit(artifact, "train", max_clips=cap)
    assert len(capped) == len(capped.texts) == len(capped.ids) == min(cap, 80)
    last = len(capped) - 1
    assert np.array_equal(capped.features(last), clip(last).features)
    with pytest.raises(IndexError):
        capped.features(last + 1)


def test_features_are_views_of_the_file(artifact: Path) -> None:
    features = ArtifactSplit(artifact, "train").features(40)
    assert not features.flags.owndata
    assert not features.flags.writeable


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write(tmp_path / name, range(70))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    write(tmp_path / "other", range(1, 71))
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


def test_128_mels(tmp_path: Path) -> None:
    features = np.arange(3 * 128, dtype=np.float16).reshape(3, 128)
    for split in SPLITS:
        (tmp_path / split).mkdir()
        writer = ClipWriter(tmp_path / split / "data-00000.arrow", 128)
        writer.append(Clip("a", features, [1], 1.0, "a", None))
        writer.close()
    write_dataset_metadata(tmp_path, {split: ["data-00000.arrow"] for split in SPLITS}, 128, "0" * 64)
    assert np.array_equal(ArtifactSplit(tmp_path, "test").features(0), features)


def test_it_is_a_tenth_of_padded_float32() -> None:
    """The usual script stores 80 x 3000 float32 for each clip."""
    arrow = sum(path.stat().st_size for path in tiny.artifact().rglob("*.arrow"))
    # 0.6 s are 63 frames of float16; the rest is the schema of each file.
    assert arrow < 112 * (63 * 80 * 2 + 600) + 10 * 4000
