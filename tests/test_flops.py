"""The formula of a training step's floating-point operations, against a counted pass."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.flops import TrainedWeights, TrainingFlops
from asr_fine_tuner.lora import add_adapters

# Every size is another one, so that no two of them can stand for each other.
CONFIG = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "num_mel_bins": 10,
    "max_source_positions": 14,
    "max_target_positions": 32,
    "vocab_size": 90,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
RANK = 4
EVERY_LINEAR = frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"})


def tiny_whisper() -> WhisperForConditionalGeneration:
    # Eager attention is made of plain products, all of which the counter sees.
    return WhisperForConditionalGeneration(WhisperConfig(**CONFIG, attn_implementation="eager")).train()


def counted(model: torch.nn.Module, windows: int, positions: int) -> int:
    """Operations that PyTorch counts in a real forward and backward pass."""
    features = torch.randn(windows, CONFIG["num_mel_bins"], 2 * CONFIG["max_source_positions"])
    tokens = torch.randint(4, CONFIG["vocab_size"], (windows, positions))
    with FlopCounterMode(display=False) as counter:
        model(input_features=features, decoder_input_ids=tokens).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("windows", "positions"), [(1, 1), (1, 32), (3, 7), (8, 20)])
@pytest.mark.parametrize("frozen", [False, True], ids=["all weights", "frozen encoder"])
def test_every_operation_is_counted(windows: int, positions: int, frozen: bool) -> None:
    model = tiny_whisper()
    if frozen:
        model.freeze_encoder()
    flops = TrainingFlops(model.config, TrainedWeights.of(model))
    assert flops(windows, positions) == counted(model, windows, positions)


@pytest.mark.parametrize("frozen", [False, True], ids=["both halves", "decoder only"])
def test_with_adapters_only_their_gradients_and_those_on_the_way_are_counted(frozen: bool) -> None:
    model = tiny_whisper()
    add_adapters(model, TrainParameters(lora_rank=RANK, freeze_encoder=frozen))
    trained = TrainedWeights.of(model)
    assert trained == TrainedWeights(
        encoder=False, decoder=False, lora_rank=RANK, lora_encoder=not frozen, lora_targets=EVERY_LINEAR
    )
    assert TrainingFlops(model.config, trained)(2, 9) == counted(model, 2, 9)


def test_layers_without_an_adapter_are_not_counted_as_if_they_had_one() -> None:
    adapted = get_peft_model(tiny_whisper(), LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]))
    model = adapted.base_model.model
    assert TrainingFlops(model.config, TrainedWeights.of(model))(2, 9) == counted(model, 2, 9)
