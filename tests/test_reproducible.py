"""Two runs have the same bits, of models and batches so large that threads share the work, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_training import changed, fine_tuning_of
from transformers import TrainerCallback

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.reproducible import reproducible_on_cpu

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradient_of_positions() -> torch.Tensor:
    """Of learned positions that sixteen texts look up, as Whisper's decoder does."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.zeros(448, 96, requires_grad=True)
    looked_up = positions[torch.arange(40).repeat(16, 1)]
    looked_up.backward(torch.randn(looked_up.shape, generator=generator))
    assert positions.grad is not None
    return positions.grad


@cpu_only
@pytest.mark.usefixtures("two_threads")
def test_threads_add_in_one_order() -> None:
    with reproducible_on_cpu():
        first = gradient_of_positions()
        for _ in range(50):
            assert torch.equal(gradient_of_positions(), first)


@cpu_only
def test_all_is_as_it_was_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), reproducible_on_cpu():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


class Watching(TrainerCallback):
    def __init__(self) -> None:
        self.reproducible: list[bool] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.reproducible.append(torch.are_deterministic_algorithms_enabled())


@cpu_only
def test_training_is_so(parameters: TrainParameters) -> None:
    watching = Watching()
    fine_tuning_of(changed(parameters, max_steps=2), watching=[watching]).train()
    assert watching.reproducible == [True, True]
