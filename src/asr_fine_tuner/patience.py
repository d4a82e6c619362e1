"""Calls to the Hub that fail for the moment are repeated, with growing pauses, within bounds."""

from __future__ import annotations

import functools
import logging
import os
import time
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from asr_fine_tuner import stop
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.hub_errors import translate

if TYPE_CHECKING:
    from collections.abc import Callable

    import tenacity

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE_VARIABLE = "HUB_PATIENCE_SECONDS"
_PATIENCE = 600.0  # seconds


def with_patience(call: Callable[P, T]) -> Callable[P, T]:
    """Tell what failures mean, and repeat a call that failed for the moment, for ten minutes unless the environment
    says otherwise. The first argument of the call names the repository in messages."""

    @functools.wraps(call)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        import tenacity

        def attempt() -> T:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if translated := translate(error, str(args[0]) if args else "the Hub"):
                    raise translated from error
                raise

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            wait=tenacity.wait_exponential_jitter(initial=1, max=60),
            stop=tenacity.stop_before_delay(_patience()),
            sleep=_sleep,
            before_sleep=_log_retry,
            reraise=True,
        )
        return retrying(attempt)

    return patient


def _patience() -> float:
    given = os.environ.get(_PATIENCE_VARIABLE, "")
    try:
        return float(given or _PATIENCE)
    except ValueError as error:
        raise PermanentError(
            given=f"{_PATIENCE_VARIABLE}={given}", expected="a number of seconds", action="correct it, or leave it out"
        ) from error


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop.raise_if_stopped("nothing was lost")
        time.sleep(min(left, 0.5))


def _log_retry(state: tenacity.RetryCallState) -> None:
    failure = state.outcome.exception() if state.outcome else None
    given = failure.given if isinstance(failure, TransientError) else failure
    logger.warning("%s; trying again in %.0f s", given, state.upcoming_sleep)
