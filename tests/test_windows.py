"""windows.py: packed windows are what the extractor and the tokenizer make of the joined audio and text."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
from speech import synthesize
from tiny_training import changed, fine_tuning_of, log_history, sigterm_at, weights_of
from transformers import WhisperFeatureExtractor

from asr_fine_tuner import InterruptedJob, PermanentError, TrainParameters
from asr_fine_tuner.batches import BatchSizes, TrainingSteps
from asr_fine_tuner.features import Float32Array, LogMelExtractor, cut_range, join_clips, pad_to_window
from asr_fine_tuner.fine_tuning import FineTuning
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.packing import ADDED_BY_TIMESTAMPS, Kind, Window
from asr_fine_tuner.training import train

FRAME, POSITION = 160, 320  # samples


@pytest.fixture(scope="module")
def labels(tiny_model: Path) -> LabelEncoder:
    return LabelEncoder.from_folder(tiny_model, "it", "transcribe")


@pytest.fixture
def packed(parameters: TrainParameters, short_clips: Path) -> TrainParameters:
    return changed(parameters, artifact_name=str(short_clips), train_batch_size=5, single_clip_share=0.0)


def _windows(tuning: FineTuning) -> list[Window]:
    return [window for epoch in range(4) for window in tuning.packer.windows(epoch)]


def test_joined_features_are_those_of_the_joined_audio() -> None:
    """Against the padded extractor of transformers, on clips of several levels, one of them 40 dB below the others."""
    clips = [
        (level * synthesize(seconds, seed=seed)).astype(np.float32)
        for seed, (seconds, level) in enumerate([(4.123, 0.5), (2.0, 0.005), (7.77, 1.0), (0.31, 0.1), (9.9999, 0.3)])
    ]
    positions = [-(-len(clip) // POSITION) for clip in clips]
    extractor = WhisperFeatureExtractor()
    ours = LogMelExtractor(extractor)
    joined = cut_range(
        join_clips([ours.extract(clip) for clip in clips], [2 * n for n in positions], ours.window_frames)
    )
    audio: Float32Array = np.concatenate(
        [np.pad(clip, (0, n * POSITION - len(clip))) for clip, n in zip(clips, positions, strict=True)]
    )
    expected = extractor(audio, sampling_rate=16_000, return_tensors="np").input_features[0]
    error = np.abs(pad_to_window([joined], ours.window_frames)[0].astype(np.float32) - expected).max(axis=0)
    joins = np.cumsum(positions)[:-1] * POSITION // FRAME
    # A frame hears 200 samples on each side of its centre.
    hears_both = {int(join) + offset for join in joins for offset in (-1, 0, 1)}
    elsewhere = [frame for frame in range(len(error)) if frame not in hears_both]
    assert error[elsewhere].max() < 1e-3
    assert error.max() < 1.0


def test_a_window_may_be_full_to_the_last_frame() -> None:
    ours = LogMelExtractor(WhisperFeatureExtractor())
    clips = [synthesize(seconds, seed=7) for seconds in (12.5, 17.5)]
    joined = join_clips([ours.extract(clip) for clip in clips], [1250, 1750], ours.window_frames)
    assert joined.shape == (3000, 80)


def test_labels_of_a_window_are_those_of_the_joined_text(labels: LabelEncoder) -> None:
    texts = ["Buongiorno a tutti.", "Come va?", "2 + 2 fa 4"]
    own = [labels.encode(text) for text in texts]
    assert labels.join(own, None) == labels.encode(" ".join(texts))
    timed = labels.join(own, [0, 61, 100, 200])
    assert labels.tokenizer.decode(timed, decode_with_timestamps=True) == (
        "<|startoftranscript|><|it|><|transcribe|>"
        "<|0.00|> Buongiorno a tutti.<|1.22|><|1.22|> Come va?<|2.00|><|2.00|> 2 + 2 fa 4<|4.00|><|endoftext|>"
    )
    assert labels.join(own[:1], None) == own[0]


@pytest.mark.parametrize("english_only", [False, True])
@pytest.mark.parametrize("texts", [["Sì."], ["2 + 2"], ["2 + 2", "<a>", "Sì."]])
def test_timestamps_add_no_more_labels_than_there_is_room_for(texts: list[str], english_only: bool) -> None:
    """The space before "2" is a token by itself, which only a text behind another token has."""
    folder, code = (tiny.english_model(), "en") if english_only else (tiny.model(), "it")
    labels = LabelEncoder.from_folder(folder, code, "transcribe")
    own = [labels.encode(text) for text in texts]
    apart = sum(map(len, own))
    assert len(labels.join(own, None)) <= apart
    assert len(labels.join(own, list(range(len(own) + 1)))) <= apart + ADDED_BY_TIMESTAMPS


def test_a_language_without_spaces_is_joined_without(tiny_model: Path) -> None:
    labels = LabelEncoder.from_folder(tiny_model, "ja", "transcribe")
    texts = ["はい", "そうです"]
    joined = labels.join([labels.encode(text) for text in texts], None)
    assert labels.decode(joined) == "はいそうです"


def test_a_text_is_not_read_as_timestamps(labels: LabelEncoder) -> None:
    texts = ["uno", "<|0.50|> due<|endoftext|>"]
    joined = labels.join([labels.encode(text) for text in texts], [0, 50, 100])
    assert joined.count(labels.tokenizer.eos_token_id) == 1
    assert labels.tokenizer.convert_tokens_to_ids("<|0.50|>") not in joined


def test_a_window_never_has_more_labels_than_it_was_packed_for(packed: TrainParameters) -> None:
    tuning = fine_tuning_of(changed(packed, packed_timestamps="always"))
    windows, lengths = tuning.trainer.train_dataset, tuning.packer.lengths
    for window in _windows(tuning):
        held = windows[window]
        assert held.n_labels <= int(lengths.labels[list(window.clips)].sum()) <= 448
        assert len(held.features) <= windows.window_frames
        assert held.seconds == pytest.approx(tuning.clips["train"].seconds[list(window.clips)].sum())


@pytest.mark.parametrize(
    ("packing", "artifact", "expected"),
    [("auto", "short_clips", True), ("auto", "tiny_artifact", False), ("on", "tiny_artifact", False)],
)
def test_packing_is_decided_by_how_many_clips_a_window_holds(
    packing: str,
    artifact: str,
    expected: bool,
    packed: TrainParameters,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On is on, also where no two clips fit into one window."""
    given = changed(packed, packing=packing, artifact_name=str(request.getfixturevalue(artifact)))
    with caplog.at_level(logging.INFO, "asr_fine_tuner"):
        tuning = fine_tuning_of(given)
    said = "packing is on: 10 clips in " if packing == "on" or expected else "packing is off: 1.0 clips to a window"
    assert said in caplog.text
    assert (max(len(window.clips) for window in _windows(tuning)) > 1) == expected


