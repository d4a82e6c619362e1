"""From a name and a language to examples: every layout, from the Hub, from folders and from archives."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING

import corpora
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import read

from asr_fine_tuner import hub as client
from asr_fine_tuner.dataset import Dataset, resolve_dataset
from asr_fine_tuner.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loopback.hub import LoopbackHub

ALL_SPLITS = {"train": ("train",), "validation": ("validation",), "test": ("test",)}
CARD = """---
license: [cc0-1.0, cc-by-4.0]
configs:
- config_name: it
  default: true
  data_files:
  - split: train
    path: [italiano/addestramento-*.parquet]
  - split: validation
    path: italiano/prova-*.parquet
- config_name: fr
  data_files: francese/*
- config_name: de
  data_dir: tedesco
---
# Speech
"""


def shape(dataset: Dataset, **caps: int) -> dict[str, int]:
    return {split: len(examples) for split, examples in read(dataset, **caps).items()}


def split_parquet(**n_clips: int) -> dict[str, bytes]:
    return {f"{split}/0000.parquet": corpora.parquet(n) for split, n in n_clips.items()}


class TestHub:
    def test_converted_branch_of_a_script_dataset(self, hub: LoopbackHub) -> None:
        hub.add_repo("dataset", "google/fleurs", {"fleurs.py": b"raise SystemExit", "data/it_it/train.tsv": b"a\tb\n"})
        converted = {
            f"{config}/{split}/0000.parquet": corpora.parquet(n, text="transcription")
            for config in ("it_it", "en_us", "all")
            for split, n in {"train": 20, "validation": 5, "test": 4}.items()
        }
        commit = hub.add_repo("dataset", "google/fleurs", converted, revision="refs/convert/parquet")
        dataset = resolve_dataset("google/fleurs", language_code="it")
        assert (dataset.config, dataset.kind, dict(dataset.splits)) == ("it_it", "parquet", ALL_SPLITS)
        assert dataset.columns.text == "transcription"
        plan = dataset.plan(max_train_samples=None, max_eval_samples=None, seed=42)
        assert plan.revision == commit
        assert dict(plan.sources) == {"train": "train", "validation": "validation", "test": "test"}
        assert shape(dataset) == {"train": 20, "validation": 5, "test": 4}

    def test_partly_converted_split(self, hub: LoopbackHub) -> None:
        hub.add_repo("dataset", "org/big", {"big.py": b""})
        hub.add_repo(
            "dataset",
            "org/big",
            {"it/partial-train/0000.parquet": corpora.parquet(30)},
            revision="refs/convert/parquet",
        )
        assert resolve_dataset("org/big", language_code="it").splits["train"] == ("train",)

    def test_card_says_which_files(self, hub: LoopbackHub) -> None:
        files = {
            "README.md": CARD.encode(),
            "italiano/addestramento-00000.parquet": corpora.parquet(7),
            "italiano/addestramento-00001.parquet": corpora.parquet(5, first=7),
            "italiano/prova-00000.parquet": corpora.parquet(4),
            "francese/a.parquet": corpora.parquet(30),
            "tedesco/a.parquet": corpora.parquet(30),
            "altro/train.parquet": corpora.parquet(30),
        }
        hub.add_repo("dataset", "org/speech", files)
        dataset = resolve_dataset("org/speech", language_code="it-IT")
        assert dataset.licence == "cc0-1.0, cc-by-4.0"
        assert dict(dataset.splits) == {"train": ("train",), "validation": ("validation",), "test": ()}
        assert sum(shape(dataset).values()) == 16
        assert dict(resolve_dataset("org/speech", language_code="french").splits)["train"] == ("train",)
        assert sum(shape(resolve_dataset("org/speech", language_code="de")).values()) == 30
        with pytest.raises(PermanentError, match="it, fr, de"):
            resolve_dataset("org/speech", language_code="es")

    def test_revision_is_pinned(self, hub: LoopbackHub) -> None:
        old = hub.add_repo("dataset", "org/speech", {"data/train-00000-of-00001.parquet": corpora.parquet(30)})
        new = hub.add_repo("dataset", "org/speech", {"data/train-00000-of-00001.parquet": corpora.parquet(50)})
        for revision, commit, n_clips in ((None, new, 50), ("main", new, 50), (old, old, 30)):
            dataset = resolve_dataset("org/speech", language_code="it", revision=revision)
            plan = dataset.plan(max_train_samples=None, max_eval_samples=None, seed=42)
            assert (plan.revision, sum(plan.n_examples.values())) == (commit, n_clips)
        with pytest.raises(PermanentError, match="no such revision"):
            resolve_dataset("org/speech", language_code="it", revision="v9")

    def test_cap_stops_the_download_of_parquet(self, hub: LoopbackHub) -> None:
        files = {
            f"data/train-0000{number}-of-00003.parquet": corpora.parquet(300, first=300 * number, size=60_000)
            for number in range(3)
        }
        files |= {f"data/{split}-00000-of-00001.parquet": corpora.parquet(20) for split in ("validation", "test")}
        hub.add_repo("dataset", "org/speech", files)
        one_file = len(files["data/train-00000-of-00003.parquet"])
        before = client.bytes_fetched()
        capped = read(resolve_dataset("org/speech", language_code="it"), max_train_samples=100, max_eval_samples=5)
        fetched = client.bytes_fetched() - before
        assert [example.id for example in capped["train"]] == [f"{number:06d}.wav" for number in range(100)]
        assert 100 * 60_000 < fetched < 0.4 * one_file
        assert fetched == hub.sent_bytes(r"_cdn/.*\.parquet")
        assert not hub.requested(r"_cdn/.*train-0000[12]")

    def test_whole_files_come_from_the_cache(self, hub: LoopbackHub) -> None:
        content = corpora.parquet(200, size=500)
        hub.add_repo("dataset", "org/speech", {"data/train-00000-of-00001.parquet": content})
        dataset = resolve_dataset("org/speech", language_code="it")
        before = client.bytes_fetched()
        first = read(dataset)
        assert len(content) <= client.bytes_fetched() - before <= 1.7 * len(content)
        assert len(hub.requested(r"_cdn/.*parquet", "GET")) - len(hub.requested(r"_cdn/.*parquet", "HEAD")) <= 3
        before = client.bytes_fetched()
        assert read(dataset) == first
        assert client.bytes_fetched() == before

    def test_offline_after_a_run(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        hub.add_repo("dataset", "org/speech", {"it/train/0000.parquet": corpora.parquet(200, speakers=9)})
        first = read(resolve_dataset("org/speech", language_code="it"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.requests.clear()
        assert read(resolve_dataset("org/speech", language_code="it")) == first
        with pytest.raises(PermanentError, match="HF_HUB_OFFLINE"):
            resolve_dataset("org/never", language_code="it")
        assert not hub.requests

    def test_webdataset(self, hub: LoopbackHub) -> None:
        files = {
            "it/train/000.tar": corpora.tar(40, size=40_000),
            "it/train/001.tar": corpora.tar(40, first=40, size=40_000),
            "it/test/000.tar": corpora.tar(3),
            "fr/train/000.tar": corpora.tar(3),
        }
        hub.add_repo("dataset", "org/speech", files)
        dataset = resolve_dataset("org/speech", language_code="it")
        assert (dataset.config, dataset.kind, dataset.splits["validation"]) == ("it", "webdataset", ())
        before = client.bytes_fetched()
        capped = read(dataset, max_train_samples=10)
        assert sum(map(len, capped.values())) == 13
        assert client.bytes_fetched() - before < 0.75 * len(files["it/train/000.tar"])
        assert not hub.requested(r"_cdn/.*001\.tar")
        everything = read(dataset)
        assert sum(map(len, everything.values())) == 83
        assert {example.audio for examples in everything.values() for example in examples} >= {
            corpora.audio(number, 40_000) for number in range(80)
        }

    def test_audio_files_and_a_table(self, hub: LoopbackHub) -> None:
        hub.add_repo("dataset", "org/speech", corpora.audiofolder(30, folder="train/"))
        before = client.bytes_fetched()
        assert sum(shape(resolve_dataset("org/speech", language_code="it"), max_train_samples=10).values()) == 10
        assert client.bytes_fetched() > before
        assert len(hub.requested(r"\.wav", "GET")) == 10

    def test_nothing_to_read(self, hub: LoopbackHub) -> None:
        hub.add_repo("dataset", "org/speech", {"speech.py": b"", "data.zip": b""})
        with pytest.raises(PermanentError, match="nothing can be read as speech"):
            resolve_dataset("org/speech", language_code="it")

    def test_missing_here_and_there(self, hub: LoopbackHub) -> None:
        with pytest.raises(PermanentError, match=r"no folder 'org/speech' in .*, and (.|\n)*not found on the Hub"):
            resolve_dataset("org/speech", language_code="it")
        for name in ("./speech", "a/b/c", "speech.tar.gz/x/y", "è/é", "org/" + 93 * "x"):
            with pytest.raises(PermanentError, match="no folder here, and no name the Hub allows"):
                resolve_dataset(name, language_code="it")
        assert not hub.requested("a/b/c")

    def test_a_name_that_is_looked_up_on_the_hub(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HUB_PATIENCE_SECONDS", "0")
        hub.fail("/api/", 503, times=50)
        with (
            caplog.at_level("INFO", "asr_fine_tuner"),
            pytest.raises(TransientError, match=f"no folder 'meetings' in {tmp_path}, and .*answers 503"),
        ):
            resolve_dataset("meetings", language_code="it")
        assert f"there is no folder 'meetings' in {tmp_path}, so it is looked up on the Hub" in caplog.messages[0]


@pytest.mark.parametrize("place", ["folder", "zip"])
class TestLocal:
    def resolve(
        self, place: str, tmp_path: Path, files: Mapping[str, bytes], language_code: str = "it", **columns: str
    ) -> Dataset:
        if place == "folder":
            path = corpora.write(tmp_path / "data", files)
        else:
            path = corpora.write_zip(tmp_path / "data.zip", files)
        return resolve_dataset(str(path), language_code=language_code, **columns)  # type: ignore[arg-type]

    @pytest.mark.parametrize("prefix", ["", "it/", "cv-corpus-23.0-2025-09-05/it/"])
    def test_common_voice(self, place: str, tmp_path: Path, prefix: str) -> None:
        files = {f"{prefix}{name}": content for name, content in corpora.common_voice().items()}
        dataset = self.resolve(place, tmp_path, files)
        assert dict(dataset.splits) == {"train": ("train",), "validation": ("dev",), "test": ("test",)}
        examples = read(dataset)
        assert {split: len(found) for split, found in examples.items()} == {"train": 6, "validation": 3, "test": 2}
        first = examples["train"][0]
        assert first.text == 'Disse: "frase 0'
        assert (first.id, first.audio, first.speaker) == ("common_voice_it_0.mp3", corpora.audio(0), "speaker 0")

    def test_common_voice_of_several_languages(self, place: str, tmp_path: Path) -> None:
        files = {
            f"cv-corpus/{language}/{name}": content
            for language in ("it", "de")
            for name, content in corpora.common_voice().items()
        }
        assert self.resolve(place, tmp_path, files, "de").config == "de"
        with pytest.raises(PermanentError, match="de, it"):
            self.resolve(place, tmp_path, files, "fr")

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_audiofolder_with_split_folders(self, place: str, tmp_path: Path, kind: str) -> None:
        files: dict[str, bytes] = {}
        for split, n_clips in {"train": 6, "valid": 3, "test": 2}.items():
            files |= corpora.audiofolder(n_clips, folder=f"{split}/", kind=kind, first=10 * n_clips)
        dataset = self.resolve(place, tmp_path, files)
        assert dataset.splits["validation"] == ("valid",)
        examples = read(dataset)
        assert {split: len(found) for split, found in examples.items()} == {"train": 6, "validation": 3, "test": 2}
        assert [example.audio for example in examples["test"]] == [corpora.audio(20), corpora.audio(21)]

    def test_audiofolder_without_splits(self, place: str, tmp_path: Path) -> None:
        dataset = self.resolve(place, tmp_path, corpora.audiofolder(50))
        assert dict(dataset.splits) == {"train": ("train",), "validation": (), "test": ()}
        assert shape(dataset) == {"train": 40, "validation": 5, "test": 5}

    def test_audiofolder_with_one_table_over_split_folders(self, place: str, tmp_path: Path) -> None:
        names = ["train/0.wav", "train/1.wav", "test/2.wav", "train/3.wav", "validation/4.wav"]
        rows = [{"file_name": name, "text": name} for name in names]
        files = {name: corpora.audio(number) for number, name in enumerate(names)}
        examples = read(self.resolve(place, tmp_path, files | {"metadata.csv": corpora.table(rows, "csv")}))
        assert {split: [example.id for example in found] for split, found in examples.items()} == {
            "train": ["train/0.wav", "train/1.wav", "train/3.wav"],
            "validation": ["validation/4.wav"],
            "test": ["test/2.wav"],
        }

    @pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
    @pytest.mark.parametrize("prefix", ["", "audio/"])
    def test_audio_beside_a_table(self, place: str, tmp_path: Path, kind: str, prefix: str) -> None:
        files = {f"audio/{number}.flac": corpora.audio(number) for number in range(12)}
        for split, numbers in {"train": range(8), "test": range(8, 12)}.items():
            rows = [{"audio": f"{prefix}{number}.flac", "transcription": f"frase {number}"} for number in numbers]
            files[f"{split}.{kind}"] = corpora.table(rows, kind)
        files["notes.json"] = b'{\n "made": "by hand"\n}'
        dataset = self.resolve(place, tmp_path, files)
        assert (dataset.kind, dataset.columns.audio, dataset.columns.text) == ("table", "audio", "transcription")
        examples = read(dataset)
        assert sum(map(len, examples.values())) == 12
        assert [example.audio for example in examples["test"]] == [corpora.audio(number) for number in range(8, 12)]

    def test_one_table_for_everything(self, place: str, tmp_path: Path) -> None:
        rows = [{"audio": f"{number}.flac", "transcription": f"frase {number}"} for number in range(50)]
        files = {f"audio/{number}.flac": corpora.audio(number) for number in range(50)}
        dataset = self.resolve(place, tmp_path, {**files, "transcripts.csv": corpora.table(rows, "csv")})
        assert shape(dataset) == {"train": 40, "validation": 5, "test": 5}
        plan = dataset.plan(max_train_samples=None, max_eval_samples=3, seed=42)
        assert dict(plan.n_examples) == {"train": 44, "validation": 3, "test": 3}
        assert plan.sources["test"] == "train, held out by clip"
        assert "does not say who speaks in 50 of 50 clips (it has no column client_id or speaker_id" in plan.warnings[0]

    def test_hub_layout(self, place: str, tmp_path: Path) -> None:
        files = {
            "data/train-00000-of-00002.parquet": corpora.parquet(5),
            "data/train-00001-of-00002.parquet": corpora.parquet(5, first=5),
            "data/validation-00000-of-00001.parquet": corpora.parquet(3),
            "data/test-00000-of-00001.parquet": corpora.parquet(2),
        }
        dataset = self.resolve(place, tmp_path, files)
        assert (dataset.config, dict(dataset.splits)) == ("default", ALL_SPLITS)
        assert shape(dataset) == {"train": 10, "validation": 3, "test": 2}

    def test_revision_is_of_what_is_read(self, place: str, tmp_path: Path) -> None:
        files = corpora.common_voice({"train": 30, "dev": 20, "test": 20})

        def revision(name: str, changed: Mapping[str, bytes], cap: int | None) -> str:
            dataset = self.resolve(place, tmp_path / name, {**files, **changed})
            return dataset.plan(max_train_samples=cap, max_eval_samples=5, seed=1).revision

        whole = revision("1", {}, None)
        assert revision("2", {}, None) == whole
        assert revision("3", {"clips/common_voice_it_29.mp3": b"other"}, None) != whole
        assert revision("4", {"clips/common_voice_it_49.mp3": b"not read"}, None) == whole
        assert revision("5", {}, 10) != whole

    @pytest.mark.parametrize("folder", ["af", "meetings", "home/anna/af"])
    def test_a_folder_around_the_dataset_says_nothing(self, place: str, tmp_path: Path, folder: str) -> None:
        files = corpora.audiofolder(12) | {"README.md": b"---\nlicense: cc0-1.0\n---\n"}
        plain = self.resolve(place, tmp_path / "plain", files)
        nested = self.resolve(place, tmp_path / "nested", {f"{folder}/{name}": files[name] for name in files})
        assert (nested.config, nested.licence) == ("default", "cc0-1.0")
        assert read(nested) == read(plain)
        plans = [found.plan(max_train_samples=None, max_eval_samples=None, seed=1) for found in (nested, plain)]
        assert plans[0].revision == plans[1].revision

    def test_a_lone_folder_beside_other_files_is_no_language(self, place: str, tmp_path: Path) -> None:
        files = {f"af/{name}": content for name, content in corpora.audiofolder(12).items()}
        assert self.resolve(place, tmp_path / "1", files | {"LICENSE": b"free"}).config == "default"
        files |= {f"it/{name}": content for name, content in corpora.audiofolder(12).items()}
        assert self.resolve(place, tmp_path / "2", files).config == "it"
        with pytest.raises(PermanentError, match="af, it"):
            self.resolve(place, tmp_path / "3", files, "de")

    def test_the_language_of_a_release_still_has_to_match(self, place: str, tmp_path: Path) -> None:
        release = {f"af/{name}": content for name, content in corpora.common_voice().items()}
        converted = {f"af/train/{number}.parquet": corpora.parquet(9) for number in range(2)}
        for number, files in enumerate((release, {f"cv-corpus/{name}": release[name] for name in release}, converted)):
            with pytest.raises(PermanentError, match=r"fits no config(.|\n)*its only config, af"):
                self.resolve(place, tmp_path / str(number), files)
            assert self.resolve(place, tmp_path / str(number), files, "af").config == "af"

    def test_a_lone_split_folder_is_a_split(self, place: str, tmp_path: Path) -> None:
        with pytest.raises(PermanentError, match="the splits test, none of which is for training"):
            self.resolve(place, tmp_path, corpora.audiofolder(12, folder="test/"))

    @pytest.mark.parametrize(
        ("table", "columns", "told", "action"),
        [
            (b"audio,transcription\na.wav,uno\n", {"text_column": "sentence"},
             "t.csv has the columns audio, transcription; none is 'sentence'", "--text_column"),
            (b"audio,transcription\na.wav,uno\n", {"audio_column": "clip", "text_column": "sentence"},
             "t.csv has the columns audio, transcription; none is 'clip', and none 'sentence'",
             "--audio_column and --text_column"),
            (b"file,testo,parlante\na.wav,uno,anna\n", {},
             "t.csv has the columns file, testo, parlante; none is 'sentence' or 'text' or",
             "--text_column, or rename it to transcription"),
            (b"a.wav,uno,anna\nb.wav,due,bruno\n", {}, "t.csv begins with a clip (a.wav, uno, anna)", "3 columns"),
            (b"audio,transcription\n", {}, "t.csv has no rows", "names of the audio files"),
            (None, {}, "it has 2 audio files, and no table", "metadata.csv in that folder with the columns file_name"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_with_the_table(
        self, place: str, tmp_path: Path, table: bytes | None, columns: dict[str, str], told: str, action: str
    ) -> None:
        files = {"a.wav": b"a", "b.WAV": b"b"}
        if table is not None:
            files |= {"t.csv": table, "notes.json": b'{"made": "by hand"}', "a.json": b"[]"}
        with pytest.raises(PermanentError) as caught:
            self.resolve(place, tmp_path, files, **columns)
        assert told in caught.value.given
        assert action in caught.value.action

    def test_a_table_for_each_clip(self, place: str, tmp_path: Path) -> None:
        files = {f"{number}.json": corpora.table([{"audio": "a.wav", "text": "uno"}], "json") for number in range(65)}
        with pytest.raises(PermanentError, match="65 tables, more than 64 in one folder"):
            self.resolve(place, tmp_path, files | {"a.wav": b"a"})

    def test_no_audio(self, place: str, tmp_path: Path) -> None:
        for number, (files, told) in enumerate(
            [({"a.csv": b"x,y\n1,2\n"}, r"no audio files beside a\.csv"), ({"a.txt": b"a"}, "it has no audio files")]
        ):
            with pytest.raises(PermanentError, match=f"nothing can be read as speech .*{told}"):
                self.resolve(place, tmp_path / str(number), files)


class TestPlan:
    def dataset(self, tmp_path: Path, files: Mapping[str, bytes], **options: str) -> Dataset:
        return resolve_dataset(str(corpora.write(tmp_path, files)), language_code="it", **options)  # type: ignore[arg-type]

    def test_shards_do_not_depend_on_anything_but_the_input(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path, split_parquet(train=900, validation=70, test=30))
        plans = [dataset.plan(max_train_samples=None, max_eval_samples=None, seed=1) for _ in range(2)]
        assert plans[0] == plans[1]
        assert pickle.loads(pickle.dumps(plans[0])) == plans[0]  # noqa: S301
        assert all(isinstance(rows, range) for plan in plans[0].shards for rows in plan.rows.values())
        lengths = [plan.n_examples for plan in plans[0].shards]
        assert max(lengths) <= 100
        assert len(lengths) == 11

    def test_held_out_speakers(self, tmp_path: Path) -> None:
        files = {"train/0000.parquet": corpora.parquet(600, speakers=60)}
        dataset = self.dataset(tmp_path, files)
        examples = read(dataset, max_train_samples=500, max_eval_samples=30)
        speakers = {split: {example.speaker for example in found} for split, found in examples.items()}
        assert not speakers["train"] & speakers["validation"]
        assert not speakers["train"] & speakers["test"]
        assert not speakers["validation"] & speakers["test"]
        assert sum(map(len, examples.values())) == 500
        assert read(dataset, max_train_samples=500, max_eval_samples=30) == examples
        assert read(dataset, max_train_samples=500, max_eval_samples=30, seed=7) != examples
        plan = dataset.plan(max_train_samples=500, max_eval_samples=30, seed=42)
        assert plan.sources["validation"] == "train, held out by speaker"
        assert not plan.warnings

    def test_clips_of_unknown_speaker_stay_in_train(self, tmp_path: Path) -> None:
        rows = [
            {"path": f"{number}.mp3", "sentence": "frase", "client_id": f"speaker {number % 20}" if number else ""}
            for number in range(200)
        ]
        files = {f"clips/{number}.mp3": corpora.audio(number) for number in range(200)}
        dataset = self.dataset(tmp_path, {**files, "train.tsv": corpora.table(rows, "tsv")})
        plan = dataset.plan(max_train_samples=None, max_eval_samples=None, seed=42)
        assert plan.sources["test"] == "train, held out by speaker"
        assert "does not say who speaks in 1 of 200 clips, which stay in train" in plan.warnings[0]
        assert "0.mp3" in {example.id for example in read(dataset)["train"]}

    def test_only_what_is_missing_is_held_out(self, tmp_path: Path) -> None:
        dataset = self.dataset(tmp_path, split_parquet(train=100, dev=20))
        assert shape(dataset) == {"train": 90, "validation": 20, "test": 10}

    def test_too_few_to_hold_out(self, tmp_path: Path) -> None:
        with pytest.raises(PermanentError, match="train has 2 clips") as caught:
            read(self.dataset(tmp_path, split_parquet(train=2)))
        assert "at least 3 clips" in caught.value.expected
        assert "add clips" in caught.value.action
        assert "max_train_samples" not in str(caught.value)
        three = self.dataset(tmp_path, split_parquet(train=3))
        assert shape(three) == {"train": 1, "validation": 1, "test": 1}
        with pytest.raises(PermanentError, match="larger --max_train_samples"):
            read(three, max_train_samples=2)

    def test_empty_split(self, tmp_path: Path) -> None:
        with pytest.raises(PermanentError, match="which is empty"):
            read(self.dataset(tmp_path, split_parquet(train=5, test=0)))

    def test_joined_splits(self, tmp_path: Path) -> None:
        files = split_parquet(train=20, validation=10, test=5)
        assert shape(self.dataset(tmp_path, files, train_split="train+validation")) == {
            "train": 27,
            "validation": 3,
            "test": 5,
        }

    def test_columns_that_were_asked_for(self, tmp_path: Path) -> None:
        table = pa.table({"suono": [b"a"] * 20, "testo": ["b"] * 20, "text": ["c"] * 20})
        written = io.BytesIO()
        pq.write_table(table, written)
        dataset = self.dataset(
            tmp_path, {"train.parquet": written.getvalue()}, audio_column="suono", text_column="testo"
        )
        assert {example.text for example in read(dataset)["train"]} == {"b"}

    def test_folders_that_are_no_languages_are_one_dataset(self, tmp_path: Path) -> None:
        files = {f"speaker{number}/train-00000-of-00001.parquet": corpora.parquet(20) for number in range(3)}
        assert sum(shape(self.dataset(tmp_path, files)).values()) == 60
        only = resolve_dataset(str(tmp_path), language_code="speaker1")
        assert sum(shape(only).values()) == 20
