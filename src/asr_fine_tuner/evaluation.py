"""How a model did on a split: scores, loss and transcripts, as a file of the run folder, and where generation ends."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_fine_tuner.files import canonical_json, write_atomically
from asr_fine_tuner.metrics import Scores

# Generation ends at this multiple of the longest reference of the split: one clip on which the model loops would
# otherwise hold its whole batch until max_sequence_length.
GENERATED_PER_REFERENCE_TOKEN = 1.5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model did on a split.

    loss: mean cross entropy of a label, in nats.
    predictions: the transcript of each clip, in the order of the split.
    max_new_tokens: where generation was cut.
    """

    scores: Scores
    loss: float
    predictions: list[str]
    max_new_tokens: int
    seconds: float

    def metrics(self, prefix: str) -> dict[str, float]:
        """`eval_loss`, `eval_wer`, ... as the trainer and its callbacks name them."""
        return {f"{prefix}_{name}": value for name, value in {"loss": self.loss, **self.scores.rates()}.items()}

    def write(self, path: Path) -> None:
        record = {**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, canonical_json({**record, "scores": self.scores.as_dict()}))

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**record, "scores": Scores.from_dict(record["scores"])})


def generation_limit(longest_reference: int, max_sequence_length: int, max_target_positions: int, prompt: int) -> int:
    """Most new tokens for a clip, all lengths in tokens.

    longest_reference: of the split. prompt: tokens before the first generated one; Whisper refuses more than
    `max_target_positions` together.
    """
    useful = math.ceil(longest_reference * GENERATED_PER_REFERENCE_TOKEN)
    return min(max_sequence_length, useful, max_target_positions - prompt)
