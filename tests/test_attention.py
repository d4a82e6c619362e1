"""attention.py: a clip of a window attends to itself and to the silence behind all clips, in encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from asr_fine_tuner.attention import attend_within_clips, clip_masks
from asr_fine_tuner.batches import IGNORED_LABEL, Batch, Collator, LabelledFeatures

FRAMES, MELS = 400, 80
START, END, PADDING = 5, 6, 6
ENDS = (60, 110, 160)  # of three clips, in positions of two frames each, of 200
MIDDLE = slice(60, 110)
TEXTS = ([START, 20, 21, END], [START, 30, 31, 32, 33, END], [START, 40, END])
OF_MIDDLE = slice(3, 8)  # its labels among those of all

Logits = Callable[[Batch], torch.Tensor]


@pytest.fixture
def model(tiny_model: Path) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration.from_pretrained(tiny_model)
    attend_within_clips(model)
    return model.eval()


def window(features: np.ndarray, texts: tuple[list[int], ...] = TEXTS) -> LabelledFeatures:
    ends = ENDS if len(texts) > 1 else ()
    return LabelledFeatures(0, features, tuple(np.array(text, np.int32) for text in texts), 3.2, ends)


def batch_of(*windows: LabelledFeatures) -> Batch:
    return Collator(FRAMES, START, PADDING)(windows)


def forward(model: WhisperForConditionalGeneration, batch: Batch) -> torch.Tensor:
    given = {name: tensor for name, tensor in batch.items() if name not in ("labels", "clip_index")}
    given["input_features"] = given["input_features"].float()
    if "clip_of_label" in given:
        given |= clip_masks(given.pop("clip_of_label"), given.pop("clip_of_position"), torch.float32)
    return model(**given, use_cache=False).logits


@pytest.fixture
def features() -> np.ndarray:
    sound = np.random.default_rng(0).normal(0, 0.5, (2 * ENDS[-1], MELS))
    return np.concatenate([sound, np.full((10, MELS), -1.0)]).astype(np.float16)


def changed(features: np.ndarray, positions: slice) -> np.ndarray:
    """Something else at these positions, but where the convolutions hear beyond them."""
    other = features.copy()
    other[2 * positions.start + 4 : 2 * positions.stop - 4] += 1
    return other


def test_a_clip_does_not_know_who_shares_its_window(
    model: WhisperForConditionalGeneration, features: np.ndarray
) -> None:
    others = changed(changed(features, slice(0, 60)), slice(110, 160))
    retold = ([START, 50, 51, END], TEXTS[1], [START, 60, END])
    with torch.no_grad():
        alone = forward(model, batch_of(window(features)))[:, OF_MIDDLE]
        among_others = forward(model, batch_of(window(others, retold)))[:, OF_MIDDLE]
        another = forward(model, batch_of(window(changed(features, MIDDLE))))[:, OF_MIDDLE]
    torch.testing.assert_close(alone, among_others)
    assert (alone - another).abs().max() > 1e-3, "it hears itself"


def test_all_clips_hear_the_silence_behind_them(model: WhisperForConditionalGeneration, features: np.ndarray) -> None:
    louder = features.copy()
    louder[2 * ENDS[-1] + 4 :] += 1
    with torch.no_grad():
        difference = forward(model, batch_of(window(features))) - forward(model, batch_of(window(louder)))
    for labels in (slice(0, 3), OF_MIDDLE, slice(8, 10)):
        assert difference[:, labels].abs().max() > 1e-4


def test_clips_are_heard_and_written_from_their_beginnings(model: WhisperForConditionalGeneration) -> None:
    """The same clip twice, with silence around it, where the convolutions hear the other one."""
    clip = np.full((100, MELS), -1.0, np.float16)
    clip[4:-4] = np.random.default_rng(0).normal(0, 0.5, (92, MELS))
    features = np.concatenate([clip[::-1], clip, clip, np.full((100, MELS), -1.0, np.float16)])
    text = np.array(TEXTS[1], np.int32)
    with torch.no_grad():
        apart = forward(model, batch_of(LabelledFeatures(0, features, (text, text, text), 3.0, (50, 100, 150))))[0]
        joined = forward(model, batch_of(window(features, ([START, *3 * TEXTS[1][1:-1], END],))))[0]
    _, second, third = apart.split(len(text) - 1)
    torch.testing.assert_close(second, third, atol=1e-5, rtol=0)
    assert (joined[5:8] - joined[9:12]).abs().max() > 1e-2


def test_windows_that_are_joined_attend_as_ever(model: WhisperForConditionalGeneration, features: np.ndarray) -> None:
    joined = window(features, ([START, 20, 21, 30, 31, 32, 33, 40, END],))
    with torch.no_grad():
        alone = forward(model, batch_of(joined))
        beside = forward(model, batch_of(window(features), joined))[1:]
    torch.testing.assert_close(alone, beside[:, : alone.shape[1]])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_full_window_are_finite(
    model: WhisperForConditionalGeneration, features: np.ndarray, dtype: torch.dtype, checkpointing: bool
) -> None:
    """Labels that are padding hear nothing that is silent then."""
    full = np.concatenate([features[: 2 * ENDS[-1]], features[:80]])
    apart = LabelledFeatures(0, full, window(full).texts, 4.0, (60, 110, 200))
    batch = batch_of(apart, window(features, ([START, *range(20, 60), END],)))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            given = {name: tensor for name, tensor in batch.items() if name not in ("labels", "clip_index")}
            given["input_features"] = given["input_features"].float()
            given |= clip_masks(given.pop("clip_of_label"), given.pop("clip_of_position"), dtype)
            logits = model(**given, use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORED_LABEL
        ).backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    model.train()
    expected = gradients()
    assert all(gradient.isfinite().all() for gradient in expected)
    if checkpointing:
        model.activation_checkpointing_enable()
        torch.testing.assert_close(gradients(), expected)


def test_the_mask_of_attention_is_not_saved_with_the_model(
    model: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert "sdpa" not in (tmp_path / "config.json").read_text()
