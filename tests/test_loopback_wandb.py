"""The loopback W&B stands for the real one: the real client, in its own process, logs to it and continues a run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from loopback.wandb import API_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from loopback.wandb import LoopbackWandb

TRAIN = """
import sys, wandb
run = wandb.init(project="asr", id="job-7", name="whisper it", resume="allow", config={"learning_rate": 1e-5})
for loss in map(float, sys.argv[1].split(",")):
    run.log({"loss": loss})
run.log({"predictions": wandb.Table(columns=["reference", "prediction"], data=[["ciao a tutti", "ciao tutti"]])})
run.summary["wer"] = 0.25
print("resumed" if run.resumed else "new", flush=True)
run.finish(exit_code=int(sys.argv[2]))
"""


def train(wandb_server: LoopbackWandb, env: dict[str, str], folder: Path, losses: str, exit_code: int = 0) -> str:
    online = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": wandb_server.url,
        "WANDB_API_KEY": API_KEY,
        "WANDB_DIR": str(folder),
    }
    command = [sys.executable, "-c", TRAIN, losses, str(exit_code)]
    child = subprocess.run(
        command, env={**env, **online}, cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    return child.stdout.strip()


def test_a_run_arrives_with_config_history_summary_and_table(
    wandb_server: LoopbackWandb, job_env: dict[str, str], tmp_path: Path
) -> None:
    assert train(wandb_server, job_env, tmp_path, "3,2,1") == "new"

    run = wandb_server.run()
    assert (run.entity, run.project, run.run_id, run.name) == ("tester", "asr", "job-7", "whisper it")
    assert run.settings() == {"learning_rate": 1e-5}
    assert run.values("loss") == [3, 2, 1]
    assert run.summary["wer"] == 0.25
    assert run.exit_code == 0
    (table,) = [content for name, content in run.files.items() if name.startswith("media/table/predictions")]
    assert json.loads(table)["data"] == [["ciao a tutti", "ciao tutti"]]
    assert set(run.artifacts["run-job-7-predictions"]) == {"predictions.table.json", "wandb_manifest.json"}
    assert {request.token for request in wandb_server.requested("/graphql")} == {API_KEY}


def test_a_job_that_goes_on_continues_its_run(
    wandb_server: LoopbackWandb, job_env: dict[str, str], tmp_path: Path
) -> None:
    train(wandb_server, job_env, tmp_path, "3,2", exit_code=1)
    assert wandb_server.run().exit_code == 1

    assert train(wandb_server, job_env, tmp_path, "1") == "resumed"

    run = wandb_server.run()
    assert run.sessions == 2
    assert run.values("loss") == [3, 2, 1]
    assert run.values("_step") == list(range(5))
    assert run.exit_code == 0


def test_a_key_that_is_not_known_is_refused(
    wandb_server: LoopbackWandb, job_env: dict[str, str], tmp_path: Path
) -> None:
    wandb_server.keys.clear()

    with pytest.raises(subprocess.CalledProcessError) as caught:
        train(wandb_server, job_env, tmp_path, "1")

    assert "API key" in caught.value.stderr
    assert {request.status for request in wandb_server.requested("/graphql")} == {401}
    assert not wandb_server.runs
