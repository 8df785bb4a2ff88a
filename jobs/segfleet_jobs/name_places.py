"""Names beside the points of a chart, none over another."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import BboxBase

from segfleet_jobs.charts import DPI

Box = tuple[float, float, float, float]  # left, bottom, right, top; pixels
# Where a name may stand about its point, offset in points: close by on eight sides, then on ever wider rings.
_NEAR = [(6, 0), (-6, 0), (0, 6), (0, -6), (5, 6), (-5, 6), (5, -6), (-5, -6)]
_RINGS = [
    (round(radius * math.cos(angle)), round(radius * math.sin(angle)))
    for radius in (14, 24, 36, 50, 66)
    for angle in (math.pi * (number + 0.5) / 8 for number in range(16))
]
_RADIUS = 4 * DPI / 72


def place_of_point(axes: Axes, x: float, y: float) -> Box:
    """What a point of usual size takes up, pixels."""
    left, bottom = axes.transData.transform((x, y))
    return (left - _RADIUS, bottom - _RADIUS, left + _RADIUS, bottom + _RADIUS)


def place_name(axes: Axes, canvas: FigureCanvasAgg, point: tuple[float, float], name: str, taken: list[Box]) -> bool:
    """Write a name beside its point at the first place inside the axes that is free.

    Args:
        axes: As they will be saved: what moves them afterwards moves points under names.
        canvas: Of their figure.
        point: In data coordinates.
        name: As it stands, without mathematics.
        taken: Places where nothing may stand; the name's own is added.

    Returns:
        Whether there was a free place.
    """
    spot = (float(point[0]), float(point[1]))
    text = axes.annotate(name, spot, (0, 0), textcoords="offset points", fontsize=8.5, parse_math=False, zorder=4)
    size = text.get_window_extent(canvas.get_renderer())
    x, y = axes.transData.transform(spot)
    frame = axes.get_window_extent(canvas.get_renderer())
    for right, up in (*_NEAR, *_RINGS):
        left = x + right * DPI / 72 - size.width * (0.0 if right > 0 else 1.0 if right < 0 else 0.5)
        bottom = y + up * DPI / 72 - size.height * (0.0 if up > 0 else 1.0 if up < 0 else 0.5)
        box = (left, bottom, left + size.width, bottom + size.height)
        if not _is_inside(box, frame) or any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        text.xyann = ((left - x) * 72 / DPI, (bottom - y) * 72 / DPI)
        text.set(ha="left", va="bottom")
        if (right, up) in _RINGS:
            line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", spot, (right, up), textcoords="offset points", arrowprops=line)
        return True
    text.remove()
    return False


def _is_inside(box: Box, frame: BboxBase) -> bool:
    return box[0] >= frame.x0 and box[1] >= frame.y0 and box[2] <= frame.x1 and box[3] <= frame.y1


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
