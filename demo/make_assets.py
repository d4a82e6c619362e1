"""Makes what the demo needs and the repository carries: `dataset/`, `model/`, and the clip that the demo transcribes.

    python demo/make_assets.py                        # all, into this folder: about 30 minutes on one core
    python demo/make_assets.py --only dataset clip    # the Italian speech alone: half a minute
    python demo/make_assets.py --output elsewhere --base_steps 200    # a quick try; such a model has learnt little

espeak-ng must be installed for this script (`apt-get install espeak-ng`); the demo itself needs only the files. The
seed is fixed: sentences, voices and noise are the same each time, and the dataset the same to the byte wherever
espeak-ng 1.51 and the pinned libraries run. The weights of the model also depend on how a processor rounds: on another
one they come out alike, not equal.

`italian.py` and `spanish.py` hold the texts, `voices.py` and `speech.py` the voices; `speech_dataset.py` and
`base_model.py` make the assets.
"""

import argparse
import random
import sys
from pathlib import Path

SEED = 2026
TRAIN_CLIPS, VALIDATION_CLIPS, TEST_CLIPS = 560, 48, 96
CLIP_TEXT = "Il suo appuntamento è giovedì alle nove e mezza."
ASSETS = ("dataset", "clip", "model")


def make_clip(folder: Path) -> None:
    """Writes clip.flac, in a voice of the test split, and clip.txt, what it says: nothing that is in the dataset."""
    import soundfile
    from speech import SAMPLING_RATE, speak
    from voices import TEST

    folder.mkdir(parents=True, exist_ok=True)
    samples = speak(CLIP_TEXT, "it", TEST[1], random.Random(SEED))  # noqa: S311
    soundfile.write(folder / "clip.flac", samples, SAMPLING_RATE)
    (folder / "clip.txt").write_text(CLIP_TEXT + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Make the demo's dataset, base model and clip.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to (default: here)")
    parser.add_argument("--only", nargs="+", choices=ASSETS, default=ASSETS, help="which of them (default: all)")
    parser.add_argument("--base_clips", type=int, default=10_000, help="Spanish clips that the base model learns from")
    parser.add_argument("--base_steps", type=int, default=6_000, help="steps of 16 clips that it is trained for")
    parser.add_argument("--threads", type=int, default=1, help="threads that train it")
    options = parser.parse_args(arguments)

    if "dataset" in options.only:
        from speech_dataset import make_dataset

        make_dataset(options.output / "dataset", TRAIN_CLIPS, VALIDATION_CLIPS, TEST_CLIPS, {CLIP_TEXT}, SEED)
    if "clip" in options.only:
        make_clip(options.output)
    if "model" in options.only:
        from base_model import make_base_model

        make_base_model(options.output / "model", options.base_clips, options.base_steps, options.threads, SEED)


if __name__ == "__main__":
    main(sys.argv[1:])
