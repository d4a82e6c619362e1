"""The preprocess pipeline through its Python API: from a dataset to an artifact, again, and after trouble."""

from __future__ import annotations

import io
import json
import logging
import shutil
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pytest
import soundfile
import speech
import tiny
from transformers import WhisperFeatureExtractor, WhisperTokenizer

import asr_fine_tuner
from asr_fine_tuner import (
    PermanentError,
    PreprocessParameters,
    PreprocessResult,
    artifact_request,
    preprocess,
    preprocessing,
)
from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.features import pad_to_window
from asr_fine_tuner.files import mismatches
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from loopback.hub import LoopbackHub

pytestmark = pytest.mark.usefixtures("hf_home")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 + 2 + 2 clips."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "small", tiny.all_splits())


def run(dataset: Path | str, **others: object) -> PreprocessResult:
    parameters = {"dataset_name": str(dataset), "language_code": "it", "model_id": str(tiny.model()), "num_workers": 1}
    return preprocess(PreprocessParameters.model_validate({**parameters, **others}))


@pytest.fixture
def opened() -> datasets.DatasetDict:
    return datasets.load_from_disk(str(tiny.artifact()))


class TestArtifact:
    def test_datasets_opens_it(self, opened: datasets.DatasetDict) -> None:
        assert {split: len(opened[split]) for split in opened} == {"train": 96, "validation": 8, "test": 8}
        first = opened["train"][0]
        assert (first["id"], first["text"], first["speaker"]) == ("000.flac", "Frase numero 0.", "speaker 0")
        assert first["seconds"] == pytest.approx(0.6)
        assert opened["train"].features["features"] == datasets.Array2D((None, 80), "float16")

    def test_features_are_those_of_the_padded_extractor(self, opened: datasets.DatasetDict) -> None:
        extractor = WhisperFeatureExtractor.from_pretrained(tiny.model())
        for number in (0, 50, 95):
            audio, rate = soundfile.read(io.BytesIO(tiny.spoken(number)), dtype="float32")
            expected = extractor(audio, sampling_rate=rate, return_tensors="np").input_features[0]
            features = np.asarray(opened["train"][number]["features"], np.float16)
            assert features.shape == (63, 80)
            assert np.abs(pad_to_window([features], 400)[0] - expected).max() <= 5e-4

    def test_labels_decode_back_to_the_text(self, opened: datasets.DatasetDict) -> None:
        tokenizer = WhisperTokenizer.from_pretrained(tiny.model())
        for split in opened:
            for row in opened[split].remove_columns("features"):
                decoded = tokenizer.decode(row["labels"])
                prompt = "<|startoftranscript|><|it|><|transcribe|><|notimestamps|>"
                space = "" if tokenizer.tokenize(f" {row['text']}")[0] == "Ġ" else " "
                assert decoded == f"{prompt}{space}{row['text']}<|endoftext|>"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_same_input_gives_the_same_bytes(num_workers: int) -> None:
    """In another process, under another name, with another number of workers."""
    made = run(tiny.dataset(), artifact_name=f"with-{num_workers}", num_workers=num_workers)
    assert tiny.contents(made.artifact) == tiny.contents(tiny.artifact())
    assert made.sha256 == read_manifest(tiny.artifact()).sha256


def test_the_result(small: Path) -> None:
    made = run(small)
    assert made.artifact_name == "small-it-model"
    assert made.artifact == ArtifactHome.of("small-it-model").artifact
    assert {split: summary.clips for split, summary in made.splits.items()} == {"train": 6, "validation": 2, "test": 2}
    assert (made.rejected, made.reused, made.bytes_fetched) == ({}, False, 0)
    assert made.artifact_bytes == sum(map(len, tiny.contents(made.artifact).values()))
    assert json.loads(json.dumps(made.as_json()))["splits"]["train"] == {
        "clips": 6,
        "hours": 0.001,
        "longest_labels": made.splits["train"].longest_labels,
    }
    assert not ArtifactHome.of("small-it-model").partial.exists()


