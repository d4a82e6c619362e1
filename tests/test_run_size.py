"""The disk estimate against the folders that a train job really writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import changed, fine_tuning_of
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_fine_tuner.checkpoints import checkpoint_folder
from asr_fine_tuner.device_plan import training_bytes
from asr_fine_tuner.disk import bytes_below, readable_size
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.hub import download_model
from asr_fine_tuner.memory import outline
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.run_size import DiskEstimate, check_room, transcript_bytes
from asr_fine_tuner.training import TrainResult
from asr_fine_tuner.training_input import open_artifact

# Besides weights and moments: the trainer's state, tokenizer, configurations, curves. None grows with the model.
SMALL = 1 << 20


@pytest.fixture
def estimate(memorising: TrainParameters) -> DiskEstimate:
    return DiskEstimate.of(outline(Path(memorising.model_id), memorising), transcript_bytes=1000)


def test_folders_are_as_large_as_estimated(memorised: TrainResult, estimate: DiskEstimate) -> None:
    run = memorised.model_dir.parent
    assert 0 <= bytes_below(checkpoint_folder(run, 60)) - estimate.checkpoint < SMALL
    assert 0 <= bytes_below(memorised.model_dir) - estimate.weights < SMALL
    (best,) = run.glob("best-*")
    assert 0 <= bytes_below(best) - estimate.weights < SMALL
    assert bytes_below(run) < estimate.job


def test_a_frozen_encoder_has_no_moments(parameters: TrainParameters) -> None:
    frozen = changed(parameters, freeze_encoder=True, max_steps=1, save_steps=1)
    fine_tuning = fine_tuning_of(frozen)
    fine_tuning.train()
    written = bytes_below(checkpoint_folder(fine_tuning.run.folder, 1))
    model = Path(frozen.model_id)
    estimated = DiskEstimate.of(outline(model, frozen), 0).checkpoint
    assert 0 <= written - estimated < SMALL // 4
    assert estimated < 0.9 * DiskEstimate.of(outline(model, parameters), 0).checkpoint


def whisper(width: int, encoder: int, decoder: int, mels: int) -> WhisperForConditionalGeneration:
    """The shapes of a checkpoint of OpenAI's."""
    heads = {"encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64}
    layers = {"encoder_layers": encoder, "decoder_layers": decoder}
    inner = {"encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}
    with torch.device("meta"):
        return WhisperForConditionalGeneration(
            WhisperConfig(d_model=width, num_mel_bins=mels, **heads, **layers, **inner)
        )


@pytest.mark.parametrize(
    ("name", "width", "encoder", "decoder", "mels"),
    [
        ("tiny", 384, 4, 4, 80),
        ("base", 512, 6, 6, 80),
        ("small", 768, 12, 12, 80),
        ("medium", 1024, 24, 24, 80),
        ("large-v3", 1280, 32, 32, 128),
        ("large-v3-turbo", 1280, 32, 4, 128),
    ],
)
def test_the_table_of_the_guide(name: str, width: int, encoder: int, decoder: int, mels: int) -> None:
    guide = Path(__file__).parent.parent / "howto" / "operations.md"
    (row,) = (line for line in guide.read_text().splitlines() if line.startswith(f"| whisper-{name} |"))
    model = whisper(width, encoder, decoder, mels)
    weights = sum(weight.numel() for weight in model.parameters())
    kept, recomputed = (training_bytes(model, 16, "bf16", checkpointing=on) for on in (False, True))
    sizes = (DiskEstimate.of(model, 0).job, kept, recomputed)
    expected = [f"{weights / 1e6:.1f} M", *(readable_size(size) for size in sizes)]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == expected


def test_room_is_looked_for_before_training(
    memorising: TrainParameters, memorised: TrainResult, estimate: DiskEstimate, caplog: pytest.LogCaptureFixture
) -> None:
    source, model = open_artifact(memorising), download_model(memorising.model_id, None, weights=False)
    run = memorised.model_dir.parent

    def check(folder: Path, free: int) -> None:
        check_room(folder, source, model, memorising, lambda path: free)

    new, most = run.with_name("new"), estimate.job - estimate.transcripts + 12 * transcript_bytes(source)
    check(new, most)
    check(run, most - bytes_below(run))
    assert not caplog.records
    check(new, most - 1)
    check(new, estimate.least)
    assert caplog.text.count("the disk may become full") == 2
    with pytest.raises(PermanentError) as refused:
        check(new, estimate.least - 1)
    assert f"free at {new}" in refused.value.given
    assert "0 bytes to download" in refused.value.expected


def test_the_formula_of_the_guide() -> None:
    estimate = DiskEstimate.of(whisper(384, 4, 4, 80), transcript_bytes=1000)
    weights, checkpoint = estimate.weights, estimate.checkpoint
    assert estimate.least == checkpoint + 2 * weights
    assert estimate.job == 3 * checkpoint + 3 * weights + 12 * 1000 + (32 << 20)
    assert 0.7 * estimate.job < estimate.rehearsal < 0.8 * estimate.job
