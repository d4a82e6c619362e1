"""Logs go to stderr; tokens never do."""

from __future__ import annotations

import logging
import os
import re
import sys

# Tokens by their shape, so that one is caught even when it did not come from this process's environment.
_TOKEN_SHAPES = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bwandb_v1_\w{16,}|(?<=[Bb]earer )[\w.~+/-]{8,}=*")
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")


def redact(text: str) -> str:
    """`text` without tokens."""
    for variable in _SECRET_VARIABLES:
        if len(secret := os.environ.get(variable, "")) >= 8:
            text = text.replace(secret, f"<{variable}>")
    return _TOKEN_SHAPES.sub("<token>", text)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Our messages at `level`, the libraries' warnings, all on stderr and redacted."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("asr_fine_tuner").setLevel(level)
    logging.captureWarnings(capture=True)
    if not sys.stderr.isatty():
        # Bars of the libraries (downloads, weights) are for terminals; the Hub's client reads this when imported.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # transformers warns at each generation that Whisper's own arguments are deprecated.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
