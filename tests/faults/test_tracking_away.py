"""W&B that is not there, answers with errors, hangs, or goes away: the train job says so, and ends as it would have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from loopback.wandb import API_KEY, LoopbackWandb
from tiny_training import changed, given_of
from wandb_log import read_run
from warm_jobs import WarmJobs

from asr_fine_tuner import TrainParameters

IMPATIENT = {"WANDB_LOGIN_TIMEOUT": "1", "WANDB_INIT_TIMEOUT": "1"}
NOWHERE = "http://127.0.0.1:9"


def test_the_job_is_done_and_says_how_to_upload(
    jobs: WarmJobs, parameters: TrainParameters, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    with LoopbackWandb() as failing, LoopbackWandb() as hanging, LoopbackWandb() as leaving:
        failing.fail("", 500)
        hanging.stall("", 60)
        leaving.fail("file_stream", 500)  # the run can be begun, and what it logs does not arrive
        servers = {"nothing": NOWHERE, "failing": failing.url, "hanging": hanging.url, "leaving": leaving.url}
        started = {
            name: jobs.start(
                "train",
                given_of(changed(parameters, max_steps=1, eval_steps=1, output_dir=str(tmp_path / name))),
                env={
                    "WANDB_MODE": "online",
                    "WANDB_BASE_URL": url,
                    "WANDB_API_KEY": API_KEY,
                    "WANDB_FINISH_TIMEOUT": "1",
                    **({} if name == "leaving" else IMPATIENT),
                },
            )
            for name, url in servers.items()
        }
        for name, job in started.items():
            ended = job.wait()
            with subtests.test(name):
                assert ended.returncode == 0, ended.stderr
                assert (ended.result["status"], ended.result["tracking_url"] is None) == ("done", name != "leaving")
                assert "WARNING W&B " in ended.stderr
                assert "Traceback" not in ended.stderr
                kept = re.search(r"wandb sync (\S+)|it has so far is in (\S+),", ended.stderr)
                assert kept
                (log,) = Path(kept[1] or kept[2]).glob("run-*.wandb")
                assert "train/loss" in read_run(log).history[0]