class TestAgain:
    def test_the_same_artifact_is_reused(self, small: Path) -> None:
        first = run(small)
        times = {path: path.stat().st_mtime_ns for path in first.artifact.rglob("*")}
        again = run(small)
        assert again.reused
        assert (again.sha256, again.splits) == (first.sha256, first.splits)
        assert {path: path.stat().st_mtime_ns for path in again.artifact.rglob("*")} == times

    def test_a_different_one_under_the_same_name_is_refused(self, small: Path) -> None:
        first = run(small, artifact_name="taken")
        before = tiny.contents(first.artifact)
        with pytest.raises(PermanentError, match="taken by a different artifact") as caught:
            run(small, artifact_name="taken", max_train_samples=3)
        assert "max_train_samples: 3 and None" in caught.value.given
        assert "--overwrite" in caught.value.action
        assert tiny.contents(first.artifact) == before

    @pytest.mark.parametrize("changed", [{"task": "translate"}, {"language": "German"}, {"max_duration": 2.0}])
    def test_what_makes_it_different(self, changed: dict[str, object], small: Path) -> None:
        run(small, artifact_name="taken")
        with pytest.raises(PermanentError, match=next(iter(changed))):
            run(small, artifact_name="taken", **changed)

    def test_changed_data_make_it_different(self, tmp_path: Path) -> None:
        rows = tiny.all_splits()
        folder = tiny.write_dataset(tmp_path / "data", rows)
        run(folder, artifact_name="taken")
        rows["train"][0] = tiny.Row(tiny.spoken(0), "Un'altra frase.", "000.flac", "speaker 0")
        tiny.write_dataset(tmp_path / "data", rows)
        with pytest.raises(PermanentError, match="revision"):
            run(folder, artifact_name="taken")

    def test_overwrite_replaces_it(self, small: Path) -> None:
        first = run(small, artifact_name="taken")
        replaced = run(small, artifact_name="taken", max_train_samples=3, overwrite=True)
        assert not replaced.reused
        assert replaced.sha256 != first.sha256
        assert len(ArtifactSplit(replaced.artifact, "train")) == 3
        assert mismatches(replaced.artifact, read_manifest(replaced.artifact).files) == []

    def test_overwrite_keeps_what_is_the_same(self, small: Path) -> None:
        run(small)
        assert run(small, overwrite=True).reused

    def test_num_workers_and_rejections_do_not_make_it_different(self, small: Path) -> None:
        run(small)
        assert run(small, num_workers=2, max_rejected_fraction=0.5).reused


def _die(*_: object) -> None:
    raise KeyboardInterrupt


