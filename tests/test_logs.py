"""What is printed and logged: on stderr, and never a token."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from asr_fine_tuner.logs import redact

CANARY = "canary0123456789"


@pytest.mark.parametrize(
    "variable",
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DHCORE_ACCESS_TOKEN"],
)
def test_tokens_of_the_environment_are_redacted(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, CANARY)
    assert redact(f"refused: {CANARY}.") == f"refused: <{variable}>."


@pytest.mark.parametrize(
    "token", ["hf_abcDEF0123456789", "wandb_v1_abcdefghijklmnop_0123", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc"]
)
def test_tokens_are_known_by_their_shape(token: str) -> None:
    assert token.split()[-1] not in redact(f"Authorization: {token}")


@pytest.mark.parametrize("text", ["hf_home", "google/fleurs at 1d4f9649acb9", "Bearer of news", "wandb_v1_x"])
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_an_empty_token_redacts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert redact("some text") == "some text"


def test_all_output_is_on_stderr_without_tokens() -> None:
    """However it gets there: our log, a library's log, a warning, a print, a write to either stream."""
    script = f"""
import logging, sys, warnings
from asr_fine_tuner.logs import output_on_stderr
with output_on_stderr():
    logging.getLogger("asr_fine_tuner.hub").info("ours {CANARY}")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("theirs {CANARY}")
    warnings.warn("a warning {CANARY}")
    print("printed {CANARY}")
    sys.stdout.writelines(["written {CANARY}\\n"])
    sys.stderr.write("to stderr {CANARY}\\n")
"""
    environment = {"HF_TOKEN": CANARY, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert CANARY not in done.stderr
    for text in ("INFO ours", "WARNING theirs", "a warning", "printed", "written", "to stderr"):
        assert f"{text} <HF_TOKEN>" in done.stderr
    assert "chatter" not in done.stderr


def test_importing_the_package_configures_no_logging() -> None:
    script = "import logging, asr_fine_tuner.preprocessing; print(logging.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert logging.getLogger("asr_fine_tuner").level in (logging.NOTSET, logging.INFO)
