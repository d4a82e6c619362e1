"""Whoever calls us hears of our work from us, and nothing from the libraries that do it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block, or the function that it decorates, transformers and the Hub's client show no bars, and
    transformers only errors: it warns at each generation of arguments that are Whisper's own. Afterwards all is as it
    was. `TRANSFORMERS_VERBOSITY` says otherwise.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
