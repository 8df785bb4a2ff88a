"""The trials of a search in order: by value, by what the value has cost, by speed; and those that nothing beats.

A trial counts with the best value of all its validations, also if it was stopped early; one that has failed, or has
shown nothing yet, stands behind all others. Of equals the one with the lower number is first. The retraining of the
best is no competitor and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Trial = Mapping[str, Any]
By = Literal["value", "cost", "speed"]
_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A trial on the leaderboard.

    Attributes:
        trial: Its document, as the service sends it.
        places: Its place by value, by cost and by speed, from 1; None where it has no such figure.
        value_per_hour: Best value per worker-hour; None: it has no value or took no time.
        is_pareto: Whether no other trial is as good and as fast and better in one of the two.
    """

    trial: Trial
    places: Mapping[By, int | None]
    value_per_hour: float | None
    is_pareto: bool


def leaderboard(trials: Iterable[Trial], mode: str = "max", by: By = "value") -> tuple[Standing, ...]:
    """All trials of a search, best first.

    Args:
        trials: Documents of trials.
        mode: Whether `max` or `min` of the metric is better.
        by: Order of the answer; each standing has its places in all three.
    """
    known = [trial for trial in trials if trial["kind"] == "trial"]
    places = {kind: _places(known, mode, kind) for kind in _FIGURES}
    front = pareto(known, mode)
    return tuple(
        Standing(
            trial,
            {kind: of_kind.get(trial["number"]) for kind, of_kind in places.items()},
            value_per_hour(trial),
            trial["number"] in front,
        )
        for trial in rank(known, mode, by)
    )


def rank(trials: Iterable[Trial], mode: str = "max", by: By = "value") -> tuple[Trial, ...]:
    """The trials, best first.

    By `value`: the best value of the metric. By `cost`: that value per worker-hour, or where less is better the product
    of both. By `speed`: images a second.
    """
    known = [trial for trial in trials if trial["kind"] == "trial"]
    return tuple(sorted(known, key=lambda trial: _order(trial, mode, by)))


def pareto(trials: Iterable[Trial], mode: str = "max") -> frozenset[int]:
    """Numbers of the trials that no other beats in value and speed at once.

    One beats another if it is as good and as fast, and better in at least one. Trials without one of the two figures
    are in no comparison.
    """
    sign = 1.0 if mode == "max" else -1.0
    points = {
        trial["number"]: (sign * trial["best_value"], trial["images_per_s"])
        for trial in trials
        if trial["kind"] == "trial" and _has_value(trial) and trial["images_per_s"] is not None
    }
    return frozenset(
        number
        for number, (value, speed) in points.items()
        if not any(v >= value and s >= speed and (v, s) != (value, speed) for v, s in points.values())
    )


def value_per_hour(trial: Trial) -> float | None:
    """Best value per worker-hour; None: the trial has no value or took no time."""
    if not _has_value(trial) or trial["worker_seconds"] <= 0:
        return None
    return float(trial["best_value"] * _SECONDS_AN_HOUR / trial["worker_seconds"])


def _has_value(trial: Trial) -> bool:
    return trial["best_value"] is not None and trial["state"] != "failed"


def _value(trial: Trial, mode: str) -> float | None:
    if not _has_value(trial):
        return None
    return float(trial["best_value"]) if mode == "max" else -float(trial["best_value"])


def _cost(trial: Trial, mode: str) -> float | None:
    if mode == "max" or value_per_hour(trial) is None:
        return value_per_hour(trial)
    return -float(trial["best_value"] * trial["worker_seconds"])


def _speed(trial: Trial, _mode: str) -> float | None:
    speed = trial["images_per_s"]
    return None if speed is None or trial["state"] == "failed" else float(speed)


_FIGURES: Mapping[By, Callable[[Trial, str], float | None]] = {"value": _value, "cost": _cost, "speed": _speed}


def _order(trial: Trial, mode: str, by: By) -> tuple[bool, float, int]:
    figure = _FIGURES[by](trial, mode)
    return figure is None, -(figure or 0.0), int(trial["number"])


def _places(trials: Iterable[Trial], mode: str, by: By) -> dict[int, int]:
    has_figure = [trial for trial in rank(trials, mode, by) if _FIGURES[by](trial, mode) is not None]
    return {trial["number"]: place for place, trial in enumerate(has_figure, start=1)}
