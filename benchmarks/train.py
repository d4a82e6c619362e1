"""`python -m benchmarks.train`: audio trained in a second and peak memory, by the plain recipe and by our train job.

The plain recipe pads every clip to Whisper's window of 30 s; our job trains on several clips in one window. Both take
the same clips of `--seconds`, `--batch_size` of them to an optimizer step, with the same model of random weights, in
bf16 on a GPU and in fp32 without one, in child processes that take turns; the median counts. What is measured is
training alone, see `training_steps`. Peak memory is what tensors take on a GPU; without one it is that of the whole
process. A table on stderr, and as the last line of stdout one JSON object.

Without a GPU (a process has one core, and whisper-tiny's shape takes a quarter of an hour):

    python -m benchmarks.train

On a CUDA GPU:

    python -m benchmarks.train --model_shape small --batch_size 32 --steps 20
    python -m benchmarks.train --model_shape large-v3 --batch_size 16 --steps 20
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.children import ChildRun, run_child
from benchmarks.prepared_clips import ARTIFACT, by_turns, peak_bytes, prepare_clips
from benchmarks.report import Figure, show
from benchmarks.shapes import SHAPES

WARM_UP_STEPS = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """clips: in the train split. steps: of the optimizer, `WARM_UP_STEPS` of which are not timed.

    seconds: of a clip. repetitions: of each recipe.
    """

    model_shape: str = "tiny"
    clips: int = 64
    steps: int = 4
    batch_size: int = 16
    seconds: float = 5.0
    repetitions: int = 3


FULL = Options()
QUICK = Options(model_shape="mini", clips=16, steps=2, batch_size=8, repetitions=1)


def measure(folder: Path, options: Options) -> tuple[str, list[Figure]]:
    """The device's name, and what was measured on it; `folder` is for models and clips."""
    prepared = prepare_clips(folder, options.model_shape, options.clips, n_held_out=2, seconds=options.seconds)
    clips: dict[str, str | Path] = {"ours": ARTIFACT, "plain": prepared.plain}

    def run_recipe(recipe: str) -> ChildRun:
        run = run_steps(recipe, prepared.model, clips[recipe], folder, options)
        measured = (run.result["audio_seconds"], run.result["seconds"], peak_bytes(run) / 1e6)
        logger.info("%s: %.0f s of audio in %.1f s, %.0f MB", recipe, *measured)
        return run

    runs = by_turns(options.repetitions, run_recipe)
    on_gpu = runs["ours"][0].result["gpu_bytes"] is not None
    ours, plain = (
        statistics.median(run.result["audio_seconds"] / run.result["seconds"] for run in of) for of in runs.values()
    )
    clips_of = f"{options.batch_size} clips of {options.seconds:g} s"
    what = f"{options.model_shape}, {clips_of} to a step: seconds of audio per second"
    trained = Figure("train_audio", what, ours, plain, ours / plain, 5 if on_gpu else 4, "at least")
    ours, plain = (statistics.median(map(peak_bytes, of)) / 1e6 for of in runs.values())
    memory = Figure("peak_memory", "peak memory of training, MB", ours, plain, ours / plain, 1.0, "at most")
    return runs["ours"][0].result["device"], [trained, memory]


def run_steps(recipe: str, model: Path, clips: str | Path, folder: Path, options: Options) -> ChildRun:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        given = (recipe, model, clips, output, options.steps, options.batch_size)
        return run_child("benchmarks.training_steps", *given, folder=folder)


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="asr-train-") as folder:
        device, figures = measure(Path(folder), options)
    show(figures)
    ratios = {figure.key: float(f"{figure.ratio:.4g}") for figure in figures}
    print(json.dumps({**ratios, "device": device, **asdict(options)}))


def parse() -> Options:
    """
    Raises:
        SystemExit: a step would have fewer clips than the others.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description="training against the plain recipe")
    parser.add_argument("--model_shape", choices=SHAPES, default=FULL.model_shape)
    parser.add_argument("--clips", type=int, help="in the train split (default: those of all steps)")
    parser.add_argument("--steps", type=int, default=FULL.steps, help="the first is not timed")
    parser.add_argument("--batch_size", type=int, default=FULL.batch_size, help="clips of an optimizer step")
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="of a clip")
    parser.add_argument("--repetitions", type=int, default=FULL.repetitions)
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: shows that it runs, not how fast")
    given = vars(parser.parse_args())
    if given.pop("quick"):
        return QUICK
    given["clips"] = given["clips"] or given["steps"] * given["batch_size"]
    options = Options(**given)
    if options.clips % options.batch_size or options.steps <= WARM_UP_STEPS:
        parser.error(f"--clips must be a multiple of --batch_size, and --steps more than {WARM_UP_STEPS}")
    return options


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(parse())
