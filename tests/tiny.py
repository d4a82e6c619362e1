"""A tiny Whisper, a little speech and an artifact made of them: built on first use, shared by all test modules."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import speech

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 4  # seconds that the model hears at once

_FOLDER = tempfile.TemporaryDirectory(prefix="asr-tiny-")  # removed when the interpreter ends


@dataclass(frozen=True)
class Row:
    """A row of a parquet dataset."""

    audio: bytes | None
    text: str | None = "Ciao, come stai?"
    path: str | None = None
    speaker: str | None = None


def model() -> Path:
    """The demo's Whisper: multilingual, 80 mel bins, a window of 4 s, 448 labels."""
    return ROOT / "demo" / "model"


@functools.cache
def english_model() -> Path:
    """The same, said to be English-only as openai/whisper-small.en says it."""
    folder = Path(_FOLDER.name, "english")
    shutil.copytree(model(), folder)
    config = json.loads((folder / "generation_config.json").read_text())
    del config["lang_to_id"], config["task_to_id"]
    (folder / "generation_config.json").write_text(json.dumps({**config, "is_multilingual": False}))
    return folder


@functools.cache
def wide_model() -> Path:
    """The same with the feature extractor of large-v3: 128 mel bins, a window of 30 s."""
    from transformers import WhisperFeatureExtractor

    folder = Path(_FOLDER.name, "wide")
    shutil.copytree(model(), folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    return folder


@functools.cache
def spoken(number: int, seconds: float = 0.6) -> bytes:
    """A short clip as FLAC, another for each number."""
    return speech.encode(speech.synthesize(seconds, seed=number), 16_000, "flac")


def rows(n_clips: int, first: int = 0) -> list[Row]:
    return [
        Row(spoken(number), f"Frase numero {number}.", f"{number:03d}.flac", f"speaker {number % 3}")
        for number in range(first, first + n_clips)
    ]


@functools.cache
def broken() -> dict[str, list[Row]]:
    """Rows that cannot be learned from, by the reason they are rejected with."""
    good = spoken(0)
    second = speech.synthesize(1.0)
    nan = second.copy()
    nan[8_000] = np.nan
    wav = speech.encode(second, 16_000, "wav")
    flac = speech.encode(second, 16_000, "flac")
    mp3 = speech.encode(second, 16_000, "mp3")
    return {
        "no_audio": [Row(None)],
        "empty": [Row(b""), Row(speech.encode(second[:0], 16_000, "wav"))],
        "undecodable": [Row(b"no audio at all " * 100), Row(b"RIFF" + bytes(100)), Row(mp3[:20])],
        "truncated": [Row(wav[: len(wav) // 2]), Row(flac[: len(flac) // 2])],
        "too_long": [Row(spoken(1, WINDOW + 0.1)), Row(speech.encode(speech.synthesize(60.0), 16_000, "mp3"))],
        "too_short": [Row(spoken(2, 0.09))],
        "not_finite": [Row(speech.encode(nan, 16_000, "wavfloat"))],
        "silent": [Row(speech.encode(np.zeros_like(second), 16_000, "flac"))],
        "empty_text": [Row(good, None), Row(good, ""), Row(good, " \u200b\t")],
        "punctuation_only": [Row(good, "... ?!"), Row(good, "\u201c\u2026\u201d")],
        "too_many_labels": [Row(good, "parola " * 450)],
    }


def write_parquet(path: Path, of: Sequence[Row], row_group: int = 1000) -> None:
    columns = {
        "audio": [{"bytes": row.audio, "path": row.path} for row in of],
        "sentence": [row.text for row in of],
        "speaker_id": [row.speaker for row in of],
    }
    schema = pa.schema(
        {
            "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "sentence": pa.string(),
            "speaker_id": pa.string(),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema), path, row_group_size=row_group)


def write_dataset(folder: Path, splits: Mapping[str, Sequence[Row]], n_files: int = 1, row_group: int = 1000) -> Path:
    """Parquet files as on the Hub, `n_files` of them for train and one for each other split: that many shards."""
    for split, of in splits.items():
        files = n_files if split == "train" else 1
        for index in range(files):
            part = of[len(of) * index // files : len(of) * (index + 1) // files]
            write_parquet(folder / "it" / f"{split}-{index:05d}-of-{files:05d}.parquet", part, row_group)
    return folder


def all_splits(n_train: int = 6, n_eval: int = 2) -> dict[str, list[Row]]:
    return {
        "train": rows(n_train),
        "validation": rows(n_eval, first=n_train),
        "test": rows(n_eval, first=n_train + n_eval),
    }


@functools.cache
def dataset() -> Path:
    """96 + 8 + 8 clips, train in eight files."""
    return write_dataset(Path(_FOLDER.name, "dataset"), all_splits(96, 8), n_files=8)


@functools.cache
def artifact() -> Path:
    """What the preprocess job makes of `dataset()` for `model()`, undisturbed, with one worker. Only to be read."""
    home = Path(_FOLDER.name, "hf")
    command = [sys.executable, "-m", "jobs.preprocess", "--num_workers", "1"]
    for name, value in preprocess_flags(artifact_name="tiny").items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_FOLDER.name,
        env={**os.environ, "HF_HOME": str(home)},
    )
    return Path(json.loads(done.stdout.splitlines()[-1])["artifact"])


def preprocess_flags(**others: object) -> dict[str, object]:
    """The parameters of a preprocess job on `dataset()` and `model()`, with `others`."""
    return {"dataset_name": str(dataset()), "language_code": "it", "model_id": str(model()), **others}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path within it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