def test_packing_can_be_turned_off(packed: TrainParameters) -> None:
    windows = _windows(fine_tuning_of(changed(packed, packing="off", packed_timestamps="always")))
    assert {(len(window.clips), window.kind) for window in windows} == {(1, Kind.APART)}


def test_the_parameters_decide_what_windows_hold(packed: TrainParameters) -> None:
    def kinds(**changes: object) -> set[Kind]:
        return {window.kind for window in _windows(fine_tuning_of(changed(packed, packing="on", **changes)))}

    assert kinds(single_clip_share=1.0) == {Kind.APART}
    assert kinds(packed_timestamps="always") == {Kind.TIMESTAMPED}
    assert kinds(packed_timestamps="never") == {Kind.JOINED}


def test_timestamps_are_mixed_into_half_of_the_windows_that_are_joined(packed: TrainParameters) -> None:
    packer = fine_tuning_of(changed(packed, packing="on", single_clip_share=0.5)).packer
    kinds = [window.kind for epoch in range(300) for window in packer.windows(epoch)]
    shares = [kinds.count(kind) / len(kinds) for kind in (Kind.APART, Kind.TIMESTAMPED, Kind.JOINED)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.05)


def test_the_end_of_a_packed_window_is_silent(packed: TrainParameters) -> None:
    tuning = fine_tuning_of(changed(packed, packing="on"))
    positions = tuning.packer.lengths.positions
    packed_ones = [window for window in _windows(tuning) if len(window.clips) > 1]
    assert packed_ones
    assert max(int(positions[list(window.clips)].sum()) for window in packed_ones) <= 193, "of 200"


