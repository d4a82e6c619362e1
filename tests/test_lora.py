"""lora.py: adapters alone are trained, kept and resumed; published is plain Whisper, and the adapters beside it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_run_size import whisper
from tiny_training import changed, fine_tuning_of, log_history, short_run, sigterm_at, weights_of
from transformers import WhisperForConditionalGeneration, pipeline

from asr_fine_tuner import InterruptedJob, PermanentError, TrainParameters
from asr_fine_tuner.batches import ClipDataset
from asr_fine_tuner.checkpoints import checkpoint_folder, checkpoints_in, step_of
from asr_fine_tuner.device_plan import training_bytes
from asr_fine_tuner.disk import bytes_below, readable_size
from asr_fine_tuner.lora import add_adapters, load_adapters, merged, without_adapters
from asr_fine_tuner.memory import outline
from asr_fine_tuner.model_folder import published_files
from asr_fine_tuner.platform_folders import PlatformFolders
from asr_fine_tuner.results import read_results
from asr_fine_tuner.run_size import DiskEstimate
from asr_fine_tuner.training import TrainResult, train

LINEAR_LAYERS_OF = {"encoder": 6, "decoder": 10}  # of one layer: attention, once more across, and two of feed-forward


@pytest.fixture
def adapting(parameters: TrainParameters) -> TrainParameters:
    return changed(parameters, lora_rank=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run with adapters, evaluated against its base model."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return train(short_run(tiny_model, tiny_artifact, output_dir=str(folder), lora_rank=4, learning_rate=1e-2))


def _model(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder).eval()


def _logits(model: torch.nn.Module) -> torch.Tensor:
    features = torch.randn((2, 80, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: torch.Tensor = model(input_features=features, decoder_input_ids=torch.tensor([[1, 5, 9]] * 2)).logits
    return logits


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_only_adapters_are_trained(frozen: bool, checkpointing: str, adapting: TrainParameters) -> None:
    given = changed(adapting, freeze_encoder=frozen, gradient_checkpointing=checkpointing, max_steps=3)
    tuning = fine_tuning_of(given)
    model = tuning.trainer.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    reached: list[bool] = []
    model.get_encoder().conv1.register_forward_hook(
        lambda module, _, output: reached.append(output.requires_grad) if module.training else None
    )
    tuning.trainer.train()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in before if ".lora_" in name}
    counts = {part: sum(f".{part}." in name for name in trained) for part in LINEAR_LAYERS_OF}
    assert counts == {"encoder": 0 if frozen else 2 * LINEAR_LAYERS_OF["encoder"], "decoder": 2 * 10}
    assert {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])} == trained
    states = tuning.trainer.optimizer.state.values()
    assert sum(state["exp_avg"].numel() for state in states) == sum(before[name].numel() for name in trained)
    assert set(reached) == {False}, "below the first adapter there is nothing to compute gradients for"


def test_adapters_are_drawn_by_the_seed(adapting: TrainParameters) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(1)
        model = _model(Path(adapting.model_id))
        add_adapters(model, changed(adapting, seed=seed))
        weights: dict[str, torch.Tensor] = model.get_adapter_state_dict()
        return weights

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(weight, same[name]) for name, weight in one.items())
    assert not any(torch.equal(weight, other[name]) for name, weight in one.items() if "lora_A" in name)


def test_training_begins_with_the_base_model_and_merging_keeps_what_was_learned(
    adapting: TrainParameters, tmp_path: Path
) -> None:
    base, model = (_model(Path(adapting.model_id)) for _ in range(2))
    untouched = _logits(base)
    add_adapters(model, adapting)
    assert torch.equal(_logits(model), untouched)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(tmp_path)
    learned = _logits(model)
    assert (learned - untouched).abs().max() > 0.01
    with without_adapters(model):
        assert torch.equal(_logits(model), untouched)
    assert torch.equal(_logits(model), learned)
    whole = merged(base, tmp_path)
    assert type(whole) is WhisperForConditionalGeneration
    assert not hasattr(whole, "peft_config")
    assert torch.allclose(_logits(whole), learned, rtol=0, atol=1e-5)


def test_the_finished_model_is_plain_whisper_with_the_adapter_beside_it(
    adapted: TrainResult, tiny_model: Path, tmp_path: Path
) -> None:
    folder = adapted.model_dir
    assert not list(folder.glob("adapter_*")), "transformers would load it onto the merged weights"
    tuned, base = _model(folder), _model(tiny_model)
    assert tuned.state_dict().keys() == base.state_dict().keys()
    assert pipeline("automatic-speech-recognition", str(folder), device="cpu").model.config == tuned.config
    adapter = PeftModel.from_pretrained(base, str(folder), subfolder="adapter")
    assert torch.allclose(_logits(adapter), _logits(tuned), rtol=0, atol=1e-5)
    assert not torch.allclose(_logits(_model(tiny_model)), _logits(tuned), atol=1e-3)
    (best,) = folder.parent.glob("best-*")
    names = {"adapter_model.safetensors", "adapter_config.json"}
    assert {path.name for path in (folder / "adapter").iterdir()} == names
    assert (
        load_file(best / "adapter_model.safetensors").keys()
        == load_file(folder / "adapter" / "adapter_model.safetensors").keys()
    )
    published = published_files(folder, with_transcripts=False)
    assert {name for name in published if "/" in name} == {f"adapter/{name}" for name in names}
    PlatformFolders(tmp_path, tmp_path / "model").collect(folder, published)
    assert (tmp_path / "model" / "adapter" / "adapter_config.json").is_file()


def test_what_is_told_of_the_adapter(adapted: TrainResult) -> None:
    config = json.loads((adapted.model_dir / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["inference_mode"]) == (4, 8, 0.0, True)
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny-whisper", None)
    assert read_results(adapted.model_dir / "results.json").hyperparameters["lora_rank"] == 4
    card = (adapted.model_dir / "README.md").read_text()
    assert "adapters of rank 4" in card
    assert 'subfolder="adapter"' in card
    for path in (adapted.model_dir.parent).rglob("adapter_config.json"):
        assert str(adapted.model_dir.parent.parent) not in path.read_text()


def test_the_base_model_is_scored_without_the_adapters(adapted: TrainResult, parameters: TrainParameters) -> None:
    tuning = fine_tuning_of(parameters)
    untouched = tuning.trainer.assess(ClipDataset(tuning.clips["test"], longest_first=True), "untouched")
    lines = [json.loads(line) for line in (adapted.model_dir / "predictions.jsonl").read_text().splitlines()]
    assert [line["base_prediction"] for line in lines] == untouched.predictions
    assert adapted.metrics["test_base_wer"] == untouched.scores.wer.rate


def test_a_continued_run_is_the_run_that_was_never_stopped(adapting: TrainParameters, tmp_path: Path) -> None:
    straight = train(adapting)
    stopped = changed(adapting, output_dir=str(tmp_path / "stopped"))
    with sigterm_at("step 4 of 6: loss"), pytest.raises(InterruptedJob):
        train(stopped)
    (checkpoint,) = (path for path in checkpoints_in(tmp_path / "stopped") if step_of(path) > 3)
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    with pytest.raises(PermanentError, match="lora_rank 4 rather than None"):
        train(changed(stopped, lora_rank=None))
    continued = train(stopped)
    assert log_history(tmp_path / "stopped") == log_history(straight.model_dir.parent)
    assert weights_of(continued.model_dir) == weights_of(straight.model_dir)


def test_folders_and_memory_are_as_large_as_estimated(adapted: TrainResult, adapting: TrainParameters) -> None:
    run = adapted.model_dir.parent
    model = outline(Path(adapting.model_id), adapting)
    estimate = DiskEstimate.of(model, transcript_bytes=1000)
    small = 1 << 17  # state, configurations and curves, which do not grow with the model
    assert 0 <= bytes_below(checkpoint_folder(run, 6)) - estimate.checkpoint < small
    (best,) = run.glob("best-*")
    assert 0 <= bytes_below(best) - estimate.kept < small
    assert bytes_below(run) < estimate.job
    whole = outline(Path(adapting.model_id), changed(adapting, lora_rank=None))
    assert estimate.job < DiskEstimate.of(whole, transcript_bytes=1000).job
    assert training_bytes(model, 2, "fp32") < training_bytes(whole, 2, "fp32")


def test_adapters_of_another_rank_are_refused(adapting: TrainParameters, tmp_path: Path) -> None:
    model, other = (_model(Path(adapting.model_id)) for _ in range(2))
    add_adapters(model, adapting)
    model.save_pretrained(tmp_path)
    add_adapters(other, changed(adapting, lora_rank=2))
    with pytest.raises(PermanentError, match="of another rank"):
        load_adapters(other, tmp_path)


def test_a_learning_rate_for_all_weights_is_told(adapting: TrainParameters, caplog: pytest.LogCaptureFixture) -> None:
    fine_tuning_of(adapting)
    assert "--lora_rank" not in caplog.text
    with caplog.at_level(logging.WARNING):
        fine_tuning_of(changed(adapting, learning_rate=1e-5))
    assert "--learning_rate 1e-05 is one for training all weights" in caplog.text


@pytest.mark.parametrize(
    ("name", "width", "decoder", "mels"), [("small", 768, 12, 80), ("large-v3-turbo", 1280, 4, 128)]
)
def test_the_table_of_the_guide(name: str, width: int, decoder: int, mels: int) -> None:
    guide = (Path(__file__).parent.parent / "howto" / "train_container.md").read_text()
    rows = [line.split("|")[2:-1] for line in guide.splitlines() if line.startswith(f"| whisper-{name} |")]
    model = whisper(width, 12 if name == "small" else 32, decoder, mels)
    for row in rows:
        if "lora" in row[0]:
            add_adapters(model, TrainParameters(lora_rank=32))
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        sizes = [readable_size(size) for size in (12 * trained, DiskEstimate.of(model, 0).job)]
        assert [cell.strip() for cell in row[1:]] == [f"{trained / 1e6:.1f} M", *sizes]
    assert len(rows) == 2
