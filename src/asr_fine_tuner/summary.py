"""What a person sees at the end of the preprocess job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asr_fine_tuner.artifact import SPLITS, ArtifactSplit
from asr_fine_tuner.manifest import Manifest

_HISTOGRAM_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)  # seconds
_BAR_WIDTH = 24


def show_artifact(artifact: Path, manifest: Manifest, artifact_bytes: int, bytes_fetched: int) -> None:
    """Clips and hours of each split, durations, rejections and sizes, on stderr."""
    console = Console(stderr=True)
    clips = Table(title=f"{manifest.dataset.id} ({manifest.dataset.config}), {manifest.encoding.language.title()}")
    clips.add_column("split")
    clips.add_column("from")
    for column in ("clips", "hours", "longest labels"):
        clips.add_column(column, justify="right")
    for split in SPLITS:
        summary = manifest.splits[split]
        clips.add_row(
            split,
            manifest.dataset.splits.get(split, ""),
            f"{summary.clips}",
            f"{summary.hours:.2f}",
            f"{summary.longest_labels}",
        )
    console.print(clips)
    console.print(_durations(artifact))
    for reason, count in manifest.rejected.items():
        console.print(f"rejected  {reason}: {count}", highlight=False)
    fetched = f"{_size(bytes_fetched)} fetched" if bytes_fetched else "nothing fetched"
    console.print(f"artifact  {artifact} ({_size(artifact_bytes)}, {fetched})", highlight=False, soft_wrap=True)


def _durations(artifact: Path) -> Table:
    seconds = np.concatenate([ArtifactSplit(artifact, split).seconds for split in SPLITS])
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


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
