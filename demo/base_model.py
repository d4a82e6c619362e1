"""The base model: a Whisper of 1.4 million weights that has learnt Spanish from synthetic voices, and no Italian.

It is Whisper in everything but size: the same architecture, log-mel input, special tokens and files, with a window of
four seconds instead of thirty, which makes a training step on a processor quick. It is trained as Whisper is, with one
help: a connectionist temporal classification head on the encoder (Graves et al., 2006; joined to attention as by Kim et
al., 2017), spelling letter by letter, which teaches it early where the sounds are. The head is thrown away.
"""

import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
import transformers
from italian import italian_sentence
from safetensors.torch import save_file
from spanish import spanish_sentence
from speech import SAMPLING_RATE, speak
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    get_linear_schedule_with_warmup,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from voices import BASE_TEST_VARIANTS, BASE_VARIANTS, any_speaker

WINDOW = 4  # seconds
FRAMES_PER_SECOND = 100  # log-mel frames, 10 ms apart
POSITIONS_PER_SECOND = 50  # encoder positions; its second convolution halves the frames
TEXT_TOKENS = 512  # the 256 bytes, then merges
END_OF_TEXT = "<|endoftext|>"
TASK_TOKENS = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
NOT_SPOKEN = '"#()*+/:;<=>@[\\]^_`{|}~'  # written signs that Whisper, too, never generates

INITIAL_STD = 0.08  # about 1 / sqrt(d_model): at Whisper's 0.02 the sound is lost beside the position embeddings
PEAK_LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 300
BATCH_SIZE = 16
CTC_WEIGHT = 0.5
IGNORED = -100  # the label that the loss passes over
HELD_OUT_CLIPS = 128

MODEL_CARD = """\
---
language:
- es
license: apache-2.0
library_name: transformers
pipeline_tag: automatic-speech-recognition
---

# A very small Whisper that has learnt Spanish

The base model of ASR Fine-Tuner's demo: Whisper's architecture, tokens and files with 1.4 million weights and a window
of four seconds. It was trained from scratch for {steps} steps on {clips} clips of Spanish and invented words, read by
{voices} voices of [espeak-ng](https://github.com/espeak-ng/espeak-ng), and has heard no Italian. On Spanish in voices
that it never heard its word error rate is {wer:.3f}. It is made to be fine-tuned in a minute, not to understand people.

The weights are stored as float16 and load as float32. Made by `demo/make_assets.py`. Apache-2.0, like the program: the
texts are its own and the voices are espeak-ng's.
"""


def build_tokenizer(seed: int) -> WhisperTokenizer:
    """Byte-level BPE learnt from both grammars, then Whisper's special tokens, in Whisper's order."""
    rng = random.Random(seed)  # noqa: S311
    text = [f" {sentence_of(rng)}" for sentence_of in (italian_sentence, spanish_sentence) for _ in range(5000)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    )
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(
        vocab=learnt["vocab"], merges=[tuple(merge) for merge in learnt["merges"]], pad_token=END_OF_TEXT
    )
    special = ["<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), *TASK_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    steps = range(WINDOW * POSITIONS_PER_SECOND + 1)
    tokenizer.add_tokens([AddedToken(f"<|{step / POSITIONS_PER_SECOND:.2f}|>", normalized=False) for step in steps])
    return tokenizer


def build_feature_extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, sampling_rate=SAMPLING_RATE, chunk_length=WINDOW)