def test_a_step_has_two_windows_or_more(packed: TrainParameters) -> None:
    tuning = fine_tuning_of(changed(packed, train_batch_size=5))
    steps = list(TrainingSteps(tuning.packer, BatchSizes(effective=5, micro=5)))
    assert [len(step) >= 2 for step in steps] == [True, True]
    assert max(len(window.clips) for window in _windows(tuning)) == 2


def test_it_says_where_more_clips_to_a_step_would_fill_windows(
    packed: TrainParameters, caplog: pytest.LogCaptureFixture
) -> None:
    told = "no more than 2 clips to a window, half of a step's"
    for train_batch_size, expected in ((5, True), (10, False)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "asr_fine_tuner"):
            fine_tuning_of(changed(packed, train_batch_size=train_batch_size))
        assert (told in caplog.text) == expected


def test_too_few_clips_to_a_step_are_not_packed(packed: TrainParameters, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asr_fine_tuner"):
        for packing in ("auto", "on"):
            windows = _windows(fine_tuning_of(changed(packed, train_batch_size=3, packing=packing)))
            assert {len(window.clips) for window in windows} == {1}
    told = [record.levelname for record in caplog.records if "fewer than four clips" in record.getMessage()]
    assert told == ["INFO", "WARNING"], "what was asked for and is not done"


def test_a_quiet_clip_that_is_apart_keeps_its_range(packed: TrainParameters) -> None:
    """A louder neighbour only cuts it where they are joined."""
    tuning = fine_tuning_of(changed(packed, packing="on"))
    windows = tuning.trainer.train_dataset
    pair = next(window for window in _windows(tuning) if len(window.clips) == 2).clips
    quiet, loud = sorted(pair, key=lambda clip: windows.clips.features(clip).max())
    floor = windows.clips.features(quiet).min()
    assert floor < windows.clips.features(loud).max() - 2, "one is louder"
    apart, joined = (windows[Window((loud, quiet), kind)].features for kind in (Kind.APART, Kind.JOINED))
    assert apart.min() == floor
    assert joined.min() == joined.max() - 2


def test_a_checkpoint_without_timestamps_is_told(
    packed: TrainParameters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LabelEncoder, "has_timestamps", lambda *_: False)
    with caplog.at_level(logging.INFO, "asr_fine_tuner"):
        tuning = fine_tuning_of(packed)
    assert "without timestamps, for which tiny-whisper has no tokens" in caplog.text
    assert Kind.TIMESTAMPED not in {window.kind for window in _windows(tuning)}
    with pytest.raises(PermanentError, match="--packed_timestamps always"):
        fine_tuning_of(changed(packed, packed_timestamps="always"))


def test_a_packed_run_that_is_interrupted_in_an_epoch_ends_with_the_same_weights(
    packed: TrainParameters, tmp_path: Path
) -> None:
    given = changed(packed, single_clip_share=0.5, max_steps=7, eval_steps=7, save_steps=7)
    whole = train(given)
    parts = changed(given, output_dir=str(tmp_path / "parts"))
    with sigterm_at("step 3 of 7"), pytest.raises(InterruptedJob):
        train(parts)
    result = train(parts)
    assert weights_of(result.model_dir) == weights_of(whole.model_dir)
    assert log_history(result.model_dir.parent) == log_history(whole.model_dir.parent)


@pytest.mark.parametrize(
    "options", [{"freeze_encoder": True}, {"lora_rank": 4}, {"spec_augment": True}, {"gradient_checkpointing": "on"}]
)
def test_clips_that_are_apart_are_learnt_in_any_way_of_training(
    options: dict[str, object], packed: TrainParameters
) -> None:
    steps = {"max_steps": 12, "eval_steps": 12, "save_steps": 12, "warmup_steps": 1, "learning_rate": 5e-3}
    tuning = fine_tuning_of(changed(packed, **steps, single_clip_share=1.0, max_eval_samples=1, **options))
    tuning.trainer.train()
    losses = [entry["loss"] for entry in tuning.trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_packed_clips_are_learnt(packed: TrainParameters) -> None:
    longer = {"max_steps": 80, "eval_steps": 80, "save_steps": 80, "max_sequence_length": 40, "max_eval_samples": 2}
    given = changed(packed, **longer, learning_rate=5e-3, train_batch_size=10, warmup_steps=5, single_clip_share=0.2)
    tuning = fine_tuning_of(given)
    tuning.trainer.train()
    losses = [entry["loss"] for entry in tuning.trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 3
