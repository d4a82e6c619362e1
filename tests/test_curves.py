"""curves.py: what is on the picture, and that there is one whatever the history holds."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asr_fine_tuner.curves import draw_training_curves, training_curves

HISTORY: list[dict[str, Any]] = [
    {"loss": 2.0, "grad_norm": 4.0, "learning_rate": 1e-5, "epoch": 0.5, "step": 25},
    {"loss": 1.0, "grad_norm": 3.0, "learning_rate": 5e-6, "epoch": 1.0, "step": 50},
    {"eval_loss": 1.2, "eval_wer": 0.4, "eval_wer_orthographic": 0.6, "eval_cer": 0.2, "epoch": 1.0, "step": 50},
    {"loss": 0.5, "grad_norm": 2.0, "learning_rate": 0.0, "epoch": 2.0, "step": 100},
    {"eval_loss": 1.1, "eval_wer": 0.3, "eval_wer_orthographic": 0.5, "eval_cer": 0.1, "epoch": 2.0, "step": 100},
    {"train_runtime": 12.0, "train_loss": 1.1, "step": 100},
]


def _lines(history: list[dict[str, Any]], **more: Any) -> dict[str, list[tuple[float, float]]]:
    figure = training_curves(history, **more)
    assert figure is not None
    return {
        str(line.get_label()): list(zip(*map(list, line.get_data()), strict=True))
        for axes in figure.axes
        for line in axes.lines
    }


def test_loss_error_rates_and_learning_rate_are_drawn() -> None:
    lines = _lines(HISTORY, base={"eval_loss": 3.0, "eval_wer": 0.8, "eval_cer": 0.5}, best_step=100)
    assert lines["training"] == [(25, 2.0), (50, 1.0), (100, 0.5)]
    assert lines["validation"] == [(0, 3.0), (50, 1.2), (100, 1.1)]
    assert lines["WER, normalised"] == [(0, 80.0), (50, 40.0), (100, 30.0)]
    assert lines["WER, as written"] == [(50, 60.0), (100, 50.0)]
    assert lines["base model, 80.0 %"][0][1] == 80.0
    assert lines["best checkpoint, 30.0 %"] == [(100, 30.0)]
    assert lines["learning rate"][-1] == (100, 0.0)


def test_no_legend_covers_a_line() -> None:
    figure = training_curves(HISTORY, base={"eval_loss": 3.0, "eval_wer": 0.8, "eval_cer": 0.5}, best_step=100)
    assert figure is not None
    figure.canvas.draw()
    boxes = [(axes.get_window_extent(), legend.get_window_extent()) for axes in figure.axes
             if (legend := axes.get_legend())]  # fmt: skip
    assert len(boxes) == 2
    for axes, legend in boxes:
        assert legend.y1 < axes.y0
        assert figure.bbox.y0 <= legend.y0
        assert legend.x1 <= figure.bbox.x1


def test_where_characters_lead_no_words_are_drawn() -> None:
    lines = _lines(HISTORY, leading="cer", base={"eval_loss": 3.0, "eval_wer": 0.8, "eval_cer": 0.5}, best_step=50)
    assert lines["CER, normalised"] == [(0, 50.0), (50, 20.0), (100, 10.0)]
    assert lines["best checkpoint, 20.0 %"] == [(50, 20.0)]
    assert not any("WER" in label for label in lines)


def test_a_continued_run_draws_each_step_once() -> None:
    again = {"loss": 0.9, "learning_rate": 5e-6, "step": 50}
    assert _lines([*HISTORY, again])["training"] == [(25, 2.0), (50, 0.9), (100, 0.5)]


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        HISTORY[:1],
        [entry for entry in HISTORY if "loss" in entry],
        [{"eval_wer": 0.0, "step": 0}],
        [{"loss": math.nan, "step": 1}, {"loss": 1.0, "step": 2}, {"eval_loss": math.inf, "eval_wer": 0.5, "step": 2}],
    ],
)
def test_there_is_a_picture_whatever_was_logged(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    from matplotlib.image import imread

    path = tmp_path / "training_curves.png"
    assert draw_training_curves(history, path, base={"eval_wer": 0.9}, best_step=100)
    height, width, _ = imread(path).shape
    assert height >= 400
    assert 500 <= width <= 1700
    first = path.read_bytes()
    assert draw_training_curves(history, path, base={"eval_wer": 0.9}, best_step=100)
    assert path.read_bytes() == first


@pytest.mark.parametrize("history", [[], [{"train_runtime": 1.0, "step": 5}], [{"loss": math.nan, "step": 1}]])
def test_there_is_none_of_nothing(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    path = tmp_path / "training_curves.png"
    assert not draw_training_curves(history, path)
    assert not path.exists()


def test_no_window_system_is_asked_for(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from asr_fine_tuner.curves import draw_training_curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert draw_training_curves([{'loss': 1.0, 'step': 1}], Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "curves.png")], check=True)
