"""batches.py: what Whisper is given is what the padded extractor and the shifted labels would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import DEMO
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.audio import decode
from asr_fine_tuner.batches import (
    IGNORED_LABEL,
    BatchSizes,
    ClipDataset,
    Collator,
    LabelledFeatures,
    Step,
    StepCollator,
    TrainingSteps,
    steps_in_epoch,
)
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.packing import ClipLengths, Packer, PackingRules, Window

WINDOW = 400  # frames, 4 s


@pytest.fixture
def clips(tiny_artifact: Path) -> ClipDataset:
    return ClipDataset(ArtifactSplit(tiny_artifact, "train"))


@pytest.fixture
def labels(tiny_model: Path) -> LabelEncoder:
    return LabelEncoder.from_folder(tiny_model, "it", "transcribe")


@pytest.fixture
def collator(labels: LabelEncoder) -> Collator:
    start = labels.tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    return Collator(WINDOW, decoder_start_token_id=start, pad_token_id=labels.tokenizer.pad_token_id)


def test_features_are_those_of_the_padded_extractor(clips: ClipDataset, collator: Collator, tiny_model: Path) -> None:
    extractor = WhisperFeatureExtractor.from_pretrained(tiny_model)
    rows = {
        row["audio"]["path"]: row for row in pq.read_table(DEMO / "dataset/it/train-00000-of-00001.parquet").to_pylist()
    }
    samples = [decode(rows[clip]["audio"]["bytes"], 16_000, 4.0) for clip in clips.clips.ids]
    padded = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features

    batch = collator([clips[index] for index in range(len(clips))])

    assert batch["input_features"].dtype == torch.float16
    assert batch["input_features"].shape == padded.shape == (len(clips), 80, WINDOW)
    assert np.abs(batch["input_features"].float().numpy() - padded).max() < 5e-4


def test_the_decoder_is_given_the_labels_one_step_late(
    clips: ClipDataset, collator: Collator, labels: LabelEncoder
) -> None:
    start, end = collator.decoder_start_token_id, labels.tokenizer.eos_token_id
    batch = collator([clips[index] for index in range(len(clips))])
    lengths = set()
    for row, (given, wanted) in enumerate(zip(batch["decoder_input_ids"], batch["labels"], strict=True)):
        real = wanted != IGNORED_LABEL
        assert [start, *wanted[real].tolist()] == clips.clips.labels(row).tolist()
        assert given[0] == start
        assert given[1:][real[1:]].tolist() == wanted[:-1][real[1:]].tolist()
        assert start not in wanted
        assert wanted[real][-1] == end
        assert given[~real].tolist() == [collator.pad_token_id] * int((~real).sum())
        lengths.add(int(real.sum()))
    assert len(lengths) > 1, "transcripts of one length prove nothing"
    assert batch["labels"].shape[1] == max(lengths)


def test_whisper_shifts_labels_as_the_collator_does(clips: ClipDataset, collator: Collator, tiny_model: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(tiny_model).eval()
    batch = collator([clips[0], clips[1]])
    features = batch["input_features"].float()
    with torch.no_grad():
        ours = model(input_features=features, decoder_input_ids=batch["decoder_input_ids"]).logits
        theirs = model(input_features=features, labels=batch["labels"]).logits
    real = batch["labels"] != IGNORED_LABEL
    torch.testing.assert_close(ours[real], theirs[real])


def test_labels_without_the_start_token_are_refused(clips: ClipDataset, collator: Collator) -> None:
    clip = clips[0]
    headless = LabelledFeatures(clip.index, clip.features, (clip.texts[0][1:],), clip.seconds)
    with pytest.raises(ValueError, match=f"labels of clip 0 begin with token {clip.texts[0][1]}"):
        collator([headless])


def test_texts_that_are_apart_follow_one_another(collator: Collator) -> None:
    start = collator.decoder_start_token_id
    texts = ([start, 10, 11, 12], [start, 20, 21])
    features = np.zeros((300, 80), np.float16)
    apart = LabelledFeatures(0, features, tuple(np.array(text, np.int32) for text in texts), 3.0, (80, 150))
    joined = LabelledFeatures(1, features, (np.array([start, *range(30, 37)], np.int32),), 3.0, (80, 150))
    batch = collator([apart, joined])
    assert (apart.n_labels, joined.n_labels) == (5, 7)
    assert batch["decoder_input_ids"][0, :5].tolist() == [start, 10, 11, start, 20]
    assert batch["labels"][0].tolist() == [10, 11, 12, 20, 21, IGNORED_LABEL, IGNORED_LABEL]
    assert batch["decoder_position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3], list(range(7))]
    assert batch["clip_of_label"].tolist() == [[1, 1, 1, 2, 2, 2, 2], [0] * 7]
    assert batch["clip_of_position"][0].tolist() == [1] * 80 + [2] * 70 + [0] * 50
    assert batch["clip_of_position"][1].tolist() == [0] * 200
    assert batch["encoder_position_ids"][0].tolist() == [*range(80), *range(70), *range(150, 200)]
    assert batch["encoder_position_ids"][1].tolist() == list(range(200))


def test_real_frames_are_marked_when_masking_needs_them(clips: ClipDataset, collator: Collator) -> None:
    assert "attention_mask" not in collator([clips[0]])
    masking = Collator(WINDOW, collator.decoder_start_token_id, collator.pad_token_id, mask_padding=True)
    batch = masking([clips[0], clips[1]])
    for row, mask in enumerate(batch["attention_mask"]):
        frames = len(clips[row].features)
        assert mask.tolist() == [1] * frames + [0] * (WINDOW - frames)


def test_a_batch_says_which_clips_it_holds(clips: ClipDataset, collator: Collator) -> None:
    batch = collator([clips[3], clips[1]])
    assert batch["clip_index"].tolist() == [3, 1]


def test_the_longest_transcripts_come_first(tiny_artifact: Path) -> None:
    split = ArtifactSplit(tiny_artifact, "train")
    ordered = [ClipDataset(split, longest_first=True)[position] for position in range(len(split))]
    lengths = [clip.n_labels + 1 for clip in ordered]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(clip.index for clip in ordered) == list(range(len(split)))
    assert [clip.index for clip in ordered] != list(range(len(split))), "the split must not be in that order anyway"
    for clip in ordered:
        np.testing.assert_array_equal(clip.features, split.features(clip.index))
    assert ClipDataset(split).longest_labels == lengths[0]


def _packer(n_clips: int, clips_in_a_window: int) -> Packer:
    room = PackingRules(positions=10, labels=10, clips=clips_in_a_window, apart_share=0.2, timestamped_share=0.5)
    ones = np.ones(n_clips, np.int64)
    return Packer(ClipLengths(ones, ones, np.zeros(n_clips, np.int32)), room, seed=7)


def _steps(n_clips: int, sizes: BatchSizes, epoch: int = 0, clips_in_a_window: int = 1) -> list[list[Window]]:
    """The windows of each step of an epoch, over all processes."""
    packer = _packer(n_clips, clips_in_a_window)
    ranks = [TrainingSteps(packer, sizes, rank) for rank in range(sizes.processes)]
    for rank in ranks:
        rank.set_epoch(epoch)
    shares = [list(rank) for rank in ranks]
    assert {len(share) for share in shares} == {len(rank) for rank in ranks}, "every rank has its part of every step"
    for step in zip(*shares, strict=True):
        assert max(map(len, step)) - min(map(len, step)) <= 1, "no rank has more to do than another"
    return [sorted((window for share in step for window in share), key=str) for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("n_clips", [1, 9, 12, 13, 24, 25, 100])
@pytest.mark.parametrize("effective", [1, 4, 12])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_has_the_same_windows_on_any_number_of_processes(n_clips: int, effective: int, packed: bool) -> None:
    n_steps = steps_in_epoch(n_clips, effective)
    clips_in_a_window = max(1, n_clips // n_steps // 2) if packed else 1  # as `plan_windows` does
    steps = _steps(n_clips, BatchSizes(effective, effective), clips_in_a_window=clips_in_a_window)
    assert len(steps) == n_steps
    assert all(steps), "no step has nothing to learn"
    assert sorted(clip for step in steps for window in step for clip in window.clips) == list(range(n_clips))
    clips = [sum(len(window.clips) for window in step) for step in steps]
    # A clip in a step of few would weigh more than one in a step of many.
    assert max(clips) - min(clips) <= clips_in_a_window
    assert packed or max(clips) <= effective
    for processes in (2, 3, 5):
        sizes = BatchSizes(effective, 2, processes)
        assert _steps(n_clips, sizes, clips_in_a_window=clips_in_a_window) == steps


def test_each_epoch_has_an_order_of_its_own() -> None:
    orders = [_steps(12, BatchSizes(effective=1, micro=1), epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_steps_have_about_as_many_clips_throughout_an_epoch() -> None:
    """Windows of six or seven clips, two or three to a step; the fullest are not the first ones."""
    n_clips, parts = 12_000, 5
    positions = np.random.default_rng(0).integers(150, 300, n_clips)
    lengths = ClipLengths(positions, np.ones(n_clips, np.int64), np.zeros(n_clips, np.int32))
    rules = PackingRules(positions=1450, labels=448, clips=16, apart_share=0.75, timestamped_share=0.125)
    steps = list(TrainingSteps(Packer(lengths, rules, seed=7), BatchSizes(16, 16)))
    clips = np.array([sum(len(window.clips) for window in step) for step in steps])
    assert np.abs(clips - 16).max() <= 3
    of_part = [part.mean() for part in np.array_split(clips, parts)]
    assert of_part == pytest.approx([16] * parts, abs=0.3)


@pytest.mark.parametrize(("sizes", "accumulated"), [((16, 4, 1), 4), ((16, 4, 2), 2), ((16, 4, 3), 2), ((4, 8, 8), 1)])
def test_micro_batches_of_a_full_step(sizes: tuple[int, int, int], accumulated: int) -> None:
    assert BatchSizes(*sizes).accumulated == accumulated


@pytest.mark.parametrize(("micro_batch", "divided"), [(1, [1] * 7), (3, [2, 2, 3]), (4, [3, 4]), (16, [7])])
def test_a_step_is_divided_into_micro_batches_of_about_one_size(
    clips: ClipDataset, collator: Collator, micro_batch: int, divided: list[int]
) -> None:
    windows = [clips[index] for index in range(7)]
    step = StepCollator(collator, micro_batch)(windows)
    assert [len(batch["labels"]) for batch in step.micro_batches] == divided
    assert sorted(int(index) for batch in step.micro_batches for index in batch["clip_index"]) == list(range(7))
    assert step.n_labels == sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in step.micro_batches)
    assert (step.n_windows, step.audio_seconds) == (7, pytest.approx(float(clips.clips.seconds[:7].sum())))


def test_a_process_without_a_window_has_nothing_to_compute(collator: Collator) -> None:
    assert StepCollator(collator, 4)([]) == Step([], n_labels=0, n_windows=0, audio_seconds=0)
