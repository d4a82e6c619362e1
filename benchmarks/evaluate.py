"""`python -m benchmarks.evaluate`: an evaluation by the stock trainer and by ours, its time and peak memory.

The plain recipe is `Seq2SeqTrainer.evaluate` with `predict_with_generate`, which runs the encoder once for the
transcripts and once for the loss; ours is the evaluation of the train job. Both evaluate the same model on the same
clips of `--seconds`, in bf16 on a GPU and in fp32 without one, in child processes that take turns; the median counts.

A model of random weights never ends a transcript: it would be measured on runaway clips alone, which our evaluation
cuts short. So the model is made to end each after as many tokens as the references have on average, see
`whisper_folder.end_transcripts`; nothing is gained from our limit, nor, as all are equally long, from our order.

That both hear the same is checked on real speech before anything is timed: the demo's model transcribes the demo's test
split in fp32 on the processor, by both recipes with the same limit, and every transcript has to be the same. Without a
GPU those of the timed model have to be, too. A table on stderr, and as the last line of stdout one JSON object.

Without a GPU (a process has one core, and whisper-tiny's shape takes ten minutes):

    python -m benchmarks.evaluate

On a CUDA GPU:

    python -m benchmarks.evaluate --model_shape small --clips 256 --batch_size 32
    python -m benchmarks.evaluate --model_shape large-v3 --clips 128 --batch_size 16
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from benchmarks.children import ChildRun, run_child
from benchmarks.prepared_clips import ARTIFACT, by_turns, peak_bytes, prepare_clips, prepare_plain, preprocess
from benchmarks.report import Figure, show
from benchmarks.shapes import SHAPES

_DEMO = Path(__file__).resolve().parent.parent / "demo"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """clips: that are evaluated. seconds: of a clip. batch_size: clips transcribed at once, by default both recipes'.

    repetitions: of each recipe. checked: clips of the demo that are transcribed by both.
    """

    model_shape: str = "tiny"
    clips: int = 32
    batch_size: int = 8
    seconds: float = 5.0
    repetitions: int = 3
    checked: int = 96


FULL = Options()
QUICK = Options(model_shape="mini", clips=8, batch_size=4, repetitions=1, checked=4)


def measure(folder: Path, options: Options) -> tuple[str, list[Figure]]:
    """The device's name, and what was measured on it; `folder` is for models and clips."""
    prepared = prepare_clips(folder, options.model_shape, 1, n_held_out=options.clips, seconds=options.seconds)
    clips = {"ours": ARTIFACT, "plain": prepared.plain}

    def run_recipe(recipe: str) -> ChildRun:
        given = (recipe, prepared.model, clips[recipe], options.batch_size)
        run = run_child("benchmarks.evaluating", *given, folder=folder)
        logger.info("%s: %.1f s, %.0f MB", recipe, run.result["seconds"], peak_bytes(run) / 1e6)
        return run

    runs = by_turns(options.repetitions, run_recipe)
    on_gpu = runs["ours"][0].result["gpu_bytes"] is not None
    if not on_gpu:
        refuse_different(*(of[0].result["transcripts"] for of in runs.values()))
    ours, plain = (
        options.clips * options.seconds / statistics.median(run.result["seconds"] for run in of) for of in runs.values()
    )
    clips_of = f"{options.batch_size} clips of {options.seconds:g} s"
    what = f"{options.model_shape}, {clips_of} at once: seconds of audio per second"
    evaluated = Figure("evaluate", what, ours, plain, ours / plain, 3 if on_gpu else 1.5, "at least")
    ours, plain = (statistics.median(map(peak_bytes, of)) / 1e6 for of in runs.values())
    memory = Figure("peak_memory", "peak memory of evaluation, MB", ours, plain, ours / plain, 1.1, "at most")
    return runs["ours"][0].result["device"], [evaluated, memory]


def check_transcripts(folder: Path, n_clips: int) -> None:
    """Transcribe clips of the demo by both recipes.

    Raises:
        ValueError: a transcript differs.
    """
    model, dataset, prepared = _DEMO / "model", as_flac(n_clips, folder / "demo"), folder / "plain-demo"
    preprocess(dataset, model, folder, "demo")
    prepare_plain(dataset, model, prepared, folder)

    def transcribed(*given: object) -> ChildRun:
        return run_child("benchmarks.evaluating", *given, folder=folder, on_gpu=False)

    ours = transcribed("ours", model, "demo", 16).result
    plain = transcribed("plain", model, prepared, 16, ours["max_new_tokens"]).result
    refuse_different(ours["transcripts"], plain["transcripts"])
    logger.info("%d transcripts of the demo's clips are the same", len(ours["transcripts"]))


def as_flac(n_clips: int, folder: Path) -> Path:
    """The first clips of each split of the demo without loss: decoders do not agree on Opus to the last bit."""
    (folder / "data").mkdir(parents=True)
    for path in (_DEMO / "dataset" / "it").glob("*.parquet"):
        table = pq.read_table(path).slice(0, n_clips)
        clips = []
        for clip in table["audio"].to_pylist():
            samples, rate = soundfile.read(io.BytesIO(clip["bytes"]))
            flac = io.BytesIO()
            soundfile.write(flac, samples, rate, format="FLAC")
            clips.append({"bytes": flac.getvalue(), "path": f"{Path(clip['path']).stem}.flac"})
        column = table.schema.get_field_index("audio")
        replaced = table.set_column(
            column, table.schema.field("audio"), pa.array(clips, table.schema.field("audio").type)
        )
        pq.write_table(replaced.replace_schema_metadata(table.schema.metadata), folder / "data" / path.name)
    return folder


def refuse_different(ours: Sequence[str], plain: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a transcript differs.
    """
    if different := [pair for pair in zip(ours, plain, strict=True) if pair[0] != pair[1]]:
        raise ValueError(f"{len(different)} of {len(ours)} transcripts differ, such as {different[0]}")


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="asr-evaluate-") as folder:
        check_transcripts(Path(folder), options.checked)
        device, figures = measure(Path(folder), options)
    show(figures)
    ratios = {figure.key: float(f"{figure.ratio:.4g}") for figure in figures}
    print(json.dumps({**ratios, "device": device, **asdict(options)}))


def parse() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description="against the stock trainer")
    parser.add_argument("--model_shape", choices=SHAPES, default=FULL.model_shape)
    parser.add_argument("--clips", type=int, default=FULL.clips, help="that are evaluated")
    parser.add_argument("--batch_size", type=int, default=FULL.batch_size, help="clips transcribed at once")
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="of a clip")
    parser.add_argument("--repetitions", type=int, default=FULL.repetitions)
    parser.add_argument("--checked", type=int, default=FULL.checked, help="clips of the demo, on the processor")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: shows that it runs, not how fast")
    given = vars(parser.parse_args())
    return QUICK if given.pop("quick") else Options(**given)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(parse())
