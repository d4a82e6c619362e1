"""What `quality` fine-tunes, and on what: made once, and kept under a folder as long as its making does not change."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import WhisperFeatureExtractor

from benchmarks.children import run_child
from benchmarks.phrase_recipe import WINDOW_SECONDS, Clips, Recipe
from benchmarks.prepared_clips import preprocess

# What makes them.
_PROGRAM = ("phrases.py", "phrase_model.py", "phrase_recipe.py", "sentences.py")
# As in demo/run.py.
_SMALL: Mapping[str, object] = {"learning_rate": 1.5e-3, "eval_batch_size": 48}
# For whisper-base, see howto/train_container.md.
_WHISPER: Mapping[str, object] = {"learning_rate": 2e-5, "train_batch_size": 8}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Learner:
    """A base model, and the clips that it learns from.

    base: its folder. speech: the module that makes its datasets. given: parameters of the train job.
    """

    base: Path
    window_seconds: int
    speech: str
    given: Mapping[str, object]

    def dataset(self, clips: Clips, folder: Path) -> Path:
        """Made under `folder`, and prepared by our preprocess job as the artifact `artifact_name`."""
        made = _kept(self.speech, folder, json.dumps(asdict(clips)), name=f"dataset-{self.speech.partition('.')[2]}")
        preprocess(made, self.base, folder, self.artifact_name(made))
        return made

    def artifact_name(self, dataset: Path) -> str:
        return f"{self.base.name}-{dataset.name}"


def small_whisper(recipe: Recipe, folder: Path) -> Learner:
    """That of `phrase_model`, which learns the phrases of `phrases`."""
    base = _kept("benchmarks.phrase_model", folder, json.dumps(asdict(recipe)), name="base")
    return Learner(base, WINDOW_SECONDS, "benchmarks.phrases", _SMALL)


def given_whisper(model: str) -> Learner:
    """A Whisper on the Hub or in a folder, which learns the sentences of `sentences`."""
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    window_seconds = int(WhisperFeatureExtractor.from_pretrained(folder).chunk_length)
    return Learner(folder.resolve(), window_seconds, "benchmarks.sentences", _WHISPER)


def _kept(module: str, folder: Path, *given: object, name: str) -> Path:
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
