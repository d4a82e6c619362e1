"""What a person sees at the end of the preprocess job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr_fine_tuner.artifact import SPLITS, ArtifactSplit
from asr_fine_tuner.columns import Columns
from asr_fine_tuner.disk import readable_size
from asr_fine_tuner.logs import without_controls
from asr_fine_tuner.manifest import Manifest

_HISTOGRAM_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)  # seconds
_BAR_WIDTH = 24


def show_artifact(
    artifact: Path, manifest: Manifest, columns: Columns, artifact_bytes: int, bytes_fetched: int
) -> None:
    """What was read, with a transcript to look at, clips and hours of each split, durations, rejections and sizes, on
    stderr."""
    console = Console(stderr=True, markup=False, highlight=False)

    def say(line: str) -> None:
        console.print(without_controls(line), soft_wrap=True)

    console.print(_clips(manifest))
    clips = {split: ArtifactSplit(artifact, split) for split in SPLITS}
    console.print(_durations(np.concatenate([of_split.seconds for of_split in clips.values()])))
    for reason, count in manifest.rejected.items():
        say(f"rejected  {reason}: {count}")
    say(f"columns   audio {columns.audio}, text {columns.text}, speaker {columns.speaker or 'unknown'}")
    say(f"example   {clips['train'].id(0)}: {clips['train'].text(0)}")
    fetched = f"{readable_size(bytes_fetched)} fetched" if bytes_fetched else "nothing fetched"
    say(f"artifact  {artifact} ({readable_size(artifact_bytes)}, {fetched})")


def _clips(manifest: Manifest) -> Table:
    dataset, language = manifest.dataset, manifest.encoding.language.title()
    table = Table(title=Text(without_controls(f"{dataset.id} ({dataset.config}), {language}")))
    table.add_column("split")
    table.add_column("from")
    for column in ("clips", "hours", "longest labels"):
        table.add_column(column, justify="right")
    for split in SPLITS:
        summary = manifest.splits[split]
        source = Text(without_controls(dataset.splits.get(split, "")))
        table.add_row(split, source, f"{summary.clips}", f"{summary.hours:.2f}", f"{summary.longest_labels}")
    return table


def _durations(seconds: npt.NDArray[np.float32]) -> Table:
    bins = 1 + int(np.searchsorted(_HISTOGRAM_EDGES, seconds.max()))
    edges = [*_HISTOGRAM_EDGES[:bins], *([np.inf] if seconds.max() > _HISTOGRAM_EDGES[-1] else [])]
    counts, _ = np.histogram(seconds, edges)
    table = Table(title="duration of clips", box=None, show_header=False)
    for column in ("seconds", "clips"):
        table.add_column(column, justify="right")
    table.add_column("share")
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        span = f"{low:g} to {high:g} s" if np.isfinite(high) else f"over {low:g} s"
        table.add_row(span, str(count), "█" * round(_BAR_WIDTH * count / counts.max()))
    return table
