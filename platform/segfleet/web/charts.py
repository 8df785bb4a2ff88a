"""Charts as SVG, made on the server: pages show them without any script."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from segfleet.cli.output import clean
from segfleet.web.figures import figure

Points = Sequence[tuple[float, float]]
# Pixels of a curve's drawing, and of the space around it.
_WIDTH, _HEIGHT = 460, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 22


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


def curve(title: str, points: Points, unit: str = "") -> Markup:
    """A curve over the steps with axes, its title and its latest value."""
    head = Markup('<figcaption><span class="chart-title">{}</span>').format(title)
    if len(points) < 2:
        return Markup('<figure class="chart">{}</figcaption><p class="empty">no points yet</p></figure>').format(head)
    latest = Markup('<span class="chart-latest">{}{}</span></figcaption>').format(figure(points[-1][1]), unit)
    box = (_LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)
    label = f"{title}: {len(points)} points, latest {figure(points[-1][1])}{unit} at step {points[-1][0]:.0f}"
    drawing = Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        _WIDTH, _HEIGHT, label
    )
    drawing += _axes(points, box) + Markup('<path class="line" d="{}"/></svg>').format(_path(points, box))
    return Markup('<figure class="chart">{}{}{}</figure>').format(head, latest, drawing)


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


def _path(points: Points, box: tuple[int, int, int, int]) -> str:
    left, top, width, height = box
    (x0, x1), (y0, y1) = _range([x for x, _ in points]), _range([y for _, y in points])
    placed = ((left + width * (x - x0) / (x1 - x0), top + height * (1 - (y - y0) / (y1 - y0))) for x, y in points)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5)


def _axes(points: Points, box: tuple[int, int, int, int]) -> Markup:
    left, top, width, height = box
    (x0, x1), (y0, y1) = _range([x for x, _ in points]), _range([y for _, y in points])
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