class TestDamage:
    @pytest.mark.parametrize("name", ["train/data-00000.arrow", "dataset_dict.json", "rejected.jsonl"])
    def test_a_damaged_artifact_is_made_anew(self, name: str, small: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = run(small, artifact_name="fragile")
        whole = tiny.contents(first.artifact)
        (first.artifact / name).write_bytes(b"damaged")
        with caplog.at_level(logging.WARNING, "asr_fine_tuner"):
            again = run(small, artifact_name="fragile")
        assert not again.reused
        assert tiny.contents(again.artifact) == whole
        assert f"artifact fragile is damaged ({name}" in caplog.text

    def test_an_artifact_without_a_manifest_is_made_anew(self, small: Path) -> None:
        first = run(small)
        whole = tiny.contents(first.artifact)
        (first.artifact / MANIFEST_NAME).unlink()
        assert tiny.contents(run(small).artifact) == whole

    def test_a_manifest_of_another_version_is_replaced_only_when_asked_for(self, small: Path) -> None:
        first = run(small)
        whole = tiny.contents(first.artifact)
        (first.artifact / MANIFEST_NAME).write_text('{"format": 3}')
        with pytest.raises(PermanentError, match="--overwrite"):
            run(small)
        assert tiny.contents(run(small, overwrite=True).artifact) == whole

    def test_a_job_killed_between_the_manifest_and_the_move_is_continued(
        self, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = tiny.contents(run(small, artifact_name="undisturbed").artifact)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(preprocessing, "move_into_place", _die)
            run(small)
        unfinished = ArtifactHome.of("small-it-model").partial / "artifact"
        assert (unfinished / MANIFEST_NAME).is_file()
        (unfinished / ".rejected.jsonl.1.tmp").write_text("half")
        assert tiny.contents(run(small).artifact) == whole


class TestUnfinished:
    """An unfinished artifact is continued for what it was begun for, by the same code, and for nothing else."""

    @pytest.fixture(autouse=True)
    def killed(self, hf_home: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(preprocessing, "move_into_place", _die)
            run(small)

    @pytest.fixture
    def messages(self, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
        caplog.set_level(logging.INFO, "asr_fine_tuner")
        return caplog

    def test_the_same(self, small: Path, messages: pytest.LogCaptureFixture) -> None:
        run(small)
        assert "continuing the unfinished artifact" in messages.text

    @pytest.mark.parametrize("package", ["asr-fine-tuner", "av", "pyarrow"])
    def test_another_version(
        self, package: str, small: Path, messages: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        others = {**artifact_request.recorded_versions(), package: "0.0.0"}
        assert others != artifact_request.recorded_versions()
        monkeypatch.setattr("importlib.metadata.version", others.__getitem__)
        with pytest.raises(PermanentError, match=rf"version of {package}: 0\.0\.0 and \d") as caught:
            run(small)
        assert "package versions" in caught.value.expected
        made = run(small, overwrite=True)
        assert "continuing" not in messages.text
        assert read_manifest(made.artifact).versions[package] == "0.0.0"

    def test_one_of_a_package_that_kept_another_record(self, small: Path) -> None:
        (ArtifactHome.of("small-it-model").partial / "identity").write_text("0" * 64)
        with pytest.raises(PermanentError, match="how cannot be told: another version of this package"):
            run(small)
        assert not run(small, overwrite=True).reused

    def test_another_division_into_shards(
        self, small: Path, messages: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("asr_fine_tuner.dataset._SHARD_EXAMPLES", (2, 2))
        with pytest.raises(PermanentError, match="found: its division into shards"):
            run(small)
        made = run(small, overwrite=True)
        assert "continuing" not in messages.text
        assert tiny.contents(made.artifact) == tiny.contents(run(small, artifact_name="undisturbed").artifact)


class TestReplacement:
    def test_there_is_a_whole_artifact_whenever_files_are_removed(
        self, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifact = run(small, artifact_name="taken").artifact
        whole: list[bool] = []

        def remove(folder: Path) -> None:
            shutil_rmtree(folder)
            whole.append(not mismatches(artifact, read_manifest(artifact).files))

        shutil_rmtree = shutil.rmtree
        monkeypatch.setattr(shutil, "rmtree", remove)
        run(small, artifact_name="taken", max_train_samples=3, overwrite=True)
        assert whole
        assert all(whole)

    def test_a_job_killed_between_the_moves(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = run(small, artifact_name="taken")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(preprocessing, "move_into_place", _die)
            run(small, artifact_name="taken", max_train_samples=3, overwrite=True)
        home = ArtifactHome.of("taken")
        home.artifact.rename(home.replaced)
        again = run(small, artifact_name="taken")
        assert again.reused
        assert again.sha256 == first.sha256
        home.artifact.rename(home.replaced)
        replaced = run(small, artifact_name="taken", max_train_samples=3, overwrite=True)
        assert not replaced.reused
        assert len(ArtifactSplit(replaced.artifact, "train")) == 3
        assert not home.replaced.exists()

    def test_a_job_killed_after_the_moves(self, small: Path) -> None:
        run(small, artifact_name="taken")
        home = ArtifactHome.of("taken")
        shutil.copytree(home.artifact, home.replaced)
        assert run(small, artifact_name="taken").reused
        assert not home.replaced.exists()


class TestRejections:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        """Six clips to train on, and one of each kind that cannot be."""
        rows = tiny.all_splits()
        for reason, broken in tiny.broken().items():
            rows["train"] += [
                tiny.Row(row.audio, row.text, f"{reason}-{number}.wav") for number, row in enumerate(broken)
            ]
        return tiny.write_dataset(tmp_path / "mixed", rows)

    def test_each_is_listed_with_id_and_reason(self, mixed: Path) -> None:
        made = run(mixed, max_rejected_fraction=0.9)
        lines = (made.artifact / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
        listed = [json.loads(line) for line in lines]
        expected = {
            f"{reason}-{number}.wav": reason for reason, rows in tiny.broken().items() for number in range(len(rows))
        }
        assert {line["id"]: line["reason"] for line in listed} == expected
        assert {line["split"] for line in listed} == {"train"}
        assert all(line["detail"] for line in listed)
        counts = {reason: len(broken) for reason, broken in tiny.broken().items()}
        assert made.rejected == read_manifest(made.artifact).rejected == counts
        assert ArtifactSplit(made.artifact, "train").ids == [f"{number:03d}.flac" for number in range(6)]

    def test_too_many_fail_the_job_and_say_why(self, mixed: Path) -> None:
        with pytest.raises(PermanentError) as caught:
            run(mixed)
        n_broken = sum(map(len, tiny.broken().values()))
        assert f"{n_broken} of {n_broken + 10} clips are rejected" in caught.value.given
        assert "empty_text 3" in caught.value.given
        assert caught.value.expected == "at most 5 % (--max_rejected_fraction 0.05)"
        listed = ArtifactHome.of("mixed-it-model").partial / "artifact" / "rejected.jsonl"
        assert str(listed) in caught.value.action
        assert len(listed.read_text().splitlines()) == n_broken

    def test_too_many_for_a_finished_artifact_too(self, mixed: Path) -> None:
        made = run(mixed, max_rejected_fraction=0.9)
        with pytest.raises(PermanentError, match=r"clips are rejected: .*; first no_audio-0\.wav: ") as caught:
            run(mixed)
        assert caught.value.expected == "at most 5 % (--max_rejected_fraction 0.05)"
        assert str(made.artifact / "rejected.jsonl") in caught.value.action
        assert run(mixed, max_rejected_fraction=0.9).reused

    def test_exactly_the_fraction_is_accepted(self, tmp_path: Path) -> None:
        rows = tiny.all_splits()
        rows["train"].append(tiny.Row(b"", "vuoto"))
        folder = tiny.write_dataset(tmp_path / "data", rows)
        with pytest.raises(PermanentError, match="1 of 11 clips"):
            run(folder, max_rejected_fraction=1 / 11 - 1e-9)
        assert run(folder, max_rejected_fraction=1 / 11).rejected == {"empty": 1}

    def test_a_split_without_clips_fails_the_job(self, tmp_path: Path) -> None:
        rows = {**tiny.all_splits(), "validation": [tiny.Row(b"", "vuoto")]}
        with pytest.raises(PermanentError, match="no clip in the validation split"):
            run(tiny.write_dataset(tmp_path / "data", rows), max_rejected_fraction=1)


def test_markup_in_a_transcript_stays_text(tmp_path: Path) -> None:
    rows = tiny.all_splits()
    rows["train"][0] = tiny.Row(tiny.spoken(0), "prima <|endoftext|> dopo", "markup")
    made = run(tiny.write_dataset(tmp_path / "data", rows))
    train = ArtifactSplit(made.artifact, "train")
    tokenizer = WhisperTokenizer.from_pretrained(tiny.model())
    labels = train.labels(0).tolist()
    assert labels.index(tokenizer.eos_token_id) == len(labels) - 1
    assert tokenizer.decode(labels[4:-1]) == f" {train.texts[0]}" == " prima <|endoftext|> dopo"


def test_a_model_with_128_mels_and_another_language_token(small: Path) -> None:
    made = run(small, model_id=str(tiny.wide_model()), language="German", task="translate")
    manifest = read_manifest(made.artifact)
    assert (manifest.model.n_mels, manifest.encoding.max_duration) == (128, 30.0)
    assert (manifest.encoding.language_code, manifest.encoding.language_token) == ("it", "de")
    train = ArtifactSplit(made.artifact, "train")
    assert train.features(0).shape == (63, 128)
    tokens = WhisperTokenizer.from_pretrained(tiny.model()).convert_ids_to_tokens(train.labels(0)[:4].tolist())
    assert tokens == ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]


def test_an_english_only_model(tmp_path: Path) -> None:
    folder = tiny.write_dataset(tmp_path / "data", tiny.all_splits())
    (folder / "it").rename(folder / "en")
    made = run(folder, language_code="en", model_id=str(tiny.english_model()))
    tokens = WhisperTokenizer.from_pretrained(tiny.model()).convert_ids_to_tokens(
        ArtifactSplit(made.artifact, "train").labels(0)[:2].tolist()
    )
    assert tokens == ["<|startoftranscript|>", "<|notimestamps|>"]


class TestRefusedBeforeTheDatasetIsRead:
    """The dataset does not exist: it would be the next thing to be told."""

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"language_code": "dv"}, "Sinhala"),
            ({"model_id": str(tiny.ROOT)}, "config.json"),
            ({"max_duration": 5.0}, "at most 4 s, the window of model"),
            ({"min_duration": 4.0}, "less than the longest clip, 4 s"),
        ],
    )
    def test_parameters(self, parameters: dict[str, object], message: str) -> None:
        with pytest.raises(PermanentError, match=message):
            run("/nowhere", **parameters)

    def test_an_english_only_model_for_italian(self) -> None:
        with pytest.raises(PermanentError, match="English-only"):
            run("/nowhere", model_id=str(tiny.english_model()))


class TestOverTheHub:
    README = 1000  # bytes at most; it may be fetched beside the data

    @pytest.fixture
    def dataset(self, hub: LoopbackHub, tmp_path: Path) -> Path:
        """Train in three files, each other split in one: files of three row groups of two clips of 100 kB."""
        rows = [
            tiny.Row(speech.encode(speech.synthesize(3.2, seed=number), 16_000, "wav"), f"Frase {number}.")
            for number in range(30)
        ]
        splits = {"train": rows[:18], "validation": rows[18:24], "test": rows[24:]}
        folder = tiny.write_dataset(tmp_path / "data", splits, n_files=3, row_group=2)
        (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
        hub.add_repo("dataset", "org/speech", folder)
        hub.add_repo("model", "org/tiny", tiny.model())
        return folder

    def test_caps_stop_the_download(self, hub: LoopbackHub, dataset: Path) -> None:
        made = run("org/speech", model_id="org/tiny", max_train_samples=3, max_eval_samples=2)
        assert [summary.clips for summary in made.splits.values()] == [3, 2, 2]
        fetched = hub.sent_bytes(r"_cdn/datasets")
        assert fetched <= made.bytes_fetched <= fetched + self.README
        total = sum(path.stat().st_size for path in dataset.glob("it/*.parquet"))
        # Two of the nine row groups of train, one of the three of each other split; footers and small columns.
        wanted = total * (2 + 1 + 1) / (9 + 3 + 3)
        assert 0.9 * wanted < fetched < 1.1 * wanted + 5 * 65_536 < 0.5 * total
        assert not hub.requested(r"_cdn/datasets.*train-0000[12]")

    def test_everything_is_fetched_once(self, hub: LoopbackHub, dataset: Path) -> None:
        first = run("org/speech", model_id="org/tiny")
        total = sum(path.stat().st_size for path in dataset.glob("it/*.parquet"))
        # Footers are read by range to plan, and again within their files.
        assert total <= first.bytes_fetched <= total + 5 * 65_536 + self.README
        again = run("org/speech", model_id="org/tiny")
        assert (again.reused, again.bytes_fetched) == (True, 0)
        assert run("org/speech", model_id="org/tiny", artifact_name="another").bytes_fetched == 0

    def test_commits_are_pinned(self, hub: LoopbackHub, dataset: Path) -> None:
        manifest = read_manifest(run("org/speech", model_id="org/tiny").artifact)
        assert manifest.dataset.revision == hub.repo("dataset", "org/speech").refs["main"]
        assert manifest.model.revision == hub.repo("model", "org/tiny").refs["main"]
        assert (manifest.dataset.id, manifest.dataset.on_hub) == ("org/speech", True)
        assert manifest.dataset.licence == "cc0-1.0"

    def test_of_the_model_no_weights_are_fetched(self, hub: LoopbackHub, dataset: Path) -> None:
        run("org/speech", model_id="org/tiny")
        assert hub.requested("org/tiny.*tokenizer.json")
        assert not hub.requested("safetensors")

    def test_the_same_bytes_as_from_a_folder(self, hub: LoopbackHub, dataset: Path) -> None:
        arrow = [
            {name: content for name, content in tiny.contents(made.artifact).items() if name.endswith(".arrow")}
            for made in (run("org/speech", model_id="org/tiny"), run(dataset, artifact_name="local"))
        ]
        assert arrow[0] == arrow[1]


def test_the_package_gives_both_jobs_and_their_errors() -> None:
    assert asr_fine_tuner.preprocess is preprocess
    assert callable(asr_fine_tuner.train)
    for name in asr_fine_tuner.__all__:
        assert getattr(asr_fine_tuner, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = asr_fine_tuner.nothing  # type: ignore[attr-defined]
