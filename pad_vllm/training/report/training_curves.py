"""curves.png of a training run: loss by stage, validation accuracy by dimension.

In: the history, rows of {"stage", "step", "loss", "accuracy": {dimension: share} or absent}. Out: a PNG.
Knows nothing of models or recipes. Drawn without pyplot, so that no global state changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; markers differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_GREY = "#666666"


class _Point(NamedTuple):
    """One row of the history, on an axis of steps that runs on over the stages."""

    stage: int
    at: int  # position on the axis
    loss: float | None
    accuracy: Mapping[str, float]  # dimension -> share; empty if the row has none


class CurveLabels(NamedTuple):
    """How the history's "accuracy" is shown."""

    title: str
    axis_label: str
    baseline: tuple[str, float]  # name and height, in percent, of the line for a guess
    least_range: tuple[float, float]  # percentages that the axis covers at least


PAIR_ACCURACY = CurveLabels(
    "Validation accuracy", "pairs ranked rightly, %", ("chance", 50), (47, 60)
)
SHARE_EXPLAINED = CurveLabels(
    "Validation prompts", "of the teacher's rewards, %", ("no reward", 0), (-3, 10)
)


def plot_training_curves(
    history: Sequence[Mapping[str, Any]], path: Path, labels: CurveLabels = PAIR_ACCURACY
) -> None:
    """Draw loss and accuracy over the steps.

    Args:
        history: Its steps may run on from stage to stage or begin again in each.
        path: The PNG to write.
        labels: What the accuracy is called.

    Raises:
        ValueError: No row has a loss or an accuracy.
    """
    points = _points(history)
    with_accuracy = any(point.accuracy for point in points)
    if not with_accuracy and all(point.loss is None for point in points):
        raise ValueError(
            f"the history's {len(points)} rows have neither loss nor accuracy; accepted: at least "
            "one row that has. Log while training, or leave the picture out."
        )
    figure = Figure(figsize=(8, 6.4 if with_accuracy else 3.6), dpi=150, layout="constrained")
    rows = figure.subplots(2 if with_accuracy else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(rows[0], points)
    if with_accuracy:
        _draw_accuracies(rows[1], points, labels)
    rows[-1].set_xlabel("step")
    for axes in rows:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
        _draw_stage_boundaries(axes, points)
        # Outside the axes, so that the legend hides no curve.
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, format="png")


def _points(history: Sequence[Mapping[str, Any]]) -> list[_Point]:
    points: list[_Point] = []
    shift = 0
    for row in history:
        if points and row["stage"] != points[-1].stage and row["step"] <= points[-1].at:
            shift = points[-1].at
        points.append(
            _Point(row["stage"], row["step"] + shift, row.get("loss"), row.get("accuracy") or {})
        )
    return points


def _draw_losses(axes: Axes, points: list[_Point]) -> None:
    for number, stage in enumerate(_stages(points)):
        of_stage = [p for p in points if p.stage == stage and p.loss is not None]
        if not of_stage:
            continue
        at, loss = [p.at for p in of_stage], np.array([p.loss for p in of_stage])
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(at, loss, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(at, _smooth(loss), color=colour, linewidth=2, label=f"stage {stage}")
    axes.set_ylabel("training loss")
    axes.set_title("Training loss, raw and smoothed", loc="left", fontsize=11)


def _draw_accuracies(axes: Axes, points: list[_Point], labels: CurveLabels) -> None:
    names = list(dict.fromkeys(name for point in points for name in point.accuracy))
    for number, name in enumerate(names):
        of_dimension = [p for p in points if name in p.accuracy]
        axes.plot(
            [p.at for p in of_dimension],
            [100 * p.accuracy[name] for p in of_dimension],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            # After seven names the colours repeat with another line style.
            linestyle=("-", "--", ":")[number // len(_COLOURS) % 3],
            markersize=4.5,
            linewidth=1.6,
            label=name,
        )
    name, level = labels.baseline
    axes.axhline(level, color=_GREY, linestyle="--", linewidth=1, label=name, zorder=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, labels.least_range[0]), max(high, labels.least_range[1]))
    axes.set_ylabel(labels.axis_label)
    axes.set_title(labels.title, loc="left", fontsize=11)


def _draw_stage_boundaries(axes: Axes, points: list[_Point]) -> None:
    """A line between each two stages."""
    for stage in _stages(points)[1:]:
        first = min(p.at for p in points if p.stage == stage)
        last = max((p.at for p in points if p.at < first), default=first)
        axes.axvline((first + last) / 2, color=_GREY, linestyle=":", linewidth=1.2)


def _stages(points: list[_Point]) -> list[int]:
    return list(dict.fromkeys(point.stage for point in points))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twelfth of the values; over fewer at both ends."""
    window = np.ones(max(1, len(values) // 12) | 1)
    if len(window) > len(values):
        return values
    total = np.convolve(values, window, "same")
    return total / np.convolve(np.ones_like(values), window, "same")
