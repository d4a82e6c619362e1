"""The Hub over HTTP: what is fetched, what is published, and what failures say."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import TYPE_CHECKING

import corpora
import pytest

from asr_fine_tuner import hub as client
from asr_fine_tuner.checkpoint_files import CARD_FILE, MODEL_FILES, weights_sha256
from asr_fine_tuner.dataset import resolve_dataset
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.filetree import StoredFile

if TYPE_CHECKING:
    from pathlib import Path

    from loopback.hub import LoopbackHub

pytestmark = pytest.mark.usefixtures("impatient_with_the_hub")


class TestDatasetFiles:
    CONTENT = corpora.audio(1, 300_000)

    @pytest.fixture
    def tree(self, hub: LoopbackHub) -> client.HubTree:
        hub.add_repo("dataset", "org/speech", {"a.tar": self.CONTENT, "README.md": b"# Speech"})
        return client.open_dataset("org/speech", None)

    def test_listing(self, tree: client.HubTree) -> None:
        assert tree.listing()["a.tar"] == StoredFile("a.tar", len(self.CONTENT))
        assert pickle.loads(pickle.dumps(tree)) == tree  # noqa: S301

    def test_parts_are_fetched_by_range(self, hub: LoopbackHub, tree: client.HubTree) -> None:
        before = client.bytes_fetched()
        with tree.open_part(tree.listing()["a.tar"]) as opened:
            for start, n_bytes in (
                (0, 10),
                (500, 1000),
                (200_000, 50_000),
                (199_990, 20),
                (299_990, 100),
                (400_000, 5),
            ):
                opened.seek(start)
                assert opened.read(n_bytes) == self.CONTENT[start : start + n_bytes]
            assert opened.seek(-10, 2) == len(self.CONTENT) - 10
            assert opened.read() == self.CONTENT[-10:]
        fetched = client.bytes_fetched() - before
        assert 51_000 < fetched < 150_000
        assert fetched == hub.sent_bytes("_cdn/.*a.tar")

    def test_whole_files_are_fetched_once(self, hub: LoopbackHub, tree: client.HubTree) -> None:
        before = client.bytes_fetched()
        for opening in (tree.open_whole, tree.open_whole, tree.open_part):
            with opening(tree.listing()["a.tar"]) as opened:
                assert opened.read() == self.CONTENT
        assert client.bytes_fetched() - before == len(self.CONTENT)
        assert len(hub.requested("_cdn/.*a.tar", "GET")) == 1

    def test_download_that_breaks_off_is_resumed(self, hub: LoopbackHub, tree: client.HubTree) -> None:
        hub.cut("_cdn/.*a.tar", 100_000, times=1, method="GET")
        before = client.bytes_fetched()
        with tree.open_whole(tree.listing()["a.tar"]) as opened:
            assert opened.read() == self.CONTENT
        assert client.bytes_fetched() - before == len(self.CONTENT)

    def test_whole_files_for_a_range_are_not_taken(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither kept in memory, nor fetched once more for each range."""
        n_bytes = 40_000_000
        hub.add_repo("dataset", "org/long", {"a.tar": bytes(n_bytes)})
        tree = client.open_dataset("org/long", None)
        hub.knows_ranges = False
        before = client.bytes_fetched()
        tracemalloc.start()
        try:
            with tree.open_part(tree.listing()["a.tar"]) as opened:
                assert opened.read(1000) == bytes(1000)
                opened.seek(n_bytes - 1000)
                with pytest.raises(
                    PermanentError, match=r"sends the whole of a\.tar(.|\n)*range requests(.|\n)*HF_ENDPOINT"
                ):
                    opened.read(1000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < n_bytes / 4
        assert client.bytes_fetched() - before < 200_000

    def test_range_that_breaks_off_is_fetched_again(
        self, hub: LoopbackHub, tree: client.HubTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.cut("_cdn/.*a.tar", 10_000, times=1, method="GET")
        with tree.open_part(tree.listing()["a.tar"]) as opened:
            with pytest.raises(TransientError, match="cannot be reached"):
                opened.read(100_000)
            monkeypatch.setenv("HUB_PATIENCE_SECONDS", "30")
            hub.cut("_cdn/.*a.tar", 10_000, times=1, method="GET")
            assert opened.read(100_000) == self.CONTENT[:100_000]

    def test_range_that_is_refused_says_why(self, hub: LoopbackHub, tree: client.HubTree) -> None:
        hub.fail("/resolve/.*a.tar", 403, message="too many downloads")
        with (
            tree.open_part(tree.listing()["a.tar"]) as opened,
            pytest.raises(PermanentError, match=r"forbids this to no HF_TOKEN.*too many downloads"),
        ):
            opened.read(100_000)

    def test_token_goes_along(self, hub: LoopbackHub, token: str) -> None:
        hub.add_repo("dataset", "tester/secret", {"a.tar": b"a" * 100}, private=True)
        tree = client.open_dataset("tester/secret", None)
        with tree.open_part(tree.listing()["a.tar"]) as opened:
            assert opened.read() == b"a" * 100
        assert {request.token for request in hub.requested("secret") if "_cdn" not in request.path} == {token}

    def test_no_token_but_the_environment_s(self, hub: LoopbackHub, hf_home: Path) -> None:
        hf_home.mkdir(exist_ok=True)
        (hf_home / "token").write_text("hf_test")
        hub.add_repo("dataset", "org/speech", {"a.tar": b"a"})
        tree = client.open_dataset("org/speech", None)
        tree.open_part(tree.listing()["a.tar"]).read()
        assert {request.token for request in hub.requests} == {None}

    def test_conversion(self, hub: LoopbackHub, tree: client.HubTree) -> None:
        assert client.open_converted_dataset("org/speech") is None
        commit = hub.add_repo("dataset", "org/speech", {"it/train/0000.parquet": b"a"}, revision="refs/convert/parquet")
        assert client.open_converted_dataset("org/speech") == client.HubTree("org/speech", commit)


class TestFailures:
    def test_missing_private_and_gated(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {"data/train-00000-of-00001.parquet": corpora.parquet(30)}
        hub.add_repo("dataset", "org/private", files, private=True)
        hub.add_repo("dataset", "org/gated", files, gated=True)
        with pytest.raises(PermanentError, match=r"org/private was not found(.|\n)*set HF_TOKEN"):
            client.open_dataset("org/private", None)
        with pytest.raises(
            PermanentError, match=r"is gated(.|\n)*conditions at http.*/datasets/org/gated(.|\n)*HF_TOKEN"
        ):
            resolve_dataset("org/gated", language_code="it")
        monkeypatch.setenv("HF_TOKEN", "")
        with pytest.raises(PermanentError, match="org/private was not found on the Hub with no HF_TOKEN"):
            client.open_dataset("org/private", None)
        monkeypatch.setenv("HF_TOKEN", "hf_revoked")
        with pytest.raises(PermanentError, match="does not accept HF_TOKEN"):
            client.open_dataset("org/speech", None)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        with pytest.raises(PermanentError, match="not found on the Hub with the account of HF_TOKEN"):
            client.open_dataset("org/private", None)

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_down_at_the_start(self, hub: LoopbackHub, status: int) -> None:
        hub.fail("/api/", status)
        with pytest.raises(TransientError, match=f"answers {status}"):
            client.open_dataset("org/speech", None)
        assert not hub.requested("/resolve/")

    def test_unreachable(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants, hf_api

        for module in (constants, hf_api.constants):
            monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(TransientError, match="cannot be reached"):
            client.open_dataset("org/speech", None)

    def test_patience(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HUB_PATIENCE_SECONDS", "30")
        hub.add_repo("dataset", "org/speech", {"a.tar": b"a"})
        hub.fail("/api/", 503, times=1)
        assert client.open_dataset("org/speech", None).repo_id == "org/speech"

    def test_wrapped_by_the_cache(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the client reports as LocalEntryNotFoundError is told by what caused it."""
        from huggingface_hub import file_download

        monkeypatch.setattr(file_download, "_DEFAULT_RETRY_ON_STATUS_CODES", ())
        hub.add_repo("dataset", "org/speech", {"a.tar": b"a"})
        tree = client.open_dataset("org/speech", None)
        hub.fail("/resolve/.*a.tar", 403)
        with pytest.raises(PermanentError, match="forbids this to no HF_TOKEN"):
            tree.open_whole(tree.listing()["a.tar"])
        hub.heal()
        hub.fail("/resolve/.*a.tar", 501)
        with pytest.raises(TransientError, match="answers 501"):
            tree.open_whole(tree.listing()["a.tar"])

    def test_name_that_cannot_be(self, hub: LoopbackHub) -> None:
        with pytest.raises(PermanentError, match="repository id such as"):
            client.open_dataset("org/spe--ech..", None)


class TestPublicDataset:
    def test_only_what_anyone_may_read_is_public(self, hub: LoopbackHub) -> None:
        hub.add_repo("dataset", "org/open", {"a.txt": b"a"})
        hub.add_repo("dataset", "org/closed", {"a.txt": b"a"}, private=True)
        hub.add_repo("dataset", "org/gated", {"a.txt": b"a"}, gated=True)
        assert client.is_public_dataset("org/open")
        assert not client.is_public_dataset("org/closed")
        assert not client.is_public_dataset("org/gated")
        assert not client.is_public_dataset("org/none")


class TestModel:
    def test_the_licence_is_that_of_the_card(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.add_repo("model", "org/free", {**corpora.MODEL, "README.md": b"---\nlicense: apache-2.0\n---\n# Free"})
        unsaid = corpora.write(tmp_path / "unsaid", {**corpora.MODEL, "README.md": b"---\n: [\n---\n"})
        assert client.download_model("org/free", None, weights=False).licence == "apache-2.0"
        assert client.download_model(str(unsaid), None, weights=False).licence is None

    def test_only_what_is_allowed_is_fetched(self, hub: LoopbackHub) -> None:
        commit = hub.add_repo("model", "org/whisper", corpora.MODEL)
        without = client.download_model("org/whisper", None, weights=False)
        assert without.revision == commit
        assert {path.name for path in without.folder.iterdir()} == set(corpora.MODEL) & {*MODEL_FILES, CARD_FILE}
        folder, revision, _ = client.download_model("org/whisper", commit, weights=True)
        assert (revision, folder) == (commit, without.folder)
        assert (folder / "model.safetensors").read_bytes() == corpora.MODEL["model.safetensors"]
        assert not [request for request in hub.requests if request.path.endswith((".bin", ".h5", ".py"))]

    def test_sharded_weights(self, hub: LoopbackHub) -> None:
        names = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        hub.add_repo(
            "model", "org/large", {"config.json": b"{}", "model.fp32.safetensors": b"x"} | dict.fromkeys(names, b"{}")
        )
        folder = client.download_model("org/large", None, weights=True).folder
        assert {path.name for path in folder.iterdir()} == {"config.json", *names}

    def test_pickled_weights_are_refused(self, hub: LoopbackHub, tmp_path: Path) -> None:
        pickled = {name: content for name, content in corpora.MODEL.items() if name != "model.safetensors"}
        hub.add_repo("model", "org/old", pickled)
        assert client.download_model("org/old", None, weights=False)
        for model_id in ("org/old", str(corpora.write(tmp_path / "old", pickled))):
            with pytest.raises(PermanentError, match=r"only pickled(.|\n)*spaces/safetensors/convert(.|\n)*refs/pr/"):
                client.download_model(model_id, None, weights=True)

    def test_no_model(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.add_repo("model", "org/empty", {"README.md": b"#"})
        for model_id in ("org/empty", str(tmp_path)):
            with pytest.raises(PermanentError, match=r"has no config\.json"):
                client.download_model(model_id, None, weights=False)
        with pytest.raises(PermanentError, match="org/none was not found"):
            client.download_model("org/none", None, weights=False)

    def test_local_folder(self, tmp_path: Path) -> None:
        one = client.download_model(str(corpora.write(tmp_path / "one", corpora.MODEL)), None, weights=True)
        other = client.download_model(
            str(corpora.write(tmp_path / "other", corpora.MODEL | {"README.md": b""})), None, weights=False
        )
        assert one.folder == tmp_path / "one"
        assert one.revision == other.revision
        corpora.write(tmp_path / "other", {"tokenizer.json": b"{ }"})
        assert client.download_model(str(tmp_path / "other"), None, weights=False).revision != one.revision

    def test_weights_of_a_local_folder_are_told_by_their_content(self, tmp_path: Path) -> None:
        shard = "model-00001-of-00002.safetensors"
        one = corpora.write(tmp_path / "one", corpora.MODEL)
        same = corpora.write(tmp_path / "same", corpora.MODEL | {"config.json": b"{ }", "pytorch_model.bin": b""})
        other = corpora.write(tmp_path / "other", corpora.MODEL | {"model.safetensors": b"WEIGHTS" * 1000})
        sharded = corpora.write(tmp_path / "sharded", {"model.safetensors.index.json": b"{}", shard: b"a"})
        first = weights_sha256(str(sharded))
        corpora.write(sharded, {shard: b"b"})
        assert weights_sha256(str(one)) == weights_sha256(str(same))
        assert len({weights_sha256(str(one)), weights_sha256(str(other)), first, weights_sha256(str(sharded))}) == 4
        assert weights_sha256("openai/whisper-small") is None

    def test_offline_from_the_cache(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        hub.add_repo("model", "org/whisper", corpora.MODEL)
        online = client.download_model("org/whisper", None, weights=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.requests.clear()
        assert client.download_model("org/whisper", None, weights=False) == online
        with pytest.raises(PermanentError, match="HF_HUB_OFFLINE"):
            client.download_model("org/whisper", None, weights=True)
        assert not hub.requests
