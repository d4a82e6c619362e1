"""Time is given to the stage that it went to."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch

from asr_fine_tuner.stage_clock import Stage, StageClock

CPU = torch.device("cpu")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> object:
    """Lets time pass, without waiting for it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_seconds(seconds: float) -> None:
        now[0] += seconds

    return pass_seconds


def told(clock: StageClock) -> dict[str, float]:
    return {stage: seconds for stage, seconds in clock.seconds().items() if seconds}


def test_what_is_within_another_stage_is_counted_once(passes) -> None:
    clock = StageClock(CPU)
    passes(100)  # before anything
    with clock.stage(Stage.OTHER):
        passes(1)
        with clock.stage(Stage.EVALUATION):
            passes(2)
            with clock.stage(Stage.SAVING):
                passes(4)
            passes(8)
        passes(16)
        with clock.stage(Stage.EVALUATION), clock.stage(Stage.EVALUATION):
            passes(32)
    passes(100)  # after it
    assert told(clock) == {"other": 17, "evaluation": 42, "saving": 4}


def test_a_stage_that_fails_ends_there(passes) -> None:
    clock = StageClock(CPU)
    with clock.stage(Stage.OTHER):
        with contextlib.suppress(RuntimeError), clock.stage(Stage.FORWARD):
            passes(1)
            raise RuntimeError
        passes(2)
    passes(4)
    with clock.stage(Stage.DATA):
        passes(8)
    assert told(clock) == {"forward": 1, "other": 2, "data": 8}


def test_a_stage_that_was_begun_ends_with_the_block_that_it_is_in(passes) -> None:
    clock = StageClock(CPU)
    with contextlib.suppress(RuntimeError), clock.stage(Stage.OTHER):
        clock.begin(Stage.OPTIMIZER)
        passes(1)
        clock.end()
        clock.begin(Stage.OPTIMIZER)
        passes(2)
        raise RuntimeError
    passes(4)
    assert told(clock) == {"optimizer": 3}


def test_a_stage_under_way_is_told_of_too(passes) -> None:
    clock = StageClock(CPU)
    with clock.stage(Stage.BACKWARD):
        passes(1)
        assert told(clock) == {"backward": 1}
        passes(2)
    assert told(clock) == {"backward": 3}


def test_what_a_device_has_not_come_to_is_told_later_and_not_waited_for(passes) -> None:
    clock = StageClock(CPU)
    come_to = [0.0]  # the moment up to which the device has worked

    class Behind(type(clock._watch)):
        def has_come(self, moment: float) -> bool:
            return moment <= come_to[0]

    clock._watch = Behind()
    with clock.stage(Stage.FORWARD):
        passes(1)
    with clock.stage(Stage.BACKWARD):
        passes(2)
    assert told(clock) == {}
    come_to[0] = 1001
    assert told(clock) == {"forward": 1}
    come_to[0] = 1003
    assert told(clock) == {"forward": 1, "backward": 2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_time_is_that_of_its_work_and_nothing_waits_for_it() -> None:
    device = torch.device("cuda")
    clock, matrix = StageClock(device), torch.ones(8192, 8192, device=device)
    matrix @ matrix
    torch.cuda.synchronize()
    began = time.monotonic()
    with clock.stage(Stage.OTHER):
        with clock.stage(Stage.FORWARD):
            for _ in range(20):
                matrix @ matrix
        with clock.stage(Stage.BACKWARD):
            for _ in range(40):
                matrix @ matrix
        enqueued = time.monotonic() - began
        assert told(clock) == {} or sum(told(clock).values()) <= enqueued
        torch.cuda.synchronize()
        with clock.stage(Stage.DATA):
            time.sleep(0.1)
    torch.cuda.synchronize()
    seconds = clock.seconds()
    taken = time.monotonic() - began
    assert enqueued < seconds[Stage.FORWARD]
    assert seconds[Stage.BACKWARD] == pytest.approx(2 * seconds[Stage.FORWARD], rel=0.2)
    assert seconds[Stage.DATA] == pytest.approx(0.1, abs=0.02)
    assert sum(seconds.values()) == pytest.approx(taken, abs=0.02)
