"""From `dataset_name` and `language_code` to the shards of examples that a job reads."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from asr_fine_tuner import hub
from asr_fine_tuner.columns import SPEAKER_COLUMNS
from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.filetree import LocalFolder, ZipArchive
from asr_fine_tuner.holdout import hold_out
from asr_fine_tuner.hub_errors import RepositoryNotFound
from asr_fine_tuner.languages import match_config
from asr_fine_tuner.layout import (
    Layout,
    converted_layout,
    dataset_root,
    layout_by_card,
    layout_by_names,
    nothing_to_read,
    read_card,
)
from asr_fine_tuner.parameters import REPO_ID
from asr_fine_tuner.parquet import find_parquet_columns, index_parquet
from asr_fine_tuner.splits import choose_splits
from asr_fine_tuner.tables import find_table_columns, index_tables
from asr_fine_tuner.webdataset import find_webdataset_columns, index_webdataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from asr_fine_tuner.columns import Columns
    from asr_fine_tuner.examples import Example, Shard
    from asr_fine_tuner.filetree import FileTree
    from asr_fine_tuner.layout import Kind
    from asr_fine_tuner.splits import DataFile

# Shards are the unit of parallel work and of what an interrupted job keeps: enough of them for many workers, none so
# small that its overhead shows, none so large that much is lost. The number of workers does not enter.
_SHARDS_WANTED = 64
_SHARD_EXAMPLES = (64, 1024)  # fewest and most

_READS_AT_ONCE = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard and what to do with it: split (`train`, `validation`, `test`) -> rows of the shard, increasing."""

    shard: Shard
    rows: Mapping[str, Sequence[int]]

    @property
    def n_examples(self) -> int:
        return sum(map(len, self.rows.values()))

    def examples(self) -> Iterator[tuple[str, Example]]:
        """(split, example) of every row, in the order of rows, in one pass over the shard."""
        split_of_row = sorted((row, split) for split, rows in self.rows.items() for row in rows)
        examples = self.shard.examples([row for row, _ in split_of_row])
        for (_, split), example in zip(split_of_row, examples, strict=True):
            yield split, example


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """What will be read, in reading order.

    revision: the commit on the Hub; for local data `sha256:` and a hash over the names and contents of the files read.
    n_examples: split -> examples that will be read.
    sources: split -> where they come from, for people (`dev`, `train, held out by speaker`).
    columns: what is read of each row.
    warnings: what a person should know about the splits.
    """

    shards: tuple[ShardPlan, ...]
    revision: str
    n_examples: Mapping[str, int]
    sources: Mapping[str, str]
    columns: Columns
    warnings: tuple[str, ...]


