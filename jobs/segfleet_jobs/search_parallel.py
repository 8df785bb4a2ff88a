"""Parallel coordinates: the choices of all trials and what came of them, for any number of variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from segfleet_jobs.charts import GREY
from segfleet_jobs.search_charts import color_bar, level_texts, save, value_norm, value_scale
from segfleet_jobs.search_variables import Value, Variable, cut, label

_MOST_AXES = 10
_MOST_TICKS = 8
# From this ratio of the largest to the smallest number on, an axis shows orders of magnitude.
_WIDE = 50.0


def draw_parallel(
    shown: Sequence[Variable], values: Sequence[float | None], metric: str, path: Path, is_less_better: bool = False
) -> int:
    """A line a trial, across an axis a variable, to its value.

    Args:
        shown: The variables.
        values: Best value of each trial; None: grey, dashed, and without an end.
        metric: What the values are.
        path: PNG to write.
        is_less_better: Whether smaller values are better.

    Returns:
        How many variables found no room.
    """
    scale, sign = value_scale(is_less_better), -1 if is_less_better else 1
    drawn = list(shown[:_MOST_AXES])
    known = [value for value in values if value is not None]
    figure = Figure(figsize=(max(7.5, 2.1 * (len(drawn) + 1)), 5.4), layout="constrained")
    axes = figure.subplots()
    norm = value_norm(np.array(known or [math.nan]))
    heights = [_heights(variable, axes, place) for place, variable in enumerate(drawn)]
    _value_axis(axes, len(drawn), norm)
    # The best last, on top of the others.
    for trial in sorted(
        range(len(values)), key=lambda i: -math.inf if values[i] is None else sign * float(values[i] or 0.0)
    ):
        value = values[trial]
        points = [height[trial] for height in heights]
        color, style = (GREY, ":") if value is None else (scale(norm(value)), "-")
        tail = [] if value is None else [float(norm(value))]
        axes.plot(range(len(points + tail)), points + tail, color=color, linestyle=style, linewidth=1.6, alpha=0.85)
    axes.set_xticks(range(len(drawn) + 1), [cut(variable.name) for variable in drawn] + [metric], parse_math=False)
    axes.set(xlim=(-0.35, len(drawn) + 0.35), ylim=(-0.06, 1.06), yticks=[])
    axes.tick_params(axis="x", length=0, pad=8)
    axes.spines[:].set_visible(False)
    color_bar(figure, axes, ScalarMappable(norm, scale), f"best {metric}")
    save(figure, path)
    return len(shown) - len(drawn)


def _heights(variable: Variable, axes: Axes, place: int) -> list[float]:
    """Height of each trial on an axis in 0..1, nan for no choice; the axis and its ticks are drawn."""
    axes.axvline(place, color="#333333", linewidth=1)
    if variable.is_number and len(variable.levels) > _MOST_TICKS:
        numbers = [float(level) for level in variable.levels if isinstance(level, int | float)]
        is_log = min(numbers) > 0 and max(numbers) / min(numbers) >= _WIDE
        low, high = ((math.log(n) if is_log else n) for n in (min(numbers), max(numbers)))
        scale = Normalize(low, high)
        ticks = np.linspace(0, 1, 5)
        at = [float(scale.inverse(tick)) for tick in ticks]
        texts = [f"{math.exp(value) if is_log else value:.3g}" for value in at]

        def height(value: Value) -> float:
            if not isinstance(value, int | float):
                return math.nan
            return float(scale(math.log(value) if is_log else value))

    else:
        count = len(variable.levels)
        ticks = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
        texts = level_texts(variable.levels)
        by_level = dict(zip(map(label, variable.levels), ticks.tolist(), strict=True))

        def height(value: Value) -> float:
            return by_level.get(label(value), math.nan) if value is not None else math.nan

    every = -(-len(ticks) // 24)
    for tick, text in list(zip(ticks.tolist(), texts, strict=True))[::every]:
        _tick(axes, place, tick, text)
    return [height(value) for value in variable.values]


def _value_axis(axes: Axes, place: int, norm: Normalize) -> None:
    axes.axvline(place, color="#333333", linewidth=1)
    for tick in np.linspace(0, 1, 5).tolist():
        _tick(axes, place, tick, f"{float(norm.inverse(tick)):.4f}")


def _tick(axes: Axes, place: int, height: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    axes.annotate(
        text, (place, height), (5, 0), textcoords="offset points", va="center", fontsize=8, parse_math=False, bbox=box,
        zorder=5,
    )  # fmt: skip
