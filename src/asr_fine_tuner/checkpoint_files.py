"""The files of a Whisper checkpoint: which are read of a base model, and which are published of a tuned one."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.filetree import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

logger = logging.getLogger(__name__)

# Everything of a Whisper checkpoint but its weights. An allow-list, so that no pickle and no code is ever fetched.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
CARD_FILE = "README.md"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")

RESULTS_NAME = "results.json"
PREDICTIONS_NAME = "predictions.jsonl"
CURVES_NAME = "training_curves.png"
# Adapters by the names that peft gives them. Not beside the weights they are merged into: transformers would load them
# onto these once more.
ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# What is published of a tuned model, and nothing else; predictions.jsonl quotes transcripts, not for everyone to read.
PUBLISHED_FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "normalizer.json",
    f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}",
    f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}",
    RESULTS_NAME,
    CURVES_NAME,
    CARD_FILE,
)


class ModelFiles(NamedTuple):
    """A checkpoint on this machine.

    folder: holds the files of the allow-list.
    revision: the commit; for a local folder `sha256:` and a hash over its configuration and tokenizer, which is what
        features and labels depend on.
    licence: as its card has it (`apache-2.0`); None when it has none.
    """

    folder: Path
    revision: str
    licence: str | None


def refuse_without_weights(model_id: str, names: AbstractSet[str]) -> None:
    """Raises PermanentError where none of a checkpoint's `names` holds weights as safetensors."""
    if {"model.safetensors", "model.safetensors.index.json"} & names:
        return
    pickled = ", only pickled ones, which can run code when they are read" if "pytorch_model.bin" in names else ""
    raise PermanentError(
        given=f"the model {model_id} has no weights in model.safetensors{pickled}",
        expected="weights in the safetensors format",
        action="convert it at https://huggingface.co/spaces/safetensors/convert and give the pull request this "
        "opens as --model_revision refs/pr/N, or use another checkpoint",
    )


def licence_in(card: Path) -> str | None:
    """The licence that a model card names; None where there is no card or none in it."""
    from huggingface_hub import RepoCard

    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    try:
        licence = RepoCard(text, ignore_metadata_errors=True).data.get("license")
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        logger.warning("%s has metadata that cannot be read, so the licence of the model is not known: %s", card, error)
        return None
    return licence if isinstance(licence, str) else None


def weights_sha256(model_id: str) -> str | None:
    """`sha256:` and a hash over the safetensors files of a local checkpoint; None of one on the Hub, whose commit
    pins them. Reads them whole."""
    folder = Path(model_id)
    if not folder.is_dir():
        return None
    tree = LocalFolder(folder.absolute(), subfolders=False)
    weights = [name for name in tree.listing() if any(fnmatchcase(name, pattern) for pattern in WEIGHT_FILES)]
    return tree.revision(weights)
