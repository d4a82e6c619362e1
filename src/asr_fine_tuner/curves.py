"""Training curves, as a picture for the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr_fine_tuner.results import METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#33383d"
_BLUE, _ORANGE, _GREEN, _GREY = "#2f6db3", "#d9722b", "#3b8f6b", "#9aa3ab"
# Where characters lead, words are not written apart and their error rates say nothing.
_SHOWN = {
    "wer": {"wer": _BLUE, "wer_orthographic": _GREY, "cer": _GREEN},
    "cer": {"cer": _BLUE, "cer_orthographic": _GREY},
}
_SMALLEST_TEXT = 8.5  # points; the picture is 10 inches wide and about as many hundred pixels in a README

Points = list[tuple[int, float]]


def draw_training_curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    leading: str = "wer",
    base: Mapping[str, float] | None = None,
    best_step: int | None = None,
) -> bool:
    """Draw loss, error rates on validation and learning rate over optimizer steps as a PNG.

    history: `TrainerState.log_history`; where a continued run logged a step twice the later values are drawn, and
        values that are not finite are left out.
    leading: the metric that selected the best checkpoint, `wer` or `cer`.
    base: `eval_loss`, `eval_wer`, ... of the untouched model, drawn at step 0, and as the level to beat.
    best_step: of the checkpoint that was kept, which is marked.

    Returns whether there was anything to draw.
    """
    figure = training_curves(history, leading=leading, base=base, best_step=best_step)
    if figure is None:
        return False
    figure.savefig(path, format="png", metadata={"Software": None})
    return True


def training_curves(
    history: Sequence[Mapping[str, Any]],
    *,
    leading: str = "wer",
    base: Mapping[str, float] | None = None,
    best_step: int | None = None,
) -> Figure | None:
    """The figure that `draw_training_curves` writes; None when there is nothing to draw."""
    # Without pyplot there is no global state, no display and nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if base:
        history = [{**base, "step": 0}, *history]
    rates = {metric: points for metric in _SHOWN[leading] if (points := _points(history, f"eval_{metric}"))}
    losses = {"training": _points(history, "loss"), "validation": _points(history, "eval_loss")}
    learning_rate = _points(history, "learning_rate")
    panels = [any(losses.values()), bool(rates), bool(learning_rate)]
    if not any(panels):
        return None

    widths = [width for width, wanted in zip((1.0, 1.15, 0.7), panels, strict=True) if wanted]
    figure = Figure(figsize=(3.5 * sum(widths), 3.7), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    remaining = iter(all_axes)
    if panels[0]:
        _draw_losses(next(remaining), losses)
    if panels[1]:
        _draw_rates(next(remaining), rates, leading, base or {}, best_step)
    if panels[2]:
        _draw_learning_rate(next(remaining), learning_rate)
    last_step = max(step for points in (*losses.values(), *rates.values(), learning_rate) for step, _ in points)
    for axes in all_axes:
        axes.set_xlim(-0.03 * max(last_step, 1), 1.03 * max(last_step, 1))
    return figure


def _points(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    values = {int(entry["step"]): float(entry[key]) for entry in history if key in entry and "step" in entry}
    return sorted((step, value) for step, value in values.items() if math.isfinite(value))


def _draw_losses(axes: Axes, losses: Mapping[str, Points]) -> None:
    for (name, points), colour in zip(losses.items(), (_BLUE, _ORANGE), strict=True):
        if points:
            _line(axes, points, colour, name, markers=name == "validation")
    _finish(axes, "Loss")


def _draw_rates(
    axes: Axes, rates: Mapping[str, Points], leading: str, base: Mapping[str, float], best_step: int | None
) -> None:
    for metric, points in rates.items():
        percents = [(step, 100 * rate) for step, rate in points]
        label = METRIC_NAMES[metric]
        _line(axes, percents, _SHOWN[leading][metric], label, markers=True, strong=metric == leading)
    if f"eval_{leading}" in base:
        level = 100 * base[f"eval_{leading}"]
        axes.axhline(level, color=_BLUE, linewidth=1.2, linestyle=(0, (4, 3)), label=f"base model, {level:.1f} %")
    for step, best in rates.get(leading, []):
        if step != best_step:
            continue
        axes.plot(
            [step],
            [100 * best],
            linestyle="none",
            marker="*",
            markersize=13,
            color=_INK,
            markeredgecolor="white",
            zorder=5,
            label=f"best checkpoint, {100 * best:.1f} %",
        )
    _finish(axes, "Error rates on validation, %")


def _draw_learning_rate(axes: Axes, points: Points) -> None:
    _line(axes, points, _GREY, "learning rate", markers=False)
    _finish(axes, "Learning rate", legend=False)
    axes.yaxis.set_major_formatter("{x:g}")


def _line(axes: Axes, points: Points, colour: str, label: str, *, markers: bool, strong: bool = True) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(
        steps,
        values,
        color=colour,
        label=label,
        linewidth=1.8 if strong else 1.2,
        marker="o" if markers or len(points) == 1 else None,
        markersize=4 if strong else 3,
        zorder=3 if strong else 2,
    )


def _finish(axes: Axes, title: str, *, legend: bool = True) -> None:
    axes.set_title(title, fontsize=10.5, loc="left", color=_INK)
    axes.set_xlabel("step", fontsize=9, color=_INK)
    axes.tick_params(labelsize=_SMALLEST_TEXT, colors=_INK, length=0)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=6)
    axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)
    axes.grid(axis="y", color="#e4e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c8cd")
    if legend:
        # Below the axes, where it covers nothing.
        below = {"loc": "upper left", "bbox_to_anchor": (-0.03, -0.17), "borderaxespad": 0.0}
        axes.legend(ncols=2, fontsize=_SMALLEST_TEXT, frameon=False, labelcolor=_INK, columnspacing=1.2, **below)
