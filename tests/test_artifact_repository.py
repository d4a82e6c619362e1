"""An artifact in a dataset repository on the Hub: pushed once and whole, kept private, pulled and verified."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny
from loopback.hub_answers import Account

from asr_fine_tuner import (
    PartResult,
    PermanentError,
    PreprocessParameters,
    PreprocessResult,
    TrainParameters,
    TransientError,
    preprocess,
)
from asr_fine_tuner.files import shared
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import MANIFEST_NAME, read_manifest
from asr_fine_tuner.training_input import open_artifact

if TYPE_CHECKING:
    from loopback.hub import LoopbackHub

NAME = "hf://datasets/tester/clips"
REPO = "tester/clips"


@pytest.fixture(autouse=True)
def environment(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("HUB_PATIENCE_SECONDS", "0")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 + 2 + 2 clips."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "small", tiny.all_splits())


def run(dataset: Path, **others: object) -> PreprocessResult:
    flags = {"dataset_name": str(dataset), "language_code": "it", "model_id": str(tiny.model()), "num_workers": 1}
    made = preprocess(PreprocessParameters.model_validate({**flags, "artifact_name": NAME, **others}))
    assert isinstance(made, PreprocessResult)
    return made


class TestPush:
    def test_the_files_of_the_manifest_and_no_other(self, hub: LoopbackHub, small: Path) -> None:
        made = run(small)
        assert made.artifact == ArtifactHome.of(NAME).artifact
        assert made.artifact.parent.name == "datasets--tester--clips"
        assert made.url == f"{hub.url}/datasets/{REPO}"
        there = hub.files("dataset", REPO)
        assert there.keys() == {MANIFEST_NAME, *read_manifest(made.artifact).files}
        assert there == tiny.contents(made.artifact)
        assert hub.repo("dataset", REPO).private

    def test_what_is_there_is_not_pushed_again(self, hub: LoopbackHub, small: Path) -> None:
        run(small)
        commits = dict(hub.repo("dataset", REPO).commits)
        assert run(small).reused
        assert hub.repo("dataset", REPO).commits == commits

    def test_what_another_machine_has_pushed_is_not_made_again(self, hub: LoopbackHub, small: Path) -> None:
        run(small)
        shutil.rmtree(ArtifactHome.of(NAME).folder)
        pulled = run(small)
        assert pulled.reused
        assert tiny.contents(pulled.artifact) == hub.files("dataset", REPO)
        assert not ArtifactHome.of(NAME).partial.exists()
        hub.add_repo("dataset", REPO, {**hub.files("dataset", REPO), "train/data-00000.arrow": b"damaged"})
        assert not run(small).reused
        assert hub.files("dataset", REPO) == tiny.contents(ArtifactHome.of(NAME).artifact)

    def test_a_failed_upload_is_made_up_for_without_encoding(self, hub: LoopbackHub, small: Path) -> None:
        hub.fail("/commit/", 500)
        with pytest.raises(TransientError, match="answers 500"):
            run(small)
        assert MANIFEST_NAME not in hub.files("dataset", REPO)
        hub.heal()
        n_uploaded = len(hub.requested("_lfs/", "PUT"))
        made = run(small)
        assert made.reused
        assert hub.files("dataset", REPO) == tiny.contents(made.artifact)
        assert len(hub.requested("_lfs/", "PUT")) == n_uploaded, "what arrived the first time"

    def test_what_did_not_arrive_is_noticed(
        self, hub: LoopbackHub, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from asr_fine_tuner import hub_upload

        upload = hub_upload._upload

        def lossy(repo_id: str, *others: object) -> hub_upload.Uploaded:
            uploaded = upload(repo_id, *others)  # type: ignore[arg-type]
            broken = hub.files("dataset", REPO) | {"train/data-00000.arrow": b"lost", "rejected.jsonl": b"lost"}
            return uploaded._replace(commit=hub.add_repo("dataset", REPO, broken))

        with monkeypatch.context() as patched:
            patched.setattr(hub_upload, "_upload", lossy)
            with pytest.raises(TransientError, match=r"differs from .* in rejected\.jsonl, train/data-00000\.arrow"):
                run(small)
        made = run(small)
        assert hub.files("dataset", REPO) == tiny.contents(made.artifact)

    def test_a_different_artifact_there_is_replaced_only_when_asked_for(self, hub: LoopbackHub, small: Path) -> None:
        run(small)
        hub.add_repo("dataset", REPO, {**hub.files("dataset", REPO), "README.md": b"# Mine"})
        shutil.rmtree(ArtifactHome.of(NAME).folder)
        with pytest.raises(PermanentError, match="max_train_samples: 3 and None"):
            run(small, max_train_samples=3)
        assert not ArtifactHome.of(NAME).partial.exists(), "before anything is encoded"
        made = run(small, max_train_samples=3, overwrite=True)
        assert hub.files("dataset", REPO) == {**tiny.contents(made.artifact), "README.md": b"# Mine"}

    def test_the_last_part_pushes(self, hub: LoopbackHub, caplog: pytest.LogCaptureFixture) -> None:
        flags = tiny.preprocess_flags(num_workers=1, artifact_name=NAME, shard_count=2)
        first, last = (
            preprocess(PreprocessParameters.model_validate({**flags, "shard_index": index})) for index in (0, 1)
        )
        assert isinstance(first, PartResult)
        assert isinstance(last, PreprocessResult)
        assert hub.files("dataset", REPO) == tiny.contents(tiny.artifact())
        assert "5 of 10 shards are done, and no other part has worked in" in caplog.text

    def test_a_part_that_finds_others_at_work_or_done_is_not_warned(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "asr_fine_tuner")
        flags = tiny.preprocess_flags(num_workers=1, artifact_name=NAME, shard_count=5)
        parts = [PreprocessParameters.model_validate({**flags, "shard_index": index}) for index in range(3)]
        preprocess(parts[0])
        caplog.clear()
        with shared(ArtifactHome.of(NAME).lock, what="made"):
            preprocess(parts[0])
            preprocess(parts[1])
        preprocess(parts[2])
        for done in (2, 4, 6):
            assert f"{done} of 10 shards are done in" in caplog.text
        assert not [record for record in caplog.records if "nobody merges" in record.getMessage()]


@pytest.mark.parametrize(
    ("token", "name", "told"),
    [
        (None, NAME, "HF_TOKEN is not set"),
        ("hf_reader", NAME, "may only read"),
        ("hf_test", "hf://datasets/google/clips", "tester, who is not in google"),
        ("hf_test", "hf://datasets/tester/public", "already and public"),
        ("hf_test", "hf://datasets/tester/other", "holds data.csv and no manifest.json"),
    ],
)
def test_what_cannot_be_pushed_to_is_found_before_the_work(
    token: str | None, name: str, told: str, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["hf_reader"] = Account("tester", role="read")
    hub.add_repo("dataset", "tester/public", {"README.md": b"#"})
    hub.add_repo("dataset", "tester/other", {"data.csv": b"1"}, private=True)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermanentError, match=told) as caught:
        run(Path("/no/such/dataset"), artifact_name=name)
    assert "--publish" not in str(caught.value)


class TestPull:
    @pytest.fixture
    def pushed(self, hub: LoopbackHub) -> str:
        """The commit of an artifact that another machine has pushed."""
        return hub.add_repo("dataset", REPO, tiny.artifact(), private=True)

    def test_it_is_pulled_and_verified(self, hub: LoopbackHub, pushed: str) -> None:
        hub.add_repo("dataset", REPO, {**hub.files("dataset", REPO), "train.py": b"raise SystemExit"})
        source = open_artifact(TrainParameters(artifact_name=NAME))
        assert source.manifest == read_manifest(tiny.artifact())
        assert tiny.contents(source.folder) == tiny.contents(tiny.artifact()), "train.py was left there"
        assert len(source.clips("train")) == 96
        hub.requests.clear()
        assert open_artifact(TrainParameters(artifact_name=NAME)) == source
        assert not hub.requested("_cdn/"), "it was in the cache"

    def test_what_was_made_here_is_not_downloaded(self, hub: LoopbackHub, pushed: str) -> None:
        here = ArtifactHome.of(NAME).artifact
        shutil.copytree(tiny.artifact(), here)
        assert open_artifact(TrainParameters(artifact_name=NAME)).folder == here
        assert not hub.requested("_cdn/")

    def test_a_commit_of_before(self, hub: LoopbackHub, pushed: str, small: Path) -> None:
        made = run(small, overwrite=True)
        assert open_artifact(TrainParameters(artifact_name=NAME)).manifest.sha256 == made.sha256
        pinned = open_artifact(TrainParameters(artifact_name=f"{NAME}@{pushed}"))
        assert pinned.manifest == read_manifest(tiny.artifact())

    def test_a_damaged_one_is_refused(self, hub: LoopbackHub, pushed: str) -> None:
        hub.add_repo("dataset", REPO, {**hub.files("dataset", REPO), "train/data-00002.arrow": b"damaged"})
        with pytest.raises(PermanentError, match=r"train/data-00002\.arrow has sha256"):
            open_artifact(TrainParameters(artifact_name=NAME))

    def test_none_there(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(PermanentError, match="tester/clips was not found"):
            open_artifact(TrainParameters(artifact_name=NAME))
        hub.add_repo("dataset", REPO, {"README.md": b"#"}, private=True)
        with pytest.raises(PermanentError, match=r"no manifest\.json(.|\n)*--artifact_name hf://datasets/tester/clips"):
            open_artifact(TrainParameters(artifact_name=NAME))


@pytest.mark.parametrize("name", ["hf://tester/clips", "hf://models/tester/clips", "hf://datasets/clips", f"{NAME}/x"])
def test_other_addresses_are_none_of_an_artifact(name: str) -> None:
    for kind, others in ((PreprocessParameters, {"dataset_name": "a", "language_code": "it"}), (TrainParameters, {})):
        with pytest.raises(ValueError, match="hf://datasets/USER/NAME"):
            kind.model_validate({**others, "artifact_name": name})


def test_what_is_pushed_has_no_revision() -> None:
    with pytest.raises(ValueError, match="no revision"):
        PreprocessParameters(dataset_name="a", language_code="it", artifact_name=f"{NAME}@main")
