"""Small datasets in every layout, and a model's repository.

The audio is bytes that name their clip: nothing below preprocessing decodes them.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from asr_fine_tuner.dataset import Dataset
    from asr_fine_tuner.examples import Example

# With what nobody should load or publish.
MODEL = {
    "README.md": b"# Model",
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b"{}",
    "vocab.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"pickle" * 1000,
    "tf_model.h5": b"tensorflow" * 1000,
    "modeling.py": b"raise SystemExit",
    "training_args.bin": b"pickle",
}


def audio(number: int, size: int = 64) -> bytes:
    """Incompressible bytes, another for each number."""
    return f"clip {number:06d} ".encode() + np.random.default_rng(number).bytes(size)


def parquet(
    n_clips: int, *, first: int = 0, row_group: int = 100, size: int = 64, text: str = "sentence", speakers: int = 0
) -> bytes:
    """A parquet file of the Hub: `audio` with bytes and path, a text column, `client_id` with `speakers` above zero."""
    numbers = range(first, first + n_clips)
    columns = {
        "audio": [{"bytes": audio(number, size), "path": f"{number:06d}.wav"} for number in numbers],
        text: [f"frase {number}" for number in numbers],
    }
    if speakers:
        columns["client_id"] = [f"speaker {number % speakers}" for number in numbers]
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written, row_group_size=row_group)
    return written.getvalue()


def tar(n_clips: int, *, first: int = 0, size: int = 64, metadata: str = "json", speakers: int = 3) -> bytes:
    """A WebDataset archive with `.flac` members and their text in `.json` or `.txt` members."""
    members = {}
    for number in range(first, first + n_clips):
        fields = {"text": f"frase {number}", "speaker_id": number % speakers}
        members[f"{number:06d}.flac"] = audio(number, size)
        members[f"{number:06d}.{metadata}"] = (json.dumps(fields) if metadata == "json" else fields["text"]).encode()
    return tar_of(members)


def tar_of(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def common_voice(splits: Mapping[str, int] = {"train": 6, "dev": 3, "test": 2}) -> dict[str, bytes]:
    """A Common Voice release of one language: tables, `clips/`, and the other tables that come with it."""
    files, number = {}, 0
    for split, n_clips in splits.items():
        lines = ["client_id\tpath\tsentence\tup_votes"]
        for _ in range(n_clips):
            files[f"clips/common_voice_it_{number}.mp3"] = audio(number)
            lines.append(f'speaker {number % 3}\tcommon_voice_it_{number}.mp3\tDisse: "frase {number}\t2')
            number += 1
        files[f"{split}.tsv"] = "\n".join(lines).encode()
    files["clip_durations.tsv"] = b"clip\tduration[ms]\ncommon_voice_it_0.mp3\t1000"
    return files


def audiofolder(
    n_clips: int, *, folder: str = "", first: int = 0, kind: str = "csv", audio_folder: str = ""
) -> dict[str, bytes]:
    """`metadata.csv`, `.jsonl` or `.parquet` with `file_name`, beside its audio."""
    names = [f"{audio_folder}{number}.wav" for number in range(first, first + n_clips)]
    rows = [{"file_name": name, "transcription": f"frase {first + row}"} for row, name in enumerate(names)]
    files = {f"{folder}{name}": audio(first + row) for row, name in enumerate(names)}
    return {**files, f"{folder}metadata.{kind}": table(rows, kind)}


def table(rows: Sequence[Mapping[str, str]], kind: str) -> bytes:
    """Rows as `csv`, `tsv`, `json`, `jsonl` or `parquet`."""
    if kind == "parquet":
        written = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), written)
        return written.getvalue()
    if kind == "json":
        return json.dumps(rows, indent=2).encode()
    if kind == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    separator = "\t" if kind == "tsv" else ","
    lines = [list(rows[0]), *(row.values() for row in rows)]
    return "\n".join(separator.join(line) for line in lines).encode()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read(
    dataset: Dataset, *, max_train_samples: int | None = None, max_eval_samples: int | None = None, seed: int = 42
) -> dict[str, list[Example]]:
    """Every planned example by split."""
    plan = dataset.plan(max_train_samples=max_train_samples, max_eval_samples=max_eval_samples, seed=seed)
    found: dict[str, list[Example]] = {split: [] for split in plan.n_examples}
    for shard in plan.shards:
        for split, example in shard.examples():
            found[split].append(example)
    assert {split: len(examples) for split, examples in found.items()} == dict(plan.n_examples)
    return found
