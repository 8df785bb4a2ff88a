"""Charts as SVG, made on the server: pages show them without any script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from segfleet.cli.output import clean
from segfleet.web.figures import figure

Points = Sequence[tuple[float, float]]
# Pixels of a curve's drawing, and of the space around it.
_WIDTH, _HEIGHT = 460, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 20, 10, 22
# Left, top, width and height of the field between the axes; lowest and highest x and y.
_Box = tuple[int, int, int, int]
_Bounds = tuple[tuple[float, float], tuple[float, float]]
_BOX: _Box = (_LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)


def sparkline(points: Points, label: str, width: int = 88, height: int = 22) -> Markup:
    """A curve without axes."""
    if len(points) < 2:
        return Markup("")
    path = _path(points, (2, 2, width - 4, height - 4))
    shape = Markup('<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">')
    return shape.format(width, height, width, height, label) + Markup('<path d="{}"/></svg>').format(path)


def bar(share: float | None, kind: str = "on") -> Markup:
    """A bar that is filled to a share, 0 to 1; None: nobody knows how far."""
    filled = 0.0 if share is None else 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="bar {}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="bar-all" width="100" height="6"/><rect class="bar-part" width="{:.2f}" height="6"/></svg>'
    ).format(kind, filled)


def swatch(colour: tuple[int, int, int]) -> Markup:
    """A small field of a colour, red, green and blue of 0 to 255."""
    red, green, blue = (min(max(part, 0), 255) for part in colour)
    return Markup(
        '<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
        '<rect width="10" height="10" rx="2" fill="#{:02x}{:02x}{:02x}"/></svg>'
    ).format(red, green, blue)


def curve(title: str, points: Points, unit: str = "") -> Markup:
    """A curve over the steps with axes, its title and its latest value."""
    head = Markup('<figcaption><span class="chart-title">{}</span>').format(title)
    if len(points) < 2:
        return Markup('<figure class="chart">{}</figcaption><p class="empty">no points yet</p></figure>').format(head)
    latest = Markup('<span class="chart-latest">{}{}</span></figcaption>').format(figure(points[-1][1]), unit)
    label = f"{title}: {len(points)} points, latest {figure(points[-1][1])}{unit} at step {points[-1][0]:.0f}"
    drawing = Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        _WIDTH, _HEIGHT, label
    )
    drawing += _axes(_bounds(points), _BOX) + Markup('<path class="line" d="{}"/></svg>').format(_path(points, _BOX))
    return Markup('<figure class="chart">{}{}{}</figure>').format(head, latest, drawing)


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a scatter.

    Attributes:
        label: Shown where the pointer is.
        is_front: Whether it is marked; the marked ones are joined.
    """

    x: float
    y: float
    label: str
    is_front: bool


def curves(title: str, lines: Sequence[tuple[Points, str, bool]]) -> Markup:
    """Several curves over the steps, in one pair of axes.

    Args:
        title: Above the drawing.
        lines: (points, label, whether it is marked) of each; the marked ones are drawn last.
    """
    every = [point for points, _, _ in lines for point in points]
    bounds = _bounds(every)
    drawn = [
        Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(
            "mark" if is_marked else "pale", _path(_widened(points), _BOX, bounds), clean(label)
        )
        for points, label, is_marked in sorted(lines, key=lambda line: line[2])
    ]
    return _drawing(title, f"{title}: {len(lines)} curves", _axes(bounds, _BOX) + Markup("").join(drawn))


def scatter(title: str, spots: Sequence[Spot]) -> Markup:
    """Points in a pair of axes; a dashed line joins the marked ones."""
    bounds = _bounds([(spot.x, spot.y) for spot in spots])
    front = sorted((spot.x, spot.y) for spot in spots if spot.is_front)
    line = (
        Markup('<path class="front-line" d="{}"/>').format(_path(front, _BOX, bounds)) if len(front) > 1 else Markup()
    )
    dots = [_dot(spot, bounds) for spot in sorted(spots, key=lambda spot: spot.is_front)]
    return _drawing(title, f"{title}: {len(spots)} points", _axes(bounds, _BOX) + line + Markup("").join(dots))


def _dot(spot: Spot, bounds: _Bounds) -> Markup:
    x, y = _place((spot.x, spot.y), _BOX, bounds)
    kind, radius = ("dot front", 5) if spot.is_front else ("dot", 4)
    shape = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>')
    return shape.format(kind, x, y, radius, clean(spot.label))


def time_line(spans: Sequence[tuple[float, float, str, str]], begin: float, end: float) -> Markup:
    """Spans of time in one row.

    Args:
        spans: (from, to, CSS class, what it is) in seconds.
        begin: Left end, seconds.
        end: Right end, seconds.
    """
    length = max(end - begin, 1e-9)
    drawn = Markup("").join(
        Markup('<rect class="span {}" x="{:.2f}" y="0" width="{:.2f}" height="20"><title>{}</title></rect>').format(
            kind, 1000 * (left - begin) / length, max(2.0, 1000 * (right - left) / length), clean(text)
        )
        for left, right, kind, text in spans
    )
    label = "; ".join(clean(text) for *_, text in spans)
    return Markup(
        '<svg class="timeline" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="span-all" width="1000" height="20"/>{}</svg>'
    ).format(label, drawn)


def _drawing(title: str, label: str, content: Markup) -> Markup:
    return Markup(
        '<figure class="chart"><figcaption><span class="chart-title">{}</span></figcaption>'
        '<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, _WIDTH, _HEIGHT, label, content)


def _path(points: Points, box: _Box, bounds: _Bounds | None = None) -> str:
    bounds = bounds or _bounds(points)
    return "M" + "L".join("{:.1f} {:.1f}".format(*_place(point, box, bounds)) for point in points)


def _place(point: tuple[float, float], box: _Box, bounds: _Bounds) -> tuple[float, float]:
    (left, top, width, height), ((x0, x1), (y0, y1)) = box, bounds
    return left + width * (point[0] - x0) / (x1 - x0), top + height * (1 - (point[1] - y0) / (y1 - y0))


def _widened(points: Points) -> Points:
    """A single point as a short line, which can be seen."""
    return points if len(points) > 1 else [*points, *points]


def _bounds(points: Points) -> _Bounds:
    return _range([x for x, _ in points]), _range([y for _, y in points])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5)


def _axes(bounds: _Bounds, box: _Box) -> Markup:
    (left, top, width, height), ((x0, x1), (y0, y1)) = box, bounds
    parts = []
    for value in _ticks(y0, y1, 4):
        y = top + height * (1 - (value - y0) / (y1 - y0))
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}">{}</text>'
            ).format(left, left + width, y, y, left - 6, y + 3.5, figure(value))
        )
    for value in _ticks(x0, x1, 4):
        x = left + width * (value - x0) / (x1 - x0)
        parts.append(
            Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(x, top + height + 15, escape(figure(value)))
        )
    return Markup("").join(parts)


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values between two, about so many."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
