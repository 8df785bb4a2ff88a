"""What a search's page shows: its trials in order, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segfleet.leaderboard import Standing, leaderboard
from segfleet.server.services import Services
from segfleet.server.trial_routes import of_job
from segfleet.web.charts import Spot

_TITLES = {"val/miou": "mIoU"}
# Of the leaderboard, and of the curves; a search may have a thousand trials.
_ROWS, _CURVES = 100, 40
# A map with more fields than this tells nothing at a glance.
_MOST_CHOICES = 12


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The best value of each pair of choices.

    Attributes:
        down: Name and values of one variable.
        across: Name and values of the other.
        cells: Best value and trial's number by (value down, value across), as text.
        bounds: Lowest and highest of all values.
    """

    down: tuple[str, Sequence[str]]
    across: tuple[str, Sequence[str]]
    cells: Mapping[tuple[str, str], tuple[float, int]]
    bounds: tuple[float, float]

    def share(self, value: float) -> float:
        """Where a value lies between the lowest and the highest, 0 to 1."""
        low, high = self.bounds
        return 1.0 if high <= low else (value - low) / (high - low)


def search_view(services: Services, job_id: str) -> dict[str, Any]:
    """The trials of a search.

    Raises:
        QueueError: the job is no search.
    """
    found = of_job(job_id, services).model_dump()
    standings = leaderboard(found["trials"], found["mode"])
    names = _short_names(standings)
    return {
        "metric": _TITLES.get(found["metric"], found["metric"].removeprefix("val/")),
        "standings": [(one, _choice(one.trial["params"], names)) for one in standings[:_ROWS]],
        "num_trials": len(standings),
        "final": next((trial for trial in found["trials"] if trial["kind"] == "final"), None),
        "spots": _spots(standings, names),
        "curves": [
            (
                [(float(report["step"]), float(report["value"])) for report in one.trial["reports"]],
                f"trial {one.trial['number']}: {_choice(one.trial['params'], names)}",
                place == 0,
            )
            for place, one in enumerate(standings[:_CURVES])
            if one.trial["reports"]
        ],
        "heat": heat_map(standings, names, found["mode"]),
    }


def heat_map(standings: Sequence[Standing], names: Mapping[str, str], mode: str) -> HeatMap | None:
    """The map of the two variables that differ between the trials; None: there are not two, or too many choices."""
    choices: dict[str, dict[str, Any]] = {}
    for one in standings:
        for path, value in one.trial["params"].items():
            choices.setdefault(path, {})[str(value)] = value
    differing = [path for path, values in choices.items() if len(values) > 1]
    if len(differing) != 2 or any(len(choices[path]) > _MOST_CHOICES for path in differing):
        return None
    down, across = differing
    cells: dict[tuple[str, str], tuple[float, int]] = {}
    sign = 1.0 if mode == "max" else -1.0
    for one in standings:
        value, params = one.trial["best_value"], one.trial["params"]
        if one.places["value"] is None or down not in params or across not in params:
            continue
        place = str(params[down]), str(params[across])
        if place not in cells or sign * value > sign * cells[place][0]:
            cells[place] = float(value), int(one.trial["number"])
    if not cells:
        return None
    values = [value for value, _ in cells.values()]
    sides = [(names[path], [str(value) for value in _sorted(choices[path].values())]) for path in (down, across)]
    return HeatMap(sides[0], sides[1], cells, (min(values), max(values)))


def _sorted(values: Any) -> list[Any]:
    found = list(values)
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return sorted(found) if is_number else sorted(found, key=str)


def _spots(standings: Sequence[Standing], names: Mapping[str, str]) -> list[Spot]:
    return [
        Spot(
            float(one.trial["images_per_s"]),
            float(one.trial["best_value"]),
            f"trial {one.trial['number']}: {_choice(one.trial['params'], names)}",
            one.is_pareto,
        )
        for one in standings
        if one.places["speed"] is not None and one.places["value"] is not None
    ]


def _short_names(standings: Sequence[Standing]) -> dict[str, str]:
    """The last part of each variable's path, or all of it where two end alike."""
    paths = sorted({path for one in standings for path in one.trial["params"]})
    ends = [path.rpartition(".")[2] for path in paths]
    return {path: end if ends.count(end) == 1 else path for path, end in zip(paths, ends, strict=True)}


def _choice(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return ", ".join(f"{names[path]} {_shown(value)}" for path, value in params.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
