"""Child processes: every measurement runs in its own, with one thread, empty caches and no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent

# Settings, tokens and thread counts of whoever runs this have no part in it.
_FOREIGN = ("ASR_", "HF_", "HUGGING", "WANDB_", "TRANSFORMERS_", "DATASETS_")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class ChildRun:
    """result: the JSON object in the last line of the child's stdout. seconds: from its start to its end.

    peak_bytes: largest resident set of the process, with its libraries and the files it has mapped.
    """

    result: dict[str, Any]
    seconds: float
    peak_bytes: int


def run_child(module: str, *arguments: object, folder: Path, on_gpu: bool = True) -> ChildRun:
    """Run `python -m module arguments` to its end, with `folder` to work in and to keep the Hugging Face caches.

    on_gpu: where there is one.

    This process has to stay small: Linux counts the memory of the parent, at the fork, into the peak of the child.

    Raises:
        RuntimeError: it failed; with its stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    if not on_gpu:
        inherited["CUDA_VISIBLE_DEVICES"] = ""
    # Of the demo, whose scripts import each other by their names, some children take voices and texts.
    path = os.pathsep.join(filter(None, (str(_ROOT), str(_ROOT / "demo"), inherited.get("PYTHONPATH"))))
    environment = {**inherited, **_ENVIRONMENT, "PYTHONPATH": path, "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr)
        try:
            # Unlike Popen.wait it tells what the process used.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{stderr.read()}")
        last_line = stdout.read().splitlines()[-1]
    # Kilobytes on Linux, bytes on macOS.
    return ChildRun(json.loads(last_line), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
