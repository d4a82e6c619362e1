"""The demo's sentences, as many as are asked for: what `quality` fine-tunes a Whisper with weights of its own on.

As a child process: `python -m benchmarks.sentences FOLDER CLIPS` writes an Italian dataset, in the Hub's layout, where
CLIPS is a `Clips` as JSON. It needs espeak-ng.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from make_assets import SEED
from speech_dataset import make_dataset

from benchmarks.phrase_recipe import Clips


def main(folder: Path, clips: Clips) -> None:
    make_dataset(folder, clips.train, clips.validation, clips.test, set(), SEED)
    print("{}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Clips(**json.loads(sys.argv[2])))
