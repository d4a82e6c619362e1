"""Transcripts to label tokens and back, and what a Whisper checkpoint says about its tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.languages import UNSPACED_LANGUAGES

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

# Of the encoder, each one of Whisper's timestamps.
POSITIONS_PER_SECOND = 50

# Multilingual Whisper has at least this many tokens; English-only checkpoints have one less
# (openai/whisper, Whisper.is_multilingual). Only asked when generation_config.json does not say.
_MULTILINGUAL_VOCABULARY = 51865

# Entries of tokenizer_config.json that transformers hands to what opens them as files, or builds the tokenizer from.
# Others that name files (vocab_file, normalizer_file, ...) give way to those of the folder.
_READ_OTHER_FILES = ("gguf_file", "fast_tokenizer_files", "init_inputs", "vocab", "merges", "tokenizer_object")

# Within the two characters that each token of Whisper's own begins with (`<|endoftext|>`, `<|it|>`, `<|0.02|>`).
_INSIDE_MARKER = re.compile(r"(?<=<)(?=\|)")


class LabelEncoder:
    """Whisper's tokenizer with the language and the task set; an English-only checkpoint has neither."""

    def __init__(self, tokenizer: WhisperTokenizer, language_code: str, task: str, *, multilingual: bool) -> None:
        """
        Raises:
            PermanentError: the checkpoint has no token for the language, or is English-only and asked for another one.
        """
        self.tokenizer = tokenizer
        self._space = self._text_ids(" ")
        self._unspaced = task == "transcribe" and language_code in UNSPACED_LANGUAGES
        if multilingual:
            if f"<|{language_code}|>" not in tokenizer.get_vocab():
                raise PermanentError(
                    given=f"language code {language_code!r}, for which this checkpoint has no token",
                    expected="a language of the checkpoint",
                    action="use a newer Whisper (large-v3 added Cantonese, yue) or give the closest --language it has",
                )
            tokenizer.set_prefix_tokens(language=language_code, task=task, predict_timestamps=False)
        else:
            if language_code != "en" or task != "transcribe":
                raise PermanentError(
                    given=f"an English-only checkpoint for {task} in {language_code!r}",
                    expected="a multilingual checkpoint (openai/whisper-small rather than openai/whisper-small.en)",
                    action="set --model_id to a multilingual checkpoint",
                )
            # To set_prefix_tokens, None means what the checkpoint was saved with.
            tokenizer.language = tokenizer.task = None
            tokenizer.set_prefix_tokens(predict_timestamps=False)

    @classmethod
    def from_folder(cls, model_folder: Path, language_code: str, task: str) -> LabelEncoder:
        return cls(load_tokenizer(model_folder), language_code, task, multilingual=is_multilingual(model_folder))

    def encode(self, text: str) -> list[int]:
        """`<|startoftranscript|>` language task `<|notimestamps|>` text `<|endoftext|>`, as token ids `[n_labels]`.

        A space is before the text, as in all that Whisper was trained on (DecodingTask._get_initial_tokens of
        openai/whisper writes prompts so): a model that unlearns it runs sentences together where the windows of a long
        recording meet. Languages that are written without spaces have none, and neither has a text before whose first
        letter the space is a token by itself (of most Indic scripts, say): generation never begins with that one.

        What reads like a token in the transcript (`<|endoftext|>`) is spelt as text, so that it cannot end the labels.
        """
        ids = self._text_ids(text if self._unspaced else f" {text}")
        if ids[:1] == self._space:
            del ids[0]
        return list(self.tokenizer.build_inputs_with_special_tokens(ids))

    def join(self, labels: Sequence[list[int]], bounds: Sequence[int] | None) -> list[int]:
        """Labels of transcripts that follow one another in one window, from those that `encode` makes of each.

        bounds: where each text begins, and where the last one ends, in timestamps of the model; None for labels without
        timestamps.
        """
        prompt, end = labels[0][: self.prompt_length], labels[0][-1]
        own = [ids[self.prompt_length : -1] for ids in labels]
        if bounds is None:
            return [*prompt, *own[0], *itertools.chain(*map(self._spaced, own[1:])), end]
        # <|notimestamps|> is the last of the prompt, and <|0.00|> comes right behind it in the vocabulary.
        first_timestamp = prompt.pop() + 1
        joined = prompt
        for ids, (begin, stop) in zip(own, itertools.pairwise(bounds), strict=True):
            joined += [first_timestamp + begin, *self._spaced(ids), first_timestamp + stop]
        return [*joined, end]

    @property
    def prompt_length(self) -> int:
        """Tokens before those of the text."""
        return len(self.tokenizer.prefix_tokens)

    def has_timestamps(self, positions: int) -> bool:
        """Whether the vocabulary goes on to the timestamp of the window's end, which has so many positions."""
        first: int = self.tokenizer.prefix_tokens[-1] + 1
        bounds = self.tokenizer.convert_ids_to_tokens([first, first + positions])
        return list(bounds) == ["<|0.00|>", f"<|{positions / POSITIONS_PER_SECOND:.2f}|>"]

    def _spaced(self, ids: list[int]) -> list[int]:
        """A text behind another one or a timestamp."""
        if self._unspaced or str(self.tokenizer.decode(ids[:1])).startswith(" "):
            return ids
        return [*self._space, *ids]

    def _text_ids(self, text: str) -> list[int]:
        # The tokenizer's own split_special_tokens leaves timestamps whole; cut within the marker, nothing matches.
        ids: list[int] = []
        for part in _INSIDE_MARKER.split(text):
            ids += self.tokenizer.backend_tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The transcript in `ids`, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def load_tokenizer(model_folder: Path) -> WhisperTokenizer:
    """
    Raises:
        PermanentError: the tokenizer's configuration names files, which could be any of this machine.
    """
    from transformers import WhisperTokenizer

    _refuse_named_files(model_folder / "tokenizer_config.json")
    return WhisperTokenizer.from_pretrained(model_folder, local_files_only=True)


def _refuse_named_files(tokenizer_config: Path) -> None:
    if not tokenizer_config.is_file():
        return
    config = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    if named := [name for name in _READ_OTHER_FILES if config.get(name)]:
        raise PermanentError(
            given=f"{tokenizer_config}, which has {', '.join(f'{name}={config[name]!r}' for name in named)}",
            expected="a tokenizer in the files of its own folder",
            action="use another checkpoint, or remove these entries from a copy after looking at them",
        )


def is_multilingual(model_folder: Path) -> bool:
    generation_config = model_folder / "generation_config.json"
    if generation_config.is_file():
        said = json.loads(generation_config.read_text(encoding="utf-8")).get("is_multilingual")
        if said is not None:
            return bool(said)
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"]) >= _MULTILINGUAL_VOCABULARY


def tokenizer_sha256(tokenizer: WhisperTokenizer) -> str:
    """Hash of the vocabulary with the special tokens: equal when the same ids mean the same text."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
