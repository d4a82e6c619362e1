"""Signals: noted, acted on where it is safe, and passed on to workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest

from asr_fine_tuner import stop
from asr_fine_tuner.errors import InterruptedJob


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop(number: signal.Signals) -> None:
    with stop.stop_on_signals():
        stop.raise_if_stopped("nothing was asked")
        os.kill(os.getpid(), number)
        assert stop.stop_requested()
        with pytest.raises(InterruptedJob, match=f"{number.name} received; shards are kept"):
            stop.raise_if_stopped("shards are kept")
    assert not stop.stop_requested()


def test_a_second_ctrl_c_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop.stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop.stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_other_threads_may_call_the_api() -> None:
    entered = []

    def call() -> None:
        with stop.stop_on_signals():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]


def test_a_worker_stops_when_its_parent_says_so() -> None:
    event = multiprocessing.get_context("spawn").Event()
    stop.share_stop(event)
    try:
        stop.raise_if_stopped("")
        event.set()
        with pytest.raises(InterruptedJob, match="a stop received"):
            stop.raise_if_stopped("")
    finally:
        stop._shared.clear()


def test_what_does_not_stop_is_ended_when_the_grace_time_is_over() -> None:
    """Even in a long call into C, during which no handler of Python runs."""
    script = """
import hashlib
from asr_fine_tuner import stop
stop.allow_grace(0.2)
with stop.stop_on_signals(lambda: print("over", flush=True)):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=30)
    assert (stdout, process.returncode) == ("over\n", 143)
