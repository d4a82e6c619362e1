"""Logs go to stderr; tokens never do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

from asr_fine_tuner.launch import is_first_process

# Tokens by their shape, so that one is caught even when it did not come from this process's environment.
_TOKEN_SHAPES = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bwandb_v1_\w{16,}|(?<=[Bb]earer )[\w.~+/-]{8,}=*")
# C0 and C1 but tab and line feed, and what changes the direction of text (Unicode Standard Annex #9).
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    # What platforms give to the containers that they start.
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "DHCORE_ACCESS_TOKEN",
    "DHCORE_REFRESH_TOKEN",
)


def redact(text: str) -> str:
    """`text` without tokens."""
    for variable in _SECRET_VARIABLES:
        if len(secret := os.environ.get(variable, "")) >= 8:
            text = text.replace(secret, f"<{variable}>")
    return _TOKEN_SHAPES.sub("<token>", text)


def without_controls(text: str) -> str:
    """`text` with its control characters but tab and line feed spelt out: messages quote what datasets name things."""
    return _CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], text)


class _RedactingStream:
    """A text stream that never writes tokens, whoever prints: our log, the libraries, tracebacks, bars."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def output_on_stderr() -> Iterator[None]:
    """Within the block all that is printed and logged goes to stderr, without tokens."""
    stream = cast("TextIO", _RedactingStream(sys.stderr))
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        log_to_stderr()
        yield


class _PlainFormatter(logging.Formatter):
    """No control character of a message reaches a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return without_controls(super().format(record))


def log_to_stderr() -> None:
    """Our messages from INFO on, and the libraries' warnings; of a process that does not speak for its job only what
    is critical."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    first = is_first_process()
    logging.basicConfig(level=logging.WARNING if first else logging.CRITICAL, handlers=[handler], force=True)
    logging.getLogger("asr_fine_tuner").setLevel(logging.INFO if first else logging.CRITICAL)
    logging.captureWarnings(capture=True)


def redact_stderr() -> None:
    """For a worker process: what it prints goes without tokens, too."""
    sys.stderr = cast("TextIO", _RedactingStream(sys.stderr))
    log_to_stderr()
