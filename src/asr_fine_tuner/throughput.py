"""How much a run trained in its time, and what its devices were busy with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from asr_fine_tuner.device_peak import DevicePeak, PeakSource
from asr_fine_tuner.stage_clock import Stage

_SECONDS_PER_HOUR = 3600
_NOT_TRAINING = (Stage.EVALUATION, Stage.SAVING)


def training_seconds(by_stage: Mapping[str, float]) -> float:
    """That passed without evaluation and saving."""
    return sum(seconds for stage, seconds in by_stage.items() if stage not in _NOT_TRAINING)


@dataclass(frozen=True, slots=True)
class Work:
    """What was done in some time, on all devices.

    audio_seconds: in the clips that were trained on. window_seconds: that the model heard, with the padding.
    flops: of the model in training; see `TrainingFlops`.
    peak_flops: that the devices would have computed at their peak in the time of training.
    device_seconds: of training, of all devices together.
    seconds: by stage, that passed; not those of each device.
    """

    audio_seconds: float = 0.0
    window_seconds: float = 0.0
    flops: int = 0
    peak_flops: float = 0.0
    device_seconds: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(map(str, Stage), 0.0))

    def __add__(self, other: Work) -> Work:
        return Work(
            self.audio_seconds + other.audio_seconds,
            self.window_seconds + other.window_seconds,
            self.flops + other.flops,
            self.peak_flops + other.peak_flops,
            self.device_seconds + other.device_seconds,
            {stage: seconds + other.seconds[stage] for stage, seconds in self.seconds.items()},
        )

    @property
    def training_seconds(self) -> float:
        return training_seconds(self.seconds)

    @property
    def audio_hours(self) -> float:
        return self.audio_seconds / _SECONDS_PER_HOUR

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the fraction of the devices' peak that training the model came to."""
        return self.flops / self.peak_flops if self.peak_flops else 0.0

    @property
    def padding_share(self) -> float:
        """Of what the model heard."""
        return 1 - self.audio_seconds / self.window_seconds if self.window_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Work:
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast a run trained, over all the sessions of one that was resumed.

    devices: GPUs that trained together, or processes without one; in the last session.
    audio_hours: that were trained on, those of each epoch anew.
    audio_hours_per_device_hour: while training, without the time of evaluation and saving; so is `mfu`.
    mfu: fraction of the devices' peak; see `Work.mfu`.
    peak_tflops: of all devices, in the precision of training. peak_source: where that is known from.
    padding_share: fraction of the windows trained on that was no audio.
    seconds: by stage, that passed; see `Stage`.
    """

    devices: int
    audio_hours: float
    audio_hours_per_device_hour: float
    mfu: float
    peak_tflops: float
    peak_source: PeakSource
    padding_share: float
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, work: Work, peak: DevicePeak, devices: int) -> Throughput:
        """peak: of all devices, which may have been others in an earlier session."""
        device_hours = work.device_seconds / _SECONDS_PER_HOUR
        return cls(
            devices=devices,
            audio_hours=work.audio_hours,
            audio_hours_per_device_hour=work.audio_hours / device_hours if device_hours else 0.0,
            mfu=work.mfu,
            peak_tflops=peak.flops / 1e12,
            peak_source=peak.source,
            padding_share=work.padding_share,
            seconds=dict(work.seconds),
        )

    @property
    def training_seconds(self) -> float:
        return training_seconds(self.seconds)

    def told(self) -> str:
        """For people, in two sentences."""
        total = sum(self.seconds.values())
        stages = ", ".join(f"{stage} {100 * seconds / (total or 1):.0f} %" for stage, seconds in self.seconds.items())
        known = "by data sheet" if self.peak_source == "data sheet" else "as measured"
        return (
            f"Trained on {self.audio_hours:,.2f} h of audio, {self.audio_hours_per_device_hour:,.1f} h in a device "
            f"hour, at {100 * self.mfu:.1f} % of the peak of {self.peak_tflops:,.2f} TFLOP/s ({known}); "
            f"{100 * self.padding_share:.1f} % of the windows was padding. Of the time: {stages}."
        )
