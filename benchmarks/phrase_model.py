"""The base model of `quality`: the demo's Whisper, which learns several phrases in a window, and timestamps.

The demo's model has read one sentence in each window, and has never told when anything is said. Taught both, it can do
in little what Whisper does: several sentences in a window, a transcript with or without timestamps, and long recordings
one window after another. It learns that on Spanish, as Whisper learnt it (arXiv 2212.04356, section 2.3): windows are
cut out of longer speech, phrases are enclosed by their times, and of a phrase that the window cuts off only the
beginning is told. Two things help it on the way: phrases become more one by one, at first anywhere in the window, and a
head on the encoder spells what is said, as in `demo/base_model.py`. It has never heard Italian.

As a child process: `python -m benchmarks.phrase_model FOLDER RECIPE`, where RECIPE is a `Recipe` as JSON. It needs
espeak-ng, and about twelve minutes of two cores.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from base_model import CTC_WEIGHT, IGNORED, POSITIONS_PER_SECOND, augmented
from numpy.typing import NDArray
from speech import SAMPLING_RATE, speak
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    get_linear_schedule_with_warmup,
)
from voices import BASE_VARIANTS, any_speaker

from benchmarks.phrase_recipe import WINDOW_SECONDS, Recipe
from benchmarks.phrases import LONGEST, spanish_phrase

Kind = Literal["timestamps", "joined", "single"]

_DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"
_LONGEST_PAUSE = 0.4  # seconds, between two phrases
# What the windows hold; those with timestamps are the hardest, and the new thing.
_KINDS: dict[Kind, float] = {"timestamps": 0.4, "joined": 0.35, "single": 0.25}

_MOST_PHRASES = 5
_FULL_AFTER = 0.3  # of the steps, windows are full

logger = logging.getLogger(__name__)

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Phrase:
    text: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Window:
    """samples: at 16 kHz, up to the window's length. text: with timestamp tokens where there are any. said: whole
    phrases in it, without.
    """

    samples: Samples
    text: str
    said: str
    with_timestamps: bool


def timestamp(seconds: float) -> str:
    """The token of a time, to which it is rounded: they are 20 ms apart."""
    return f"<|{round(seconds * POSITIONS_PER_SECOND) / POSITIONS_PER_SECOND:.2f}|>"


def spoken(recipe: Recipe) -> list[list[Phrase]]:
    """The phrases of each speaker."""
    rng = random.Random(recipe.seed)  # noqa: S311
    speakers = []
    for _ in range(recipe.speakers):
        speaker = any_speaker(rng, BASE_VARIANTS)
        phrases: list[Phrase] = []
        while len(phrases) < recipe.phrases:
            text = spanish_phrase(rng)
            samples = speak(text, "es", speaker, rng)
            if len(samples) <= LONGEST * SAMPLING_RATE:
                phrases.append(Phrase(text, samples))
        speakers.append(phrases)
    return speakers


def cut_window(phrases: list[Phrase], kind: Kind, most: int, rng: random.Random) -> Window:
    """A window out of one speaker's speech, with up to `most` phrases; few of them are anywhere in it."""
    limit = WINDOW_SECONDS * SAMPLING_RATE
    parts: list[Samples] = []
    texts: list[str] = []
    end = 0
    said = ""
    room = WINDOW_SECONDS - most * (LONGEST + _LONGEST_PAUSE)
    begin = round(rng.uniform(0, max(0.0, room)) * SAMPLING_RATE)
    for phrase in rng.sample(phrases, len(phrases)):
        # As often next to nothing between two phrases as a pause.
        begin += round(rng.choice((0.0, rng.uniform(0, _LONGEST_PAUSE))) * SAMPLING_RATE)
        if begin + len(phrase.samples) > limit:
            # The window cuts it off: with timestamps it is heard, and told that it begins.
            if kind == "timestamps" and begin + SAMPLING_RATE // 2 < limit:
                parts += [np.zeros(begin - end, np.float32), phrase.samples[: limit - begin]]
                texts.append(timestamp(begin / SAMPLING_RATE))
            break
        parts += [np.zeros(begin - end, np.float32), phrase.samples]
        end = begin + len(phrase.samples)
        said += phrase.text
        # Whisper writes a space before each text.
        text = f" {phrase.text}"
        if kind == "timestamps":
            text = f"{timestamp(begin / SAMPLING_RATE)}{text}{timestamp(end / SAMPLING_RATE)}"
        texts.append(text)
        begin = end
        # Windows that are not full are the ends of recordings.
        if kind == "single" or len(texts) == most or rng.random() < 0.05:
            break
    samples = np.concatenate(parts)
    if rng.random() < 1 / 3:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples), np.float32)
        samples = samples + noise * np.float32(10 ** rng.uniform(-4, -2))
    return Window(samples, "".join(texts), said, kind == "timestamps")


