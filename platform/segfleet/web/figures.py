"""Figures as pages show them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

# For a figure that is not there, and between two bounds.
DASH = "\N{EN DASH}"


def is_number(value: Any) -> bool:
    """Whether it is a finite figure: progress documents are written by jobs, and may hold anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0


def count(value: Any) -> str:
    """A whole number in groups of three, such as 80,000; a dash when there is none."""
    return f"{value:,.0f}" if is_number(value) else DASH


def percent(value: Any, digits: int = 1) -> str:
    """A share, 0 to 1, in percent; a dash when there is none."""
    return f"{100 * value:.{digits}f} %" if is_number(value) else DASH


def figure(value: float) -> str:
    """A figure of an axis or a curve, in at most four places."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}".replace("e-0", "e-") if abs(value) < 0.001 else f"{value:.3g}"


def stamp(moment: float | None) -> str:
    """A moment (seconds since the epoch) as ISO 8601, which browsers turn into local time."""
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def progress_of(document: dict[str, Any] | None) -> dict[str, Any]:
    """What of a job's progress is shown, as far as it is what it should be.

    Returns:
        {"step", "num_steps", "share" (0 to 1), "eta_s", "miou", "loss", "samples_per_s", "phase"}; None: not known.
    """
    given = document or {}
    names = ("step", "num_steps", "eta_s", "miou", "loss", "samples_per_s")
    found: dict[str, Any] = {name: given.get(name) if is_number(given.get(name)) else None for name in names}
    has_share = found["step"] is not None and found["num_steps"]
    found["share"] = min(max(found["step"] / found["num_steps"], 0.0), 1.0) if has_share else None
    phase = given.get("phase")
    return {**found, "phase": phase if isinstance(phase, str) else None}
