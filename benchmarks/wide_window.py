"""The base model of `quality`: the demo's Whisper with a longer window, and with timestamps.

The demo's model sees four seconds, which hold hardly more than one clip, and has never told when anything is said.
Widened, it can do in little what Whisper does: several sentences in a window, a transcript with or without timestamps,
and long recordings one window after another. It learns that on Spanish, as Whisper learnt it (arXiv 2212.04356, section
2.3): windows are cut out of longer speech, segments are enclosed by their times, and of a segment that the window cuts
off only the beginning is told. Two things help it on the way: sentences become more one by one, at first anywhere in
the window, and a head on the encoder spells what is said, as in `demo/base_model.py`. It has never heard Italian.

As a child process: `python -m benchmarks.wide_window FOLDER RECIPE`, where RECIPE is a `Recipe` as JSON. It needs
espeak-ng, and about eight minutes of two cores.
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
from spanish import spanish_sentence
from speech import SAMPLING_RATE, speak
from tokenizers import AddedToken
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    get_linear_schedule_with_warmup,
)
from voices import BASE_VARIANTS, any_speaker

from benchmarks.wide_window_recipe import WINDOW_SECONDS, Recipe

Kind = Literal["timestamps", "joined", "single"]

_DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"
_LONGEST_SENTENCE = 4.0  # seconds
_LONGEST_PAUSE = 1.0  # seconds, between two sentences
# What the windows hold; those with timestamps are the hardest, and the new thing.
_KINDS: dict[Kind, float] = {"timestamps": 0.5, "joined": 0.3, "single": 0.2}

_MOST_SENTENCES = 6
_FULL_AFTER = 0.6  # of the steps, windows are full

logger = logging.getLogger(__name__)

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Window:
    """samples: at 16 kHz, up to the window's length. text: with timestamp tokens where there are any. said: whole
    sentences in it, without.
    """

    samples: Samples
    text: str
    said: str
    with_timestamps: bool


def widened(folder: Path) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """The model in `folder` with a longer window, and tokens for the times in it.

    The encoder's positions are sinusoids, which depend on the number of channels alone: there are just more of them.
    """
    narrow = WhisperForConditionalGeneration.from_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    steps = range(WINDOW_SECONDS * POSITIONS_PER_SECOND + 1)
    # Those of the first four seconds are there, and are the last of the vocabulary.
    tokenizer.add_tokens([AddedToken(timestamp(step / POSITIONS_PER_SECOND), normalized=False) for step in steps])
    narrow.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    settings = {**narrow.config.to_dict(), "max_source_positions": WINDOW_SECONDS * POSITIONS_PER_SECOND}
    wide = WhisperForConditionalGeneration(WhisperConfig.from_dict(settings))
    positions = "model.encoder.embed_positions.weight"
    weights = {name: weight for name, weight in narrow.state_dict().items() if name != positions}
    missing, unexpected = wide.load_state_dict(weights, strict=False)
    if missing != [positions] or unexpected:
        raise RuntimeError(f"the wider model has {missing} more and {unexpected} fewer weights")
    wide.generation_config = narrow.generation_config
    extractor = WhisperFeatureExtractor(feature_size=80, sampling_rate=SAMPLING_RATE, chunk_length=WINDOW_SECONDS)
    return wide, WhisperProcessor(extractor, tokenizer)


def timestamp(seconds: float) -> str:
    """The token of a time, to which it is rounded: they are 20 ms apart."""
    return f"<|{round(seconds * POSITIONS_PER_SECOND) / POSITIONS_PER_SECOND:.2f}|>"


def spoken(recipe: Recipe) -> list[list[Sentence]]:
    """The sentences of each speaker."""
    rng = random.Random(recipe.seed)  # noqa: S311
    speakers = []
    for _ in range(recipe.speakers):
        speaker = any_speaker(rng, BASE_VARIANTS)
        sentences: list[Sentence] = []
        while len(sentences) < recipe.sentences:
            text = spanish_sentence(rng)
            samples = speak(text, "es", speaker, rng)
            if len(samples) <= _LONGEST_SENTENCE * SAMPLING_RATE:
                sentences.append(Sentence(text, samples))
        speakers.append(sentences)
    return speakers


def cut_window(sentences: list[Sentence], kind: Kind, most: int, rng: random.Random) -> Window:
    """A window out of one speaker's speech, with up to `most` sentences; few of them are anywhere in it."""
    limit = WINDOW_SECONDS * SAMPLING_RATE
    parts: list[Samples] = []
    texts: list[str] = []
    end = 0
    said = ""
    begin = round(rng.uniform(0, max(0.0, WINDOW_SECONDS - most * _LONGEST_SENTENCE)) * SAMPLING_RATE)
    for sentence in rng.sample(sentences, len(sentences)):
        # As often next to nothing between two sentences as a pause.
        begin += round(rng.choice((0.0, rng.uniform(0, _LONGEST_PAUSE))) * SAMPLING_RATE)
        if begin + len(sentence.samples) > limit:
            # The window cuts it off: with timestamps it is heard, and told that it begins.
            if kind == "timestamps" and begin + SAMPLING_RATE // 2 < limit:
                parts += [np.zeros(begin - end, np.float32), sentence.samples[: limit - begin]]
                texts.append(timestamp(begin / SAMPLING_RATE))
            break
        parts += [np.zeros(begin - end, np.float32), sentence.samples]
        end = begin + len(sentence.samples)
        said += sentence.text
        if kind == "timestamps":
            texts.append(f"{timestamp(begin / SAMPLING_RATE)} {sentence.text}{timestamp(end / SAMPLING_RATE)}")
        else:
            texts.append(sentence.text)
        begin = end
        # Windows that are not full are the ends of recordings.
        if kind == "single" or len(texts) == most or rng.random() < 0.05:
            break
    samples = np.concatenate(parts)
    if rng.random() < 1 / 3:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(samples), np.float32)
        samples = samples + noise * np.float32(10 ** rng.uniform(-4, -2))
    return Window(samples, ("" if kind == "timestamps" else " ").join(texts), said, kind == "timestamps")


def labels_of(window: Window, tokenizer: WhisperTokenizer) -> list[int]:
    """From the start token to the end token."""
    tokenizer.set_prefix_tokens(language="es", task="transcribe", predict_timestamps=window.with_timestamps)
    return list(tokenizer(window.text).input_ids)


class Speller(torch.nn.Module):
    """A head that spells what is said, letter by letter (Graves et al., 2006), and is thrown away in the end."""

    def __init__(self, d_model: int, speakers: list[list[Sentence]]) -> None:
        super().__init__()
        self._letters = sorted({letter for sentences in speakers for sentence in sentences for letter in sentence.text})
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
    logger.info("%d sentences are spoken", recipe.speakers * recipe.sentences)
    speller = Speller(model.config.d_model, speakers)
    optimizer = torch.optim.AdamW([*model.parameters(), *speller.parameters()], recipe.learning_rate, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(1, recipe.steps + 1):
        most = 1 + int(step / recipe.steps / _FULL_AFTER * _MOST_SENTENCES)
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
    model, processor = widened(_DEMO_MODEL)
    learn(model, processor, recipe)
    processor.tokenizer.set_prefix_tokens(language="es", task="transcribe", predict_timestamps=False)
    processor.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    model.save_pretrained(folder)
    print("{}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(Path(sys.argv[1]), Recipe(**json.loads(sys.argv[2])))
