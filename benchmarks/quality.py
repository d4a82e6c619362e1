"""`python -m benchmarks.quality`: whether packing costs accuracy, on real learning.

The train job fine-tunes a small Whisper, which has learnt Spanish, on Italian phrases in the demo's voices: packed and
not, for the same number of steps and with as many clips to a step, so that both have heard the same audio, once with
each seed. Compared are normalised word error rates of voices that were never heard: of single clips, of some of them
after half a second of silence, and of long recordings with timestamps and without (see `recordings`), with 95 %
confidence intervals by bootstrap over seeds and recordings.

With `--model` a Whisper that others have trained learns instead, the demo's sentences, in its own window.

In packed windows most clips do not begin where the window begins. With `--anywhere` a third training does that alone:
not packed, each clip somewhere in its window, after silence.

Data and the small model are made once, which needs espeak-ng, and kept under `build/quality` (see `learners`). The
table is printed and written to `build/quality.md`; the last line is one JSON object.

    python -m benchmarks.quality                                   # three seeds, an hour on two cores
    python -m benchmarks.quality --steps 600 --anywhere            # in the middle of learning
    python -m benchmarks.quality --packed_timestamps never         # with other settings of packing
    python -m benchmarks.quality --model openai/whisper-base       # two hours on two cores with --precision bf16
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.children import run_child
from benchmarks.confidence import Comparison, Interval, compare
from benchmarks.learners import Learner, given_whisper, small_whisper
from benchmarks.phrase_recipe import Clips, Recipe

_ROOT = Path(__file__).resolve().parent.parent
_BUILD = _ROOT / "build"
# Evaluated at the last step alone, whose weights are compared.
_TRAIN: Mapping[str, object] = {"max_sequence_length": 64, "evaluate_base": "false"}

# Word errors of a `Run`: its words, and what they are called in the table.
_HEARD: Mapping[str, tuple[str, str]] = {
    "clips": ("clip_words", "single clips"),
    "late": ("late_words", "single clips after 0.5 s of silence"),
    "with_timestamps": ("long_words", "long recordings, with timestamps"),
    "without": ("long_words", "long recordings, without timestamps"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """learner: a Whisper on the Hub or in a folder, or how a small one is made. steps: of fine-tuning. orders: in which
    `long_clips` of each test speaker make a long recording. late_clips: test clips that are transcribed after silence,
    too.

    at_once: jobs, each with one core. anywhere: train on clips somewhere in their windows, too. given, packed:
    parameters of the train job, and those for the packed runs, beside its defaults.
    """

    learner: Recipe | str
    clips: Clips
    steps: int
    seeds: int = 3
    orders: int = 2
    long_clips: int = 60
    late_clips: int = 200
    at_once: int = 2
    anywhere: bool = False
    given: tuple[tuple[str, object], ...] = ()
    packed: tuple[tuple[str, object], ...] = ()

    @property
    def digest(self) -> str:
        """Of them all: two measurements with other options may run at once."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


SMALL = Options(Recipe(), Clips(), steps=2400)
WHISPER = Options(
    "openai/whisper-base",
    Clips(train=560, validation=48, test=200),
    steps=40,
    orders=1,
    long_clips=30,
    late_clips=50,
)
QUICK = Options(
    Recipe(speakers=2, phrases=6, steps=2, batch_size=2),
    Clips(train=32, validation=4, test=20),
    steps=2,
    seeds=1,
    orders=1,
    long_clips=5,
    late_clips=2,
)