class _Index(Protocol):
    """The examples of one split that will be read, counted but not fetched."""

    @property
    def n_examples(self) -> int: ...

    def shards(self, size: int) -> Sequence[Shard]: ...

    def names(self) -> set[str]: ...


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset whose files, config, splits and columns are known; audio has not been fetched.

    name: as it was given (a Hub id or a path).
    config: name of the subset; `default` when the dataset has only one without a name.
    kind: `parquet`, `webdataset`, or `table` for audio files that a table names.
    splits: `train`, `validation`, `test` -> names of the source splits; empty when there are none.
    licence: as the dataset card has it; None when it has none.
    """

    name: str
    config: str
    kind: Kind
    splits: Mapping[str, tuple[str, ...]]
    columns: Columns
    licence: str | None
    tree: FileTree
    files: Mapping[str, Sequence[DataFile]]

    def plan(self, *, max_train_samples: int | None, max_eval_samples: int | None, seed: int) -> DatasetPlan:
        """Read indexes (parquet footers, tar headers, tables) and choose shards and rows.

        The first examples of each split are taken, in the order of its files, up to the caps. A split that the dataset
        does not have is held out of those of train.
        Raises PermanentError for damaged indexes or empty splits, TransientError when the Hub cannot be reached.
        """
        indexes = {
            split: self._index(split, max_train_samples if split == "train" else max_eval_samples)
            for split, sources in self.splits.items()
            if sources
        }
        for split, index in indexes.items():
            if not index.n_examples:
                raise PermanentError(
                    given=f"the split {'+'.join(self.splits[split])} of {self.name} ({self.config}), which is empty",
                    expected=f"examples for {split}",
                    action=f"name another split as --{split}_split",
                )
        fewest, most = _SHARD_EXAMPLES
        total = sum(index.n_examples for index in indexes.values())
        size = min(max(-(-total // _SHARDS_WANTED), fewest), most)
        shards = {split: index.shards(size) for split, index in indexes.items()}
        missing = [split for split in self.splits if split not in indexes]
        sources = {split: "+".join(names) for split, names in self.splits.items() if names}
        warnings: tuple[str, ...] = ()
        if missing:
            capped = indexes["train"].n_examples == max_train_samples
            plans, how, warnings = self._hold_out(shards["train"], missing, max_eval_samples, seed, capped=capped)
            sources |= dict.fromkeys(missing, f"{sources['train']}, held out by {how}")
        else:
            plans = _whole(shards["train"], "train")
        for split in indexes:
            if split != "train":
                plans += _whole(shards[split], split)
        return DatasetPlan(
            shards=tuple(plans),
            revision=self.tree.revision(set().union(*(index.names() for index in indexes.values()))),
            n_examples={split: sum(len(plan.rows.get(split, ())) for plan in plans) for split in self.splits},
            sources=sources,
            columns=self.columns,
            warnings=warnings,
        )

    def _index(self, split: str, limit: int | None) -> _Index:
        data = [data for source in self.splits[split] for data in self.files[source]]
        files = [item.file for item in data]
        if self.kind == "parquet":
            return index_parquet(self.tree, files, self.columns, split=split, limit=limit)
        if self.kind == "webdataset":
            return index_webdataset(self.tree, files, self.columns, limit=limit)
        return index_tables(self.tree, data, self.columns, limit=limit)

    def _hold_out(
        self, shards: Sequence[Shard], missing: Sequence[str], at_most: int | None, seed: int, *, capped: bool
    ) -> tuple[list[ShardPlan], str, tuple[str, ...]]:
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            speakers = [speaker for some in pool.map(lambda shard: shard.speakers(), shards) for speaker in some]
        held_out = hold_out(speakers, missing, at_most=at_most, seed=seed)
        if any(not rows for rows in held_out.rows.values()):
            raise PermanentError(
                given=f"{self.name} ({self.config}) has no split for {' or '.join(missing)}, "
                f"and train has {len(speakers)} clips" + (" of --max_train_samples" if capped else ""),
                expected=f"at least {1 + len(missing)} clips, so that train keeps one when some are held out",
                action=("use a larger --max_train_samples" if capped else "add clips")
                + ", or name splits as --validation_split and --test_split",
            )
        plans, start = [], 0
        split_of = {row: split for split, rows in held_out.rows.items() for row in rows}
        for shard in shards:
            rows: dict[str, list[int]] = {}
            for row in range(shard.n_examples):
                rows.setdefault(split_of[start + row], []).append(row)
            plans.append(ShardPlan(shard, {split: tuple(rows[split]) for split in sorted(rows)}))
            start += shard.n_examples
        unknown = speakers.count(None)
        unsaid = f"the dataset does not say who speaks in {unknown} of {len(speakers)} clips"
        if self.columns.speaker is None:
            unsaid += f" (it has no column {' or '.join(SPEAKER_COLUMNS)})"
        if not held_out.by_speaker:
            warning = (
                f"{unsaid if unknown else 'too few speakers to keep apart'}, so {' and '.join(missing)} were held out "
                "of train by clip: a speaker may be in both, and scores will be better than for new speakers"
            )
            return plans, "clip", (warning,)
        if unknown:
            warning = (
                f"{unsaid}, which stay in train: a speaker of {' or '.join(missing)} may be in them, and scores would "
                "then be better than for new speakers"
            )
            return plans, "speaker", (warning,)
        return plans, "speaker", ()


def resolve_dataset(
    dataset_name: str,
    *,
    language_code: str,
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
    tree, layout, licence = _find(
        dataset_name, language_code, revision, audio_column=audio_column, text_column=text_column
    )
    config = match_config(list(layout.configs), language_code)
    files = {split: found for split, found in layout.configs[config].items() if found}
    if not files:
        raise PermanentError(
            given=f"the config {config} of {dataset_name}, whose card names files that do not exist",
            expected="files that match the patterns of the card",
            action="check the revision, or the configs in the dataset's README.md",
        )
    splits = choose_splits(list(files), {"train": train_split, "validation": validation_split, "test": test_split})
    first = files[splits["train"][0]][0]
    find_columns = {"parquet": find_parquet_columns, "webdataset": find_webdataset_columns, "table": find_table_columns}
    columns = find_columns[layout.kind](tree, first.file, audio_column=audio_column, text_column=text_column)
    return Dataset(dataset_name, config, layout.kind, splits, columns, licence, tree, files)


def _find(
    dataset_name: str, language_code: str, revision: str | None, *, audio_column: str | None, text_column: str | None
) -> tuple[FileTree, Layout, str | None]:
    path = Path(dataset_name).expanduser()
    tree: FileTree
    if path.is_dir():
        tree = dataset_root(LocalFolder(path.absolute()))
    elif path.is_file() and path.suffix.lower() == ".zip":
        tree = dataset_root(ZipArchive(path.absolute()))
    elif path.exists() or not REPO_ID.fullmatch(dataset_name):
        raise PermanentError(
            given=f"--dataset_name {dataset_name!r}, "
            + ("a file that is not a .zip archive" if path.exists() else "no folder here, and no name the Hub allows"),
            expected="a dataset on the Hub (google/fleurs), a folder, or a .zip archive",
            action="correct the path or the name",
        )
    else:
        tree = _open_on_hub(dataset_name, revision)
    card = read_card(tree)
    layout = layout_by_card(tree, card)
    if layout is None and isinstance(tree, hub.HubTree) and _is_script_only(tree):
        tree, layout = _converted(tree)
    if layout is None:
        layout = layout_by_names(tree, language_code, audio_column=audio_column, text_column=text_column)
    if layout is None and isinstance(tree, hub.HubTree):
        tree, layout = _converted(tree)
    if layout is None:
        raise nothing_to_read(tree, dataset_name, audio_column=audio_column, text_column=text_column)
    return tree, layout, card.licence


def _open_on_hub(dataset_name: str, revision: str | None) -> hub.HubTree:
    nothing_here = f"there is no folder {dataset_name!r} in {Path.cwd()}"
    if "/" not in dataset_name:
        logger.info("%s, so it is looked up on the Hub", nothing_here)
    try:
        return hub.open_dataset(dataset_name, revision)
    except RepositoryNotFound as error:
        raise PermanentError(
            given=f"{nothing_here}, and {error.given}",
            expected="a folder or a .zip archive, or a dataset on the Hub that may be read",
            action=error.action,
        ) from error
    except TransientError as error:
        raise TransientError(
            given=f"{nothing_here}, and {error.given}",
            expected=error.expected,
            action=f"{error.action}; for a folder, correct its path",
        ) from error


def _is_script_only(tree: hub.HubTree) -> bool:
    """Whether a repository's data is meant to be read by a Python script of its own, which is no longer run."""
    return f"{tree.repo_id.rpartition('/')[2]}.py" in tree.listing()


def _converted(tree: hub.HubTree) -> tuple[hub.HubTree, Layout | None]:
    converted = hub.open_converted_dataset(tree.repo_id)
    layout = converted_layout(converted) if converted is not None else None
    return (converted, layout) if converted is not None and layout is not None else (tree, None)


def _whole(shards: Sequence[Shard], split: str) -> list[ShardPlan]:
    return [ShardPlan(shard, {split: range(shard.n_examples)}) for shard in shards]