def labels_of(window: Window, tokenizer: WhisperTokenizer) -> list[int]:
    """From the start token to the end token."""
    tokenizer.set_prefix_tokens(language="es", task="transcribe", predict_timestamps=window.with_timestamps)
    return list(tokenizer(window.text).input_ids)


class Speller(torch.nn.Module):
    """A head that spells what is said, letter by letter (Graves et al., 2006), and is thrown away in the end."""

    def __init__(self, d_model: int, speakers: list[list[Phrase]]) -> None:
        super().__init__()
        self._letters = sorted({letter for phrases in speakers for phrase in phrases for letter in phrase.text})
        self._linear = torch.nn.Linear(d_model, len(self._letters) + 1)

    def forward(self, encoded: torch.Tensor, said: list[str]) -> torch.Tensor:
        """Loss of `encoded` `[batch, positions, d_model]`."""
        log_probabilities = self._linear(encoded.float()).log_softmax(-1).transpose(0, 1)
        loss: torch.Tensor = torch.nn.functional.ctc_loss(
            log_probabilities,
            torch.tensor([self._letters.index(letter) for text in said for letter in text]),
            torch.full((len(said),), len(log_probabilities)),
            torch.tensor([len(text) for text in said]),
            blank=len(self._letters),
        )
        return loss


def learn(model: WhisperForConditionalGeneration, processor: WhisperProcessor, recipe: Recipe) -> None:
    """Train `model` in place."""
    rng = random.Random(recipe.seed)  # noqa: S311
    speakers = spoken(recipe)
    logger.info("%d phrases are spoken", recipe.speakers * recipe.phrases)
    speller = Speller(model.config.d_model, speakers)
    optimizer = torch.optim.AdamW([*model.parameters(), *speller.parameters()], recipe.learning_rate, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(1, recipe.steps + 1):
        most = 1 + int(step / recipe.steps / _FULL_AFTER * _MOST_PHRASES)
        kinds = rng.choices(list(_KINDS), list(_KINDS.values()), k=recipe.batch_size)
        windows = [cut_window(rng.choice(speakers), kind, most, rng) for kind in kinds]
        features = processor.feature_extractor(
            [window.samples for window in windows], sampling_rate=SAMPLING_RATE, return_tensors="pt"
        ).input_features
        ids = [torch.tensor(labels_of(window, processor.tokenizer)) for window in windows]
        labels = pad_sequence([row[1:] for row in ids], batch_first=True, padding_value=IGNORED)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_features=augmented(features, rng), labels=labels)
        spelling = speller(output.encoder_last_hidden_state, [window.said for window in windows])
        (output.loss + CTC_WEIGHT * spelling).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
        if step % 50 == 0:
            pace = (time.monotonic() - began) / step
            mean = sum(losses[-50:]) / 50
            logger.info("step %d of %d: loss %.3f, %.2f s a step", step, recipe.steps, mean, pace)
    model.eval()


def main(folder: Path, recipe: Recipe) -> None:
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    model = WhisperForConditionalGeneration.from_pretrained(_DEMO_MODEL)
    processor = WhisperProcessor.from_pretrained(_DEMO_MODEL)
    learn(model, processor, recipe)
    processor.tokenizer.set_prefix_tokens(language="es", task="transcribe", predict_timestamps=False)
    processor.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    model.save_pretrained(folder)
    print("{}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(Path(sys.argv[1]), Recipe(**json.loads(sys.argv[2])))
