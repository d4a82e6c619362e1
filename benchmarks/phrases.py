"""Phrases of a second or so, two or three of which fill the demo model's window: what `quality` trains on.

The demo's sentences fill its window of four seconds one by one. These are said by the same voices at the same public
office, only shorter: as many of them to a window as there are sentences in Whisper's thirty seconds.

As a child process: `python -m benchmarks.phrases FOLDER CLIPS` writes an Italian dataset, in the Hub's layout, where
CLIPS is a `Clips` as JSON. It needs espeak-ng.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from italian import (
    DAY_PARTS,
    DAYS,
    DOCUMENTS,
    MONTHS,
    OFFICES,
    ORDINALS,
    SERVICES,
    UNITS,
    capitalised,
    italian_number,
)
from spanish import FUNCTION_WORDS, WORDS, invented_word
from speech import SAMPLING_RATE, Speaker, encode_opus, speak
from speech_dataset import FEATURES
from voices import TEST, TRAIN, VALIDATION

from benchmarks.phrase_recipe import WINDOW_SECONDS, Clips

SHORTEST, LONGEST = 0.5, 1.8  # seconds


def italian_phrase(rng: random.Random) -> str:
    document, service, office = rng.choice(DOCUMENTS), rng.choice(SERVICES), rng.choice(OFFICES).name
    day, part, month = rng.choice(DAYS), rng.choice(DAY_PARTS), rng.choice(MONTHS)
    number, other_number = (italian_number(rng.randint(2, 98)) for _ in range(2))
    month_day, hour = italian_number(rng.randint(2, 30)), italian_number(rng.randint(7, 20))
    digits = " ".join(rng.choices(UNITS[:10], k=rng.randint(2, 4)))
    phrase = rng.choice(
        (
            f"{day} {part} alle {hour}.",
            f"alle {hour} e {rng.choice(('mezza', 'un quarto', 'trenta'))}.",
            f"apre alle {hour}.",
            f"il {month_day} {month}.",
            f"entro il {month_day} {month}.",
            f"{day} {month_day} {month}.",
            f"prima di {day} {part}.",
            f"chiuso di {day}.",
            f"numero {number}.",
            f"numero {number}, {day}.",
            f"{number} e {other_number}.",
            f"costa {number} euro.",
            f"{digits}.",
            f"allo sportello {italian_number(rng.randint(2, 9))}.",
            f"al {rng.choice(ORDINALS)} piano.",
            f"{office}.",
            f"dov'è {office}?",
            f"serve {document}.",
            f"manca {document}.",
            f"porti {document}.",
            f"{document}, grazie.",
            f"quanto costa {document}?",
            f"vorrei {service}.",
            f"posso {service}?",
            f"per {service}.",
        )
    )
    return capitalised(phrase)


def spanish_phrase(rng: random.Random) -> str:
    """A few words in no order that could be guessed, as in `demo/spanish.py`."""
    words: list[str] = []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.35:
            words.append(rng.choice(FUNCTION_WORDS))
        words.append(invented_word(rng) if rng.random() < 0.5 else rng.choice(WORDS))
    phrase = capitalised(" ".join(words))
    return f"¿{phrase}?" if rng.random() < 0.12 else f"{phrase}."


def record_split(name: str, speakers: tuple[Speaker, ...], count: int, *, anywhere: bool = False) -> pa.Table:
    """`count` clips in which the speakers take turns. anywhere: after silence, so that they end anywhere in a window.

    What is said, and how, is the same with silence and without.
    """
    rng = random.Random(name)  # noqa: S311
    place = random.Random(f"{name}, anywhere")  # noqa: S311
    rows: list[dict[str, object]] = []
    while len(rows) < count:
        speaker = speakers[len(rows) % len(speakers)]
        phrase = italian_phrase(rng)
        samples = speak(phrase, "it", speaker, rng)
        if SHORTEST <= len(samples) / SAMPLING_RATE <= LONGEST:
            clip = f"{name}-{len(rows):04d}"
            if anywhere:
                silence = place.randint(0, WINDOW_SECONDS * SAMPLING_RATE - len(samples))
                samples = np.concatenate([np.zeros(silence, np.float32), samples])
            audio = {"bytes": encode_opus(samples), "path": f"{clip}.opus"}
            rows.append({"id": clip, "audio": audio, "sentence": phrase, "speaker_id": speaker.name})
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)


def main(folder: Path, clips: Clips) -> None:
    (folder / "it").mkdir(parents=True)
    splits = (("train", TRAIN, clips.train), ("validation", VALIDATION, clips.validation), ("test", TEST, clips.test))
    for name, speakers, count in splits:
        table = record_split(name, speakers, count, anywhere=clips.anywhere and name == "train")
        pq.write_table(table, folder / "it" / f"{name}-00000-of-00001.parquet")
    print("{}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Clips(**json.loads(sys.argv[2])))
