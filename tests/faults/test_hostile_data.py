"""Datasets that want to hurt: refused with 2, or their clips rejected; nothing outside is read, written or filled."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
from corpora import tar_of, write, write_zip
from datasets import load_from_disk
from warm_jobs import WarmJobs

SECRET = "the secret"


def _climbing_zip(folder: Path) -> Path:
    return write_zip(folder / "data.zip", {"train/metadata.csv": b"file_name,text", "../../climbed.txt": b"x"})


def _absolute_zip(folder: Path) -> Path:
    return write_zip(folder / "data.zip", {"train/metadata.csv": b"file_name,text", f"{folder}/climbed.txt": b"x"})


def _linking_zip(folder: Path) -> Path:
    link = zipfile.ZipInfo("train/0.wav")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.writestr(link, str(folder / "secret.txt"))
    return folder / "data.zip"


def _zip_bomb(folder: Path) -> Path:
    """A megabyte that is a gigabyte of one line."""
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train/metadata.jsonl", "w") as table:
            for _ in range(1000):
                table.write(b'"' + bytes(1_000_000))
        archive.writestr("train/0.wav", b"")
    return folder / "data.zip"


def _linking_tar(folder: Path) -> Path:
    link = tarfile.TarInfo("0.flac")
    link.type, link.linkname = tarfile.SYMTYPE, str(folder / "secret.txt")
    return write(folder / "data", {"train-000.tar": tar_of({"0.flac": link, "0.txt": b"testo"})})


def _climbing_table(folder: Path) -> Path:
    return write(
        folder / "data", {"train/metadata.csv": b"file_name,transcription\n../../secret.txt,testo", "train/0.wav": b""}
    )


def _linking_folder(folder: Path) -> Path:
    write(folder / "data", {"train/metadata.csv": b"file_name,transcription\n0.wav,testo"})
    (folder / "data" / "train" / "0.wav").symlink_to(folder / "secret.txt")
    return folder / "data"


def _nested_json(folder: Path) -> Path:
    return write(folder / "data", {"train/metadata.jsonl": b"[" * 1_000_000, "train/0.wav": b""})


def _no_parquet(folder: Path) -> Path:
    footer = np.random.default_rng(0).bytes(5000)
    return write(folder / "data", {"it/train-00000-of-00001.parquet": b"PAR1" + footer + b"\x88\x13\0\0PAR1"})


def _long_footer(folder: Path) -> Path:
    return write(folder / "data", {"it/train-00000-of-00001.parquet": b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"})


@pytest.fixture(scope="session")
def usual_peak(jobs: WarmJobs, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of memory that a job on ordinary clips takes."""
    job = jobs.start("preprocess", _parameters(tiny.dataset()), env=_home(tmp_path_factory.mktemp("usual")))
    assert job.wait().returncode == 0
    return job.peak_bytes


def _parameters(dataset: Path, **more: object) -> dict[str, object]:
    return tiny.preprocess_flags(dataset_name=dataset, num_workers=1, artifact_name="made", **more)


def _home(folder: Path) -> dict[str, str]:
    return {"HF_HOME": str(folder / "hf")}


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (_climbing_zip, "climbed.txt"),
        (_absolute_zip, "climbed.txt"),
        (_linking_zip, "a link"),
        (_zip_bomb, "unpack to"),
        (_linking_tar, "a link"),
        (_climbing_table, "../../secret.txt"),
        (_linking_folder, "is a link to"),
        (_nested_json, "cannot be read"),
        (_no_parquet, "parquet"),
        (_long_footer, "parquet"),
    ],
)
def test_refused(dataset: Callable[[Path], Path], told: str, jobs: WarmJobs, usual_peak: int, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    job = jobs.start("preprocess", _parameters(dataset(tmp_path)), env=_home(tmp_path))
    ended = job.wait()
    assert ended.returncode == 2, ended.stderr
    assert told in ended.result["error"]["given"]
    assert "Traceback" not in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert not list(tmp_path.rglob("climbed.txt"))
    assert not (tmp_path.parent / "climbed.txt").exists()
    assert job.peak_bytes < usual_peak + (50 << 20)


def test_hours_of_audio_and_false_lengths_cost_no_memory(jobs: WarmJobs, usual_peak: int, tmp_path: Path) -> None:
    """Two hours in every second row; and headers that promise hours, or gigabytes, where there is nothing."""
    long = io.BytesIO()
    with sf.SoundFile(long, "w", 16_000, 1, format="FLAC") as file:
        for _ in range(120):
            file.write(np.ones(16_000 * 60, dtype="int16"))
    promising = b"RIFF\xff\xff\xff\x7fWAVEfmt \xff\xff\xff\x7f" + bytes(100)
    flac = bytearray(tiny.spoken(0))
    flac[21:26] = b"\x0f\xff\xff\xff\xff"  # the total of samples in STREAMINFO
    bad = [tiny.Row(audio) for audio in (long.getvalue(), promising, bytes(flac))]
    splits = tiny.all_splits(6, 2)
    splits["train"] += 3 * bad
    dataset = tiny.write_dataset(tmp_path / "dataset", splits)
    job = jobs.start("preprocess", _parameters(dataset, max_rejected_fraction=0.6), env=_home(tmp_path))
    ended = job.wait()
    assert ended.returncode == 0, ended.stderr
    assert sum(ended.result["rejected"].values()) == 9
    assert ended.result["rejected"]["too_long"] >= 3
    assert ended.result["splits"]["train"]["clips"] == 6
    assert job.peak_bytes < usual_peak + (100 << 20)


def test_control_characters_reach_neither_the_labels_nor_the_terminal(jobs: WarmJobs, tmp_path: Path) -> None:
    splits = tiny.all_splits(6, 2)
    audio = tiny.spoken(0)
    splits["train"].append(tiny.Row(audio, "\u202eciao\x00 \x1b[31mrosso\x07 \u2066bene\u2069", "0.flac"))
    splits["train"].append(tiny.Row(b"", "testo", "\x1b]0;owned\x07\x1b[2J.flac"))
    dataset = tiny.write_dataset(tmp_path / "dataset", splits)
    refused = jobs.run("preprocess", _parameters(dataset, max_rejected_fraction=0), env=_home(tmp_path))
    assert refused.returncode == 2, refused.stderr
    done = jobs.run("preprocess", _parameters(dataset, max_rejected_fraction=0.5), env=_home(tmp_path))
    assert done.returncode == 0, done.stderr
    for printed in (refused.stdout, refused.stderr, done.stdout, done.stderr):
        assert not set(printed) & {"\x00", "\x07", "\x1b", "\u202e"}
    texts = load_from_disk(done.result["artifact"])["train"]["text"]
    (text,) = [text for text in texts if "ciao" in text]
    assert not any(ord(character) < 32 or character in "\u202e\u2066\u2069" for character in text)
