"""torchrun.py: the exit code of the job is that of the processes which torchrun has started."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_fine_tuner.errors import ExitCode
from asr_fine_tuner.torchrun import main

SCRIPT = """
import os, signal, sys, time
from pathlib import Path

what, folder = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ["RANK"])
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (folder / f"told {rank}").touch() or sys.exit(143))
    (folder / f"ready {rank}").touch()
    time.sleep(60)
if what == "kill" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
(folder / f"done {rank}").touch()
sys.exit(int(what) if what.isdecimal() else 0)
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """torchrun keeps its signal handlers when it is done."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def _main(tmp_path: Path, what: str) -> int:
    return main(["--standalone", "--nproc-per-node", "2", str(_script(tmp_path)), what, str(tmp_path)])


def test_two_processes_by_the_variables_of_kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"NNODES": "1", "NPROC_PER_NODE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(f"PET_{name}", str(value))
    assert main([str(_script(tmp_path)), "0", str(tmp_path)]) == ExitCode.DONE
    assert sorted(path.name for path in tmp_path.glob("done *")) == ["done 0", "done 1"]


@pytest.mark.parametrize("code", [ExitCode.PERMANENT, ExitCode.TRANSIENT])
def test_the_exit_code_is_that_of_the_processes(tmp_path: Path, code: ExitCode) -> None:
    assert _main(tmp_path, str(code.value)) == code


def test_a_process_that_was_killed(tmp_path: Path) -> None:
    assert _main(tmp_path, "kill") == 128 + signal.SIGKILL


def test_sigterm_reaches_every_process(tmp_path: Path) -> None:
    def terminate() -> None:
        while len(list(tmp_path.glob("ready *"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    assert _main(tmp_path, "wait") == ExitCode.INTERRUPTED
    assert len(list(tmp_path.glob("told *"))) == 2


def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    nowhere = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", "9"]
    assert main([*nowhere, "--rdzv-conf", "timeout=0", "nothing.py"]) == ExitCode.TRANSIENT
