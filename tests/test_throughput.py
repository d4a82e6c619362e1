"""The numbers of throughput from what was added up."""

from __future__ import annotations

import pytest

from asr_fine_tuner.device_peak import DevicePeak
from asr_fine_tuner.throughput import Throughput, Work

SECONDS = {
    "data": 1.0,
    "forward": 2.0,
    "backward": 4.0,
    "optimizer": 0.5,
    "evaluation": 20.0,
    "saving": 10.0,
    "other": 0.5,
}
WORK = Work(
    audio_seconds=7200.0,
    window_seconds=9000.0,
    flops=4 * 10**15,
    peak_flops=16e15,
    device_seconds=2 * 8.0,
    seconds=SECONDS,
)


def test_work_adds_up_and_comes_back_as_it_was() -> None:
    assert Work() + WORK == WORK
    twice = WORK + Work.from_dict(WORK.as_dict())
    assert (twice.audio_seconds, twice.flops, twice.seconds["evaluation"]) == (14400, 8 * 10**15, 40)
    assert twice.mfu == WORK.mfu == 0.25


def test_rates_are_those_of_training_on_each_device() -> None:
    throughput = Throughput.of(WORK, DevicePeak(2e15, "data sheet"), devices=2)
    assert throughput.audio_hours == 2
    assert throughput.audio_hours_per_device_hour == pytest.approx(2 / (2 * 8 / 3600))
    assert throughput.padding_share == pytest.approx(0.2)
    assert throughput.told() == (
        "Trained on 2.00 h of audio, 450.0 h in a device hour, at 25.0 % of the peak of 2,000.00 TFLOP/s "
        "(by data sheet); 20.0 % of the windows was padding. Of the time: data 3 %, forward 5 %, backward 11 %, "
        "optimizer 1 %, evaluation 53 %, saving 26 %, other 1 %."
    )


def test_sessions_on_other_numbers_of_devices_add_up() -> None:
    alone = Work(audio_seconds=3600.0, device_seconds=8.0, seconds=SECONDS)
    throughput = Throughput.of(WORK + alone, DevicePeak(1e15, "data sheet"), devices=1)
    assert throughput.audio_hours_per_device_hour == pytest.approx(3 / (24 / 3600))


def test_of_nothing_there_is_no_rate() -> None:
    throughput = Throughput.of(Work(), DevicePeak(1e12, "measured"), devices=1)
    assert (throughput.mfu, throughput.audio_hours_per_device_hour, throughput.padding_share) == (0, 0, 0)
    assert "forward 0 %" in throughput.told()
