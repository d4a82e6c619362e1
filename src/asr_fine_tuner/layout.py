"""How the files of a dataset make configs and splits: by its card, else by the names of folders and files."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from asr_fine_tuner.clips import AUDIO_EXTENSIONS, is_audio
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import Subtree
from asr_fine_tuner.languages import names_a_language
from asr_fine_tuner.splits import DataFile, is_split_name
from asr_fine_tuner.tables import (
    header,
    is_audiofolder_metadata,
    is_common_voice,
    is_table,
    names_audio,
    split_folders,
    unfit_columns,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from asr_fine_tuner.filetree import FileTree

Kind = Literal["parquet", "webdataset", "table"]
Splits = dict[str, list[DataFile]]

DEFAULT_CONFIG = "default"

# What `datasets` and the Hub's conversion call the files of a split: train-00000-of-00014.parquet, 0000.parquet.
_SHARD_OF_SPLIT = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")
# A folder with more of them has one for each clip, and each would have to be fetched to see its columns.
_MOST_TABLES = 64
_NUMBER = re.compile(r"[-._ ]*\d+$")


@dataclass(frozen=True, slots=True)
class Layout:
    """configs: config -> split -> its files, in the order of names."""

    kind: Kind
    configs: Mapping[str, Mapping[str, Sequence[DataFile]]]


@dataclass(frozen=True, slots=True)
class Card:
    """What README.md says: config -> split -> glob patterns, and the licence; empty and None where it does not say."""

    configs: Mapping[str, Mapping[str, Sequence[str]]]
    licence: str | None


def dataset_root(tree: FileTree) -> FileTree:
    """The tree from the dataset's own folder on, where it is wrapped in others: an archive that a file manager makes
    of a folder holds just that folder.

    A folder that says something stays: a split (`train`), the language of a Common Voice release or of the Hub's files.
    """
    while len(folders := {name.partition("/")[0] if "/" in name else "" for name in tree.listing()}) == 1:
        (folder,) = folders
        inside = Subtree(tree, folder)
        if not folder or is_split_name(folder) or (names_a_language(folder) and not _is_plain(inside)):
            break
        tree = inside
    return tree


def read_card(tree: FileTree) -> Card:
    """The dataset's card. Raises PermanentError where its metadata cannot be read."""
    import yaml
    from huggingface_hub import RepoCard

    file = tree.listing().get("README.md")
    if file is None:
        return Card({}, None)
    with tree.open_whole(file) as opened:
        text = opened.read().decode("utf-8", errors="replace")
    try:
        data = RepoCard(text, ignore_metadata_errors=True).data
        configs = _card_configs(data.get("configs") or [])
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise PermanentError(
            given=f"the card (README.md) of {tree.label} has metadata that cannot be read ({error})",
            expected="configs as https://huggingface.co/docs/hub/datasets-manual-configuration describes them",
            action="correct the YAML at the top of README.md",
        ) from error
    licence = data.get("license")
    return Card(configs, ", ".join(licence) if isinstance(licence, list) else licence)


def layout_by_card(tree: FileTree, card: Card) -> Layout | None:
    """The layout that the card describes; None when it describes none, or files of a kind that cannot be read."""
    listing = tree.listing()
    configs: dict[str, Splits] = {
        config: {
            split: [DataFile(listing[name]) for name in _glob(patterns, listing)] for split, patterns in splits.items()
        }
        for config, splits in card.configs.items()
    }
    kind = _kind(data.file.name for splits in configs.values() for files in splits.values() for data in files)
    return Layout(kind, configs) if kind is not None else None


def layout_by_names(
    tree: FileTree, language_code: str, *, audio_column: str | None = None, text_column: str | None = None
) -> Layout | None:
    """The layout that folders and files suggest; None where there is nothing that can be read as examples.

    Folders are configs when they name languages, or the one that was asked for; else they are all one dataset.
    """
    listing = tree.listing()
    kind = _kind(listing)
    if kind is None:
        return None
    if kind == "table":
        tables = [name for name in listing if is_table(name)]
        placed = _place_tables(tree, tables, audio_column=audio_column, text_column=text_column)
    else:
        placed = [(*_place(name), DataFile(file)) for name, file in listing.items() if _kind([name]) == kind]
    configs = _group(placed)
    # The folder of tables is called as its owner likes: a lone name that happens to be a language's chooses nothing.
    chosen = language_code in configs or any(map(names_a_language, configs))
    if not chosen or (len(configs) == 1 and _is_plain(tree)):
        configs = _group(("", split, data) for _, split, data in placed)
    return Layout(kind, configs) if configs else None


def converted_layout(tree: FileTree) -> Layout | None:
    """The layout of the Hub's parquet conversion: always `config/split/0000.parquet`."""
    configs: dict[str, Splits] = {}
    for name, file in tree.listing().items():
        if name.endswith(".parquet") and name.count("/") == 2:
            config, split, _ = name.split("/")
            # The Hub converts the first 5 GB of larger splits and says so in the folder's name.
            split = split.removeprefix("partial-")
            configs.setdefault(config, {}).setdefault(split, []).append(DataFile(file))
    return Layout("parquet", configs) if configs else None


