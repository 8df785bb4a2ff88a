"""The charts of a report as PNG files: curves, bars, the confusion matrix, where the time went.

Blue and orange only, which colour-blind eyes tell apart, and never a colour alone: lines are dashed or labelled too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Curve = Sequence[tuple[int, float]]
Color = tuple[int, int, int]

DPI = 110
BLUE, PALE_BLUE, ORANGE, GREY = "#1f5fa8", "#a9c6e6", "#c8620a", "#777777"
# More bars than this one below the other, and the chart gets another column.
_BARS_A_COLUMN = 50
# Up to so many classes the cells of the confusion matrix are large enough for a number.
_NUMBERED_CLASSES = 40
_LONGEST_NAME = 28


def draw_curves(curves: Mapping[str, Curve], baseline: float, path: Path, best_step: int | None = None) -> None:
    """Loss, mIoU, learning rate and samples/s over the steps.

    Args:
        curves: (step, value) points under `loss`, `miou`, `lr` and `samples_per_s`; an empty one is said to be so.
        baseline: mIoU of always answering the commonest class.
        path: PNG to write.
        best_step: Step of the best validation, to mark.
    """
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    (loss, miou), (lr, speed) = figure.subplots(2, 2)
    _line(loss, "training loss", curves["loss"], PALE_BLUE, linewidth=0.8, label="each point")
    loss.plot(*_axes(smoothed(curves["loss"])), color=BLUE, linewidth=1.8, label="smoothed")
    loss.legend(frameon=False)
    _line(miou, "validation mIoU", curves["miou"], BLUE, marker="o", markersize=4)
    miou.set_ylim(0, 1)
    miou.axhline(baseline, color=GREY, linestyle="--", linewidth=1)
    miou.annotate("always the commonest class", (0.02, baseline), xycoords=("axes fraction", "data"), va="bottom")
    best = dict(curves["miou"]).get(best_step) if best_step is not None else None
    last = max((step for curve in curves.values() for step, _ in curve), default=1)
    if best is not None and best_step is not None:
        side = "right" if 2 * best_step > last else "left"
        miou.plot([best_step], [best], marker="o", markersize=10, markerfacecolor="none", color=ORANGE, linestyle="")
        miou.annotate(f"best {best:.4f}", (best_step, best), (0, 10), textcoords="offset points", ha=side)
    _line(lr, "learning rate", curves["lr"], BLUE)
    _line(speed, "training samples/s", curves["samples_per_s"], BLUE)
    speed.set_ylim(bottom=0)
    for axes in (loss, miou, lr, speed):
        axes.set_xlim(0, 1.02 * last)
    _save(figure, path)


def smoothed(curve: Curve, weight: float = 0.9) -> list[tuple[int, float]]:
    """Exponential mean without the start's bias, for reading a noisy loss."""
    mean, norm, result = 0.0, 0.0, []
    for step, value in curve:
        mean, norm = weight * mean + (1 - weight) * value, weight * norm + (1 - weight)
        result.append((step, mean / norm))
    return result


