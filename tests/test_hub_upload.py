"""Publishing on the Hub over HTTP: who may, what is uploaded, and what is found out about it afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import corpora
import pytest
from loopback.hub_answers import Account

from asr_fine_tuner import hub_upload as client
from asr_fine_tuner.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from pathlib import Path

    from loopback.hub import LoopbackHub

pytestmark = pytest.mark.usefixtures("impatient_with_the_hub")


class TestPublishing:
    FILES = ("config.json", "model.safetensors", "README.md")

    def test_name_in_the_own_namespace(self, hub: LoopbackHub, token: str) -> None:
        assert client.check_write_access("whisper-small-it", private=True) == "tester/whisper-small-it"
        assert hub.repo("model", "tester/whisper-small-it").private
        assert client.check_write_access("tester/whisper-small-it", private=True) == "tester/whisper-small-it"
        assert client.check_write_access("test-org/whisper-small-it", private=False) == "test-org/whisper-small-it"

    def test_refused(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.tokens["hf_reader"] = Account("reader", role="read")
        hub.tokens["hf_fine"] = Account(
            "tester", role="fineGrained", scopes=frozenset({"test-org"}), orgs=("test-org",)
        )
        with pytest.raises(PermanentError, match="HF_TOKEN is not set"):
            client.check_write_access("model", private=False)
        for token, name, said in (
            ("hf_revoked", "model", "does not accept HF_TOKEN"),
            ("hf_reader", "model", "may only read"),
            ("hf_test", "others/model", "is not in others"),
            ("hf_fine", "tester/model", "forbids this"),
        ):
            monkeypatch.setenv("HF_TOKEN", token)
            with pytest.raises(PermanentError, match=said):
                client.check_write_access(name, private=False)
        assert client.check_write_access("test-org/model", private=False)

    def test_private_is_kept(self, hub: LoopbackHub, token: str) -> None:
        hub.add_repo("model", "tester/model", {"README.md": b"#"})
        assert client.check_write_access("tester/model", private=False)
        with pytest.raises(PermanentError, match="already and public"):
            client.check_write_access("tester/model", private=True)

    def test_upload_by_allow_list(self, hub: LoopbackHub, token: str, tmp_path: Path) -> None:
        folder = corpora.write(tmp_path, corpora.MODEL)
        repo_id = client.check_write_access("model", private=False)
        uploaded = client.upload_model(folder, repo_id, self.FILES)
        assert hub.files("model", repo_id) == {name: corpora.MODEL[name] for name in self.FILES}
        assert uploaded.commit == hub.repo("model", repo_id).refs["main"]
        assert uploaded.url == f"{hub.url}/{repo_id}"
        assert client.upload_model(folder, repo_id, self.FILES) == uploaded

    def test_what_is_not_published_any_more_is_deleted(self, hub: LoopbackHub, token: str, tmp_path: Path) -> None:
        theirs = {"notes.md": b"mine", "onnx/config.json": b"{}", "pytorch_model.bin": b"pickle"}
        outdated = {"predictions.jsonl": b"{}", "training_curves.png": b"png", "vocab.json": b"old"}
        hub.add_repo("model", "tester/model", {**theirs, **outdated, "config.json": b"old"})
        n_commits = len(hub.repo("model", "tester/model").commits)
        folder = corpora.write(tmp_path, corpora.MODEL)
        uploaded = client.upload_model(folder, "tester/model", (*self.FILES, "vocab.json"))
        published = {name: corpora.MODEL[name] for name in (*self.FILES, "vocab.json")}
        assert hub.files("model", "tester/model") == {**theirs, **published}
        assert len(hub.repo("model", "tester/model").commits) == n_commits + 1
        assert client.upload_model(folder, "tester/model", (*self.FILES, "vocab.json")) == uploaded

    def test_upload_is_verified(
        self, hub: LoopbackHub, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = corpora.write(tmp_path, corpora.MODEL)
        repo_id = client.check_write_access("model", private=False)
        upload = client._upload

        def lossy(repo_id: str, *others: Any) -> client.Uploaded:
            uploaded = upload(repo_id, *others)
            broken = hub.files("model", repo_id) | {"config.json": b"[]", "model.safetensors": b"WEIGHTS" * 1000}
            return uploaded._replace(commit=hub.add_repo("model", repo_id, broken))

        monkeypatch.setattr(client, "_upload", lossy)
        with pytest.raises(TransientError, match=r"differs from .* in config\.json, model\.safetensors"):
            client.upload_model(folder, repo_id, self.FILES)

    def test_token_revoked_before_the_upload(self, hub: LoopbackHub, token: str, tmp_path: Path) -> None:
        folder = corpora.write(tmp_path, corpora.MODEL)
        repo_id = client.check_write_access("model", private=False)
        hub.tokens[token] = Account("tester", role="read")
        with pytest.raises(PermanentError, match="forbids this to the account of HF_TOKEN"):
            client.upload_model(folder, repo_id, self.FILES)
        with pytest.raises(FileNotFoundError, match=r"lacks results\.json"):
            client.upload_model(folder, repo_id, (*self.FILES, "results.json"))
