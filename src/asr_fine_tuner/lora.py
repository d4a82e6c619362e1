"""Low-rank adapters, trained in the place of the weights they adapt, and merged into these in the end.

Beside the weight W of each linear layer two narrow ones are trained, and the layer computes with W + scale * B A. B is
zero at first, so that training begins with the base model. Hu et al. 2021, LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)

from asr_fine_tuner.checkpoint_files import ADAPTER_WEIGHTS
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.parameters import TrainParameters

# Every linear layer, of attention and feed-forward: adapters of attention alone learn less with as many weights.
# Dettmers et al. 2023, QLoRA, arXiv 2305.14314, figure 2; Biderman et al. 2024, arXiv 2405.09673.
_LINEAR_LAYERS = r"layers\.\d+\.(.*_attn\.(q|k|v|out)_proj|fc1|fc2)"
# B A counts twice, whatever the rank (alpha over rank): as in Biderman et al. 2024.
_SCALE = 2
_PREFIX = "base_model.model."  # of the names in the adapter's file, which a PeftModel would have


def add_adapters(model: WhisperForConditionalGeneration, parameters: TrainParameters) -> None:
    """Put adapters of `lora_rank` beside the linear layers; of the decoder alone where the encoder is frozen.

    Only they are trained from then on. They are drawn by the seed of the run, and by nothing drawn before.
    """
    assert parameters.lora_rank is not None  # noqa: S101 - the caller asks for adapters
    config = LoraConfig(
        r=parameters.lora_rank,
        lora_alpha=_SCALE * parameters.lora_rank,
        # No dropout, as Whisper was trained: Radford et al. 2022, arXiv 2212.04356, section 2.4.
        lora_dropout=0.0,
        target_modules=rf"model\.{'decoder' if parameters.freeze_encoder else '(encoder|decoder)'}\.{_LINEAR_LAYERS}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parameters.seed)
        model.add_adapter(config)
    # Not the folder of the weights, which is nobody's business; nor the public name: peft would ask the Hub about it
    # whenever adapters are saved.
    config.base_model_name_or_path = None


def has_adapters(model: WhisperForConditionalGeneration) -> bool:
    """Whether adapters are trained: `save_pretrained` then writes these alone."""
    return bool(model._hf_peft_config_loaded)


def load_adapters(model: WhisperForConditionalGeneration, folder: Path) -> None:
    """Take the adapters that `save_pretrained` wrote to `folder`.

    Raises:
        PermanentError: they are not those of this model.
    """
    weights = {name.removeprefix(_PREFIX): weight for name, weight in load_file(folder / ADAPTER_WEIGHTS).items()}
    shapes, expected = ({name: weight.shape for name, weight in of.items()} for of in (weights, _adapters_of(model)))
    if shapes != expected:
        raise PermanentError(
            given=f"{folder}: adapters of other layers or of another rank than are trained",
            expected="adapters that this run has written",
            action="restore the folder from a copy, or move it away",
        )
    set_peft_model_state_dict(model, weights)


def _adapters_of(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    adapters: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
    return adapters


@contextlib.contextmanager
def without_adapters(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Within the block the model is the base model."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def merged(base: WhisperForConditionalGeneration, folder: Path) -> WhisperForConditionalGeneration:
    """`base`, in float32, with the adapters in `folder` merged into its weights; changes `base` itself."""
    config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
    adapted = LoraModel(base, config, "default")
    load_adapters(base, folder)
    model: WhisperForConditionalGeneration = adapted.merge_and_unload(safe_merge=True)
    return model


def publish_adapter(source: Path, target: Path, base_model: str, revision: str | None) -> None:
    """Write the adapters in `source` to the folder `target`, for peft to put into the base model.

    base_model: its public name. revision: its commit on the Hub; None of one that is not there.
    """
    config = LoraConfig.from_pretrained(str(source), local_files_only=True)
    config.base_model_name_or_path, config.revision, config.inference_mode = base_model, revision, True
    config.save_pretrained(str(target))
    shutil.copyfile(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)


class NoGradientOfTheInput(TrainerCallback):
    """Lets the backward pass end at the first adapter.

    With adapters transformers has the input of encoder and decoder ask for gradients under gradient checkpointing,
    which only its reentrant form needs. The gradients would go through a frozen encoder, to nobody's use.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the callback's own signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        *,
        model: WhisperForConditionalGeneration,
        **_: Any,
    ) -> None:
        model.disable_input_require_grads()