def build_model(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """A Whisper with fresh weights; the settings are Whisper's where the size does not ask for others."""
    token_id = tokenizer.convert_tokens_to_ids
    end_of_text = tokenizer.eos_token_id
    begin_suppress = [token_id(tokenizer.tokenize(" ")[0]), end_of_text]
    suppress = [token_id(tokenizer.tokenize(sign)[0]) for sign in NOT_SPOKEN]
    suppress += token_id(["<|startoftranscript|>", *TASK_TOKENS[:-1]])
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=128,
            encoder_layers=3,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=512,
            decoder_ffn_dim=512,
            num_mel_bins=80,
            max_source_positions=WINDOW * POSITIONS_PER_SECOND,
            max_target_positions=448,
            init_std=INITIAL_STD,
            pad_token_id=end_of_text,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
            decoder_start_token_id=token_id("<|startoftranscript|>"),
            begin_suppress_tokens=begin_suppress,
            dtype="float32",
        )
    )
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": token_id(f"<|{code}|>") for code in LANGUAGES},
        task_to_id={task: token_id(f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=token_id("<|notimestamps|>"),
        prev_sot_token_id=token_id("<|startofprev|>"),
        decoder_start_token_id=token_id("<|startoftranscript|>"),
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        begin_suppress_tokens=begin_suppress,
        suppress_tokens=sorted(suppress),
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
    )
    return model


@dataclass(frozen=True)
class SpokenText:
    """Clips ready for training: log-mel float16[clips, mels, frames] of the whole window, and what each says."""

    features: np.ndarray
    sentences: list[str]


def spoken_spanish(count: int, variants: tuple[str, ...], seed: int) -> SpokenText:
    """`count` clips of Spanish, every one by another speaker, a third of them with noise under the voice."""
    rng = random.Random(seed)  # noqa: S311
    noise = np.random.default_rng(seed)
    extractor = build_feature_extractor()
    features = np.empty((count, extractor.feature_size, extractor.nb_max_frames), np.float16)
    sentences: list[str] = []
    while len(sentences) < count:
        sentence = spanish_sentence(rng)
        samples = speak(sentence, "es", any_speaker(rng, variants), rng)
        if len(samples) > WINDOW * SAMPLING_RATE:
            continue
        if rng.random() < 1 / 3:
            samples += noise.standard_normal(len(samples), np.float32) * 10 ** rng.uniform(-4, -2)
        features[len(sentences)] = extractor(samples, sampling_rate=SAMPLING_RATE).input_features[0]
        sentences.append(sentence)
    return SpokenText(features, sentences)


def augmented(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Formants moved by up to two mel bins, as another vocal tract would, and SpecAugment (Park et al., 2019): one band
    of frequencies and two stretches of time blanked. Shape (clips, mels, frames), each clip changed in its own way."""
    features = features.clone()
    _, mels, frames = features.shape
    for clip in features:
        clip.copy_(clip.roll(rng.randint(-2, 2), dims=0))
        blank = clip.min()
        low, height = rng.randrange(mels - 12), rng.randint(0, 12)
        clip[low : low + height] = blank
        for _ in range(2):
            start, length = rng.randrange(frames - 20), rng.randint(0, 20)
            clip[:, start : start + length] = blank
    return features


def pretrain(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, speech: SpokenText, steps: int, seed: int
) -> None:
    """Trains `model` in place on Spanish speech for `steps` steps of `BATCH_SIZE` clips."""
    rng = random.Random(seed)  # noqa: S311
    tokenizer.set_prefix_tokens(language="es", task="transcribe")
    # Whisper writes a space before the text.
    targets = [torch.tensor(tokenizer(f" {sentence}").input_ids[1:]) for sentence in speech.sentences]
    letters = sorted(set("".join(speech.sentences)))
    spelt = [torch.tensor([letters.index(letter) for letter in sentence]) for sentence in speech.sentences]
    blank = len(letters)
    alignment_head = torch.nn.Linear(model.config.d_model, blank + 1)
    optimizer = torch.optim.AdamW([*model.parameters(), *alignment_head.parameters()], PEAK_LEARNING_RATE, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    order: list[int] = []
    started = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        if len(order) < BATCH_SIZE:
            order = rng.sample(range(len(targets)), len(targets))
        batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        features = augmented(torch.from_numpy(speech.features[batch]).float(), rng)
        labels = pad_sequence([targets[clip] for clip in batch], batch_first=True, padding_value=IGNORED)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_features=features, labels=labels)
            emissions = alignment_head(output.encoder_last_hidden_state).float().log_softmax(-1)
        words = [spelt[clip] for clip in batch]
        ctc = functional.ctc_loss(
            emissions.transpose(0, 1),
            torch.cat(words),
            torch.full((BATCH_SIZE,), emissions.shape[1]),
            torch.tensor([len(word) for word in words]),
            blank=blank,
        )
        (output.loss + CTC_WEIGHT * ctc).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            pace = (time.monotonic() - started) / step
            print(f"step {step}/{steps}: loss {output.loss:.3f}, CTC {ctc:.3f}, {pace:.3f} s a step", flush=True)
    model.eval()


def word_error_rate(model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, speech: SpokenText) -> float:
    """WER of greedy Spanish transcription, lowercase and without punctuation."""
    heard: list[str] = []
    for start in range(0, len(speech.sentences), BATCH_SIZE):
        features = torch.from_numpy(speech.features[start : start + BATCH_SIZE]).float()
        ids = model.generate(features, language="es", task="transcribe", max_new_tokens=100)
        heard += tokenizer.batch_decode(ids, skip_special_tokens=True)
    bare = [[re.sub(r"[^\w\s]", " ", text.lower()) for text in texts] for texts in (speech.sentences, heard)]
    return float(jiwer.wer(*bare))


def save(model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, folder: Path) -> None:
    """Writes a complete checkpoint: the weights as float16, the configuration such that they are loaded as float32."""
    tokenizer.set_prefix_tokens(language="es", task="transcribe")
    extractor = build_feature_extractor()
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    extractor.save_pretrained(folder)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    del weights["proj_out.weight"]  # tied to the token embeddings
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_base_model(folder: Path, clips: int, steps: int, threads: int, seed: int) -> None:
    """Trains a base model on `clips` clips for `steps` steps and writes it, with a model card that says how it does."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer)
    speech = spoken_spanish(clips, BASE_VARIANTS, seed)
    held_out = spoken_spanish(HELD_OUT_CLIPS, BASE_TEST_VARIANTS, seed + 1)
    pretrain(model, tokenizer, speech, steps, seed)
    save(model, tokenizer, folder)
    wer = word_error_rate(model, tokenizer, held_out)
    card = MODEL_CARD.format(clips=clips, voices=len(BASE_VARIANTS), steps=steps, wer=wer)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"Spanish in voices never heard: WER {wer:.3f}", flush=True)
