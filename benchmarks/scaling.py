"""`python -m benchmarks.scaling`: what more clips cost, and what more workers, part jobs and processes gain.

Whole jobs on clips of five seconds, 16 kHz FLAC, each process with one thread, so that two of them need two cores that
have nothing else to do. A table on stderr, and as the last line of stdout one JSON object. It takes about 4 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.children import ChildRun, run_child
from benchmarks.speech_data import CLIP_SECONDS, write_dataset

_GROWTH = 10
_MICRO_BATCH, _STEPS = 4, 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measurement:
    """key: its name in the JSON object. what: was measured, and in which unit."""

    key: str
    what: str
    value: float


class Scaling:
    """The jobs, one after another, in a folder of their own."""

    def __init__(self, folder: Path, n_clips: int) -> None:
        self._folder = folder
        self._model = folder / "model"
        self._n_clips = n_clips
        self._few = write_dataset(folder / "few", "flac", n_clips)
        self._many = write_dataset(folder / "many", "flac", _GROWTH * n_clips)

    def measurements(self) -> Iterator[Measurement]:
        run_child("benchmarks.whisper_folder", self._model, folder=self._folder)
        few, many = self._n_clips, _GROWTH * self._n_clips
        for clips, dataset in ((few, self._few), (many, self._many)):
            job = self._preprocess(dataset, f"of-{clips}")
            yield Measurement(f"preprocess_{clips}_s", f"preprocess {clips} clips, one worker, s", job.seconds)
            yield Measurement(f"preprocess_{clips}_mb", "  its peak memory, MB", job.peak_bytes / 1e6)
            yield Measurement(f"artifact_{clips}_mb", "  its artifact, MB", job.result["artifact_bytes"] / 1e6)
        two = self._preprocess(self._many, "two-workers", num_workers=2)
        yield Measurement("two_workers_s", f"preprocess {many} clips, two workers, s", two.seconds)
        yield Measurement("two_parts_s", f"preprocess {many} clips, two part jobs at once, s", self._two_parts())
        for clips in (few, many):
            start = run_child("benchmarks.first_step", "ours", self._model, f"of-{clips}", folder=self._folder)
            yield Measurement(
                f"start_{clips}_s", f"train job up to its first batch, of {clips} clips, s", start.seconds
            )
            yield Measurement(f"start_{clips}_mb", "  its peak memory, MB", start.peak_bytes / 1e6)
            shutil.rmtree(self._folder / "trained")
        for processes in (1, 2):
            what = f"training, {processes} process{'es'[: 2 * (processes - 1)]}, seconds of audio per second"
            yield Measurement(f"train_{processes}", what, self._audio_per_second(processes))

    def _preprocess(self, dataset: Path, name: str, **more: int) -> ChildRun:
        given = {"dataset_name": dataset, "artifact_name": name, "num_workers": 1, **more}
        given |= {"language_code": "it", "model_id": self._model}
        return run_child("jobs.preprocess", *(f"--{key}={value}" for key, value in given.items()), folder=self._folder)

    def _two_parts(self) -> float:
        def part(index: int) -> ChildRun:
            return self._preprocess(self._many, "two-parts", shard_index=index, shard_count=2)

        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(part, range(2)))
        return time.monotonic() - began

    def _audio_per_second(self, processes: int) -> float:
        """Of training steps alone, with whisper-tiny's shape."""
        output = self._folder / f"trained-by-{processes}"
        given = {
            "model_id": self._model,
            "artifact_name": f"of-{self._n_clips}",
            "output_dir": output,
            "train_batch_size": _MICRO_BATCH,
            "max_steps": _STEPS,
            "warmup_steps": 1,
            "logging_steps": 1,
            "evaluate_base": "false",
            "max_eval_samples": 2,
            "max_sequence_length": 8,
        }
        launcher = ["--standalone", f"--nproc-per-node={processes}", "-m", "jobs.train"]
        flags = [f"--{key}={value}" for key, value in given.items()]
        run_child("torch.distributed.run", *launcher, *flags, folder=self._folder)
        results = json.loads((output / "model" / "results.json").read_text(encoding="utf-8"))
        audio_seconds: float = processes * _MICRO_BATCH * _STEPS * CLIP_SECONDS
        return audio_seconds / float(results["train_runtime"])


def main(n_clips: int) -> None:
    measured = []
    with tempfile.TemporaryDirectory(prefix="asr-scaling-") as folder:
        for measurement in Scaling(Path(folder), n_clips).measurements():
            logger.info("%s: %.4g", measurement.key, measurement.value)
            measured.append(measurement)
    table = Table("what", "value")
    for measurement in measured:
        table.add_row(measurement.what, f"{measurement.value:.4g}")
    Console(stderr=True).print(table)
    print(json.dumps({measurement.key: float(f"{measurement.value:.4g}") for measurement in measured}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="how cost grows")
    parser.add_argument("--clips", type=int, default=1000, help="in the smaller dataset; the larger has ten times more")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(parser.parse_args().clips)
