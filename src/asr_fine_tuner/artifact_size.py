"""How much disk the rest of an artifact takes, and whether there is room for it, before anything is encoded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from asr_fine_tuner.audio import AudioRejected, decode
from asr_fine_tuner.dataset import ShardPlan
from asr_fine_tuner.disk import free_bytes, readable_size, shortage
from asr_fine_tuner.encoding import EncoderSettings
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.manifest import ModelFormat
from asr_fine_tuner.stop import raise_if_stopped

logger = logging.getLogger(__name__)

_FRAMES_PER_SECOND = 100
_BYTES_PER_FEATURE, _BYTES_PER_OFFSET, _BYTES_PER_LABEL = 2, 4, 4  # float16; Arrow's int32 offset of a frame; int32
# Clips whose length is measured: so many of the first ones of so many shards.
_SAMPLED_SHARDS, _SAMPLED_CLIPS = 16, 4
_STANDARD_ERRORS = 3  # either side of a mean: all but 0.3 % of samples (normal distribution)


@dataclass(frozen=True, slots=True)
class ArtifactSize:
    """Bytes of the clips that are still to be encoded: as many at least and at most."""

    least: int
    most: int

    def __str__(self) -> str:
        if not self.least:
            return f"at most {readable_size(self.most)}"
        return f"{readable_size(self.least)} to {readable_size(self.most)}"


def check_room(
    plans: Sequence[ShardPlan],
    settings: EncoderSettings,
    model: ModelFormat,
    artifact: Path,
    cache: Path,
    free: Callable[[Path], int] = free_bytes,
) -> ArtifactSize:
    """Compare what encoding `plans` takes with the free space where the artifact and the Hub's cache are.

    Durations are unknown beforehand. As long as there is room for clips of `max_duration` none is looked at; else some
    of those that need no download are measured. Warns when there may not be enough.

    artifact, cache: folders, which need not exist. free: bytes free on the volume of a path.
    Raises PermanentError when there is surely not enough.
    """
    to_fetch = [plan.shard.to_fetch() for plan in plans]
    download = sum({name: size for files in to_fetch for name, size in files.items()}.values())

    def lacking(n_bytes: int) -> str | None:
        short = shortage([(artifact, n_bytes), (cache, download)], free)
        return f"{readable_size(short.free)} free at {short.folder}" if short else None

    n_clips = sum(plan.n_examples for plan in plans)
    size = ArtifactSize(0, n_clips * clip_bytes(settings.max_duration, model))
    if lacking(size.most):
        here = [plan for plan, files in zip(plans, to_fetch, strict=True) if not files]
        size = _measured(n_clips, [clip_bytes(seconds, model) for seconds in _durations(here, settings, model)], size)
    told = f"{size} for the artifact, {readable_size(download)} to download"
    if given := lacking(size.least):
        raise PermanentError(
            given=given,
            expected=told,
            action="free space, point HF_HOME at a larger volume, or take fewer clips with --max_train_samples",
        )
    if given := lacking(size.most):
        logger.warning("the disk may become full: %s, %s; finished shards would be kept", given, told)
    else:
        logger.info("disk: %s; %s free at %s", told, readable_size(free(artifact)), artifact)
    return size


def clip_bytes(seconds: float, model: ModelFormat) -> int:
    """Bytes that a clip takes in the artifact at most: its features, and as many labels as the decoder holds."""
    frame = _BYTES_PER_FEATURE * model.n_mels + _BYTES_PER_OFFSET
    return math.ceil(_FRAMES_PER_SECOND * seconds) * frame + _BYTES_PER_LABEL * model.max_labels


def _measured(n_clips: int, sample: Sequence[int], unmeasured: ArtifactSize) -> ArtifactSize:
    """The bounds of a sum by a sample of its terms."""
    if len(sample) < 2:
        return unmeasured
    error = _STANDARD_ERRORS * stdev(sample) / math.sqrt(len(sample))
    least, most = (math.ceil(n_clips * max(0.0, fmean(sample) + side)) for side in (-error, error))
    return ArtifactSize(least, min(most, unmeasured.most))


def _durations(plans: Sequence[ShardPlan], settings: EncoderSettings, model: ModelFormat) -> Iterator[float]:
    """Seconds of some of the clips; 0 for those that cannot be decoded, which the artifact leaves out."""
    n_shards = min(len(plans), _SAMPLED_SHARDS)
    for plan in (plans[index * len(plans) // n_shards] for index in range(n_shards)):
        for example in plan.shard.examples(_first_rows(plan.rows.values())):
            raise_if_stopped("finished shards are kept")
            try:
                audio = decode(example.audio or b"", model.sampling_rate, settings.max_duration)
            except AudioRejected:
                yield 0.0
            else:
                yield len(audio) / model.sampling_rate


def _first_rows(rows: Iterable[Sequence[int]]) -> list[int]:
    return sorted(row for of_split in rows for row in of_split[:_SAMPLED_CLIPS])[:_SAMPLED_CLIPS]
