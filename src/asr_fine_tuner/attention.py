"""A Whisper that can be told to keep the clips of a window apart: each hears and writes as if it was alone."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, WhisperForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "sdpa_within_clips"
# Not cuDNN's, which PyTorch prefers on an H100: with a mask its gradients can be NaN (pytorch/pytorch#196678).
_KERNELS_FOR_MASKS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Kernels for GPUs copy a mask whose rows are not aligned to this many numbers, in every layer.
_ALIGNED = 8


def attend_within_clips(model: WhisperForConditionalGeneration) -> None:
    """Let the model's forward take what `clip_masks` returns, and `encoder_position_ids`, int64 `[batch, positions]`:
    where in its clip each position of the encoder is. Without them it is what it was."""
    model.set_attn_implementation(_NAME)
    encoder = model.get_encoder()
    # The encoder hands on to its layers what else it is given, and has added the positions of the window by then.
    encoder.layers[0].register_forward_pre_hook(functools.partial(_placed, encoder.embed_positions), with_kwargs=True)


def clip_masks(
    clip_of_label: torch.Tensor, clip_of_position: torch.Tensor, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Arguments of Whisper's forward with which each label and each position of the encoder attends to its own clip,
    and to the silence behind all clips.

    clip_of_label: int64 `[batch, labels]`. clip_of_position: int64 `[batch, positions]`. Clips are numbered from 1
    within a window; 0 is what all of them attend to. A window with nothing but 0 is attended to as ever.
    dtype: that the model computes in.
    """
    causal = torch.ones(clip_of_label.shape[1], clip_of_label.shape[1], dtype=torch.bool, device=clip_of_label.device)
    return {
        "decoder_attention_mask": _attended(clip_of_label, clip_of_label)[:, None] & causal.tril(),
        "encoder_mask": _to_add(_attended(clip_of_position, clip_of_position), dtype),
        "cross_mask": _to_add(_attended(clip_of_label, clip_of_position), dtype),
    }


def _attended(clip_of_query: torch.Tensor, clip_of_key: torch.Tensor) -> torch.Tensor:
    """`[batch, queries, keys]`"""
    keys = clip_of_key[:, None, :]
    return (clip_of_query[:, :, None] == keys) | (keys == 0)


def _to_add(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention adds to its scores, `[batch, 1, queries, keys]`; made once for all layers, which keep it for the
    backward pass. The decoder's own mask is small."""
    batch, queries, keys = attended.shape
    room = torch.zeros(batch, 1, queries, -(-keys // _ALIGNED) * _ALIGNED, dtype=dtype, device=attended.device)
    return room[..., :keys].masked_fill_(~attended[:, None], -torch.inf)


def _placed(
    positions: torch.nn.Embedding, _layer: torch.nn.Module, given: tuple[Any, ...], more: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    position_ids = more.get("encoder_position_ids")
    if position_ids is None:
        return None
    hidden_states, *others = given
    return (hidden_states + (positions.weight[position_ids] - positions.weight), *others), more


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    encoder_mask: torch.Tensor | None = None,
    cross_mask: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention. Whisper takes no mask for its encoder and for the decoder's attention to it, but
    hands on to all of its attention what else its forward was given."""
    if not module.is_causal:
        attention_mask = cross_mask if module.is_decoder else encoder_mask
    with contextlib.nullcontext() if attention_mask is None else sdpa_kernel(_KERNELS_FOR_MASKS):
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return attended


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
