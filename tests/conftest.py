"""What every test runs in: a Hub on the loopback interface, caches of its own, no tokens, and no other network.

The Hub's libraries read their environment when they are imported, so it is set up here, before any test module is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from loopback.guard import install
from loopback.hub import LoopbackHub
from loopback.wandb import LoopbackWandb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytest_plugins = ["digitalhub_platform", "tiny_training", "warm_jobs"]

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"

_SESSION = Path(tempfile.mkdtemp(prefix="asr-tests-"))
_HUB = LoopbackHub()

# The discard port, where nothing listens: for what knows nothing of the guard, such as wandb's service, a Go program.
_NOWHERE = "http://127.0.0.1:9"

_ENVIRONMENT = {
    "HOME": str(_SESSION / "home"),
    "HF_HOME": str(_SESSION / "hf"),
    "HF_ENDPOINT": _HUB.url,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HTTP_PROXY": _NOWHERE,
    "HTTPS_PROXY": _NOWHERE,
    "NO_PROXY": "127.0.0.1,localhost",
    "PYTHONPATH": os.pathsep.join(str(path) for path in (TESTS / "loopback" / "site", TESTS, ROOT)),
}


def _isolate() -> None:
    """No setting, token or proxy of whoever runs the tests reaches them."""
    foreign = (
        "HF_",
        "HUGGING",
        "WANDB_",
        "ASR_",
        "TRANSFORMERS_",
        "DATASETS_",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    )
    for name in [name for name in os.environ if name.startswith(foreign)]:
        del os.environ[name]
    os.environ.update(_ENVIRONMENT)
    (_SESSION / "home").mkdir()
    install()


_isolate()


def pytest_configure() -> None:
    _HUB.__enter__()


def pytest_unconfigure() -> None:
    _HUB.__exit__(None, None, None)
    shutil.rmtree(_SESSION, ignore_errors=True)


@pytest.fixture
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `HF_HOME`, in this process and in jobs that the test starts."""
    from huggingface_hub import constants

    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    for name, folder in {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_ASSETS_CACHE": "assets"}.items():
        monkeypatch.setattr(constants, name, str(home / folder))
    # cached_assets_path took its default from the constants when it was imported.
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(home / "assets"))
    if "datasets" in sys.modules:
        from datasets import config

        monkeypatch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(config, "HF_MODULES_CACHE", str(home / "modules"))
    return home


@pytest.fixture
def hub(hf_home: Path) -> Iterator[LoopbackHub]:
    """The Hub that `HF_ENDPOINT` names, empty; its `tokens` say who may sign in."""
    from huggingface_hub import HfFileSystem

    # Its instances, and the listings they keep, otherwise live as long as the process.
    HfFileSystem.clear_instance_cache()
    _HUB.reset()
    yield _HUB
    crashes = list(_HUB.crashes)
    _HUB.reset()
    assert not crashes, "the loopback Hub did not understand a request"


@pytest.fixture
def impatient_with_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on the Hub is not tried again."""
    monkeypatch.setenv("HUB_PATIENCE_SECONDS", "0")


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment; it may write on the loopback Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return "hf_test"


@pytest.fixture
def wandb_server() -> Iterator[LoopbackWandb]:
    """W&B, for a child process with `WANDB_BASE_URL` at its `url` and `WANDB_API_KEY` of `loopback.wandb.API_KEY`."""
    with LoopbackWandb() as server:
        yield server
    assert not server.crashes, "the loopback W&B did not understand a request"


@dataclass(frozen=True)
class JobRun:
    """What a job left: its exit code, its output, and the last line of stdout where that is a JSON object."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        lines = self.stdout.splitlines()
        assert lines, f"no result on stdout; stderr:\n{self.stderr}"
        result = json.loads(lines[-1])
        assert isinstance(result, dict)
        return result


class RunJob(Protocol):
    def __call__(
        self, job: str, *arguments: object, env: Mapping[str, str | None] | None = None, timeout: float = 240
    ) -> JobRun: ...


class StartJob(Protocol):
    def __call__(
        self, job: str, *arguments: object, env: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]: ...


@pytest.fixture
def job_env(tmp_path: Path) -> dict[str, str]:
    """Environment of a child process: the guard, the loopback Hub, and an `HF_HOME` of the test; no tokens."""
    return {**os.environ, "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path)}


@pytest.fixture
def start_job(tmp_path: Path, job_env: dict[str, str]) -> Iterator[StartJob]:
    """Start `python -m jobs.<job>` in `tmp_path` and return at once; what still runs at the end is killed.

    `env` adds to `job_env`, and removes what is None in it.
    """
    running: list[subprocess.Popen[str]] = []

    def start(job: str, *arguments: object, env: Mapping[str, str | None] | None = None) -> subprocess.Popen[str]:
        merged = {name: value for name, value in {**job_env, **(env or {})}.items() if value is not None}
        command = [sys.executable, "-m", f"jobs.{job}", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=merged, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run_job(start_job: StartJob) -> RunJob:
    """Run `python -m jobs.<job>` to its end, as `start_job` does."""

    def run(job: str, *arguments: object, env: Mapping[str, str | None] | None = None, timeout: float = 240) -> JobRun:
        process = start_job(job, *arguments, env=env)
        stdout, stderr = process.communicate(timeout=timeout)
        return JobRun(process.returncode, stdout, stderr)

    return run
