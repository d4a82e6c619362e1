"""Jobs without the seconds that their imports take: a process that has done them forks one for each request.

What is forked runs what `python -m jobs.JOB` runs, in a process that can be killed, starved or stopped at a boundary:
before it opens a file to write, renames, makes or removes one. What libraries read from the environment when they are
imported it does not read anew, but for HF_HOME and HF_DEBUG.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import JobRun


@dataclass(frozen=True)
class Disturbance:
    """What happens to a job.

    at: the boundary, as `boundaries` lists them, where it gets the signal; the first time that it comes to it.
    file_bytes: the largest file that it may write.
    clips_at_once: what its device holds, to train on or to transcribe.
    """

    folder: str = "/nowhere"
    at: str = ""
    signal: int = signal.SIGKILL
    file_bytes: int | None = None
    clips_at_once: int | None = None


@dataclass(frozen=True)
class WarmJob:
    """A running job."""

    jobs: WarmJobs
    pid: int
    folder: Path

    def wait(self) -> JobRun:
        from conftest import JobRun  # which loads this module

        code = self.jobs.ask({"wait": self.pid})
        self.jobs.forget(self.pid)
        return JobRun(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())

    @property
    def peak_bytes(self) -> int:
        """The memory it took at most, once it was waited for."""
        return self.jobs.ask({"peak": self.pid})

    def wait_until_said(self, message: str) -> None:
        """Until it is on stderr."""
        until = time.monotonic() + 120
        while message not in (said := (self.folder / "stderr").read_text()):
            assert time.monotonic() < until, said
            time.sleep(0.01)

    def wait_until_stopped(self) -> None:
        """Until SIGSTOP has stopped it."""
        until = time.monotonic() + 60
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < until
            time.sleep(0.01)

    @property
    def boundaries(self) -> list[str]:
        """The boundaries it came to in the folder of its disturbance, in order, each once."""
        return list(dict.fromkeys((self.folder / "boundaries").read_text().splitlines()))


class WarmJobs:
    """The process that forks."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._running: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )

    def close(self) -> None:
        """End it, and jobs that nobody waited for."""
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()

    def ask(self, request: Mapping[str, object]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def forget(self, pid: int) -> None:
        self._running.discard(pid)

    def start(
        self,
        job: str,
        parameters: Mapping[str, object],
        env: Mapping[str, str] | None = None,
        disturbance: Disturbance | None = None,
    ) -> WarmJob:
        """parameters: by name. env: what the job's environment has beside that of this process."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        for output in ("stdout", "stderr"):
            (folder / output).touch()
        request = {
            "job": job,
            "argv": [f"--{name}={value}" for name, value in parameters.items()],
            "env": {**os.environ, "TMPDIR": str(folder), **(env or {})},
            "folder": str(folder),
            "disturbance": asdict(disturbance or Disturbance()),
        }
        job = WarmJob(self, self.ask(request), folder)
        self._running.add(job.pid)
        return job

    def run(self, job: str, parameters: Mapping[str, object], **more: Any) -> JobRun:
        return self.start(job, parameters, **more).wait()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmJobs]:
    started = WarmJobs(os.environ, tmp_path_factory.mktemp("jobs"))
    yield started
    started.close()


def _serve() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    import asr_fine_tuner.preflighting
    import asr_fine_tuner.preprocessing
    import asr_fine_tuner.training  # noqa: F401 - the imports that take seconds

    peaks: dict[int, int] = {}
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            _, status, used = os.wait4(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
            peaks[request["wait"]] = used.ru_maxrss << 10
        elif "peak" in request:
            answer = peaks[request["peak"]]
        else:
            answer = os.fork()
            if answer == 0:
                requests.close()
                answers.close()
                _become(request)
        answers.write(f"{answer}\n")
        answers.flush()


def _become(request: dict[str, Any]) -> None:
    """Be the job; does not return."""
    folder = Path(request["folder"])
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(folder)
    _set_up_hub_client()
    disturbance = Disturbance(**request["disturbance"])
    _watch_boundaries(disturbance, folder / "boundaries")
    if disturbance.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disturbance.file_bytes, disturbance.file_bytes))
    if disturbance.clips_at_once is not None:
        import small_device

        for owner, name, method in small_device.methods(disturbance.clips_at_once):
            setattr(owner, name, method)

    sys.argv[1:] = request["argv"]
    code: Any = 0
    try:
        runpy.run_module(f"jobs.{request['job']}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _set_up_hub_client() -> None:
    """As the environment says, which it read when it was imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _cache_assets, logging

    home = Path(os.environ["HF_HOME"])
    constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
    constants.HF_ASSETS_CACHE = _cache_assets.HF_ASSETS_CACHE = str(home / "assets")  # type: ignore[attr-defined]
    if os.environ.get("HF_DEBUG") == "1":
        constants.HF_DEBUG = True
        logging.set_verbosity_debug()


def _watch_boundaries(disturbance: Disturbance, listed: Path) -> None:
    log = os.open(listed, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    inside = disturbance.folder + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    own_id = f".{socket.gethostname()}-{os.getpid()}."
    disturbed: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
        if not changes and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & writing):
            return
        path = str(arguments[0])
        if not path.startswith(inside):
            return
        boundary = f"{event} {path.removeprefix(inside).replace(own_id, '.PID.')}"
        os.write(log, f"{boundary}\n".encode())
        if boundary == disturbance.at and not disturbed:
            disturbed.append(boundary)
            os.kill(os.getpid(), disturbance.signal)

    sys.addaudithook(watch)


if __name__ == "__main__":
    _serve()
