"""A model, and clips of a length prepared for it by both recipes: what the benchmarks of training and evaluation share.

As a child process, `python -m benchmarks.prepared_clips DATASET MODEL FOLDER` prepares by the plain recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import ChildRun, run_child
from benchmarks.speech_data import write_dataset

ARTIFACT = "measured"


@dataclass(frozen=True, slots=True)
class PreparedClips:
    """model: a checkpoint with random weights. plain: what `datasets.load_from_disk` opens.

    The artifact has the name `ARTIFACT` in the caches of the folder that all was made in.
    """

    model: Path
    plain: Path


def prepare_clips(folder: Path, shape: str, n_train: int, n_held_out: int, seconds: float) -> PreparedClips:
    """`n_train` clips of `seconds` for training, and `n_held_out` each for validation and test.

    The transcripts of the model end as if the clips had been transcribed.
    """
    made = PreparedClips(folder / "model", folder / "plain")
    run_child("benchmarks.whisper_folder", made.model, shape, seconds, folder=folder)
    n_clips = n_train + 2 * n_held_out
    dataset = write_dataset(folder / "clips", "flac", n_clips, seconds=seconds, held_out=n_held_out)
    preprocess(dataset, made.model, folder)
    prepare_plain(dataset, made.model, made.plain, folder)
    return made


def by_turns(repetitions: int, run: Callable[[str], ChildRun]) -> dict[str, list[ChildRun]]:
    """What `run` gives for `ours` and for `plain`, each so many times, so that both have the same machine."""
    runs: dict[str, list[ChildRun]] = {"ours": [], "plain": []}
    for _ in range(repetitions):
        for recipe, of_recipe in runs.items():
            of_recipe.append(run(recipe))
    return runs


def peak_bytes(run: ChildRun) -> int:
    """Of tensors on the GPU where its result has `gpu_bytes`, else of the process."""
    on_gpu = run.result["gpu_bytes"]
    return run.peak_bytes if on_gpu is None else int(on_gpu)


def preprocess(dataset: Path, model: Path, folder: Path, artifact_name: str = ARTIFACT) -> None:
    """Our preprocess job, on Italian clips."""
    given = {"dataset_name": dataset, "language_code": "it", "model_id": model, "artifact_name": artifact_name}
    given |= {"num_workers": 1}
    run_child("jobs.preprocess", *(f"--{name}={value}" for name, value in given.items()), folder=folder)


def prepare_plain(dataset: Path, model: Path, prepared: Path, folder: Path) -> None:
    """By the plain recipe, into the folder `prepared`."""
    run_child("benchmarks.prepared_clips", dataset, model, prepared, folder=folder)


def main(dataset: Path, model: Path, folder: Path) -> None:
    from benchmarks.plain_recipe import load_processor, prepare

    prepare(dataset, load_processor(model)).save_to_disk(folder)
    print("{}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