@dataclass(frozen=True, slots=True)
class Run:
    """Word errors of one fine-tuning.

    clips, late: errors of each test clip, and of each one that is heard after silence. with_timestamps, without: of
    each long recording. clip_words, late_words, long_words: in the references of these. seconds: in training steps.
    """

    clips: list[int]
    clip_words: list[int]
    late: list[int]
    late_words: list[int]
    with_timestamps: list[int]
    without: list[int]
    long_words: list[int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Way:
    """To train. given: parameters of the train job."""

    name: str
    dataset: Path
    given: Mapping[str, object]


def fine_tune(learner: Learner, way: Way, seed: int, options: Options, folder: Path) -> Run:
    """Train and transcribe; what was trained is left in a folder, from which no other run continues."""
    name = f"{way.name}-seed-{seed}"
    output = folder / "runs" / options.digest / name
    shutil.rmtree(output, ignore_errors=True)
    artifact_name = learner.artifact_name(way.dataset)
    given = {"model_id": learner.base, "artifact_name": artifact_name, "output_dir": output, "seed": seed}
    given |= {**_TRAIN, **learner.given, **dict(options.given), **way.given}
    given |= {"warmup_steps": min(30, options.steps // 2)}
    given |= dict.fromkeys(("max_steps", "eval_steps", "save_steps"), options.steps)
    run_child("jobs.train", *(f"--{key}={value}" for key, value in given.items()), folder=folder)
    model = output / "model"
    clips = [json.loads(line) for line in (model / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    how = (learner.window_seconds, options.orders, options.long_clips, options.late_clips)
    heard = run_child("benchmarks.recordings", model, way.dataset, *how, folder=folder).result
    run = Run(
        clips=[clip["errors"] for clip in clips],
        clip_words=[clip["words"] for clip in clips],
        **heard,
        seconds=float(json.loads((model / "results.json").read_text(encoding="utf-8"))["train_runtime"]),
    )
    rates = (
        f"{sum(getattr(run, what)) / sum(getattr(run, words)):.3f} of {said}" for what, (words, said) in _HEARD.items()
    )
    logger.info("%s: WER %s; %.0f s of training", name, ", ".join(rates), run.seconds)
    return run


def compared(first: Sequence[Run], second: Sequence[Run]) -> dict[str, Comparison]:
    """Word error rates of two ways to train, by what was transcribed."""

    def errors(runs: Sequence[Run], what: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.array([getattr(run, what) for run in runs])

    return {
        what: compare(errors(first, what), errors(second, what), errors(first, words)[0])
        for what, (words, _) in _HEARD.items()
    }


def table(comparisons: Mapping[str, Mapping[str, Comparison]], seconds: Mapping[str, float]) -> str:
    """comparisons: of each way but the first with the first. seconds: of training in each way."""
    first, *others = seconds
    header = ["normalised WER, %", first, *(cell for way in others for cell in (way, f"{way} - {first}"))]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for what, (_, name) in _HEARD.items():
        rates = [comparisons[way][what] for way in others]
        cells = [cell for each in rates for cell in (_percent(each.second), _percent(each.difference, "+"))]
        rows.append([name, _percent(rates[0].first), *cells])
    times = [cell for way in others for cell in (f"{seconds[way]:.0f}", f"{seconds[way] / seconds[first]:.2f} times")]
    rows.append(["training, s on one core", f"{seconds[first]:.0f}", *times])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.value:{sign}.1f} ({100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f})"


def main(options: Options) -> None:
    folder = _BUILD / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    learner = (
        given_whisper(options.learner) if isinstance(options.learner, str) else small_whisper(options.learner, folder)
    )
    dataset = learner.dataset(options.clips, folder)
    ways = [
        Way("unpacked", dataset, {"packing": "off"}),
        Way("packed", dataset, {"packing": "on", **dict(options.packed)}),
    ]
    if options.anywhere:
        ways.append(Way("anywhere", learner.dataset(replace(options.clips, anywhere=True), folder), {"packing": "off"}))
    # By turns, so that all have the same machine.
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = list(
            pool.map(
                lambda job: fine_tune(learner, job[0], job[1], options, folder),
                [(way, seed) for seed in range(1, options.seeds + 1) for way in ways],
            )
        )
    of_way = {way.name: runs[number :: len(ways)] for number, way in enumerate(ways)}
    comparisons = {way.name: compared(of_way["unpacked"], of_way[way.name]) for way in ways[1:]}
    seconds = {name: statistics.mean(run.seconds for run in runs) for name, runs in of_way.items()}
    text = table(comparisons, seconds)
    (_BUILD / "quality.md").write_text(text, encoding="utf-8")
    print(text)
    figures = {way: {what: asdict(rates) for what, rates in each.items()} for way, each in comparisons.items()}
    print(json.dumps({**figures, "training_seconds": seconds, "seeds": options.seeds, "steps": options.steps}))


def parse() -> Options:
    """
    Raises:
        SystemExit: espeak-ng is not installed, or a parameter is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="packed against unpacked")
    parser.add_argument("--model", help="fine-tune this Whisper, on the Hub or in a folder, instead of a small one")
    parser.add_argument("--steps", type=int, help=f"of fine-tuning [{SMALL.steps}; with --model {WHISPER.steps}]")
    parser.add_argument("--seeds", type=int, help=f"[{SMALL.seeds}]")
    parser.add_argument("--at_once", type=int, help=f"jobs, each with one core [{SMALL.at_once}]")
    parser.add_argument("--anywhere", action="store_true", help="train unpacked on clips after silence, too")
    parser.add_argument("--train_batch_size", type=int, help="of the train job, like what follows; its default or ours")
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--single_clip_share", type=float, help="of the packed runs")
    parser.add_argument("--packed_timestamps", choices=("mixed", "always", "never"), help="of the packed runs")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, and learns nothing")
    arguments = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed: apt-get install espeak-ng")
    if "model" in arguments and arguments["anywhere"]:
        parser.error("--anywhere is for the small model, whose window is short")

    def taken(*names: str) -> tuple[tuple[str, object], ...]:
        return tuple((name, arguments.pop(name)) for name in names if name in arguments)

    given = taken("train_batch_size", "learning_rate", "precision")
    packed = taken("single_clip_share", "packed_timestamps")
    model, quick = arguments.pop("model", None), arguments.pop("quick")
    options = QUICK if quick else WHISPER if model else SMALL
    return replace(options, learner=model or options.learner, **arguments, given=given, packed=packed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(parse())
