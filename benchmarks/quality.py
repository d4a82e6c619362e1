"""`python -m benchmarks.quality`: whether packing costs accuracy, on real learning.

The train job fine-tunes a small Whisper, which has learnt Spanish, on Italian phrases in the demo's voices: packed and
not, for the same number of steps and with as many clips to a step, so that both have heard the same audio, once with
each seed. Compared are normalised word error rates of voices that were never heard: of single clips, and of long
recordings with timestamps and without (see `long_recordings`), with 95 % confidence intervals by bootstrap over seeds
and recordings.

Data and base model are made by `phrases` and `phrase_model`, once, which needs espeak-ng, and kept under
`build/quality`. The table is printed and written to `build/quality.md`; the last line is one JSON object.

    python -m benchmarks.quality                                   # three seeds, half an hour on two cores
    python -m benchmarks.quality --packed_timestamps never         # with other settings of packing
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
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.children import run_child
from benchmarks.confidence import Comparison, Interval, compare
from benchmarks.phrase_recipe import WINDOW_SECONDS, Clips, Recipe
from benchmarks.prepared_clips import preprocess

_ROOT = Path(__file__).resolve().parent.parent
_BUILD = _ROOT / "build"
# As in demo/run.py; evaluated at the last step alone, whose weights are compared.
_TRAIN: Mapping[str, object] = {
    "learning_rate": 1.5e-3,
    "warmup_steps": 30,
    "train_batch_size": 16,
    "eval_batch_size": 48,
    "max_sequence_length": 64,
    "evaluate_base": "false",
}

_PROGRAM = ("phrases.py", "phrase_model.py", "phrase_recipe.py")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """steps: of fine-tuning. orders: in which `long_clips` of each test speaker make a long recording.

    at_once: jobs, each with one core. packed: parameters of the train job for the packed runs, beside its defaults.
    """

    recipe: Recipe
    clips: Clips
    steps: int = 600
    seeds: int = 3
    orders: int = 2
    long_clips: int = 60
    at_once: int = 2
    packed: tuple[tuple[str, object], ...] = ()


FULL = Options(Recipe(), Clips())
QUICK = Options(
    Recipe(speakers=2, phrases=6, steps=2, batch_size=2),
    Clips(train=32, validation=4, test=20),
    steps=2,
    seeds=1,
    orders=1,
    long_clips=5,
)


@dataclass(frozen=True, slots=True)
class Run:
    """Word errors of one fine-tuning.

    clips, with_timestamps, without: errors of each test clip, and of each long recording with timestamps and without.
    clip_words, long_words: in the references of these. seconds: in training steps.
    """

    clips: list[int]
    clip_words: list[int]
    with_timestamps: list[int]
    without: list[int]
    long_words: list[int]
    seconds: float


def kept(module: str, folder: Path, *given: object, name: str) -> Path:
    """What a child process of `module` writes to a folder, which is kept as long as programs and arguments do not
    change."""
    program = b"".join(Path(__file__).with_name(file).read_bytes() for file in _PROGRAM)
    digest = hashlib.sha256(program + repr(given).encode()).hexdigest()[:12]
    made = folder / f"{name}-{digest}"
    if not made.exists():
        logger.info("making %s", made)
        staging = folder / f"making-{name}-{digest}"
        shutil.rmtree(staging, ignore_errors=True)
        run_child(module, staging, *given, folder=folder)
        staging.rename(made)
    return made


def fine_tune(
    base: Path, dataset: Path, packing: Mapping[str, object], seed: int, options: Options, folder: Path
) -> Run:
    """Train and transcribe; what was trained is left in a folder, from which no other run continues."""
    name = "-".join(["seed", str(seed), *(f"{key}-{value}" for key, value in packing.items())])
    output = folder / "runs" / name
    shutil.rmtree(output, ignore_errors=True)
    given = {"model_id": base, "artifact_name": base.name, "output_dir": output, "seed": seed, **_TRAIN, **packing}
    given |= {"warmup_steps": min(30, options.steps // 2)}
    given |= dict.fromkeys(("max_steps", "eval_steps", "save_steps"), options.steps)
    run_child("jobs.train", *(f"--{key}={value}" for key, value in given.items()), folder=folder)
    model = output / "model"
    clips = [json.loads(line) for line in (model / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    how = (WINDOW_SECONDS, options.orders, options.long_clips)
    long = run_child("benchmarks.long_recordings", model, dataset, *how, folder=folder).result
    run = Run(
        clips=[clip["errors"] for clip in clips],
        clip_words=[clip["words"] for clip in clips],
        with_timestamps=long["with_timestamps"],
        without=long["without"],
        long_words=long["words"],
        seconds=float(json.loads((model / "results.json").read_text(encoding="utf-8"))["train_runtime"]),
    )
    logger.info(
        "%s: WER %.3f of clips, %.3f of long recordings with timestamps, %.3f without, %.0f s of training",
        name,
        sum(run.clips) / sum(run.clip_words),
        sum(run.with_timestamps) / sum(run.long_words),
        sum(run.without) / sum(run.long_words),
        run.seconds,
    )
    return run


def compared(unpacked: Sequence[Run], packed: Sequence[Run]) -> dict[str, Comparison]:
    """Word error rates, unpacked first, by what was transcribed."""

    def errors(runs: Sequence[Run], what: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.array([getattr(run, what) for run in runs])

    words = {"clips": "clip_words", "with_timestamps": "long_words", "without": "long_words"}
    return {
        what: compare(errors(unpacked, what), errors(packed, what), errors(unpacked, of)[0])
        for what, of in words.items()
    }


def table(comparisons: Mapping[str, Comparison], seconds: tuple[float, float]) -> str:
    called = {
        "clips": "single clips",
        "with_timestamps": "long recordings, with timestamps",
        "without": "long recordings, without timestamps",
    }
    rows = ["| normalised WER, % | unpacked | packed | packed - unpacked |", "|---|---:|---:|---:|"]
    rows += [
        f"| {called[what]} | {_percent(rates.first)} | {_percent(rates.second)} | {_percent(rates.difference, '+')} |"
        for what, rates in comparisons.items()
    ]
    unpacked, packed = seconds
    rows.append(f"| training, s on one core | {unpacked:.0f} | {packed:.0f} | {packed / unpacked:.2f} times |")
    return "\n".join(rows) + "\n"


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.value:{sign}.1f} ({100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f})"


def main(options: Options) -> None:
    folder = _BUILD / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = kept("benchmarks.phrases", folder, *astuple(options.clips), name="dataset")
    base = kept("benchmarks.phrase_model", folder, json.dumps(asdict(options.recipe)), name="base")
    preprocess(dataset, base, folder, base.name)
    ways: list[dict[str, object]] = [{"packing": "off"}, {"packing": "on", **dict(options.packed)}]
    # By turns, so that both ways have the same machine.
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = list(
            pool.map(
                lambda job: fine_tune(base, dataset, job[0], job[1], options, folder),
                [(way, seed) for seed in range(1, options.seeds + 1) for way in ways],
            )
        )
    unpacked, packed = runs[::2], runs[1::2]
    comparisons = compared(unpacked, packed)
    mean_seconds = statistics.mean(run.seconds for run in unpacked), statistics.mean(run.seconds for run in packed)
    text = table(comparisons, mean_seconds)
    (_BUILD / "quality.md").write_text(text, encoding="utf-8")
    print(text)
    figures = {what: asdict(rates) for what, rates in comparisons.items()}
    print(json.dumps({**figures, "training_seconds": mean_seconds, "seeds": options.seeds, "steps": options.steps}))


def parse() -> Options:
    """
    Raises:
        SystemExit: espeak-ng is not installed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="packed against unpacked")
    parser.add_argument("--steps", type=int, default=FULL.steps, help="of fine-tuning")
    parser.add_argument("--seeds", type=int, default=FULL.seeds)
    parser.add_argument("--at_once", type=int, default=FULL.at_once, help="jobs, each with one core")
    parser.add_argument("--single_clip_share", type=float, help="of the packed runs; the default when not given")
    parser.add_argument("--packed_timestamps", choices=("mixed", "always", "never"), help="likewise")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, and learns nothing")
    given = vars(parser.parse_args())
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed: apt-get install espeak-ng")
    packed = {key: given.pop(key) for key in ("single_clip_share", "packed_timestamps")}
    if given.pop("quick"):
        return QUICK
    return replace(FULL, **given, packed=tuple((key, value) for key, value in packed.items() if value is not None))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(parse())
