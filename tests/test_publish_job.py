"""Publishing by the train job: rights are checked first, a list says what is uploaded, and a failure loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback.hub import LoopbackHub
from loopback.hub_answers import Account
from tiny_training import changed, weights_of

from asr_fine_tuner import PermanentError, TrainParameters, TransientError
from asr_fine_tuner.checkpoints import SEAL_NAME
from asr_fine_tuner.training import TrainResult, train

REPO = "tester/tiny-whisper-it"
PUBLISHED = {
    "README.md",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "results.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curves.png",
    "vocab.json",
}


@pytest.fixture(autouse=True)
def signed_in(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one account's token, and no patience: a failure is told at once."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("HUB_PATIENCE_SECONDS", "0")
    yield


@pytest.mark.parametrize(
    ("token", "model_name", "told"),
    [
        (None, None, "HF_TOKEN is not set"),
        ("hf_unknown", None, "the Hub does not accept HF_TOKEN"),
        ("hf_reader", None, "HF_TOKEN of reader may only read"),
        ("hf_test", "google/whisper-it", "tester, who is not in google"),
        ("hf_other_scope", None, "403"),
    ],
)
def test_without_the_right_to_publish_nothing_is_trained(
    token: str | None,
    model_name: str | None,
    told: str,
    hub: LoopbackHub,
    parameters: TrainParameters,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.tokens["hf_reader"] = Account("reader", role="read")
    hub.tokens["hf_other_scope"] = Account("tester", role="fineGrained", scopes=frozenset({"test-org"}))
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermanentError) as raised:
        train(changed(parameters, publish=True, model_name=model_name))
    assert told in str(raised.value)
    assert not Path(str(parameters.output_dir)).exists(), "nothing was begun"


def test_a_finished_model_is_published_by_the_list(hub: LoopbackHub, memorised_again: TrainParameters) -> None:
    model = Path(str(memorised_again.output_dir)) / "model"
    for stray in ("training_args.bin", "optimizer.pt", "notes.txt", "secret.json"):
        (model / stray).write_text("not for others")

    result = train(changed(memorised_again, publish=True))

    assert (result.repo_id, result.trained) == (REPO, False)
    assert result.url == f"{hub.url}/{REPO}"
    there = hub.files("model", REPO)
    assert set(there) == PUBLISHED
    assert there == {name: (model / name).read_bytes() for name in PUBLISHED}
    assert (model / SEAL_NAME).is_file()
    assert not hub.repo("model", REPO).private
    card = there["README.md"].decode()
    assert f'model="{REPO}"' in card
    assert "base_model" not in card.split("---")[1], "a local model is nothing that others can load"


def test_a_private_model_is_private_and_may_quote_a_local_dataset(
    hub: LoopbackHub, memorised_again: TrainParameters
) -> None:
    train(changed(memorised_again, publish=True, private=True, model_name="test-org/secret"))
    assert hub.repo("model", "test-org/secret").private
    there = hub.files("model", "test-org/secret")
    assert set(there) == {*PUBLISHED, "predictions.jsonl"}
    assert "# test-org/secret\n" in there["README.md"].decode(), "the name it was made for was another"


def test_private_is_not_made_public_by_a_name_that_is_taken(hub: LoopbackHub, parameters: TrainParameters) -> None:
    hub.add_repo("model", REPO, {"README.md": "mine"})
    with pytest.raises(PermanentError, match="on the Hub already and public"):
        train(changed(parameters, publish=True, private=True))
    assert not Path(str(parameters.output_dir)).exists()


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [("/commit/", 500, TransientError), ("/commit/", 403, PermanentError)],
)
def test_a_failed_upload_leaves_the_model_and_a_rerun_publishes_it(
    path: str,
    status: int,
    kind: type[Exception],
    hub: LoopbackHub,
    parameters: TrainParameters,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = changed(parameters, publish=True, max_steps=1, eval_steps=1)
    hub.fail(path, status)
    with pytest.raises(kind):
        train(given)
    model = Path(str(given.output_dir)) / "model"
    weights = weights_of(model)
    assert "model.safetensors" not in hub.files("model", REPO)
    hub.heal()
    caplog.set_level("INFO")
    caplog.clear()

    result = train(given)

    assert not result.trained
    assert "step 1 of" not in caplog.text
    assert hub.files("model", REPO)["model.safetensors"] == weights == weights_of(model)


def test_without_publishing_it_is_said_how(memorised_again: TrainParameters, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    result = train(memorised_again)
    assert (result.repo_id, result.url) == (None, None)
    assert f"the model is in {result.model_dir}" in caplog.text
    assert "--publish true" in caplog.text


def test_the_revision_of_the_model_is_the_one_asked_for(
    hub: LoopbackHub, tiny_model: Path, memorised: TrainResult, memorising: TrainParameters, tmp_path: Path
) -> None:
    card = {"README.md": "---\nlicense: mit\n---\n"}
    ignorant = {path.name: path for path in tiny_model.iterdir()} | card
    knowing = {path.name: path for path in memorised.model_dir.iterdir()} | card | {"pytorch_model.bin": b"pickle"}
    commits = {
        "main": hub.add_repo("model", "base/tiny", ignorant),
        "tuned": hub.add_repo("model", "base/tiny", knowing, revision="tuned"),
    }
    for revision, base_is_right in (("main", False), ("tuned", True)):
        given = {"model_revision": revision, "output_dir": str(tmp_path / revision), "max_steps": 1, "eval_steps": 1}
        result = train(changed(memorising, model_id="base/tiny", **given))
        assert (result.metrics["test_base_wer"] == 0) is base_is_right
        results = json.loads((result.model_dir / "results.json").read_text())
        assert results["model"] == {"id": "base/tiny", "on_hub": True, "revision": commits[revision], "config": None}
        front_matter = (result.model_dir / "README.md").read_text().split("---")[1]
        assert "base_model: base/tiny" in front_matter
        assert "license: mit" in front_matter
    assert not hub.requested("pytorch_model.bin")
