"""Memory that training takes, and memory that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_run_size import whisper
from tiny_training import changed

from asr_fine_tuner import memory
from asr_fine_tuner.device_plan import training_bytes
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.memory import container_free, evaluation_bytes, free_memory, outline, plan_memory
from asr_fine_tuner.parameters import TrainParameters

GIGABYTE = 10**9


def control_group(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": "inactive_file 1\n"}, None),
        ({"memory.max": "1000\n", "memory.current": "300\n", "memory.stat": "anon 9\ninactive_file 100\n"}, 800),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "300\n",
                "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
            },
            800,
        ),
    ],
    ids=["none", "unlimited", "version 2", "version 1"],
)
def test_a_container_has_what_its_limit_leaves(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    assert container_free(control_group(tmp_path, files)) == free


def test_an_outline_has_shapes_and_no_weights(parameters: TrainParameters) -> None:
    folder = Path(parameters.model_id)
    model, frozen = outline(folder, parameters), outline(folder, changed(parameters, freeze_encoder=True))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert training_bytes(frozen, 1, "fp32") < training_bytes(model, 1, "fp32")


def test_estimates_grow_with_the_batch_and_shrink_with_checkpointing(parameters: TrainParameters) -> None:
    model = outline(Path(parameters.model_id), parameters)
    assert training_bytes(model, 16, "fp32") > 4 * training_bytes(model, 1, "fp32")
    assert training_bytes(model, 16, "bf16") < training_bytes(model, 16, "fp32")
    assert evaluation_bytes(model, 16, 12, "fp32") > evaluation_bytes(model, 8, 12, "fp32")


def test_checkpointing_pays_where_there_are_layers(parameters: TrainParameters) -> None:
    small = whisper(768, 12, 12, 80)
    kept, recomputed = (training_bytes(small, 16, "bf16", checkpointing=on) for on in (False, True))
    assert 10 * GIGABYTE < kept < 20 * GIGABYTE
    assert recomputed < kept / 1.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have more memory than the sizes here")
def test_what_cannot_fit_is_refused(parameters: TrainParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch to train on is divided; a batch to evaluate is not, where nothing tells that memory ran out."""
    model = outline(Path(parameters.model_id), parameters)
    free, _ = free_memory()
    batch = 1
    while training_bytes(model, batch, "fp32") < free:
        batch *= 2
    plan = plan_memory(changed(parameters, train_batch_size=batch), model)
    assert 1 <= plan.device.micro_batch < batch
    assert plan.training < free
    with pytest.raises(PermanentError, match="--eval_batch_size"):
        plan_memory(changed(parameters, eval_batch_size=100 * batch), model)
    small = whisper(768, 12, 12, 80)
    single = changed(parameters, eval_batch_size=1)
    enough = evaluation_bytes(small, 1, parameters.max_sequence_length, "fp32")
    monkeypatch.setattr(memory, "free_memory", lambda: (int(enough), "a small machine"))
    with pytest.raises(PermanentError, match="training on one window at a time"):
        plan_memory(single, small)
