"""What is measured, on how many clips, and what each ratio is of."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.children import ChildRun, run_child
from benchmarks.report import Figure
from benchmarks.speech_data import Form, write_dataset

T = TypeVar("T")

_ARTIFACT = "measured"
_BATCH_CLIPS = 24  # of which a batch of 16 is left to train on
_FEW_CLIPS = 6  # that pay for imports before the clips that are measured


@dataclass(frozen=True, slots=True)
class Scale:
    """clips: that both recipes prepare. growth_clips: and ten times as many, to see whether memory grows.

    batches: that are collated. repetitions: of all else. at_once: runs at the same time, which is no way to measure.
    """

    clips: int
    growth_clips: int
    batches: int
    repetitions: int
    at_once: int = 1


FULL = Scale(clips=1000, growth_clips=300, batches=30, repetitions=3)
# Enough for a batch, and, ten times, for shards that keep two workers busy.
QUICK = Scale(clips=24, growth_clips=40, batches=3, repetitions=1, at_once=2)


class Bench:
    """The measurements, in a folder that takes about 5 GB, most of it caches of the plain recipe."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self._folder = folder
        self._scale = scale
        self._model = folder / "model"
        self._datasets = folder / "datasets"

    def figures(self) -> Iterator[Figure]:
        """One ratio after another, as they are measured."""
        run_child("benchmarks.whisper_folder", self._model, folder=self._folder)
        yield from self._preprocessing()
        yield self._memory_growth()
        yield self._collating()
        yield self._first_step()
        yield self._two_workers()

    def _preprocessing(self) -> Iterator[Figure]:
        """Speed in processor time, size on disk and peak memory of the same runs, see `preprocessing`."""
        n_clips = self._scale.clips
        flac, mp3 = self._preprocessing_runs("flac"), self._preprocessing_runs("mp3")
        for key, what, runs, target in (
            ("preprocess_flac", "16 kHz FLAC, clips per second of a core", flac, 8),
            ("preprocess_mp3", "48 kHz MP3, clips per second of a core", mp3, 5),
        ):
            ours, plain = (n_clips / _median(of, lambda run: run.result["core_seconds"]) for of in runs)
            yield Figure(key, what, ours, plain, ours / plain, target, "at least")
        ours, plain = (_median(of, lambda run: run.result["artifact_bytes"]) / n_clips / 1e3 for of in flac)
        yield Figure("artifact_size", "artifact, kB per clip", ours, plain, ours / plain, 1 / 11, "at most")
        ours, plain = (_median(of, lambda run: run.peak_bytes) / 1e6 for of in flac)
        yield Figure("peak_memory", "peak memory of preprocessing, MB", ours, plain, ours / plain, 0.5, "at most")

    def _preprocessing_runs(self, form: Form) -> tuple[list[ChildRun], list[ChildRun]]:
        few, dataset = self._dataset(form, _FEW_CLIPS), self._dataset(form, self._scale.clips)

        def run(recipe: str, folder: Path) -> ChildRun:
            return run_child("benchmarks.preprocessing", recipe, few, dataset, self._model, folder=folder)

        return self._by_turns(partial(run, "ours"), partial(run, "plain"))

    def _memory_growth(self) -> Figure:
        """Peak of our job in one process with ten times the clips, against its own with the clips."""

        def peak(n_clips: int, folder: Path) -> float:
            return self._our_preprocess_job(self._dataset("flac", n_clips), folder).peak_bytes / 1e6

        few = self._scale.growth_clips
        ours, before = map(statistics.median, self._by_turns(partial(peak, 10 * few), partial(peak, few)))
        what = "peak memory of our preprocessing, MB: ten times the clips (left) and the clips"
        return Figure("memory_growth", what, ours, before, ours / before, 1.15, "at most")

    def _collating(self) -> Figure:
        """See `collating`."""
        dataset = self._dataset("flac", _BATCH_CLIPS)
        given = dataset, self._model, self._scale.batches
        run = run_child("benchmarks.collating", *given, folder=self._folder)
        ours, plain = run.result["ours"] * 1e3, run.result["plain"] * 1e3
        return Figure("collate", "batch of 16 clips, ms", ours, plain, plain / ours, 100, "at least")

    def _first_step(self) -> Figure:
        """Seconds from nothing to the first training step on all clips, in one process at a time.

        The usual script prepares and trains in one go; our two jobs run one after the other, with all their starting
        and checking. Preparing takes the longer the more clips there are, so their number is part of this figure.
        """
        dataset = self._dataset("flac", self._scale.clips)

        def ours(folder: Path) -> tuple[float, float]:
            preprocess = self._our_preprocess_job(dataset, folder)
            train = run_child("benchmarks.first_step", "ours", self._model, _ARTIFACT, folder=folder)
            return preprocess.seconds + train.seconds, train.seconds

        def plain(folder: Path) -> tuple[float, float]:
            run = run_child("benchmarks.first_step", "plain", self._model, dataset, folder=folder)
            return run.seconds, run.seconds - run.result["preparing_seconds"]

        runs = self._by_turns(ours, plain)
        our_seconds, plain_seconds = (_median(of, lambda run: run[0]) for of in runs)
        alone = " and ".join(f"{_median(of, lambda run: run[1]):.1f}" for of in runs)
        what = f"from {self._scale.clips} clips to the first step, s (without preparing {alone})"
        return Figure("first_step", what, our_seconds, plain_seconds, our_seconds / plain_seconds, 0.6, "at most")

    def _two_workers(self) -> Figure:
        """See `two_workers`."""
        dataset = self._dataset("flac", 10 * self._scale.growth_clips)
        given = dataset, self._model, self._scale.repetitions
        run = run_child("benchmarks.two_workers", *given, folder=self._folder)
        two, one = run.result["two"], run.result["one"]
        what = "our preprocessing, clips per second: two workers (left) and one"
        return Figure("two_workers", what, two, one, two / one, 1.7, "at least")

    def _our_preprocess_job(self, dataset: Path, folder: Path) -> ChildRun:
        given = {
            "dataset_name": dataset,
            "language_code": "it",
            "model_id": self._model,
            "artifact_name": _ARTIFACT,
            "num_workers": 1,
        }
        return run_child("jobs.preprocess", *(f"--{name}={value}" for name, value in given.items()), folder=folder)

    def _dataset(self, form: Form, n_clips: int) -> Path:
        folder = self._datasets / f"{form}-{n_clips}"
        return folder if folder.exists() else write_dataset(folder, form, n_clips)

    def _by_turns(self, ours: Callable[[Path], T], other: Callable[[Path], T]) -> tuple[list[T], list[T]]:
        """The results of each side, which run by turns, each time in a new folder with nothing in the caches."""

        def run(side: Callable[[Path], T]) -> T:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                return side(Path(folder))

        with ThreadPoolExecutor(self._scale.at_once) as pool:
            results = list(pool.map(run, [ours, other] * self._scale.repetitions))
        return results[::2], results[1::2]


def _median(runs: Sequence[T], value: Callable[[T], float]) -> float:
    return statistics.median(map(value, runs))
