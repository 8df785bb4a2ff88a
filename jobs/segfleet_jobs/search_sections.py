"""The parts of a search's report, each from the material and with its pictures drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segfleet.leaderboard import Standing
from segfleet.spec.filling import leaves
from segfleet_jobs import search_charts as charts
from segfleet_jobs.paper_table import PERCENT, Row
from segfleet_jobs.report_page import PagePicture, SectionOfPage, Table
from segfleet_jobs.search_importance import Importance
from segfleet_jobs.search_material import SearchMaterial, Trial
from segfleet_jobs.search_parallel import draw_parallel
from segfleet_jobs.search_variables import Value, Variable, label

BESIDE = "Beside the paper"
_HOUR = 3600.0
# Names of the paper's columns.
COLUMNS = {
    "single": "mIoU",
    "multi": "mIoU multi-scale",
    "small": "small",
    "medium": "medium",
    "large": "large",
    "images_per_s": "images/s",
    "top1": "ImageNet top-1",
}


def leaderboard_section(found: SearchMaterial) -> SectionOfPage:
    """All trials, the best first, with what they chose and what they cost."""
    title = "Leaderboard"
    if not found.standings:
        return SectionOfPage(title, missing="no trial has begun yet")
    text = (
        f"By the best {found.metric} of all validations. By cost: the place by {found.metric} a worker-hour, since "
        "small patches cost many times what large ones do; by speed: by images per second. "
        "Marked: no other trial is as good and as fast."
    )
    head = (
        "place", "trial", "choice", found.metric, "at step", "by cost", "by speed", "parameters", "images/s",
        "peak memory, MiB", "worker-hours", "state", "why",
    )  # fmt: skip
    rows = [_cells(found, standing) for standing in found.standings]
    marked = frozenset(i for i, standing in enumerate(found.standings) if standing.is_pareto)
    tables = [Table(head, rows, marked=marked)]
    if found.final is not None:
        final = ("", "final", *_figures(found.final), *_ends(found.final))
        tables.append(Table((*head[:2], *head[3:5], *head[7:]), [final], title="The best choice, trained once more"))
    measured = (found.job.get("result") or {}).get("measured")
    return SectionOfPage(title, text + (f" How speed is measured: {measured}." if measured else ""), tables=tables)


def _cells(found: SearchMaterial, standing: Standing) -> tuple[str, ...]:
    trial, places = standing.trial, standing.places
    choice = found.name_of(trial).partition(" ")[2] or ", ".join(f"{k} {label(v)}" for k, v in trial["params"].items())
    value, step, *measured = _figures(trial)
    own = (_place(places["value"]), str(trial["number"]), choice, value, step)
    return (*own, _place(places["cost"]), _place(places["speed"]), *measured, *_ends(trial))


def _figures(trial: Trial) -> tuple[str, str, str, str, str]:
    has_value = trial["best_value"] is not None
    return (
        f"{trial['best_value']:.4f}" if has_value else "-",
        f"{trial['best_step']:,}" if has_value else "-",
        "-" if trial["parameters"] is None else f"{trial['parameters']:,}",
        "-" if trial["images_per_s"] is None else f"{trial['images_per_s']:.4g}",
        "-" if trial["peak_memory_mib"] is None else f"{trial['peak_memory_mib']:,.0f}",
    )


def _ends(trial: Trial) -> tuple[str, str, str]:
    step = "" if trial["state"] == "succeeded" else f", step {trial['step']:,} of {trial['num_steps']:,}"
    return f"{trial['worker_seconds'] / _HOUR:.3g}", f"{trial['state']}{step}", trial["why"]


def _place(place: int | None) -> str:
    return "-" if place is None else str(place)


def space_section(found: SearchMaterial, out: Path) -> SectionOfPage:
    """A map of two variables, or parallel coordinates of any number."""
    title = "Choices and values"
    if not found.shown:
        return SectionOfPage(title, missing="fewer than two trials differ in anything")
    if len(found.shown) == 2 and all(variable.is_few for variable in found.shown):
        path = out / "map.png"
        # Numbers from left to right, words from top to bottom.
        rows, columns = sorted(found.shown, key=lambda variable: variable.is_number)
        if rows.is_number and columns.is_number:
            rows, columns = found.shown
        charts.draw_map(rows, columns, _map_cells(found, rows, columns), found.metric, path, found.mode == "min")
        caption = f"Best {found.metric} by {rows.name} and {columns.name}; # is the trial's number."
        return SectionOfPage(title, pictures=[PagePicture(path, caption)])
    path = out / "parallel.png"
    left_out = draw_parallel(found.shown, found.values, found.metric, path, found.mode == "min")
    caption = f"A line a trial, from its choices to its best {found.metric}; dotted: it has none." + (
        f" {left_out} more variables found no room." if left_out else ""
    )
    return SectionOfPage(title, pictures=[PagePicture(path, caption)])


def _map_cells(
    found: SearchMaterial, rows: Variable, columns: Variable
) -> dict[tuple[int, int], tuple[float | None, str]]:
    cells: dict[tuple[int, int], tuple[float | None, str]] = {}
    sign = 1 if found.mode == "max" else -1
    for place, (trial, value) in enumerate(zip(found.trials, found.values, strict=True)):
        row, column = _level(rows, place), _level(columns, place)
        if row is None or column is None:
            continue
        before = cells.get((row, column), (None, ""))[0]
        if value is None and (row, column) not in cells:
            cells[row, column] = (None, "failed" if trial["state"] == "failed" else "no value yet")
        if value is not None and (before is None or sign * value > sign * before):
            cells[row, column] = (value, f"{value:.4f}\n#{trial['number']}")
    return cells


def _level(variable: Variable, place: int) -> int | None:
    value: Value = variable.values[place]
    return None if value is None else variable.levels.index(value)


def learning_section(found: SearchMaterial, out: Path) -> SectionOfPage:
    """The learning curves of all trials."""
    title = "Learning curves"
    lines = [
        _line(found, trial) for trial in (*found.trials, *([found.final] if found.final else [])) if trial["reports"]
    ]
    lines = [line for line in lines if any(map(math.isfinite, line.values))]
    if not lines:
        return SectionOfPage(title, missing="no trial has been validated yet")
    path = out / "learning.png"
    charts.draw_learning(lines, found.metric, found.mode, path)
    caption = (
        f"{found.metric} at each validation of {len(lines)} trainings: left over steps, right over busy worker-hours."
    )
    return SectionOfPage(title, pictures=[PagePicture(path, caption)])


def _line(found: SearchMaterial, trial: Trial) -> charts.Line:
    reports, workers = trial["reports"], found.spec.base.resources.min_workers
    return charts.Line(
        found.name_of(trial),
        [report["step"] for report in reports],
        [report["seconds"] * workers / _HOUR for report in reports],
        [math.nan if report["value"] is None else report["value"] for report in reports],
        trial["kind"] == "final",
    )


def importance_section(told: Importance, validation: int, out: Path) -> SectionOfPage:
    """Which variables matter, or why that cannot be said."""
    title = "Importance of the variables"
    if told.why:
        return SectionOfPage(title, missing=told.why)
    path = out / "importance.png"
    charts.draw_importance(told.shares, path)
    text = (
        f"A forest of regression trees fitted to the values of {told.num_trials} trials at validation {validation}, "
        f"the last that half of the trials have reached. On trials that a tree has not seen it explains "
        f"{told.explained:.0%} of the variance; the less, the less the shares mean. They hold within this search's "
        "space, not beyond it, and say nothing of the direction."
    )
    return SectionOfPage(title, text, [PagePicture(path, "Share of the explained variance that each variable takes.")])


def speed_section(found: SearchMaterial, out: Path) -> SectionOfPage:
    """Images per second against the value."""
    title = "Speed and value"
    points = [
        charts.Point(found.name_of(s.trial), s.trial["images_per_s"], s.trial["best_value"], s.is_pareto)
        for s in found.standings
        if s.places["value"] is not None and s.places["speed"] is not None
    ]
    if not points:
        return SectionOfPage(title, missing="no trial has both a value and a measured speed")
    path = out / "speed.png"
    left_out = charts.draw_speed(points, found.metric, path, found.mode == "min")
    caption = (
        f"Best {found.metric} against images per second of {len(points)} trials; the dashed line joins the front."
        + (f" {left_out} have no name here." if left_out else "")
    )
    return SectionOfPage(title, "In the form of the paper's figure 4.", [PagePicture(path, caption)])


def paper_section(place: str, title: str, rows: Sequence[Row]) -> SectionOfPage:
    """One of the paper's tables: ours, the paper's, the difference."""
    columns = [name for name in COLUMNS if any(name in row.entry.figures for row in rows)]
    head = ["model"]
    for name in columns:
        head += [f"{COLUMNS[name]}, paper"]
        head += [f"{COLUMNS[name]}, ours"] if name != "top1" else []
        head += ["difference"] if name in PERCENT else []
    head.append("ours is")
    cells = [_paper_cells(row, columns) for row in rows]
    common = _common_differences(rows)
    text = "mIoU in per cent: of ours what it was after the last step, as in the paper. "
    if common:
        text += f"Not comparable with the paper: in all of these trainings {'; '.join(common)}."
    tables = [Table(head, cells)]
    if any(row.differs for row in rows):
        own = [(row.entry.model, _run(row), "; ".join(row.differs) or "nothing") for row in rows if row.run]
        tables.append(Table(("model", "ours is", "what differs"), own, "What differs from the paper's", is_folded=True))
    return SectionOfPage(f"{BESIDE}: {place}, {title}", text.strip(), tables=tables)


def _paper_cells(row: Row, columns: Sequence[str]) -> list[str]:
    cells = [row.entry.model]
    for name in columns:
        paper, ours = row.entry.figures.get(name), row.ours.get(name)
        cells.append("-" if paper is None else _number(paper, name))
        if name != "top1":
            cells.append(
                _number(ours, name) if ours is not None else "-" if paper is None else row.missing or "missing"
            )
        if name in PERCENT:
            known = row.difference.get(name)
            cells.append(f"{known:+.2f}" if known is not None else "" if ours is None else "not comparable")
    return [*cells, _run(row)]


def _run(row: Row) -> str:
    return "-" if row.run is None else row.run.name


def _number(value: float, column: str) -> str:
    return f"{value:.2f}" if column in PERCENT else f"{value:.4g}"


def _common_differences(rows: Sequence[Row]) -> list[str]:
    """What keeps all of our trainings from being compared."""
    ours = [row.differs for row in rows if row.run is not None]
    return [text for text in ours[0] if all(text in other for other in ours)] if ours else []


def spec_section(found: SearchMaterial) -> SectionOfPage:
    """The space, and the whole spec."""
    space = [(path, _plain(body)) for path, body in found.job["spec"]["space"].items()]
    rest = {name: value for name, value in found.job["spec"].items() if name not in ("space", "written")}
    rows = [(name, _plain(value)) for name, value in leaves(rest).items()]
    tables = [Table(("field", "choices"), space), Table(("field", "value"), rows, "The whole spec", is_folded=True)]
    return SectionOfPage("Spec", "What the trials choose from.", tables=tables)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(inner)}" for key, inner in value.items() if inner is not None)
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else label(value)
