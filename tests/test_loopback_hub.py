"""The loopback Hub stands for the real one: the real clients read, write and fail on it as they do on the Hub."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback.hub import LoopbackHub
from loopback.hub_answers import Account

CONVERTED = "refs/convert/parquet"
CONFIGS = """---
configs:
- config_name: it
  data_files:
  - {split: train, path: it/train-*}
  - {split: test, path: it/test-*}
---
"""


def parquet_file(n_rows: int = 2000, row_group_size: int = 100) -> bytes:
    """Incompressible audio-like bytes beside a text column, in many row groups."""
    random = np.random.default_rng(0)
    table = pa.table(
        {"audio": [random.bytes(500) for _ in range(n_rows)], "text": [f"frase {i}" for i in range(n_rows)]}
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=row_group_size)
    return file.getvalue()


@pytest.fixture
def dataset(hub: LoopbackHub) -> LoopbackHub:
    hub.add_repo(
        "dataset", "google/fleurs", {"README.md": "---\nlicense: cc-by-4.0\n---\n# Fleurs\n", "fleurs.py": "raise"}
    )
    shard = parquet_file()
    files = {f"it_it/{split}/0000.parquet": shard for split in ("train", "validation", "test")}
    hub.add_repo("dataset", "google/fleurs", files, revision=CONVERTED)
    return hub


def test_a_file_is_downloaded_once_and_pinned_to_its_commit(hub: LoopbackHub) -> None:
    from huggingface_hub import hf_hub_download

    sha = hub.add_repo("model", "openai/whisper-tiny", {"config.json": "{}", "model.safetensors": b"weights" * 1000})

    config = hf_hub_download("openai/whisper-tiny", "config.json")
    weights = hf_hub_download("openai/whisper-tiny", "model.safetensors", revision=sha)

    assert f"snapshots/{sha}/" in config
    assert Path(weights).read_bytes() == b"weights" * 1000
    before = hub.sent_bytes()
    hf_hub_download("openai/whisper-tiny", "model.safetensors", revision=sha)
    assert hub.sent_bytes() == before
    assert hub.sent_bytes("_cdn/.*model.safetensors") == 7000


def test_a_token_does_not_leave_the_hub(hub: LoopbackHub) -> None:
    from huggingface_hub import hf_hub_download

    hub.add_repo("model", "tester/secret", {"model.safetensors": b"weights"}, private=True)

    hf_hub_download("tester/secret", "model.safetensors", token="hf_test")

    assert {request.token for request in hub.requested("/resolve/")} == {"hf_test"}
    assert {request.token for request in hub.requested("_cdn/")} == {None}


def test_a_snapshot_holds_every_file_also_over_pages_of_the_listing(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi, snapshot_download

    files = {f"data/part {index:02}/a.txt": f"{index}" for index in range(12)}
    hub.add_repo("dataset", "tester/many", files)
    hub.page_size = 5

    assert len(list(HfApi().list_repo_tree("tester/many", recursive=True, repo_type="dataset"))) == 25
    assert len(hub.requested("/tree/")) == 5
    folder = snapshot_download("tester/many", repo_type="dataset", allow_patterns="data/part 0*")
    assert sorted(path.parent.name for path in Path(folder).rglob("*.txt")) == [
        f"part {index:02}" for index in range(10)
    ]


def test_the_parquet_conversion_has_a_commit_and_a_tree_of_its_own(dataset: LoopbackHub) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    main, converted = api.dataset_info("google/fleurs"), api.dataset_info("google/fleurs", revision=CONVERTED)

    assert re.fullmatch("[0-9a-f]{40}", converted.sha or "")
    assert main.sha != converted.sha
    assert main.card_data is not None
    assert main.card_data.license == "cc-by-4.0"
    assert [ref.target_commit for ref in api.list_repo_refs("google/fleurs", repo_type="dataset").converts] == [
        converted.sha
    ]
    tree = api.list_repo_tree("google/fleurs", "it_it/train", revision=CONVERTED, repo_type="dataset")
    assert [(entry.path, entry.size) for entry in tree] == [("it_it/train/0000.parquet", len(parquet_file()))]  # type: ignore[union-attr]


def test_the_same_files_have_the_same_commit_id() -> None:
    shas = set()
    for _ in range(2):
        with LoopbackHub() as hub:
            shas.add(hub.add_repo("dataset", "a/b", {"x": "1"}))
            shas.add(hub.add_repo("dataset", "a/b", {"x": "1"}, title="Again"))
    assert len(shas) == 2


def test_a_few_rows_of_parquet_cost_a_few_bytes(dataset: LoopbackHub) -> None:
    from huggingface_hub import HfFileSystem

    filesystem = HfFileSystem()
    path = f"datasets/google/fleurs@{CONVERTED}/it_it/train/0000.parquet"

    with filesystem.open(path, block_size=1 << 16, cache_type="readahead") as file:
        assert pq.ParquetFile(file).read_row_group(0, columns=["text"])["text"][0].as_py() == "frase 0"

    assert all(request.status == 206 for request in dataset.requested("_cdn/"))
    assert 0 < dataset.sent_bytes("_cdn/") < len(parquet_file()) / 4


@pytest.mark.parametrize("header", [CONFIGS, "# Nothing\n"])
def test_datasets_finds_configs_and_splits(hub: LoopbackHub, header: str) -> None:
    from datasets import load_dataset_builder

    shards = {f"it/{split}-0000.parquet": parquet_file(10) for split in ("train", "test")}
    sha = hub.add_repo("dataset", "tester/speech", {"README.md": header, **shards})

    builder = load_dataset_builder("tester/speech", "it" if "configs" in header else None)

    assert sorted(builder.config.data_files) == ["test", "train"]
    assert all(sha in file for files in builder.config.data_files.values() for file in files)


def test_datasets_loads_the_parquet_conversion(dataset: LoopbackHub, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(
        "google/fleurs", data_dir="it_it", revision=CONVERTED, split="test[:3]", cache_dir=str(tmp_path)
    )

    assert loaded["text"][:] == ["frase 0", "frase 1", "frase 2"]


def test_streaming_reads_by_ranges(dataset: LoopbackHub) -> None:
    from datasets import load_dataset

    stream = load_dataset("google/fleurs", data_dir="it_it", revision=CONVERTED, split="train", streaming=True)

    assert [row["text"] for row in stream.take(2)] == ["frase 0", "frase 1"]


def test_upload_makes_a_commit_of_blobs_and_lfs_objects(hub: LoopbackHub, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 100_000)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlanguage: it\nlicense: apache-2.0\n---\n# Model\n")
    (folder / "optimizer.pt").write_bytes(b"state")
    api = HfApi(token="hf_test")

    url = api.create_repo("tester/whisper-it", private=True)
    assert api.create_repo("tester/whisper-it", exist_ok=True).repo_id == url.repo_id == "tester/whisper-it"
    commit = api.upload_folder(repo_id="tester/whisper-it", folder_path=folder, ignore_patterns="*.pt")

    files = hub.files("model", "tester/whisper-it")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert files["model.safetensors"] == b"weights" * 100_000
    info = api.model_info("tester/whisper-it", files_metadata=True)
    assert (info.sha, info.private) == (commit.oid, True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert siblings["model.safetensors"].lfs is not None
    assert siblings["config.json"].lfs is None
    assert len(hub.requested("_lfs/.*[0-9a-f]{64}$", "PUT")) == 1

    again = api.upload_folder(repo_id="tester/whisper-it", folder_path=folder, ignore_patterns="*.pt")
    assert again.oid == commit.oid
    assert len(hub.requested("/commit/", "POST")) == 1


def test_a_card_with_wrong_metadata_is_refused(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token="hf_test")
    api.create_repo("tester/whisper-it")

    with pytest.raises(ValueError, match="ISO 639"):
        api.upload_file(
            path_or_fileobj=b"---\nlanguage: Italian\n---\n", path_in_repo="README.md", repo_id="tester/whisper-it"
        )


def test_whoami_tells_name_orgs_and_role(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub.tokens["hf_fine"] = Account("reader", role="fineGrained", scopes=frozenset({"reader"}))

    me = HfApi().whoami("hf_test")
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("tester", ["test-org"])
    assert me["auth"]["accessToken"]["role"] == "write"
    assert HfApi().whoami("hf_fine")["auth"]["accessToken"]["fineGrained"]["scoped"][0]["entity"]["name"] == "reader"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
        HfApi().whoami("hf_revoked")
    assert caught.value.response.status_code == 401
    assert [request.token for request in hub.requested("whoami")] == ["hf_test", "hf_fine", "hf_revoked"]


def test_write_access_follows_the_token(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub.tokens["hf_read"] = Account("tester", role="read")
    hub.add_repo("model", "tester/mine", {"a": "1"})
    hub.add_repo("model", "test-org/ours", {"a": "1"})
    hub.add_repo("model", "openai/theirs", {"a": "1"})

    HfApi(token="hf_test").auth_check("tester/mine", write=True)
    HfApi(token="hf_test").auth_check("test-org/ours", write=True)
    for token, repo_id in (("hf_read", "tester/mine"), ("hf_test", "openai/theirs")):
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(token=token).auth_check(repo_id, write=True)
        assert caught.value.response.status_code == 403
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo_id)


def test_errors_are_those_of_the_real_hub(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub.add_repo("model", "tester/open", {"config.json": "{}"})
    hub.add_repo("model", "tester/secret", {"config.json": "{}"}, private=True)
    hub.add_repo("model", "openai/gated", {"config.json": "{}"}, gated=True)
    hub.tokens["hf_accepted"] = Account("other", accepted=frozenset({"openai/gated"}))
    anonymous, other, owner = HfApi(token=False), HfApi(token="hf_accepted"), HfApi(token="hf_test")

    for api in (anonymous, other):
        for repo_id in ("tester/missing", "tester/secret"):
            with pytest.raises(RepositoryNotFoundError):
                api.model_info(repo_id)
    assert owner.model_info("tester/secret").private
    with pytest.raises(RevisionNotFoundError):
        anonymous.model_info("tester/open", revision="v9")
    with pytest.raises(EntryNotFoundError):
        anonymous.hf_hub_download("tester/open", "weights.bin")
    with pytest.raises(EntryNotFoundError):
        list(anonymous.list_repo_tree("tester/open", "folder"))
    for api, status in ((anonymous, 401), (owner, 403)):
        assert api.model_info("openai/gated").gated == "auto"
        with pytest.raises(GatedRepoError) as caught:
            api.auth_check("openai/gated")
        assert caught.value.response.status_code == status
    other.hf_hub_download("openai/gated", "config.json")


def test_faults_come_as_often_as_told(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_repo("model", "tester/m", {"config.json": "{}"})
    hub.fail("api/models/tester/m$", 503, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError):
            HfApi().model_info("tester/m")
    HfApi().model_info("tester/m")

    hub.fail("api/models", 429, headers={"Retry-After": "1"})
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi().model_info("tester/m")
    assert caught.value.response.headers["Retry-After"] == "1"
    hub.heal()
    HfApi().model_info("tester/m")
    assert [request.status for request in hub.requests] == [503, 503, 200, 429, 200]


def test_a_download_that_is_cut_goes_on_from_where_it_was(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    content = np.random.default_rng(0).bytes(300_000)
    hub.add_repo("model", "tester/m", {"model.safetensors": content})
    hub.cut("_cdn/", after_bytes=100_000, times=1)

    path = hf_hub_download("tester/m", "model.safetensors")

    assert Path(path).read_bytes() == content
    first, second = hub.requested("_cdn/", "GET")
    assert (first.sent_bytes, second.sent_bytes) == (100_000, 200_000)
    assert second.range == "bytes=100000-"


def test_a_server_that_stalls_is_a_timeout(hub: LoopbackHub) -> None:
    from huggingface_hub import HfApi

    hub.add_repo("model", "tester/m", {"config.json": "{}"})
    hub.stall("api/models", seconds=1.0, times=1)

    with pytest.raises(Exception, match="timed out"):
        HfApi().model_info("tester/m", timeout=0.2)
    HfApi().model_info("tester/m", timeout=5)


def test_nothing_but_loopback_can_be_reached(hub: LoopbackHub, job_env: dict[str, str]) -> None:
    code = (
        "import socket\n"
        "try: socket.create_connection(('192.0.2.1', 443), timeout=5)\n"
        "except ConnectionRefusedError: print('refused')\n"
        "try: socket.getaddrinfo('huggingface.co', 443)\n"
        "except socket.gaierror: print('unknown')\n"
        "from huggingface_hub import HfApi; print(HfApi().whoami('hf_test')['name'])"
    )
    child = subprocess.run([sys.executable, "-c", code], env=job_env, capture_output=True, text=True, check=False)
    assert child.stdout.split() == ["refused", "unknown", "tester"], child.stderr
    assert "HF_TOKEN" not in job_env

    import socket

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("192.0.2.1", 443), timeout=5)