def draw_classes(
    iou: Mapping[str, float | None], path: Path, palette: Mapping[str, Color] | None = None, title: str = "IoU"
) -> None:
    """A bar a class, the best first; classes that do not occur are counted in the title.

    Args:
        iou: By class name, 0..1; None: absent.
        path: PNG to write.
        palette: Colour of each class, shown as a square beside its name.
        title: What is shown.
    """
    ranked = sorted(((value, name) for name, value in iou.items() if value is not None), reverse=True)
    num_columns = max(1, -(-len(ranked) // _BARS_A_COLUMN))
    num_rows = max(1, -(-len(ranked) // num_columns))
    figure = Figure(figsize=(8.5 if num_columns == 1 else 5.2 * num_columns, 1.1 + 0.24 * num_rows))
    figure.set_layout_engine("constrained")
    absent = len(iou) - len(ranked)
    figure.suptitle(f"{title} by class" + (f" ({absent} of {len(iou)} do not occur)" if absent else ""))
    for column, axes in enumerate(figure.subplots(1, num_columns, squeeze=False)[0]):
        _bars(axes, ranked[column * num_rows : (column + 1) * num_rows], num_rows, palette or {})
    _save(figure, path)


def _bars(axes: Axes, ranked: Sequence[tuple[float, str]], num_rows: int, palette: Mapping[str, Color]) -> None:
    places = list(range(len(ranked)))
    bars = axes.barh(places, [value for value, _ in ranked], height=0.72, color=BLUE)
    axes.bar_label(bars, labels=[f"{value:.3f}" for value, _ in ranked], padding=3, fontsize=8)
    for place, (_, name) in zip(places, ranked, strict=True):
        if name in palette:
            color = [channel / 255 for channel in palette[name]]
            axes.barh(place, -0.03, left=-0.01, height=0.72, color=[color], edgecolor=GREY, linewidth=0.5)
    axes.set_yticks(places, [shortened(name) for _, name in ranked], fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.05, 1.1), ylim=(num_rows - 0.4, -0.6), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_confusion(matrix: NDArray[np.integer], names: Sequence[str], path: Path) -> None:
    """The confusion matrix, each row normalised to its class's pixels.

    Classes that neither occur nor are predicted are left out. A row of a class that is only predicted is empty.

    Args:
        matrix: Pixels, (K, K), rows are the truth.
        names: Of the K classes.
        path: PNG to write.

    Raises:
        ValueError: matrix and names do not fit.
    """
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix of shape {matrix.shape} does not fit {len(names)} classes")
    shown = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    shares = normalised(matrix)[np.ix_(shown, shown)]
    num = len(shown)
    cell = 0.42 if num <= _NUMBERED_CLASSES else 0.15
    side = 2.6 + cell * max(num, 6)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    # The square root of the scale shows the few per cent that are confused.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    labels = [shortened(names[i]) for i in shown.tolist()]
    font = 9 if num <= _NUMBERED_CLASSES else 6.5
    axes.set_xticks(range(num), labels, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(range(num), labels, fontsize=font, parse_math=False)
    axes.set(xlabel="prediction", ylabel="truth", title="confusion: where each class's pixels went, per cent")
    if num <= _NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = shares[row, column]
            ink = "white" if share > 0.36 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]))
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    _save(figure, path)


def normalised(matrix: NDArray[np.integer]) -> NDArray[np.float64]:
    """Each row over its sum, (K, K) in [0, 1]; a row without pixels stays 0."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return shares


def largest_confusions(
    matrix: NDArray[np.integer], names: Sequence[str], count: int = 12
) -> list[tuple[str, str, float, float]]:
    """(truth, prediction, share of the truth's pixels, share of all wrong pixels), by pixels, the most first."""
    wrong = np.array(matrix, np.int64)
    np.fill_diagonal(wrong, 0)
    shares, total = normalised(matrix), max(int(wrong.sum()), 1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(i), len(names)) for i in order]
    return [(names[t], names[p], float(shares[t, p]), float(wrong[t, p]) / total) for t, p in pairs if wrong[t, p] > 0]


def draw_time(seconds: Mapping[str, float], path: Path) -> None:
    """A bar a part of the work, with its seconds and its share."""
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    total = sum(seconds.values()) or 1.0
    figure = Figure(figsize=(8.5, 0.9 + 0.36 * max(1, len(parts))), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in parts], [value for _, value in parts], height=0.7, color=BLUE)
    axes.bar_label(bars, labels=[f"{value:,.1f} s, {value / total:.0%}" for _, value in parts], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(title="where the time went", xlabel="seconds")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def shortened(name: str) -> str:
    """A class's name as a label: its first synonym, cut where it is too long."""
    first = name.split(";")[0].split(",")[0].strip() or name
    return first if len(first) <= _LONGEST_NAME else first[: _LONGEST_NAME - 3] + "..."


def _line(axes: Axes, title: str, curve: Curve, color: str, **style: Any) -> None:
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if curve:
        axes.plot(*_axes(curve), color=color, **style)
    else:
        axes.text(0.5, 0.5, "no points", transform=axes.transAxes, ha="center", color=GREY)


def _axes(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, facecolor="white")