def nothing_to_read(
    tree: FileTree, dataset_name: str, *, audio_column: str | None, text_column: str | None
) -> PermanentError:
    """What to tell of a dataset without a layout: which part of it is there and which is not."""
    given = f"{dataset_name}, in which nothing can be read as speech with transcripts"
    listing = tree.listing()
    tables = [name for name in listing if is_table(name)]
    n_audio = sum(map(is_audio, listing))
    if n_audio and tables:
        headers = {name: header(tree, listing[name]) for name in tables[:_MOST_TABLES]}
        if any(names_audio(columns, audio_column, text_column) for columns in headers.values()):
            return PermanentError(
                given=f"{given}: it has {len(tables)} tables, more than {_MOST_TABLES} in one folder",
                expected="one table for each split",
                action="join the tables into one",
            )
        return unfit_columns(given, headers, audio_column, text_column)
    if n_audio:
        return PermanentError(
            given=f"{given}: it has {n_audio} audio files, and no table with their transcripts",
            expected="a table that names each audio file and says what is spoken in it",
            action="make a metadata.csv in that folder with the columns file_name and transcription, a row for a file",
        )
    return PermanentError(
        given=f"{given}: it has no audio files" + (f" beside {tables[0]}" if tables else ""),
        expected="parquet files with audio, WebDataset archives, or audio files and a table that names them "
        "(metadata.csv with file_name; Common Voice's .tsv and clips; audio/ and a CSV, TSV or JSON table)",
        action=f"put the audio ({', '.join(AUDIO_EXTENSIONS[:5])}, ...) into the folder of the table"
        if tables
        else "correct the path, or convert the dataset to one of these",
    )


def _card_configs(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    from datasets.data_files import sanitize_patterns

    configs = {}
    for entry in entries:
        if "data_files" in entry:
            folder = str(entry.get("data_dir") or "")
            patterns = sanitize_patterns(entry["data_files"])
            configs[str(entry["config_name"])] = {
                split: [posixpath.normpath(posixpath.join(folder, pattern)) for pattern in globs]
                for split, globs in patterns.items()
            }
        elif entry.get("data_dir"):
            configs[str(entry["config_name"])] = {"train": [posixpath.join(str(entry["data_dir"]), "**")]}
    return configs


def _glob(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    names = list(names)
    matched: dict[str, None] = {}
    for pattern in patterns:
        expression = re.compile(glob_translate(pattern))
        matched |= dict.fromkeys(name for name in names if expression.match(name) or name.startswith(f"{pattern}/"))
    return list(matched)


def _kind(names: Iterable[str]) -> Kind | None:
    """What the data of these files is in; tables are data only where there is audio for them to name."""
    names = list(names)
    if any(name.endswith(".parquet") and not is_audiofolder_metadata(name) for name in names):
        return "parquet"
    if any(name.endswith(".tar") for name in names):
        return "webdataset"
    return "table" if any(map(is_audio, names)) and any(map(is_table, names)) else None


def _is_plain(tree: FileTree) -> bool:
    """Whether the data is audio and tables of somebody's own, not a release that has a folder for each language."""
    listing = tree.listing()
    return _kind(listing) == "table" and not any(is_common_voice(tree, name) for name in listing)


def _place(name: str) -> tuple[str, str]:
    """(folder of the config, split) of a parquet or tar file or a table, by its path."""
    *folders, file = [part for part in name.split("/") if part != "data"]
    stem = posixpath.splitext(file)[0]
    sharded = _SHARD_OF_SPLIT.match(stem)
    split_folder = next((folder for folder in reversed(folders) if is_split_name(folder)), None)
    if sharded and (split_folder is None or is_split_name(sharded["split"])):
        split = sharded["split"]
    elif split_folder is not None:
        split = split_folder
    elif is_split_name(stem):
        split = _NUMBER.sub("", stem)
    elif stem.isdigit() and len(folders) > 1:
        split = split_folder = folders[-1]
    else:
        split = "train"
    return "/".join(folder for folder in folders if folder != split_folder), split


def _place_tables(
    tree: FileTree, names: Sequence[str], *, audio_column: str | None, text_column: str | None
) -> list[tuple[str, str, DataFile]]:
    placed: list[tuple[str, str, DataFile]] = []
    listing = tree.listing()
    beside = Counter(posixpath.dirname(name) for name in names)
    for name in names:
        file = listing[name]
        if beside[posixpath.dirname(name)] > _MOST_TABLES:
            continue
        if not names_audio(header(tree, file), audio_column, text_column):
            continue
        config, split = _place(name)
        folder, base = posixpath.split(name)
        if is_audiofolder_metadata(name) and split == "train" and not is_split_name(posixpath.basename(folder)):
            within = split_folders(tree, file)
            placed += [(config, split, DataFile(file, split)) for split in within] or [(config, split, DataFile(file))]
        elif is_common_voice(tree, name):
            placed.append((config, posixpath.splitext(base)[0], DataFile(file)))
        else:
            placed.append((config, split, DataFile(file)))
    return placed


def _group(placed: Iterable[tuple[str, str, DataFile]]) -> dict[str, Splits]:
    """Config -> split -> files. A config is called by its last folder where that tells it from the others."""
    by_folder: dict[str, Splits] = {}
    for folder, split, data in placed:
        by_folder.setdefault(folder, {}).setdefault(split, []).append(data)
    last = [posixpath.basename(folder) for folder in by_folder]
    return {
        (posixpath.basename(folder) if last.count(posixpath.basename(folder)) == 1 else folder)
        or DEFAULT_CONFIG: splits
        for folder, splits in by_folder.items()
    }
