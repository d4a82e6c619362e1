"""The artifact on disk: Arrow files that `datasets.load_from_disk` opens, one row per clip, memory-mapped."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from asr_fine_tuner.features import Float16Array
from asr_fine_tuner.files import canonical_json, sync_folder

if TYPE_CHECKING:
    from datasets import Features

SPLITS = ("train", "validation", "test")
# Clips in one Arrow record batch: bounds the memory of writing and of a page fault on reading (about 2.5 MB at 5 s).
CLIPS_PER_RECORD_BATCH = 32


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of the artifact.

    features: log-mel of the real frames, float16 `[n_frames, n_mels]`.
    labels: token ids from `<|startoftranscript|>` to `<|endoftext|>`, `[n_labels]`.
    seconds: duration of the audio.
    text: the reference transcript, casing and punctuation kept.
    """

    id: str
    features: Float16Array
    labels: Sequence[int]
    seconds: float
    text: str
    speaker: str | None


def features_schema(n_mels: int) -> Features:
    from datasets import Array2D, Features, List, Value

    return Features(
        {
            "features": Array2D((None, n_mels), "float16"),
            "labels": List(Value("int32")),
            "seconds": Value("float32"),
            "text": Value("string"),
            "id": Value("string"),
            "speaker": Value("string"),
        }
    )


class ClipWriter:
    """Writes clips to an Arrow stream file; equal clips give equal bytes. The file is durable once closed."""

    def __init__(self, path: Path, n_mels: int) -> None:
        self._schema: pa.Schema = features_schema(n_mels).arrow_schema
        self._file = path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        self._waiting: list[Clip] = []

    def append(self, clip: Clip) -> None:
        self._waiting.append(clip)
        if len(self._waiting) == CLIPS_PER_RECORD_BATCH:
            self._write_waiting()

    def close(self) -> None:
        if self._waiting:
            self._write_waiting()
        self._stream.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_waiting(self) -> None:
        self._stream.write_batch(_record_batch(self._waiting, self._schema))
        self._waiting = []


def _record_batch(clips: list[Clip], schema: pa.Schema) -> pa.RecordBatch:
    n_mels = clips[0].features.shape[1]
    frames = np.concatenate([clip.features for clip in clips])
    frame_starts = pa.array(np.arange(0, frames.size + 1, n_mels, dtype=np.int32))
    mels = pa.ListArray.from_arrays(frame_starts, pa.array(frames.reshape(-1)))
    features = pa.ListArray.from_arrays(_offsets([len(clip.features) for clip in clips]), mels)
    columns = [
        pa.ExtensionArray.from_storage(schema.field("features").type, features),
        pa.array([list(clip.labels) for clip in clips], schema.field("labels").type),
        pa.array([clip.seconds for clip in clips], pa.float32()),
        pa.array([clip.text for clip in clips], pa.string()),
        pa.array([clip.id for clip in clips], pa.string()),
        pa.array([clip.speaker for clip in clips], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _offsets(lengths: list[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def write_dataset_metadata(artifact: Path, split_files: dict[str, list[str]], n_mels: int, identity: str) -> None:
    """Write the small files by which `datasets.load_from_disk` finds the Arrow files of each split."""
    from datasets import DatasetInfo

    _write(artifact / "dataset_dict.json", canonical_json({"splits": list(split_files)}))
    for split, names in split_files.items():
        state: dict[str, object] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": f"{identity[:15]}{SPLITS.index(split):x}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        _write(artifact / split / "state.json", canonical_json(state))
        DatasetInfo(features=features_schema(n_mels)).write_to_directory(str(artifact / split))
        sync_folder(artifact / split)
    sync_folder(artifact)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class ArtifactSplit:
    """Random access to the clips of one split; features are views of the memory-mapped files."""

    def __init__(self, artifact: Path, split: str, max_clips: int | None = None) -> None:
        """max_clips: offer only the first that many."""
        from datasets import load_from_disk

        table: pa.Table = load_from_disk(str(artifact / split)).data.table
        if max_clips is not None:
            table = table.slice(0, max_clips)
        self._table = table
        self._batches = table.to_batches()
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))
        self._views: dict[int, _Rows] = {}
        self.seconds: npt.NDArray[np.float32] = table.column("seconds").to_numpy()

    def __len__(self) -> int:
        return len(self.seconds)

    # Only evaluation asks for these; of a million clips to train on they would be hundreds of megabytes.
    @functools.cached_property
    def texts(self) -> list[str]:
        texts: list[str] = self._table.column("text").to_pylist()
        return texts

    @functools.cached_property
    def ids(self) -> list[str]:
        ids: list[str] = self._table.column("id").to_pylist()
        return ids

    @functools.cached_property
    def label_counts(self) -> npt.NDArray[np.int32]:
        """Label tokens of each clip, the start token counted, `[n_clips]`."""
        counts: npt.NDArray[np.int32] = pc.list_value_length(self._table.column("labels")).to_numpy()
        return counts

    @functools.cached_property
    def speaker_numbers(self) -> npt.NDArray[np.int32]:
        """A number for each speaker, the same one for all clips whose speaker is not known, `[n_clips]`."""
        speakers = self._table.column("speaker").combine_chunks().dictionary_encode(null_encoding="encode")
        numbers: npt.NDArray[np.int32] = speakers.indices.to_numpy(zero_copy_only=False)
        return numbers

    def text(self, index: int) -> str:
        return self._string("text", index)

    def id(self, index: int) -> str:
        return self._string("id", index)

    @property
    def hours(self) -> float:
        return float(self.seconds.sum(dtype=np.float64)) / 3600

    def features(self, index: int) -> Float16Array:
        """Log-mel of the real frames `[n_frames, n_mels]`, read-only."""
        rows, row = self._rows(index)
        return rows.frames[rows.frame_bounds[row] : rows.frame_bounds[row + 1]]

    def labels(self, index: int) -> npt.NDArray[np.int32]:
        """Token ids with the start token and the end token, `[n_labels]`."""
        rows, row = self._rows(index)
        return rows.labels[rows.label_bounds[row] : rows.label_bounds[row + 1]]

    def _rows(self, index: int) -> tuple[_Rows, int]:
        batch, row = self._find(index)
        if batch not in self._views:
            self._views[batch] = _Rows.of(self._batches[batch])
        return self._views[batch], row

    def _string(self, column: str, index: int) -> str:
        batch, row = self._find(index)
        string: str = self._batches[batch].column(column)[row].as_py()
        return string

    def _find(self, index: int) -> tuple[int, int]:
        """The record batch that a clip is in, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        batch = bisect.bisect_right(self._ends, index)
        return batch, index - (self._ends[batch - 1] if batch else 0)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What training reads of a record batch, as views of the file: for each row, bounds of its frames and labels."""

    frames: Float16Array
    frame_bounds: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    label_bounds: npt.NDArray[np.int32]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Rows:
        features, labels = batch.column("features"), batch.column("labels")
        mels = features.storage.values
        n_mels = features.type.shape[1]
        return cls(
            frames=mels.values.to_numpy().reshape(-1, n_mels),
            frame_bounds=features.storage.offsets.to_numpy(),
            labels=labels.values.to_numpy(),
            label_bounds=labels.offsets.to_numpy(),
        )
