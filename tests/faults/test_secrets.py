"""Tokens are used and appear nowhere: not in what a job prints or writes, not in what it publishes or tracks."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
from loopback.hub import LoopbackHub
from loopback.hub_answers import Account
from loopback.wandb import LoopbackWandb
from tiny_training import changed, given_of
from warm_jobs import WarmJobs

from asr_fine_tuner import TrainParameters

HF_CANARY = "hf_CanaryCanaryCanaryCanary"
WANDB_CANARY = "cafe0123456789abcdef0123456789abcdefcafe"


def test_a_failing_and_a_succeeding_run(
    parameters: TrainParameters, hub: LoopbackHub, wandb_server: LoopbackWandb, jobs: WarmJobs, tmp_path: Path
) -> None:
    hub.tokens[HF_CANARY] = Account("tester")
    wandb_server.keys = {WANDB_CANARY}
    environment = {
        "HF_TOKEN": HF_CANARY,
        "WANDB_API_KEY": WANDB_CANARY,
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": wandb_server.url,
        "HF_DEBUG": "1",
        "HUB_PATIENCE_SECONDS": "0",
    }
    given = given_of(changed(parameters, publish=True, max_steps=1, eval_steps=1))

    hub.fail("/commit/", 403, message=f"the token {HF_CANARY} was revoked")
    failed = jobs.run("train", given, env=environment)
    hub.heal()
    done = jobs.run("train", given, env=environment)

    assert (failed.returncode, done.returncode) == (2, 0), failed.stderr + done.stderr
    assert "was revoked" in failed.result["error"]["given"]
    assert not done.result["trained"]
    # Both were used, and the Hub's client told its requests.
    assert all("Send: curl" in run.stderr for run in (failed, done))
    assert {request.token for request in hub.requested("/api/models/tester")} == {HF_CANARY}
    run = wandb_server.run()
    assert run.config["max_steps"]["value"] == 1

    said = {"stdout and stderr": "".join((failed.stdout, failed.stderr, done.stdout, done.stderr)).encode()}
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    published = hub.files("model", "tester/tiny-whisper-it")
    tracked = {
        **run.files,
        **{name: content for files in run.artifacts.values() for name, content in files.items()},
        "what was logged": json.dumps([run.config, run.summary, run.history, run.log_lines, run.name]).encode(),
    }
    assert {"model.safetensors", "README.md"} <= set(published)
    assert any(path.endswith("trainer_state.json") for path in written)
    for place in (said, written, published, tracked):
        for secret in (HF_CANARY, WANDB_CANARY):
            assert [name for name, content in place.items() if secret.encode() in content] == []


def test_an_artifact_on_the_hub(hub: LoopbackHub, jobs: WarmJobs, parameters: TrainParameters, tmp_path: Path) -> None:
    hub.tokens[HF_CANARY] = Account("tester")
    artifact = "hf://datasets/tester/clips"
    model = parameters.model_id
    given = tiny.preprocess_flags(model_id=model, artifact_name=artifact, num_workers=1, max_train_samples=4)
    environment = {"HF_TOKEN": HF_CANARY, "HF_HOME": str(tmp_path / "hf"), "HF_DEBUG": "1", "HUB_PATIENCE_SECONDS": "0"}

    hub.fail("/commit/", 403, message=f"the token {HF_CANARY} was revoked")
    failed = jobs.run("preprocess", given, env=environment)
    hub.heal()
    made = jobs.run("preprocess", given, env=environment)
    short = changed(parameters, artifact_name=artifact, max_steps=1, eval_steps=1)
    trained = jobs.run("train", given_of(short), env={**environment, "HF_HOME": str(tmp_path / "another")})

    ended = (failed, made, trained)
    assert [run.returncode for run in ended] == [2, 0, 0], [run.stderr for run in ended]
    assert "was revoked" in failed.result["error"]["given"]
    asked = "^/(api/)?datasets/tester/clips/(resolve|commit|tree)"
    assert {request.token for request in hub.requested(asked)} == {HF_CANARY}
    assert all("Send: curl" in run.stderr for run in ended), "HF_DEBUG"
    said = "".join(run.stdout + run.stderr for run in ended).encode()
    published = hub.files("dataset", "tester/clips")
    assert "manifest.json" in published
    for content in (said, *published.values(), *tiny.contents(tmp_path).values()):
        assert HF_CANARY.encode() not in content
