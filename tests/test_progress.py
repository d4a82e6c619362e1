"""Progress: a bar on a terminal, lines in a log."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from asr_fine_tuner import progress


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "asr_fine_tuner")
    with progress.progress_bar("preprocess", 30, "clips") as bar:
        for _ in range(10):
            bar.advance()
        assert caplog.messages == []
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
        bar.advance(5)
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 60.0)
        bar.advance(5)
        bar.advance(10)
    assert [re.sub(r", \d+ s$", "", message) for message in caplog.messages] == [
        "preprocess: 15 of 30 clips",
        "preprocess: 30 of 30 clips",
    ]


def test_a_terminal_gets_a_bar() -> None:
    script = """
from asr_fine_tuner.progress import progress_bar
with progress_bar("preprocess", 30, "clips") as bar:
    bar.advance(30)
"""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=child, env=environment)
    os.close(child)
    shown = b""
    # The last read fails, or is empty, once the child has closed its end.
    while True:
        try:
            read = os.read(parent, 4096)
        except OSError:
            break
        if not read:
            break
        shown += read
    os.close(parent)
    assert process.wait() == 0
    assert re.search(r"preprocess.*━+.*30/30.*clips", shown.decode())
