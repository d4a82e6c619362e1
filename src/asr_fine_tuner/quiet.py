"""Whoever calls us hears of our work from us, and nothing from the libraries that do it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block, or the function that it decorates, transformers and the Hub's client show no bars, and
    transformers only errors: it warns at each generation of arguments that are Whisper's own. Afterwards all is as it
    was. `TRANSFORMERS_VERBOSITY` says otherwise.
    """
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The client hands its warnings to the root logger, and writes them by a handler of its own as well.
    client = logging.getLogger("huggingface_hub")
    handlers, client.handlers = client.handlers, []
    try:
        yield
    finally:
        client.handlers = handlers
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
