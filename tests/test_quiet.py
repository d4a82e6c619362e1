"""A caller of the package sees neither bars nor warnings of the libraries, and gets its own settings back."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
from tiny_training import changed
from transformers.utils import logging as transformers_logging

from asr_fine_tuner import TrainParameters, train
from asr_fine_tuner.quiet import quiet_libraries


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has set up nothing: bars are shown, and warnings."""
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    # By its full name it is the class in it.
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    yield
    transformers_logging.set_verbosity(before)


@pytest.mark.usefixtures("shown")
def test_training_shows_our_results_only(
    parameters: TrainParameters, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    list(transformers_logging.tqdm(range(1), desc="a bar"))
    transformers_logging.get_logger("transformers").warning("a warning")
    assert "a bar" in capfd.readouterr().err
    assert "a warning" in caplog.text
    caplog.clear()

    train(changed(parameters, max_steps=1, warmup_steps=0, eval_steps=1))
    out, told = capfd.readouterr()
    assert out == ""
    assert "error rates, lower is better" in told
    assert "%|" not in told
    assert {record.name.split(".")[0] for record in caplog.records} <= {"asr_fine_tuner"}


@pytest.mark.usefixtures("shown")
def test_settings_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), quiet_libraries():
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
        assert not logging.getLogger("huggingface_hub").handlers
        raise KeyError
    assert transformers_logging.get_verbosity() == transformers_logging.WARNING
    assert transformers_logging.is_progress_bar_enabled()
    assert logging.getLogger("huggingface_hub").handlers
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    transformers_logging.set_verbosity_info()
    with quiet_libraries():
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
