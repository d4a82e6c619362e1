"""What a training run found, as `results.json` beside the model and as a table on the terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import write_atomically
from asr_fine_tuner.locations import is_on_hub, public_name
from asr_fine_tuner.metrics import METRICS, Scores, leading_metric
from asr_fine_tuner.throughput import Throughput

if TYPE_CHECKING:
    from rich.table import Table

METRIC_NAMES: Mapping[str, str] = {
    "wer": "WER, normalised",
    "wer_orthographic": "WER, as written",
    "wer_whisper": "WER, Whisper's normalisation",
    "cer": "CER, normalised",
    "cer_orthographic": "CER, as written",
}
"""The names of `METRICS` for people."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model or a dataset that the run started from, fit to be published.

    id: its id on the Hub; of a local folder or file the last part of its path only.
    on_hub: whether `id` is one that others can load.
    revision: commit on the Hub, or the hash of local contents.
    config: subset of a dataset.
    """

    id: str
    on_hub: bool
    revision: str | None = None
    config: str | None = None

    @classmethod
    def of(cls, given: str, *, revision: str | None = None, config: str | None = None) -> Source:
        """What to publish about `given`, a Hub id or a path as it was passed to a job."""
        return cls(public_name(given), is_on_hub(given), revision, config)


@dataclass(frozen=True, slots=True)
class SplitData:
    """clips: that were kept. hours: of audio in them. source_split: of the dataset, that they were taken from."""

    clips: int
    hours: float
    source_split: str


@dataclass(frozen=True, slots=True)
class SplitScores:
    """base: of the untouched model; None where it was not evaluated. tuned: of the best checkpoint."""

    base: Scores | None
    tuned: Scores


@dataclass(frozen=True, slots=True)
class TrainingResults:
    """One finished training run.

    model_name: the tuned model's own name.
    model, dataset: what it was made of.
    artifact_sha256: hash of the artifact's manifest, and through it of every feature and label.
    language_code: of the dataset's speech, as it was given to the jobs (`it`, `it_it`).
    language: Whisper's name of the language that the model is told (`italian`); for a language that Whisper lacks
        the name of the one that stands for it.
    language_token: Whisper's code of `language` (`it`).
    multilingual: whether the model has language and task tokens.
    steps: optimizer steps done. best_step: the one whose weights were kept.
    epochs: passes over the training clips. train_runtime: seconds, without evaluation and saving.
    throughput: of training, and where all the time went.
    data: train, validation, test. splits: validation, clips of which selected the best step, and test,
    which selected nothing.
    rejected: reason -> clips that preprocessing left out.
    hyperparameters, versions: name -> value, as shown in the model card.
    """

    model_name: str
    model: Source
    dataset: Source
    artifact_sha256: str
    language_code: str
    language: str
    language_token: str
    multilingual: bool
    task: str
    steps: int
    best_step: int
    epochs: float
    train_runtime: float
    throughput: Throughput
    data: dict[str, SplitData]
    splits: dict[str, SplitScores]
    rejected: dict[str, int]
    hyperparameters: dict[str, str | int | float | bool | None]
    versions: dict[str, str]

    @property
    def text_language(self) -> str:
        """Whisper's code of the language that is written, which text is normalised by."""
        return "en" if self.task == "translate" else self.language_token

    @property
    def leading_metric(self) -> str:
        """The metric that selected the best step: `wer` or `cer`."""
        return leading_metric(self.text_language)

    @property
    def warning(self) -> str | None:
        """What to say when the base model does better on the test split, by the leading metric."""
        scores, metric = self.splits.get("test"), self.leading_metric
        base = scores.base.rates().get(metric) if scores and scores.base else None
        tuned = scores.tuned.rates().get(metric) if scores else None
        if base is None or tuned is None or tuned <= base:
            return None
        return (
            f"the tuned model does worse than the base model on the test split: {METRIC_NAMES[metric]} "
            f"{percent(tuned)} against {percent(base)}"
        )

    def as_dict(self) -> dict[str, Any]:
        splits = {
            split: {"base": scores.base and scores.base.as_dict(), "tuned": scores.tuned.as_dict()}
            for split, scores in self.splits.items()
        }
        return {
            **dataclasses.asdict(self),
            "leading_metric": self.leading_metric,
            "warning": self.warning,
            "splits": splits,
        }


def write_results(results: TrainingResults, path: Path) -> None:
    """Write `results.json`."""
    write_atomically(path, json.dumps(results.as_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def read_results(path: Path) -> TrainingResults:
    """
    Raises:
        PermanentError: there is no such file, or it is not one that `write_results` wrote.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(TrainingResults).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise PermanentError(
            given=f"{path}: {str(error).splitlines()[0]}",
            expected="results as the train job writes them at its end",
            action="run the train job again with the same output folder",
        ) from error


def percent(rate: float | None) -> str:
    """A rate as shown to people: `12.34 %`; a dash where nothing was measured."""
    return "–" if rate is None else f"{100 * rate:.2f} %"


def relative_change(base: float | None, tuned: float | None) -> str:
    """By how much of the base's rate the tuned one differs: `-62 %`; a dash where that says nothing."""
    return "–" if not base or tuned is None else f"{100 * (tuned - base) / base:+.0f} %"


def results_table(results: TrainingResults) -> Table:
    """Base against tuned, for a terminal: a row for each split and metric."""
    from rich.table import Table

    table = Table(title=f"{results.model_name}: error rates, lower is better")
    table.add_column("split")
    table.add_column("metric")
    for heading in (f"base ({results.model.id})", "tuned", "relative change"):
        table.add_column(heading, justify="right")
    for split, scores in results.splits.items():
        base = scores.base.rates() if scores.base else {}
        tuned = scores.tuned.rates()
        for metric in METRICS:
            table.add_row(
                f"{split} ({scores.tuned.clips:,} clips)" if metric == METRICS[0] else "",
                METRIC_NAMES[metric],
                percent(base.get(metric)),
                percent(tuned.get(metric)),
                relative_change(base.get(metric), tuned.get(metric)),
                style="bold" if metric == results.leading_metric else None,
                end_section=metric == METRICS[-1],
            )
    return table
