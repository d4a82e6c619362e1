"""training_arguments.py: every parameter of the train job takes effect; what this file does not show is named here.

`ARGUMENTS` are seen in the trainer's arguments, `ELSEWHERE` names the test that sees the effect of the others.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import changed, fine_tuning_of

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.training_arguments import (
    DevicePlan,
    training_arguments,
)

TESTS = Path(__file__).parent
PLAN = DevicePlan("cpu", "fp32", gradient_checkpointing=False, micro_batch=16)

# Parameter -> a value that is not its default, the argument of the trainer that has it, and the default there.
ARGUMENTS: dict[str, tuple[object, str, object]] = {
    "max_steps": (7, "max_steps", 5000),
    "learning_rate": (3e-4, "learning_rate", 1e-5),
    "lr_scheduler": ("cosine", "lr_scheduler_type", "linear"),
    "warmup_steps": (9, "warmup_steps", 500),
    "train_batch_size": (3, "per_device_train_batch_size", 16),
    "eval_batch_size": (6, "per_device_eval_batch_size", 8),
    "max_sequence_length": (60, "generation_max_length", 255),
    "logging_steps": (2, "logging_steps", 25),
    "eval_steps": (4, "eval_steps", 1000),
    "save_steps": (8, "save_steps", 1000),
    "seed": (1, "seed", 42),
}

ELSEWHERE = {
    "eval_subset": "test_fine_tuning.test_a_part_of_validation_is_evaluated_while_training_and_all_of_it_at_the_end",
    "compile": "test_compilation.test_the_parameter_compiles_the_encoder_alone",
    "grad_accum_steps": "test_trainer.test_accumulated_gradients_are_those_of_one_large_batch",
    "packing": "test_windows.test_packing_is_decided_by_how_many_clips_a_window_holds",
    "single_clip_share": "test_windows.test_the_parameters_decide_what_windows_hold",
    "packed_timestamps": "test_windows.test_the_parameters_decide_what_windows_hold",
    "model_id": "test_fine_tuning.test_the_base_model_is_the_one_asked_for",
    "model_revision": "test_publish_job.test_the_revision_of_the_model_is_the_one_asked_for",
    "dataset_name": "test_training_input.test_parameters_that_the_artifact_was_not_made_with_are_refused",
    "dataset_revision": "test_training_input.test_parameters_that_the_artifact_was_not_made_with_are_refused",
    "artifact_name": "test_training_input.test_an_artifact_is_found_by_path_by_name_and_by_what_it_was_made_of",
    "language_code": "test_training_input.test_parameters_that_the_artifact_was_not_made_with_are_refused",
    "language": "test_training_input.test_parameters_that_the_artifact_was_not_made_with_are_refused",
    "task": "test_training_input.test_parameters_that_the_artifact_was_not_made_with_are_refused",
    "max_train_samples": "test_training_input.test_caps_take_the_first_clips",
    "max_eval_samples": "test_training_input.test_caps_take_the_first_clips",
    "model_name": "test_training.test_names_and_folders_are_those_asked_for",
    "output_dir": "test_training.test_names_and_folders_are_those_asked_for",
    "evaluate_base": "test_training.test_without_the_base_model_the_weights_are_the_same",
    "early_stopping_patience": "test_trainer.test_training_stops_when_nothing_gets_better",
    "precision": "test_training_arguments.test_precision_reaches_the_arithmetic",
    "gradient_checkpointing": "test_training_arguments.test_gradient_checkpointing_computes_activations_again",
    "freeze_encoder": "test_fine_tuning.test_a_frozen_encoder_keeps_its_weights",
    "lora_rank": "test_lora.test_only_adapters_are_trained",
    "spec_augment": "test_fine_tuning.test_masks_lie_on_real_frames_and_only_while_training",
    "publish": "test_publish_job.test_a_finished_model_is_published_by_the_list",
    "private": "test_publish_job.test_a_private_model_is_private_and_may_quote_a_local_dataset",
    "grace_period": "faults/test_interrupted.test_the_grace_time_is_the_one_asked_for",
    "resume": "test_training.test_a_folder_in_use_is_refused",
}


def _arguments(parameters: TrainParameters, tmp_path: Path) -> Any:
    return training_arguments(parameters, tmp_path, PLAN)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_parameter_is_the_trainers_argument(name: str, tmp_path: Path) -> None:
    value, argument, default = ARGUMENTS[name]
    assert getattr(_arguments(TrainParameters(), tmp_path), argument) == default
    assert getattr(_arguments(changed(TrainParameters(), **{name: value}), tmp_path), argument) == value


def test_ranks_share_the_order_of_the_clips_and_nothing_else_that_is_drawn(tmp_path: Path) -> None:
    first, second = (training_arguments(TrainParameters(), tmp_path, PLAN, rank) for rank in (0, 1))
    assert (first.seed, second.seed) == (42, 43)
    assert first.data_seed == second.data_seed == 42


def test_no_parameter_is_left_without_a_proof() -> None:
    assert {*ARGUMENTS, *ELSEWHERE} == set(TrainParameters.model_fields)
    for name, proof in ELSEWHERE.items():
        module, function = proof.split(".")
        tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_the_seed_orders_the_data_too(tmp_path: Path) -> None:
    assert _arguments(TrainParameters(seed=1), tmp_path).data_seed == 1


def test_nothing_of_the_arguments_can_publish_or_hold_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanary")
    arguments = _arguments(TrainParameters(publish=True), tmp_path)
    assert not arguments.push_to_hub
    assert arguments.hub_token is None
    assert arguments.report_to == []
    assert "canary" not in repr(arguments) + arguments.to_json_string()


@pytest.mark.parametrize(
    "scheduler", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]
)
def test_every_scheduler_runs(scheduler: str, tmp_path: Path) -> None:
    from transformers import get_scheduler

    parameters = changed(TrainParameters(), lr_scheduler=scheduler, warmup_steps=2, max_steps=6)
    arguments = _arguments(parameters, tmp_path)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=arguments.learning_rate)
    schedule = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, arguments.max_steps)
    rates = []
    for _ in range(6):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert max(rates) == pytest.approx(parameters.learning_rate)


def test_a_warm_up_that_never_ends_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _arguments(TrainParameters(max_steps=100, warmup_steps=99), tmp_path)
    assert not caplog.records
    _arguments(TrainParameters(max_steps=100), tmp_path)
    assert "--warmup_steps 500 is not below --max_steps 100" in caplog.text


@pytest.mark.parametrize(("precision", "type_"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_reaches_the_arithmetic(precision: str, type_: torch.dtype, parameters: TrainParameters) -> None:
    tuning = fine_tuning_of(changed(parameters, precision=precision, max_steps=1, eval_steps=1))
    computed: list[torch.dtype] = []
    layer = tuning.trainer.model.get_decoder().layers[0].fc1
    layer.register_forward_hook(lambda module, _inputs, output: computed.append(output.dtype))
    tuning.trainer.train()
    assert set(computed) == {type_}
    assert {weight.dtype for weight in tuning.trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("switch", "times"), [("off", 1), ("on", 2)])
def test_gradient_checkpointing_computes_activations_again(
    switch: str, times: int, parameters: TrainParameters
) -> None:
    tuning = fine_tuning_of(changed(parameters, gradient_checkpointing=switch, max_steps=1))
    computed: list[str] = []

    def note(module: torch.nn.Module, _inputs: object, _output: object) -> None:
        if module.training:
            computed.append("forward")

    tuning.trainer.model.get_encoder().layers[0].fc1.register_forward_hook(note)
    tuning.trainer.train()
    assert len(computed) == times


def test_checkpointing_gives_the_same_gradients(parameters: TrainParameters, tmp_path: Path) -> None:
    losses = []
    for switch in ("off", "on"):
        given = changed(parameters, gradient_checkpointing=switch, max_steps=2, output_dir=str(tmp_path / switch))
        tuning = fine_tuning_of(given)
        tuning.trainer.train()
        losses.append([(row["loss"], row["grad_norm"]) for row in tuning.trainer.state.log_history if "loss" in row])
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)
