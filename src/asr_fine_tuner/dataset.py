"""From `dataset_name` and `language_code` to the shards of examples that a job reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .examples import Shard
    from .languages import Language


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard and what to do with it: split (`train`, `validation`, `test`) -> rows of the shard, increasing."""

    shard: Shard
    rows: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """What will be read, in reading order.

    revision: the commit on the Hub; for local data `sha256:` and a hash over the names and contents of the files read.
    n_examples: split -> examples that will be read.
    sources: split -> where they come from, for people (`dev`, `train (held out by speaker)`).
    warnings: what a person should know about the splits.
    """

    shards: tuple[ShardPlan, ...]
    revision: str
    n_examples: Mapping[str, int]
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset whose files, config, splits and columns are known; audio has not been fetched.

    name: as it was given (a Hub id or a path).
    config: name of the subset; `default` when the dataset has only one without a name.
    layout: `parquet`, `webdataset` or `table` (metadata beside audio files).
    splits: `train`, `validation`, `test` -> names of the source splits; empty when there are none.
    licence: as the dataset card has it; None when it has none.
    """

    name: str
    config: str
    layout: str
    splits: Mapping[str, tuple[str, ...]]
    licence: str | None

    def plan(self, *, max_train_samples: int | None, max_eval_samples: int | None, seed: int) -> DatasetPlan:
        """Read indexes (parquet footers, tar headers, tables) and choose shards and rows.

        Raises PermanentError for damaged indexes or empty splits, TransientError when the Hub cannot be reached.
        """
        raise NotImplementedError


def resolve_dataset(
    dataset_name: str,
    *,
    language_code: str,
    language: Language,
    revision: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
) -> Dataset:
    """Find the files, config, splits and columns of a dataset on the Hub or of a local folder or .zip.

    Raises PermanentError where nothing fits (it lists what there is), TransientError when the Hub cannot be reached.
    """
    raise NotImplementedError
