"""The Italian dataset: sentences of a public office in synthetic voices, as a dataset repository in parquet."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Value
from italian import italian_sentence
from speech import SAMPLING_RATE, Speaker, encode_opus, speak
from voices import TEST, TRAIN, VALIDATION

CONFIG = "it"
SHORTEST, LONGEST = 1.5, 3.9  # seconds; the base model's window is 4
FEATURES = Features(
    {
        "id": Value("string"),
        "audio": Audio(sampling_rate=SAMPLING_RATE),
        "sentence": Value("string"),
        "speaker_id": Value("string"),
    }
)
README = """\
---
language:
- it
license: apache-2.0
task_categories:
- automatic-speech-recognition
pretty_name: A public office, spoken by synthetic voices
configs:
- config_name: it
  data_files:
  - split: train
    path: it/train-*
  - split: validation
    path: it/validation-*
  - split: test
    path: it/test-*
---

# A public office, spoken by synthetic voices

{clips} Italian clips ({minutes:.0f} minutes) of what may be heard at a public office: opening hours, counters,
appointments, documents, numbers and dates. The sentences come from a small grammar and are read by
[espeak-ng](https://github.com/espeak-ng/espeak-ng). It is made to show a fine-tuning in minutes, not to measure how
well a model understands people.

| split | clips | minutes | speakers |
|---|---:|---:|---:|
{rows}

No speaker and no sentence is in two splits. A speaker is an espeak-ng variant with its own pitch and speed; each clip
departs from them a little.

| column | |
|---|---|
| `id` | the clip's name |
| `audio` | Ogg/Opus, 16 kHz, mono, 1.5 to 3.9 seconds |
| `sentence` | what is said, with casing and punctuation; numbers are words |
| `speaker_id` | who says it |

Made by `demo/make_assets.py` of ASR Fine-Tuner. Apache-2.0, like the program: the sentences are its own.
"""


def record_split(
    name: str, speakers: tuple[Speaker, ...], count: int, taken: set[str], seed: int
) -> tuple[pa.Table, float]:
    """`count` clips in which the speakers take turns, and how long they are together in seconds.

    Sentences in `taken` are not said again, and those said here are added to it.
    """
    rng = random.Random(f"{name} {seed}")  # noqa: S311
    rows: list[dict[str, object]] = []
    total = 0.0
    while len(rows) < count:
        sentence = italian_sentence(rng)
        speaker = speakers[len(rows) % len(speakers)]
        samples = speak(sentence, "it", speaker, rng)
        seconds = len(samples) / SAMPLING_RATE
        if sentence in taken or not SHORTEST <= seconds <= LONGEST:
            continue
        taken.add(sentence)
        total += seconds
        clip = f"{CONFIG}-{name}-{len(rows):04d}"
        audio = {"bytes": encode_opus(samples), "path": f"{clip}.opus"}
        rows.append({"id": clip, "audio": audio, "sentence": sentence, "speaker_id": speaker.name})
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), total


def make_dataset(
    folder: Path, train_clips: int, validation_clips: int, test_clips: int, reserved: set[str], seed: int
) -> None:
    """Writes README.md and one parquet file for each split, in the Hub's layout; nobody says a sentence in `reserved`.

    The schema says what `datasets` says of an `Audio` column, so `load_dataset` knows it as one.
    """
    (folder / CONFIG).mkdir(parents=True, exist_ok=True)
    taken = set(reserved)
    summary: list[str] = []
    clips, seconds = 0, 0.0
    for name, speakers, count in (
        ("test", TEST, test_clips),
        ("validation", VALIDATION, validation_clips),
        ("train", TRAIN, train_clips),
    ):
        table, duration = record_split(name, speakers, count, taken, seed)
        pq.write_table(table, folder / CONFIG / f"{name}-00000-of-00001.parquet")
        summary.insert(0, f"| {name} | {count} | {duration / 60:.1f} | {len(speakers)} |")
        clips, seconds = clips + count, seconds + duration
    readme = README.format(clips=clips, minutes=seconds / 60, rows="\n".join(summary))
    (folder / "README.md").write_text(readme, encoding="utf-8")
