"""The charts of a search's report: a map of two variables, curves, importance, speed and value.

As in `charts`: blue, orange and grey, and never a colour alone. Scales of one colour are dark for what is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from segfleet_jobs.charts import BLUE, DPI, GREY, ORANGE, PALE_BLUE
from segfleet_jobs.name_places import place_name, place_of_point
from segfleet_jobs.search_variables import Value, Variable, cut, label

_SCALE = LinearSegmentedColormap.from_list("better is darker", ["#c9dcef", "#5b93c9", "#08306b"])
# With more points than this, only the front and so many of the best have names.
_NAMED_POINTS = 20
_NAMED_CURVES = 5
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True, slots=True)
class Line:
    """The learning curve of a trial.

    Attributes:
        name: Of the trial.
        steps: Of its validations.
        hours: Worker-hours until then.
        values: Of the metric; nan where it was no number.
        is_final: Whether it is the retraining of the best.
    """

    name: str
    steps: Sequence[int]
    hours: Sequence[float]
    values: Sequence[float]
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A trial with its speed and its value."""

    name: str
    speed: float
    value: float
    is_front: bool


def draw_map(
    rows: Variable,
    columns: Variable,
    cells: Mapping[tuple[int, int], tuple[float | None, str]],
    metric: str,
    path: Path,
    is_less_better: bool = False,
) -> None:
    """A cell for each pair of values.

    Args:
        rows: The variable from top to bottom.
        columns: The one from left to right.
        cells: Best value and text by places among the levels; a value of None: its text says why there is none.
        metric: What the values are.
        path: PNG to write.
        is_less_better: Whether smaller values are better.
    """
    scale = value_scale(is_less_better)
    values = np.full((len(rows.levels), len(columns.levels)), np.nan)
    for place, (value, _) in cells.items():
        values[place] = math.nan if value is None else value
    figure = Figure(figsize=(3.6 + 1.25 * len(columns.levels), 1.9 + 0.72 * len(rows.levels)), layout="constrained")
    axes = figure.subplots()
    norm = value_norm(values)
    axes.imshow(values, cmap=scale, norm=norm, aspect="auto")
    for row in range(len(rows.levels)):
        for column in range(len(columns.levels)):
            value, text = cells.get((row, column), (None, "no run"))
            is_dark = value is not None and (norm(value) > 0.5) != is_less_better
            ink = "white" if is_dark else "black" if value is not None else GREY
            style = "normal" if value is not None else "italic"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9, style=style, parse_math=False)
    axes.set_xticks(range(len(columns.levels)), level_texts(columns.levels), parse_math=False)
    axes.set_yticks(range(len(rows.levels)), level_texts(rows.levels), parse_math=False)
    if sum(map(len, level_texts(columns.levels))) > 13 * len(columns.levels):
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel(columns.name, parse_math=False)
    axes.set_ylabel(rows.name, parse_math=False)
    axes.set_xticks(np.arange(len(columns.levels) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows.levels) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    color_bar(figure, axes, ScalarMappable(norm, scale), f"best {metric}")
    save(figure, path)


def draw_learning(lines: Sequence[Line], metric: str, mode: str, path: Path) -> None:
    """The learning curves of all trials, over steps and over what they have cost; the best ones by name.

    Args:
        lines: The curves.
        metric: What they show.
        mode: Whether `max` or `min` is better.
        path: PNG to write.
    """
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    sign = 1 if mode == "max" else -1
    known = [line for line in lines if any(map(math.isfinite, line.values))]
    ranked = sorted(known, key=lambda line: -max(sign * value for value in line.values if math.isfinite(value)))
    named = [line for line in ranked if not line.is_final][:_NAMED_CURVES] + [line for line in known if line.is_final]
    for axes, title, of in zip(panels, ("steps", "worker-hours"), ("steps", "hours"), strict=True):
        for line in known:
            if line not in named:
                axes.plot(
                    getattr(line, of), line.values, color=GREY, alpha=0.4, linewidth=0.9, marker=".", markersize=3
                )
        for place, line in enumerate(named):
            axes.plot(getattr(line, of), line.values, label=cut(line.name), markersize=5, **_style(place, line))
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(metric, parse_math=False)
    rest = len(known) - len(named)
    if named:
        title = f"the best {len(named)}" + (f"; grey: {rest} others" if rest else "")
        legend = figure.legend(*panels[0].get_legend_handles_labels(), title=title, loc="outside right upper")
        for text in legend.get_texts():
            text.set_parse_math(False)
    save(figure, path)


def draw_importance(shares: Mapping[str, float], path: Path) -> None:
    """A bar a variable, the most important first."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    figure = Figure(figsize=(8.5, 1.1 + 0.36 * max(1, len(ranked))), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(ranked)), [value for _, value in ranked], height=0.7, color=BLUE)
    axes.bar_label(bars, labels=[f"{value:.0%}" for _, value in ranked], padding=4)
    axes.set_yticks(range(len(ranked)), [cut(name) for name, _ in ranked], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title="share of the explained differences", xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_speed(points: Sequence[Point], metric: str, path: Path, is_less_better: bool = False) -> int:
    """Images per second against the value, in the form of the paper's figure 4; the front is a line.

    Args:
        points: Trials that have both figures.
        metric: What the values are.
        path: PNG to write.
        is_less_better: Whether smaller values are better; then the axis is turned round.

    Returns:
        How many points have no name, for want of a free place or since they are too many.
    """
    figure = Figure(figsize=(9.5, 6.2), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    front = sorted((point for point in points if point.is_front), key=lambda point: point.speed)
    others = [point for point in points if not point.is_front]
    axes.scatter([p.speed for p in others], [p.value for p in others], s=46, color=PALE_BLUE, edgecolors=BLUE, zorder=3)
    axes.plot([p.speed for p in front], [p.value for p in front], color=ORANGE, linewidth=1.2, linestyle="--")
    axes.scatter([p.speed for p in front], [p.value for p in front], s=64, color=ORANGE, marker="D", zorder=4)
    _speed_axis(axes, [point.speed for point in points])
    axes.set_xlabel("images per second")
    axes.set_ylabel(metric, parse_math=False)
    axes.set_title("orange diamonds: no trial is as good and as fast; pale discs: the others", fontsize=10)
    axes.margins(0.12)
    if is_less_better:
        axes.invert_yaxis()
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    figure.set_layout_engine("none")  # or the names to come would move the axes under them
    taken = [place_of_point(axes, point.speed, point.value) for point in points]
    sign = -1 if is_less_better else 1
    best = sorted(others, key=lambda point: -sign * point.value)[: max(0, _NAMED_POINTS - len(front))]
    named = sum(place_name(axes, canvas, (p.speed, p.value), cut(p.name), taken) for p in (*front, *best))
    figure.savefig(path, facecolor="white")
    return len(points) - named


def _speed_axis(axes: Axes, speeds: Sequence[float]) -> None:
    positive = [speed for speed in speeds if speed > 0]
    if len(positive) == len(speeds) and positive and max(positive) > 2 * min(positive):
        axes.set_xscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(plain)
        is_narrow = max(positive) < 20 * min(positive)
        axes.xaxis.set_minor_formatter(plain if is_narrow else NullFormatter())


def _style(place: int, line: Line) -> dict[str, object]:
    if line.is_final:
        return {"color": "black", "linewidth": 2.4, "marker": "*"}
    color = (BLUE, ORANGE, "#2a2a2a", "#6a9fd4", "#e0a060")[place]
    return {"color": color, "linestyle": _DASHES[place], "linewidth": 1.7, "marker": _MARKERS[place]}


def value_norm(values: NDArray[np.float64]) -> Normalize:
    """From the least to the largest of the values that are numbers, to 0..1."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Normalize(0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    return Normalize(low, high) if high > low else Normalize(low - 0.5, low + 0.5)


def value_scale(is_less_better: bool) -> Colormap:
    """Colours of values in 0..1, the darker the better."""
    return _SCALE.reversed() if is_less_better else _SCALE


def color_bar(figure: Figure, axes: Axes, scale: ScalarMappable, title: str) -> None:
    """What the colours of a chart mean, beside it."""
    bar = figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.03)
    bar.ax.set_ylabel(title, parse_math=False)
    bar.outline.set_visible(False)


def level_texts(levels: Sequence[Value]) -> list[str]:
    """The values of a variable as labels."""
    return [cut(label(level)) for level in levels]


def save(figure: Figure, path: Path) -> None:
    """Write a chart as a PNG."""
    figure.savefig(path, dpi=DPI, facecolor="white")
