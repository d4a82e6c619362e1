"""The base model: loaded for a language and task, and whether training masks its input."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.manifest import Manifest

# SpecAugment over real frames: each frame begins a mask of 10 frames (0.1 s) with a chance such that about 5 % of the
# time is masked, and likewise for mel bins. The first pair is Whisper's own default in transformers, which has at least
# two masks of time in a clip: more than 5 % where it is shorter than 4 s.
_MASKED_TIME, _MASKED_MELS, _MASK_LENGTH = 0.05, 0.05, 10
# Of the configuration: set for training alone.
_OF_TRAINING = (
    "use_cache",
    "apply_spec_augment",
    "mask_time_prob",
    "mask_time_length",
    "mask_feature_prob",
    "mask_feature_length",
)


def load_base_model(folder: Path, artifact: Manifest) -> WhisperForConditionalGeneration:
    """The model in float32, told the language and the task of the artifact where it has tokens for them.

    Raises:
        PermanentError: its weights cannot be read.
    """
    try:
        model = WhisperForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except SafetensorError as error:
        raise PermanentError(
            given=f"the weights in {folder} cannot be read ({error})",
            expected="whole safetensors files",
            action="download the checkpoint again, or choose another --model_id",
        ) from error
    # Fixed sinusoids, as in openai/whisper, which `from_pretrained` forgets: it makes every weight one that is trained.
    model.get_encoder().embed_positions.requires_grad_(requires_grad=False)
    model.config.forced_decoder_ids = model.generation_config.forced_decoder_ids = None
    if artifact.model.multilingual:
        model.generation_config.language = artifact.encoding.language_token
        model.generation_config.task = artifact.encoding.task
    return model


def set_spec_augment(model: WhisperForConditionalGeneration, *, on: bool) -> None:
    """Mask random spans of the input while training, or do not: a base model that was trained so has it on."""
    model.config.apply_spec_augment = on
    if on:
        model.config.update(
            {
                "mask_time_prob": _MASKED_TIME,
                "mask_time_length": _MASK_LENGTH,
                "mask_feature_prob": _MASKED_MELS,
                "mask_feature_length": _MASK_LENGTH,
            }
        )


def restore_config(model: WhisperForConditionalGeneration, base: Path) -> None:
    """As the base model has it: masking is for training only, and so is doing without the decoder's cache."""
    config = WhisperConfig.from_pretrained(base, local_files_only=True)
    model.config.update({name: getattr(config, name) for name in _OF_TRAINING})
