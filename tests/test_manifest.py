"""The manifest: what it records, what it identifies, and what is said of one that cannot be read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import tiny
from transformers import WhisperTokenizer

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import sha256_of
from asr_fine_tuner.labels import tokenizer_sha256
from asr_fine_tuner.manifest import MANIFEST_NAME, Manifest, describe_differences, read_manifest, verify_files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(tiny.artifact(), tmp_path / "artifact")


def edited(artifact: Path, **changes: object) -> None:
    manifest = json.loads((artifact / MANIFEST_NAME).read_text())
    (artifact / MANIFEST_NAME).write_text(json.dumps({**manifest, **changes}))


def test_it_records_where_the_artifact_comes_from() -> None:
    manifest = read_manifest(tiny.artifact())
    model, dataset, encoding = manifest.model, manifest.dataset, manifest.encoding
    assert (model.model_id, model.n_mels, model.window_seconds, model.max_labels) == (tiny.model().name, 80, 4.0, 448)
    assert model.revision.startswith("sha256:")
    assert model.tokenizer_sha256 == tokenizer_sha256(WhisperTokenizer.from_pretrained(tiny.model()))
    assert model.multilingual
    assert (dataset.id, dataset.config, dataset.on_hub) == ("dataset", "it", False)
    assert dataset.splits == {"train": "train", "validation": "validation", "test": "test"}
    assert (encoding.language_code, encoding.language, encoding.task) == ("it", "italian", "transcribe")
    assert (encoding.min_duration, encoding.max_duration, encoding.seed) == (0.1, 4.0, 42)
    assert {split: summary.clips for split, summary in manifest.splits.items()} == {
        "train": 96,
        "validation": 8,
        "test": 8,
    }
    assert manifest.splits["train"].hours == pytest.approx(96 * 0.6 / 3600, abs=1e-6)
    assert manifest.rejected == {}
    assert {"torch", "transformers", "datasets", "soundfile", "asr-fine-tuner"} <= set(manifest.versions)


def test_it_has_the_hash_of_every_other_file() -> None:
    files = {name for name in tiny.contents(tiny.artifact()) if name != MANIFEST_NAME}
    manifest = read_manifest(tiny.artifact())
    assert set(manifest.files) == files
    assert manifest.files == {name: sha256_of(tiny.artifact() / name) for name in files}


def test_it_names_no_path_of_the_machine() -> None:
    text = (tiny.artifact() / MANIFEST_NAME).read_text()
    assert str(tiny.dataset().parent) not in text
    assert str(tiny.ROOT) not in text


def test_reading_gives_what_was_written() -> None:
    text = (tiny.artifact() / MANIFEST_NAME).read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json(text)
    assert manifest.to_json() == text
    assert manifest.sha256 != manifest.identity


def test_the_identity_is_of_what_was_asked_for() -> None:
    manifest = read_manifest(tiny.artifact())
    other_counts = manifest.model_copy(update={"rejected": {"silent": 3}})
    assert other_counts.identity == manifest.identity
    assert other_counts.sha256 != manifest.sha256
    for part in ("model", "dataset"):
        changed = getattr(manifest, part).model_copy(update={"revision": "another"})
        assert manifest.model_copy(update={part: changed}).identity != manifest.identity


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 3}', "\x00"])
def test_a_broken_manifest(content: str, artifact: Path) -> None:
    (artifact / MANIFEST_NAME).write_text(content)
    with pytest.raises(PermanentError, match="a manifest of format 2") as caught:
        read_manifest(artifact)
    assert "--overwrite" in caught.value.action


def test_a_manifest_that_is_no_text(artifact: Path) -> None:
    (artifact / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PermanentError, match="utf-8"):
        read_manifest(artifact)


def test_a_manifest_of_a_later_version(artifact: Path) -> None:
    edited(artifact, format=3)
    with pytest.raises(PermanentError, match="Input should be 2"):
        read_manifest(artifact)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=f"without {MANIFEST_NAME}"):
        read_manifest(tmp_path)


class TestVerifyFiles:
    def test_a_flipped_bit(self, artifact: Path) -> None:
        verify_files(artifact, read_manifest(artifact))
        path = artifact / "train" / "data-00003.arrow"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(PermanentError, match=r"train/data-00003.arrow has sha256"):
            verify_files(artifact, read_manifest(artifact))

    def test_a_missing_file(self, artifact: Path) -> None:
        (artifact / "test" / "state.json").unlink()
        with pytest.raises(PermanentError, match=r"test/state.json is missing"):
            verify_files(artifact, read_manifest(artifact))


def test_differences_show_both_values() -> None:
    model = read_manifest(tiny.artifact()).model
    assert describe_differences(model, model) == []
    assert describe_differences(model, model.model_copy(update={"n_mels": 128})) == ["n_mels: 80 and 128"]
