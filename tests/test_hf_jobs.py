"""howto/hf_jobs.md: what its commands submit, seen from the server by the real client."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_readme import commands

from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.parameters import JobParameters, PreprocessParameters, TrainParameters

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "howto" / "hf_jobs.md"
PREPROCESS, TRAIN = commands(PAGE, "sh")
BUCKET = "--volume hf://buckets/your-name/asr-runs:/data/outputs"
TOKENS = {"HF_TOKEN": "hf_jobs_canary", "WANDB_API_KEY": "wandb_jobs_canary"}

Job = dict[str, Any]


class JobsServer(ThreadingHTTPServer):
    """Takes jobs, as the Hub does at /api/jobs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.submitted: list[Job] = []


class _Answers(BaseHTTPRequestHandler):
    server: JobsServer

    def do_GET(self) -> None:
        assert self.path == "/api/whoami-v2"
        self._answer({"name": "your-name", "type": "user", "auth": {}})

    def do_POST(self) -> None:
        assert self.path == "/api/jobs/your-name"
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.submitted.append(job)
        owner = {"id": "1", "name": "your-name", "type": "user"}
        self._answer({"id": "1", "owner": owner, "status": {"stage": "RUNNING", "message": None}, **job})

    def _answer(self, told: object) -> None:
        content = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[JobsServer]:
    with JobsServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _hf(command: str, endpoint: str) -> str:
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        env={**os.environ, **TOKENS, "HF_ENDPOINT": endpoint},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _parameters(job: Job, module: str, kind: type[JobParameters]) -> JobParameters:
    python, dash_m, name, *arguments = job["command"]
    assert (python, dash_m, name) == ("python", "-m", module)
    given = read_parameters(kind, module, arguments)
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        assert str(getattr(given, flag.removeprefix("--"))).lower() == value
    return given


def test_both_jobs_are_submitted_with_their_secrets_apart(server: JobsServer) -> None:
    bucket = next(part for part in PAGE.read_text(encoding="utf-8").split("`") if part == BUCKET)
    train = TRAIN.replace("--detach", f"--detach {bucket}")
    told = [_hf(command, f"http://127.0.0.1:{server.server_port}") for command in (PREPROCESS, train)]

    first, second = server.submitted
    artifact = _parameters(first, "jobs.preprocess", PreprocessParameters).artifact_name
    trained = _parameters(second, "jobs.train", TrainParameters)
    assert str(artifact).startswith("hf://datasets/")
    assert trained.artifact_name == artifact
    assert first["secrets"] == {"HF_TOKEN": TOKENS["HF_TOKEN"]}
    assert second["secrets"] == TOKENS
    assert first["environment"] == second["environment"] == {}
    assert first["flavor"].startswith("cpu-")
    assert not second["flavor"].startswith("cpu-")
    assert min(first["timeoutSeconds"], second["timeoutSeconds"]) > 30 * 60
    assert second["attempts"] == 3
    (volume,) = second["volumes"]
    assert (volume["type"], volume["source"], volume["mountPath"]) == ("bucket", "your-name/asr-runs", "/data/outputs")
    for token in TOKENS.values():
        assert token not in "".join(told)


def test_a_dry_run_submits_nothing(server: JobsServer) -> None:
    told = _hf(TRAIN.replace("hf jobs run", "hf jobs run --dry-run"), f"http://127.0.0.1:{server.server_port}")
    assert "Job not submitted" in told
    assert not server.submitted
