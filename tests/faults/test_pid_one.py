"""The job as process 1 of a container, for which the kernel ignores every signal that has no handler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny


def test_sigterm_reaches_process_1(job_env: dict[str, str], tmp_path: Path) -> None:
    as_process_1 = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*as_process_1, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a PID namespace is not permitted here")
    flags = [f"--{name}={value}" for name, value in tiny.preprocess_flags(num_workers=1, artifact_name="made").items()]
    process = subprocess.Popen(
        [*as_process_1, sys.executable, "-m", "jobs.preprocess", *flags],
        cwd=tmp_path,
        env=job_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        records = tmp_path / "hf/assets/asr-fine-tuner/artifacts/made/partial/shards"
        while not list(records.glob("*.json")):
            assert process.poll() is None
            time.sleep(0.005)
        (job,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert "NSpid:\t" + f"{job}\t1\n" in Path(f"/proc/{job}/status").read_text()
        os.kill(int(job), signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, stderr
    assert '"status": "interrupted"' in stdout
