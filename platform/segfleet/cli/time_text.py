"""Where a job's time went and what befell its workers, in words and bars."""

from __future__ import annotations

from typing import Any

from segfleet.cli.output import ago, duration

_BAR_WIDTH = 30
# Below this share a part is counted with the others.
_SHOWN = 0.005


def time_lines(goodput: dict[str, Any] | None) -> list[str]:
    """A line on the whole, and a bar for each part that took any time worth a word; none before the first start."""
    if goodput is None or goodput["wall_s"] <= 0:
        return []
    share = "" if goodput["share"] is None else f"goodput {goodput['share']:.0%} of "
    wait = goodput["first_wait_s"]
    lines = [f"time: {share}{duration(goodput['wall_s'])}, after a wait of {duration(wait)}"]
    for part, seconds in goodput["seconds"].items():
        of_all = seconds / goodput["wall_s"]
        if of_all >= _SHOWN:
            bar = "#" * max(1, round(_BAR_WIDTH * of_all))
            lines.append(f"  {part:<10} {duration(seconds):>7} {of_all:>4.0%} {bar}")
    return lines


def fault_lines(faults: list[dict[str, Any]]) -> list[str]:
    """A line for each fault: when, in which attempt, which rank in which phase."""
    return [f"  {ago(fault['at'])} ago, attempt {fault['attempt']}: {fault['message']}" for fault in faults]
