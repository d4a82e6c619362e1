"""compilation.py: a compiled encoder computes and is saved like any other; where it cannot be had, that is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tiny_training import changed, fine_tuning_of
from transformers import WhisperForConditionalGeneration

from asr_fine_tuner import PermanentError, TrainParameters, fine_tuning
from asr_fine_tuner.attention import attend_within_clips, clip_masks
from asr_fine_tuner.compilation import check_can_compile, compile_encoder
from asr_fine_tuner.training import train


def test_a_compiled_encoder_learns_the_same(tiny_model: Path) -> None:
    """Through Dynamo, which takes the model apart; the code generator behind it needs minutes on a processor."""
    graphs = []

    def note(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    models = [WhisperForConditionalGeneration.from_pretrained(tiny_model).train() for _ in range(2)]
    compile_encoder(models[1], backend=note)
    for model in models:
        attend_within_clips(model)
    for n_windows, apart in itertools.product((2, 3, 5), (False, True)):
        torch.manual_seed(n_windows)
        n_labels = 4 + n_windows
        given = {
            "input_features": torch.randn(n_windows, 80, 400),
            "labels": torch.randint(0, 500, (n_windows, n_labels)),
        }
        if apart:
            clip_of_position = torch.randint(0, 2, (n_windows, 200)).cumsum(1)
            given |= clip_masks(torch.ones(n_windows, n_labels, dtype=torch.long), clip_of_position, torch.float32)
            given["encoder_position_ids"] = torch.randint(0, 200, (n_windows, 200))
        plain, compiled = (model(**given).loss for model in models)
        torch.testing.assert_close(plain, compiled)
        for loss in (plain, compiled):
            loss.backward()
    assert 2 <= len(graphs) <= 4, "not compiled anew for each number of windows"
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    for (name, weight), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad, msg=name)


def test_the_parameter_compiles_the_encoder_alone(parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tuning, "check_can_compile", lambda: None)
    for asked in (True, False):
        model = fine_tuning_of(changed(parameters, compile=asked)).trainer.model
        # What torch calls instead of the module's own forward; it compiles at the first call.
        assert (model.get_encoder()._compiled_call_impl is not None) == asked
        assert model.get_decoder()._compiled_call_impl is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is compiled")
def test_without_a_gpu_it_is_refused(parameters: TrainParameters) -> None:
    with pytest.raises(PermanentError, match="--compile true on a machine without a GPU"):
        train(changed(parameters, compile=True))


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_can_compile()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(PermanentError, match="no C compiler"):
        check_can_compile()
    monkeypatch.setenv("CC", "/opt/cc")
    check_can_compile()
